"""What evaluation hands on: frozen results, every rate pooled over tokens, with a 95 % interval over prompts."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, computed_field

from fastdraft.system.cards import Card
from fastdraft.system.precision import Precision


class Result(BaseModel):
    """What every result shares: unknown fields stop, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Result):
    """A pooled rate, and its 95 % interval by bootstrap over prompts."""

    value: float
    low: float
    high: float


class GammaResult(Result):
    """What blocks of gamma drafted tokens give; names and formulas are those of docs/maths.md.

    `position_intervals`: those of `position_acceptance`, by place; older results have none.
    """

    gamma: int
    acceptance_rate: Estimate
    block_efficiency: Estimate
    mbsu: Estimate
    position_acceptance: tuple[float, ...]
    position_intervals: tuple[tuple[float, float], ...] = ()
    block_efficiency_without_loops: float | None


class Gap(Estimate):
    """One draft's rate minus another's on the same prompts, and the 95 % interval of that by paired resamples."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def more_than_noise(self) -> bool:
        """Does the interval leave out zero? Of twenty drafts that are as good, one does by chance.

        That of one prompt is a point, and says nothing of others.
        """
        return self.low < self.high and (self.low > 0 or self.high < 0)


class GammaGap(Result):
    """Two drafts at one gamma."""

    gamma: int
    acceptance_rate: Gap
    block_efficiency: Gap
    mbsu: Gap


class Comparison(Result):
    """A draft against `other` on the same completions; `best_mbsu` is that of each at its own best gamma."""

    task: str
    temperature: float
    top_k: int
    top_p: float
    prompts: int
    other: str
    alpha: Gap
    gammas: tuple[GammaGap, ...]
    best_gammas: tuple[int, int]
    best_mbsu: Gap


class TaskResult(Result):
    """A draft on the completions of one task under one distribution. `stage` is the phase that made the draft.

    looping_fraction: share of completions that loop; repeated_8grams: share of repeated 8-grams, pooled over all of
    them.
    What is "without loops" is taken over the other completions alone; None where none remains.
    """

    stage: str
    task: str
    temperature: float
    top_k: int
    top_p: float
    prompts: int
    tokens: int
    c: float
    alpha: Estimate
    gammas: tuple[GammaResult, ...]
    best_gamma: int
    looping_fraction: float
    repeated_8grams: float
    alpha_without_loops: float | None

    def at(self, gamma: int) -> GammaResult:
        """The rates at one gamma."""
        return next(result for result in self.gammas if result.gamma == gamma)


class NearTie(Result):
    """Two runs of one model that part where its two best tokens are closer than rounding can tell apart."""

    prompt: int
    position: int
    gap: float
    between: str


class VerificationResult(Result):
    """Real speculative decoding beside the one-pass evaluation of the same prompts, in agreement.

    Greedy: `compared` prompts are equal token for token and forward for forward; the others are near ties.
    """

    temperature: float
    gamma: int
    prompts: int
    compared: int
    tokens: int
    real: Estimate
    one_pass: Estimate
    near_ties: tuple[NearTie, ...]


class EvaluationCard(Card):
    """Every draft of the run on every task and distribution, and real speculative decoding with the last one.

    `precision` is what the target computed in while it wrote.
    """

    kind: ClassVar[str] = "evaluation"
    precision: Precision
    results: tuple[TaskResult, ...]
    verified: dict[str, tuple[VerificationResult, ...]]
