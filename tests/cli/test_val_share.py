"""A run with `data.val=30%`: it is judged by images it is not trained on, resumes with the same, and notes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import main

pytest.importorskip("torch", reason="PyTorch is not installed")


def test_a_share_is_set_aside_for_the_whole_life_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        path = Path("photos") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
    words = ["data.train=photos", "data.val=30%", "output=run", *TINY_MODEL, "train.batch_size=4", "device=cpu"]
    words += ["optimizer.warmup_epochs=0", "train.epochs=1"]
    assert main(["pretrain", "mae-vit-tiny", *words]) == 0
    said = capsys.readouterr().out
    described = yaml.safe_load(Path("run/run.yaml").read_text())
    assert described["config"]["data"]["val"] == "30%"
    images, held = described["data"]["images"], described["data"]["val"]["images"]
    assert images + held == 40
    assert f"data.val=30%: {held} of 40 images of data.train are for validation" in said
    assert "reconstructions in run/reconstruction.png" in said
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows].count("val") == 1
    assert main(["pretrain", "mae-vit-tiny", *words]) == 0  # nothing left to do
    assert main(["replay", "run", "--step", "2"]) == 0
    assert "the same numbers" in capsys.readouterr().out
    assert main(["report", "run", "--out", "page.html", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Missing" not in said
    assert main(["pretrain", "mae-vit-tiny", *words, "data.val=50%"]) != 0
    assert "data.val has changed" in capsys.readouterr().err
