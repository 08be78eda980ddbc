"""Every command on real digits, as a user types it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import unmask
from runs import TINY_MODEL
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.report.log import read_log

SHORT = ["train.epochs=0.1", "train.batch_size=20", "optimizer.warmup_epochs=0", "train.log_every=5"]


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits as files of several types, in class folders."""
    root = tmp_path_factory.mktemp("digits")
    source = open_source("bundled:mnist5k/val", key="data.val", labels=True)
    assert source.labels is not None
    for index in range(0, 1000, 17):
        digit = source.read(index)
        folder = root / str(source.labels[index])
        folder.mkdir(exist_ok=True)
        suffix = ("png", "jpg", "webp", "bmp", "tiff")[index % 5]
        assert isinstance(digit, np.ndarray)
        Image.fromarray(digit[:, :, 0]).save(folder / f"{index}.{suffix}")
    return root


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mae") / "run"
    data = "data.train=bundled:mnist5k/train"
    assert main(["pretrain", "mae-vit-tiny", data, *TINY_MODEL, *SHORT, f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(mae: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    settings = [f"data.train={photos}", f"data.val={photos}", f"init={mae}", f"output={folder}", "train.epochs=10"]
    settings += ["objective.head=drawn"]
    assert main(["finetune", "finetune-vit-tiny", *TINY_MODEL, *SHORT, *settings]) == 0
    return folder


def test_a_run_folder_holds_everything_about_the_run(mae: Path) -> None:
    for name in ("run.yaml", "metrics.jsonl", "speed.jsonl", "curves.png", "reconstruction.png"):
        assert (mae / name).stat().st_size > 0, name
    assert list((mae / "tensorboard").iterdir())
    assert list((mae / "checkpoints").glob("step-*/weights.safetensors"))
    assert image_size(mae / "curves.png")[0] > 300


def test_evaluate_ends_with_the_accuracy(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(classifier), str(photos), "--out", str(out)]) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["count"] == 59
    assert main(["evaluate", str(classifier), str(photos), "--out", str(out / "again"), "--batch-size", "16"]) == 0
    again = json.loads((out / "again" / "metrics.json").read_text())
    assert again == pytest.approx(numbers, rel=1e-5), "the last batch is filled up, not counted"
    assert capsys.readouterr().out.splitlines()[-1] == f"accuracy={numbers['top1']:.3f}"


def test_evaluate_refuses_other_classes(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eleven").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "eleven" / "0.png")
    assert main(["evaluate", str(classifier), str(tmp_path)]) == 3
    assert "only the images ['eleven']" in capsys.readouterr().err


def test_predict_writes_the_same_as_csv_json_and_on_the_screen(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(classifier), str(photos), "--top", "3"]) == 0
    screen = capsys.readouterr().out
    for name in ("p.csv", "p.jsonl"):
        assert main(["predict", str(classifier), str(photos), "--top", "3", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "p.csv").read_text() == screen
    rows = list(csv.DictReader(screen.splitlines()))
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == len(records) == 59
    for row, record in zip(rows, records, strict=True):
        assert row["file"] == record["file"]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [label for label, _ in record["predictions"]]
        probabilities = [p for _, p in record["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1.0001


def test_a_bad_file_among_the_images_has_no_prediction_and_stops_nothing(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((photos / "3").iterdir())
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    out = tmp_path / "p.jsonl"
    assert main(["predict", str(classifier), str(good), str(bad), "--out", str(out)]) == 3
    assert "is written, but 1 of 2 images (50.00%) cannot be decoded" in capsys.readouterr().err
    allowed = ["--set", "data.max_bad_share=0.5"]
    assert main(["predict", str(classifier), str(good), str(bad), *allowed]) == 0
    assert main(["predict", str(classifier), str(good), str(bad)]) == 3
    assert main(["predict", str(classifier), str(good), str(bad), "--out", str(out), *allowed]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert len(first["predictions"]) == 5
    assert second == {"file": str(bad), "predictions": []}


def test_embed_writes_the_same_as_parquet_and_npy(mae: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("e.parquet", "e.npy"):
        assert main(["embed", str(mae), str(photos), "--out", str(tmp_path / name), "--batch-size", "16"]) == 0
    table = pq.read_table(tmp_path / "e.parquet")
    array = np.load(tmp_path / "e.npy")
    assert array.shape == (59, 32)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), array)
    assert table["file"].to_pylist() == (tmp_path / "e.names.txt").read_text().splitlines()
    np.testing.assert_allclose(unmask.load(mae).embed(photos), array, rtol=1e-4, atol=1e-5)


def test_reconstruct_draws_a_grid(mae: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    arguments = ["reconstruct", str(mae), str(photos), "--count", "2", "--mask-ratio", "0.5", "--out", str(out)]
    assert main(arguments) == 0
    few = image_size(out)
    out = tmp_path / "more.png"
    assert main([*arguments[:-3], "0.5", "--out", str(out), "--count", "4"]) == 0
    assert image_size(out)[1] > few[1]


@pytest.mark.parametrize(("to", "name"), [("facebook", "mae.pth"), ("transformers", "mae")])
def test_convert_and_use_the_result(
    mae: Path, photos: Path, tmp_path: Path, to: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(mae), str(tmp_path / name), "--to", to]) == 0
    settings = {"data.mean": [0.1307], "data.std": [0.3081]}
    converted = unmask.load(tmp_path / name, device="cpu", settings=settings)
    np.testing.assert_allclose(converted.embed(photos), unmask.load(mae, device="cpu").embed(photos), atol=1e-5)
    assert main(["convert", str(mae), str(tmp_path / name), "--to", to]) == 2, "nothing is overwritten"
    assert f"{name} is there already; name another, or remove it" in capsys.readouterr().err


def test_any_checkpoint_of_a_run_is_used(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in read_log(classifier / "metrics.jsonl") if row["split"] == "val"]
    best = max(row["top1"] for row in rows)
    for choice, top1 in (("last", rows[-1]["top1"]), ("best", best), (str(rows[-1]["step"]), rows[-1]["top1"])):
        capsys.readouterr()
        assert main(["evaluate", str(classifier), str(photos), "--checkpoint", choice]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"accuracy={top1:.3f}"
    assert main(["convert", str(classifier), str(tmp_path / "x.pth"), "--to", "facebook", "--checkpoint", "best"]) == 0
    assert main(["embed", str(classifier), str(photos), "--out", "e.npy", "--checkpoint", "1"]) == 2
    assert f"there are {rows[-2]['step']}, {rows[-1]['step']} (or last, or best)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["embed", str(classifier), str(photos), "--out", "e.npy", "--checkpoint", "newest"])
    assert "'newest' is not last, best, or the number of a step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pretrain", "mae-vit-tiny"], 2, "data.train is not set"),
        (["pretrain", "mae-vit-tiny", "data.train=nowhere"], 3, "data.train=nowhere"),
        (["pretrain", "finetune-vit-tiny", "data.train=nowhere"], 2, "recipe for `unmask finetune`"),
        (["pretrain", "mae-vit-tiny", "data.train=bundled:mnist5k", "device=cuda:99", *TINY_MODEL[:-1]], 6, "cuda:99"),
        (["pretrain", "mae-vit-tiny", "objective.mask_ratio=1"], 2, "objective.mask_ratio"),
        (["finetune", "finetune-vit-tiny", "data.train=bundled:mnist5k", "init=gone", *TINY_MODEL], 4, "gone"),
        (["embed", "nowhere", "x.png", "--out", "e.npy"], 4, "nowhere does not exist"),
        (["predict", "MAE", "x.png"], 2, "no classification head"),
        (["embed", "MAE", "x.png", "--out", "e.txt"], 2, "must end in .parquet, .csv, .npy"),
        (["embed", "MAE", "x.png", "--out", "e.npy", "--checkpoint", "best"], 2, "none is the best"),
        (["embed", "MAE", "nothing-here", "--out", "e.npy"], 3, "nothing-here"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    mae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (28, 28)).save("x.png")
    assert main([str(mae) if argument == "MAE" else argument for argument in arguments]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_doctor_names_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "cores" in out


def test_the_python_functions_do_the_same(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = (setting.split("=") for setting in [*TINY_MODEL, *SHORT])
    settings = {key: yaml.safe_load(value) for key, value in pairs}
    run = unmask.pretrain("mae-vit-tiny", {**settings, "data.train": photos, "train.epochs": 1})
    assert run.folder == Path("runs/mae-vit-tiny-1")
    classifier = unmask.finetune("finetune-vit-tiny", {**settings, "data.train": photos, "init": run})
    model = unmask.load(classifier, device="cpu")
    image = np.full((28, 28), 200, np.uint8)
    probabilities = model.predict([image, image])
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert unmask.load(run).reconstruct(photos).pasted.shape == (59, 28, 28, 1)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "unmask", "--help"], capture_output=True, text=True, check=True)
    assert "pretrain" in done.stdout


def test_commands_that_write_one_file_refuse_to_run_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["reconstruct", "model", "photos", "--out", "out.png"]) == 2
    assert capsys.readouterr().err == "unmask: this command runs in one process; start it without torchrun or msrun\n"
