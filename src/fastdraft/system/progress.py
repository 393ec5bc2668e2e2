"""Progress of long work: a bar with rate and remaining time on a terminal or in a notebook, otherwise lines.

With several processes only the main one prints.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fastdraft.system import processes
from fastdraft.system.terminal import Screen, printable

LINE_SECONDS = 15.0
console = Screen(stderr=True)


class Bar:
    """Progress of `total` units of work, as a context manager; `done` units were finished before."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._total, self._unit, self._first = title, total, unit, done
        self._done, self._start, self._printed = done, time.monotonic(), time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        draws_bar = (console.is_terminal or console.is_jupyter) and processes.is_main()
        self._rich = Progress(*columns, TimeRemainingColumn(), console=console) if draws_bar else None
        self._task = self._rich.add_task(title, total=total, completed=done, note="") if self._rich else None

    def __enter__(self) -> Bar:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()
        elif kind is None:
            self._line("")

    def advance(self, units: int, note: str = "") -> None:
        """Count finished units; `note` is shown after the rate."""
        self._done += units
        if self._rich and self._task is not None:
            self._rich.update(self._task, completed=self._done, note=f"{self._rate():,.0f} {self._unit}/s {note}")
        elif time.monotonic() - self._printed >= LINE_SECONDS:
            self._line(note)

    def _rate(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _line(self, note: str) -> None:
        if not processes.is_main():
            return
        left = max(self._total - self._done, 0) / max(self._rate(), 1e-9)
        print(
            f"{printable(self._title)}: {self._done:,} of {self._total:,} {self._unit}, "
            f"{self._rate():,.0f} {self._unit}/s, {left:.0f} s left {printable(note)}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
        self._printed = time.monotonic()


@contextmanager
def suppressed_logs(library: str, *texts: str) -> Iterator[None]:
    """Within the block, drop the lines of a library's log that contain one of these texts."""
    handlers = list(logging.getLogger(library).handlers)

    def is_shown(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in texts)

    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def log_line(line: str) -> None:
    """Print a line to stderr, in the main process only."""
    if processes.is_main():
        console.print(line, highlight=False, soft_wrap=True)
