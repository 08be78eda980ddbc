"""Parquet, Arrow, .npz and .npy from others, damaged at random: right images or one error, and the process lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unmask
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.errors import DataError

READ = """
import sys
from unmask.data.sources import open_source
from unmask.errors import DataError
for path in sys.argv[1:]:
    for labels in (False, True):
        try:
            source = open_source(path, key="data.train", labels=labels)
            source.fingerprint()
        except DataError as error:
            assert "\\n" not in str(error), error
            continue
        for index in range(len(source)):
            try:
                source.read(index)
            except DataError as error:
                assert "\\n" not in str(error), error
    print(path, flush=True)
"""


def make(folder: Path) -> dict[str, bytes]:
    """One file of each kind, as other programs write them."""
    images = []
    for number in range(24):
        path = folder / "one.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)).save(path)
        images.append({"bytes": path.read_bytes(), "path": f"{number}.png"})
    table = pa.table({"image": images, "label": [n % 3 for n in range(24)]})
    files: dict[str, bytes] = {}
    for codec in ("snappy", "zstd", "none"):
        pq.write_table(table, folder / "x", compression=codec, row_group_size=6)
        files[f"{codec}.parquet"] = (folder / "x").read_bytes()
    for name, writer in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with writer(folder / "x", table.schema) as sink:
            sink.write_table(table, max_chunksize=6)
        files[name] = (folder / "x").read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    for name, save in (("plain.npz", np.savez), ("deflated.npz", np.savez_compressed)):
        save(folder / name, images=pixels, labels=np.arange(20) % 4)
        files[name] = (folder / name).read_bytes()
    np.save(folder / "set.npy", pixels)
    files["set.npy"] = (folder / "set.npy").read_bytes()
    return files


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    how = rng.integers(4)
    if how == 0:
        return bytes(out[: int(rng.integers(len(out)))])
    for _ in range(int(rng.integers(1, 6))):
        # headers and footers, where the lengths and offsets stand, are hit more often
        place = int(
            rng.integers(len(out))
            if how == 1
            else rng.integers(min(400, len(out))) * (1 if how == 2 else -1) - (how == 3)
        )
        out[place] = int(rng.integers(256))
    return bytes(out)


def check(tmp_path: Path, seed: int, count: int) -> None:
    (tmp_path / "seeds").mkdir()
    rng = np.random.default_rng(seed)
    paths: list[str] = []
    for name, data in make(tmp_path / "seeds").items():
        for number in range(count):
            path = tmp_path / f"{number}-{name}"
            path.write_bytes(damaged(data, rng))
            paths.append(str(path))
    environment = os.environ | {
        "PYTHONPATH": str(Path(unmask.__file__).parents[1]),
        "UNMASK_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", READ, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    read = done.stdout.splitlines()
    assert done.returncode == 0, f"{paths[len([line for line in read if line in paths])]}: {done.stderr[-1500:]}"


def test_no_damage_crashes_or_escapes(tmp_path: Path) -> None:
    check(tmp_path, 0, 25)


def test_a_damaged_row_group_is_counted_named_and_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "set.parquet"
    whole = make(tmp_path)["snappy.parquet"]
    path.write_bytes(whole)
    group = pq.ParquetFile(path).metadata.row_group(3)
    pages = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image.bytes")
    damaged = bytearray(whole)
    begin = pages.dictionary_page_offset if pages.has_dictionary_page else pages.data_page_offset
    damaged[begin : begin + 200] = b"\xff" * 200
    path.write_bytes(damaged)

    out = tmp_path / "stats.json"
    for line in (
        ["stats", str(path)],
        ["stats", str(path), "--out", str(out)],
        ["stats", str(path), "--out", str(out)],
    ):
        assert main(line) == 3
        said = capsys.readouterr()
        assert "6 images were left out" in said.out
        assert "6 of 24 images (25.00%) cannot be decoded, more than data.max_bad_share=0.001, such as" in said.err
        assert "set.parquet/18: its row group cannot be read" in said.err
    assert json.loads(out.read_text())["bad"] == 6
    assert main(["stats", str(path), "--set", "data.max_bad_share=0.25"]) == 0

    check = ["check", str(path), "--out", str(tmp_path / "check"), "--smallest", "1"]
    assert main(check) == 3
    assert "check is written, but 6 of 24 images" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "check" / "check.json").read_text())["reasons"]) == 6
    assert main([*check, "--set", "data.max_bad_share=0.25"]) == 0
    assert main(["check", str(tmp_path / "seeds.npy"), "--out", str(tmp_path / "other")]) == 3  # is not there
    np.save(tmp_path / "sound.npy", np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8))
    against = ["check", str(tmp_path / "sound.npy"), "--against", str(path), "--out", str(tmp_path / "against")]
    assert main(against) == 3
    assert "against is written, but --against: 6 of 24 images" in capsys.readouterr().err
    assert main([*against, "--set", "data.max_bad_share=1"]) == 0


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_damage_crashes_or_escapes_in_many(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed, 150)


@pytest.mark.parametrize("name", ["noise.npz", "text.npz", "objects.npy", "objects.npz"])
def test_nobody_is_told_to_execute_what_is_no_array(name: str, tmp_path: Path) -> None:
    path, objects = tmp_path / name, np.array([{"a": 1}], object)
    if name == "objects.npy":
        np.save(path, objects, allow_pickle=True)
    elif name == "objects.npz":
        np.savez(path, images=objects)
    else:
        path.write_bytes(np.random.default_rng(0).bytes(300) if name == "noise.npz" else b"not an archive\n")
    with pytest.raises(DataError, match=r"is not a plain .*Python objects") as caught:
        open_source(str(path), key="data.train", labels=False)
    assert "unsafe" not in str(caught.value)
    assert "allow_pickle" not in str(caught.value)
