"""Real speculative decoding by transformers, to verify the one-pass evaluation.

Greedy texts are compared token for token. Single tokens, blocks and batches sum in different orders. Two runs may
therefore diverge where the target's two best logits are nearly tied, and their forwards may differ where the draft's
are.

Sampled runs write texts of their own. Given such a text, drafted tokens are accepted independently, each with the
probability min(1, q/p) that the one pass computes (docs/maths.md). So the real number of target forwards has a known
mean and variance for each text, and no second text is needed for comparison.

Dimensions: B prompts, N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.evaluation.assisted import DecodedText, decode
from fastdraft.evaluation.one_pass import acceptances, pooled, resampled_prompts, sampling_of
from fastdraft.maths import acceptance
from fastdraft.maths.sampling import warp
from fastdraft.results.evaluation import NearTie, VerificationResult
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.rescore import completion_logits, sampled_logp
from fastdraft.system.errors import VerificationError

# Largest difference of a logit between a batch and single steps: 7e-5 (7M parameters, fp32, CPU, 120 tokens).
NEAR_TIE = 1e-4
# Probability that a correct pair is refused at one temperature, shared by two tests; and the deviation of each of them.
LEVEL = 0.01
LARGEST_Z = NormalDist().inv_cdf(1 - LEVEL / 4)
# Largest error of an acceptance in fp32, per token: a cached forward rounds otherwise than one over the whole text.
ROUNDING = 1e-4
# Added to the variance, because few rare events are far from normal. Without it a draft with 0.1 expected rejections is
# refused in 10 % of the runs; with it in 0.6 % at most, for any number of expected rejections (Poisson).
RARE_EVENTS = 1.0


@dataclass(frozen=True)
class Verifier:
    """A pair of fp32 models, and how the completions were generated; resamples and seed as in `evaluate`."""

    target: PreTrainedModel
    draft: PreTrainedModel
    gamma: int
    max_new_tokens: int
    eos: frozenset[int]
    resamples: int
    seed: int

    def decode(self, completion: Completion, draft: PreTrainedModel | None) -> DecodedText:
        """Decode the completion's prompt again, with a draft or without."""
        return decode(completion, self.target, draft, self.gamma, self.max_new_tokens, self.eos)

    def chain(self, completions: Sequence[Completion]) -> acceptance.Chain:
        """The counts that the one-pass evaluation expects."""
        return acceptance.chain(*acceptances(self.draft, completions), self.gamma)


def complete_in_fp32(
    target: PreTrainedModel,
    task: str,
    completions: Sequence[Completion],
    decoding: DecodingParams,
    store: CompletionStore,
) -> list[Completion]:
    """Completions of the same prompts by the fp32 target; a target in bf16 generates different texts."""
    requests = [Request(row.prompt, row.sampling, row.index) for row in completions]
    title = f"{task} at temperature {sampling_of(completions).temperature:g}, fp32"
    return complete(target, requests, decoding, store, title)


