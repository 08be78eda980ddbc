"""Each example is run, on images made here and a model that was trained for two epochs."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pages import ROOT, SMALL
from unmask.cli import main

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue pictures with a red square, and green ones with a red disc; masks; a pretrained model, a classifier."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    for kind, background in (("square", (30, 60, 200)), ("disc", (40, 180, 60))):
        for part, count in (("labelled", 6), ("unlabelled", 8)):
            for i in range(count):
                cy, cx = rng.integers(14, 34, 2)
                inside = (np.maximum(abs(y - cy), abs(x - cx)) if kind == "square" else np.hypot(y - cy, x - cx)) < 10
                pixels = np.where(inside[:, :, None], (210, 40, 40), background) + rng.integers(-20, 20, (48, 48, 3))
                name = f"{part}/{kind}/{i}.png" if part == "labelled" else f"{part}/{kind}{i}.png"
                for root, image in ((folder, pixels.clip(0, 255)), (folder / "masks", inside)):
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image.astype(np.uint8)).save(root / name)
    small = [f"{key}={value}" for key, value in SMALL.items()]
    data = f"data.train={folder}/labelled"
    assert main(["pretrain", "mae-vit-tiny", data, *small, f"output={folder}/mae"]) == 0
    probe = ["objective.head=probe", f"init={folder}/mae", data, *small, "train.epochs=0"]
    assert main(["finetune", "finetune-vit-tiny", *probe, f"output={folder}/round1"]) == 0
    return folder


def run(name: str, *words: object, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(at)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_an_image_is_its_own_nearest(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time from what was kept
        words = ["mae", "unlabelled", "--like", "unlabelled/disc3.png", "--top", 3]
        run("search.py", *words, at=work, monkeypatch=monkeypatch)
        lines = capsys.readouterr().out.splitlines()[-3:]
        assert lines[0].split() == ["1.000", "disc3.png"]


def test_what_to_label_next(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("label_next.py", "round1", "unlabelled", "--count", 4, at=work, monkeypatch=monkeypatch)
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert len({name for name, *_ in rows}) == 4
    assert {guess for _, guess, _ in rows} <= {"square?", "disc?"}
    choose = runpy.run_path(str(EXAMPLES / "label_next.py"))["choose"]
    probabilities = np.array([[0.9, 0.1], [0.51, 0.49], [0.52, 0.48], [0.5, 0.5]], np.float32)
    features = np.array([[1, 0], [1, 0.01], [0, 1], [1, 0]], np.float32)
    assert choose(probabilities, features, 2) == [3, 2]  # the least certain, and what is least like it


def test_masks_are_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("square", "disc"):
        words = ["mae", f"labelled/{kind}", f"masks/labelled/{kind}", "unlabelled", "--out", f"found-{kind}"]
        run("segment.py", *words, at=work, monkeypatch=monkeypatch)
        names = [path.name for path in (work / f"found-{kind}").iterdir() if path.name.startswith(kind)]
        found, true = (np.stack([np.asarray(Image.open(folder / name)) for name in names]) for folder in (
            work / f"found-{kind}", work / "masks" / "unlabelled"
        ))  # fmt: skip
        assert len(names) == 8
        assert (found & true).sum() / (found | true).sum() > 0.4


@pytest.mark.parametrize(
    "settings",
    [
        ["small-finetune"],
        ["few-labels", "model.patch_size=32", "data.labels_per_class=2"],
        ["finetune-vit-tiny", "model.patch_stem=16"],
    ],
)
def test_a_stem_gives_the_same_in_timm_and_goes_on_learning(
    work: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    import torch

    import unmask

    recipe, *more = settings
    small = ["model.width=24", "model.depth=1", "model.image_size=64", "train.epochs=1", "train.batch_size=4"]
    data = [f"data.train={work}/labelled", "init=null", "device=cpu", f"output={tmp_path}/run"]
    assert main(["finetune", recipe, *small, *more, *data]) == 0
    assert main(["convert", f"{tmp_path}/run", f"{tmp_path}/taught.pth", "--to", "facebook"]) == 0
    network, told = runpy.run_path(str(EXAMPLES / "stem_in_timm.py"))["load_classifier"](f"{tmp_path}/taught.pth")
    images = torch.rand(3, 3, 64, 64)
    with unmask.load(tmp_path / "run", settings={"objective.teacher_share": 0}) as loaded:  # the network alone
        torch.testing.assert_close(network(images), loaded.module(images), atol=1e-5, rtol=0)
    network(images).sum().backward()
    assert network.patch_embed.stem[0].conv1.weight.grad.abs().max() > 0
    capsys.readouterr()
    run("stem_in_timm.py", "taught.pth", f"{work}/labelled/disc/0.png", at=tmp_path, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.split("\t")[1] in told["class_names"]


def test_a_detector_learns(work: Path) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    import torch

    import unmask

    example = runpy.run_path(str(EXAMPLES / "detection.py"))
    with unmask.load(work / "mae") as loaded:
        network = loaded.module
    torch.manual_seed(0)
    maps = example["Pyramid"](network)(torch.rand(2, 3, 32, 32))
    assert [tuple(each.shape) for each in maps.values()] == [(2, 64, side, side) for side in (16, 8, 4, 2)]
    model = example["detector"](network, 2, image_size=32, mean=[0.5] * 3, std=[0.25] * 3)
    try:
        torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)
    except RuntimeError:
        pytest.skip("torchvision has no operators here: it is of another build than PyTorch")
    images = [torch.rand(3, 32, 32) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[8.0, 8, 24, 24]]), "labels": torch.tensor([1])} for _ in images]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert network.pos_embed.grad is not None
    boxes = model.eval()(images)[0]["boxes"]
    assert boxes.shape[1] == 4


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\(([\w./-]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in EXAMPLES.iterdir()} - {"README.md"} <= {Path(name).parts[0] for name in listed}


def cells(name: str) -> list[str]:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebooks_have_the_same_code() -> None:
    assert cells("first-steps.ipynb") == cells("first-steps.zh-CN.ipynb")


@pytest.mark.campaign
def test_the_notebooks_run(tmp_path: Path) -> None:
    """With fewer steps, each in a kernel of its own."""
    for package in ("torch", "mlxtend", "ipykernel", "nbmake"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    for notebook in EXAMPLES.glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        short = text.replace('\\"train.epochs\\": 5', '\\"train.epochs\\": 0.1')
        assert short != text
        (tmp_path / notebook.name).write_text(short, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--nbmake", "."],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert (tmp_path / "runs" / "notebook" / "reconstruction.png").exists()
