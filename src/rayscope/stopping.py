"""Stopping: what Ctrl-C, a scheduler's SIGTERM and the like do to a command:
it closes what it opened, and training saves first.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # each would end the process, or is Ctrl-C
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
TOGETHER = 0.5  # seconds: launchers often pass a stop on twice


class Stopped(KeyboardInterrupt):
    """A signal asked for a stop. code: the shell's exit code for it, 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(number, message)
        self.number, self.message = number, message
        self.code = 128 + number

    def __str__(self) -> str:
        what = self.message or "stopped; what was finished is kept, the same command does the rest"
        return f"{what} ({signal.Signals(self.number).name})"


def stop_behind(error: BaseException | None) -> Stopped | None:
    """The stop that the error is, or that led to it: a library that a signal interrupts may fail as it cleans up."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def stopping() -> Iterator[None]:
    """In the block a stop signal raises Stopped, so that every `with` and `finally` is left as after an error."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    with handled(stop):
        yield


class Request:
    """number: of the stop signal that came, if one did."""

    number: int | None = None


@contextmanager
def deferred() -> Iterator[Request]:
    """In the block a stop signal is only noted in the request, for the block to stop where it can;
    a second one raises Stopped.
    """
    request, first = Request(), 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal first
        if request.number is None:
            request.number, first = number, time.monotonic()
        elif time.monotonic() - first > TOGETHER:
            raise Stopped(number)

    with handled(note):
        yield request


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals that are ignored (nohup) stay so. Python runs handlers in the main thread alone:
    elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: was for number, was in before.items() if was not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
