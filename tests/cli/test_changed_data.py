"""A run whose images changed is refused, or goes on and says so (case 19)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from runs import TINY_MODEL
from unmask.checkpoint.folder import read_meta
from unmask.cli import main

STEPS = [*TINY_MODEL, "train.batch_size=5", "train.log_every=1", "optimizer.warmup_epochs=0"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """10 images in two class folders."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    for number in range(10):
        add(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    return tmp_path / "photos"


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (28, 28), np.uint8)).save(path)


def train(photos: Path, epochs: int, *settings: str, task: str = "pretrain") -> int:
    """5 images a step, into the folder `run` beside the photos."""
    recipe = {"pretrain": "mae-vit-tiny", "finetune": "scratch-vit-tiny"}[task]
    run = f"output={photos.with_name('run')}"
    return main([task, recipe, f"data.train={photos}", *STEPS, f"train.epochs={epochs}", run, *settings])


def meta(photos: Path) -> dict[str, Any]:
    return read_meta(max((photos.with_name("run") / "checkpoints").glob("step-*")))


def test_a_change_is_refused_allowed_and_noted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(photos, 1) == 0
    first = meta(photos)["data"]
    assert (first["images"], first["earlier"]) == (10, [])

    add(photos / "a" / "new.png")
    assert train(photos, 1) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "10 images then, 11 now: 1 added (a/new.png); restore it" in line
    assert line.endswith("or go on with data.allow_change=true")
    assert meta(photos)["data"] == first

    assert train(photos, 2, "data.allow_change=true") == 2, "another number of epochs is another run"
    add(photos / "a" / "newer.png")
    add(photos / "b" / "newest.png")
    add(photos / "b" / "the-newest.png")
    assert train(photos, 1, "data.allow_change=true") == 0
    assert "14 now: 4 added (a/new.png, a/newer.png, b/newest.png, …); going on" in capsys.readouterr().out
    second = meta(photos)["data"]
    earlier = [{"images": 10, "fingerprint": first["fingerprint"], "until_step": 2}]
    assert (second["images"], second["earlier"]) == (14, earlier)
    assert yaml.safe_load((photos.with_name("run") / "run.yaml").read_text("utf-8"))["data"] == second

    assert train(photos, 1) == 0, "the images of the last checkpoint are the ones to compare with"
    assert meta(photos)["data"] == second
    for image in sorted(photos.rglob("*.png"))[:12]:
        image.unlink()
    assert train(photos, 1) == 3
    assert "14 images then, 2 now: 12 gone (a/0.png, a/2.png, a/4.png, …); restore it" in capsys.readouterr().err
    assert train(photos, 1, "data.allow_change=true") == 0, "2 images make less steps than are done"
    assert "2 images, 1 steps, resumed after step 3" in capsys.readouterr().out


def test_other_classes_are_refused_all_the_same(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["augment.mixup=0", "augment.cutmix=0"]
    assert train(photos, 1, *plain, task="finetune") == 0
    (photos / "b").rename(photos / "c")
    assert train(photos, 1, *plain, "data.allow_change=true", task="finetune") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "has other classes than" in line
