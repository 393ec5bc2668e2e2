"""Results of an evaluation. Rates are pooled over tokens, with a 95 % bootstrap interval over prompts."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

from fastdraft.system.cards import Card
from fastdraft.system.precision import Precision


class Result(BaseModel):
    """The base class of results: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Result):
    """A pooled rate and its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


class GammaResult(Result):
    """Results for blocks of gamma drafted tokens; docs/maths.md has the names and formulas.

    position_intervals: the intervals of `position_acceptance`.
    """

    gamma: int
    acceptance_rate: Estimate
    block_efficiency: Estimate
    mbsu: Estimate
    position_acceptance: tuple[float, ...]
    position_intervals: tuple[tuple[float, float], ...]
    block_efficiency_without_loops: float | None


class Gap(Estimate):
    """The rate of one draft minus that of another on the same prompts, with a 95 % interval by paired bootstrap."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def more_than_noise(self) -> bool:
        """Whether the interval excludes zero. For equally good drafts this happens by chance in one of twenty cases.

        False for a single prompt, whose interval is a point.
        """
        return self.low < self.high and (self.low > 0 or self.high < 0)


class GammaGap(Result):
    """The gaps between two drafts at one gamma."""

    gamma: int
    acceptance_rate: Gap
    block_efficiency: Gap
    mbsu: Gap


class Comparison(Result):
    """A draft compared with the draft `other` on the same completions; `best_mbsu` uses the best gamma of each."""

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
    """A draft on the completions of one task with one set of sampling parameters.

    stage: the phase that trained the draft.
    looping_fraction: fraction of the completions that loop.
    repeated_8grams: fraction of repeated 8-grams, pooled over all completions.
    *_without_loops: without the completions that loop; None if all of them do.
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

    @model_validator(mode="after")
    def _has_its_gammas(self) -> TaskResult:
        gammas = [at.gamma for at in self.gammas]
        if self.best_gamma not in gammas or any(len(at.position_acceptance) != at.gamma for at in self.gammas):
            raise ValueError(f"best_gamma {self.best_gamma} and the positions of each block do not fit gammas {gammas}")
        return self

    def at(self, gamma: int) -> GammaResult:
        """The rates at one gamma."""
        return next(result for result in self.gammas if result.gamma == gamma)


class NearTie(Result):
    """Two runs of one model differ first at a position where its two best tokens are equal within rounding."""

    prompt: int
    position: int
    gap: float
    between: str


class VerificationResult(Result):
    """Real speculative decoding and the one-pass evaluation of the same texts.

    Greedy: `compared` prompts have the same tokens and number of forwards in both; the others differ at near ties.
    Sampled: forwards_z is the difference between the real number of target forwards and the expected one, recorded_z
    that between the mean acceptance of the recorded tokens and its expectation; both in standard deviations.
    disagreements: what differs by more than chance or rounding; empty if both agree.
    """

    temperature: float
    gamma: int
    prompts: int
    compared: int
    tokens: int
    real: Estimate
    one_pass: Estimate
    near_ties: tuple[NearTie, ...] = ()
    forwards_z: float | None = None
    recorded_z: float | None = None
    disagreements: tuple[str, ...] = ()


class EvaluationCard(Card):
    """Every draft of a run on every task and temperature, and the verification of the last draft.

    precision: the target's precision while it generated the completions.
    """

    kind: ClassVar[str] = "evaluation"
    refills: ClassVar[bool] = True
    precision: Precision
    results: tuple[TaskResult, ...]
    verified: dict[str, tuple[VerificationResult, ...]]

    @model_validator(mode="after")
    def _has_the_same_gammas(self) -> EvaluationCard:
        if len({tuple(at.gamma for at in result.gammas) for result in self.results}) != 1:
            raise ValueError("results: wanted at least one, and the same gammas in all of them")
        return self
