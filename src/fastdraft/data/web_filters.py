"""datatrove's quality filters for web text, one entry each in `FILTERS`. They are made for English only.

Filters that count words need spaCy (the extra `web`).
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
    """`rewrites`: the filter removes lines from the documents that it keeps."""

    make: Callable[[], BaseFilter]
    needs_spacy: bool
    rewrites: bool = False


class FilteredOut(NamedTuple):
    """The result for a document that a filter drops."""

    reason: str


class QualityFilters:
    """Applies the named filters in order; MissingExtra if spaCy is needed and not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        if any(FILTERS[name].needs_spacy for name in names):
            need("spacy", "web")
        self._filters = {name: FILTERS[name].make() for name in names}

    def __call__(self, document: Document) -> Document | FilteredOut:
        """The document as rewritten by the filters, or the reason of the first filter that drops it."""
        if not self._filters:
            return document
        rewritten = PipelineDocument(text=document.text, id=document.origin)
        for name, quality_filter in self._filters.items():
            kept, reason = get_filter_result(quality_filter.filter(rewritten))
            if not kept:
                return FilteredOut(f"quality: {name}, {reason}")
            if not rewritten.text.strip():
                return FilteredOut(f"quality: {name}, nothing left")
        return document._replace(text=rewritten.text)


def rewriting_filters(names: Sequence[str]) -> list[str]:
    """The filters that must run again when a kept document is read a second time."""
    return [name for name in names if FILTERS[name].rewrites]


def _c4() -> BaseFilter:
    # Like FineWeb's own pipeline (arXiv:2406.17557), keep lines without an end mark: that rule removes by far the most
    # text. Sentences are not counted, since that alone would need spaCy.
    settings: dict[str, Any] = {"filter_no_terminal_punct": False, "min_num_sentences": -1}
    return filters.C4QualityFilter(**settings)


FILTERS: dict[str, Filter] = {
    "gopher_quality": Filter(filters.GopherQualityFilter, needs_spacy=True),
    "gopher_repetition": Filter(filters.GopherRepetitionFilter, needs_spacy=True),
    "fineweb": Filter(filters.FineWebQualityFilter, needs_spacy=True),
    "c4": Filter(_c4, needs_spacy=False, rewrites=True),
    "c4_paragraphs": Filter(filters.C4ParagraphFilter, needs_spacy=False),
}
