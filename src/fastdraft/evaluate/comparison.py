"""Two drafts on the same completions: differences, with intervals over prompts that both were resampled in alike.

Prompts differ far more than drafts do, and pairing takes that out: two intervals can overlap where their difference is
clear.

Dimensions: B completions, R resamples of the prompts.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdraft.evaluate.one_pass import Acceptances, resampled_prompts
from fastdraft.maths import acceptance
from fastdraft.maths.acceptance import Chain, resampled_ratios
from fastdraft.results.evaluation import Comparison, GammaGap, Gap, TaskResult


class Side(NamedTuple):
    """A draft's acceptances and what followed from them."""

    found: Acceptances
    result: TaskResult


class _Rate(NamedTuple):
    """A pooled rate: sum over sum, times a factor that is the same for all prompts."""

    numerator_B: Tensor
    denominator_B: Tensor
    factor: float = 1.0

    def value(self) -> float:
        """Over all prompts."""
        return self.factor * float(self.numerator_B.double().sum() / self.denominator_B.double().sum())

    def resampled_R(self, resample_RB: Tensor) -> Tensor:
        """In each resample."""
        return self.factor * resampled_ratios(self.numerator_B, self.denominator_B, resample_RB)


def compare(ours: Side, theirs: Side, resamples: int, seed: int) -> Comparison:
    """Ours minus theirs; ValueError where the two are not of the same completions."""
    if ours.found.lengths_B.tolist() != theirs.found.lengths_B.tolist():
        raise ValueError("two drafts scored on other completions, wanted the same")
    result = ours.result
    resample_RB = resampled_prompts(result.prompts, resamples, seed)
    best = ours.result.best_gamma, theirs.result.best_gamma
    return Comparison(
        task=result.task,
        temperature=result.temperature,
        top_k=result.top_k,
        top_p=result.top_p,
        prompts=result.prompts,
        other=theirs.result.stage,
        alpha=_gap(_alpha(ours), _alpha(theirs), resample_RB),
        gammas=tuple(_at(at.gamma, ours, theirs, resample_RB) for at in result.gammas),
        best_gammas=best,
        best_mbsu=_gap(_mbsu(ours, best[0]), _mbsu(theirs, best[1]), resample_RB),
    )


def _at(gamma: int, ours: Side, theirs: Side, resample_RB: Tensor) -> GammaGap:
    left, right = _chain(ours, gamma), _chain(theirs, gamma)
    return GammaGap(
        gamma=gamma,
        acceptance_rate=_gap(_rate(left), _rate(right), resample_RB),
        block_efficiency=_gap(_tau(left), _tau(right), resample_RB),
        mbsu=_gap(_mbsu(ours, gamma), _mbsu(theirs, gamma), resample_RB),
    )


def _gap(ours: _Rate, theirs: _Rate, resample_RB: Tensor) -> Gap:
    low, high = acceptance.interval(ours.resampled_R(resample_RB) - theirs.resampled_R(resample_RB))
    return Gap(value=ours.value() - theirs.value(), low=low, high=high)


def _chain(side: Side, gamma: int) -> Chain:
    return acceptance.chain(*side.found, gamma)


def _alpha(side: Side) -> _Rate:
    return _Rate(acceptance.accept_sums(*side.found), side.found.lengths_B)


def _rate(counts: Chain) -> _Rate:
    return _Rate(counts.accepted_B, counts.gamma * counts.forwards_B)


def _tau(counts: Chain, factor: float = 1.0) -> _Rate:
    return _Rate(counts.tokens_B, counts.forwards_B, factor)


def _mbsu(side: Side, gamma: int) -> _Rate:
    return _tau(_chain(side, gamma), acceptance.mbsu(1.0, gamma, side.result.c))
