"""Fine-tuning on images without labels too, as a user types it, and what can be asked of the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unmask
from runs import TINY_MODEL
from unmask.checkpoint.store import load_newest
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.report.log import read_log
from unmask.sweep import SEMI

pytest.importorskip("torch", reason="PyTorch is not installed")

TRAIN, VAL = "bundled:mnist5k/train", "bundled:mnist5k/val"
SHORT = [
    *("objective.unlabelled_ratio=2", "objective.confidence=0.3", "data.labels_per_class=2", "train.batch_size=10"),
    *("train.epochs=8", "train.eval_every=8", "train.checkpoint_every=100", "train.log_every=1"),
    *("optimizer.warmup_epochs=0", "data.eval_crop=1", "seed=1"),
]
RUN = ["finetune", "cifar10-semi", f"data.train={TRAIN}", f"data.val={VAL}", *TINY_MODEL, *SHORT]
"""16 updates of 10 labelled digits and 20 others."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semi") / "run"
    assert main([*RUN, f"output={folder}"]) == 0
    return folder


def test_the_log_tells_how_many_are_confident_and_the_result_is_a_classifier(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = read_log(run / "metrics.jsonl")
    confident = [row["confident"] for row in log if row["split"] == "train"]
    assert len(confident) == 16
    assert all(0 <= share <= 1 for share in confident)
    assert max(confident) > 0
    assert all(row["loss"] == pytest.approx(row["labelled"] + row["unlabelled"]) for row in log if "labelled" in row)

    capsys.readouterr()
    assert main(["evaluate", str(run), VAL]) == 0
    assert f"{log[-1]['top1']:.4f}" in capsys.readouterr().out, "of the average, as while training"
    assert main(["predict", str(run), VAL, "--out", str(tmp_path / "p.csv")]) == 0
    assert main(["embed", str(run), VAL, "--out", str(tmp_path / "e.parquet")]) == 0
    assert main(["convert", str(run), str(tmp_path / "timm"), "--to", "timm"]) == 0
    model = unmask.load(run)
    assert model.config.objective.name == "classify"
    assert model.predict([np.zeros((28, 28, 1), np.uint8)]).shape == (1, 10)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    """Also with loader processes and micro-batches, which do not enter what is shown."""
    settings = dict(item.split("=", 1) for item in RUN[2:])
    values = {key: json.loads(value) if value[0] in "[0123456789" else value for key, value in settings.items()}
    unmask.finetune("cifar10-semi", values | {"output": tmp_path / "run"}, callbacks=[lambda step, _: step >= 5])
    assert [row["step"] for row in read_log(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert main([*RUN, f"output={tmp_path / 'run'}", "data.workers=1"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    one, other = (load_newest(folder / "checkpoints").state for folder in (run, tmp_path / "run"))
    for part in ("weights", "ema", "optimizer"):
        before, after = getattr(one, part), getattr(other, part)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before), part


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """40 digits as files, in one folder without classes."""
    source = open_source(TRAIN, key="data.train", labels=False)
    (tmp_path / "digits").mkdir()
    for index in range(0, 4000, 100):
        image = source.read(index)
        assert isinstance(image, np.ndarray)
        Image.fromarray(image[..., 0]).save(tmp_path / "digits" / f"{index:04}.png")
    return tmp_path / "digits"


def test_a_folder_of_images_without_labels(
    digits: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*RUN, f"data.unlabelled={digits}", f"init={run}", f"output={tmp_path / 'run'}"]
    assert main([*again, "train.epochs=1"]) == 0
    out = capsys.readouterr().out
    assert "20 images and 40 whose labels are not looked at, 2 steps" in out
    assert "the head starts as the linear probe of" in out

    shutil.copy(digits / "0000.png", digits / "more.png")
    assert main([*again, "train.epochs=1"]) == 3
    assert "data.unlabelled has changed since the last checkpoint" in capsys.readouterr().err

    (digits / "0100.png").write_bytes(b"no image")
    bad = [*RUN, f"data.unlabelled={digits}", f"output={tmp_path / 'bad'}"]
    assert main(bad) == 3
    err = capsys.readouterr().err
    assert "1 of 61 images" in err
    assert (tmp_path / "bad" / "bad_files.txt").read_text().startswith("0100.png\t")


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["data.labels_per_class=null"], 2, "name them in data.unlabelled=FOLDER, or set data.labels_per_class"),
        (["data.unlabelled=nowhere"], 3, "data.unlabelled=nowhere"),
        (["data.unlabelled=SIXTEEN"], 2, "data.unlabelled: 0.png"),
        (["objective=classify", "data.unlabelled=SIXTEEN"], 2, "data.unlabelled is of no use to objective.name=class"),
        (["augment.label_smoothing=0.8"], 2, "so none reaches objective.confidence=0.3"),
        (["objective.loss=bce"], 2, "objective.loss: unknown key of this objective"),
        (["objective.unlabelled_ratio=0"], 2, "objective.unlabelled_ratio"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    settings: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(tmp_path / "0.png")
    settings = [each.replace("SIXTEEN", str(tmp_path)) for each in settings]
    run = [each for each in RUN if "objective.c" not in each and "objective.u" not in each]
    objective = [] if "objective=classify" in settings else [each for each in RUN if each.startswith("objective.")]
    recipe = ["finetune", "finetune-vit-tiny"] if "objective=classify" in settings else ["finetune", SEMI]
    assert main([*recipe, *run[2:], *objective, *settings, f"output={tmp_path / 'run'}"]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_from_python_with_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 28, 28, 1), np.uint8)
    settings: dict[str, object] = {
        "model.image_size": 28, "model.patch_size": 7, "model.channels": 1, "model.width": 32, "model.depth": 1,
        "data.mean": [0.5], "data.std": [0.5], "data.labels_per_class": None, "objective.head": "drawn",
        "augment.policy": None, "train.batch_size": 4, "train.epochs": 2, "device": "cpu", "train.precision": "fp32",
    }  # fmt: skip
    labelled = [(image, number % 2) for number, image in enumerate(images[:8])]
    done = unmask.finetune(SEMI, settings | {"output": tmp_path / "run"}, train=labelled, unlabelled=images[8:])
    assert done.metrics["loss"] > 0
    assert "unlabelled" in (tmp_path / "run" / "run.yaml").read_text()
