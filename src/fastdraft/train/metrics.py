"""metrics.jsonl: one line for each step, written by the main process, that survives kills and full disks.

Trackers get the same rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from fastdraft.system import processes
from fastdraft.system.files import atomic_write
from fastdraft.train.trackers import logged

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


class Metrics:
    """The metrics file of a phase, opened behind the line of `step`, and its trackers; use as a context manager."""

    def __init__(self, path: Path, step: int, trackers: Sequence[GeneralTracker] = ()) -> None:
        self._log: TextIO | None = _reopened(path, step).open("a") if processes.is_main() else None
        self._trackers = trackers

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log:
            self._log.close()
        for tracker in self._trackers:
            tracker.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Add a step's line; it can be read at once."""
        if self._log:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
        for tracker in self._trackers:
            tracker.log(logged(row), step=row["step"])

    def sync(self) -> None:
        """Have all lines on the disk: a checkpoint that survives a power cut must find the lines of its steps."""
        if self._log:
            os.fsync(self._log.fileno())


def _reopened(path: Path, step: int) -> Path:
    """The metrics file without the lines of steps that will be taken again, nor what a kill or a full disk left."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    with atomic_write(path) as part:
        part.write_text("".join(line for line in lines if 1 <= _step_of(line) <= step))
    return path


def _step_of(line: str) -> int:
    """The step that a whole line of metrics is about; 0 for anything else."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0
