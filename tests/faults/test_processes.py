"""Several processes train one model: as one process would, and they stop and go on together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from runs import ENVIRONMENT, TINY_MODEL, unmask

STEPS = 30
RUN = [
    "pretrain",
    "mae-vit-tiny",
    *TINY_MODEL,
    "model.depth=1",
    "data.train=bundled:mnist5k/train",
    "data.val=bundled:mnist5k/val",
    "train.batch_size=48",
    "train.accumulate=2",
    f"train.epochs={STEPS * 48 / 4000}",
    "train.log_every=1",
    "train.ema_decay=0.9",
    "optimizer.base_lr=1e-2",
    "optimizer.warmup_epochs=0.04",
    "output=run",
]
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("torch", "mindspore")
]


def launch(engine: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Two processes, under the launcher that comes with the engine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tools = Path(sys.executable).parent
    launcher = {
        "torch": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m"],
        "mindspore": [
            *(tools / "msrun", "--worker_num=2", "--local_worker_num=2", "--master_addr=127.0.0.1"),
            *(f"--master_port={port}", "--log_dir=msrun", "--join=True", "python", "-m"),
        ],
    }[engine]
    # msrun starts a bare `python`, which must be this one.
    environment = ENVIRONMENT | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [*map(str, launcher), "unmask", *arguments, f"engine={engine}"]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def records(folder: Path) -> list[dict[str, float]]:
    log = folder / "run" / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def agree(ours: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Up to the rounding of a sum in another order, which the steps carry on."""
    assert [record["step"] for record in ours] == [record["step"] for record in expected]
    for one, other in zip(ours, expected, strict=True):
        assert {k: v for k, v in one.items() if k != "split"} == pytest.approx(
            {k: v for k, v in other.items() if k != "split"}, rel=1e-4
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one_and_stop_together(engine: str, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    finished = unmask(*RUN, f"engine={engine}", cwd=alone)
    assert finished.returncode == 0, finished.stderr
    expected = records(alone)
    assert [record["step"] for record in expected] == [*range(1, STEPS + 1), STEPS]

    process = launch(engine, *RUN, cwd=together)
    deadline = time.monotonic() + 120
    while len(records(together)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    signal_one_worker(process.pid)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    stopped_at = len(records(together))
    assert 5 <= stopped_at < STEPS, out
    assert (together / "run" / "checkpoints" / f"step-{stopped_at:08d}").is_dir()
    assert "saved; the same command goes on from there" in out

    process = launch(engine, *RUN, cwd=together)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert f"{STEPS} steps, 2 processes, resumed after step {stopped_at}" in out
    agree(records(together), expected)


def signal_one_worker(launcher: int) -> None:
    """SIGTERM to the second worker alone: what it knows, the first must learn."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environment.read_bytes().split(b"\0")
            parent = int((environment.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == launcher and (b"RANK=1" in variables or {b"RANK_ID=1", b"MS_ROLE=MS_WORKER"} <= set(variables)):
            os.kill(int(environment.parent.name), signal.SIGTERM)
            return
    raise AssertionError("no second worker")
