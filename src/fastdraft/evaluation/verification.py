"""Real speculative decoding by transformers, to verify the one-pass evaluation.

Greedy texts are compared token for token. Single tokens, blocks and batches sum in different orders. Two runs may
therefore diverge where the target's two best logits are nearly tied, and their forwards may differ where the draft's
are.

Dimensions: B prompts, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.evaluation.assisted import DecodedText, decode
from fastdraft.evaluation.one_pass import acceptances, pooled, resampled_prompts, sampling_of
from fastdraft.maths import acceptance
from fastdraft.results.evaluation import NearTie, VerificationResult
from fastdraft.results.formatting import interval
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.rescore import completion_logits
from fastdraft.system.errors import VerificationError

# Largest difference of a logit between a batch and single steps: 7e-5 (7M parameters, fp32, CPU, 120 tokens).
NEAR_TIE = 1e-4


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
    """Decode the completions' prompts speculatively. VerificationError if that contradicts the one-pass evaluation."""
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
    ties = []
    for prompt, (row, run) in enumerate(zip(completions, assisted, strict=True)):
        plain = verifier.decode(row, None)
        tie = (
            _first_difference(verifier, prompt, row, run.tokens, plain.tokens, "assisted and plain")
            or _first_difference(verifier, prompt, row, plain.tokens, row.tokens, "plain and recorded")
            or _forwards_difference(verifier, prompt, row, run.forwards, int(expected.forwards_B[prompt]))
        )
        ties += [tie] if tie else []
    tied = {tie.prompt for tie in ties}
    equal = [prompt for prompt in range(len(assisted)) if prompt not in tied]
    if not equal:
        raise VerificationError(
            f"all {len(assisted)} prompts end in near ties: nothing is left to verify\n  do: verify more prompts"
        )
    return _result(verifier, completions, assisted, expected, equal, tuple(ties))


def _verify_sampled(verifier: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """The 95 % intervals of both block efficiencies over the prompts must overlap.

    This tests whether the real value lies within the one-pass interval, widened by the noise of the real runs, which
    sample texts of their own. If both are equally noisy, a correct pair fails about once in 200 times. Below 16 prompts
    bootstrap intervals are too narrow for that.
    """
    with torch.random.fork_rng():
        torch.manual_seed(verifier.seed)
        assisted = [verifier.decode(row, verifier.draft) for row in completions]
    result = _result(verifier, completions, assisted, verifier.chain(completions), range(len(assisted)), ())
    if result.real.low > result.one_pass.high or result.real.high < result.one_pass.low:
        raise VerificationError(
            f"block efficiency at gamma {verifier.gamma}, {sampling_of(completions)}: {interval(result.real)} in real "
            f"runs, {interval(result.one_pass)} in one pass, over {len(assisted)} prompts\n"
            f"  do: verify more prompts; if it persists, the recorded log-probabilities belong to other sampling "
            f"parameters"
        )
    return result


def _result(
    verifier: Verifier,
    completions: Sequence[Completion],
    assisted: Sequence[DecodedText],
    expected: acceptance.Chain,
    compared: Sequence[int],
    near_ties: tuple[NearTie, ...],
) -> VerificationResult:
    """Both block efficiencies over the compared prompts."""
    resample_RB = resampled_prompts(len(compared), verifier.resamples, verifier.seed)
    tokens_B = torch.tensor([len(assisted[prompt].tokens) for prompt in compared])
    forwards_B = torch.tensor([assisted[prompt].forwards for prompt in compared])
    return VerificationResult(
        temperature=sampling_of(completions).temperature,
        gamma=verifier.gamma,
        prompts=len(completions),
        compared=len(compared),
        tokens=int(tokens_B.sum()),
        real=pooled(tokens_B, forwards_B, resample_RB),
        one_pass=pooled(expected.tokens_B[list(compared)], expected.forwards_B[list(compared)], resample_RB),
        near_ties=near_ties,
    )


def _first_difference(
    verifier: Verifier, prompt: int, completion: Completion, left: Tokens, right: Tokens, between: str
) -> NearTie | None:
    """None if two greedy texts are equal, else the near tie where they diverge; VerificationError if it is none."""
    if np.array_equal(left, right):
        return None
    shared = min(len(left), len(right))
    differs = np.flatnonzero(left[:shared] != right[:shared])
    position = int(differs[0]) if len(differs) else shared - 1
    gap = _gaps(verifier.target, replace(completion, tokens=left))[position] if len(differs) else float("inf")
    if gap < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gap, between=between)
    raise VerificationError(
        f"prompt {prompt}: {between} greedy decoding differ at token {position} of the completion, "
        f"where the target's two best logits are {gap:.2g} apart (a near tie is below {NEAR_TIE:g})\n"
        f"  do: check that this target generated the completions greedily, up to {verifier.max_new_tokens} "
        f"tokens, ending at {sorted(verifier.eos)}"
    )


def _forwards_difference(
    verifier: Verifier, prompt: int, completion: Completion, real: int, expected: int
) -> NearTie | None:
    """None if the target forwards are equal, else the draft's nearest tie; VerificationError if that is no near tie."""
    if real == expected:
        return None
    gaps = _gaps(verifier.draft, completion)
    position = int(np.argmin(gaps))
    if gaps[position] < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gaps[position], between="real and one-pass draft")
    raise VerificationError(
        f"prompt {prompt}: {real} target forwards for {len(completion.tokens)} equal tokens at gamma {verifier.gamma}, "
        f"one-pass evaluation counts {expected}, and the draft has no near tie\n"
        f"  do: report it with the versions of torch and transformers: one of the two counts is wrong"
    )


def _gaps(model: PreTrainedModel, completion: Completion) -> list[float]:
    """(N) difference between the model's two best logits at each token of a completion."""
    ((_, logits_NV),) = completion_logits(model, [completion])
    best_N2 = logits_NV.topk(2, dim=-1).values
    gaps: list[float] = (best_N2[:, 0] - best_N2[:, 1]).tolist()
    return gaps
