"""Progress of long work: a bar with rate and time left on a terminal, plain lines every few seconds elsewhere.

Of several processes the main one shows it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fastdraft.system import processes

LINE_SECONDS = 15.0
console = Console(stderr=True)


class Bar:
    """Counts `total` units of work; use as a context manager."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._what, self._total, self._unit, self._first = what, total, unit, done
        self._done, self._start, self._printed = done, time.monotonic(), time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        shown = console.is_terminal and processes.is_main()
        self._rich = Progress(*columns, TimeRemainingColumn(), console=console) if shown else None
        self._task = self._rich.add_task(what, total=total, completed=done, note="") if self._rich else None

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
        """Some units are done; `note` says what is worth knowing now."""
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
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {self._rate():,.0f} {self._unit}/s, "
            f"{left:.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
        self._printed = time.monotonic()


@contextmanager
def suppressed_logs(library: str, *texts: str) -> Iterator[None]:
    """A library's log without the lines in which one of these texts stands; all others are shown."""
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
    """One line about what happens, beside the results."""
    if processes.is_main():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
