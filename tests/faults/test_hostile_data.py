"""Real files a data set should not hold, and may (cases 7, 9, 10, 11 and 23): what test_data_faults.py leaves."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from runs import TINY_MODEL
from unmask.checkpoint import load_newest
from unmask.cli import main
from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.bad_files import BadFiles
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import Source, open_source
from unmask.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


def encoded(kind: str, size: tuple[int, int] = (32, 32), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def open_images(path: Path | str) -> Source:
    return open_source(str(path), key="data.train", labels=False)


# --- 7: what is no image ---

ODD = {
    "empty.jpg": b"",
    "truncated.jpg": encoded("JPEG")[:-200],
    "cut-in-the-header.jpg": encoded("JPEG")[:100],
    "half.png": encoded("PNG")[:1000],
    "page.jpg": b"<html><body>404 not found</body></html>",
    "notes.png": b"a text among the images\n",
    "archive.webp": b"PK\x03\x04" + bytes(100),
}
FINE = {
    "really-a-png.jpg": encoded("PNG"),
    "really-a-jpeg.PNG": encoded("JPEG"),
    "UPPER.JPEG": encoded("JPEG"),
    "noextension": encoded("PNG"),
}
IGNORED = {"README.txt": b"no image", "labels.csv": b"a,b\n", ".hidden.jpg": b""}


def train_epochs(source: Source, workers: int, max_share: float, listed: Path) -> list[int]:
    """Two epochs; the images shown in place of what cannot be used enter too."""
    bad_files, shown = BadFiles(source, max_share, listed, lambda index: f"reason {index}"), []
    for step in train_batches(
        source,
        needs=Needs(),
        model=ModelConfig(image_size=(16, 16), patch_size=8),
        data=DataConfig(workers=workers),
        augment=AugmentConfig(),
        seed=0,
        batch_size=len(source),
        accumulate=1,
        start_step=0,
        stop_step=2,
    ):
        for batch in step:
            bad_files.add(bad_files.new(batch))
            shown += batch.index.tolist()
    return shown


def test_what_is_no_image_is_replaced_counted_and_listed_alike_each_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = {f"{number}.png": encoded("PNG") for number in range(20)}
    for name, content in (ODD | FINE | IGNORED | good).items():
        (data / name).write_bytes(content)
    source = open_images(data)
    assert len(source) == len(ODD) + len(FINE) + len(good)
    shown = [train_epochs(source, workers, 0.5, tmp_path / f"bad-{workers}.txt") for workers in (0, 1)]
    assert shown[0] == shown[1]
    assert {source.name(index) for index in shown[0]} <= FINE.keys() | good.keys()
    lists = [(tmp_path / f"bad-{workers}.txt").read_text().splitlines() for workers in (0, 1)]
    assert lists[0] == lists[1]
    assert sorted(line.partition("\t")[0] for line in lists[0]) == sorted(ODD), "each once"
    with pytest.raises(DataError, match=r"7 of 31 images \(22\.58%\) cannot be decoded.*data\.max_bad_share=0\.001"):
        train_epochs(source, 0, DataConfig().max_bad_share, tmp_path / "strict.txt")


# --- 9: small files that claim to be large ---

SIDE = 65_000


def chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def png(side: int, depth: int, *extra: bytes) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (header, *extra, pixels, b"IEND")))


def tiff(channels: int, dtype: str, side: int = SIDE, **options: Any) -> bytes:
    """Little-endian; the sides in its header are made larger."""
    file = BytesIO()
    photometric = "rgb" if channels == 3 else "minisblack"
    pixels = np.zeros((48, 64, channels), dtype)
    tifffile.imwrite(file, pixels, photometric=photometric, planarconfig="contig", **options)
    data = bytearray(file.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):
            struct.pack_into("<I", data, entry + 8, side)
    return bytes(data)


def webp() -> bytes:
    frame = Image.new("RGB", (32, 32), "red")
    data = bytearray(encoded("WEBP", save_all=True, append_images=[frame]))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = (2**14 - 1).to_bytes(3, "little") * 2  # the most that this format knows
    return bytes(data)


def npy() -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({SIDE}, {SIDE}, 3), }}".ljust(117)
    return b"\x93NUMPY\1\0" + struct.pack("<H", 118) + text.encode() + b"\n"


BOMB = zlib.compress(bytes(2**29), 9)
SMALL_BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "16-bit PNG": (lambda: png(SIDE, 16), "pixels are more than data.max_pixels"),
    "text in a PNG": (lambda: png(8, 8, b"zTXta\0\0" + BOMB), ""),  # left out, and the picture read
    "colour profile in a PNG": (lambda: png(8, 8, b"iCCPa\0\0" + BOMB), ""),
    "TIFF": (lambda: tiff(3, "uint8"), "pixels are more than data.max_pixels"),
    "TIFF of 4 bands": (lambda: tiff(4, "uint16"), "pixels are more than data.max_pixels"),
    "compressed TIFF": (lambda: tiff(4, "float32", compression="zlib"), "pixels are more than data.max_pixels"),
    "TIFF within the limit": (lambda: tiff(4, "uint16", 13_000, compression="zlib"), "claims 1352000000 bytes"),
    "WebP": (webp, "exceeds limit"),
    "npy": (npy, "buffer is smaller"),
}
DECODE = """
import logging, resource, sys
from pathlib import Path
from unmask.data.decode.raster import open_image
from unmask.errors import DataError
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import imagecodecs, tifffile
for path in sys.argv[1:]:
    before, data = peak(), Path(path).read_bytes()
    for run in ((3, "uint8"), (4, "uint16")):
        try:
            open_image(data, *run, 178_956_970).pixels()
        except DataError as error:
            print(peak() - before, error)
        else:
            print(peak() - before, "is read")
