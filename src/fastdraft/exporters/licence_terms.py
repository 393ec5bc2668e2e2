"""The conditions that a target's licence sets for a draft: a table of some licences. This is no legal advice.

A draft contains its target's tokenizer files, and is trained on the target's outputs. Conditions on models that are
made with a model's materials or outputs therefore apply to it, and its card must state them.
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

    name_prefix: the prefix that a draft's name must have. display: the text that must be displayed with it.
    notice: the line of its NOTICE file. others: further conditions, as predicates of "the licence".
    """

    title: str
    address: str
    name_prefix: str | None = None
    display: str | None = None
    notice: str | None = None
    others: tuple[str, ...] = ()


def _llama(version: str, maker: str = "", name_prefix: str | None = "Llama", *others: str) -> Terms:
    """Section 1.b of the Llama community licences; from Llama 3.1 on they differ only in their names."""
    name = f"{maker}Llama {version}"
    return Terms(
        title=f"{name} Community License",
        address=f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        name_prefix=name_prefix,
        display=name_prefix and f"Built with {maker}{name_prefix}",
        notice=f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights "
        f"Reserved.",
        others=others,
    )


def _no_other(name: str) -> str:
    return f"forbids using it or its outputs to improve any large language model other than {name} and its derivatives"


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
        others=(
            "treats a model that was trained on Gemma's outputs to perform like Gemma as a Model Derivative, to which "
            "the terms apply",
            "requires that the agreement under which the draft is distributed contains the use restrictions of its "
            "section 3.2",
        ),
    ),
    "qwen": Terms(
        title="Qwen License Agreement",
        address="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        display="Built with Qwen",
    ),
    "qwen-research": Terms(
        title="Qwen Research License Agreement",
        address="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        display="Built with Qwen",
        others=("forbids commercial use",),
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
    if (
        terms is None
        or terms.name_prefix is None
        or _letters(repo.rpartition("/")[2]).startswith(_letters(terms.name_prefix))
    ):
        return None
    return f'the target is under the {terms.title}: the name of a draft of it must begin with "{terms.name_prefix}"'


def in_a_line(licence: str | None) -> str:
    """The licence in one line, for a terminal."""
    if licence is None:
        return "target's licence: not known; set target.licence if you know it"
    terms = terms_of(licence)
    if terms is None:
        return f"target's licence: {licence}"
    rule = f'a draft\'s name must begin with "{terms.name_prefix}"; ' if terms.name_prefix else ""
    return f"target's licence: {licence}, which applies to the draft: {rule}README.md lists its conditions"


def accompany(folder: Path, licence: str | None, target: Path) -> None:
    """Write the NOTICE file that a licence requires, and copy the licence files of the target's folder."""
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
            "it. Read it before you distribute this draft: it may apply to models that are made with the target."
        )
    elif terms is None and _identifier(licence) in FREE:
        yield (
            f"The target is under {code(licence)}, which sets no conditions on models that are made with it or its "
            f"outputs."
        )
    elif terms is None:
        yield f"The target is under {code(licence)}, which may apply to this draft: read it before you distribute it."
    else:
        yield from _binding(terms, list(files))


def _binding(terms: Terms, files: list[str]) -> Iterator[str]:
    texts = ", ".join(code(name) for name in files if name.upper().startswith(TEXTS))
    if terms.display:
        yield f"**{terms.display}.**"
        yield ""
    yield (
        f"The target is under the [{terms.title}]({terms.address}), which also applies to this draft: it was made "
        f"with the target's files and outputs. If you distribute the draft:"
    )
    yield ""
    if terms.name_prefix:
        yield f'- its name must begin with "{terms.name_prefix}"'
    if terms.display:
        yield f'- display "{terms.display}" where users see it'
    yield f"- include a copy of the licence: {texts or 'none is here, because the target came without one: add it'}"
    if terms.notice:
        yield f"- keep the file `{NOTICE}`: {terms.notice}"
    yield from (f"- note that the licence {each}" for each in terms.others)
    yield ""
    yield "This is no legal advice; the text of the licence is authoritative."


def _identifier(licence: str | None) -> str:
    """The hub's name of a licence, whatever its spelling; the name itself if the tables do not have it."""
    stated = (licence or "").strip().lower()
    return next((name for name in (*TERMS, *FREE) if _letters(name) == _letters(stated)), stated)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
