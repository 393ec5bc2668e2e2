"""Two drafts on the same completions: differences of their rates, with paired bootstrap intervals over prompts.

Prompts differ far more than drafts do. Pairing removes that part of the variance, so the two drafts' own intervals can
overlap although their difference is clear.

Dimensions: B completions, R resamples of the prompts.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdraft.evaluation.one_pass import Acceptances, resampled_prompts
from fastdraft.maths import acceptance
from fastdraft.maths.acceptance import Chain, resampled_ratios
from fastdraft.results.evaluation import Comparison, GammaGap, Gap, TaskResult


class ScoredDraft(NamedTuple):
    """A draft's acceptances on a set of completions, and the result computed from them."""

    acceptances: Acceptances
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
        """(R) in each resample."""
        return self.factor * resampled_ratios(self.numerator_B, self.denominator_B, resample_RB)


def compare(draft: ScoredDraft, baseline: ScoredDraft, resamples: int, seed: int) -> Comparison:
    """The draft's rates minus the baseline's. ValueError if the two were scored on different completions."""
    if draft.acceptances.lengths_B.tolist() != baseline.acceptances.lengths_B.tolist():
        raise ValueError("two drafts scored on different completions, wanted the same")
    result = draft.result
    resample_RB = resampled_prompts(result.prompts, resamples, seed)
    best_gammas = result.best_gamma, baseline.result.best_gamma
    return Comparison(
        task=result.task,
        temperature=result.temperature,
        top_k=result.top_k,
        top_p=result.top_p,
        prompts=result.prompts,
        other=baseline.result.stage,
        alpha=_gap(_alpha(draft), _alpha(baseline), resample_RB),
        gammas=tuple(_gamma_gap(at.gamma, draft, baseline, resample_RB) for at in result.gammas),
        best_gammas=best_gammas,
        best_mbsu=_gap(_mbsu(draft, best_gammas[0]), _mbsu(baseline, best_gammas[1]), resample_RB),
    )


def _gamma_gap(gamma: int, draft: ScoredDraft, baseline: ScoredDraft, resample_RB: Tensor) -> GammaGap:
    chain, baseline_chain = _chain(draft, gamma), _chain(baseline, gamma)
    return GammaGap(
        gamma=gamma,
        acceptance_rate=_gap(_acceptance_rate(chain), _acceptance_rate(baseline_chain), resample_RB),
        block_efficiency=_gap(_block_efficiency(chain), _block_efficiency(baseline_chain), resample_RB),
        mbsu=_gap(_mbsu(draft, gamma), _mbsu(baseline, gamma), resample_RB),
    )


def _gap(draft: _Rate, baseline: _Rate, resample_RB: Tensor) -> Gap:
    gap_R = draft.resampled_R(resample_RB) - baseline.resampled_R(resample_RB)
    low, high = acceptance.interval(gap_R, resample_RB.shape[1])
    return Gap(value=draft.value() - baseline.value(), low=low, high=high)


def _chain(draft: ScoredDraft, gamma: int) -> Chain:
    return acceptance.chain(*draft.acceptances, gamma)


def _alpha(draft: ScoredDraft) -> _Rate:
    return _Rate(acceptance.accept_sums(*draft.acceptances), draft.acceptances.lengths_B)


def _acceptance_rate(chain: Chain) -> _Rate:
    return _Rate(chain.accepted_B, chain.gamma * chain.forwards_B)


def _block_efficiency(chain: Chain, factor: float = 1.0) -> _Rate:
    return _Rate(chain.tokens_B, chain.forwards_B, factor)


def _mbsu(draft: ScoredDraft, gamma: int) -> _Rate:
    return _block_efficiency(_chain(draft, gamma), acceptance.mbsu(1.0, gamma, draft.result.c))
