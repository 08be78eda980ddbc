"""Work in shares: embed, predict, pack, stats and check by any number of processes, as array jobs start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unmask
from runs import ENVIRONMENT, TINY_MODEL, start
from unmask.cli import main

IMAGES = 90
BAD = "1/041.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 KB in three classes, with one that cannot be decoded."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "photos"
    for number in range(IMAGES):
        path = root / str(number % 3) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 28 + number % 7
        Image.fromarray(rng.integers(0, 256, (side, side + 9, 3), np.uint8)).save(path)
    (root / "1" / "040.png").rename(root / BAD)
    (root / BAD).write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = tmp_path_factory.mktemp("classifier") / "run"
    settings = [
        setting for setting in TINY_MODEL if not setting.startswith(("model.channels", "data.mean", "data.std"))
    ]
    short = ["train.batch_size=20", "optimizer.warmup_epochs=0", "train.epochs=1", "data.max_bad_share=0.1"]
    assert main(["finetune", "finetune-vit-tiny", *settings, *short, f"data.train={photos}", f"output={folder}"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BAD_ALLOWED = ["--set", "data.max_bad_share=0.1"]
MODEL = ["--device", "cpu", "--batch-size", "1", *BAD_ALLOWED]
"""A part is 16 batches: so there are six."""
COMMANDS = {
    "embed-npy": (["embed", "RUN", "PHOTOS", *MODEL, "--out", "OUT/e.npy"], 4),
    "embed-parquet": (["embed", "RUN", "PHOTOS", *MODEL, "--out", "OUT/e.parquet"], 3),
    "embed-folder": (["embed", "RUN", "PHOTOS", *MODEL, "--out", "OUT/"], 8),
    "predict-csv": (["predict", "RUN", "PHOTOS", *MODEL, "--out", "OUT/p.csv"], 3),
    "predict-folder": (["predict", "RUN", "PHOTOS", *MODEL, "--top", "2", "--out", "OUT"], 8),
    "pack": (["pack", "PHOTOS", "OUT", "--shard-size", "60K", "--max-bad-share", "0.1"], 8),
    "pack-resized": (
        ["pack", "PHOTOS", "OUT", "--short-side", "20", "--shard-size", "30K", "--max-bad-share", "0.1"],
        8,
    ),
    "stats": (["stats", "PHOTOS", "--out", "OUT/stats.json", *BAD_ALLOWED], 1),
    "check": (["check", "PHOTOS", "--out", "OUT", *BAD_ALLOWED], 3),
}
"""Command, and files of its result, at least."""


def command(name: str, photos: Path, out: Path, model: Path | None) -> list[str]:
    words = {"PHOTOS": str(photos), "RUN": str(model)}
    return [words.get(word, word).replace("OUT", str(out)) for word in COMMANDS[name][0]]


@pytest.mark.parametrize("name", COMMANDS)
def test_any_number_of_shares_in_any_order_gives_the_files_of_one(
    name: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue("classifier") if COMMANDS[name][0][1] == "RUN" else None
    (tmp_path / "alone").mkdir(exist_ok=True)
    assert main(command(name, photos, tmp_path / "alone", model)) == 0
    expected = contents(tmp_path / "alone")
    assert len(expected) >= COMMANDS[name][1]
    capsys.readouterr()
    out = tmp_path / "shared"
    arguments = command(name, photos, out, model)
    for share in ("2/3", "3/3"):
        assert main([*arguments, "--share", share]) == 0
        said = capsys.readouterr().out
        assert f"share {share} is done" in said, said
    assert not expected.keys() <= contents(out).keys()
    for share in ("1/2", "2/2"):  # another number goes on
        assert main([*arguments, "--share", share]) == 0
    assert contents(out) == expected
    capsys.readouterr()
    for again in ([], ["--share", "2/2"]):
        assert main([*arguments, *again]) == 0
        assert contents(out) == expected
    assert "is complete" in capsys.readouterr().out


def test_a_share_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for share in ("0/4", "5/4", "3", "three/4"):
        with pytest.raises(SystemExit):
            main(["pack", "photos", "out", "--share", share])
        assert f"--share: {share!r} is not a share, from 1/100 to 100/100" in capsys.readouterr().err


def test_what_several_processes_cannot_print_needs_a_place(
    photos: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", str(photos), "--share", "1/2"]) == 2
    assert "give --out FILE.json" in capsys.readouterr().err
    assert main(["predict", str(classifier), str(photos), "--share", "1/2"]) == 2
    assert "give --out FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "beside"), [("e.npy", "e.npy"), ("e.npy", "e.names.txt"), ("p.csv", "p.csv")])
def test_files_of_others_are_not_overwritten(
    out: str, beside: str, photos: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is an earlier result of another model; the same command again says that it is there."""
    arguments = ["embed" if out == "e.npy" else "predict", str(classifier), str(photos), *MODEL]
    (tmp_path / beside).write_text("mine")
    assert main([*arguments, "--out", str(tmp_path / out)]) == 2
    assert f"{beside} is there already" in capsys.readouterr().err
    assert contents(tmp_path) == {beside: b"mine"}
    (tmp_path / beside).unlink()
    assert main([*arguments, "--out", str(tmp_path / out)]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / out)]) == 0
    assert f"{out} is complete" in capsys.readouterr().out
    assert main([*arguments, "--set", "data.eval_crop=1", "--out", str(tmp_path / out)]) == 2
    assert "holds another result (model differs); remove it" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / out).write_bytes((tmp_path / out).read_bytes()[:-1])  # no longer what was written
    assert main([*arguments, "--out", str(tmp_path / out)]) == 2
    assert f"{out} is there already" in capsys.readouterr().err


