"""YAML plus `key=value` overrides make one Recipe that knows where each of its values came from.

What a key may hold is asked of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fastdraft.config import Recipe
from fastdraft.config.schema import Keys, fields_of, kind_of, meaning_of
from fastdraft.config.yaml_syntax import flow, parse
from fastdraft.system.errors import RecipeError

COMMAND_LINE, DEFAULT = "command line", "default"


# What pydantic says in terms of Python.
WANTED = {
    "string_type": "text (in quotes where it looks like a number)",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("model_type", "dict_type"), "a mapping of keys to values"),
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "invalid_key": "text as a key",
}


class Resolved(NamedTuple):
    """A recipe, and for every dotted leaf key the name of its file, `command line` or `default`."""

    recipe: Recipe
    origins: dict[str, str]


def resolve(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """The recipe of a YAML file under `key=value` overrides, where the last wins; RecipeError lists every problem."""
    tree, commanded, problems = _mapping(path), [], []
    for override in overrides:
        keys, value = _override(override)
        if kind_of(keys) is None:
            problems.append(f"{_unknown(keys)} ({COMMAND_LINE})")
        else:
            commanded.append(keys)
            tree = _with(tree, keys, value)
    try:
        recipe = Recipe.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [_problem(details, commanded) for details in error.errors()]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        remedy = "do: correct these keys; `fastdraft recipe schema` lists all of them"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems, remedy]))
    return Resolved(recipe, {".".join(keys): _origin(keys, commanded, tree, path) for keys, _ in _leaves(recipe)})


def resolved_yaml(resolved: Resolved, derived: Mapping[str, object] | None = None) -> str:
    """The whole recipe as YAML that loads back as its equal; a comment says where each value came from.

    `derived` has, for a dotted key, what was made of it and why: a comment too, for the recipe itself leaves it open.
    """
    derived = derived or {}
    assert not (strangers := derived.keys() - resolved.origins.keys()), f"not keys of this recipe: {strangers}"
    lines: list[str] = []
    last: Keys = ()
    for keys, value in _leaves(resolved.recipe):
        for depth in range(1, len(keys)):
            if keys[:depth] != last[:depth]:
                lines.append(f"{'  ' * (depth - 1)}{flow(keys[depth - 1])}:")
        dotted, last = ".".join(keys), keys
        comment = f"derived: {derived[dotted]}" if dotted in derived else resolved.origins[dotted]
        lines.append(f"{'  ' * (len(keys) - 1)}{flow(keys[-1])}: {flow(value)}  # {' '.join(comment.split())}")
    return "\n".join(lines) + "\n"


def digest(part: BaseModel | None) -> str:
    """16 hex digits that stay the same as long as the part's values do, given or default."""
    values = part.model_dump(mode="json", by_alias=True) if part else None
    return str(xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode()))


# What the user wrote.


def _mapping(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(_missing(path)) from None
    except UnicodeDecodeError as error:
        found = f"{path}: byte {error.start} is not UTF-8, wanted a YAML file in UTF-8"
        raise RecipeError(f"{found}\n  do: save the file as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}, wanted a YAML file\n  do: give a file that can be read") from None
    tree = _parsed(text, str(path), "correct the file there")
    if not isinstance(tree, dict):
        found = f"found {flow(tree)}, wanted a mapping of keys to values"
        raise RecipeError(f"{path}: {found}\n  do: begin from `fastdraft recipe schema`, or from a file in recipes/")
    return tree


def _missing(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.y*ml"))
    near = get_close_matches(path.name, names) or names
    there = f"wanted one of those in {path.parent}: {', '.join(near)}" if near else f"{path.parent} has no YAML file"
    return f"{path}: no such file, {there}\n  do: give the path of a recipe"


def _parsed(text: str, where: str, remedy: str) -> Any:
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{where}{line}: {error.problem}, wanted YAML\n  do: {remedy}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}, wanted YAML\n  do: {remedy}") from None


def _override(override: str) -> tuple[Keys, Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        found = f"{COMMAND_LINE}: found `{override}`, wanted key=value with dots between the names of parts"
        raise RecipeError(f"{found}\n  do: write it like pretrain.train_tokens=5e5")
    return keys, _parsed(text, f"{COMMAND_LINE}, `{override}`", f"put the value into quotes: {dotted}='\"...\"'")


def _with(tree: Any, keys: Keys, value: Any) -> Any:
    """A copy with one value at its place (parts that share a YAML anchor are one object, which must not change)."""
    if not keys:
        return value
    part = tree if isinstance(tree, dict) else {}
    return {**part, keys[0]: _with(part.get(keys[0]), keys[1:], value)}


# What is said of it.


def _leaves(part: BaseModel) -> Iterator[tuple[Keys, Any]]:
    """Every value with its keys; a mapping whose keys are not names is one value."""

    def walk(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            for key, inner in value.items():
                yield from walk(inner, (*keys, key))
        else:
            yield keys, value

    return walk(part.model_dump(by_alias=True), ())


def _origin(keys: Keys, commanded: list[Keys], tree: Any, path: Path) -> str:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return DEFAULT
        tree = tree[key]
    return COMMAND_LINE if any(keys[: len(c)] == c for c in commanded) else path.name


def _unknown(keys: Keys) -> str:
    known = next(depth for depth in range(len(keys)) if kind_of(keys[: depth + 1]) is None)
    part, there = ".".join(keys[:known]), list(fields_of(kind_of(keys[:known])))
    if not there:
        return f"{'.'.join(keys)}: no such key, {part} is set as a whole"
    near = get_close_matches(keys[known], there, 1)
    wanted = f"the nearest is {'.'.join((*keys[:known], *near))}" if near else f"wanted one of {', '.join(there)}"
    return f"{'.'.join(keys)}: no such key{f' in {part}' if part else ''}, {wanted}"


def _problem(details: ErrorDetails, commanded: list[Keys]) -> str:
    keys = tuple(str(key) for key in details["loc"] if key != "[key]")
    dotted, kind = ".".join(keys) or "recipe", details["type"]
    where = f" ({COMMAND_LINE})" if any(c[: len(keys)] == keys[: len(c)] for c in commanded) else ""
    if kind == "extra_forbidden":
        return _unknown(keys) + where
    if kind == "missing":
        return f"{dotted}: missing, wanted: {meaning_of(fields_of(kind_of(keys[:-1]))[keys[-1]])}"
    if kind == "value_error":
        return f"{dotted}: {details['msg'].removeprefix('Value error, ')}"
    wanted = WANTED.get(kind, details["msg"].removeprefix("Input should be "))
    found = flow(details["input"])
    return f"{dotted}: found {found if len(found) < 100 else found[:100] + ' ...'}, wanted {wanted}{where}"
