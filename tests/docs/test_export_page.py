"""The page of exports: its commands run, its program names a class, and both languages show the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import main
from unmask.evaluate.inference import load

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("export.md", "export.zh-CN.md")]
SMALL = ["train.epochs=1", "train.batch_size=10", "model.depth=1", "data.train=bundled:mnist5k/train"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("language", ["bash", "python"])
def test_both_languages_show_the_same(language: str) -> None:
    assert len(blocks(PAGES[0], language)) == 1
    assert blocks(PAGES[0], language) == blocks(PAGES[1], language)


def test_its_commands_and_its_program_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.chdir(tmp_path)
    few = [*TINY_MODEL, *SMALL, "data.labels_per_class=2", "init=null"]
    assert main(["pretrain", "mae-vit-tiny", *few, "output=runs/pretrained"]) == 0
    assert main(["finetune", "finetune-vit-tiny", *few, "output=runs/finetuned"]) == 0
    Path("images/val").mkdir(parents=True)
    y, x = np.mgrid[:40, :33]
    for i in range(3):
        smooth = 127 + 60 * np.sin(x / (4 + i)) + 60 * np.cos(y / 6)
        Image.fromarray(smooth.astype(np.uint8)).save(f"images/val/{i}.png")
    Image.open("images/val/0.png").save("photo.jpg", quality=95)
    for line in blocks(PAGES[0], "bash")[0].splitlines():
        assert main(shlex.split(line)[1:]) == 0, line

    capsys.readouterr()
    (program,) = blocks(PAGES[0], "python")
    exec(program, found := {})
    said = capsys.readouterr().out.strip()
    with load("runs/finetuned") as model:
        (batch,) = model.batches("photo.jpg")
        apart = np.abs(batch.images[:1].astype(int) - found["pixels"])
        assert apart.mean() < 4  # Pillow's bicubic beside ours, and at most half a pixel
        assert said == (model.class_names or ())[model.engine.output("logits", batch)[0].argmax()]
