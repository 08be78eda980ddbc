"""Loader processes: how they start and end, and the wait for what they make, which ends when one dies or hangs."""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing import active_children, parent_process
from multiprocessing.connection import wait
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from unmask.data.loader.left_over import SHARED_MEMORY
from unmask.errors import DataError

_TICK = 1.0
"""Seconds between two looks at whether the processes live."""
_CLOSE = 30.0
"""Seconds that processes get to end by themselves."""
_STATES = {"T": "stopped", "t": "stopped", "D": "waiting for a disk", "S": "waiting", "R": "computing"}
"""What the kernel says of a process."""
_START = getattr(Popen, "_launch").__code__  # noqa: B009 (not public)
"""What starts a process and gives it its work."""


class WorkerError(DataError):
    """A loader process died, or did not answer in time."""


class Answers:
    """What loader processes send through `iterator`, in order.

    Threads wait for it and close it, so that nothing that a process does, or no longer does, takes longer than allowed.
    """

    def __init__(self, iterator: Any, timeout: float) -> None:
        self._iterator, self._timeout = iterator, timeout
        self._others, self._processes = _loaders(), dict[int, BaseProcess]()
        self._asked, self._answers = SimpleQueue[bool](), SimpleQueue[tuple[Any, BaseException | None]]()
        threading.Thread(target=self._fetch, daemon=True).start()

    def next(self, sender: Callable[[], int]) -> Any:
        """The next answer; `sender`: the process it is to come from, 0 where that is not known.

        Raises WorkerError when a process died, or none came in time; then all are killed.
        """
        self._asked.put(True)
        for _ in range(math.ceil(self._timeout / _TICK)):  # a clock would go on while this process itself is stopped
            with suppress(Empty):
                answer, error = self._answers.get(timeout=_TICK)
                if error is not None:
                    raise _named(error) from None
                return answer
            self._processes |= {pid: child for pid, child in _loaders().items() if pid not in self._others}
            for child in self._processes.values():
                if child.exitcode:
                    raise _died(child.exitcode)
            for pid, work in _starting().items():
                if code := _exit_code(pid):
                    _take(work)
                    raise _died(code)
        starting = _starting()
        error = self._hangs(sender(), starting)
        for pid, work in starting.items():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            _take(work)
        _kill(self._processes.values())
        raise error

    def close(self) -> None:
        """Ends the processes."""
        self._asked.put(False)
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(_CLOSE)

    def _close(self) -> None:
        with suppress(AssertionError):  # of a process that was never started
            self._iterator.close()

    def _fetch(self) -> None:
        while self._asked.get():
            try:
                self._answers.put((next(self._iterator), None))
            except BaseException as error:  # any: it is raised where the answer is waited for
                self._answers.put((None, error))

    def _hangs(self, sender: int, starting: Collection[int]) -> WorkerError:
        states = {pid: _STATES.get(_state(pid), "alive") for pid in {*starting, *self._processes}}
        # The sender is who wrote last to a place of the ring: another, before one that starts has asked for it.
        stuck = starting or {pid for pid, state in states.items() if state == "stopped"}
        which = stuck or ({sender} & states.keys()) or states.keys()
        return WorkerError(
            f"loader process {' or '.join(f'{pid} ({states[pid]})' for pid in sorted(which))} did not answer within "
            f"train.process_timeout={self._timeout:g} s; set that higher if a few images may take as long, or load "
            "without processes: data.workers=0"
        )


def _kill(processes: Collection[BaseProcess]) -> None:
    for each in processes:
        each.kill()
    deadline = time.monotonic() + _TICK
    for each in processes:
        each.join(max(0, deadline - time.monotonic()))
        if each.is_alive():  # it waits for a disk, and nobody shall wait for it: Python would, in the end
            getattr(each, "_popen").returncode = -signal.SIGKILL  # noqa: B009 (not public)


def _loaders() -> dict[int, BaseProcess]:
    return {child.pid or 0: child for child in active_children() if child.name.startswith("grain-")}


def _starting() -> dict[int, int]:
    """Processes that have not taken their work, which `multiprocessing` does not count before, and the pipe it is in.

    Whoever starts one keeps that pipe open, so it is not told when the process dies, and waits until the pipe has room.
    """
    found = dict[int, int]()
    for top in getattr(sys, "_current_frames")().values():  # noqa: B009 (a private name, and documented)
        frame: FrameType | None = top
        while frame is not None and frame.f_code is not _START:
            frame = frame.f_back
        if frame is not None and (pid := getattr(frame.f_locals["self"], "pid", None)):
            found[pid] = frame.f_locals["child_r"]
    return found


def _exit_code(pid: int) -> int:
    """0 of a process that lives; nobody else is kept from learning it."""
    with suppress(OSError):
        if ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    return 0


def _take(work: int) -> None:
    """Empty a pipe, in place of a process that was killed before it did: whoever fills it waits, and is waited for."""
    with suppress(OSError), os.fdopen(os.dup(work), "rb", buffering=0) as pipe:
        while stat.S_ISFIFO(os.fstat(work).st_mode) and wait([pipe.fileno()], _TICK / 2) and pipe.read(2**16):
            pass


def _state(pid: int) -> str:
    """A letter, as ps shows it; empty where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _named(error: BaseException) -> BaseException:
    if isinstance(error, OSError):  # of a semaphore
        return no_memory(error)
    died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    return _died(int(died[1])) if isinstance(error, RuntimeError) and died else error


def no_memory(error: OSError) -> DataError:
    reason = f"no shared memory for loader processes: {error.strerror}"
    return DataError(f"{reason}; check {SHARED_MEMORY}, or load without them: data.workers=0")


def _died(code: int) -> WorkerError:
    killed_by = {-number: number.name for number in signal.Signals}.get(code)
    if killed_by == "SIGBUS":
        return WorkerError(f"a loader process ran out of shared memory; enlarge {SHARED_MEMORY} or lower data.workers")
    if killed_by == "SIGKILL":
        return WorkerError("a loader process was killed (SIGKILL), as happens when memory runs out; lower data.workers")
    return WorkerError(f"a loader process died with exit code {code}; data.workers=0 loads without processes")


def start_worker(number: int, count: int) -> None:
    """For a loader process: leave signals to the training process, and end when that ends, for whatever reason.

    Ctrl-C and a scheduler's SIGTERM reach a whole group of processes; the state is saved before the loaders go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_when_the_parent_says() -> None:
    """Python ends daemonic processes that were left behind by SIGTERM, and waits for them."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
