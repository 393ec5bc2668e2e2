"""All gammas from one teacher-forced forward of the draft over recorded completions; proof in docs/maths.md.

Dimensions: B completions, N tokens of the longest one, V vocabulary, R resamples of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.maths import acceptance
from fastdraft.maths.sampling import warp
from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.repetition import loops, pooled_repeats
from fastdraft.synthesize.rescore import completion_logits


class Acceptances(NamedTuple):
    """(B,N) probability that each token would have been accepted as a drafted token, and (B) lengths of the texts."""

    accept_BN: Tensor
    lengths_B: Tensor


def evaluate(
    draft: PreTrainedModel,
    completions: Sequence[Completion],
    gammas: Sequence[int],
    *,
    stage: str,
    task: str,
    c: float,
    resamples: int,
    seed: int,
) -> TaskResult:
    """Score a draft on completions that the target generated with one set of sampling parameters.

    `stage` names the draft by the phase that trained it; c = draft parameters / target parameters.
    """
    return task_result(
        acceptances(draft, completions),
        completions,
        gammas,
        stage=stage,
        task=task,
        c=c,
        resamples=resamples,
        seed=seed,
    )


def task_result(
    accepted: Acceptances,
    completions: Sequence[Completion],
    gammas: Sequence[int],
    *,
    stage: str,
    task: str,
    c: float,
    resamples: int,
    seed: int,
) -> TaskResult:
    """The result that follows from the acceptances of `completions`; arguments as for `evaluate`."""
    accept_BN, lengths_B = accepted
    resample_RB = resampled_prompts(len(completions), resamples, seed)
    looping_B = torch.tensor([loops(row.tokens) for row in completions])
    results = tuple(_gamma_result(gamma, accepted, looping_B, c, resample_RB) for gamma in gammas)
    accept_B = acceptance.accept_sums(accept_BN, lengths_B)
    return TaskResult(
        **sampling_of(completions)._asdict(),
        stage=stage,
        task=task,
        c=c,
        prompts=len(completions),
        tokens=int(lengths_B.sum()),
        alpha=pooled(accept_B, lengths_B, resample_RB),
        gammas=results,
        best_gamma=acceptance.best_gamma({at.gamma: at.block_efficiency.value for at in results}, c),
        looping_fraction=float(looping_B.float().mean()),
        repeated_8grams=pooled_repeats([row.tokens for row in completions], n=8),
        alpha_without_loops=_ratio(accept_B, lengths_B, ~looping_B),
    )


def sampling_of(completions: Sequence[Completion]) -> SamplingParams:
    """The sampling parameters of all completions; ValueError if they differ."""
    sampling = {row.sampling for row in completions}
    if len(sampling) != 1:
        raise ValueError(
            f"completions with {len(sampling)} different sampling parameters, wanted one: {sorted(sampling)}"
        )
    return sampling.pop()


def acceptances(
    draft: PreTrainedModel, completions: Sequence[Completion], advance: Callable[[int], None] = lambda _: None
) -> Acceptances:
    """Each token's acceptance under the distribution it was sampled from; 0 past the end of a text.

    `advance` is called with 1 after each completion.
    """
    lengths_B = torch.tensor([len(row.tokens) for row in completions])
    accept_BN = torch.zeros(len(completions), int(lengths_B.max()), dtype=torch.float64)
    for index, logits_NV in completion_logits(draft, completions):
        accept_BN[index, : len(logits_NV)] = token_acceptance(completions[index], logits_NV).cpu()
        advance(1)
    return Acceptances(accept_BN, lengths_B)


def token_acceptance(completion: Completion, logits_NV: Tensor) -> Tensor:
    """(N) acceptance of the tokens of one completion, from the draft's logits before each of them."""
    token_N = torch.from_numpy(completion.tokens).to(logits_NV.device)
    if completion.sampling.greedy:
        return acceptance.acceptance_greedy(token_N, logits_NV.argmax(-1))
    logq_N = warp(logits_NV, *completion.sampling).gather(1, token_N[:, None])[:, 0]
    return acceptance.acceptance_sampled(torch.from_numpy(completion.logp).to(logq_N.device), logq_N)


def resampled_prompts(prompts: int, resamples: int, seed: int) -> Tensor:
    """(R,B) prompt indices drawn with replacement; the same for every rate, so that rates can be compared."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, prompts, (resamples, prompts)))


def pooled(numerator_B: Tensor, denominator_B: Tensor, resample_RB: Tensor) -> Estimate:
    """Sum over sum, with its 95 % interval over prompts."""
    low, high = acceptance.bootstrap_interval(numerator_B, denominator_B, resample_RB)
    return Estimate(value=float(numerator_B.double().sum() / denominator_B.double().sum()), low=low, high=high)


def _gamma_result(gamma: int, accepted: Acceptances, looping_B: Tensor, c: float, resample_RB: Tensor) -> GammaResult:
    chain = acceptance.chain(accepted.accept_BN, accepted.lengths_B, gamma)
    tau = pooled(chain.tokens_B, chain.forwards_B, resample_RB)
    return GammaResult(
        gamma=gamma,
        acceptance_rate=pooled(chain.accepted_B, gamma * chain.forwards_B, resample_RB),
        block_efficiency=tau,
        mbsu=Estimate(**{name: acceptance.mbsu(rate, gamma, c) for name, rate in tau.model_dump().items()}),
        position_acceptance=tuple(acceptance.position_acceptance(chain).tolist()),
        position_intervals=tuple(
            acceptance.bootstrap_interval(accepted_B, chain.forwards_B, resample_RB)
            for accepted_B in chain.position_accepted_BG.unbind(1)
        ),
        block_efficiency_without_loops=_ratio(chain.tokens_B, chain.forwards_B, ~looping_B),
    )


def _ratio(numerator_B: Tensor, denominator_B: Tensor, mask_B: Tensor) -> float | None:
    """The pooled ratio over the completions of a mask; None if there are none."""
    return float(numerator_B[mask_B].sum() / denominator_B[mask_B].sum()) if mask_B.any() else None
