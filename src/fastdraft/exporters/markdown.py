"""Names and texts of users in Markdown: nothing in them is read as markup, as HTML or as a link."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from fastdraft.system.terminal import one_line

# Underscores within words mean nothing, nor do brackets without an address after them, nor & without a name after it.
SPECIAL = re.compile(r"[\\`*<>|~$]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=[#\w]+;)")


def plain(text: object) -> str:
    """Text on one line that shows as it is."""
    return SPECIAL.sub(r"\\\g<0>", one_line(str(text)))


def code(text: object) -> str:
    """Text on one line as code; its fence is longer than any in it."""
    line = one_line(str(text)) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.strip() and line.strip(" `") != line else ""  # a parser removes it from both ends
    return f"{fence}{pad}{line}{pad}{fence}"


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a table of plain text."""
    yield f"| {' | '.join(map(plain, names))} |"
    yield "|" + "---|" * len(names)
    yield from (f"| {' | '.join(map(plain, row))} |" for row in rows)