def verify(verifier: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """Decode the completions' prompts speculatively, and compare with the one-pass evaluation.

    VerificationError if a model is not in fp32.
    """
    dtypes = {str(model.dtype) for model in (verifier.target, verifier.draft)}
    if dtypes != {"torch.float32"}:
        raise VerificationError(
            f"models in {sorted(dtypes)}, wanted fp32\n  do: load target and draft in float32 to verify them"
        )
    return (_verify_greedy if sampling_of(completions).greedy else _verify_sampled)(verifier, completions)


def _verify_greedy(verifier: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """Texts must equal plain greedy decoding and the recording, and target forwards the one-pass counts, exactly."""
    assisted = [verifier.decode(row, verifier.draft) for row in completions]
    expected = verifier.chain(completions)
    ties: list[NearTie] = []
    differences: list[str] = []
    for prompt, (row, run) in enumerate(zip(completions, assisted, strict=True)):
        plain = verifier.decode(row, None)
        found = (
            _first_difference(verifier, prompt, row, run.tokens, plain.tokens, "assisted and plain")
            or _first_difference(verifier, prompt, row, plain.tokens, row.tokens, "plain and recorded")
            or _forwards_difference(verifier, prompt, row, run.forwards, int(expected.forwards_B[prompt]))
        )
        if isinstance(found, NearTie):
            ties.append(found)
        elif found:
            differences.append(found)
    tied = {tie.prompt for tie in ties}
    compared = [prompt for prompt in range(len(assisted)) if prompt not in tied]
    if not compared:
        differences.append(f"all {len(assisted)} prompts end in near ties, so nothing is verified: verify more prompts")
    return VerificationResult(
        **_rates(verifier, completions, assisted, expected, compared or range(len(assisted))),
        compared=len(compared),
        near_ties=tuple(ties),
        disagreements=tuple(differences),
    )


def _verify_sampled(verifier: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """Two tests, each with half of LEVEL.

    Real forwards against their expectation given the emitted texts; and the mean acceptance of the recorded tokens
    against its expectation under the target's distribution, which finds recorded texts or log-probabilities of another
    distribution. Both are sums of independent terms or of martingale differences, so nearly normal.

    In simulations of 16 prompts of 64 tokens the first test refuses a correct pair in 0.5 % of the runs, a pair whose
    tokens are accepted with 0.9 times the probability in 97 %, and a correct pair with few rejections in 0.6 % at most
    (tests/evaluation/test_verification.py).
    """
    with torch.random.fork_rng():
        torch.manual_seed(verifier.seed)
        assisted = [verifier.decode(row, verifier.draft) for row in completions]
    texts = [
        replace(row, tokens=run.tokens, logp=np.empty(0, np.float32), top=None)
        for row, run in zip(completions, assisted, strict=True)
    ]
    for index, logits_NV in completion_logits(verifier.target, list(texts)):
        texts[index] = replace(texts[index], logp=sampled_logp(texts[index], logits_NV))
    emitted = acceptances(verifier.draft, texts)
    expected = acceptance.chain(*emitted, verifier.gamma)
    variance_B = acceptance.forwards_variance(*emitted, verifier.gamma)
    forwards = sum(run.forwards for run in assisted)
    mean, variance = float(expected.forwards_B.sum()), float(variance_B.sum())
    forwards_z = z_score(forwards, mean, variance, tokens=int(emitted.lengths_B.sum()))
    recorded_z = _recorded_z(verifier, completions)
    differences = []
    if abs(forwards_z) > LARGEST_Z:
        differences.append(
            f"{forwards} target forwards in real runs over {len(texts)} prompts at gamma {verifier.gamma}, one pass "
            f"expects {mean:.1f}, {abs(forwards_z):.1f} standard deviations away"
        )
    if abs(recorded_z) > LARGEST_Z:
        differences.append(
            f"the mean acceptance of the recorded tokens is {abs(recorded_z):.1f} standard deviations away from its "
            f"expectation: the recorded texts or log-probabilities belong to another distribution"
        )
    return VerificationResult(
        **_rates(verifier, completions, assisted, expected, range(len(assisted))),
        compared=len(assisted),
        forwards_z=forwards_z,
        recorded_z=recorded_z,
        disagreements=tuple(differences),
    )


def _recorded_z(verifier: Verifier, completions: Sequence[Completion]) -> float:
    """Mean acceptance of the recorded tokens minus its expectation, in standard deviations.

    The acceptance of a token drawn from p has mean sum_y min(p, q) and mean square sum_y min(p, q^2 / p).
    """
    mean = variance = 0.0
    models = (verifier.target, verifier.draft)
    pairs = zip(*(completion_logits(model, completions) for model in models), strict=True)
    for (index, target_NV), (_, draft_NV) in pairs:
        logp_NV, logq_NV = (
            warp(logits_NV, *completions[index].sampling).double() for logits_NV in (target_NV, draft_NV)
        )
        mean_N = torch.minimum(logp_NV, logq_NV).exp().sum(1)
        square_N = torch.minimum(logp_NV, (2 * logq_NV - logp_NV).nan_to_num(-torch.inf)).exp().sum(1)
        mean, variance = mean + float(mean_N.sum()), variance + float((square_N - mean_N**2).sum())
    recorded = acceptances(verifier.draft, completions)
    total = float(acceptance.accept_sums(*recorded).sum())
    return z_score(total, mean, variance, tokens=int(recorded.lengths_B.sum()))


def z_score(value: float, mean: float, variance: float, tokens: int) -> float:
    """The deviation of a sum over tokens from its mean, in standard deviations; rounding sets the smallest one."""
    return (value - mean) / math.sqrt(max(variance + RARE_EVENTS, (ROUNDING * tokens) ** 2))


def _rates(
    verifier: Verifier,
    completions: Sequence[Completion],
    assisted: Sequence[DecodedText],
    expected: acceptance.Chain,
    compared: Sequence[int],
) -> dict[str, Any]:
    """Sampling, sizes and both block efficiencies over the compared prompts."""
    resample_RB = resampled_prompts(len(compared), verifier.resamples, verifier.seed)
    tokens_B = torch.tensor([len(assisted[prompt].tokens) for prompt in compared])
    forwards_B = torch.tensor([assisted[prompt].forwards for prompt in compared])
    return {
        "temperature": sampling_of(completions).temperature,
        "gamma": verifier.gamma,
        "prompts": len(completions),
        "tokens": int(tokens_B.sum()),
        "real": pooled(tokens_B, forwards_B, resample_RB),
        "one_pass": pooled(expected.tokens_B[list(compared)], expected.forwards_B[list(compared)], resample_RB),
    }


def _first_difference(
    verifier: Verifier, prompt: int, completion: Completion, left: Tokens, right: Tokens, between: str
) -> NearTie | str | None:
    """None if two greedy texts are equal; else the near tie where they diverge, or a description of the difference."""
    if np.array_equal(left, right):
        return None
    shared = min(len(left), len(right))
    differs = np.flatnonzero(left[:shared] != right[:shared])
    position = int(differs[0]) if len(differs) else shared - 1
    gap = _gaps(verifier.target, replace(completion, tokens=left))[position] if len(differs) else float("inf")
    if gap < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gap, between=between)
    return (
        f"prompt {prompt}: {between} greedy decoding differ at token {position} of the completion, where the target's "
        f"two best logits are {gap:.2g} apart (a near tie is below {NEAR_TIE:g}); completions must be greedy, have up "
        f"to {verifier.max_new_tokens} tokens, and end at {sorted(verifier.eos)}"
    )


def _forwards_difference(
    verifier: Verifier, prompt: int, completion: Completion, real: int, expected: int
) -> NearTie | str | None:
    """None if the target forwards are equal; else the draft's nearest tie, or a description of the difference."""
    if real == expected:
        return None
    gaps = _gaps(verifier.draft, completion)
    position = int(np.argmin(gaps))
    if gaps[position] < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gaps[position], between="real and one-pass draft")
    return (
        f"prompt {prompt}: {real} target forwards for {len(completion.tokens)} equal tokens at gamma {verifier.gamma}, "
        f"one-pass evaluation counts {expected}, and the draft has no near tie"
    )


def _gaps(model: PreTrainedModel, completion: Completion) -> list[float]:
    """(N) difference between the model's two best logits at each token of a completion."""
    ((_, logits_NV),) = completion_logits(model, [completion])
    best_N2 = logits_NV.topk(2, dim=-1).values
    gaps: list[float] = (best_N2[:, 0] - best_N2[:, 1]).tolist()
    return gaps
