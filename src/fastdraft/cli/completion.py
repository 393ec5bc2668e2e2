"""Shell completion: each function takes the beginning of a word and returns the words that it can become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fastdraft.models.named_pairs import NAMES

Completer = Callable[[str], Iterable[str]]


def among(names: Iterable[str]) -> Completer:
    """A completer for a fixed list of names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def recipes(incomplete: str) -> Iterator[str]:
    """YAML files, and folders that may contain some."""
    for path in _paths(incomplete):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix in (".yaml", ".yml"):
            yield str(path)


def models(incomplete: str) -> Iterator[str]:
    """Names of pairs, folders and GGUF files."""
    yield from among(NAMES)(incomplete)
    for path in _paths(incomplete):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix == ".gguf":
            yield str(path)


def _paths(incomplete: str) -> list[Path]:
    """Files and folders that start with `incomplete`. Hidden ones only if their leading dot is typed."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        paths = sorted(Path(folder + slash).iterdir())
    except OSError:
        return []
    return [path for path in paths if path.name.startswith(name) and (name or not path.name.startswith("."))]


def overrides(incomplete: str) -> list[str]:
    """Dotted recipe keys; after `=` the values of a key that has a fixed set of them."""
    from fastdraft.config import Recipe

    key, equals, _ = incomplete.partition("=")
    words = (f"{key}={value}" for value in _values(key)) if equals else _keys(Recipe, "")
    return [word for word in words if word.startswith(incomplete)]


def _keys(part: Any, prefix: str) -> Iterator[str]:
    """Every key of a recipe part, each followed by the keys nested in it."""
    from fastdraft.config.schema import fields_of

    for name, field in fields_of(part).items():
        yield f"{prefix}{name}="
        yield from _keys(field.annotation, f"{prefix}{name}.")


def _values(key: str) -> list[str]:
    """The values of a key that has a fixed set of them, else none."""
    from fastdraft.config import INITS, INITS_FROM_MODEL
    from fastdraft.config.schema import type_at

    if key == "draft.init":
        return [*INITS, *(f"{init}:" for init in INITS_FROM_MODEL)]
    kind = type_at(tuple(key.split(".")))
    if kind is bool:
        return ["true", "false"]
    return [str(value) for each in (kind, *get_args(kind)) if get_origin(each) is Literal for value in get_args(each)]
