"""A run whose images changed is refused, or goes on and says so (case 19)."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def picture(path: Path, shade: int) -> None:
    """Of the same size in bytes whatever it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (28, 28), shade).save(path, "BMP")


def make_folder(root: Path, shift: int) -> str:
    for number in range(10):
        picture(root / "folder" / "ab"[number % 2] / f"{number}.bmp", 10 * number + shift)
    return str(root / "folder")


def make_list(root: Path, shift: int) -> str:
    make_folder(root, shift)
    (root / "list.txt").write_text("".join(f"folder/{'ab'[n % 2]}/{n}.bmp\n" for n in range(10)))
    return str(root / "list.txt")


def make_tar(root: Path, shift: int) -> str:
    with tarfile.open(root / "set.tar", "w") as tar:
        tar.add(make_folder(root, shift), "folder")
    return str(root / "set.tar")


def make_npy(root: Path, shift: int) -> str:
    np.save(root / "set.npy", np.full((10, 28, 28), shift, np.uint8))
    return str(root / "set.npy")


def make_parquet(root: Path, shift: int) -> str:
    folder = Path(make_folder(root, shift))
    images = [(folder / "ab"[n % 2] / f"{n}.bmp").read_bytes() for n in range(10)]
    pq.write_table(pa.table({"image": images}), root / "set.parquet", compression="none")
    return str(root / "set.parquet")


@pytest.mark.parametrize("make", [make_folder, make_list, make_tar, make_npy, make_parquet])
def test_other_contents_under_the_same_names_and_sizes(
    make: Callable[[Path, int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    spec = make(tmp_path, 0)
    command = ["pretrain", "mae-vit-tiny", f"data.train={spec}", *STEPS, "train.epochs=1", f"output={tmp_path}/run"]
    assert main(command) == 0
    make(tmp_path, 0)
    assert main(command) == 0, "written anew, but the same"
    make(tmp_path, 3)
    assert main(command) == 3
    assert "names and sizes are the same, but not what the images hold; restore it" in capsys.readouterr().err
    assert main([*command, "data.allow_change=true"]) == 0


def test_a_few_images_overwritten_in_place_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_folder(tmp_path, 0)
    command = ["pretrain", "mae-vit-tiny", f"data.train={spec}", *STEPS, "train.epochs=1", f"output={tmp_path}/run"]
    assert main(command) == 0
    picture(tmp_path / "folder" / "a" / "4.bmp", 250)
    assert main(command) == 3
    assert "has changed since the last checkpoint in" in (line := capsys.readouterr().err)
    assert "1 written anew (a/4.bmp); restore it" in line
    assert main([*command, "data.allow_change=true"]) == 0


def test_other_images_to_be_judged_by(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = tmp_path / "val"
    for number in range(6):
        add(val / f"{number}.png")
    assert train(photos, 1, f"data.val={val}") == 0
    (val / "5.png").unlink()
    assert train(photos, 1, f"data.val={val}") == 3
    assert "data.val has changed since the last checkpoint" in (line := capsys.readouterr().err)
    assert "6 images then, 5 now; restore it" in line
    assert train(photos, 1, f"data.val={val}", "data.allow_change=true") == 0
