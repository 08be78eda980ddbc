"""`unmask replay` does a step again with the numbers of the run, whatever was interrupted on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import main
from unmask.data.loader.order import sample_at

pytest.importorskip("torch", reason="PyTorch is not installed")

RUN = [*TINY_MODEL, "train.batch_size=6", "train.epochs=4", "optimizer.warmup_epochs=1", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 steps on 24 images, with the checkpoints of the last two epochs."""
    root = tmp_path_factory.mktemp("replay")
    for number in range(24):
        path = root / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        command = ["pretrain", "mae-vit-tiny", f"data.train={root}/photos", f"output={root}/run"]
        assert main([*command, *RUN, "train.ema_decay=0.9", "augment.repeats=2"]) == 0
    return root


@pytest.mark.parametrize("step", [1, 7, 13, 16])
def test_the_numbers_are_those_of_the_run(
    place: Path, step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(place / "cache"))
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    assert main(["replay", str(place / "run"), "--step", str(step), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "step.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    (logged,) = [row for row in rows if row["split"] == "train" and row["step"] == step]
    assert found["same"] is True
    assert found["found"]["loss"] == logged["loss"]
    assert found["found"]["grad_norm"] == logged["grad_norm"]
    assert found["weight_norms"]["blocks.0.attn.qkv.weight"] > 0
    names = sorted(f"{'ab'[n % 2]}/{n:02}.png" for n in range(24))
    stream = [names[sample_at(position, 24, 0, 2)[1]] for position in range(6 * (step - 1), 6 * step)]
    assert (tmp_path / "out" / "images.txt").read_text("utf-8").splitlines() == stream
    with Image.open(tmp_path / "out" / "batch.png") as picture:
        assert picture.width > 100
    said = capsys.readouterr().out
    assert ("from the start" if step < 9 else "from the checkpoint of step 12") in said
    assert "the same numbers; 6 images" in said
    assert {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("folder", "step", "message"),
    [
        ("run", "17", "has the steps 1 to 16; --step 17 is none of them"),
        ("photos", "1", "is no run folder"),
        ("nowhere", "1", "is no run folder"),
    ],
)
def test_what_cannot_be_replayed(
    place: Path,
    folder: str,
    step: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(place / "cache"))
    assert main(["replay", str(place / folder), "--step", step]) == 2
    assert message in capsys.readouterr().err
