"""Several real processes under the launcher of an engine: torchrun, or MindSpore's msrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from runs import ENVIRONMENT

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("torch", "mindspore")
]
PATIENCE = 150.0
"""Seconds after which something that must happen did not."""


@dataclass
class Ranks:
    """Processes that were launched together; `pids` by rank."""

    launcher: subprocess.Popen[str]
    cwd: Path

    @property
    def pids(self) -> dict[int, int]:
        """Those that are there now: the launcher's children, by what it tells them in their environment."""
        found: dict[int, int] = {}
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = dict(v.split(b"=", 1) for v in environment.read_bytes().split(b"\0") if b"=" in v)
                parent = int((environment.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            is_worker = variables.get(b"MS_ROLE", b"MS_WORKER") == b"MS_WORKER"
            rank = variables.get(b"RANK") or variables.get(b"RANK_ID")
            # msrun's `tail` processes have its environment: that of the rank started last
            tails = b"tail" in (environment.parent / "cmdline").read_bytes().split(b"\0")[0]
            if parent == self.launcher.pid and rank and is_worker and not tails:
                found[int(rank)] = int(environment.parent.name)
        return found

    def send(self, number: signal.Signals, rank: int) -> None:
        os.kill(self.pids[rank], number)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the processes do; sooner if they end."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        self.until(lambda: len(records(self.cwd)) >= step)

    def end(self) -> str:
        """What they said, once all have ended."""
        try:
            return self.launcher.communicate(timeout=PATIENCE)[0]
        finally:
            for pid in self.pids.values():  # none, unless the test has failed
                os.kill(pid, signal.SIGKILL)


def launch(engine: str, *arguments: str | Path, cwd: Path, processes: int = 2, options: Sequence[str] = ()) -> Ranks:
    """`unmask ARGUMENTS` in the folder `cwd`; `options` are the launcher's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tools = Path(sys.executable).parent
    launcher = {
        "torch": [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"),
            *(f"--master_port={port}", *options, "-m"),
        ],
        "mindspore": [
            *(tools / "msrun", f"--worker_num={processes}", f"--local_worker_num={processes}"),
            *("--master_addr=127.0.0.1", f"--master_port={port}", "--log_dir=msrun", "--join=True"),
            *(*options, "python", "-m"),
        ],
    }[engine]
    # msrun starts a bare `python`, which must be this one.
    environment = ENVIRONMENT | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [*map(str, launcher), "unmask", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return Ranks(process, cwd)


def records(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run in `folder`/run so far."""
    log = folder / "run" / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def agree(ours: list[dict[str, float]], expected: list[dict[str, float]], rel: float = 1e-4) -> None:
    """Up to the rounding of a sum in another order, which the steps carry on."""
    assert [record["step"] for record in ours] == [record["step"] for record in expected]
    for one, other in zip(ours, expected, strict=True):
        assert {k: v for k, v in one.items() if k != "split"} == pytest.approx(
            {k: v for k, v in other.items() if k != "split"}, rel=rel
        )
