"""Several processes embed and classify images together: each its share, and the files are those of one process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ranks import ENGINES, launch
from runs import TINY_MODEL, unmask

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "data.labels_per_class=5", "train.epochs=1"]
BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]


@pytest.mark.parametrize("engine", BOTH)
def test_embeddings_are_those_of_one_process_also_when_one_is_killed(engine: str, tmp_path: Path) -> None:
    settings = [*TINY_MODEL, *SHORT, "data.train=bundled:mnist5k/train", f"engine={engine}", "output=run"]
    assert unmask("pretrain", "mae-vit-tiny", *settings, cwd=tmp_path).returncode == 0
    command = ["embed", "run", "bundled:mnist5k/val", "--batch-size", "4", "--device", "cpu", "--out"]
    assert unmask(*command, "alone.npy", cwd=tmp_path).returncode == 0

    ranks = launch(engine, *command, "shared.npy", cwd=tmp_path)
    ranks.until(lambda: any((tmp_path / "shared.npy.partial").glob("part-*.bin")))
    ranks.send(signal.SIGKILL, 1)
    ranks.end()
    assert ranks.launcher.returncode != 0
    assert not (tmp_path / "shared.npy").exists()
    ranks = launch(engine, *command, "shared.npy", cwd=tmp_path)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    assert said.count("1000 embeddings of width 32 in shared.npy") == 1, said
    for name in ("npy", "names.txt"):
        assert (tmp_path / f"shared.{name}").read_bytes() == (tmp_path / f"alone.{name}").read_bytes()
    assert not (tmp_path / "shared.npy.partial").exists()
