"""The conditions of a target's licence are in the draft's card, and its naming rule is enforced."""

import pytest

from fastdraft.exporters.licence_terms import FREE, ON_THE_HUB, TERMS, in_a_line, metadata, misnamed, section, terms_of

NAMED = [name for name, terms in TERMS.items() if terms.name_prefix]


def said(licence: str | None, *files: str) -> str:
    return "\n".join(section(licence, files))


def test_every_llama_but_the_second_has_the_naming_rule():
    assert [name for name in TERMS if name.startswith("llama")] == ["llama2", *NAMED]
    assert len(NAMED) == 5
    for name in NAMED:
        version = name.removeprefix("llama")
        assert f"Llama {version} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved." in said(name)
    assert '"Llama"' in said("llama3.1")
    assert '"Llama 3"' in said("llama3")
    assert "begin with" not in said("llama2")
    assert "to improve any large language model other than Llama 2" in said("llama2")


@pytest.mark.parametrize(
    ("licence", "repo", "allowed"),
    [
        ("llama3.1", "me/Llama-3.1-draft", True),
        ("llama3.1", "me/llama_draft", True),
        ("llama3.1", "llama/my-draft", False),
        ("llama3.1", "me/draft-of-Llama", False),
        ("llama3.1", "Llama-draft", True),
        ("Llama 3.1", "me/draft", False),
        ("llama3", "me/Llama-3-draft", True),
        ("llama3", "me/Llama-draft", False),
        ("llama2", "me/draft", True),
        ("gemma", "me/draft", True),
        ("apache-2.0", "me/draft", True),
        ("some-terms", "me/draft", True),
        (None, "me/draft", True),
    ],
)
def test_a_name_begins_as_the_licence_requires(licence, repo, allowed):
    assert (misnamed(licence, repo) is None) == allowed


def test_a_licence_is_known_however_it_is_written():
    assert all(terms_of(said) is TERMS["llama3.1"] for said in ("llama3.1", "Llama-3.1", "LLAMA 3.1", "llama_3.1"))
    assert not any(map(terms_of, ("llama3.10", "llama31", "", None, *FREE)))


@pytest.mark.parametrize("licence", TERMS)
def test_what_binds_a_draft_is_its_cards_licence_and_is_reported(licence):
    terms, text = TERMS[licence], said(licence)
    expected = metadata(licence)
    assert expected["license"] == (licence if licence in ON_THE_HUB else "other")
    assert licence in expected.values()
    for part in (terms.title, terms.address, terms.display, terms.notice, *terms.others):
        assert part is None or part in text
    assert "the target came without one: add it" in text
    assert "`LICENSE.txt`" in said(licence, "LICENSE.txt", "model.gguf")
    assert "applies to the draft" in in_a_line(licence)


def test_terms_of_gemma_pass_on():
    assert "Model Derivative, to which the terms apply" in said("gemma")
    assert "ai.google.dev/gemma/terms" in said("gemma")


@pytest.mark.parametrize("licence", FREE)
def test_a_free_licence_asks_nothing(licence):
    assert f"`{licence}`, which sets no conditions" in said(licence)
    assert metadata(licence) == {}


def test_what_is_not_known_is_reported():
    assert "licence is not known: neither the recipe (`target.licence`) nor" in said(None)
    assert "`some-terms`, which may apply to this draft" in said("some-terms")
    assert metadata(None) == metadata("some-terms") == {}
    assert "not known" in in_a_line(None)
