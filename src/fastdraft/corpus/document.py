"""A document, and the hash that decides its fate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash


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
    """Rows that a source could not use, counted by reason, with the first place of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    rows: int = 0

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, place)

    @property
    def share(self) -> float:
        return sum(self.counts.values()) / max(self.rows, 1)


def content_key(text: str) -> str:
    """16 hex digits of the content (xxh3, 64 bits)."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def uniform(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on key and purpose alone: the same on every machine, in any order."""
    return float(xxhash.xxh3_64_intdigest(f"{purpose}:{key}".encode()) / 2**64)
