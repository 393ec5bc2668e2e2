"""What a shell is told while a command is typed: functions from its beginning to the words that it can become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

Completer = Callable[[str], Iterable[str]]


def among(names: Iterable[str]) -> Completer:
    """A completer that knows these names."""

    def begun(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return begun


def recipes(incomplete: str) -> Iterator[str]:
    """YAML files, and the folders on the way to them."""
    for path in _paths(incomplete):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix in (".yaml", ".yml"):
            yield str(path)


def models(incomplete: str) -> Iterator[str]:
    """Folders, and `demo`, the target that comes with the package."""
    yield from among(["demo"])(incomplete)
    yield from (f"{path}/" for path in _paths(incomplete) if path.is_dir())


def _paths(incomplete: str) -> list[Path]:
    """What a path can become, one step further; hidden files only where their dot is there."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder + slash).iterdir())
    except OSError:
        return []
    return [path for path in found if path.name.startswith(name) and (name or not path.name.startswith("."))]


def overrides(incomplete: str) -> list[str]:
    """Keys of a recipe, dotted; behind `=` the values of a key that has names for them."""
    from fastdraft.config import Recipe

    dotted, equals, _ = incomplete.partition("=")
    words = (f"{dotted}={choice}" for choice in _choices(dotted)) if equals else _keys(Recipe, "")
    return [word for word in words if word.startswith(incomplete)]


def _keys(part: Any, at: str) -> Iterator[str]:
    """Every key of a part, those of its parts behind it."""
    from fastdraft.config.schema import fields_of

    for name, field in fields_of(part).items():
        yield f"{at}{name}="
        yield from _keys(field.annotation, f"{at}{name}.")


def _choices(dotted: str) -> list[str]:
    """The values of a key, where they are few and have names."""
    from fastdraft.config import INITS, INITS_FROM_MODEL
    from fastdraft.config.schema import kind_of

    if dotted == "draft.init":
        return [*INITS, *(f"{way}:" for way in INITS_FROM_MODEL)]
    kind = kind_of(tuple(dotted.split(".")))
    if kind is bool:
        return ["true", "false"]
    kinds = [kind, *get_args(kind)]
    return [str(choice) for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
