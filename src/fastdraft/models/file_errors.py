"""The boundary to a model's files: whatever a library raises about one of them becomes a TargetError."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdraft.system.errors import FastDraftError, TargetError

# The largest is the index of a model with a thousand experts: some tens of MB. A config.json has some kB.
MOST_JSON_BYTES = 1 << 27
# A config.json nests about five levels deep. From some hundred on, libraries fail that copy or print it recursively.
MOST_LEVELS = 32
MOST_CHARACTERS = 400
# What huggingface_hub writes before the error of a field of a configuration.
VALIDATION = re.compile(r"^(Class v|V)alidation error for \w+ '\w+': \w+: ")


@contextmanager
def errors_explained(found: str, do: str, wanted: str = "") -> Iterator[None]:
    """Raise a TargetError that says what was found, wanted and is to be done; errors of FastDraft pass unchanged.

    Libraries raise errors of every kind about rubbish. tokenizers panics in Rust: a PanicException is no Exception.
    """
    try:
        yield
    except (FastDraftError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        wanted = f"\n  wanted: {wanted}" if wanted else ""
        raise TargetError(f"{found}: {_reason(error)}{wanted}\n  do: {do}") from error


def read_json(file: Path, do: str = "check the file") -> dict[str, Any]:
    """The JSON object in a file; TargetError if it is anything else, too large or nested too deep."""
    with errors_explained(f"{file} cannot be read", do):
        if (size := file.stat().st_size) > MOST_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, wanted {MOST_JSON_BYTES:,} at most")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        level: list[Any] = [values]
        for _ in range(MOST_LEVELS):
            level = [
                child
                for value in level
                for child in (value.values() if isinstance(value, dict) else value)
                if isinstance(child, dict | list)
            ]
        if level:
            raise ValueError(f"it nests deeper than {MOST_LEVELS} levels")
        return values


def _reason(error: BaseException) -> str:
    """The error in one line that every terminal can print."""
    text = VALIDATION.sub("", " ".join(str(error).split()))
    if not text or isinstance(error, KeyError | IndexError | RecursionError):
        text = f"{type(error).__name__} {text}".strip()
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
