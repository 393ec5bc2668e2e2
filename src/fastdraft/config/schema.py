"""Look up recipe keys in the schema, and print the reference page docs/recipe.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fastdraft.config import Recipe
from fastdraft.config.part import Name
from fastdraft.config.yaml_syntax import flow

Keys = tuple[str, ...]

TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
LIMIT_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
MARKDOWN_HEADER = """# Every key of a recipe

Generated from the schema in src/fastdraft/config/ by `fastdraft recipe schema --markdown > docs/recipe.md`.

A recipe is a YAML file. `key=value` on the command line overrides a key, with dots between the names of parts:
`pretrain.train_tokens=5e5`, `corpus.code.path=src`, `align=null`. An unknown key is an error.
"""


def schema_json() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def schema_markdown() -> str:
    """The text of docs/recipe.md: one table for each class of parts, with type, default and description of its keys."""
    places: dict[type[BaseModel], list[str]] = {Recipe: []}
    _collect(Recipe, "", places)
    return MARKDOWN_HEADER + "".join(_table(part, keys) for part, keys in places.items())


def _collect(part: Any, prefix: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Add to `places` the dotted keys of each class of parts below `part`."""
    for name, field in fields_of(part).items():
        for inner, key in ((field.annotation, name), (_inner_type(field.annotation, "NAME"), f"{name}.NAME")):
            if fields_of(inner):
                places.setdefault(_without_none(inner), []).append(prefix + key)
                _collect(inner, f"{prefix}{key}.", places)


def _without_none(kind: Any) -> Any:
    """`X` for the type `X | None`."""
    return next(k for k in get_args(kind) if k is not NoneType) if get_origin(kind) in (Union, UnionType) else kind


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a part by the keys that users write; {} if the type is not a part."""
    part = _without_none(kind)
    if not (isinstance(part, type) and issubclass(part, BaseModel)):
        return {}
    return {field.alias or name: field for name, field in part.model_fields.items()}


def _inner_type(kind: Any, key: str) -> Any:
    """The type at a key of a part, or of a mapping with text keys; None if there is no such key."""
    if key in (fields := fields_of(kind)):
        return fields[key].annotation
    if get_origin(kind) is not dict:
        return None
    key_type, inner = get_args(kind)
    return inner if key_type in (str, Name) else None


def type_at(keys: Keys) -> Any:
    """The type at a dotted key of a recipe; None if there is no such key."""
    return reduce(_inner_type, keys, Recipe)


def description_of(field: FieldInfo) -> str:
    """The field's description, or the docstring of its part."""
    return field.description or str(_without_none(field.annotation).__doc__)


def _table(part: type[BaseModel], keys: list[str]) -> str:
    heading = ", ".join(f"`{key}`" for key in keys) or "The recipe"
    rows = [
        f"| `{key}` | {_type_text(field.annotation, field.metadata)} | {_default(field)} | {description_of(field)} |"
        for key, field in fields_of(part).items()
    ]
    head = "| key | type | default | description |\n|---|---|---|---|"
    return "\n".join([f"\n## {heading}\n\n{part.__doc__}\n\n{head}", *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else "its defaults" if isinstance(value, BaseModel) else f"`{flow(value)}`"


def _type_text(kind: Any, limits: Sequence[Any] = ()) -> str:
    """A type in plain words, with the limits of its values."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind == Name:
        return "name"
    if origin is Annotated:
        own = [limit for data in inner[1:] for limit in getattr(data, "metadata", (data,))]
        return _type_text(inner[0], [*own, *limits])
    if origin in (Union, UnionType):
        return _type_text(_without_none(kind), limits)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        return f"list of {_type_text(inner[0])}"
    if origin is dict:
        return f"mapping of {_type_text(inner[0])} to {_type_text(inner[1])}"
    signs = [
        f"{sign} {getattr(limit, name):,.15g}"
        for limit in limits
        for name, sign in LIMIT_SIGNS.items()
        if hasattr(limit, name)
    ]
    return " ".join(["part" if fields_of(kind) else TYPE_NAMES[kind], " and ".join(signs)]).strip()
