"""What a message advises can be done: the key it names exists for that command, and with it the command succeeds."""

from __future__ import annotations

import re
import shutil
import tarfile
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
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/there").symlink_to(tmp_path / "photos")
    (tmp_path / "linked/0.png").write_bytes((tmp_path / "photos/0.png").read_bytes())
    (tmp_path / "mixed").mkdir()
    for number in range(4):
        shutil.copy(tmp_path / f"photos/{number}.png", tmp_path / f"mixed/{number}.png")
        (tmp_path / f"mixed/{number}.heic").write_bytes(b"x")
    with tarfile.open(tmp_path / "masks.tar", "w") as tar:
        for number in range(4):
            for kind in ("png", "seg.png"):
                tar.add(tmp_path / f"photos/{number}.png", f"{number}.{kind}")
    (tmp_path / "broken").mkdir()
    shutil.copy(tmp_path / "photos/0.png", tmp_path / "broken/0.png")
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    arrays = {"pixels": RNG.integers(0, 256, (4, 16, 16), np.uint8), "kinds": np.arange(4)}
    np.savez(tmp_path / "own.npz", **arrays)
    (tmp_path / "list.csv").write_bytes("path,label\nphotos/0.png,caf\u00e9\nphotos/1.png,th\u00e9\n".encode("cp1252"))
    (tmp_path / "exclude.txt").write_text("nothing.png\n")
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
    "stats, links": (["stats", "linked"], "#links=follow", ["stats", "linked#links=follow"]),
    "check, links": (["check", "linked"], "#left_out=1", ["check", "linked#left_out=1"]),
    "stats, kinds that are not read": (["stats", "mixed"], "#left_out=1", ["stats", "mixed#left_out=1"]),
    "pack, kinds that are not read": (["pack", "mixed", "p"], "#left_out=1", ["pack", "mixed#left_out=1", "q"]),
    "stats, several files of a sample": (["stats", "masks.tar"], "#image=KIND", ["stats", "masks.tar#image=png"]),
    "check, several files of a sample": (
        ["check", "masks.tar"],
        "#image=",
        ["check", "masks.tar#image=seg.png"],
    ),
    "pack, broken images": (
        ["pack", "broken", "p"],
        "--max-bad-share",
        ["pack", "broken", "q", "--max-bad-share", "0.5"],
    ),
    "stats, arrays of other names": (["stats", "own.npz"], "#image=NAME", ["stats", "own.npz#image=pixels"]),
    "pack, nodata and smaller copies": (
        ["pack", "scenes", "p", "--short-side", "8", "--set", "data.nodata=1"],
        "without --short-side",
        ["pack", "scenes", "q", "--set", "data.nodata=1"],
    ),
    "check, nodata": (
        ["check", "scenes", "--set", "data.nodate=0"],
        "data.nodata",
        ["check", "scenes", "--set", "data.nodata=0"],
    ),
    "pack, a key of others": (
        ["pack", "photos", "p", "--set", "data.range=[0,9]"],
        "data.max_pixels",
        ["pack", "photos", "q", "--set", "data.max_pixels=999"],
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


@pytest.mark.parametrize(
    ("command", "key", "followed"),
    [
        (
            ["pack", "own.npz#image=pixels&label=none", "p"],
            "#label=NAME",
            ["pack", "own.npz#image=pixels&label=kinds", "q"],
        ),
        (["check", "own.npz#image=pixels&label=none"], "#label=NAME", ["check", "own.npz#image=pixels&label=kinds"]),
        (["check", "list.csv"], "#encoding=cp1252", ["check", "list.csv#encoding=cp1252"]),
        (["pack", "list.csv", "p"], "#encoding=cp1252", ["pack", "list.csv#encoding=cp1252", "q"]),
    ],
)
def test_what_is_done_without_labels_says_how_to_have_them(
    command: list[str], key: str, followed: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert key in capsys.readouterr().out
    assert main(followed) == 0
    assert "no labels" not in (said := capsys.readouterr().out)
    assert "not looked at" not in said
