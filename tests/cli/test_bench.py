"""`unmask bench` and `unmask doctor --tune`, on a small model and real files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.bench import bench, show
from unmask.cli import main
from unmask.doctor import THREADS, tune

TINY = ["model.image_size=32", "model.patch_size=8", "model.width=32", "model.depth=1", "model.heads=2"]
TINY += ["model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "device=cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("engine", ["torch", pytest.param("mindspore", marks=pytest.mark.campaign)])
def test_it_says_what_binds_and_what_to_change(photos: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    settings = [*TINY, f"engine={engine}", f"data.train={photos}", "train.batch_size=8", "train.precision=fp32"]
    assert main(["bench", "mae-vit-tiny", *settings, "--seconds=2"]) == 0
    said = capsys.readouterr().out
    rates = [float(rate) for rate in re.findall(r"^(?:loader alone|step alone|together)  +([\d.]+)", said, re.M)]
    assert len(rates) == 3
    assert min(rates) > 0
    assert ("the step binds" in said) == (rates[1] <= rates[0])


def test_advice_is_of_what_binds(capsys: pytest.CaptureFixture[str]) -> None:
    measured = bench("finetune-vit-tiny", [*TINY, "train.batch_size=4", "train.precision=fp32"], 1.0)
    show(measured, "finetune-vit-tiny")
    said = capsys.readouterr().out
    assert "data.train is not set: 64 random JPEG of 500 x 375 pixels" in said
    assert measured.binds == ("loader" if measured.loader.median < measured.step.median else "step")
    assert all(setting in said for setting in measured.advice)
    assert ("unmask pack" in said) == (measured.binds == "loader")


def test_a_step_that_takes_long_is_made_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    measured = bench("mae-vit-tiny", [*TINY, "model.image_size=64", "train.batch_size=65536"], 0.5)
    assert 2 <= measured.images < 65536
    assert f"measured in steps of {measured.images}" in capsys.readouterr().out


def test_images_that_cannot_be_made_up_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["model.channels=5", "data.mean=[0,0,0,0,0]", "data.std=[1,1,1,1,1]"]
    assert main(["bench", "mae-vit-tiny", *TINY, *more]) != 0
    assert "set data.train" in capsys.readouterr().err


def test_tuning_gives_settings_to_paste(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    paste = tune("mae-vit-tiny", [*TINY, f"data.train={photos}", "train.batch_size=4"], 0.1)
    found = re.fullmatch(rf"{THREADS}=(\d+) unmask pretrain mae-vit-tiny .* train.accumulate=1", paste)
    assert found
    said = capsys.readouterr().out
    assert f"to paste: {paste}" in said
    assert re.search(r"^ +1 +4 +0\.\d+ +[\d.]+$", said, re.M)