def test_folders_of_others_are_not_written_to(
    photos: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["embed", str(classifier), str(photos), *MODEL, "--out", str(tmp_path)]) == 2
    assert "is not empty and holds no embeddings" in capsys.readouterr().err
    assert main(["embed", str(classifier), str(photos), *MODEL, "--out", str(tmp_path / "e.txt")]) == 2
    assert "must end in .parquet, .csv, .npy" in capsys.readouterr().err
    assert main(["stats", str(photos), "--out", str(tmp_path / "mine.txt")]) == 2
    assert "no result of `unmask stats`" in capsys.readouterr().err
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_folder_is_read_as_one_table(photos: Path, classifier: Path, tmp_path: Path) -> None:
    """By whatever reads folders of Parquet: all rows in order, and a manifest that tells the files."""
    model = unmask.load(classifier, settings=["data.max_bad_share=0.1"], batch_size=1, device="cpu")
    assert unmask.write_embeddings(model, photos, f"{tmp_path / 'e'}/")
    table = pq.read_table(tmp_path / "e")
    names = sorted(f"{path.parent.name}/{path.name}" for path in photos.glob("*/*.png"))
    assert table["file"].to_pylist() == names
    values = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(values, model.embed(photos))
    manifest = json.loads((tmp_path / "e" / "_manifest.json").read_text())
    assert (manifest["source"]["images"], manifest["bad"]) == (IMAGES, 1)
    assert sum(part["images"] for part in manifest["parts"]) == IMAGES
    assert (tmp_path / "e" / "_bad_images.txt").read_text().startswith(f"{BAD}\t")


def test_shares_killed_at_random_are_gone_on_with(photos: Path, tmp_path: Path) -> None:
    """Two at the same time, killed by SIGKILL; then three, one after the other; nothing is left over."""
    arguments = ["pack", str(photos), "killed", "--short-side", "24", "--shard-size", "8K", "--max-bad-share", "0.1"]
    processes = [start(*arguments, "--share", f"{k}/2", cwd=tmp_path) for k in (1, 2)]
    records = tmp_path / "killed" / ".parts"
    deadline = time.monotonic() + 60
    while len(list(records.glob("0*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    for k in (3, 1, 2):
        assert main([*arguments[:2], str(tmp_path / "killed"), *arguments[3:], "--share", f"{k}/3"]) == 0
    assert main([*arguments[:2], str(tmp_path / "whole"), *arguments[3:]]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def full(folder: Path, arguments: Sequence[str], size: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, on a file system of this size of its own."""
    inner = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder / "small")]
    script = f"{' '.join(inner)} && cp earlier small/ && {sys.executable} -m unmask {' '.join(arguments)}; code=$?; "
    script += "cmp small/earlier earlier || exit 99; ls -a small; exit $code"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


NO_SPACE = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False)


FULL = [
    ["pack", "PHOTOS", "small/pack", "--shard-size", "8K", "--max-bad-share", "0.1"],
    *(
        pytest.param(["embed", "RUN", "PHOTOS", *MODEL, "--out", f"small/{out}"], marks=pytest.mark.campaign)
        for out in ("e.npy", "e.parquet", "e/")
    ),
]


@pytest.mark.skipif(NO_SPACE.returncode != 0, reason="no file systems can be mounted here")
@pytest.mark.parametrize("arguments", FULL, ids=lambda arguments: " ".join(arguments[::5]))
def test_a_full_disk_is_one_line(
    arguments: list[str], photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At first while parts are made, then while they are put together; nothing that was there is lost."""
    model = request.getfixturevalue("classifier") if "RUN" in arguments else ""
    (tmp_path / "small").mkdir()
    (tmp_path / "earlier").write_bytes(bytes(1000))
    words = [str(photos) if word == "PHOTOS" else str(model) if word == "RUN" else word for word in arguments]
    for size in ("12k", "44k"):
        ended = full(tmp_path, words, size)
        assert ended.returncode in (1, 3), ended.stdout + ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert "No space left on device" in ended.stderr
        assert "manifest.json" not in ended.stdout
        assert "e.npy.json" not in ended.stdout
