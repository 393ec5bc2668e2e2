"""Names and texts on a terminal are neither markup nor control sequences."""

import io
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastdraft.system.terminal import INVISIBLE, Screen, printable

PIECES = st.sampled_from(["[red]", "[/]", ":smile:", "\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\u202e", "\r", "\b"])


@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(st.lists(PIECES | st.text(max_size=5), max_size=4).map("".join))
def test_any_text_prints_as_it_is_without_control_characters(text):
    screen = Screen(width=300)
    screen.file = written = io.StringIO()
    table = Table(text, title=text)
    table.add_row(text)
    screen.print(Group(table, Text(text)))
    screen.print(text, soft_wrap=True)
    out = written.getvalue()
    assert not {character for character in out if unicodedata.category(character) in INVISIBLE} - {"\n", "\t"}
    words = printable(text).split()
    assert all(out.count(word) >= 4 for word in words)
