"""docs/extending.md does what it says: its files are written, installed and run as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.cli import main

DOCS = Path(__file__).parents[2] / "docs"
SMALL = [
    *("model.image_size=32", "model.patch_size=8", "model.width=32", "model.depth=2", "model.heads=2"),
    *("model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "train.epochs=2"),
    *("train.batch_size=4", "optimizer.warmup_epochs=0", "device=cpu"),
]


def blocks(language: str, file: str = "extending.md") -> list[str]:
    text = (DOCS / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The guide's files and entry points, as pip would lay them."""
    for block in blocks("python"):
        name, _, code = block.partition("\n")
        path = tmp_path / name.removeprefix("# file: ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    points = re.sub(r"\[project\.entry-points\.\"(.*?)\"\]", r"[\1]", "\n".join(blocks("toml")))
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(points.replace('"', ""), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    for folder in ("photos", *(f"labelled/{part}/{label}" for part in ("train", "val") for label in ("cat", "dog"))):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / folder / f"{i}.jpg")
    return tmp_path


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True, timeout=300
    )


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_an_objective_of_another_package_is_one_like_any_other(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pretrain, knn = (line.split()[1:] for line in blocks("bash")[0].splitlines())
    done = run(installed, "-m", "unmask", *pretrain, *SMALL)
    assert done.returncode == 0, done.stderr
    assert run(installed, "-m", "unmask", *knn).returncode == 0
    plain = [word for word in pretrain if not word.startswith(("objective", "output"))]
    monkeypatch.chdir(installed)
    assert main([*plain, *SMALL, "output=runs/plain"]) == 0
    robust, squared = losses(installed / "runs/robust")[0], losses(installed / "runs/plain")[0]
    assert 0 < robust < squared, "the same weights and masks, another distance"
    wrong = run(installed, "-m", "unmask", *[word.replace("delta", "dleta") for word in pretrain], *SMALL)
    assert wrong.returncode == 2
    assert "objective.dleta: unknown key, did you mean objective.delta?" in wrong.stderr


def test_training_on_an_object(installed: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    done = run(installed, "train_on_stripes.py", "runs/stripes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(1, 32) (1, 4, 4, 32) 8"


def test_an_engine_is_known_before_its_framework_is_there(installed: Path) -> None:
    done = run(installed, "-m", "unmask", "pretrain", "mae-vit-tiny", "engine=mine", "data.train=photos", *SMALL)
    assert done.returncode == 6
    assert "engine=mine needs the package my_framework: pip install 'my-framework'" in done.stderr
    job = ["launch", "slurm", "mae-vit-tiny", "engine=mine", "data.train=photos", "output=runs/mine"]
    assert "engine=mine: jobs are for torch and mindspore" in run(installed, "-m", "unmask", *job).stderr
    done = run(installed, "-m", "unmask", "doctor")
    assert "pip install 'my-framework'" in done.stdout, done.stderr


@pytest.mark.parametrize("file", ["extending.md", "extending.zh-CN.md"])
def test_files_that_the_guide_names_are_there(file: str) -> None:
    text = (DOCS / file).read_text(encoding="utf-8")
    source = DOCS.parent / "src" / "unmask"
    for name in re.findall(r"`((?:objectives|data|engines|evaluate)/[\w/.]*|plugins\.py)`", text):
        assert (source / name).exists(), name


def test_both_languages_show_the_same_code() -> None:
    for language in ("python", "toml", "bash"):
        assert blocks(language) == blocks(language, "extending.zh-CN.md") != []
