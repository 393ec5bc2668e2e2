"""The order of the sequences of a source in an epoch: a stored permutation, or one computed index by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xxhash

# 2.1 billion tokens in sequences of 512. A stored permutation of this size takes 32 MiB and 0.15 s; one for 10 billion
# tokens would take 156 MB and 1.1 s, for every source and process, at each epoch and start (docs/corpus.md).
MAX_STORED_SEQUENCES = 2**22
HALF_ROUNDS = 8


class Permutation(Protocol):
    """permutation[i] is the i-th number of the permutation."""

    def __getitem__(self, index: int, /) -> int | np.int64: ...


def permutation(count: int, key: Sequence[int]) -> Permutation:
    """A permutation of 0 .. count - 1 that depends only on `count` and `key`.

    numpy's up to `MAX_STORED_SEQUENCES`, a computed one above. Both must never change: resumed runs depend on them.
    """
    if count <= MAX_STORED_SEQUENCES:
        return np.random.default_rng(key).permutation(count)
    return FeistelPermutation(count, key)


class FeistelPermutation:
    """A permutation that needs no memory: a Feistel network over the next power of two, repeated until it hits 0 ..
    count - 1 (at most twice on average).

    Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), methods 2 and 3.
    """

    def __init__(self, count: int, key: Sequence[int]) -> None:
        bits = max((count - 1).bit_length(), 2)
        self._count, self._low_bits = count, bits // 2
        self._masks = ((1 << (bits - bits // 2)) - 1, (1 << (bits // 2)) - 1)
        self._seeds = np.random.SeedSequence(key).generate_state(HALF_ROUNDS, np.uint64).tolist()

    def __getitem__(self, index: int) -> int:
        """The index-th number of the permutation."""
        assert 0 <= index < self._count
        number = self._network(index)
        while number >= self._count:
            number = self._network(number)
        return number

    def _network(self, number: int) -> int:
        high_mask, low_mask = self._masks
        high, low = number >> self._low_bits, number & low_mask
        for high_seed, low_seed in zip(self._seeds[::2], self._seeds[1::2], strict=True):
            high ^= _hash(low, high_seed) & high_mask
            low ^= _hash(high, low_seed) & low_mask
        return high << self._low_bits | low


def _hash(half: int, seed: int) -> int:
    return int(xxhash.xxh3_64_intdigest(half.to_bytes(8, "little"), seed))
