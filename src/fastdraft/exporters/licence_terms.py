"""What a target's licence demands of a draft: a table, read from the licences' texts. This is no legal advice.

A draft contains its target's tokenizer files, and is trained on the target's outputs. Terms about models that are made
with a model's materials or outputs therefore bind it, and its card must say so.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastdraft.exporters.markdown import code

NOTICE = "NOTICE"
# Licence files of a model, by the first letters of their names.
TEXTS = ("LICENSE", "LICENCE", "USE_POLICY")


class Terms(NamedTuple):
    """The terms of one licence.

    begins: the prefix that a draft's name must have. shows: the text that must be displayed with it.
    notice: the line of its NOTICE file. asks: other conditions for distributing the draft.
    """

    title: str
    address: str
    begins: str | None = None
    shows: str | None = None
    notice: str | None = None
    asks: tuple[str, ...] = ()


def _llama(version: str, maker: str = "", begins: str | None = "Llama", *asks: str) -> Terms:
    """Section 1.b of the Llama community licences; from Llama 3.1 on they differ only in their names."""
    name = f"{maker}Llama {version}"
    return Terms(
        title=f"{name} Community License",
        address=f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        begins=begins,
        shows=begins and f"Built with {maker}{begins}",
        notice=f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights "
        f"Reserved.",
        asks=asks,
    )


def _no_other(name: str) -> str:
    return f"forbids to improve any other large language model with it or its outputs, {name} and its derivatives apart"


# By the hub's name of the licence.
TERMS = {
    "llama2": _llama("2", "", None, _no_other("Llama 2")),
    "llama3": _llama("3", "Meta ", "Llama 3", _no_other("Meta Llama 3")),
    "llama3.1": _llama("3.1"),
    "llama3.2": _llama("3.2"),
    "llama3.3": _llama("3.3"),
    "llama4": _llama("4"),
    "gemma": Terms(
        title="Gemma Terms of Use",
        address="https://ai.google.dev/gemma/terms",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        asks=(
            "counts a model that was trained on Gemma's outputs to perform like it as a Model Derivative: the terms "
            "pass on to it",
            "wants the use restrictions of its section 3.2 in the agreement under which the draft is handed on",
        ),
    ),
    "qwen": Terms(
        title="Qwen License Agreement",
        address="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        shows="Built with Qwen",
    ),
    "qwen-research": Terms(
        title="Qwen Research License Agreement",
        address="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        shows="Built with Qwen",
        asks=("forbids commercial use",),
    ),
}
# Licences without conditions on models that are made with a model or its outputs.
FREE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "unlicense")
# The licences of TERMS that the hub accepts in a model card; the others are `other`, with a name and a link.
ON_THE_HUB = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma")


def terms_of(licence: str | None) -> Terms | None:
    """The terms of a licence; None if it has no conditions, or is not in the table."""
    return TERMS.get(_identifier(licence))


def metadata(licence: str | None) -> dict[str, Any]:
    """The licence fields of the model card's front matter; empty if the target's licence does not bind the draft."""
    name, terms = _identifier(licence), terms_of(licence)
    if terms is None:
        return {}
    if name in ON_THE_HUB:
        return {"license": name}
    return {"license": "other", "license_name": name, "license_link": terms.address}


def misnamed(licence: str | None, repo: str) -> str | None:
    """The licence's rule that the name of a repository breaks; None if it breaks none."""
    terms = terms_of(licence)
    if terms is None or terms.begins is None or _letters(repo.rpartition("/")[2]).startswith(_letters(terms.begins)):
        return None
    return f'the target is under the {terms.title}: the name of a draft of it must begin with "{terms.begins}"'


def in_a_line(licence: str | None) -> str:
    """The licence in one line, for a terminal."""
    if licence is None:
        return "target's licence: not known; target.licence can say it"
    terms = terms_of(licence)
    if terms is None:
        return f"target's licence: {licence}"
    rule = f'a draft\'s name must begin with "{terms.begins}"; ' if terms.begins else ""
    return f"target's licence: {licence}, which binds the draft: {rule}README.md says what it asks"


def accompany(folder: Path, licence: str | None, target: Path) -> None:
    """Write the NOTICE file that a licence demands, and copy the licence files of the target's folder."""
    terms = terms_of(licence)
    if terms is None:
        return
    for text in sorted(target.iterdir()):
        if text.is_file() and text.name.upper().startswith(TEXTS):
            shutil.copyfile(text, folder / text.name)
    if terms.notice is not None:
        (folder / NOTICE).write_text(terms.notice + "\n", encoding="utf-8")


def section(licence: str | None, files: Iterable[str]) -> Iterator[str]:
    """The licence section of the model card, line by line; `files` are the names of the files next to it."""
    yield "## Licence"
    yield ""
    terms = terms_of(licence)
    if licence is None:
        yield (
            "The target's licence is not known: neither the recipe (`target.licence`) nor the target's README.md names "
            "it. Read it before you hand this draft on: it may bind models that are made with the target."
        )
    elif terms is None and _identifier(licence) in FREE:
        yield f"The target is under {code(licence)}, which asks nothing of models that are made with it or its outputs."
    elif terms is None:
        yield f"The target is under {code(licence)}, which may bind this draft: read it before you hand the draft on."
    else:
        yield from _binding(terms, list(files))


def _binding(terms: Terms, files: list[str]) -> Iterator[str]:
    texts = ", ".join(code(name) for name in files if name.upper().startswith(TEXTS))
    if terms.shows:
        yield f"**{terms.shows}.**"
        yield ""
    yield (
        f"The target is under the [{terms.title}]({terms.address}), which binds this draft too: it was made with the "
        f"target's files and outputs. Whoever hands the draft on"
    )
    yield ""
    if terms.begins:
        yield f'- gives it a name that begins with "{terms.begins}"'
    if terms.shows:
        yield f'- shows "{terms.shows}" where people see it'
    yield f"- gives a copy of the licence with it: {texts or 'not here, because the target came without one: add it'}"
    if terms.notice:
        yield f"- keeps the file `{NOTICE}`: {terms.notice}"
    yield from (f"- must know that the licence {each}" for each in terms.asks)
    yield ""
    yield "This is no legal advice; what counts is the licence's text."


def _identifier(licence: str | None) -> str:
    """The hub's name of a licence, whatever its spelling; the name itself if the tables do not have it."""
    stated = (licence or "").strip().lower()
    return next((name for name in (*TERMS, *FREE) if _letters(name) == _letters(stated)), stated)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
