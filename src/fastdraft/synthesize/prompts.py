"""Prompts for the target: windows of documents, each from a random place of another one as long as they last.

Not their heads: the head of a source file is often a licence, which any draft knows by heart (2 141 of the 8 110 Python
files of an installation begin with the same notice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from math import gcd

import numpy as np
import xxhash

from fastdraft.data.shards import Shards, Tokens
from fastdraft.synthesize.completions import Keys, Request, SamplingParams
from fastdraft.system.errors import CorpusError

SEEN = "prompts that were there before"


def document_prompts(
    shards: Shards, count: int, max_prompt_tokens: int, min_new_tokens: int, generator: np.random.Generator
) -> Iterator[Tokens]:
    """`count` distinct prompts of `max_prompt_tokens` tokens, each followed by as many more of its own document as
    asked.

    The documents come in random order, one window each, then all other windows; CorpusError where all are too few.
    Prompts given out are remembered at 8 bytes each.
    """
    found = Keys()
    for start in _starts(shards.document_starts(), max_prompt_tokens + min_new_tokens, generator):
        if len(found) == count:
            return
        prompt = shards[start : start + max_prompt_tokens]
        if (key := prompt_key(prompt)) not in found:
            found.add([key])
            yield prompt
    if len(found) < count:
        raise CorpusError(
            f"{shards.folder}: {shards.documents:,} documents ({shards.tokens:,} tokens) give {len(found):,} distinct "
            f"prompts of {max_prompt_tokens} tokens with {min_new_tokens} behind them, wanted {count:,}\n"
            f"  do: lower `prompts`, `max_prompt_tokens` or `max_new_tokens`, or add documents to the source"
        )


def distinct(prompts: Iterable[Tokens], seen: Keys, left_out: Counter[str]) -> Iterator[Tokens]:
    """The prompts that are not in `seen`, which grows by them; how many were is counted in `left_out`."""
    for prompt in prompts:
        key = prompt_key(prompt)
        if key in seen:
            left_out[SEEN] += 1
        else:
            seen.add([key])
            yield prompt


def prompt_key(prompt: Tokens) -> str:
    """The same for equal prompts."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(prompt, np.int64).tobytes())


def over_sampling(prompts: Iterable[Tokens], weights: Mapping[SamplingParams, float]) -> Iterator[Request]:
    """One request for each prompt; the distributions share the prompts by weight, at every moment to within one
    prompt.
    """
    sampling_settings, fraction = list(weights), np.array(list(weights.values())) / sum(weights.values())
    given = np.zeros(len(sampling_settings))
    for i, prompt in enumerate(prompts):
        sampling = int((fraction * (i + 1) - given).argmax())
        given[sampling] += 1
        yield Request(prompt, sampling_settings[sampling])


def repeated(requests: Iterable[Request], samples_per_prompt: int) -> Iterator[Request]:
    """Each request so many times, told apart by `index`; greedy ones once, for they would say the same."""
    for request in requests:
        for index in range(1 if request.sampling.greedy else samples_per_prompt):
            yield replace(request, index=index)


def _starts(documents: Tokens, needed: int, generator: np.random.Generator) -> Iterator[int]:
    """Every place where a prompt may start: one of each document first, then all of them, scattered."""
    first, places = documents[:-1], np.diff(documents) - needed + 1
    first, places = first[places > 0], places[places > 0]
    one_each = (first + generator.integers(0, places))[generator.permutation(len(first))] if len(first) else first
    ends = np.cumsum(places)
    scattered = _scattered(int(places.sum()), generator)
    return chain(map(int, one_each), (_start(first, ends, places, place) for place in scattered))


def _start(first: Tokens, ends: Tokens, places: Tokens, place: int) -> int:
    """The token at which the place-th window starts, when all windows of all documents are counted in one row."""
    document = int(np.searchsorted(ends, place, side="right"))
    return int(first[document] + place - (ends[document] - places[document]))


def _scattered(places: int, generator: np.random.Generator) -> Iterator[int]:
    """0 .. places - 1 in a scattered order that needs no memory: steps of a random stride without common divisor."""
    if places == 0:
        return
    stride = int(generator.integers(places // 3, places - places // 3)) if places > 2 else 1
    while gcd(stride, places) > 1:
        stride += 1
    place = int(generator.integers(places))
    for _ in range(places):
        yield place
        place = (place + stride) % places
