"""`unmask pack` as a user runs it: killed and started again, verified."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import start, unmask
from unmask.cli import main

COUNT = 96


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", f"{tmp_path / 'cache'}")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Large enough that packing them takes a while."""
    rng = np.random.default_rng(0)
    pattern = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((640, 480))
    for number in range(COUNT):
        path = tmp_path / "photos" / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern.rotate(number).save(path)
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_packs_go_on_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    command = ["pack", "photos", "killed", "--short-side", "256", "--shard-size", "200K"]
    for shards in (1, 4):  # killed while it writes the next one
        process = start(*command, cwd=tmp_path)
        while not (tmp_path / "killed" / ".parts" / f"{shards:06}.json").exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "manifest.json").exists()
    finished = unmask(*command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert f"of {COUNT} images are done already" in finished.stdout
    assert main(["pack", f"{photos}", f"{tmp_path / 'whole'}", *command[3:], "--workers", "1"]) == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) > 8
    assert contents(tmp_path / "killed") == whole


def test_verify_tells_by_its_exit_code(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", f"{photos}", f"{tmp_path / 'out'}"]) == 0
    assert main(["pack", "--verify", f"{tmp_path / 'out'}"]) == 0
    assert f"{COUNT} images in 1 shards, all as packed" in capsys.readouterr().out
    (tmp_path / "out" / "000000.tar").unlink()
    assert main(["pack", "--verify", f"{tmp_path / 'out'}"]) == 3
    shown = capsys.readouterr()
    assert "000000.tar cannot be read" in shown.out
    assert shown.err.startswith("unmask: 1 of 2 files")


@pytest.mark.parametrize("arguments", [[], ["photos"], ["photos", "out", "--verify", "out"]])
def test_what_to_pack_must_be_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", *arguments]) == 2
    assert capsys.readouterr().err.startswith("unmask: name what to pack")


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "photos", "out", "--shard-size", "big"])
    assert "--shard-size: 'big' is not a number of bytes" in capsys.readouterr().err
