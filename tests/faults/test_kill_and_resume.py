"""Runs that are killed and started again by the same command equal one that was never interrupted, byte for byte."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runs import TINY_MODEL, start, unmask

STEPS = 300
"""Enough that a signal sent after a few dozen steps finds the run at work on any machine."""
RUN = [
    "pretrain",
    "mae-vit-tiny",
    *TINY_MODEL,
    "data.train=bundled:mnist5k/train",
    "data.val=bundled:mnist5k/val",
    "train.batch_size=16",
    "train.accumulate=2",
    f"train.epochs={STEPS * 16 / 4000}",
    "train.checkpoint_every=0.068",  # 17 steps
    "train.eval_every=0.4",  # 100 steps
    "train.log_every=1",
    "train.ema_decay=0.9",
    "optimizer.base_lr=1e-2",
    "optimizer.warmup_epochs=0.04",
    "output=run",
]


def lines(folder: Path) -> int:
    log = folder / "run" / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    """The last checkpoint and the log: all a run is."""
    checkpoint = folder / "run" / "checkpoints" / f"step-{STEPS:08d}"
    files = [*sorted(checkpoint.iterdir()), folder / "run" / "metrics.jsonl"]
    assert {"weights.safetensors", "optimizer.safetensors", "ema.safetensors"} <= {file.name for file in files}
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = unmask(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def uninterrupted(finished: Path) -> dict[str, bytes]:
    return contents(finished)


def interrupt(folder: Path, at_line: int, number: int) -> subprocess.Popen[str]:
    """Start the run and send it a signal once its log has `at_line` lines more."""
    target = lines(folder) + at_line
    process = start(*RUN, cwd=folder)
    deadline = time.monotonic() + 120
    while lines(folder) < target and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(2, 12))])
def test_sigkill_at_random_steps(tmp_path: Path, uninterrupted: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        assert interrupt(tmp_path, rng.randint(1, 60), signal.SIGKILL).returncode == -signal.SIGKILL
    finished = unmask(*RUN, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.campaign)]
)
def test_a_stop_signal_saves_and_exits(
    tmp_path: Path, uninterrupted: dict[str, bytes], number: signal.Signals, code: int
) -> None:
    process = interrupt(tmp_path, 10, number)
    assert process.returncode == code
    steps = sorted(int(folder.name[5:]) for folder in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps[-1] >= 10
    finished = unmask(*RUN, cwd=tmp_path)
    assert f"resumed after step {steps[-1]}" in finished.stdout, finished.stderr
    assert contents(tmp_path) == uninterrupted


def test_a_finished_run_started_again_changes_nothing(
    tmp_path: Path, finished: Path, uninterrupted: dict[str, bytes]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert unmask(*RUN, cwd=tmp_path).returncode == 0
    assert contents(tmp_path) == uninterrupted
