"""A document, the hash that decides its fate, and the portion of a source that one task reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import xxhash

Thing = TypeVar("Thing")


class Document(NamedTuple):
    """One text. `key` decides on which side of the split it falls: documents of one key stay together."""

    text: str
    origin: str
    key: str

    @staticmethod
    def of(text: str, origin: str) -> Document:
        """A document that is split by its own content."""
        return Document(text, origin, content_key(text))


@dataclass
class Rejected:
    """Rows that a source could not use, counted by reason, with the first place of each; and what filters refused."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, place)

    def refuse(self, reason: str, count: int = 1) -> None:
        """A sound document that a filter keeps out."""
        self.refused[reason] = self.refused.get(reason, 0) + count

    def merge(self, other: Rejected) -> None:
        """Add what another task counted; where both know a reason, its first place here stays."""
        self.rows += other.rows
        self.first = other.first | self.first
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        for reason, count in other.refused.items():
            self.refuse(reason, count)

    @property
    def fraction(self) -> float:
        """Unsound rows among all."""
        return sum(self.counts.values()) / max(self.rows, 1)


class Portion(NamedTuple):
    """The part of a source that task `rank` of `of` reads: all portions together are the source, no two overlap."""

    rank: int = 0
    of: int = 1

    def split(self, units: Sequence[Thing]) -> tuple[Sequence[Thing], Portion]:
        """The units (files, say) to open, and the portion of their rows to take.

        Units of one's own where there are enough for every task; otherwise all units, and every `of`-th row of each.
        """
        return (units[self.rank :: self.of], WHOLE) if len(units) >= self.of else (units, self)

    def holds(self, number: int) -> bool:
        """Whether the number-th row is of this portion."""
        return number % self.of == self.rank

    def count(self, total: int) -> int:
        """How many of `total` rows, dealt out in turn, are of this portion."""
        return total // self.of + (self.rank < total % self.of)


WHOLE = Portion()


def content_key(text: str) -> str:
    """16 hex digits of the content (xxh3, 64 bits)."""
    return f"{content_hash(text):016x}"


def content_hash(text: str) -> int:
    """The content (xxh3, 64 bits)."""
    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))


def uniform(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on key and purpose alone: the same on every machine, in any order."""
    return float(xxhash.xxh3_64_intdigest(f"{purpose}:{key}".encode()) / 2**64)
