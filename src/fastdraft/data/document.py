"""A document, the hash that assigns it to a split, and the portion of a source that one task reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import xxhash

Unit = TypeVar("Unit")


class Document(NamedTuple):
    """One text. `key` assigns it to a split; documents with the same key are in the same split."""

    text: str
    origin: str
    key: str

    @staticmethod
    def of(text: str, origin: str) -> Document:
        """A document whose key is the hash of its text."""
        return Document(text, origin, content_key(text))


@dataclass
class Rejected:
    """Counts of unusable records by reason, with the first place of each, and counts of filtered documents."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    records: int = 0
    filtered: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        """Count an unusable record."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, place)

    def add_filtered(self, reason: str, count: int = 1) -> None:
        """Count usable documents that a quality filter dropped."""
        self.filtered[reason] = self.filtered.get(reason, 0) + count

    def merge(self, portion: Rejected) -> None:
        """Add the counts of another task; where both have a reason, its first place here is kept."""
        self.records += portion.records
        self.first = portion.first | self.first
        for reason, count in portion.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        for reason, count in portion.filtered.items():
            self.add_filtered(reason, count)

    @property
    def fraction(self) -> float:
        """Unusable records per record read."""
        return sum(self.counts.values()) / max(self.records, 1)


class Portion(NamedTuple):
    """What task `rank` of `world_size` reads. The portions of all tasks are disjoint and cover the source."""

    rank: int = 0
    world_size: int = 1

    def split(self, units: Sequence[Unit]) -> tuple[Sequence[Unit], Portion]:
        """The units (for example files) to open, and the portion of their records to take.

        Each task gets units of its own if there are at least as many units as tasks. Otherwise every task opens all
        units and takes every `world_size`-th record.
        """
        if len(units) >= self.world_size:
            return units[self.rank :: self.world_size], WHOLE
        return units, self

    def holds(self, number: int) -> bool:
        """Whether the record with this number is in the portion."""
        return number % self.world_size == self.rank

    def count(self, total: int) -> int:
        """How many of `total` records are in the portion."""
        return total // self.world_size + (self.rank < total % self.world_size)


WHOLE = Portion()


def content_key(text: str) -> str:
    """The content hash as 16 hex digits."""
    return f"{content_hash(text):016x}"


def content_hash(text: str) -> int:
    """64-bit xxh3 hash of the text."""
    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))


def uniform(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on key and purpose."""
    return float(xxhash.xxh3_64_intdigest(f"{purpose}:{key}".encode()) / 2**64)
