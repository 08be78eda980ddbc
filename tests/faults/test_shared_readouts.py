"""Several processes embed and classify images together: each its share, and the files are those of one process."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from ranks import ENGINES, launch
from runs import TINY_MODEL, unmask
from unmask.cli import main
from unmask.data.sources import open_source

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "data.labels_per_class=5", "train.epochs=1"]
BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]


@pytest.mark.parametrize("engine", BOTH)
def test_embeddings_are_those_of_one_process_also_when_one_is_killed(engine: str, tmp_path: Path) -> None:
    settings = [*TINY_MODEL, *SHORT, "data.train=bundled:mnist5k/train", f"engine={engine}", f"output={tmp_path}/run"]
    assert main(["pretrain", "mae-vit-tiny", *settings]) == 0
    command = ["embed", "run", "bundled:mnist5k/val", "--batch-size", "4", "--device", "cpu", "--out"]
    assert unmask(*command, "alone.npy", cwd=tmp_path).returncode == 0

    ranks = launch(engine, *command, "shared.npy", cwd=tmp_path)
    ranks.until(lambda: (tmp_path / "shared.npy.partial" / "000003.json").exists())
    ranks.send(signal.SIGKILL, 1)
    ranks.end()
    assert ranks.launcher.returncode != 0
    assert not (tmp_path / "shared.npy").exists()
    ranks = launch(engine, *command, "shared.npy", cwd=tmp_path)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    assert said.count("1000 embeddings in shared.npy") == 1, said
    for name in ("npy", "names.txt"):
        assert (tmp_path / f"shared.{name}").read_bytes() == (tmp_path / f"alone.{name}").read_bytes()
    assert not (tmp_path / "shared.npy.partial").exists()


@pytest.mark.parametrize("engine", BOTH)
def test_an_evaluation_lists_each_image_once_and_in_order(engine: str, tmp_path: Path) -> None:
    settings = [*TINY_MODEL, *SHORT, "data.train=bundled:mnist5k/train", f"engine={engine}", f"output={tmp_path}/run"]
    assert main(["finetune", "finetune-vit-tiny", *settings]) == 0
    digits = open_source("bundled:mnist5k/val", key="images", labels=True)
    for i in range(43):  # no multiple of the batches' 8
        path = tmp_path / f"digits/{digits.labels[i]}/{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.read(i)[:, :, 0]).save(path)
    path.write_bytes(b"no image")
    command = [
        "evaluate",
        "run",
        "digits",
        "--set",
        "data.max_bad_share=0.1",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--out",
    ]
    assert unmask(*command, "alone", cwd=tmp_path).returncode == 0
    ranks = launch(engine, *command, "shared", cwd=tmp_path)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    with (tmp_path / "shared" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(
        str(path.relative_to(tmp_path / "digits")) for path in (tmp_path / "digits").rglob("*.png")
    )
    assert [row["file"] for row in rows if not row["true"]] == [str(path.relative_to(tmp_path / "digits"))]
    for name in ("predictions.csv", "per_class.csv", "confusion.csv", "worst.png"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    found, expected = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("shared", "alone"))
    assert found == pytest.approx(expected, rel=1e-9)
    assert said.count("accuracy=") == 1


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ENGINES)
def test_predictions_of_three_processes_are_gone_on_with_by_two_and_by_one(engine: str, tmp_path: Path) -> None:
    settings = [*TINY_MODEL, *SHORT, "data.train=bundled:mnist5k/train", f"engine={engine}", "output=run"]
    assert unmask("finetune", "finetune-vit-tiny", *settings, cwd=tmp_path).returncode == 0
    command = ["predict", "run", "bundled:mnist5k/val", "--batch-size", "2", "--device", "cpu", "--out"]
    for out in ("file.csv", "folder/"):
        assert unmask(*command, f"alone-{out}", cwd=tmp_path).returncode == 0
        parts = tmp_path / ("shared-file.csv.partial" if out == "file.csv" else "shared-folder/.parts")
        for processes, rank in ((3, 2), (2, 1)):
            ours = [parts / f"{number:06}.json" for number in range(rank, 32, processes)]
            to_come = next(part for part in ours if not part.exists())  # the others may have been far ahead
            ranks = launch(engine, *command, f"shared-{out}", cwd=tmp_path, processes=processes)
            ranks.until(to_come.exists)
            ranks.send(signal.SIGKILL, rank)
            ranks.end()
            assert ranks.launcher.returncode != 0
        ended = unmask(*command, f"shared-{out}", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert "of 1000 images are done already" in ended.stdout
    assert (tmp_path / "shared-file.csv").read_bytes() == (tmp_path / "alone-file.csv").read_bytes()
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("shared-folder", "alone-folder")
    )
    assert found == expected
    assert len(found) == 33
