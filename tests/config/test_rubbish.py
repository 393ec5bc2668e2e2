"""Any bytes as a recipe, and any value at any key: a recipe or a RecipeError, in bounded time and memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdraft.config.resolve import MAX_BYTES, Resolved, resolve, resolved_yaml
from fastdraft.config.schema import schema_json
from fastdraft.system.errors import RecipeError

RECIPE: dict[str, Any] = {
    "name": "small",
    "target": {"path": "demo"},
    "draft": {},
    "corpus": {"code": {"source": "text"}},
    "pretrain": {"mix": {"code": 1.0}, "train_tokens": 1000},
    "synthesize": {"mix": {"code": 1.0}, "prompts": 10},
    "align": {"mix": {"synthetic": 1.0}, "train_tokens": 1000},
    "evaluate": {"tasks": ["code"]},
}
FEW = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# pydantic's own words, and its site.
FOREIGN = ("Input should", "should match", "should have", "pydantic", "Value error", "type=", "Traceback")


def read(tmp_path: Path, content: bytes, *overrides: str) -> Resolved | None:
    """The recipe; None after a RecipeError, whose message is checked."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    try:
        resolved = resolve(path, overrides)
    except RecipeError as error:
        message = str(error)
        assert "\n  do: " in message
        assert len(message) < 20_000
        assert not [words for words in FOREIGN if words in message], message
        message.encode("utf-8")
        return None
    path.write_text(resolved_yaml(resolved), encoding="utf-8")
    assert resolve(path).recipe == resolved.recipe
    return resolved


def _keys(schema: dict[str, Any], part: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of the schema, with `code` as the name of a part."""
    part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    inner = [*part.get("anyOf", ()), *part.get("patternProperties", {}).values()]
    named = ("code",) if "patternProperties" in part else ()
    found = [keys for each in inner for keys in _keys(schema, each, (*prefix, *named))]
    for key, each in part.get("properties", {}).items():
        found += [(*prefix, key), *_keys(schema, each, (*prefix, key))]
    return found


SCHEMA = schema_json()
KEYS = _keys(SCHEMA, SCHEMA)
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "../../victim", "\0", "\ud800", "\x1b[31m", "</script>", "x" * 2000, "1e999", ".nan", "*", "~"]
    ),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 10**18, 10**30, 2**63, -(2**64), 1e308, 1e-308])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def test_all_keys_are_found():
    assert len(KEYS) > 150
    assert ("synthesize", "prompt_sets", "code", "path") in KEYS


@FEW
@given(st.sampled_from(KEYS), VALUES, st.booleans())
def test_any_value_at_any_key(tmp_path, keys, value, on_the_command_line):
    text = json.dumps(value)  # JSON is YAML, but for surrogates, which it escapes
    if on_the_command_line:
        read(tmp_path, json.dumps(RECIPE).encode(), f"{'.'.join(keys)}={text}")
        return
    tree = json.loads(json.dumps(RECIPE))
    part = tree
    for key in keys[:-1]:
        part = part.setdefault(key, {})
        if not isinstance(part, dict):
            return
    part[keys[-1]] = value
    read(tmp_path, json.dumps(tree).encode())


@FEW
@given(st.lists(st.tuples(TEXT, TEXT), max_size=3), st.lists(TEXT, max_size=3))
def test_any_text_as_an_override(tmp_path, pairs, words):
    overrides = [*(f"{key}={value}" for key, value in pairs), *words]
    read(tmp_path, json.dumps(RECIPE).encode(), *overrides)


PIECES = st.sampled_from(
    [
        b"name: a\n",
        b"- ",
        b"? ",
        b": ",
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!binary ",
        b"!!python/object:os.system ",
        b"[",
        b"{",
    ]
    + [
        b"]",
        b"}",
        b"\n",
        b"  ",
        b"#",
        b"'",
        b'"',
        b"|\n",
        b"--- ",
        b"...",
        b"%YAML 9\n",
        b"\t",
        b"0x",
        b"1:1:1",
        b".inf",
    ]
    + [b"2026-01-01", b"=", b"\\uD800", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"target: {path: demo}\n", b"draft: {}\n"]
)


@FEW
@given(st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=60))
def test_any_bytes_as_a_recipe(tmp_path, content):
    read(tmp_path, content)


def bomb(levels: int, kind: str) -> str:
    """Nine aliases of nine aliases of ...: 9^levels values in some hundred bytes."""
    start = {"list": "&a0 [1]", "merge": "&a0 {k: 1}"}[kind]
    row = {"list": "&a{} [{}]", "merge": "&a{} {{<<: [{}], k{}: 1}}"}[kind]
    rows = [start, *(row.format(i, ", ".join([f"*a{i - 1}"] * 9), i) for i in range(1, levels))]
    return "corpus:\n" + "".join(f"  x{i}: {row}\n" for i, row in enumerate(rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[" * 20_000, "more than 32 levels", id="lists"),
        pytest.param("{a: " * 20_000, "more than 32 levels", id="mappings"),
        pytest.param("\n".join("  " * i + "a:" for i in range(400)), "more than 32 levels", id="blocks"),
        pytest.param("- " * 20_000, "more than 32 levels", id="dashes"),
        pytest.param(bomb(30, "list"), "values", id="aliases of lists"),
        pytest.param(bomb(30, "merge"), "values", id="merged keys"),
        pytest.param("corpus: &a {b: *a}", "alias of a value that contains it", id="an alias within itself"),
        pytest.param("corpus: [" + "1, " * 10_001 + "]", "values", id="a long list"),
        pytest.param("seed: " + "9" * 5000, "a number of more than 40 characters", id="digits"),
        pytest.param("seed: 0x" + "f" * 5000, "a number of more than 40 characters", id="hexadecimal digits"),
        pytest.param("seed: " + "1:" * 5000 + "1.5", "a number of more than 40 characters", id="base 60"),
        pytest.param('name: "a\\0b"', "a character that is not text", id="nul"),
        pytest.param('name: "a\\uD800b"', "a character that is not text", id="surrogate"),
        pytest.param("name: !!binary aGk=", "the tag tag:yaml.org,2002:binary", id="tag"),
        pytest.param("seed: !!int x", "the tag tag:yaml.org,2002:int", id="tag of a number"),
        pytest.param("name: !!timestamp x", "the tag tag:yaml.org,2002:timestamp", id="tag of a date"),
        pytest.param("".join(f"k{i}: 1\n" for i in range(2000)), "and 19", id="unknown keys"),
        pytest.param(f"{'k' * 1000}: 1\n", "k ...: no such key", id="a long key"),
        pytest.param("a: b\n" * (MAX_BYTES // 5 + 1), "bytes, wanted a recipe", id="a large file"),
    ],
)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    tracemalloc.start()
    try:
        with pytest.raises(RecipeError, match=message):
            resolve(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_recipe_without_an_end_is_refused():
    with pytest.raises(RecipeError, match=r"/dev/zero: found more than .* bytes, wanted a recipe\n  do: "):
        resolve(Path("/dev/zero"))
