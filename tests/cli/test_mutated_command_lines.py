"""Whatever a command line says, a user's mistake is answered in one line with an exit code, never by a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import TINY_MODEL
from unmask.bench import bench_step
from unmask.cli import main

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("uvicorn", reason="unmask[serve] is not installed")
pytest.importorskip("huggingface_hub", reason="unmask[hub] is not installed")

TRAIN = [*TINY_MODEL, "train.batch_size=4", "train.epochs=1", "optimizer.warmup_epochs=0"]
CODES = {0, 1, 2, 3, 4, 5, 6, 7}
WORDS = [
    *(
        "",
        " ",
        "-1",
        "0",
        "nan",
        "inf",
        "1e300",
        "99999999999999999999",
        "0x_",
        "0.5.5",
        "true",
        "null",
        "~",
        "[]",
        "{}",
    ),
    *(
        "[" * 400,
        "{a,b}" * 6,
        "a" * 300,
        "a/" * 2000,
        "~nobody/x",
        "é",
        "nul\0byte",
        "line\nbreak",
        "!!int y",
    ),
    *(
        "2024-02-30",
        "1_000",
        "#",
        "x#image=",
        "#left_out=2",
        "x#links=follow",
        "=",
        "==",
        "a=b",
        "--",
        "-",
        "*",
        "?",
        "[a",
    ),
    *(
        "photos",
        "photos/a",
        "run",
        "nothing",
        "text.txt",
        "empty",
        "broken.json",
        "broken.yaml",
        "one.png",
        "/dev/null",
        ".",
    ),
    *("list.csv", "set.npy", "notes.parquet", "set.tar", "run/checkpoints", "run/run.yaml", "file.pth", "bundled:x"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each kind, images, and files that are none of what they are called."""
    root = tmp_path_factory.mktemp("place")
    for number in range(8):
        path = root / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
        mask = root / "masks" / path.relative_to(root / "photos")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 2, (28, 28), np.uint8)).save(mask)
    Image.new("L", (28, 28)).save(root / "one.png")
    (root / "text.txt").write_text("no image\n")
    (root / "empty").mkdir()
    (root / "broken.json").write_text('{"a": [')
    (root / "broken.yaml").write_text("model: {width: 4\n base: [")
    (root / "section.yaml").write_text("base: mae-vit-tiny\nmodel:\n")
    (root / "list.csv").write_text("path,label\nphotos/a/0.png,a\nphotos/b/1.png,b\n")
    np.save(root / "set.npy", np.zeros((4, 28, 28), np.uint8))
    for name in ("notes.parquet", "set.tar", "file.pth"):
        (root / name).write_bytes(b"something else")
    (root / "map.json").write_text(json.dumps({"a": 0, "b": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("UNMASK_CACHE", str(root / "cache"))
        assert main(["pretrain", "mae-vit-tiny", "data.train=photos", "output=run", *TRAIN]) == 0
        labelled = ["finetune", "scratch-vit-tiny", "data.train=photos", "data.val=photos", "output=classifier"]
        assert main([*labelled, *TRAIN, "augment.mixup=0", "augment.cutmix=0"]) == 0
        assert main(["finetune", "convnet", *labelled[2:-1], *TRAIN, "objective.width=8", "output=network"]) == 0
    return root


COMMANDS: list[list[str]] = [
    ["pretrain", "mae-vit-tiny", "data.train=photos", "output=out", *TRAIN],
    [
        "finetune",
        "scratch-vit-tiny",
        "data.train=photos",
        "data.val=photos",
        "init=run",
        "output=out",
        *TRAIN,
        "objective.head=drawn",
    ],
    ["evaluate", "classifier", "photos", "--class-map", "map.json", "--out", "evaluation", "--device", "cpu"],
    [
        "predict",
        "classifier",
        "photos",
        "--top",
        "2",
        "--out",
        "p.csv",
        "--batch-size",
        "4",
        "--set",
        "data.eval_crop=1",
    ],
    ["embed", "run", "photos", "--out", "e.npy", "--pool", "mean", "--checkpoint", "last", "--precision", "fp32"],
    ["knn", "run", "photos", "photos", "--k", "3", "--temperature", "0.1", "--cache", "cached"],
    ["probe", "run", "photos", "photos", "--labels-per-class", "2", "--seed", "1"],
    ["reconstruct", "run", "photos", "--count", "2", "--seed", "1", "--mask-ratio", "0.5", "--out", "r.png"],
    ["pack", "photos", "packed", "--short-side", "20", "--quality", "80", "--shard-size", "1M", "--workers", "1"],
    ["pack", "photos", "shared", "--shard-size", "10K", "--share", "1/2"],
    ["embed", "run", "photos", "--out", "features/", "--share", "2/2"],
    ["convert", "run", "m.pth", "--to", "facebook", "--set", "data.eval_crop=1"],
    ["launch", "slurm", "mae-vit-tiny", "data.train=photos", "output=out", *TRAIN, "--size", "1x2", "--out", "job.sh"],
    ["stats", "photos", "--set", "model.channels=1", "--set", "data.dtype=uint8"],
    [
        "sweep-labels",
        "finetune-vit-tiny",
        "init=run",
        "data.train=photos",
        "data.val=photos",
        "output=few",
        *TRAIN,
        "--labels",
        "1",
        "--seeds",
        "0",
        "--steps",
        "1",
    ],
    ["report", "run", "--images", "2", "--out", "r.html", "--device", "cpu", "--set", "data.val=photos"],
    ["report", "run", "classifier", "--images", "0", "--out", "both.html"],
    ["serve", "run", "--images", "photos", "--most", "3", "--host", "127.0.0.1", "--port", "0", "--device", "cpu"],
    ["export", "classifier", "c.onnx", "--outputs", "features", "--dtype", "uint8", "--int8", "photos"],
    ["bench", "mae-vit-tiny", "data.train=photos", *TRAIN, "--seconds", "1"],
    ["doctor", "--tune", "mae-vit-tiny", "data.train=photos", *TRAIN],
    ["config", "mae-vit-tiny", "data.train=photos", *TRAIN, "--json"],
    ["recipes", "--json"],
    ["replay", "run", "--step", "1", "--out", "again"],
    ["check", "photos", "--against", "photos", "--smallest", "8", "--set", "data.nodata=0", "--out", "checked"],
    ["check", "photos", "--share", "1/2", "--out", "parts"],
    ["push", "run", "hf://someone/model", "--to", "timm", "--private", "--message", "new", "--checkpoint", "last"],
    ["demo", "output=shown", *TRAIN, "train.epochs=0.001", "train.eval_every=1000"],
    ["completion", "bash"],
    ["evaluate", "classifier", "photos", "--label-offset", "0", "--flip", "--batch-size", "3", "--json"],
    ["probe", "run", "photos", "photos", "--attentive", "--pool", "mean", "--flip", "--cache", "cached"],
    ["probe", "run", "photos", "photos", "--segment", "masks", "masks", "--seed", "1"],
    [
        *("finetune", "few-labels", "data.train=photos", "data.val=photos", "data.labels_per_class=2", "output=taught"),
        *(*TRAIN, "model.patch_stem=null", "objective.teacher=[handmade]"),
    ],
    [
        *("finetune", "scratch-vit-tiny", "data.train=photos", "data.val=40%", "data.val_group=[0-3]", "init=run"),
        *("data.unlabelled=photos", "objective.teacher=[classifier,handmade]", "output=out", *TRAIN),
        *("objective.head=auto", "evaluate.every=1", "train.ema_decay=0.9"),
    ],
    [
        *("sweep-labels", "few-labels", "data.train=photos", "data.val=photos", "output=few", *TRAIN),
        *("model.patch_stem=null", "--labels", "1", "2", "--seeds", "0", "--steps", "1"),
        *("--arms", "taught", "cnn", "handmade"),
    ],
    ["report", "network", "--images", "4", "--out", "n.html", "--device", "cpu"],
    ["knn", "network", "photos", "photos", "--cache", "cached"],
    ["export", "network", "n.onnx", "--outputs", "logits"],
    ["pack", "--verify", "packed"],
    ["stats", "photos", "--out", "s.json", "--share", "1/2", "--set", "data.range=[0,255]"],
    ["launch", "kubernetes", "mae-vit-tiny", "data.train=photos", "output=out", *TRAIN, "--check", "1x2", "--mfu", "1"],
]


def mutated(rng: random.Random) -> list[str]:
    """A command line with one to three of its words, or of their values, put wrong."""
    line = list(rng.choice(COMMANDS))
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randrange(1, len(line))
        key, equals, _ = line[place].partition("=")
        how = rng.random()
        if how < 0.5:
            line[place] = f"{key}={rng.choice(WORDS)}" if equals else rng.choice(WORDS)
        elif how < 0.65:
            del line[place]
        elif how < 0.75:
            line.insert(place, rng.choice(WORDS))
        elif how < 0.85:
            line[place] = line[place][: rng.randrange(len(line[place]) + 1)] + rng.choice(WORDS)[:20]
        elif how < 0.92:
            line[place] = rng.choice(rng.choice(COMMANDS))
        else:
            line.insert(place, line[place])
        if len(line) == 1:
            break
    return line


def one_step(steps: Iterator[object], size: int, window: float) -> float:
    next(steps)
    return 1.0


@pytest.fixture(autouse=True)
def _shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What measures, measures one step, here; what serves, stops when it could begin."""
    monkeypatch.setattr("unmask.bench._rate", one_step)
    monkeypatch.setattr("unmask.sweep.CNN_STEPS", 1)
    monkeypatch.setattr(
        "unmask.doctor._apart", lambda recipe, settings, threads, seconds: bench_step(recipe, settings, seconds)
    )
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers


def check(
    place: Path, seed: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("UNMASK_CACHE", str(place / "cache"))
    rng = random.Random(seed)
    for _ in range(count):
        line = mutated(rng)
        try:
            code = main(line)
        except SystemExit as stopped:  # argparse
            code = stopped.code
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error} from {line}") from error
        err = capsys.readouterr().err
        assert code in CODES, line
        if code:
            assert err.strip(), line
            assert "Traceback" not in err, line


@pytest.mark.parametrize("seed", range(2))
def test_no_traceback(
    place: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(place, seed, 50, monkeypatch, capsys)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(10, 20))
def test_no_traceback_in_a_thousand(
    place: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(place, seed, 100, monkeypatch, capsys)
