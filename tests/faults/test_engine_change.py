"""A run that is stopped on one engine goes on on the other, as if nothing had happened."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from runs import TINY_MODEL, start, unmask
from unmask.cli import main

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("mindspore", reason="mindspore is not installed")

STEPS = 60
RUN = [
    "pretrain",
    "mae-vit-tiny",
    *TINY_MODEL,
    "model.depth=1",
    "data.train=bundled:mnist5k/train",
    "train.batch_size=32",
    "train.accumulate=2",
    f"train.epochs={STEPS * 32 / 4000}",
    "train.log_every=1",
    "train.ema_decay=0.9",
    "optimizer.base_lr=1e-2",
    "optimizer.warmup_epochs=0.08",
    "output=run",
]


def records(folder: Path) -> list[dict[str, float]]:
    log = folder / "run" / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def run_and_stop(folder: Path, *settings: str) -> int:
    """Start the run, send SIGTERM after a few steps; returns how many it did."""
    process = start(*RUN, *settings, cwd=folder)
    deadline = time.monotonic() + 120
    while len(records(folder)) < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    return len(records(folder))


@pytest.mark.parametrize(
    ("first", "second", "precision", "tolerance"),
    [
        ("mindspore", "torch", "fp16", 2e-3),  # in this process: tests/parity, both ways
        pytest.param("torch", "mindspore", "fp32", 1e-4, marks=pytest.mark.campaign),
        pytest.param("mindspore", "torch", "fp32", 1e-4, marks=pytest.mark.campaign),
    ],
)
def test_the_other_engine_goes_on(first: str, second: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    """Loss, norm, loss scale and the skipped steps of every step; moments and average decide the later ones."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    settings = [f"train.precision={precision}"]
    assert main([*RUN, *settings, "engine=torch", f"output={whole}/run"]) == 0

    stopped_at = run_and_stop(parts, *settings, f"engine={first}")
    assert 8 <= stopped_at < STEPS
    finished = unmask(*RUN, *settings, f"engine={second}", cwd=parts)
    assert finished.returncode == 0, finished.stderr
    assert f"resumed after step {stopped_at}" in finished.stdout

    ours, expected = records(parts), records(whole)
    assert len(ours) == len(expected) == STEPS
    for one, other in zip(ours, expected, strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=tolerance)
