"""The engine `transformers`: the target generates in this process, with a random number of its own for every token.

The random numbers of a row follow from its key, so its text does not depend on the batch, up to the rounding of batched
arithmetic. Which rows are decoded together follows from the requests alone, and each group is stored whole or not at
all: an interrupted run continues where it stopped and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard, with_keys
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.rescore import keep_as_is
from fastdraft.synthesize.write import write_completions
from fastdraft.system.progress import Bar


class TransformersEngine:
    """The target in this process."""

    logprobs_mode: LogprobsMode = "processed"

    def __init__(self, target: PreTrainedModel, decoding: DecodingParams) -> None:
        self._target, self._decoding = target, decoding

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """One shard per group of requests that is not fully stored."""
        for group in sampling_groups(requests, self._decoding.shard_prompts):
            missing = {row.key for row in group if row.key not in stored}
            if missing:
                # The whole group is decoded even if a part is stored: the same batches give the same bits.
                completions = complete_group(self._target, group, self._decoding)
                yield Shard([row for row in completions if row.key in missing])


def complete(
    target: PreTrainedModel, requests: Sequence[Request], decoding: DecodingParams, store: CompletionStore, name: str
) -> list[Completion]:
    """The completion of each request, in their order, from the store or else from the target; `name` labels the bar.

    TargetError if the first rows of an empty store are all end-of-text alone.
    """
    rows, stored = list(with_keys(requests, decoding)), store.stored_keys()
    with Bar(name, len(rows), "completions", sum(row.key in stored for row in rows)) as bar:
        write_completions(TransformersEngine(target, decoding), rows, store, decoding, bar, keep_as_is)
    return store.read([row.key for row in rows])


def complete_group(
    target: PreTrainedModel, group: Sequence[KeyedRequest], decoding: DecodingParams
) -> list[Completion]:
    """The completions of one group of requests, which share their sampling parameters."""
    sampling = group[0].request.sampling
    generators = [np.random.default_rng([decoding.seed, int(row.key, 16)]) for row in group]
    coins_RN = np.stack([generator.random(decoding.max_new_tokens) for generator in generators])
    completions = generate(
        target,
        [row.request.prompt for row in group],
        sampling,
        decoding.max_new_tokens,
        decoding.eos,
        torch.from_numpy(coins_RN),
        batch_size=decoding.batch_size,
        top_logprobs=decoding.top_logprobs,
    )
    return [
        Completion(row.key, row.request.prompt, each.tokens, each.logp, sampling, row.request.index, each.top)
        for row, each in zip(group, completions, strict=True)
    ]


def sampling_groups(requests: Iterable[KeyedRequest], group_rows: int) -> Iterator[list[KeyedRequest]]:
    """Groups of requests with equal sampling parameters, in an order that follows from the requests alone."""
    waiting: dict[SamplingParams, list[KeyedRequest]] = {}
    for row in requests:
        group = waiting.setdefault(row.request.sampling, [])
        group.append(row)
        if len(group) == group_rows:
            yield waiting.pop(row.request.sampling)
    yield from waiting.values()
