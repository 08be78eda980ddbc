"""Signals that ask a program to stop, and how long they may wait.

In a library Ctrl-C is Python's: KeyboardInterrupt. The command line turns SIGTERM into an exception too, so that every
command stops the same way: what is open is closed, and the exit code is 128 plus the signal's number. Where stopping at
once would lose work, `deferred` holds a signal back. Outside the main thread, which alone receives signals, nothing
here does anything.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop. In a library that is Ctrl-C, and a KeyboardInterrupt like any other."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


class _CommandLine:
    """The command line's handler: the first signal raises Interrupted, a second one ends the process at once."""

    def __init__(self) -> None:
        self._received: float | None = None
        self.repeated_within = 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.note(number)
        raise Interrupted(signal.Signals(number))

    def note(self, number: int) -> None:
        """Count a signal without raising."""
        now = time.monotonic()
        if self._received is None:
            self._received = now
        elif now - self._received >= self.repeated_within:
            os._exit(128 + number)


@contextmanager
def command_line() -> Generator[None]:
    """SIGTERM and SIGINT raise Interrupted; a second one ends the process at once."""
    handler = _CommandLine()
    with _installed({signal.SIGTERM: handler, signal.SIGINT: handler}):
        yield


class Request:
    received: signal.Signals | None = None
    """The signal that asks for a stop."""


@contextmanager
def deferred(noticed: Callable[[], None] = lambda: None) -> Generator[Request]:
    """Hold back what would interrupt: SIGINT, on the command line SIGTERM too; a second one interrupts at once.

    `noticed` is called at the first: to say that it was heard. The body looks at `received` and ends early. Whether it
    did or not, Interrupted is raised at the end if a signal came. A program's own handlers stay as they are.
    """
    request, held = Request(), _interrupting()

    def hold(number: int, frame: FrameType | None) -> None:
        handler = held[signal.Signals(number)]
        if isinstance(handler, _CommandLine):
            handler.note(number)
        elif request.received is not None:
            handler(number, frame)
        first, request.received = request.received is None, signal.Signals(number)
        if first:
            with suppress(RuntimeError):  # the signal came while the same stream was being written to
                noticed()

    with _installed(dict.fromkeys(held, hold)):
        yield request
    if request.received is not None:
        raise Interrupted(request.received)


@contextmanager
def ignored() -> Generator[None]:
    """Signals are lost. For the few seconds of an end that nothing shall cut short."""
    with _installed(dict.fromkeys(_interrupting(), signal.SIG_IGN)):
        yield


def heed_launcher() -> None:
    """For one of several processes: end in order when the launcher ends, which the kernel tells on Linux.

    msrun passes no signal on. torchrun does, so a signal to a whole group comes twice, and counts once.
    """
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGTERM))
    for handler in _interrupting().values():
        if isinstance(handler, _CommandLine):
            handler.repeated_within = 5.0


@contextmanager
def immediate() -> Generator[None]:
    """The system's own way: a signal ends the process. For calls that wait outside of Python, where no handler runs."""
    with _installed(dict.fromkeys(_interrupting(), signal.SIG_DFL)):
        yield


def _interrupting() -> dict[signal.Signals, _Handler]:
    """The handlers in force that raise: Python's for Ctrl-C and the command line's."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return {
        number: handler
        for number, handler in handlers.items()
        if callable(handler) and (handler is signal.default_int_handler or isinstance(handler, _CommandLine))
    }


@contextmanager
def _installed(handlers: Mapping[signal.Signals, _Handler | signal.Handlers]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
