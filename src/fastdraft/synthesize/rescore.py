"""Rescoring: log p of given completions under their distribution, from one teacher-forced forward of the target.

Dimensions: B completions, N tokens of a completion, T tokens of prompt and completion, V vocabulary.
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
from fastdraft.synthesize.completions import Completion, LogProbabilities, TopTokens
from fastdraft.synthesize.engine_interface import LogprobsMode, Shard
from fastdraft.synthesize.token_sampling import top_tokens

# Completions per forward: the logits of 8 x 128 tokens over a vocabulary of 128 256 take 0.5 GB.
BATCH_SIZE = 8
EXCLUDED_TOKEN = "a token that has probability 0 under its distribution, according to the target in this process"
TOO_LONG = "prompt and answer longer than the target's context"

# Completes the log-probabilities of an engine's rows; rows that cannot be scored are counted as refused.
Rescore = Callable[[Sequence[Completion]], Shard]


def keep_as_is(rows: Sequence[Completion]) -> Shard:
    """No rescoring: log-probabilities are processed already, or stay unknown."""
    return Shard(rows)


def rescorer(
    mode: LogprobsMode, rescore_logp: bool, open_target: Callable[[], PreTrainedModel], top_logprobs: int = 0
) -> Rescore:
    """The rescoring of rows from an engine with this `logprobs_mode`.

    The target fills in what the engine did not return: log p under the distribution if `rescore_logp`, and
    `top_logprobs` most likely tokens. It is opened when the first row needs it.
    """
    if not top_logprobs and (mode == "processed" or (mode == "none" and not rescore_logp)):
        return keep_as_is
    opened: list[PreTrainedModel] = []

    def is_complete(row: Completion) -> bool:
        has_logp = not rescore_logp or mode == "processed" or len(row.logp) > 0
        return has_logp and (row.top is not None or not top_logprobs)

    def rescore(rows: Sequence[Completion]) -> Shard:
        rows = rows if mode == "processed" else [as_processed(row, mode) for row in rows]
        complete = [row for row in rows if is_complete(row)]
        incomplete = [row for row in rows if not is_complete(row)]
        if not incomplete:
            return Shard(complete)
        if not opened:
            opened.append(open_target())
        scored = rescore_rows(opened[0], incomplete, top_logprobs)
        return Shard([*complete, *scored.rows], scored.refused)

    return rescore


def as_processed(row: Completion, mode: LogprobsMode) -> Completion:
    """A row with processed log-probabilities where they follow without the target, otherwise with none.

    Greedy rows have 0. Raw ones are kept where they equal the processed ones: at T = 1 without top-k and top-p.
    """
    if row.sampling.greedy:
        return replace(row, logp=np.zeros(len(row.tokens), np.float32))
    raw_is_processed = mode == "raw" and row.sampling == (1, 0, 1)
    valid = raw_is_processed and len(row.logp) == len(row.tokens) and np.isfinite(row.logp).all()
    return row if valid else replace(row, logp=np.empty(0, np.float32))


def rescore_rows(target: PreTrainedModel, rows: Sequence[Completion], top_logprobs: int = 0) -> Shard:
    """Rows with log p under their distribution, in their order.

    Refuses rows that exceed the context and rows with a token that their distribution excludes. Greedy rows have 0 and
    are not checked: an engine of another precision may decide near ties differently.
    """
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    fitting = [row for row in rows if context is None or len(row.prompt) + len(row.tokens) <= context]
    refused = Counter({TOO_LONG: len(rows) - len(fitting)})
    scored: dict[int, Completion] = {}
    for index, logits_NV in completion_logits(target, fitting):
        logp = sampled_logp(fitting[index], logits_NV)
        if np.isfinite(logp).all():
            top = None
            if top_logprobs:
                ids_NK, logp_NK = top_tokens(logits_NV, top_logprobs)
                top = TopTokens(ids_NK.cpu().numpy().astype(np.uint32), logp_NK.cpu().numpy())
            scored[index] = replace(fitting[index], logp=logp, top=top)
        else:
            refused[EXCLUDED_TOKEN] += 1
    return Shard([scored[index] for index in sorted(scored)], +refused)


def sampled_logp(row: Completion, logits_NV: Tensor) -> LogProbabilities:
    """(n) log p of a row's tokens under its distribution, from the target's logits."""
    if row.sampling.greedy:
        return np.zeros(len(row.tokens), np.float32)
    token_N1 = torch.from_numpy(row.tokens).to(logits_NV.device)[:, None]
    logp: LogProbabilities = warp(logits_NV, *row.sampling).gather(1, token_N1)[:, 0].cpu().numpy()
    return logp


@torch.inference_mode()
def completion_logits(model: PreTrainedModel, completions: Sequence[Completion]) -> Iterator[tuple[int, Tensor]]:
    """The index of each completion and its (n,V) teacher-forced logits, in batches of similar length.

    Right padding needs no mask in a causal model. Logits are computed for completion tokens only.
    """
    lengths = [len(row.prompt) + len(row.tokens) for row in completions]
    order = sorted(range(len(completions)), key=lengths.__getitem__)
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        inputs_BT = torch.zeros(len(batch), max(lengths[i] for i in batch) - 1, dtype=torch.long)
        for input_T, i in zip(inputs_BT, batch, strict=True):
            text = np.concatenate([completions[i].prompt, completions[i].tokens])
            input_T[: lengths[i] - 1] = torch.from_numpy(text[:-1])
        first = min(len(completions[i].prompt) for i in batch) - 1
        kept = inputs_BT.shape[1] - first
        output = model(input_ids=inputs_BT.to(model.device), use_cache=False, logits_to_keep=kept)
        for i, logits_NV in zip(batch, output.logits, strict=True):
            begin = len(completions[i].prompt) - 1 - first
            yield i, logits_NV[begin : begin + len(completions[i].tokens)].float()
