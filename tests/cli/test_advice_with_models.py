"""What a message advises can be done, of the commands that take a model or make a job: see test_advice.py."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from runs import TINY_MODEL, start
from unmask.cli import main

pytest.importorskip("torch", reason="PyTorch is not installed")

RNG = np.random.default_rng(0)
TRAIN = [*TINY_MODEL, "data.train=photos", "train.batch_size=6", "optimizer.warmup_epochs=0", "train.epochs=1"]
FINETUNE = ["finetune", "finetune-vit-tiny", *TRAIN, "augment.policy=null", "objective.head=drawn"]
BANDS = ["data.train=bands", "train.batch_size=2", "model.channels=4", "data.dtype=uint16"]
BANDS += ["data.mean=[0.1,0.1,0.1,0.1]", "data.std=[0.1,0.1,0.1,0.1]"]
SEMI = ["model.drop_path=0", "augment.label_smoothing=0"]
CPU = ["--device", "cpu"]
JOB = ["mae-vit-tiny", "data.train=s3://b/photos", "output=s3://b/run", "data.workers=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, others that lack something, and models of them."""
    root = tmp_path_factory.mktemp("made")
    for folder, names in {"photos": "ab", "named": ("cats", "dogs"), "broken": "ab", "flat": ("",)}.items():
        for name in names:
            (root / folder / name).mkdir(parents=True)
            for number in range(6):
                Image.fromarray(RNG.integers(0, 256, (28, 28), np.uint8)).save(root / folder / name / f"{number}.png")
    for name in "ab":
        (root / "broken" / name / "1.png").write_bytes(b"no image")
    (root / "bands").mkdir()
    for number in range(2):
        pixels = RNG.integers(1, 999, (28, 28, 4)).astype(np.uint16)
        tifffile.imwrite(root / f"bands/{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
    (root / "map.json").write_text('{"cats": "a", "dogs": "b"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["pretrain", "mae-vit-tiny", *TRAIN, "output=mae"]) == 0
        assert main(["pretrain", "mae-vit-tiny", *TRAIN, "model.cls_token=false", "output=nocls"]) == 0
        assert main([*FINETUNE, "output=classifier"]) == 0
        assert main(["convert", "classifier", "nameless.pth", "--to", "facebook"]) == 0
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in made.iterdir():
        if path.name in ("mae", "classifier", "nocls"):
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES: dict[str, tuple[list[str], str, list[str]]] = {
    "pretrain, no images": (["pretrain", "mae-vit-tiny"], "data.train=FOLDER", ["pretrain", "mae-vit-tiny", *TRAIN]),
    "pretrain, channels": (
        ["pretrain", "mae-vit-tiny", *TRAIN, "data.train=bands"],
        "set model.channels=4 data.dtype=uint16 and the data.mean and data.std",
        ["pretrain", "mae-vit-tiny", *TRAIN, *BANDS, "output=bands-run"],
    ),
    "pretrain, another run": (
        ["pretrain", "mae-vit-tiny", *TRAIN, "seed=7", "output=mae"],
        "choose another output=FOLDER",
        ["pretrain", "mae-vit-tiny", *TRAIN, "seed=7", "output=other"],
    ),
    "pretrain, broken images": (
        ["pretrain", "mae-vit-tiny", *TRAIN, "data.train=broken", "output=broken-run"],
        "data.max_bad_share",
        ["pretrain", "mae-vit-tiny", *TRAIN, "data.train=broken", "output=broken-run", "data.max_bad_share=0.5"],
    ),
    "pretrain, mixing": (
        ["pretrain", "mae-vit-tiny", *TRAIN, "augment.mixup=0.8"],
        "set them to 0",
        ["pretrain", "mae-vit-tiny", *TRAIN, "augment.mixup=0"],
    ),
    "finetune, no labels": (
        [*FINETUNE, "data.train=flat", "output=run"],
        "move them into one for each class",
        [*FINETUNE, "data.train=photos", "output=run"],
    ),
    "finetune, few images of a class": (
        [*FINETUNE, "data.labels_per_class=9", "output=run"],
        "ask for 6 or fewer",
        [*FINETUNE, "data.labels_per_class=3", "output=run"],
    ),
    "finetune, semi": (
        [*FINETUNE, "objective.name=semi", "output=run", *SEMI],
        "data.unlabelled=FOLDER",
        [*FINETUNE, "objective.name=semi", "data.unlabelled=flat", "output=run", *SEMI],
    ),
    "finetune, unlabelled": (
        [*FINETUNE, "data.unlabelled=flat", "output=run"],
        "set objective.name=semi",
        [*FINETUNE, "data.unlabelled=flat", "objective.name=semi", "output=run", *SEMI],
    ),
    "finetune, operations on float images": (
        [*FINETUNE, "augment.policy=rand-m9-mstd0.5-inc1", "data.dtype=float32", "output=run"],
        "set augment.policy=null",
        [*FINETUNE, "augment.policy=null", "output=run"],
    ),
    "predict, pixels": (
        ["predict", "classifier", "photos", *CPU, "--set", "data.max_pixels=9"],
        "data.max_pixels=9; --set",
        ["predict", "classifier", "photos", *CPU, "--set", "data.max_pixels=99999"],
    ),
    "predict, no classifier": (
        ["predict", "mae", "photos", *CPU],
        "fine-tune it first",
        [*FINETUNE, "init=mae", "output=of-mae"],
    ),
    "predict, kind of file": (
        ["predict", "classifier", "photos", *CPU, "--out", "p.txt"],
        ".jsonl",
        ["predict", "classifier", "photos", *CPU, "--out", "p.jsonl"],
    ),
    "predict, no best": (
        ["predict", "classifier", "photos", *CPU, "--checkpoint", "best"],
        "--checkpoint last",
        ["predict", "classifier", "photos", *CPU, "--checkpoint", "last"],
    ),
    "embed, kind of file": (
        ["embed", "mae", "photos", *CPU, "--out", "e.txt"],
        "a folder's with a slash",
        ["embed", "mae", "photos", *CPU, "--out", "e/"],
    ),
    "embed, pool": (
        ["embed", "nocls", "photos", *CPU, "--out", "e.npy", "--pool", "cls"],
        "--pool mean",
        ["embed", "nocls", "photos", *CPU, "--out", "e.npy", "--pool", "mean"],
    ),
    "embed, channels": (
        ["embed", "mae", "bands", *CPU, "--out", "e.npy"],
        "convert the images",
        ["embed", "mae", "photos", *CPU, "--out", "e.npy"],
    ),
    "evaluate, other names": (
        ["evaluate", "classifier", "named", *CPU],
        "--class-map FILE",
        ["evaluate", "classifier", "named", *CPU, "--class-map", "map.json"],
    ),
    "evaluate, no labels": (
        ["evaluate", "classifier", "flat", *CPU],
        "move them into one for each class",
        ["evaluate", "classifier", "photos", *CPU],
    ),
    "probe, attentive": (
        ["probe", "mae", "photos", "photos", *CPU, "--attentive", "--pool", "cls"],
        "leave out --pool",
        ["probe", "mae", "photos", "photos", *CPU, "--attentive"],
    ),
    "probe, few images of a class": (
        ["probe", "mae", "photos", "photos", *CPU, "--labels-per-class", "9"],
        "ask for 6 or fewer",
        ["probe", "mae", "photos", "photos", *CPU, "--labels-per-class", "3"],
    ),
    "knn, pool": (
        ["knn", "nocls", "photos", "photos", *CPU, "--pool", "cls"],
        "--pool mean",
        ["knn", "nocls", "photos", "photos", *CPU, "--pool", "mean"],
    ),
    "reconstruct, no decoder": (
        ["reconstruct", "classifier", "photos", *CPU],
        "take the pretrained one",
        ["reconstruct", "mae", "photos", *CPU],
    ),
    "convert, no place": (
        ["convert", "nocls", "out", "--to", "transformers"],
        "try --to facebook",
        ["convert", "nocls", "out", "--to", "facebook"],
    ),
    "convert, name": (
        ["convert", "mae", "out", "--to", "mindspore"],
        ".ckpt",
        ["convert", "mae", "out.ckpt", "--to", "mindspore"],
    ),
    "report, several runs": (
        ["report", "mae", "nocls", "--images", "0"],
        "--out FILE.html",
        ["report", "mae", "nocls", "--images", "0", "--out", "both.html"],
    ),
    "report, a folder": (
        ["report", "mae", "--images", "0", "--out", "photos"],
        "--out photos/report.html",
        ["report", "mae", "--images", "0", "--out", "mae/page.html"],
    ),
    "report, images that are not there": (
        ["report", "mae", *CPU, "--set", "data.val=nowhere"],
        "data.val=nowhere",
        ["report", "mae", *CPU, "--set", "data.val=photos"],
    ),
    "launch, words": (["launch", "slurm"], "slurm|sky|kubernetes|modelarts RECIPE", ["launch", "slurm", *JOB]),
    "launch, images": (["launch", "slurm", "mae-vit-tiny"], "data.train=FOLDER", ["launch", "slurm", *JOB]),
    "launch, output": (["launch", "slurm", *JOB[:2]], "output=FOLDER", ["launch", "slurm", *JOB]),
    "launch, time": (
        ["launch", "slurm", *JOB, "--time", "long"],
        "12:00:00",
        ["launch", "slurm", *JOB, "--time", "12:00:00"],
    ),
    "launch, an option of others": (
        ["launch", "slurm", *JOB, "--image", "i"],
        "slurm takes --partition",
        ["launch", "slurm", *JOB, "--partition", "i"],
    ),
    "launch, no scheduler": (
        ["launch", "slurm", *JOB, "--submit"],
        "write the job with --out",
        ["launch", "slurm", *JOB, "--out", "job.sh"],
    ),
    "launch, one card": (
        ["launch", "slurm", *JOB, "device=cuda:1", "--size", "1x2"],
        "set device=auto",
        ["launch", "slurm", *JOB, "device=auto", "--size", "1x2"],
    ),
    "launch, no place": (
        ["launch", "kubernetes", *JOB, "--image", "i", "output=/data/run"],
        "s3://BUCKET/PATH",
        ["launch", "kubernetes", *JOB, "--image", "i", "output=s3://b/run"],
    ),
    "launch, a claim": (
        ["launch", "kubernetes", *JOB, "--image", "i", "--volume", "x"],
        "shared:/data",
        ["launch", "kubernetes", *JOB, "--image", "i", "--volume", "shared:/data", "output=/data/run"],
    ),
    "launch, an image": (
        ["launch", "kubernetes", *JOB],
        "--image NAME",
        ["launch", "kubernetes", *JOB, "--image", "i"],
    ),
    "launch, an accelerator": (["launch", "sky", *JOB], "--accelerator NAME", ["launch", "sky", *JOB, "device=cpu"]),
    "launch, a setting behind an option": (
        ["launch", "sky", *JOB, "device=cpu", "--accelerator", "H100"],
        "leave out one of the two",
        ["launch", "sky", *JOB, "--accelerator", "H100", "data.workers=2"],
    ),
}


LONG = {"probe, attentive", "probe --attentive", "export --int8"}


def cases(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.campaign) if name in LONG else name for name in names]


@pytest.mark.parametrize("case", cases(CASES))
def test_advice_can_be_followed(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, advice, followed = CASES[case]
    if case == "launch, no scheduler":
        monkeypatch.setenv("PATH", "")  # Slurm may be here
    assert main(command) != 0
    said = capsys.readouterr().err
    assert advice in said
    assert said.startswith("unmask: ") or command[0] == "launch", said
    assert main(followed) == 0, capsys.readouterr().err


BAD = {
    "predict": ["predict", "classifier", "broken", *CPU],
    "predict to a file": ["predict", "classifier", "broken", *CPU, "--out", "p.csv"],
    "embed": ["embed", "mae", "broken", *CPU, "--out", "e/"],
    "evaluate": ["evaluate", "classifier", "broken", *CPU],
    "reconstruct": ["reconstruct", "mae", "broken", *CPU],
    "knn": ["knn", "mae", "broken", "photos", *CPU],
    "probe": ["probe", "mae", "photos", "broken", *CPU],
    "probe --attentive": ["probe", "mae", "broken", "photos", *CPU, "--attentive"],
    "export --int8": ["export", "classifier", "c.onnx", "--int8", "broken"],
}


@pytest.mark.parametrize("case", cases(BAD))
def test_a_share_of_broken_images_is_exit_code_3_unless_it_is_allowed(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = BAD[case]
    if "--int8" in command:
        pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    assert main(command) == 3
    said = capsys.readouterr().err
    assert re.search(r"2 of \d+ images \([\d.]+%\) cannot be decoded, .*, such as a/1\.png: not a JPEG", said), said
    (advice,) = re.findall(r"--set data\.max_bad_share=\d", said)
    assert main([*command, *advice.split()]) == 0, capsys.readouterr().err
    for path in folder.rglob("*bad*.txt"):
        assert path.read_text().splitlines()[0].startswith("a/1.png\tnot a JPEG"), "the reason stands beside the name"


@pytest.mark.parametrize("command", [["evaluate", "classifier"], ["evaluate", "mae"], ["reconstruct", "mae"]])
def test_what_was_written_of_broken_images_is_kept_and_the_way_on_is_told(
    command: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "written.png"
    command = [*command, "broken", *CPU, "--out", str(out)]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert f"{out} is written, but 2 of " in said
    assert f"then remove {out}, which is not overwritten, or name another --out" in said
    assert out.exists()
    allowed = [*command, "--set", "data.max_bad_share=1"]
    assert main(allowed) == 2
    assert main([*allowed[:-4], "--out", str(tmp_path / "other.png"), *allowed[-2:]]) == 0
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert main(allowed) == 0, capsys.readouterr().err


def test_a_mistake_in_embed_leaves_nothing_in_the_way(folder: Path) -> None:
    before = set(folder.iterdir())
    assert main(["embed", "nocls", "photos", *CPU, "--out", "e.npy", "--pool", "cls"]) == 2
    assert main(["embed", "nocls", "bands", *CPU, "--out", "e.npy"]) == 2
    assert main(["predict", "classifier", "bands", *CPU, "--out", "p/"]) == 2
    assert set(folder.iterdir()) == before


def test_a_port_that_is_taken(folder: Path) -> None:
    pytest.importorskip("starlette", reason="Starlette is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["serve", "classifier", *CPU, "--port", str(taken.getsockname()[1])]
        process = start(*command, cwd=folder)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert "--port 0" in said
    process = start(*command[:-1], "0", cwd=folder)
    assert process.stdout is not None
    assert any("http://127.0.0.1:" in line for line in process.stdout)
    process.terminate()
    process.communicate(timeout=60)


def test_export_names_what_it_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    assert main(["export", "classifier", "c.graph"]) == 2
    assert ".onnx" in capsys.readouterr().err
    assert main(["export", "classifier", "c.onnx", "--outputs", "class"]) == 2
    (outputs,) = re.findall(r"this model gives (.*)", capsys.readouterr().err)
    assert main(["export", "classifier", "c.onnx", "--outputs", *outputs.split(", ")]) == 0
