"""The speed-up of a pair predicted from one pass over the target's own text and from measured step times.

Dimensions: B texts, N tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from transformers import PreTrainedModel

from fastdraft.evaluation.one_pass import acceptances
from fastdraft.maths import acceptance
from fastdraft.results.bench import Prediction, Steps
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.rescore import completion_logits, sampled_logp


def predictions(
    draft: PreTrainedModel,
    texts: Sequence[Completion],
    gammas: Sequence[int],
    steps: Sequence[Steps],
    skipped_tokens: int,
) -> dict[int, Prediction]:
    """The prediction for each gamma; the speed-up is the median over repeats, each with its own step times.

    `skipped_tokens` of each text come before the first block.
    """
    accept_BN, lengths_B = acceptances(draft, texts)
    accept_BN, lengths_B = accept_BN[:, skipped_tokens:], (lengths_B - skipped_tokens).clamp(min=0)
    predicted = {}
    for gamma in gammas:
        chain = acceptance.chain(accept_BN, lengths_B, gamma)
        tau = float(acceptance.block_efficiency(chain))
        speedups = [
            acceptance.speedup(
                tau, gamma, repeat.draft_seconds[gamma], repeat.target_seconds, repeat.block_seconds[gamma]
            )
            for repeat in steps
        ]
        predicted[gamma] = Prediction(
            block_efficiency=tau,
            position_acceptance=tuple(acceptance.position_acceptance(chain).tolist()),
            speedup=median(speedups),
        )
    return predicted


def with_logprobs(target: PreTrainedModel, texts: Sequence[Completion], greedy_draft: bool) -> list[Completion]:
    """The texts with the target's log-probabilities, which the acceptance of a sampling draft depends on.

    A token proposed greedily is accepted if it is the text's token, at any temperature. For a `greedy_draft` the texts
    therefore count as greedy.
    """
    if greedy_draft or all(text.sampling.greedy for text in texts):
        return [replace(text, sampling=SamplingParams(0.0)) for text in texts]
    logp = {index: sampled_logp(texts[index], logits_NV) for index, logits_NV in completion_logits(target, texts)}
    return [replace(text, logp=logp[index].clip(-1e4)) for index, text in enumerate(texts)]
