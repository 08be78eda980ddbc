"""Several processes train one model: as one process would, and they stop and go on together."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ranks import ENGINES, agree, launch, records
from runs import TINY_MODEL, unmask

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


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one_and_stop_together(engine: str, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    finished = unmask(*RUN, f"engine={engine}", cwd=alone)
    assert finished.returncode == 0, finished.stderr
    expected = records(alone)
    assert [record["step"] for record in expected] == [*range(1, STEPS + 1), STEPS]

    ranks = launch(engine, *RUN, f"engine={engine}", cwd=together)
    ranks.until_step(5)
    ranks.send(signal.SIGTERM, 1)  # what it knows, the first must learn
    out = ranks.end()
    assert ranks.launcher.returncode != 0
    stopped_at = len(records(together))
    assert 5 <= stopped_at < STEPS, out
    assert (together / "run" / "checkpoints" / f"step-{stopped_at:08d}").is_dir()
    assert "saved; the same command goes on from there" in out

    ranks = launch(engine, *RUN, f"engine={engine}", cwd=together)
    out = ranks.end()
    assert ranks.launcher.returncode == 0, out
    assert f"{STEPS} steps, 2 processes, resumed after step {stopped_at}" in out
    agree(records(together), expected)
