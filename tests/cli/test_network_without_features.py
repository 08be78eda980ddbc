"""A network that gives no features: each command does without, or says so in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.cli import main

pytest.importorskip("torch", reason="PyTorch is not installed")

SIZE = ["model.image_size=16", "model.patch_size=8", "model.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]
SETTINGS = [*SIZE, "objective.width=8", "train.batch_size=4", "train.epochs=1", "optimizer.warmup_epochs=0"]
TRAIN = ["finetune", "convnet", "data.train=photos", "data.val=photos", *SETTINGS, "device=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    for number in range(8):
        path = root / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        assert main([*TRAIN, "output=run"]) == 0
    return root


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("UNMASK_CACHE", str(place / "cache"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["embed", "run", "photos", "--out", "e.npy"], 2, "this model gives no features, as objective.name=convnet"),
        (["embed", "run", "photos", "--out", "e/"], 2, "this model gives no features"),
        (["knn", "run", "photos", "photos"], 2, "this model gives no features"),
        (["probe", "run", "photos", "photos"], 2, "this model gives no features"),
        (["probe", "run", "photos", "photos", "--attentive"], 2, "this model gives no patch features"),
        (
            ["probe", "run", "photos", "photos", "--segment", "photos", "photos"],
            2,
            "this model gives no patch features",
        ),
        (["serve", "run", "--images", "photos", "--port", "0"], 2, "this model gives no features"),
        (["export", "run", "m.onnx", "--outputs", "features"], 2, "this model gives logits"),
        (["reconstruct", "run", "photos"], 2, "this model cannot reconstruct"),
        ([*TRAIN, "output=other", "evaluate.every=1"], 2, "evaluate.every looks at features"),
        ([*TRAIN, "output=other", "init=run"], 2, "trained from scratch; leave out init"),
        *(
            (["convert", "run", "m", "--to", format], 4, f"{format} has no place for a network of objective.name=conv")
            for format in ("facebook", "timm", "transformers", "mindspore", "mindspore-zoo")
        ),
    ],
)
def test_what_it_cannot_do_is_one_line_and_leaves_nothing(
    words: list[str], code: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "serve":
        pytest.importorskip("uvicorn", reason="unmask[serve] is not installed")
    before = {*place.iterdir()} | {place / "cache"}
    assert main(words) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {*place.iterdir()} <= before


@pytest.mark.parametrize(
    "words",
    [
        ["report", "run", "--images", "8"],
        ["evaluate", "run", "photos"],
        ["predict", "run", "photos"],
        ["replay", "run", "--step", "1"],
        ["launch", "slurm", *TRAIN[1:-1], "output=other", "--check", "1x2"],
    ],
    ids=lambda words: words[0],
)
def test_what_it_can(words: list[str], place: Path) -> None:
    assert main(words) == 0
    if words[0] == "report":
        assert "maps" in (place / "run" / "report.html").read_text("utf-8")


def test_a_step_of_one_channel_is_counted_with_an_average(capsys: pytest.CaptureFixture[str]) -> None:
    """One number alone is a constant to what counts, and was copied as if it had memory."""
    settings = ["data.train=photos", *SIZE, "train.batch_size=4", "train.ema_decay=0.9", "output=other"]
    assert main(["launch", "slurm", "mae-vit-tiny", *settings, "--check", "1x2"]) == 0
    assert "GB" in capsys.readouterr().out
