"""Prompts for the target: prefixes of documents, and windows from their insides where documents run out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import gcd

import numpy as np

from fastdraft.corpus.shards import Shards, Tokens
from fastdraft.errors import CorpusError
from fastdraft.synthesize.completions import Law, Request


def prefix_prompts(
    shards: Shards, count: int, prompt_tokens: int, completion_tokens_at_least: int, generator: np.random.Generator
) -> list[Tokens]:
    """`count` distinct prompts of `prompt_tokens` tokens, each followed by as many more of its own document as asked.

    Prefixes of documents in random order come first, then windows that start inside documents; CorpusError where all
    of them are too few.
    """
    found: dict[bytes, Tokens] = {}
    for start in _starts(shards.document_starts(), prompt_tokens + completion_tokens_at_least, generator):
        if len(found) == count:
            break
        prompt = shards[start : start + prompt_tokens]
        found.setdefault(prompt.tobytes(), prompt)
    if len(found) < count:
        raise CorpusError(
            f"{shards.documents:,} documents ({shards.tokens:,} tokens) give {len(found):,} distinct prompts of "
            f"{prompt_tokens} tokens with {completion_tokens_at_least} behind them, wanted {count:,}\n"
            f"  do: lower `prompts`, `prompt_tokens` or `completion_tokens`, or add documents to the source"
        )
    return list(found.values())


def over_laws(prompts: Sequence[Tokens], weights: Mapping[Law, float]) -> list[Request]:
    """One request for each prompt; the laws share the prompts by weight, at every moment to within one prompt."""
    laws, share = list(weights), np.array(list(weights.values())) / sum(weights.values())
    given = np.zeros(len(laws))
    requests = []
    for i, prompt in enumerate(prompts):
        law = int((share * (i + 1) - given).argmax())
        given[law] += 1
        requests.append(Request(prompt, laws[law]))
    return requests


def _starts(documents: Tokens, needed: int, generator: np.random.Generator) -> Iterator[int]:
    """Every place where a prompt may start, once: heads of documents first, then their insides, each scattered."""
    first, room = documents[:-1], np.diff(documents) - needed
    first, room = first[room >= 0], room[room >= 0]
    heads = first[generator.permutation(len(first))]
    ends = np.cumsum(room)
    inside = _scattered(int(room.sum()), generator)
    return chain(map(int, heads), (_inside(first, ends, room, place) for place in inside))


def _inside(first: Tokens, ends: Tokens, room: Tokens, place: int) -> int:
    """The token at which the place-th window starts, when all windows of all documents are counted in one row."""
    document = int(np.searchsorted(ends, place, side="right"))
    return int(first[document] + 1 + place - (ends[document] - room[document]))


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
