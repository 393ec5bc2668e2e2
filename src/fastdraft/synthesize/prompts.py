"""Prompts from corpus documents, and from prompts to requests.

A prompt is a window of a document: first one per document at a random place, then all other windows. It is not the
document's beginning: source files often begin with a licence, which any draft knows by heart (2 141 of the 8 110 Python
files of an installation begin with the same notice).

If the target's tokenizer adds a begin-of-text token, each prompt begins with it, because every engine sends it with a
text. Training sequences of `pretrain` and `continue` are cut from the shards as they are: there the token stands where
a document begins, as in the target's own training, and a sequence may begin in mid-text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import gcd

import numpy as np
import xxhash

from fastdraft.data.shards import Shards, Tokens
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.key_set import KeySet
from fastdraft.system.errors import CorpusError

DUPLICATE_PROMPT = "prompts that were there before"


def document_prompts(
    shards: Shards,
    count: int,
    max_prompt_tokens: int,
    min_new_tokens: int,
    generator: np.random.Generator,
    *,
    bos: int | None,
) -> Iterator[Tokens]:
    """`count` distinct windows of `max_prompt_tokens`, each followed by `min_new_tokens` more of its document.

    `bos`: the `added_bos_id` of the target; unless None, every document of the shards begins with it, and every prompt.
    The documents come in random order, one window each, then all other windows. CorpusError if there are too few.
    Memory: 8 bytes per prompt.
    """
    seen, begin = KeySet(), np.array([] if bos is None else [bos], np.int64)
    text_tokens = max_prompt_tokens - len(begin)
    for start in _window_starts(shards.document_starts(), len(begin), text_tokens + min_new_tokens, generator):
        if len(seen) == count:
            return
        prompt = np.concatenate([begin, shards[start : start + text_tokens]])
        if (key := prompt_key(prompt)) not in seen:
            seen.add([key])
            yield prompt
    if len(seen) < count:
        raise CorpusError(
            f"{shards.folder}: {shards.documents:,} documents ({shards.tokens:,} tokens) give {len(seen):,} distinct "
            f"prompts of {max_prompt_tokens} tokens followed by {min_new_tokens} more, wanted {count:,}\n"
            f"  do: lower `prompts`, `max_prompt_tokens` or `max_new_tokens`, or add documents to the source"
        )


def distinct_prompts(prompts: Iterable[Tokens], seen: KeySet, left_out: Counter[str]) -> Iterator[Tokens]:
    """The prompts that are not in `seen`, to which they are added; the others are counted in `left_out`."""
    for prompt in prompts:
        key = prompt_key(prompt)
        if key in seen:
            left_out[DUPLICATE_PROMPT] += 1
        else:
            seen.add([key])
            yield prompt


def prompt_key(prompt: Tokens) -> str:
    """A hash of a prompt's tokens."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(prompt, np.int64).tobytes())


def assign_sampling(prompts: Iterable[Tokens], weights: Mapping[SamplingParams, float]) -> Iterator[Request]:
    """One request per prompt. Sampling parameters get prompts in proportion to their weights, exact to one prompt."""
    settings, fractions = list(weights), np.array(list(weights.values())) / sum(weights.values())
    assigned = np.zeros(len(settings))
    for i, prompt in enumerate(prompts):
        chosen = int((fractions * (i + 1) - assigned).argmax())
        assigned[chosen] += 1
        yield Request(prompt, settings[chosen])


def repeat_samples(requests: Iterable[Request], samples_per_prompt: int) -> Iterator[Request]:
    """Each request `samples_per_prompt` times with different `index`; greedy ones once, as repeats would be equal."""
    for request in requests:
        for index in range(1 if request.sampling.greedy else samples_per_prompt):
            yield replace(request, index=index)


def _window_starts(
    documents: Tokens, skipped_tokens: int, window_tokens: int, generator: np.random.Generator
) -> Iterator[int]:
    """All tokens at which a window of a document may start: one of each document first, then all, scattered.

    The first `skipped_tokens` of a document are in no window.
    """
    first, windows = documents[:-1] + skipped_tokens, np.diff(documents) - skipped_tokens - window_tokens + 1
    first, windows = first[windows > 0], windows[windows > 0]
    if len(first):
        one_each = (first + generator.integers(0, windows))[generator.permutation(len(first))]
        yield from map(int, one_each)
    ends = np.cumsum(windows)
    for window in _scattered(int(windows.sum()), generator):  # counted through all documents
        document = int(np.searchsorted(ends, window, side="right"))
        yield int(first[document] + window - (ends[document] - windows[document]))


def _scattered(count: int, generator: np.random.Generator) -> Iterator[int]:
    """0 .. count - 1 in a scattered order that needs no memory: steps of a random stride coprime to `count`."""
    if count == 0:
        return
    stride = int(generator.integers(count // 3, count - count // 3)) if count > 2 else 1
    while gcd(stride, count) > 1:
        stride += 1
    value = int(generator.integers(count))
    for _ in range(count):
        yield value
        value = (value + stride) % count
