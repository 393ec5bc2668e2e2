"""What one pass over the target's own text, and steps as they were measured, say of a pair's speed.

Dimensions: B texts, N tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from transformers import PreTrainedModel

from fastdraft.evaluate.one_pass import acceptances
from fastdraft.maths import acceptance
from fastdraft.results.bench import Predicted, Steps
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.rescore import completion_logits, sampled_logp


def predictions(
    draft: PreTrainedModel,
    texts: Sequence[Completion],
    gammas: Sequence[int],
    steps: Sequence[Steps],
    skipped_tokens: int,
) -> dict[int, Predicted]:
    """By gamma; a speed-up is the median over repeats, each of which has its steps.

    `skipped_tokens` of each text come before the first block.
    """
    accept_BN, lengths_B = acceptances(draft, texts)
    accept_BN, lengths_B = accept_BN[:, skipped_tokens:], (lengths_B - skipped_tokens).clamp(min=0)
    found = {}
    for gamma in gammas:
        counts = acceptance.chain(accept_BN, lengths_B, gamma)
        tau = float(acceptance.block_efficiency(counts))
        times = [(of.draft_seconds[gamma], of.target_seconds, of.block_seconds[gamma]) for of in steps]
        found[gamma] = Predicted(
            block_efficiency=tau,
            position_acceptance=tuple(acceptance.position_acceptance(counts).tolist()),
            speedup=median(acceptance.speedup(tau, gamma, *of_repeat) for of_repeat in times),
        )
    return found


def scored(target: PreTrainedModel, texts: Sequence[Completion], greedy_draft: bool) -> list[Completion]:
    """Texts with log p under their distribution, as a draft that samples needs it.

    A draft that proposes greedily is accepted where its token is the text's, whatever the text's distribution.
    """
    if greedy_draft or all(text.sampling.greedy for text in texts):
        return [replace(text, sampling=SamplingParams(0.0)) for text in texts]
    found = {place: sampled_logp(texts[place], logits_NV) for place, logits_NV in completion_logits(target, texts)}
    return [replace(text, logp=found[place].clip(-1e4)) for place, text in enumerate(texts)]
