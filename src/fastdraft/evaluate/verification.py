"""Real speculative decoding by transformers, as the verification of the one-pass evaluation.

Greedy texts are compared token for token. Single tokens, blocks and batches are summed in different orders, so two runs
may part where the target's two best logits are a near tie, and their forwards may differ where the draft's are.

Dimensions: B prompts, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.evaluate.assisted import Run, decode
from fastdraft.evaluate.one_pass import acceptances, pooled, resampled_prompts, sampling_of
from fastdraft.maths import acceptance
from fastdraft.results.evaluation import Estimate, NearTie, VerificationResult
from fastdraft.synthesize.completions import Completion, CompletionStore, Request
from fastdraft.synthesize.engine_transformers import Decoding, complete
from fastdraft.synthesize.rescore import completion_logits
from fastdraft.system.errors import VerificationError

# Between a batch and single steps of a 7M fp32 model on a CPU, logits moved by up to 7e-5 (120 tokens).
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Verifier:
    """A pair of fp32 models, and how the completions were written; resamples and seed are those of `evaluate`."""

    target: PreTrainedModel
    draft: PreTrainedModel
    gamma: int
    max_new_tokens: int
    eos: frozenset[int]
    resamples: int
    seed: int


def in_fp32(
    target: PreTrainedModel,
    completions: Mapping[tuple[str, float], Sequence[Completion]],
    how: Decoding,
    store: CompletionStore,
) -> dict[tuple[str, float], list[Completion]]:
    """What the fp32 target writes after the same prompts, by task and temperature: one in bf16 writes other texts."""
    return {
        (task, temperature): complete(
            target,
            [Request(row.prompt, row.sampling, row.index) for row in rows],
            how,
            store,
            f"{task} at temperature {temperature:g}, fp32",
        )
        for (task, temperature), rows in completions.items()
    }


def verify(pair: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """Real speculative decoding of the completions' prompts; VerificationError where the one-pass evaluation is
    refuted.
    """
    found = {str(model.dtype) for model in (pair.target, pair.draft)}
    if found != {"torch.float32"}:
        raise VerificationError(
            f"models in {sorted(found)}, wanted fp32\n  do: load target and draft in float32 to verify them"
        )
    return (_verify_greedy if sampling_of(completions).greedy else _verify_sampled)(pair, completions)


def _verify_greedy(pair: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """Outputs equal plain greedy decoding and the record; target forwards of each prompt equal one-pass's exactly."""
    runs = [_run(pair, row, pair.draft) for row in completions]
    expected = _expected(pair, completions)
    ties = []
    for prompt, (row, run) in enumerate(zip(completions, runs, strict=True)):
        plain = _run(pair, row, None)
        tie = (
            _parted(pair, prompt, row, run.tokens, plain.tokens, "assisted and plain")
            or _parted(pair, prompt, row, plain.tokens, row.tokens, "plain and recorded")
            or _forwards_differ(pair, prompt, row, run.forwards, int(expected.forwards_B[prompt]))
        )
        ties += [tie] if tie else []
    sound = [prompt for prompt in range(len(runs)) if prompt not in {tie.prompt for tie in ties}]
    if not sound:
        raise VerificationError(
            f"all {len(runs)} prompts end in near ties: nothing is left to verify\n  do: verify more prompts"
        )
    return _result(pair, completions, runs, expected, sound, tuple(ties))


def _verify_sampled(pair: Verifier, completions: Sequence[Completion]) -> VerificationResult:
    """The 95 % intervals of both block efficiencies over the prompts overlap.

    So the real value lies within one-pass's interval once that is widened by the real runs' own noise. Real runs write
    texts of their own: if both are equally noisy, a sound pair fails this about once in 200 times. Few prompts (below
    16) make bootstrap intervals too narrow for that.
    """
    with torch.random.fork_rng():
        torch.manual_seed(pair.seed)
        runs = [_run(pair, row, pair.draft) for row in completions]
    result = _result(pair, completions, runs, _expected(pair, completions), range(len(runs)), ())
    if result.real.low > result.one_pass.high or result.real.high < result.one_pass.low:
        raise VerificationError(
            f"block efficiency at gamma {pair.gamma}, {sampling_of(completions)}: {_interval(result.real)} in "
            f"real runs, "
            f"{_interval(result.one_pass)} in one pass, over {len(runs)} prompts\n"
            f"  do: verify more prompts; if it stays, the recorded log-probabilities are not those of this distribution"
        )
    return result


