"""`unmask check` finds what is wrong with a set of images before it is trained on."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from unmask.check import check
from unmask.cli import main
from unmask.config.schema import DataConfig
from unmask.data.likeness import BITS, NEAR, groups_of, hash_of, look, near_pairs
from unmask.data.sources import open_source
from unmask.data.sources.base import from_printable, printable
from unmask.data.sources.subset import without
from unmask.data.spreadsheets import name_in
from unmask.errors import DataError


def scene(seed: int, height: int = 120, width: int = 160) -> Image.Image:
    """A picture with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)) for n in (3, 6, 12, 24)]
    pixels = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32) for layer in layers]
    return Image.fromarray((0.25 * sum(pixels)).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 sound photographs in two classes, and one or two of each fault."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    files = {f"{'ab'[n % 2]}/{n:02}.jpg": jpeg(scene(n)) for n in range(20)}
    files |= {
        "a/blank.jpg": jpeg(Image.new("RGB", (80, 80), "white")),
        "b/broken.jpg": jpeg(scene(50))[:300],
        "b/text.png": b"no image",
        "a/tiny.png": jpeg(scene(51, 20, 90)),
        "a/copy.jpg": files["a/02.jpg"],
        "b/other-class.jpg": files["a/04.jpg"],
        "b/smaller.jpg": jpeg(scene(5).resize((100, 75)), 60),
        "b/brighter.jpg": jpeg(ImageEnhance.Brightness(scene(7)).enhance(1.1)),
    }
    for name, data in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "photos"


def test_each_fault_is_found_and_nothing_else(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(photos), "--out", str(tmp_path / "out"), "--set", "data.max_bad_share=0.1"]) == 0
    found = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    assert found["images"] == 28
    assert found["broken"] == ["b/broken.jpg", "b/text.png"]
    assert found["reasons"]["b/text.png"].startswith("not a JPEG, PNG")
    assert (found["blank"], found["tiny"]) == (["a/blank.jpg"], ["a/tiny.png"])
    assert sorted(found["copies"]) == [["a/02.jpg", "a/copy.jpg"], ["a/04.jpg", "b/other-class.jpg"]]
    assert sorted(found["alike"]) == [["b/05.jpg", "b/smaller.jpg"], ["b/07.jpg", "b/brighter.jpg"]]
    assert found["conflicts"] == [["a/04.jpg", "b/other-class.jpg"]]
    assert found["classes"] == {"a": 13, "b": 15}
    assert found["height"] == {"min": 20, "median": 120, "max": 120}
    excluded = (tmp_path / "out" / "exclude.txt").read_text("utf-8").splitlines()
    assert excluded == ["a/blank.jpg", "a/copy.jpg", "b/broken.jpg", "b/other-class.jpg", "b/text.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("alike.csv", "alike.png", "check.json", "exclude.txt")
    ]
    said = capsys.readouterr().out
    assert "2 classes, from 13 images (a) to 15 (b)" in said
    assert f"data.exclude={tmp_path}/out/exclude.txt" in said


def test_images_that_are_also_judged_by(photos: Path, tmp_path: Path) -> None:
    val = tmp_path / "val" / "a"
    val.mkdir(parents=True)
    shutil.copy(photos / "a" / "06.jpg", val / "another-name.jpg")
    (val / "recoded.jpg").write_bytes(jpeg(scene(8), 50))
    (val / "new.jpg").write_bytes(jpeg(scene(99)))
    (val / "blank.jpg").write_bytes(jpeg(Image.new("RGB", (90, 90), "white")))
    findings = check(str(photos), tmp_path / "out", against=str(tmp_path / "val"))
    source = open_source(str(photos), key="DATA", labels=True)
    assert [source.name(row) for row in findings.leaks.tolist()] == ["a/06.jpg", "a/08.jpg"]
    assert {"a/06.jpg", "a/08.jpg"} <= set((tmp_path / "out" / "exclude.txt").read_text("utf-8").splitlines())


def test_what_is_excluded_is_not_trained_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(str(photos), tmp_path / "out")
    source = open_source(str(photos), key="data.train", labels=True)
    kept = without(source, str(tmp_path / "out" / "exclude.txt"))
    assert len(kept) == 23
    assert not {"a/blank.jpg", "b/broken.jpg"} & {kept.name(index) for index in range(len(kept))}
    assert kept.labels is not None
    assert kept.fingerprint() != source.fingerprint()
    assert "5 of 28 images are left out" in capsys.readouterr().out
    (tmp_path / "more.txt").write_text("a/blank.jpg\nz/never.jpg\n")
    assert len(without(source, str(tmp_path / "more.txt"))) == 27
    assert "1 of its names are not there" in capsys.readouterr().out
    (tmp_path / "others.txt").write_text("z/never.jpg\n")
    with pytest.raises(DataError, match=r"none of its 1 names is in data\.train, such as z/never\.jpg"):
        without(source, str(tmp_path / "others.txt"))


