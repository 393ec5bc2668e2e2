"""Being asked to end by SIGTERM, as clusters do: at once, or where a loop has written down what it did."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from fastdraft.system.errors import Stopped


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises Stopped as Ctrl-C raises KeyboardInterrupt."""
    with _handled(_stop):
        yield


@contextmanager
def sigterm_recorded() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM ends nothing; what is yielded says whether it came."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number)):
        yield lambda: bool(came)


@contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: the handler was not Python's


def _stop(*_: object) -> NoReturn:
    raise Stopped
