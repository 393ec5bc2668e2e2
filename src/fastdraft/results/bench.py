"""What a bench hands on: times with their spread, what the engine accepted beside what one pass predicts, advice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from fastdraft.results.evaluation import Result
from fastdraft.system.errors import CardError

VERSION = 2


class Spread(Result):
    """The median over repeats, the least and the greatest."""

    value: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of measured values."""
    return Spread(value=median(values), low=min(values), high=max(values))


class Predicted(Result):
    """What one pass over the target's own text says of a gamma, and the speed-up that follows with measured steps."""

    block_efficiency: float
    position_acceptance: tuple[float, ...]
    speedup: float


class ArmResult(Result):
    """One way to decode, on the prompts of one task. `arm`: none, lookup (prompt lookup) or draft.

    Milliseconds a token are those behind the first forward; `speedup` is over `none` in the same repeat. What the
    engine counted: `drafted` tokens, `block_efficiency`, `position_acceptance` (empty where it does not say).
    `equal_fraction`: of greedy texts, how many are those of `none`; `widest_gap`: where they part, how far apart the
    two tokens' logits are, at most.
    """

    arm: str
    gamma: int
    milliseconds_a_token: Spread
    first_token_milliseconds: Spread
    speedup: Spread
    tokens: int
    drafted: int
    block_efficiency: float
    position_acceptance: tuple[float, ...]
    predicted: Predicted | None
    equal_fraction: float | None
    widest_gap: float | None


class Cell(Result):
    """Every arm on one task, under one distribution and one setting of the engine."""

    setting: str
    task: str
    temperature: float
    arms: tuple[ArmResult, ...]

    def at(self, arm: str, gamma: int) -> ArmResult:
        """One arm."""
        return next(result for result in self.arms if (result.arm, result.gamma) == (arm, gamma))

    @property
    def none(self) -> ArmResult:
        """Without a draft."""
        return self.at("none", 0)

    @property
    def drafts(self) -> list[ArmResult]:
        """With the draft, by gamma."""
        return [result for result in self.arms if result.arm == "draft"]


class Difference(Result):
    """The first token at which greedy text with a draft is not that without one, and the target's two logits there."""

    task: str
    prompt: int
    arm: str
    gamma: int
    position: int
    tokens: tuple[int, int]
    gap: float


class Equality(Result):
    """Greedy texts with a draft against those without one, in the exact setting; differences are near ties."""

    setting: str
    texts: int
    equal: int
    near_ties: tuple[Difference, ...]


class Steps(Result):
    """Seconds of steps where they are taken: while a pair decodes under a setting and a distribution, in one repeat.

    `target_seconds`: of the target on one token, without a draft. By gamma, `draft_seconds` of a drafted token and
    `block_seconds` of all else that a block takes: the target on gamma + 1 tokens, and the engine's own work.
    """

    setting: str
    temperature: float
    repeat: int
    target_seconds: float
    draft_seconds: dict[int, float]
    block_seconds: dict[int, float]


class Model(Result):
    """One side of the pair. `digest` is that of its files; `stand_in`: what its configuration says if it is one."""

    path: str
    digest: str
    parameters: int
    weights: str
    stand_in: str | None


class Advice(Result):
    """What to set. `speedup`: over the fastest decoding without a draft, in the mean over tasks, greedy.

    `pays` is false where that is not above 1 by more than noise. `option` is the engine's own, `lines` the words.
    """

    pays: bool
    setting: str
    gamma: int
    speedup: float
    option: str
    lines: tuple[str, ...]


class BenchResult(Result):
    """A pair in an engine on a device. `keeps_distribution`: text sampled with a draft is distributed as without
    one.
    """

    version: int = VERSION
    engine: str
    device: str
    hardware: str
    versions: dict[str, str]
    command: str
    target: Model
    draft: Model
    prompts: dict[str, int]
    max_new_tokens: int
    repeats: int
    keeps_distribution: bool
    steps: tuple[Steps, ...]
    equality: Equality | None
    cells: tuple[Cell, ...]
    advice: Advice

    @property
    def where(self) -> str:
        """Engine, device and precision in words; a stand-in is called one."""
        about = f"{self.engine} {self.versions.get(self.engine, '')}".strip()
        said = f"{about}, {self.device} ({self.hardware}), weights {self.target.weights} and {self.draft.weights}"
        return f"{said}, on a stand-in of {self.target.parameters:,} parameters" if self.target.stand_in else said


def read_bench(file: Path) -> BenchResult:
    """CardError where the file is none, or one of another version."""
    try:
        return BenchResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CardError(f"{file} does not read as a bench: {first}\n  do: run it again, or remove it") from error
