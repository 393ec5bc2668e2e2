"""datatrove's filters for text from the web: one row in `FILTERS` each. They know English alone.

Those that count words need spaCy, the extra `web`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datatrove.data import Document as PipelineDocument
from datatrove.pipeline import filters
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from fastdraft.data.document import Document
from fastdraft.system.optional_packages import need


class Filter(NamedTuple):
    """How a filter is made; whether it counts words (by spaCy), and whether it takes lines out of what it keeps."""

    make: Callable[[], BaseFilter]
    words: bool
    rewrites: bool = False


class Dropped(NamedTuple):
    """What stands in for a document that a filter refused."""

    reason: str


class Sieve:
    """The filters named, one after the other; MissingExtra where one of them needs what is not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        if any(FILTERS[name].words for name in names):
            need("spacy", "web")
        self._filters = {name: FILTERS[name].make() for name in names}

    def __call__(self, document: Document) -> Document | Dropped:
        """The document as the filters leave it, or the first reason against it."""
        if not self._filters:
            return document
        passing = PipelineDocument(text=document.text, id=document.origin)
        for name, step in self._filters.items():
            kept, reason = get_filter_result(step.filter(passing))
            if not kept:
                return Dropped(f"quality: {name}, {reason}")
            if not passing.text.strip():
                return Dropped(f"quality: {name}, nothing left")
        return document._replace(text=passing.text)


def rewriting(names: Sequence[str]) -> list[str]:
    """The filters that must be asked again where a document that all of them kept is read once more."""
    return [name for name in names if FILTERS[name].rewrites]


def _c4() -> BaseFilter:
    # As FineWeb's own pipeline does (arXiv:2406.17557), lines without an end mark stay: that rule takes out the most by
    # far. Sentences are not counted either, which alone would need spaCy.
    settings: dict[str, Any] = {"filter_no_terminal_punct": False, "min_num_sentences": -1}
    return filters.C4QualityFilter(**settings)


FILTERS: dict[str, Filter] = {
    "gopher_quality": Filter(filters.GopherQualityFilter, words=True),
    "gopher_repetition": Filter(filters.GopherRepetitionFilter, words=True),
    "fineweb": Filter(filters.FineWebQualityFilter, words=True),
    "c4": Filter(_c4, words=False, rewrites=True),
    "c4_paragraphs": Filter(filters.C4ParagraphFilter, words=False),
}
