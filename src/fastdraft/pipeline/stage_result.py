"""The result of a stage, and the warning that is kept in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fastdraft.system.energy import Joules


class Note(UserWarning):
    """A remark on the draft or its data: printed, and kept in the manifest."""


class StageResult(NamedTuple):
    """The fields of the stage's card and the tokens that it processed.

    `seconds` and `joules` are set by a stage that was resumed: they include the calls before. `leftovers` are removed
    after the card has been written.
    """

    fields: dict[str, Any]
    tokens: int = 0
    seconds: float | None = None
    joules: Joules | None = None
    leftovers: tuple[Path, ...] = ()
