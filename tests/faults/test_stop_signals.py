"""SIGTERM and Ctrl-C stop any command in order: one line, the code of the signal, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import TINY_MODEL, start, unmask, until_written

pytest.importorskip("torch", reason="PyTorch is not installed")

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "data.labels_per_class=5", "train.epochs=1"]
DATA = ["data.train=bundled:mnist5k/train", "data.val=bundled:mnist5k/val"]


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mae")
    done = unmask("pretrain", "mae-vit-tiny", *TINY_MODEL, *SHORT, DATA[0], "output=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def stop(process: subprocess.Popen[str], number: int, when: Callable[[], bool]) -> str:
    """Send a signal once the process has come so far; returns what it says on stderr."""
    deadline = time.monotonic() + 120
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    # The signal may come within an import, of whose open file Python then warns, as these processes show all warnings.
    return re.sub(r".*: ResourceWarning: unclosed file .*\.pyc?'>\n(  .*\n)?ResourceWarning: .*\n", "", said)


def test_sigterm_stops_embed_which_goes_on(tmp_path: Path, mae: Path) -> None:
    command = ["embed", str(mae), "bundled:mnist5k/val", "--out", "e.npy", "--batch-size", "4", "--device", "cpu"]
    part = tmp_path / "e.npy.partial" / "000000.json"
    process = start(*command, cwd=tmp_path)
    said = stop(process, signal.SIGTERM, part.exists)
    assert (process.returncode, said) == (143, "unmask: stopped by SIGTERM\n")
    assert not (tmp_path / "e.npy").exists()
    resumed = unmask(*command, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "of 1000 images are done already" in resumed.stdout


def test_ctrl_c_stops_a_sweep_as_a_whole(tmp_path: Path, mae: Path) -> None:
    settings = [*TINY_MODEL, *DATA, f"init={mae}", "output=few", "train.log_every=1", "objective.head=drawn"]
    counts = ["--labels", "2", "--seeds", "0", "1", "--steps", "2000"]
    process = start("sweep-labels", "finetune-vit-tiny", *settings, *counts, cwd=tmp_path)
    log = tmp_path / "few" / "pretrained-2-labels-seed-0" / "metrics.jsonl"
    said = stop(process, signal.SIGINT, lambda: log.exists() and log.stat().st_size > 0)
    assert (process.returncode, said) == (130, "unmask: stopped by SIGINT\n")
    assert [folder.name for folder in (tmp_path / "few").glob("*-seed-*")] == [log.parent.name], "no other was begun"
    assert len(list((log.parent / "checkpoints").glob("step-*"))) == 1


def test_sigterm_stops_pack(tmp_path: Path) -> None:
    process = start("pack", "bundled:mnist5k/train", "packed", "--shard-size", "1K", cwd=tmp_path)
    said = stop(process, signal.SIGTERM, lambda: any(tmp_path.glob("packed/*")))
    assert (process.returncode, said) == (143, "unmask: stopped by SIGTERM\n")


def test_sigterm_to_the_group_leaves_the_loaders_to_the_end(tmp_path: Path) -> None:
    """As a scheduler sends it: to each process. The state is saved before the loaders go, and none stays behind."""
    settings = [*TINY_MODEL, DATA[0], "train.batch_size=20", "train.log_every=1", "data.workers=2", "output=run"]
    command = ["pretrain", "mae-vit-tiny", *settings, "optimizer.warmup_epochs=0"]
    process = start(*command, cwd=tmp_path, group=True)
    until_written(tmp_path / "run" / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert (process.returncode, said.splitlines()[-1]) == (143, "unmask: stopped by SIGTERM")
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
    deadline = time.monotonic() + 120
    while is_group(process.pid) and time.monotonic() < deadline:  # Python's tracker of resources goes a little later
        time.sleep(0.01)
    assert not is_group(process.pid)


def is_group(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True