def test_16_bits_and_arrays_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4096, (6, 40, 50), np.uint16)
    images[4] = images[1]
    images[5] = 7
    np.save(tmp_path / "set.npy", images)
    findings = check(str(tmp_path / "set.npy"), tmp_path / "out")
    assert [group.tolist() for group in findings.copies] == [[1, 4]]
    assert findings.blank.tolist() == [5]


def _tiff(pixels: NDArray[Any], nodata: str | None = None) -> bytes:
    tifffile, file = pytest.importorskip("tifffile", reason="unmask[tiff] is not installed"), io.BytesIO()
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(file, pixels, photometric="minisblack", extratags=tags)
    return file.getvalue()


def _png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _npy(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


GREY = np.asarray(scene(3).convert("L"), np.float64) / 255
HOLES = np.where(np.random.default_rng(0).random(GREY.shape) < 0.3, np.nan, 1.0)
SHOWS_SOMETHING: dict[str, tuple[str, bytes, bytes, list[str]]] = {
    "8 bits": ("png", _png((255 * GREY).astype(np.uint8)), _png(np.full(GREY.shape, 40, np.uint8)), []),
    "12 in 16, png": ("png", _png((4095 * GREY).astype(np.uint16)), _png(np.full(GREY.shape, 400, np.uint16)), []),
    "12 in 16, tiff": ("tif", _tiff((4095 * GREY).astype(np.uint16)), _tiff(np.full(GREY.shape, 9, np.uint16)), []),
    "10 in 16, faint": ("tif", _tiff((300 + 60 * GREY).astype(np.uint16)), _tiff(np.zeros(GREY.shape, "u2")), []),
    "warm": ("png", _png((30000 + 500 * GREY).astype(np.uint16)), _png(np.full(GREY.shape, 30001, np.uint16)), []),
    "16 bits": ("png", _png((65535 * GREY).astype(np.uint16)), _png(np.full(GREY.shape, 65535, np.uint16)), []),
    "a range": (
        "png",
        _png((1000 + 100 * GREY).astype(np.uint16)),
        _png((1000 + (np.arange(160) % 2) + 0 * GREY).astype(np.uint16)),
        ["data.range=[1000,1100]"],
    ),
    "heights": ("tif", _tiff((8000 + 0.5 * GREY).astype("f4")), _tiff(np.full(GREY.shape, 0.1, "f4")), []),
    "holes": ("tif", _tiff((GREY * HOLES).astype("f4")), _tiff((0.1 * HOLES).astype("f4")), []),
    "nodata of the tag": (
        "tif",
        _tiff(np.nan_to_num(3000 * GREY * HOLES, nan=-9999.0).astype("i2"), "-9999"),
        _tiff(np.nan_to_num(77 * HOLES, nan=-9999.0).astype("i2"), "-9999"),
        [],
    ),
    "nodata of the key": (
        "tif",
        _tiff(np.nan_to_num(1 + 3000 * GREY * HOLES, nan=0.0).astype("u2")),
        _tiff(np.nan_to_num(77 * HOLES, nan=0.0).astype("u2")),
        ["data.nodata=0"],
    ),
    "0 and 1": ("npy", _npy((GREY > 0.5).astype(np.uint8)), _npy(np.ones(GREY.shape, np.uint8)), []),
    "floats of tiny size": ("npy", _npy((1e-30 * GREY).astype("f4")), _npy(np.full(GREY.shape, 1e-30, "f4")), []),
    "shorts": ("npy", _npy((900 * GREY - 1000).astype("i2")), _npy(np.full(GREY.shape, -1000, "i2")), []),
}


@pytest.mark.parametrize("kind", SHOWS_SOMETHING)
def test_blank_is_what_its_own_values_say(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    suffix, picture, blank, keys = SHOWS_SOMETHING[kind]
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / f"picture.{suffix}").write_bytes(picture)
    (tmp_path / "scans" / f"blank.{suffix}").write_bytes(blank)
    words = ["check", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    assert main([*words, *(word for key in keys for word in ("--set", key))]) == 0
    assert (tmp_path / "out" / "exclude.txt").read_text().split() == [f"blank.{suffix}"]


def test_what_fills_a_little_of_a_given_range_is_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scans").mkdir()
    for number, top in enumerate((4095, 60)):
        (tmp_path / "scans" / f"{number}.png").write_bytes(_png((top * GREY).astype(np.uint16)))
    assert len(check(str(tmp_path / "scans"), tmp_path / "out").blank) == 0
    ranged = check(str(tmp_path / "scans"), tmp_path / "ranged", data=DataConfig(range=(0, 4095)))
    assert ranged.blank.tolist() == [1]


def test_the_table_of_pairs_is_safe_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    names = ["=1+1|' '!A0.jpg", "@a, b.jpg", '-é "c".jpg', "line\nbreak.jpg"]
    for number, name in enumerate(names):
        path = tmp_path / "photos" / ("=class" if number % 2 else "b") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene(7), 90 - number))
    check(str(tmp_path / "photos"), tmp_path / "out")
    raw = (tmp_path / "out" / "alike.csv").read_bytes()
    assert raw.startswith(codecs.BOM_UTF8), "by which spreadsheets tell UTF-8"
    header, *rows = csv.reader(raw.decode("utf-8-sig").splitlines())
    assert header == ["group", "file", "class"]
    assert [row[0] for row in rows] == ["1"] * 4
    assert {row[2] for row in rows} == {"'=class", "b"}
    there = {printable(f"{'=class' if number % 2 else 'b'}/{name}") for number, name in enumerate(names)}
    assert {name_in(row[1]) for row in rows} == {from_printable(name) for name in there}
    assert not any(row[1].startswith(("=", "@", "-")) for row in rows)


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    for number in range(400):
        path = tmp_path / "many" / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(scene(number, 150, 200)))
    command = [sys.executable, "-m", "unmask", "check", "many", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    part = tmp_path / "out" / "data.partial" / "000000.json"
    deadline = time.monotonic() + 60
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "of 400 images are done already" in done.stdout
    assert json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))["images"] == 400


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_near_pairs_are_those_of_all_pairs(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, BITS), np.uint8)
    for row in range(1, count, 2):  # some near, some just too far
        flipped = rng.choice(BITS, int(rng.integers(0, 2 * NEAR)), replace=False)
        bits[row] = bits[row - 1]
        bits[row, flipped] ^= 1
    distance = (bits[:, None] != bits[None]).sum(2)
    expected = [(a, b) for a in range(count) for b in range(a + 1, count) if distance[a, b] <= NEAR]
    pairs = near_pairs(np.packbits(bits, axis=1))
    assert [tuple(pair) for pair in pairs.tolist()] == expected
    groups = groups_of(pairs, count)
    connected = {frozenset(group.tolist()) for group in groups}
    for a, b in expected:
        assert sum({a, b} <= group for group in connected) == 1


