"""Stopping a process by Ctrl-C or SIGTERM, at whatever moment the signal arrives.

The handler notes the signal and raises `Interrupted`. An exception that is raised within a callback of the garbage
collector, or of a library that keeps all exceptions to itself, is lost; the note is not. So whatever takes long calls
`stop_if_requested` now and then.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_requested: int | None = None  # the signal that has arrived
_deferred = False  # whether the signal is only noted, because the work itself looks at the note at every step
_contexts = 0


class Interrupted(SystemExit):
    """The process was asked to stop.

    Not an Exception, so that nothing on the way takes it for a failure of its own. Where nothing catches it, the
    process ends with the status that shells give to this signal: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str | None = None):
        super().__init__(128 + number)
        self.number, self.message = number, message or f"stopped by {signal.Signals(number).name}"

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return Interrupted, (self.number, self.message)  # a launcher hands it from one process to another


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this context, Ctrl-C and SIGTERM raise `Interrupted`; the handlers of before are put back at its end.

    Contexts may be nested. In another thread than the main one, which gets no signals, nothing is changed.
    """
    global _requested, _contexts
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    _contexts += 1
    sys.unraisablehook = lambda lost: None if issubclass(lost.exc_type, Interrupted) else hook(lost)  # it is noted
    try:
        handle_signals()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _contexts -= 1
        if not _contexts:
            _requested = None


@contextmanager
def deferred() -> Iterator[None]:
    """Within this context, the first signal is noted and raises nothing; the second one raises `Interrupted`."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


def handle_signals() -> None:
    """Make our handler that of both signals; also where a shell has started the process with Ctrl-C ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _handle)


def requested() -> int | None:
    """The signal by which the process was asked to stop, if it was."""
    return _requested


def request(number: int) -> None:
    """Note that the process is to stop, as if this signal had arrived."""
    global _requested
    _requested = number


def stop_if_requested() -> None:
    """Raise Interrupted if the process was asked to stop; not where that is deferred."""
    if _requested is not None and not _deferred:
        raise Interrupted(_requested)


def _handle(number: int, frame: Any) -> None:
    global _requested
    again, _requested = _requested is not None, number
    if again or not _deferred:
        raise Interrupted(number)
