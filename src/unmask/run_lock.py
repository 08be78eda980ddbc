"""One run per output folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from unmask.errors import CheckpointError
from unmask.files import cause

_held: set[int] = set()


def _close_in_child() -> None:
    # A lock belongs to the open file, which a forked loader process shares: orphaned, it would go on holding it.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock:
    """Holds `<run>/.lock` until `release` or the end of the process, whatever ends it.

    Raises CheckpointError naming the process that holds it already, or why the lock file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CheckpointError(f"cannot open {path}: {cause(error)}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise CheckpointError(f"cannot lock {path}: {cause(error)}") from error
            raise CheckpointError(
                f"{folder} is in use by another run (process {holder or 'unknown'}); "
                "wait for it, stop it, or set another output"
            ) from error
        _held.add(descriptor)
        self._descriptor: int | None = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise CheckpointError(f"cannot write {path}: {cause(error)}") from error

    def release(self) -> None:
        """Let another run have the folder. Harmless when done twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