@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("size", [(640, 480), (320, 240), (600, 600)])
def test_copies_in_another_form_are_near(quality: int, size: tuple[int, int]) -> None:
    hashes = [hash_of(look(jpeg(scene(n, 480, 640)), 10**8).grey) for n in range(12)]
    others = [hash_of(look(jpeg(scene(n, 480, 640).resize(size), quality), 10**8).grey) for n in range(12)]
    pairs = near_pairs(np.stack([*hashes, *others]))
    assert pairs.tolist() == [[n, n + 12] for n in range(12)]


def test_digits_on_flat_ground_are_not_taken_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    findings = check("bundled:mnist5k/val", tmp_path / "out", smallest=8)
    assert sum(len(group) for group in findings.alike) <= 10  # of 1,000, whose hashes make 884 pairs
    assert not findings.conflicts


def test_nothing_that_can_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    findings = check(str(tmp_path / "photos"), tmp_path / "out", against=str(tmp_path / "photos"))
    assert findings.broken.tolist() == [0, 1]
    assert not len(findings.leaks)
    assert (tmp_path / "out" / "exclude.txt").read_text("utf-8") == "a.jpg\nb.png\n"


def test_names_that_differ_never_look_alike(tmp_path: Path) -> None:
    """A line break and a backslash before an n; a byte that is no UTF-8 and its escape: in rows, keys and lists."""
    classes, bad = ["a\nb", r"a\nb", os.fsdecode(b"\xff"), r"\xff"], ["x\ny.png", r"x\ny.png"]
    for number, name in enumerate([*classes, *bad]):
        folder = tmp_path / "data" / (name if name in classes else "plain")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
        if name in bad:
            (folder / name).write_bytes(b"broken")
    check(str(tmp_path / "data"), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    assert len(found["classes"]) == 5
    assert len(set(found["broken"])) == len(found["reasons"]) == 2
    left = without(
        open_source(str(tmp_path / "data"), key="data.train", labels=False), str(tmp_path / "out/exclude.txt")
    )
    assert len(left) == 5
    (tmp_path / "one.txt").write_text(found["broken"][0] + "\n", "utf-8")
    source = open_source(str(tmp_path / "data"), key="data.train", labels=False)
    assert len(without(source, str(tmp_path / "one.txt"))) == 6
