"""Looping texts: repeated n-grams. A draft predicts loops too easily, so results are also reported without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastdraft.data.shards import Tokens

# In 128 tokens: a repeated passage of 38 tokens contains 31 of the 121 8-grams, 0.256.
LOOPING_FRACTION = 0.25


class Repeats(NamedTuple):
    """The n-grams of a text, and those that occurred earlier in it."""

    repeated: int
    ngrams: int

    @property
    def fraction(self) -> float:
        """Repeated over all; 0 for a text without n-grams."""
        return self.repeated / max(self.ngrams, 1)


def repeats(tokens: Tokens, n: int = 8) -> Repeats:
    """The numbers of a text's n-grams, and of those that occurred earlier in it."""
    ids = tokens.tolist()
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return Repeats(len(ngrams) - len(set(ngrams)), len(ngrams))


def pooled_repeats(texts: Sequence[Tokens], n: int = 8) -> float:
    """The fraction of repeated n-grams over several texts, each compared only with itself."""
    counts = [repeats(text, n) for text in texts]
    return Repeats(sum(count.repeated for count in counts), sum(count.ngrams for count in counts)).fraction


def loops(tokens: Tokens) -> bool:
    """Whether a text loops: more than a quarter of its 8-grams occurred earlier in it."""
    return repeats(tokens).fraction > LOOPING_FRACTION
