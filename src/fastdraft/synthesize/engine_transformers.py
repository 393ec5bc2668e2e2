"""The engine `transformers`: the target completes prompts in this process, with a coin of its own for every token.

The coins of a row come from its key, so what a row says depends on neither its batch nor its place in it (up to the
rounding of batched arithmetic). Which rows are decoded together follows from the requests alone, and they are stored
whole, or not at all: a killed run goes on where it stood and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.synthesize.completions import Completion, CompletionStore, Keys, Request, SamplingParams
from fastdraft.synthesize.decode import generate
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard, as_given, keyed, write
from fastdraft.system.progress import Bar

__all__ = ["Decoding", "InProcess", "complete", "generate"]


class InProcess:
    """The target in this process."""

    logp: Logp = "processed"

    def __init__(self, target: PreTrainedModel, decoding: Decoding) -> None:
        self._target, self._decoding = target, decoding

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """One shard for each group of requests that is not stored whole."""
        for group in groups(requests, self._decoding.shard_prompts):
            missing = {row.key for row in group if row.key not in stored}
            if missing:
                # All are decoded even if a part is stored: the same rows together give the same bits.
                yield Shard([row for row in answered(self._target, group, self._decoding) if row.key in missing])


def answered(target: PreTrainedModel, group: Sequence[Keyed], how: Decoding) -> list[Completion]:
    """The completions of one group."""
    sampling, prompts = group[0].request.sampling, [row.request.prompt for row in group]
    coins_RN = torch.from_numpy(np.stack([coins(row.key, how.seed, how.max_new_tokens) for row in group]))
    given = sampling, how.max_new_tokens, how.eos, coins_RN, how.batch_size, how.top_logprobs
    rows = generate(target, prompts, *given)
    return [
        Completion(row.key, row.request.prompt, written.tokens, written.logp, sampling, row.request.index, written.top)
        for row, written in zip(group, rows, strict=True)
    ]


def coins(key: str, seed: int, tokens: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(n) uniform on [0, 1): the coins of a row."""
    return np.random.default_rng([seed, int(key, 16)]).random(tokens)


def complete(
    target: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, store: CompletionStore, what: str
) -> list[Completion]:
    """The completion of each request, in their order, from the store or else from the target; `what` names the bar.

    TargetError where the target's first rows ever say nothing but end-of-text.
    """
    rows, stored = list(keyed(requests, decoding)), store.stored()
    with Bar(what, len(rows), "completions", sum(row.key in stored for row in rows)) as bar:
        write(InProcess(target, decoding), rows, store, decoding, bar, as_given)
    return store.read([row.key for row in rows])


def groups(requests: Iterable[Keyed], group_rows: int) -> Iterator[list[Keyed]]:
    """Groups of one distribution each, in an order that the requests alone decide."""
    waiting: dict[SamplingParams, list[Keyed]] = {}
    for row in requests:
        group = waiting.setdefault(row.request.sampling, [])
        group.append(row)
        if len(group) == group_rows:
            yield waiting.pop(row.request.sampling)
    yield from waiting.values()
