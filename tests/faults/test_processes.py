"""Several processes train one model: as one process would, and they stop and go on together."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from ranks import ENGINES, agree, launch, records
from runs import TINY_MODEL
from unmask.cli import main

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


TORCH, MINDSPORE = ENGINES
BOTH = [TORCH, pytest.param("mindspore", marks=[*MINDSPORE.marks, pytest.mark.campaign])]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """This process alone, with the engine that starts sooner: both give the same numbers."""
    folder = tmp_path_factory.mktemp("alone")
    engine = "torch" if find_spec("torch") else "mindspore"
    assert main([*RUN, f"engine={engine}", f"output={folder}/run"]) == 0
    found = records(folder)
    assert [record["step"] for record in found] == [*range(1, STEPS + 1), STEPS]
    return found


@pytest.mark.parametrize("engine", [MINDSPORE])  # the other does so below, in two parts
def test_two_processes_train_as_one(engine: str, expected: list[dict[str, float]], tmp_path: Path) -> None:
    ranks = launch(engine, *RUN, f"engine={engine}", cwd=tmp_path)
    out = ranks.end()
    assert ranks.launcher.returncode == 0, out
    assert f"{STEPS} steps, 2 processes" in out
    agree(records(tmp_path), expected)


@pytest.mark.parametrize("engine", BOTH)
def test_two_processes_stop_together_and_go_on_as_one_would(
    engine: str, expected: list[dict[str, float]], tmp_path: Path
) -> None:
    ranks = launch(engine, *RUN, f"engine={engine}", cwd=tmp_path)
    ranks.until_step(5)
    ranks.send(signal.SIGTERM, 1)  # what it knows, the first must learn
    out = ranks.end()
    assert ranks.launcher.returncode != 0
    stopped_at = len(records(tmp_path))
    assert 5 <= stopped_at < STEPS, out
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped_at:08d}").is_dir()
    assert "saved; the same command goes on from there" in out

    ranks = launch(engine, *RUN, f"engine={engine}", cwd=tmp_path)
    out = ranks.end()
    assert ranks.launcher.returncode == 0, out
    assert f"{STEPS} steps, 2 processes, resumed after step {stopped_at}" in out
    agree(records(tmp_path), expected)
