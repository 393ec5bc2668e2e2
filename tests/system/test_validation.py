"""JSON files of FastDraft: whatever they hold, a user reads FastDraft's words, the key, what was found and wanted."""

import json
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastdraft.system.errors import CardError
from fastdraft.system.validation import explain, read_json

FOREIGN = ("Input should", "should match", "should have", "pydantic", "Value error", "type=", "validation error")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    number: float
    short: Annotated[str, Field(min_length=2, max_length=3, pattern="^a")] = "aa"


class Everything(BaseModel):
    """A field of every type that cards and recipes have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    text: str
    whole: Annotated[int, Field(gt=0, le=7)] = 1
    part: Annotated[float, Field(ge=0, lt=1)] = 0.5
    flag: bool = False
    choice: Literal["one", "two"] = "one"
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    few: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)] = (1,)
    named: dict[str, Inner] = {}
    numbers: dict[int, float] = {}
    either: dict[str, float] | float | Literal["auto"] = "auto"
    pair: tuple[int, str] = (1, "")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x" * 500, "\x1b[31m", "aa", "auto", "one"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["number", "short", "1"]), inner, max_size=3)
    ),
    max_leaves=5,
)
CONTENT = st.dictionaries(st.sampled_from([*Everything.model_fields, "horns"]), JSON, max_size=4).map(json.dumps)
FEW = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FEW
@given(CONTENT.map(str.encode) | JSON.map(json.dumps).map(str.encode) | st.binary(max_size=30))
def test_any_content_is_a_model_or_an_error_in_plain_words(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    message = None
    try:
        read_json(tmp_path / "a.json", Everything, "everything", "write another")
    except CardError as error:
        message = str(error)
    if message is not None:
        assert "a.json is not everything:\n  " in message
        assert message.endswith("\n  do: write another")
        assert not [words for words in (*FOREIGN, "another value") if words in message], message
        assert len(message) < 5000
        assert message.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({}, "text: missing"),
        ({"text": "a", "horns": 2}, "horns: no such key"),
        ({"text": 5}, "text: found 5, wanted text"),
        ({"text": "a", "whole": 8}, "whole: found 8, wanted 7 at most"),
        ({"text": "a", "whole": 0.5}, "whole: found 0.5, wanted a whole number"),
        ({"text": "a", "choice": "x"}, "choice: found 'x', wanted 'one' or 'two'"),
        ({"text": "a", "inner": {"number": 1, "short": "b"}}, "inner.short: found 'b', wanted at least 2 characters"),
        ({"text": "a", "several": [{"number": []}]}, "several.0.number: found [], wanted a number"),
        ({"text": "a", "few": []}, "few: found [], wanted at least one entry"),
        ([], "found [], wanted a mapping of keys to values"),
    ],
)
def test_a_problem_names_its_key(tmp_path, content, line):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(CardError) as caught:
        read_json(tmp_path / "a.json", Everything, "everything", "write another")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "", "\0", '{"text": 1e999}', '{"text": "\\ud800"}']
)
def test_text_that_is_not_json(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CardError, match=r"a\.json is not everything:\n  .*wanted "):
        read_json(tmp_path / "a.json", Everything, "everything", "write another")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CardError, match="cannot be read: .*\n  do: write another"):
            read_json(path, Everything, "everything", "write another")


def test_many_problems_are_counted():
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({"text": "a"} | {f"key{i}": 0 for i in range(500)})
    lines = explain(caught.value)
    assert len(lines) == 21
    assert lines[-1] == "and 480 more"
