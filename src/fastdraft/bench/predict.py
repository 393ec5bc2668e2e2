"""What one pass over the target's own text, and measured steps, say of a pair before its texts are timed.

Dimensions: B texts, N tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from fastdraft.bench.records import Predicted, Steps
from fastdraft.evaluate.onepass import acceptances
from fastdraft.maths import acceptance
from fastdraft.synthesize.completions import Completion, Law
from fastdraft.synthesize.rescore import completion_logits, law_logp


def predictions(
    draft: PreTrainedModel,
    texts: Sequence[Completion],
    gammas: Sequence[int],
    steps: Steps,
    skipped_tokens: int,
) -> dict[int, Predicted]:
    """By gamma that has steps. `skipped_tokens` of each text come before the first block."""
    accept_BN, lengths_B = acceptances(draft, texts)
    accept_BN, lengths_B = accept_BN[:, skipped_tokens:], (lengths_B - skipped_tokens).clamp(min=0)
    found = {}
    for gamma in (gamma for gamma in gammas if gamma in steps.block_seconds):
        counts = acceptance.chain(accept_BN, lengths_B, gamma)
        tau = float(acceptance.block_efficiency(counts))
        times = steps.draft_seconds[gamma], steps.target_seconds, steps.block_seconds[gamma]
        found[gamma] = Predicted(
            block_efficiency=tau,
            position_acceptance=tuple(acceptance.position_acceptance(counts).tolist()),
            speedup=acceptance.speedup(tau, gamma, *times),
        )
    return found


def scored(target: PreTrainedModel, texts: Sequence[Completion], greedy_draft: bool) -> list[Completion]:
    """Texts with log p under their law, as a draft that samples needs it.

    A draft that proposes greedily is accepted where its token is the text's, whatever the text's law.
    """
    if greedy_draft or all(text.law.greedy for text in texts):
        return [replace(text, law=Law(0.0)) for text in texts]
    found = {place: law_logp(texts[place], logits_NV) for place, logits_NV in completion_logits(target, texts)}
    return [replace(text, logp=found[place].clip(-1e4)) for place, text in enumerate(texts)]
