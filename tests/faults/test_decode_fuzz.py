"""Damaged images of every format, for runs of every kind: pixels of the right form or a DataError (cases 7 and 9)."""

from __future__ import annotations

import random
import zlib
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode import tiff
from unmask.data.decode.raster import open_image
from unmask.errors import DataError

LIMIT = 100_000
RUNS = [(3, "uint8"), (1, "uint8"), (3, "uint16"), (4, "uint16"), (4, "float32")]


def noise(channels: int, dtype: str) -> NDArray[Any]:
    """(40, 56, channels), smooth enough to be compressed."""
    y, x = np.mgrid[:40, :56]
    values = 0.5 + 0.4 * np.sin(np.stack([(y + band) * x / 60 for band in range(channels)], 2))
    return values.astype(dtype) if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def pillow(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(3, "uint8")).convert(mode).save(file, kind, **options)
    return file.getvalue()


def deep(channels: int, dtype: str, **options: Any) -> bytes:
    file = BytesIO()
    layout: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig" if channels > 1 else None}
    pixels = noise(channels, dtype)
    if options.get("planarconfig") == "separate":
        pixels = pixels.transpose(2, 0, 1)
    tifffile.imwrite(file, pixels, **layout | options)
    return file.getvalue()


def npy(pixels: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, pixels)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
FRAMES = [Image.new("RGB", (56, 40), colour) for colour in ("red", "lime")]
SOUND = {
    "JPEG": pillow("JPEG", exif=EXIF),
    "progressive JPEG": pillow("JPEG", progressive=True, subsampling=0),
    "grey JPEG with restarts": pillow("JPEG", "L", restart_marker_blocks=2),
    "CMYK JPEG": pillow("JPEG", "CMYK"),
    "PNG": pillow("PNG"),
    "palette PNG": pillow("PNG", "P", transparency=3),
    "transparent PNG": pillow("PNG", "RGBA", exif=EXIF),
    "animated PNG": pillow("PNG", save_all=True, append_images=FRAMES),
    "16-bit PNG": imagecodecs.png_encode(noise(3, "uint16")),
    "16-bit PNG with opacity": imagecodecs.png_encode(noise(4, "uint16")),
    "WebP": pillow("WEBP", exif=EXIF),
    "lossless WebP": pillow("WEBP", "RGBA", lossless=True),
    "animated WebP": pillow("WEBP", save_all=True, append_images=FRAMES),
    "GIF": pillow("GIF", save_all=True, append_images=FRAMES),
    "BMP": pillow("BMP"),
    "palette BMP": pillow("BMP", "P"),
    "TIFF": pillow("TIFF", compression="tiff_lzw", exif=EXIF),
    "bilevel TIFF": pillow("TIFF", "1", compression="group4"),
    "JPEG in TIFF": pillow("TIFF", compression="jpeg"),
    "16-bit TIFF": deep(3, "uint16", photometric="rgb", compression="zlib", predictor=True),
    "tiled TIFF": deep(4, "uint16", tile=(16, 16), compression="lzw"),
    "tiled TIFF of planes": deep(4, "uint16", tile=(16, 32), compression="zlib", planarconfig="separate"),
    "TIFF of strips": deep(4, "uint16", rowsperstrip=8),
    "floating BigTIFF": deep(4, "float32", bigtiff=True),
    "big-endian TIFF": deep(1, "uint16", byteorder=">"),
    "npy": npy(noise(4, "uint16")),
    "Fortran npy": npy(np.asfortranarray(noise(4, "float32"))),
}
HEADER = 120
"""Bytes in which damage does the most."""


def damaged(data: bytes, seed: int) -> bytes:
    """Mostly bytes exchanged for others, so that much of it still looks sound; sometimes others left out or put in."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(len(data), rng.choice((HEADER, len(data)))))
        new = rng.choice((rng.randbytes(1), rng.randbytes(4), b"\xff" * 4, bytes(2), b"\x7f\xff"))
        changed[at : at + (len(new) if rng.random() < 0.8 else rng.randrange(10))] = new
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        repair(changed)
    return bytes(changed[: len(changed) if rng.random() < 0.9 else rng.randrange(len(changed))])


def repair(png: bytearray) -> None:
    """Make the checksums right, so that damage comes through to what they protect."""
    start = 8
    while start + 12 <= len(png) and (end := start + 8 + int.from_bytes(png[start : start + 4], "big")) + 4 <= len(png):
        png[end : end + 4] = zlib.crc32(png[start + 4 : end]).to_bytes(4, "big")
        start = end + 4


def refusal(data: bytes, channels: int, dtype: str) -> str | None:
    """Why there are no pixels; None where they are as they should be."""
    try:
        image = open_image(data, channels, dtype, LIMIT)
        assert 0 < image.height * image.width <= LIMIT
        whole = (0, 0, image.width, image.height)
        corner = (image.width // 2, image.height // 2, (image.width + 1) // 2, (image.height + 1) // 2)
        for box, flip in ((whole, False), (corner, True)):
            pixels = image.crop(box, (6, 8), Image.Resampling.BICUBIC, flip=flip)
            assert (pixels.shape, pixels.dtype) == ((6, 8, channels), dtype)
    except DataError as error:
        return str(error)
    return None


PAIRS = [(name, run) for name in SOUND for run in RUNS if refusal(SOUND[name], *run) is None]


def test_undamaged_all_are_read() -> None:
    assert {name for name, _ in PAIRS} == SOUND.keys()
    assert {run for _, run in PAIRS} == set(RUNS)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pair=st.sampled_from(PAIRS), seed=st.integers(0, 2**63), parts=st.booleans())
def test_damaged_images_are_pixels_or_a_data_error(pair: tuple[str, tuple[int, str]], seed: int, parts: bool) -> None:
    check(pair, seed, parts)


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, 100_000, 5000))
def test_a_hundred_thousand_damaged_images(first: int) -> None:
    for seed in range(first, first + 5000):
        rng = random.Random(seed)
        check(rng.choice(PAIRS), seed, rng.random() < 0.5)


def check(pair: tuple[str, tuple[int, str]], seed: int, parts: bool) -> None:
    name, run = pair
    with pytest.MonkeyPatch.context() as patch:
        if parts:
            patch.setattr(tiff, "_LARGE", 1)  # small TIFF files are decoded in parts too
        assert "\n" not in (refusal(damaged(SOUND[name], seed), *run) or "")
