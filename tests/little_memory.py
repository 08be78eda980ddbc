"""A group of processes with too little memory for the pictures they are given: the kernel kills who is put into it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@contextmanager
def little_memory(folder: Path) -> Generator[Callable[[int], None]]:
    """Eight pictures of 48 MB in `folder`, and what puts a process into a group of 12 MB; one must be killed within."""
    own = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line]
    group = Path(f"/sys/fs/cgroup/memory{own[0]}/unmask-test-{os.getpid()}") if own else Path("/nowhere/group")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no group with a limit of memory can be made here")
    try:
        (group / "memory.limit_in_bytes").write_text(str(12 << 20))
        folder.mkdir()
        for number in range(8):
            Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save(folder / f"{number}.png")

        def confine(pid: int) -> None:
            (group / "cgroup.procs").write_text(str(pid))

        yield confine
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
    finally:
        time.sleep(1)  # until the last process of it is gone
        group.rmdir()
