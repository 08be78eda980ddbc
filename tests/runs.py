"""Runs of the command line as a user starts them: real processes, real files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TINY_MODEL = [
    "model.image_size=28",
    "model.patch_size=7",
    "model.channels=1",
    "model.width=32",
    "model.depth=2",
    "model.heads=4",
    "model.decoder_width=16",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
    "data.mean=[0.1307]",
    "data.std=[0.3081]",
    "train.precision=fp32",  # whatever the processor has: the same numbers everywhere
    "device=cpu",
]
"""A model on the bundled digits that takes milliseconds a step."""

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def start(*arguments: str | Path, cwd: Path, group: bool = False) -> subprocess.Popen[str]:
    """`group`: the process leads a group of its own, with those that it starts."""
    command = [sys.executable, "-m", "unmask", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def until_written(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has written something to a file, or is over."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline, f"120 s later there is nothing in {path}"
        time.sleep(0.002)


def unmask(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `unmask ARGUMENTS` in the folder `cwd` to its end."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def children(pid: int) -> list[int]:
    """The numbers of the processes that a process has started, by all its threads."""
    found = list[int]()
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread may end meanwhile
            found += map(int, each.read_text().split())
    return found
