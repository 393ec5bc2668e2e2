"""What the schema says of a key: its type and limits in plain words, and the reference page made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fastdraft.config import Recipe
from fastdraft.config.yaml_syntax import flow

Keys = tuple[str, ...]

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
MARKDOWN_HEADER = """# Every key of a recipe

Printed from the schema, src/fastdraft/recipe/: `fastdraft recipe schema --markdown > docs/recipe.md`.

A recipe is a YAML file; `key=value` on the command line changes it, with dots between the names of parts:
`pretrain.train_tokens=5e5`, `corpus.code.path=src`, `align=null`. An unknown key stops the run.
"""


def schema_json() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def schema_markdown() -> str:
    """docs/recipe.md: every key with type, default and meaning, one table for each kind of part."""
    places: dict[type[BaseModel], list[str]] = {Recipe: []}
    _collect(Recipe, "", places)
    return MARKDOWN_HEADER + "".join(_table(part, at) for part, at in places.items())


def _collect(part: Any, at: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Where each kind of part stands in a recipe, those inside parts included."""
    for name, field in fields_of(part).items():
        for inner, place in ((field.annotation, name), (_inside(field.annotation, "NAME"), f"{name}.NAME")):
            if fields_of(inner):
                places.setdefault(_bare(inner), []).append(at + place)
                _collect(inner, f"{at}{place}.", places)


def _bare(kind: Any) -> Any:
    """A type without its `| None`."""
    return next(k for k in get_args(kind) if k is not NoneType) if get_origin(kind) in (Union, UnionType) else kind


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The keys of a part as users write them; none where `kind` is not a part."""
    part = _bare(kind)
    if not (isinstance(part, type) and issubclass(part, BaseModel)):
        return {}
    return {field.alias or name: field for name, field in part.model_fields.items()}


def _inside(kind: Any, key: str) -> Any:
    """The type at a key of a part or of a mapping from names; None where there is no such key."""
    if key in (fields := fields_of(kind)):
        return fields[key].annotation
    return get_args(kind)[1] if get_origin(kind) is dict and get_args(kind)[0] is str else None


def kind_of(keys: Keys) -> Any:
    """The type at a dotted key of a recipe; None where there is none."""
    return reduce(_inside, keys, Recipe)


def meaning_of(field: FieldInfo) -> str:
    """What a key is for."""
    return field.description or str(_bare(field.annotation).__doc__)


def _table(part: type[BaseModel], places: list[str]) -> str:
    heading = ", ".join(f"`{place}`" for place in places) or "The recipe"
    rows = [
        f"| `{key}` | {_words(field.annotation, field.metadata)} | {_default(field)} | {meaning_of(field)} |"
        for key, field in fields_of(part).items()
    ]
    head = "| key | type | default | meaning |\n|---|---|---|---|"
    return "\n".join([f"\n## {heading}\n\n{part.__doc__}\n\n{head}", *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else "its defaults" if isinstance(value, BaseModel) else f"`{flow(value)}`"


def _words(kind: Any, limits: Sequence[Any] = ()) -> str:
    """A type in plain words, with the limits of its values."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return _words(_bare(kind), limits)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping of {_words(inner[0])} to {_words(inner[1])}"
    signs = [f"{SIGNS[name]} {getattr(limit, name)}" for limit in limits for name in SIGNS if hasattr(limit, name)]
    return " ".join(["part" if fields_of(kind) else WORDS[kind], " and ".join(signs)]).strip()
