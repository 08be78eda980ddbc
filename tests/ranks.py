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
LOG = "launcher.log"
PATIENCE = 300.0
"""Seconds after which something that must happen did not."""


@dataclass
class Ranks:
    """Processes that were launched together."""

    launcher: subprocess.Popen[bytes]
    cwd: Path

    @property
    def pids(self) -> dict[int, int]:
        """Those that are there now, by rank, which the launcher tells them in their environment."""
        found: dict[int, int] = {}
        for process in self._here():
            variables = dict(v.split(b"=", 1) for v in _read(process / "environ").split(b"\0") if b"=" in v)
            is_worker = variables.get(b"MS_ROLE", b"MS_WORKER") == b"MS_WORKER"
            rank = variables.get(b"RANK") or variables.get(b"RANK_ID")
            parent = _read(process / "stat").rpartition(b")")[2].split()[1:2]
            if is_worker and rank and parent != [b"1"] and b"unmask" in _read(process / "cmdline").split(b"\0"):
                found.setdefault(int(rank), int(process.name))
        return found

    def _here(self) -> list[Path]:
        """Processes at work in the folder, oldest first: before those that they started themselves."""
        there = [process for process in Path("/proc").glob("[0-9]*") if _cwd(process) == self.cwd]
        return sorted(there, key=lambda process: int(process.name))

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
            self.launcher.wait(timeout=PATIENCE)
        finally:
            for process in self._here():  # none, unless the test has failed, or msrun left its `tail`
                os.kill(int(process.name), signal.SIGKILL)
            self.launcher.wait()
        return (self.cwd / LOG).read_text(errors="replace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _cwd(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def launch(
    engine: str,
    *arguments: str | Path,
    cwd: Path,
    processes: int = 2,
    options: Sequence[str] = (),
    program: Sequence[str] = ("-m", "unmask"),
    within: Sequence[str] = (),
) -> Ranks:
    """`unmask ARGUMENTS` in the folder `cwd`, or another program; `options` are the launcher's, the last ones win.

    `within` is a command that runs another, as `env` does.
    """
    (port,) = free_ports(1)
    tools = Path(sys.executable).parent
    launcher = {
        "torch": [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"),
            *(f"--master_port={port}", *options),
        ],
        "mindspore": [
            *(tools / "msrun", f"--worker_num={processes}", f"--local_worker_num={processes}"),
            *("--master_addr=127.0.0.1", f"--master_port={port}", "--log_dir=msrun", "--join=True"),
            *(*options, "python"),
        ],
    }[engine]
    # msrun starts a bare `python`, which must be this one.
    environment = ENVIRONMENT | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [*within, *map(str, launcher), *program, *map(str, arguments)]
    with (cwd / LOG).open("w") as log:
        return Ranks(subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT), cwd)


def free_ports(count: int) -> list[int]:
    """Different ones."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def records(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run in `folder`/run so far."""
    log = folder / "run" / "metrics.jsonl"
    whole, _, _ = log.read_text().rpartition("\n") if log.exists() else ("", "", "")  # one may be half written
    return [json.loads(line) for line in whole.splitlines()]


def agree(ours: list[dict[str, float]], expected: list[dict[str, float]], rel: float = 1e-4) -> None:
    """Up to the rounding of a sum in another order, which the steps carry on."""
    assert [record["step"] for record in ours] == [record["step"] for record in expected]
    for one, other in zip(ours, expected, strict=True):
        assert {k: v for k, v in one.items() if k != "split"} == pytest.approx(
            {k: v for k, v in other.items() if k != "split"}, rel=rel
        )
