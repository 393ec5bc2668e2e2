"""Handling of SIGTERM, which clusters send to end a job: stop at once, or at a point that the caller chooses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from fastdraft.system.errors import Stopped


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt."""
    with _handled(_stop):
        yield


@contextmanager
def record_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGTERM is only recorded. Yields a function that returns whether it was received."""
    received: list[int] = []
    with _handled(lambda number, _: received.append(number)):
        yield lambda: bool(received)


@contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: the handler was not Python's


def _stop(*_: object) -> NoReturn:
    raise Stopped
