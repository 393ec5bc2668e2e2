"""pydantic's validation errors in plain words: the key, what was found, what was wanted. Its own words name types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from reprlib import repr as short_repr
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from fastdraft.system.errors import CardError

# Problems that are listed, and characters of a key or of a value that are shown.
MOST_PROBLEMS, MOST_CHARACTERS = 20, 100
WHOLE_NUMBER, TEXT = "a whole number", "text (in quotes where it looks like a number)"
# What was wanted, by pydantic's type of error. Its context fills the braces.
WANTED = {
    **dict.fromkeys(("string_type", "string_sub_type"), TEXT),
    "string_unicode": "text in UTF-8",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), WHOLE_NUMBER),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "greater_than": "more than {gt:,.15g}",
    "greater_than_equal": "{ge:,.15g} or more",
    "less_than": "less than {lt:,.15g}",
    "less_than_equal": "{le:,.15g} at most",
    **dict.fromkeys(("literal_error", "enum"), "{expected}"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "mapping_type"), "a mapping of keys to values"
    ),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), "a list"),
    "too_short": "at least one entry",
    "too_long": "at most {max_length} entries",
    "invalid_key": "text as a key",
    "none_required": "null",
    "json_invalid": "JSON",
}


Model = TypeVar("Model", bound=BaseModel)
# Numbers of files that are computed with: larger ones overflow.
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def read_json(path: Path, kind: type[Model], what: str, remedy: str) -> Model:
    """A model of pydantic from a JSON file. CardError, which names the problems, if it holds anything else."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror}\n  do: {remedy}") from error
    except ValidationError as error:
        raise CardError("\n  ".join([f"{path} is not {what}:", *explain(error), f"do: {remedy}"])) from error


def explain(error: ValidationError, problem: Callable[[ErrorDetails], str] | None = None) -> list[str]:
    """A line for each problem, such as `draft.layers: found -1, wanted more than 0`; after 20 lines only their number.

    problem: makes the line of one problem, by default this module's.
    """
    details = error.errors(include_url=False)
    lines = [(problem or explain_problem)(each) for each in details[:MOST_PROBLEMS]]
    return [*lines, *([f"and {len(details) - MOST_PROBLEMS} more"] if len(details) > MOST_PROBLEMS else [])]


def explain_problem(details: ErrorDetails, show: Callable[[object], str] = short_repr) -> str:
    """A line on one problem; `show` makes the text of the value that was found."""
    keys = ".".join(shortened(str(key)) for key in details["loc"] if key != "[key]")
    prefix = f"{keys}: " if keys else ""
    if details["type"] in ("missing", "extra_forbidden"):
        return prefix + ("missing" if details["type"] == "missing" else "no such key")
    if details["type"] in ("value_error", "assertion_error"):
        return prefix + details["msg"].partition(", ")[2]
    wanted = WANTED.get(details["type"], "another value").format_map(details.get("ctx", {}))
    return f"{prefix}found {shortened(show(details['input']))}, wanted {wanted}"


def shortened(text: str) -> str:
    """A text for one line of a message: control characters are escaped, and the end is cut off if it is long."""
    text = text[: MOST_CHARACTERS + 1]
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
