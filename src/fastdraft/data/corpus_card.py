"""The card of the tokenised corpus."""

from __future__ import annotations

from typing import ClassVar

from fastdraft.data.shards import SourceCard
from fastdraft.system.cards import Card


class CorpusCard(Card):
    """The tokenised sources by name; their shards are in SOURCE/{train,held_out}/shards next to the card."""

    kind: ClassVar[str] = "corpus"
    sources: dict[str, SourceCard]
