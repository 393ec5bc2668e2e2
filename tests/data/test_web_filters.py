"""datatrove's filters by name; filters that count words need spaCy."""

import pytest

from fastdraft.config import SourcePart
from fastdraft.data.document import Document
from fastdraft.data.web_filters import FILTERS, FilteredOut, QualityFilters, rewriting_filters
from fastdraft.system.errors import MissingExtra

WORDS = [name for name, quality_filter in FILTERS.items() if quality_filter.needs_spacy]
PROSE = """The old fox lived by the river, and she had never seen the sea.
One morning in spring a heron let her know that it was only a day's walk from there, beyond the hills with white stones.
She did not believe him, for herons are known to say more than they have looked at.
But the thought of so much water stayed with her until the leaves fell.
Then she packed two mice into a leaf, said good-bye to her neighbour the badger, and went where the sun goes down.
On the second evening something began to roar behind the dunes, and the wind tasted of salt.
It was larger than anything she could have made up; it came and went, and nobody seemed to mind.
"""
# For each filter a text that it drops, and the reason.
DROPPED = {
    "gopher_quality": ("too short", "gopher_short_doc"),
    "gopher_repetition": ("the same line again\n" * 40, "dup_line_frac"),
    "fineweb": ("\n".join(f"entry {i}" for i in range(60)), "line_punct_ratio"),
}


def test_every_filter_of_the_recipe_is_in_the_table():
    choices = SourcePart.model_fields["quality"].annotation.__args__[0].__args__
    assert set(FILTERS) == set(choices)
    assert set(DROPPED) == set(WORDS)


def test_without_filters_a_document_is_unchanged():
    document = Document.of(" x ", "here")
    assert QualityFilters([])(document) is document


def test_filters_that_rewrite():
    assert rewriting_filters(list(FILTERS)) == ["c4"]


@pytest.mark.parametrize("name", WORDS)
def test_a_filter_that_counts_words_without_spacy(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(MissingExtra, match=r"spacy (.|\n)*do: pip install 'fastdraft\[web\]'"):
        QualityFilters(["c4", name])


@pytest.mark.parametrize("name", WORDS)
def test_filters_that_count_words(name):
    pytest.importorskip("spacy", reason="needs the extra `web`")
    quality_filters, (bad, reason) = QualityFilters([name]), DROPPED[name]
    assert quality_filters(Document.of(PROSE, "here")) == Document.of(PROSE, "here")
    assert quality_filters(Document.of(bad, "here")) == FilteredOut(f"quality: {name}, {reason}")