def _run(pair: Verifier, completion: Completion, draft: PreTrainedModel | None) -> Run:
    return decode(completion, pair.target, draft, pair.gamma, pair.max_new_tokens, pair.eos)


def _expected(pair: Verifier, completions: Sequence[Completion]) -> acceptance.Chain:
    return acceptance.chain(*acceptances(pair.draft, completions), pair.gamma)


def _result(
    pair: Verifier,
    completions: Sequence[Completion],
    runs: Sequence[Run],
    expected: acceptance.Chain,
    sound: Sequence[int],
    ties: tuple[NearTie, ...],
) -> VerificationResult:
    """Both block efficiencies over the sound prompts."""
    resample_RB = resampled_prompts(len(sound), pair.resamples, pair.seed)
    tokens_B = torch.tensor([len(runs[prompt].tokens) for prompt in sound])
    forwards_B = torch.tensor([runs[prompt].forwards for prompt in sound])
    return VerificationResult(
        temperature=sampling_of(completions).temperature,
        gamma=pair.gamma,
        prompts=len(completions),
        compared=len(sound),
        tokens=int(tokens_B.sum()),
        real=pooled(tokens_B, forwards_B, resample_RB),
        one_pass=pooled(expected.tokens_B[list(sound)], expected.forwards_B[list(sound)], resample_RB),
        near_ties=ties,
    )


def _parted(
    pair: Verifier, prompt: int, completion: Completion, left: Tokens, right: Tokens, between: str
) -> NearTie | None:
    """None where two greedy texts are equal, the near tie where they part; VerificationError where it is none."""
    if np.array_equal(left, right):
        return None
    shared = min(len(left), len(right))
    differs = np.flatnonzero(left[:shared] != right[:shared])
    position = int(differs[0]) if len(differs) else shared - 1
    gap = _gaps(pair.target, replace(completion, tokens=left))[position] if len(differs) else float("inf")
    if gap < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gap, between=between)
    raise VerificationError(
        f"prompt {prompt}: {between} greedy decoding part at token {position} of the completion, "
        f"where the target's two best logits are {gap:.2g} apart (a near tie is below {NEAR_TIE:g})\n"
        f"  do: check that the completions were written greedily by this very target, up to {pair.max_new_tokens} "
        f"tokens, ending at {sorted(pair.eos)}"
    )


def _forwards_differ(pair: Verifier, prompt: int, completion: Completion, real: int, expected: int) -> NearTie | None:
    """None where real and expected forwards are equal, the draft's nearest tie where one can be why."""
    if real == expected:
        return None
    gaps = _gaps(pair.draft, completion)
    position = int(np.argmin(gaps))
    if gaps[position] < NEAR_TIE:
        return NearTie(prompt=prompt, position=position, gap=gaps[position], between="real and one-pass draft")
    raise VerificationError(
        f"prompt {prompt}: {real} target forwards for {len(completion.tokens)} equal tokens at gamma {pair.gamma}, "
        f"one-pass evaluation counts {expected}, and the draft has no near tie\n"
        f"  do: report it with the versions of torch and transformers: one of the two counts is wrong"
    )


def _gaps(model: PreTrainedModel, completion: Completion) -> list[float]:
    """(n) distance of the model's two best logits at each token of a completion."""
    ((_, logits_NV),) = completion_logits(model, [completion])
    best_N2 = logits_NV.topk(2, dim=-1).values
    gaps: list[float] = (best_N2[:, 0] - best_N2[:, 1]).tolist()
    return gaps


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
