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


class Subject(NamedTuple):
    """What is measured: the draft a phase made, on a task; c = draft parameters / target parameters."""

    stage: str
    task: str
    c: float


class Acceptances(NamedTuple):
    """(B,N) chance that each token was accepted, had it been drafted, and (B) the lengths of the texts."""

    accept_BN: Tensor
    lengths_B: Tensor


def evaluate(
    draft: PreTrainedModel,
    completions: Sequence[Completion],
    gammas: Sequence[int],
    subject: Subject,
    resamples: int,
    seed: int,
) -> TaskResult:
    """The draft's result on completions that the target wrote under one distribution."""
    return scored(acceptances(draft, completions), completions, gammas, subject, resamples, seed)


def scored(
    found: Acceptances,
    completions: Sequence[Completion],
    gammas: Sequence[int],
    subject: Subject,
    resamples: int,
    seed: int,
) -> TaskResult:
    """The result that follows from the acceptances of completions under one distribution."""
    accept_BN, lengths_B = found
    resample_RB = resampled_prompts(len(completions), resamples, seed)
    looping_B = torch.tensor([loops(row.tokens) for row in completions])
    results = tuple(_at(gamma, accept_BN, lengths_B, looping_B, subject.c, resample_RB) for gamma in gammas)
    tau = {result.gamma: result.block_efficiency.value for result in results}
    return TaskResult(
        **sampling_of(completions)._asdict(),
        **subject._asdict(),
        prompts=len(completions),
        tokens=int(lengths_B.sum()),
        alpha=pooled(acceptance.accept_sums(accept_BN, lengths_B), lengths_B, resample_RB),
        gammas=results,
        best_gamma=acceptance.best_gamma(tau, subject.c),
        looping_fraction=float(looping_B.float().mean()),
        repeated_8grams=pooled_repeats([row.tokens for row in completions], n=8),
        alpha_without_loops=_kept(acceptance.accept_sums(accept_BN, lengths_B), lengths_B, ~looping_B),
    )


def sampling_of(completions: Sequence[Completion]) -> SamplingParams:
    """The one distribution of all completions."""
    sampling_settings = {row.sampling for row in completions}
    if len(sampling_settings) != 1:
        raise ValueError(
            f"completions of {len(sampling_settings)} distributions, wanted one: {sorted(sampling_settings)}"
        )
    return sampling_settings.pop()


def acceptances(
    draft: PreTrainedModel, completions: Sequence[Completion], done: Callable[[int], None] = lambda _: None
) -> Acceptances:
    """Each token's acceptance under the distribution it was sampled from; 0 behind the end of a text. `done` counts
    texts.
    """
    lengths_B = torch.tensor([len(row.tokens) for row in completions])
    accept_BN = torch.zeros(len(completions), int(lengths_B.max()), dtype=torch.float64)
    for place, logits_NV in completion_logits(draft, completions):
        accept_BN[place, : len(logits_NV)] = token_acceptance(completions[place], logits_NV).cpu()
        done(1)
    return Acceptances(accept_BN, lengths_B)


def resampled_prompts(prompts: int, resamples: int, seed: int) -> Tensor:
    """(R,B) prompt indices drawn with replacement; the same for every rate, so that rates stay comparable."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, prompts, (resamples, prompts)))


def pooled(numerator_B: Tensor, denominator_B: Tensor, resample_RB: Tensor) -> Estimate:
    """Sum over sum, with its interval."""
    low, high = acceptance.bootstrap_interval(numerator_B, denominator_B, resample_RB)
    return Estimate(value=float(numerator_B.double().sum() / denominator_B.double().sum()), low=low, high=high)


def _at(
    gamma: int, accept_BN: Tensor, lengths_B: Tensor, looping_B: Tensor, c: float, resample_RB: Tensor
) -> GammaResult:
    counts = acceptance.chain(accept_BN, lengths_B, gamma)
    tau = pooled(counts.tokens_B, counts.forwards_B, resample_RB)
    return GammaResult(
        gamma=gamma,
        acceptance_rate=pooled(counts.accepted_B, gamma * counts.forwards_B, resample_RB),
        block_efficiency=tau,
        mbsu=Estimate(**{name: acceptance.mbsu(rate, gamma, c) for name, rate in tau.model_dump().items()}),
        position_acceptance=tuple(acceptance.position_acceptance(counts).tolist()),
        position_intervals=tuple(
            acceptance.bootstrap_interval(accepted_B, counts.forwards_B, resample_RB)
            for accepted_B in counts.position_accepted_BG.unbind(1)
        ),
        block_efficiency_without_loops=_kept(counts.tokens_B, counts.forwards_B, ~looping_B),
    )


def token_acceptance(completion: Completion, logits_NV: Tensor) -> Tensor:
    """(N) acceptance of the tokens of one completion, from the draft's logits before each of them."""
    token_N = torch.from_numpy(completion.tokens).to(logits_NV.device)
    if completion.sampling.greedy:
        return acceptance.acceptance_greedy(token_N, logits_NV.argmax(-1))
    logq_N = warp(logits_NV, *completion.sampling).gather(1, token_N[:, None])[:, 0]
    return acceptance.acceptance_sampled(torch.from_numpy(completion.logp).to(logq_N.device), logq_N)


def _kept(numerator_B: Tensor, denominator_B: Tensor, kept_B: Tensor) -> float | None:
    """The pooled ratio over a part of the completions; None over none."""
    return float(numerator_B[kept_B].sum() / denominator_B[kept_B].sum()) if kept_B.any() else None
