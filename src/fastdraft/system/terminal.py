"""Text of users and models on a terminal: it is never read as markup, and control characters are shown as signs.

A name or a model's text may hold escape sequences, which would recolour a terminal, move its cursor or set its title.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Unicode categories of characters that are invisible or change the display: control and format characters (including
# writing direction), surrogates, private and unassigned characters, line and paragraph separators.
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


class Screen(Console):
    """A rich console without markup and emoji codes in strings, on which `printable` is applied to all text."""

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text. Its signs are in it before a table measures it."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable. Those with control codes are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def printable(text: str) -> str:
    """The text with a sign for each invisible character except line breaks and tabs."""
    return text if text.isprintable() else "".join(c if c in "\n\t" else visible_character(c) for c in text)


def one_line(text: str) -> str:
    """The text with a sign for each invisible character."""
    return text if text.isprintable() else "".join(map(visible_character, text))


def visible_character(character: str) -> str:
    """The character, or a sign for an invisible one: ␛ for escape, ⟨U+202E⟩ for a change of direction."""
    if unicodedata.category(character) not in INVISIBLE:
        return character
    number = ord(character)
    return chr(0x2400 + number) if number < 0x20 else f"⟨U+{number:04X}⟩"