"""


def test_a_small_file_that_claims_to_be_large_takes_no_memory(tmp_path: Path) -> None:
    for name, (make, _) in SMALL_BOMBS.items():
        (tmp_path / name).write_bytes(make())
    command = [sys.executable, "-W", "ignore", "-c", DECODE, *(tmp_path / name for name in SMALL_BOMBS)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = iter(result.stdout.splitlines())
    for name, (_, message) in SMALL_BOMBS.items():
        for line in (next(lines), next(lines)):
            kilobytes, _, refusal = line.partition(" ")
            assert message in refusal, name
            assert int(kilobytes) < 20_000, name


# --- 10: special files where a file is expected ---


def put_tar(path: Path, name: str) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data := encoded("PNG"))
        tar.addfile(info, BytesIO(data))


@pytest.mark.parametrize("name", ["x.tar", "x.npy", "x.npz", "x.csv", "x.txt", "x.json", "x.parquet", "x"])
def test_a_fifo_or_device_for_data_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=name):
        open_images(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=name):
        open_images(tmp_path / name)


def test_a_file_that_becomes_a_fifo_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").write_bytes(encoded("PNG"))
    put_tar(tmp_path / "t.tar", "1.png")
    (tmp_path / "list.txt").write_text("data/1.png\n")
    sources = [open_images(tmp_path / name) for name in ("data", "t.tar", "list.txt")]
    for path in (tmp_path / "data" / "1.png", tmp_path / "t.tar"):
        path.unlink()
        os.mkfifo(path)
    for source in sources:
        with pytest.raises(DataError, match="it is a folder, a FIFO or a device, not a file"):
            source.read(0)


# --- 11: shards that go away while they are read ---


def test_a_shard_that_is_cut_or_gone_after_it_was_indexed_is_named(tmp_path: Path) -> None:
    for number in range(2):
        put_tar(tmp_path / f"{number}.tar", f"{number}.png")
    source = open_images(f"{tmp_path}/{{0..1}}.tar")
    os.truncate(tmp_path / "0.tar", 600)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"0\.tar ends before byte \d+; it was truncated"):
        source.read(0)
    with pytest.raises(DataError, match=r"1\.tar cannot be read: No such file"):
        source.read(1)


def test_nothing_is_written_beside_a_tar_that_is_read(tmp_path: Path) -> None:
    put_tar(tmp_path / "t.tar", "deep/er/1.png")
    open_images(tmp_path / "t.tar").read(0)
    assert {path.name for path in tmp_path.iterdir()} <= {"t.tar", "cache"}


# --- 23: names ---

NAMES = [*map(str.encode, ("é.png", "e\u0301.png", "日本.png", "a,b.png", 'quote".png')), b"\xff\xfe.png", b"a\nb.png"]


def test_names_of_any_bytes_come_out_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(NAMES):
        path = tmp_path / "data" / "ab"[number % 2] / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("PNG"))
    data, run = f"{tmp_path / 'data'}", tmp_path / "run"
    short = ["train.epochs=1", "train.batch_size=2", "augment.mixup=0", "augment.cutmix=0"]
    assert main(["finetune", "scratch-vit-tiny", *TINY_MODEL, f"data.train={data}", *short, f"output={run}"]) == 0
    assert load_newest(run / "checkpoints").meta["class_names"] == ["a", "b"]
    assert main(["stats", data]) == 0
    for suffix in ("csv", "jsonl", "parquet"):
        assert main(["predict", str(run), data, "--out", str(tmp_path / f"predictions.{suffix}")]) == 0
    assert main(["embed", str(run), data, "--out", str(tmp_path / "embedding.parquet")]) == 0
    assert main(["pack", data, str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len({row[0] for row in rows[1:]}) == len(NAMES), "one row each, told apart"
    packed, folder = open_images(tmp_path / "packed"), open_images(data)
    names = [os.fsencode(folder.name(index)) for index in range(len(folder))]
    assert names == sorted(names)
    assert [os.fsencode(packed.name(index)) for index in range(len(packed))] == names
    assert packed.fingerprint() == folder.fingerprint()
