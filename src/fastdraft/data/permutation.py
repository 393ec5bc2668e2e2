"""The order of a source's rows in an epoch: a permutation that is kept, or one that is computed place by place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xxhash

# 2.1 billion tokens in rows of 512. So many rows take 32 MiB and 0.15 s; those of 10 billion tokens would take 156 MB
# and 1.1 s, for every source and every process, at each epoch and each start (docs/corpus.md).
MAX_STORED_SEQUENCES = 2**22
HALF_ROUNDS = 8


class Order(Protocol):
    """order[place] is the row that is drawn there."""

    def __getitem__(self, place: int, /) -> int | np.int64:
        """The row at a place."""


def permutation(rows: int, key: Sequence[int]) -> Order:
    """A permutation of 0 .. rows - 1 that depends on `rows` and `key` alone.

    numpy's up to `MAX_STORED_SEQUENCES` rows, a computed one above: both are fixed, since runs are resumed by them.
    """
    return np.random.default_rng(key).permutation(rows) if rows <= MAX_STORED_SEQUENCES else Computed(rows, key)


class Computed:
    """A permutation in no memory: a Feistel network over the next power of two, walked until it lands among the rows.

    Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), methods 2 and 3. A place takes two walks at most in
    the mean.
    """

    def __init__(self, rows: int, key: Sequence[int]) -> None:
        bits = max((rows - 1).bit_length(), 2)
        self._rows, self._low_bits = rows, bits // 2
        self._masks = ((1 << (bits - bits // 2)) - 1, (1 << (bits // 2)) - 1)
        self._seeds = np.random.SeedSequence(key).generate_state(HALF_ROUNDS, np.uint64).tolist()

    def __getitem__(self, place: int) -> int:
        """The row at a place."""
        assert 0 <= place < self._rows
        place = self._network(place)
        while place >= self._rows:
            place = self._network(place)
        return place

    def _network(self, place: int) -> int:
        high_mask, low_mask = self._masks
        high, low = place >> self._low_bits, place & low_mask
        for at_high, at_low in zip(self._seeds[::2], self._seeds[1::2], strict=True):
            high ^= _scramble(low, at_high) & high_mask
            low ^= _scramble(high, at_low) & low_mask
        return high << self._low_bits | low


def _scramble(half: int, seed: int) -> int:
    return int(xxhash.xxh3_64_intdigest(half.to_bytes(8, "little"), seed))
