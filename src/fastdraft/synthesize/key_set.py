"""Sets of 64-bit hashes and of completion keys, at 8 bytes per element: millions of rows fit into memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class HashSet:
    """A set of 64-bit numbers: a sorted array, and a Python set of the newest ones.

    One thread may add while others look up: `add` publishes the new sorted array before it empties the newest set, and
    `contains` looks into the newest set first.
    """

    NEWEST = 1 << 16

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._newest: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._newest)

    def __contains__(self, number: int) -> bool:
        return bool(self.contains(np.array([number], np.uint64))[0])

    def contains(self, numbers_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """(N) whether each number is in the set."""
        in_newest_N = np.fromiter((number in self._newest for number in numbers_N.tolist()), np.bool_, len(numbers_N))
        older = self._sorted
        if not len(older):
            return in_newest_N
        index_N = np.searchsorted(older, numbers_N).clip(max=len(older) - 1)
        found_N: npt.NDArray[np.bool_] = in_newest_N | (older[index_N] == numbers_N)
        return found_N

    def add(self, numbers: Iterable[int]) -> None:
        more = np.fromiter(numbers, np.uint64)
        self._newest.update(more[~self.contains(more)].tolist())
        if len(self._newest) >= self.NEWEST:
            newest = np.fromiter(self._newest, np.uint64, len(self._newest))
            self._sorted = np.sort(np.concatenate([self._sorted, newest]))
            self._newest = set()


class KeySet:
    """A set of completion keys (16 hex digits); safe for threads as `HashSet` is."""

    def __init__(self) -> None:
        self._hashes = HashSet()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, key: str) -> bool:
        return int(key, 16) in self._hashes

    def add(self, keys: Iterable[str]) -> None:
        self._hashes.add(int(key, 16) for key in keys)
