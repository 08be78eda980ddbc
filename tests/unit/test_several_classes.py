"""Images of several classes, from the list that names them to the measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import unmask.train
from fake_engine import FakeEngine
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.errors import ConfigError
from unmask.train import train

COLOURS = ("red", "green", "blue")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """21 plain images and a CSV of which of the three colours are in each."""
    monkeypatch.setattr(unmask.train, "create_engine", FakeEngine)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    lines = ["path,label"]
    for number in range(21):
        bits = [bool(number % 7 + 1 >> channel & 1) for channel in range(3)]
        Image.new("RGB", (16, 16), tuple(255 * bit for bit in bits)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png," + ";".join(name for name, bit in zip(COLOURS, bits, strict=True) if bit))
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return tmp_path / "list.csv"


def config_of(listed: Path, loss: str = "cross_entropy") -> Config:
    return check_config(
        {
            "objective": {"name": "classify", "loss": loss},
            "model": {"image_size": 16, "patch_size": 8, "width": 192, "depth": 1, "heads": 2},
            "data": {"train": str(listed), "val": str(listed)},
            "augment": {"mixup": 0.2, "label_smoothing": 0.1},
            "optimizer": {"base_lr": 3.0, "warmup_epochs": 0},
            "train": {"epochs": 60, "batch_size": 8, "eval_every": 60},
        }
    )


def test_a_run_learns_which_classes_are_in_an_image(listed: Path, tmp_path: Path) -> None:
    result = train(config_of(listed, loss="bce"), tmp_path / "run")
    assert result["val_rank_precision"] == 1
    assert result["val_top1"] == 1
    assert result["val_loss"] < 0.35


def test_cross_entropy_is_refused(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"several classes an image, which needs objective.loss=bce"):
        train(config_of(listed), tmp_path / "run")
