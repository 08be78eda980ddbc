"""What a message advises can be done: the key it names exists for that command, and with it the command succeeds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unmask.cli import main

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photos, four 12-bit X-rays in files of 16 bits, four scenes whose tag of nodata is no number."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "xrays", "scenes"):
        (tmp_path / name).mkdir()
    for number in range(4):
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"photos/{number}.png")
        Image.fromarray(RNG.integers(0, 4096, (16, 16)).astype(np.uint16)).save(tmp_path / f"xrays/{number}.png")
        scene = RNG.integers(1, 9, (16, 16, 4)).astype(np.uint16)
        tag = [(42113, "s", 0, "none", True)]
        kind = {"photometric": "minisblack", "planarconfig": "contig", "extratags": tag}
        tifffile.imwrite(tmp_path / f"scenes/{number}.tif", scene, **kind)
    return tmp_path


CASES: dict[str, tuple[list[str], str, list[str]]] = {
    "stats, pixels": (
        ["stats", "photos", "--set", "data.max_pixels=9"],
        "data.max_pixels",
        ["stats", "photos", "--set", "data.max_pixels=256"],
    ),
    "pack, pixels": (
        ["pack", "photos", "small", "--set", "data.max_pixels=9"],
        "data.max_pixels",
        ["pack", "photos", "large", "--set", "data.max_pixels=256"],
    ),
    "stats, nodata": (["stats", "scenes"], "data.nodata", ["stats", "scenes", "--set", "data.nodata=0"]),
    "stats, channels": (
        ["stats", "scenes", "--set", "model.channels=9", "--set", "data.nodata=0"],
        "model.channels=4",
        ["stats", "scenes", "--set", "model.channels=4", "--set", "data.nodata=0"],
    ),
    "stats, a key of others": (
        ["stats", "photos", "--set", "data.flip=0"],
        "data.dtype",
        ["stats", "photos", "--set", "data.dtype=uint8"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_advice_can_be_followed(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, key, followed = CASES[case]
    assert main(command) != 0
    said = capsys.readouterr()
    assert key in said.err + said.out
    assert main(followed) == 0


def test_stats_prints_settings_that_it_takes_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "xrays"]) == 0
    (advice,) = set(re.findall(r"data\.range=\[[0-9.,e+]+\]", capsys.readouterr().out))
    assert main(["stats", "xrays", "--set", advice, "--set", "data.dtype=uint8"]) == 0
    assert advice in capsys.readouterr().out
