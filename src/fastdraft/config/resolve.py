"""Resolve a YAML file and `key=value` overrides into one Recipe, and record where each value came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fastdraft.config import Recipe
from fastdraft.config.schema import Keys, description_of, fields_of, type_at
from fastdraft.config.yaml_syntax import flow, parse
from fastdraft.system.errors import RecipeError
from fastdraft.system.validation import explain, explain_problem, shortened

COMMAND_LINE, DEFAULT = "command line", "default"

# The largest shipped recipe has 5 KB. PyYAML reads some 100 KB in a second.
MAX_BYTES = 2**18


class Resolved(NamedTuple):
    """A recipe and the origin of each dotted leaf key: the file's name, `command line` or `default`."""

    recipe: Recipe
    origins: dict[str, str]


def resolve(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """The recipe of a YAML file with overrides applied in order. RecipeError lists every problem at once."""
    tree = _load(path)
    overridden: list[Keys] = []
    problems: list[str] = []
    for override in overrides:
        keys, value = _parse_override(override)
        if type_at(keys) is None:
            problems.append(f"{_unknown_key(keys)} ({COMMAND_LINE})")
        else:
            overridden.append(keys)
            tree = _replaced(tree, keys, value)
    try:
        recipe = Recipe.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += explain(error, partial(_problem, overridden=overridden))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        remedy = "do: correct these keys; `fastdraft recipe schema` lists all of them"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems, remedy]))
    return Resolved(recipe, {".".join(keys): _origin(keys, overridden, tree, path) for keys, _ in _leaves(recipe)})


def resolved_yaml(resolved: Resolved, derived: Mapping[str, object] | None = None) -> str:
    """The whole recipe as YAML that loads back to an equal recipe. A comment on each line gives the value's origin.

    derived: by dotted key, the value that FastDraft derived for a key that the recipe leaves open, and why. It goes
        into the comment.
    """
    derived = derived or {}
    assert not (unknown := derived.keys() - resolved.origins.keys()), f"not keys of this recipe: {unknown}"
    lines: list[str] = []
    last: Keys = ()
    for keys, value in _leaves(resolved.recipe):
        # A mapping that contains this key and did not contain the one before gets a line.
        for depth in range(1, len(keys)):
            if keys[:depth] != last[:depth]:
                lines.append(f"{'  ' * (depth - 1)}{flow(keys[depth - 1])}:")
        dotted, last = ".".join(keys), keys
        comment = f"derived: {derived[dotted]}" if dotted in derived else resolved.origins[dotted]
        lines.append(f"{'  ' * (len(keys) - 1)}{flow(keys[-1])}: {flow(value)}  # {' '.join(comment.split())}")
    return "\n".join(lines) + "\n"


def digest(part: BaseModel | None) -> str:
    """16 hex digits of a hash over all values of the part, defaults included."""
    values = part.model_dump(mode="json", by_alias=True) if part else None
    return str(xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode()))


# Reading the file and the overrides.


def _load(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        names = sorted(p.name for p in path.parent.glob("*.y*ml"))
        near = ", ".join(get_close_matches(path.name, names) or names)
        wanted = f"wanted one of those in {path.parent}: {near}" if near else f"{path.parent} has no YAML file"
        raise RecipeError(f"{path}: no such file, {wanted}\n  do: give the path of a recipe") from None
    except UnicodeDecodeError as error:
        found = f"{path}: byte {error.start} is not UTF-8, wanted a YAML file in UTF-8"
        raise RecipeError(f"{found}\n  do: save the file as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}, wanted a YAML file\n  do: give a readable file") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: found more than {MAX_BYTES:,} bytes, wanted a recipe\n  do: give another file")
    tree = _parse(text, str(path), "correct the file there")
    if not isinstance(tree, dict):
        found = f"found {shortened(flow(tree))}, wanted a mapping of keys to values"
        raise RecipeError(f"{path}: {found}\n  do: start from `fastdraft recipe schema`, or from a file in recipes/")
    return tree


def _parse(text: str, where: str, remedy: str) -> Any:
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{where}{line}: {shortened(str(error.problem))}, wanted YAML\n  do: {remedy}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where}: {shortened(' '.join(str(error).split()))}, wanted YAML\n  do: {remedy}") from None


def _parse_override(override: str) -> tuple[Keys, Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        found = f"{COMMAND_LINE}: found `{shortened(override)}`, wanted key=value with a dotted key"
        raise RecipeError(f"{found}\n  do: write it like pretrain.train_tokens=5e5")
    return keys, _parse(
        text, f"{COMMAND_LINE}, `{shortened(override)}`", f"put the value into quotes: {shortened(dotted)}='\"...\"'"
    )


def _replaced(tree: Any, keys: Keys, value: Any) -> Any:
    """A copy of the tree with one value replaced. It must be a copy: parts that share a YAML anchor are one object."""
    if not keys:
        return value
    part = tree if isinstance(tree, dict) else {}
    return {**part, keys[0]: _replaced(part.get(keys[0]), keys[1:], value)}


# Origins and error messages.


def _leaves(recipe: Recipe) -> Iterator[tuple[Keys, Any]]:
    """Every value with its keys. A mapping whose keys are not text, such as `temperatures`, counts as one value."""

    def walk(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            for key, inner in value.items():
                yield from walk(inner, (*keys, key))
        else:
            yield keys, value

    return walk(recipe.model_dump(by_alias=True), ())


def _origin(keys: Keys, overridden: list[Keys], tree: Any, path: Path) -> str:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return DEFAULT
        tree = tree[key]
    return COMMAND_LINE if any(keys[: len(prefix)] == prefix for prefix in overridden) else path.name


def _unknown_key(keys: Keys) -> str:
    depth = next(depth for depth in range(len(keys)) if type_at(keys[: depth + 1]) is None)
    part, known = ".".join(keys[:depth]), list(fields_of(type_at(keys[:depth])))
    dotted = ".".join(map(shortened, keys))
    if not known:
        return f"{dotted}: no such key, {part} is set as a whole"
    near = get_close_matches(keys[depth], known, 1)
    wanted = f"the nearest is {'.'.join((*keys[:depth], *near))}" if near else f"wanted one of {', '.join(known)}"
    return f"{dotted}: no such key{f' in {part}' if part else ''}, {wanted}"


def _problem(details: ErrorDetails, overridden: list[Keys]) -> str:
    """One line on one error of pydantic."""
    keys = tuple(str(key) for key in details["loc"] if key != "[key]")
    where = f" ({COMMAND_LINE})" if any(o[: len(keys)] == keys[: len(o)] for o in overridden) else ""
    if details["type"] == "extra_forbidden":
        return _unknown_key(keys) + where
    if details["type"] == "missing":
        return f"{'.'.join(keys)}: missing, wanted: {description_of(fields_of(type_at(keys[:-1]))[keys[-1]])}"
    if details["type"] == "value_error" and not keys:
        return f"recipe: {explain_problem(details)}"
    return explain_problem(details, flow) + ("" if details["type"] == "value_error" else where)
