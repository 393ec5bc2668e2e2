"""Text of users in a model card shows as it is, by a Markdown parser that FastDraft does not use."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fastdraft.exporters.markdown import code, plain, table
from fastdraft.system.terminal import one_line

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SIGNS = st.text(st.sampled_from("`*_[]()<>|~$&#;!\\\\:/\n\x1b\u202e ab1-+.\"'="), max_size=20)
HOSTILE = (
    *("<script>alert(1)</script>", "![x](http://evil/x.png)", "[a](javascript:x)", "<http://evil>", "a|b", "&lt;b&gt;"),
    *("**bold** _it_ ~~no~~", "`` ` ``", "a\n# heading", "\x1b[31mred", "[a]: http://evil", "\\", "a\\|b", "[1, 2]"),
)


def inline(markdown):
    """The text of inline Markdown, and the types of its parts that are more than text."""
    parts = PARSER.parseInline(markdown)[0].children
    return "".join(part.content for part in parts), {part.type for part in parts} - {"text", "text_special"}


def cells(lines):
    """The text of each cell of a table, and the types of the parts of cells."""
    tokens = [token for token in PARSER.parse("\n".join(lines)) if token.type == "inline"]
    parts = {part.type for token in tokens for part in token.children}
    return ["".join(part.content for part in token.children) for token in tokens], parts - {"text", "text_special"}


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(SIGNS)
@example("".join(HOSTILE))
def test_text_shows_as_it_is(text):
    line = one_line(text)
    assert inline(f"a{plain(text)}a") == (f"a{line}a", set())
    assert inline(f"a {code(text)} a") == (f"a {line or ' '} a", {"code_inline"})
    assert cells(table(["name", "x"], [[f"a{text}a", "7"]])) == (["name", "x", f"a{line}a", "7"], set())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_shows_as_it_is(text):
    test_text_shows_as_it_is.hypothesis.inner_test(text)


def test_ordinary_names_are_not_changed():
    for text in (
        "code, greedy",
        "hidden_size",
        "1.84x [1.71, 1.99]",
        "Qwen/Qwen2.5-0.5B (main)",
        "a & b #3",
        "T = 0.6",
    ):
        assert plain(text) == text
