"""Results of a benchmark: times with their spread, measured and predicted acceptance, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import model_validator

from fastdraft.results.evaluation import Result
from fastdraft.system.validation import read_json


class Spread(Result):
    """Median, minimum and maximum over repeats."""

    value: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median, minimum and maximum of measured values."""
    return Spread(value=median(values), low=min(values), high=max(values))


class Prediction(Result):
    """Acceptance at a gamma by one pass over the target's texts, and the speed-up that follows from measured steps."""

    block_efficiency: float
    position_acceptance: tuple[float, ...]
    speedup: float


class ArmResult(Result):
    """One way to decode, on the prompts of one task.

    arm: none (no draft), lookup (prompt lookup) or draft.
    milliseconds_a_token: without the first forward.
    speedup: over `none` in the same repeat.
    drafted, block_efficiency, position_acceptance: as counted by the engine; the last is empty if it does not count it.
    equal_fraction: fraction of greedy texts that equal those of `none`.
    widest_gap: largest difference of the logits of the two tokens at which texts differ.
    """

    arm: Literal["none", "lookup", "draft"]
    gamma: int
    milliseconds_a_token: Spread
    first_token_milliseconds: Spread
    speedup: Spread
    tokens: int
    drafted: int
    block_efficiency: float
    position_acceptance: tuple[float, ...]
    predicted: Prediction | None
    equal_fraction: float | None
    widest_gap: float | None


class Cell(Result):
    """All arms on one task, at one temperature and one setting of the engine."""

    setting: str
    task: str
    temperature: float
    arms: tuple[ArmResult, ...]

    def at(self, arm: str, gamma: int) -> ArmResult:
        """The result of an arm."""
        return next(result for result in self.arms if (result.arm, result.gamma) == (arm, gamma))

    @property
    def none(self) -> ArmResult:
        """The result without a draft."""
        return self.at("none", 0)

    @property
    def drafts(self) -> list[ArmResult]:
        """The results with the draft, one for each gamma."""
        return [result for result in self.arms if result.arm == "draft"]


class Difference(Result):
    """The first position at which greedy text with a draft differs from text without, and the gap of the two logits."""

    task: str
    prompt: int
    arm: str
    gamma: int
    position: int
    tokens: tuple[int, int]
    gap: float


class Equality(Result):
    """Comparison of greedy texts with and without a draft in the exact setting; differences are near ties."""

    setting: str
    texts: int
    equal: int
    near_ties: tuple[Difference, ...]


class Steps(Result):
    """Seconds of the steps of decoding, measured while the pair decodes in one repeat.

    target_seconds: the target on one token, without a draft.
    draft_seconds: one drafted token, by gamma.
    block_seconds: the rest of a block, by gamma: the target on gamma + 1 tokens, and the engine's own work.
    """

    setting: str
    temperature: float
    repeat: int
    target_seconds: float
    draft_seconds: dict[int, float]
    block_seconds: dict[int, float]


class Model(Result):
    """The target or the draft.

    digest: of its files.
    stand_in: for a model that only stands in for another in timing, the description in its configuration.
    """

    path: str
    digest: str
    parameters: int
    weights: str
    stand_in: str | None


class Advice(Result):
    """The recommended setting and gamma.

    pays: whether `speedup` is above 1 by more than noise.
    speedup: over the fastest decoding without a draft, mean over tasks, greedy.
    option: the option of the engine that sets it.
    lines: the advice as text.
    """

    pays: bool
    setting: str
    gamma: int
    speedup: float
    option: str
    lines: tuple[str, ...]


class BenchResult(Result):
    """The benchmark of a pair in an engine on a device.

    keeps_distribution: whether sampling with the draft has the same distribution as without.
    """

    version: Literal[3] = 3
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

    @model_validator(mode="after")
    def _has_the_arms_that_it_advises(self) -> BenchResult:
        advised = [cell for cell in self.cells if cell.setting == self.advice.setting]
        arms = [{(arm.arm, arm.gamma) for arm in cell.arms} for cell in self.cells]
        if not advised or any(not {("none", 0), ("draft", self.advice.gamma)} <= each for each in arms):
            raise ValueError(f"no times without a draft, or none of the advised {self.advice.setting}")
        return self

    @property
    def where(self) -> str:
        """Engine, device and weights as text, and that the target is a stand-in if it is one."""
        engine = f"{self.engine} {self.versions.get(self.engine, '')}".strip()
        text = f"{engine}, {self.device} ({self.hardware}), weights {self.target.weights} and {self.draft.weights}"
        return f"{text}, on a stand-in of {self.target.parameters:,} parameters" if self.target.stand_in else text


def read_bench(file: Path) -> BenchResult:
    """Read a benchmark's file; CardError if it cannot be read as one."""
    return read_json(file, BenchResult, "a valid benchmark", "run it again, or remove it")
