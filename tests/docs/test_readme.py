"""What the README shows is run, with models and images made small; the Chinese one shows the same."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unmask.sweep
from engine_cases import objective_of
from pages import ROOT, SMALL, blocks, commands
from unmask.cli import main
from unmask.interchange import StoredModel, write_model

TABLES = commands("docs/tables.md")
"""What the page about tables shows, with the models of the README."""


@pytest.mark.usefixtures("images")
def test_every_unmask_command_runs() -> None:
    ours = [shlex.split(line)[1:] for line in [*commands(), *TABLES] if line.startswith("unmask ")]
    assert {words[0] for words in ours} >= {"pretrain", "finetune", "evaluate", "predict", "embed", "reconstruct"}
    for words in ours:
        small = [f"{key}={value}" for key, value in SMALL.items()] if words[0] in ("pretrain", "finetune") else []
        assert main([*words, *small]) == 0, words
    for out in ("reconstruction.png", "embeddings.parquet", "predictions.csv", "check", "report.html", "map.csv"):
        assert Path(out).exists()


@pytest.mark.usefixtures("images")
def test_the_python_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import unmask.api

    load_config = unmask.api.load_config
    monkeypatch.setattr(unmask.api, "load_config", lambda recipe, settings: load_config(recipe, {**settings, **SMALL}))
    (code,) = blocks("python")
    rng = np.random.default_rng(0)
    names: dict[str, object] = {"dataset": [(rng.integers(0, 256, (40, 48, 3), np.uint8), i % 2) for i in range(8)]}
    exec(code, names)
    for name, shape in {"features": (6, 32), "places": (6, 4, 4, 32), "painted": (6, 32, 32, 3)}.items():
        assert np.shape(names[name]) == shape
    assert isinstance(names["network"], torch.nn.Module)


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    shown = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert shown
    assert set(shown) <= set(targets)


def test_every_link_leads_to_a_file() -> None:
    for page in (*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!https?:|#|\.\./\.\./)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_languages_show_the_same_code() -> None:
    for language in ("bash", "python", "text"):
        assert blocks(language) == blocks(language, "README.zh-CN.md")
        assert blocks(language, "docs/tables.md") == blocks(language, "docs/tables.zh-CN.md")


def test_the_guide_to_few_labels_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few pictures, two labels and two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unmask.sweep, "CNN_STEPS", 2)
    rng = np.random.default_rng(0)
    for folder in (
        f"{name}/{part}/{label}" for name in ("cifar10", "clothing") for part in ("train", "test") for label in "ab"
    ):
        Path(folder).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(Path(folder) / f"{i}.jpg")
    for name in "ab":
        shutil.copytree(f"clothing/train/{name}", f"labelled/train/{name}")
        shutil.copytree(f"clothing/test/{name}", f"labelled/val/{name}")
    shutil.copytree("clothing/test/a", "photos")
    small = [f"{key}={value}" for key, value in SMALL.items()] + ["data.workers=0", "train.precision=fp32"]
    for part in ("train", "val"):
        for folder, high in ((f"defects/{part}", 256), (f"defects/{part}-masks", 2)):
            Path(folder).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, high, (40, 48, 3) if high == 256 else (40, 48), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder) / f"{i}.png")
    lines = [line for block in blocks("bash", "docs/few-labels.md") for line in block.splitlines()]
    assert len(lines) == 13
    for line in lines:
        small_line = re.sub(r"(labels_per_class)=\d+", r"\1=2", line)
        words = shlex.split(small_line.replace("runs/defects", "runs/cifar10-mae"))[1:]
        if words[0] == "probe":
            words = ["2" if word == "50" else word for word in words] + ["--device", "cpu"]
        elif words[0] == "sweep-labels":
            words = [*words[: words.index("--labels")], *small, "--labels", "2", "--seeds", "0", "--steps", "2"]
        elif words[0] not in ("evaluate", "predict"):
            words += small
        assert main(words) == 0, line
    for name in ("cifar10", "clothing"):
        assert (tmp_path / "runs" / f"{name}-few" / "few-labels.png").exists()


@pytest.mark.usefixtures("images")
def test_the_guide_to_starts_runs() -> None:
    """With a small stand-in of DINOv2 in place of the one on the hub."""
    fields = {key.removeprefix("model."): value for key, value in SMALL.items() if key.startswith("model.")}
    objective = objective_of("encoder", **fields, layer_scale=1e-5)
    data = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "eval_crop": 0.875, "eval_fit": "crop", "interpolation": "bicubic"}
    weights = dict(objective.initial_weights(0))
    stored = StoredModel(weights, objective.model.model_dump(mode="json"), None, "unmask", data=data)
    write_model("transformers", Path("dinov2"), stored)
    small = [f"{key}={value}" for key, value in SMALL.items()]
    assert blocks("bash", "docs/start.md") == blocks("bash", "docs/start.zh-CN.md")
    lines = [line for block in blocks("bash", "docs/start.md") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line.replace("hf://facebook/dinov2-small", "dinov2"))[1:]
        assert main([*words, *(small if words[0] != "probe" else [])]) == 0, line
    assert Path("runs/transfer/trial.json").exists()
    assert Path("runs/adapted/reconstruction.png").exists()
