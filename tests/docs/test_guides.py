"""The commands of the guides run, on images made here and models made small; both languages show the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pages import ROOT, SMALL, blocks, commands
from unmask.cli import main
from unmask.report.log import read_log

GUIDES = ("own-images", "satellite", "medical", "log-fields", "comparison", "few-labels", "mindspore")


def run(page: str) -> None:
    """Every command of a page, with a small model."""
    for line in commands(f"docs/{page}.md"):
        words = shlex.split(line)[1:]
        small = [f"{key}={value}" for key, value in SMALL.items()] if words[0] in ("pretrain", "finetune") else []
        assert main([*words, *small]) == 0, line


@pytest.mark.parametrize("page", GUIDES)
def test_both_languages_show_the_same(page: str) -> None:
    english, chinese = f"docs/{page}.md", f"docs/{page}.zh-CN.md"
    for language in ("bash", "text", "python"):
        assert blocks(language, english) == blocks(language, chinese)
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (english, chinese)]
    shapes = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in texts]
    assert shapes[0] == shapes[1]
    figures = [re.findall(r"\d+\.\d", text) for text in texts]
    assert sorted(figures[0]) == sorted(figures[1])


@pytest.mark.usefixtures("images")
def test_own_images() -> None:
    run("own-images")
    for out in ("packed", "evaluation", "report.html", "mae.pth", "mae-for-transformers"):
        assert Path(out).exists()


def picture(number: int, size: int, channels: int, top: float) -> NDArray[np.uint16]:
    """A slope of brightness, (size, size, channels)."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size] / size
    light = 0.3 + 0.2 * (rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x)[:, :, None] * np.linspace(1, 2, channels)
    return (top * (light + rng.normal(0, 0.02, light.shape))).clip(1, top).astype(np.uint16)


def test_satellite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate([f"{where}/{i}.tif" for where in (
        "scenes", *(f"fields/{part}/{crop}" for part in ("train", "val") for crop in ("maize", "rye"))
    ) for i in range(4)]):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = picture(number, 96, 4, 10000)
        pixels[:8] = 0  # what the satellite did not see
        tags = [(42113, "s", 0, "0", True)]
        tifffile.imwrite(name, pixels, tile=(32, 32), photometric="minisblack", planarconfig="contig", extratags=tags)
    run("satellite")
    printed = capsys.readouterr().out
    assert "model.channels=4 data.dtype=uint16" in printed
    assert Path("bands.png").exists()


def test_medical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate([f"{where}/patient{i // 2}_{i}.png" for where in (
        "scans", "findings/healthy", "findings/fracture"
    ) for i in range(12)]):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 48, 1, 4095)[:, :, 0]).save(name)
    run("medical")
    assert Path("findings.html").exists()


@pytest.mark.usefixtures("images")
def test_every_field_of_a_log_is_explained() -> None:
    """Of a pretraining with all that it may log; the parts of other objectives are in their networks' `terms`."""
    settings = [f"{key}={value}" for key, value in SMALL.items()] + ["output=run"]
    watched = ["evaluate.every=1", "evaluate.train=labelled/train", "evaluate.val=labelled/val"]
    train = ["data.train=photos", "data.val=photos", "train.ema_decay=0.9", *watched]
    assert main(["pretrain", "mae-vit-tiny", *train, *settings]) == 0
    text = (ROOT / "docs" / "log-fields.md").read_text(encoding="utf-8")
    explained = {name for line in text.splitlines() if line.startswith("| `")
                 for name in re.findall(r"`(\w+)`", line.split("|")[1])}  # fmt: skip
    logged = {name for file in ("metrics.jsonl", "speed.jsonl") for row in read_log(Path("run") / file) for name in row}
    assert logged - explained == {"step", "split"}
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/unmask/objectives").rglob("mindspore.py")
    )
    terms = {name for line in re.findall(r"terms = \((.*)\)", sources) for name in re.findall(r'"(\w+)"', line)}
    assert terms
    assert terms - explained == set()
