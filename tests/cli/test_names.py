"""Names of any characters and bytes, in whatever locale, through the commands that say and write them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runs import ENVIRONMENT, TINY_MODEL
from unmask.cli import main

pytest.importorskip("torch", reason="PyTorch is not installed")

CLASSES = ["猫", "a\nb", "=1+1", os.fsdecode(b"x\xff")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / "图片"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"图{i}.png")
    return folder


@pytest.fixture(scope="module")
def classifier(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "分类"
    settings = [*TINY_MODEL, f"data.train={photos}", "train.batch_size=4", "train.epochs=0.5", "augment.policy=null"]
    assert main(["finetune", "finetune-vit-tiny", *settings, "optimizer.warmup_epochs=0", f"output={run}"]) == 0
    return run


def test_predictions_name_every_class(classifier: Path, photos: Path, tmp_path: Path) -> None:
    shown = {"猫", r"a\nb", "=1+1", r"x\xff"}
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"p.{suffix}"
        assert main(["predict", str(classifier), str(photos), "--out", str(out)]) == 0
        assert all(name in _text(out) for name in shown), suffix


def _text(out: Path) -> str:
    if out.suffix == ".parquet":
        return repr(pq.read_table(out).to_pydict()).replace("\\\\", "\\")
    if out.suffix == ".jsonl":
        return repr([json.loads(line) for line in out.read_text("utf-8").splitlines()]).replace("\\\\", "\\")
    return repr(list(csv.reader(out.read_text("utf-8").splitlines()))).replace("\\\\", "\\")


@pytest.mark.parametrize("command", [["check", "PHOTOS"], ["predict", "RUN", "PHOTOS"], ["stats", "PHOTOS"]])
def test_a_locale_without_these_characters_escapes_them(
    command: list[str], classifier: Path, photos: Path, tmp_path: Path
) -> None:
    words = [{"PHOTOS": str(photos), "RUN": str(classifier)}.get(word, word) for word in command]
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "unmask", *words], cwd=tmp_path, env=ENVIRONMENT | ascii_only, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert done.stdout.isascii()
