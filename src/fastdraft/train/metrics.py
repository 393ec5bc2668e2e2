"""metrics.jsonl: one line per step, written by the main process, robust against kills and full disks.

Trackers get the same metrics.
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
from fastdraft.train.trackers import numbers_of

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


class Metrics:
    """The metrics file of a phase, opened to append after the line of `step`, and its trackers. A context manager."""

    def __init__(self, path: Path, step: int, trackers: Sequence[GeneralTracker] = ()) -> None:
        self._trackers = trackers
        self._file: TextIO | None = None
        if processes.is_main():
            _truncate(path, step)
            self._file = path.open("a")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
        for tracker in self._trackers:
            tracker.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Append the line of a step and flush it."""
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker.log(numbers_of(row), step=row["step"])

    def sync(self) -> None:
        """Write all lines to the disk, so that a checkpoint that survives a power cut has the lines of its steps."""
        if self._file:
            os.fsync(self._file.fileno())


def _truncate(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which will run again, and incomplete lines that a kill left."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    with atomic_write(path) as part:
        part.write_text("".join(line for line in lines if 1 <= _step_of(line) <= step))


def _step_of(line: str) -> int:
    """The step of a complete line; 0 for anything else."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0
