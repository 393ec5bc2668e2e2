"""What a stage returns, and the warning that is kept in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fastdraft.system.energy import Joules


class Note(UserWarning):
    """Something about the draft's shape that a reader must know: shown, and kept in the manifest."""


class StageResult(NamedTuple):
    """An artefact: its card's own fields, the tokens that went through, and the seconds with their joules, where they
    are not those of this call alone (a phase that was resumed). `leftovers` are removed once the card stands, and not
    before.
    """

    fields: dict[str, Any]
    tokens: int = 0
    seconds: float | None = None
    joules: Joules | None = None
    leftovers: tuple[Path, ...] = ()
