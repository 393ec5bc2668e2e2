"""datatrove's filters by name; those that count words need spaCy."""

import pytest

from fastdraft.config import SourcePart
from fastdraft.data.document import Document
from fastdraft.data.web_filters import FILTERS, Dropped, Sieve, rewriting
from fastdraft.system.errors import MissingExtra

WORDS = [name for name, row in FILTERS.items() if row.words]
PROSE = """The old fox lived by the river, and she had never seen the sea.
One morning in spring a heron told her that it was only a day's walk from there, beyond the hills with the white stones.
She did not believe him, for herons are known to say more than they have looked at.
But the thought of so much water stayed with her until the leaves fell.
Then she packed two mice into a leaf, said good-bye to her neighbour the badger, and went where the sun goes down.
On the second evening something began to roar behind the dunes, and the wind tasted of salt.
It was larger than anything she could have made up; it came and went, and nobody seemed to mind.
"""
# What each filter refuses, and what it says of it.
REFUSED = {
    "gopher_quality": ("too short", "gopher_short_doc"),
    "gopher_repetition": ("the same line again\n" * 40, "dup_line_frac"),
    "fineweb": ("\n".join(f"entry {i}" for i in range(60)), "line_punct_ratio"),
}


def test_every_filter_of_the_recipe_has_a_row():
    choices = SourcePart.model_fields["quality"].annotation.__args__[0].__args__
    assert set(FILTERS) == set(choices)
    assert set(REFUSED) == set(WORDS)


def test_without_filters_a_document_stays_as_it_is():
    document = Document.of(" x ", "here")
    assert Sieve([])(document) is document


def test_filters_that_rewrite_are_asked_twice():
    assert rewriting(list(FILTERS)) == ["c4"]


@pytest.mark.parametrize("name", WORDS)
def test_a_filter_of_words_without_spacy_reports_what_to_install(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(MissingExtra, match=r"spacy cannot be imported(.|\n)*do: pip install 'fastdraft\[web\]'"):
        Sieve(["c4", name])


@pytest.mark.parametrize("name", WORDS)
def test_filters_of_words(name):
    pytest.importorskip("spacy", reason="needs the extra `web`")
    sieve, (bad, reason) = Sieve([name]), REFUSED[name]
    assert sieve(Document.of(PROSE, "here")) == Document.of(PROSE, "here")
    assert sieve(Document.of(bad, "here")) == Dropped(f"quality: {name}, {reason}")
