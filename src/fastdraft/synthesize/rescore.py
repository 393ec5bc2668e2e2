"""One teacher-forced forward of the target over rows that something else wrote: log p of each token under its
distribution.

Dimensions: B rows, N tokens of a completion, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.maths.sampling import warp
from fastdraft.synthesize.completions import Completion, LogProbabilities, Top
from fastdraft.synthesize.token_sampling import likeliest
from fastdraft.synthesize.write import Logp, Rescore, Shard, as_given

# Texts in one forward: 8 x 128 tokens of a vocabulary of 128 256 are 0.5 GB of logits.
BATCH_TEXTS = 8
OUTSIDE = "a token that its distribution gives no chance to, by the target in this process"
CONTEXT = "prompt and answer longer than the target's context"


def rescorer(logp: Logp, wanted: bool, target: Callable[[], PreTrainedModel], top_logprobs: int = 0) -> Rescore:
    """What to do with an engine's rows: nothing, or ask the target, which is opened when the first row needs it.

    It is asked for what the engine did not say: log p under the distribution, where `wanted`, and so many most likely
    tokens.
    """
    if not top_logprobs and (logp == "processed" or (logp == "none" and not wanted)):
        return as_given
    opened: list[PreTrainedModel] = []

    def complete(row: Completion) -> bool:
        return (row.top is not None or not top_logprobs) and (not wanted or logp == "processed" or len(row.logp) > 0)

    def rescore(rows: Sequence[Completion]) -> Shard:
        given = list(rows) if logp == "processed" else [as_processed(row, logp) for row in rows]
        known, asked = [row for row in given if complete(row)], [row for row in given if not complete(row)]
        if asked and not opened:
            opened.append(target())
        scored = rescored(opened[0], asked, top_logprobs) if asked else Shard([])
        return Shard([*known, *scored.rows], scored.refused)

    return rescore


def as_processed(row: Completion, logp: Logp) -> Completion:
    """A row without log-probabilities, unless they are raw, numbers, and its distribution changes nothing; greedy ones
    are 0.
    """
    if row.sampling.greedy:
        return replace(row, logp=np.zeros(len(row.tokens), np.float32))
    raw_is_processed = (
        logp == "raw" and row.sampling.temperature == 1 and row.sampling.top_k == 0 and row.sampling.top_p == 1
    )
    known = raw_is_processed and len(row.logp) == len(row.tokens) and np.isfinite(row.logp).all()
    return row if known else replace(row, logp=np.empty(0, np.float32))


def rescored(target: PreTrainedModel, rows: Sequence[Completion], top_logprobs: int = 0) -> Shard:
    """Rows with log p under their distribution; a row with a token that the distribution excludes, or too long, is
    refused.

    A greedy row's are 0, as if each token were the target's best one: an engine of another precision may differ in near
    ties, and the row is still what a greedy engine says.
    """
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    kept = [row for row in rows if context is None or len(row.prompt) + len(row.tokens) <= context]
    refused = Counter({CONTEXT: len(rows) - len(kept)})
    scored: dict[int, Completion] = {}
    for place, logits_NV in completion_logits(target, kept):
        logp = sampled_logp(kept[place], logits_NV)
        if np.isfinite(logp).all():
            scored[place] = replace(kept[place], logp=logp, top=_top(logits_NV, top_logprobs))
        else:
            refused[OUTSIDE] += 1
    return Shard([scored[place] for place in sorted(scored)], +refused)


def _top(logits_NV: Tensor, known_tokens: int) -> Top | None:
    if not known_tokens:
        return None
    ids_NK, logp_NK = likeliest(logits_NV, known_tokens)
    return Top(ids_NK.cpu().numpy().astype(np.uint32), logp_NK.cpu().numpy())


def sampled_logp(row: Completion, logits_NV: Tensor) -> LogProbabilities:
    """(n) log p of a row's tokens under its distribution, from the target's logits."""
    if row.sampling.greedy:
        return np.zeros(len(row.tokens), np.float32)
    token_N1 = torch.from_numpy(row.tokens).to(logits_NV.device)[:, None]
    found: LogProbabilities = warp(logits_NV, *row.sampling).gather(1, token_N1)[:, 0].cpu().numpy()
    return found


@torch.inference_mode()
def completion_logits(model: PreTrainedModel, completions: Sequence[Completion]) -> Iterator[tuple[int, Tensor]]:
    """The place of each completion and its (n,V) teacher-forced logits, a batch of similar lengths at a time.

    Texts are padded on the right, where a causal model needs no mask; logits exist for completions alone.
    """
    order = sorted(range(len(completions)), key=lambda place: _text_tokens(completions[place]))
    for start in range(0, len(order), BATCH_TEXTS):
        places = order[start : start + BATCH_TEXTS]
        rows = [completions[place] for place in places]
        inputs_BT = torch.zeros(len(rows), max(map(_text_tokens, rows)) - 1, dtype=torch.long)
        for input_T, row in zip(inputs_BT, rows, strict=True):
            input_T[: _text_tokens(row) - 1] = torch.from_numpy(np.concatenate([row.prompt, row.tokens])[:-1])
        first = min(len(row.prompt) for row in rows) - 1
        wanted = inputs_BT.shape[1] - first
        output = model(input_ids=inputs_BT.to(model.device), use_cache=False, logits_to_keep=wanted)
        for place, row, logits_NV in zip(places, rows, output.logits, strict=True):
            begin = len(row.prompt) - 1 - first
            yield place, logits_NV[begin : begin + len(row.tokens)].float()


def _text_tokens(completion: Completion) -> int:
    return len(completion.prompt) + len(completion.tokens)
