"""SIGTERM and Ctrl-C: what is being written is written to its end, and then the command ends and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal has come.

    Attributes:
        number: of the signal.
        said: what its user should be told, once somebody knows.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.said = number, ""


_depth = 0  # of ``unbroken``, in the main thread, where Python handles signals
_waiting: int | None = None  # a signal that has come meanwhile


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM and Ctrl-C raise Interrupted. In another thread than the main one it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _came) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unbroken() -> Iterator[None]:
    """What is in it comes to its end before a signal counts. A second one does not wait.

    Raises:
        Interrupted: afterwards, if a signal has come.
    """
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        came = _waiting
        if not _depth:
            _waiting = None
    if came is not None and not _depth:
        raise Interrupted(came)


def _came(number: int, frame: FrameType | None) -> None:
    global _waiting
    if _depth and _waiting is None:
        _waiting = number
        return
    raise Interrupted(number)
