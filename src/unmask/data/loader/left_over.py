"""What a run that was killed with all its processes left in shared memory is removed by the next.

Whoever is killed alone is cleaned up after by the others. Of a whole group, the kernel keeps the ring and some fifty
semaphores under their names. These begin with a token of the run, whose lock tells whether it still lives, in other
containers of the same machine too.
"""

from __future__ import annotations

import atexit
import os
import secrets
import time
from contextlib import suppress
from functools import cache
from multiprocessing import process
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
_AGE = 60
"""Seconds after which a lock that nobody holds is not one that is just being made."""


@cache
def prefix() -> str | None:
    """How the names of this process's shared memory begin; None where shared memory has no files."""
    if not SHARED_MEMORY.is_dir():
        return None
    _remove_left_over()
    token = f"unmask-{secrets.token_hex(6)}"
    with suppress(OSError):
        path = SHARED_MEMORY / f"{token}.lock"
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)  # held as long as the process lives
        _try_lock(lock)
        atexit.register(_unlink, path, os.getpid())
    config: dict[str, Any] = getattr(process.current_process(), "_config", {})
    if "semprefix" in config:  # how multiprocessing begins the names of semaphores
        config["semprefix"] = f"/{token}"
    return token


def _remove_left_over() -> None:
    for path in SHARED_MEMORY.glob("unmask-*.lock"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - path.stat().st_mtime < _AGE:
                continue
            lock = os.open(path, os.O_RDWR)
            try:
                if _try_lock(lock):
                    for pattern in ("{}-*", "sem.{}-*"):
                        for left in SHARED_MEMORY.glob(pattern.format(path.stem)):
                            left.unlink(missing_ok=True)
                    path.unlink()
            finally:
                os.close(lock)


def _try_lock(file: int) -> bool:
    import fcntl  # not on Windows, where nobody comes here

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlink(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork
        path.unlink(missing_ok=True)
