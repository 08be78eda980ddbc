"""Damaged images of every format, for runs of every kind: pixels of the right form or a DataError (cases 7 and 9).

A longer run is a line: docs/log.md has it, with what it found.
"""

from __future__ import annotations

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

from unmask.data.raster import open_image
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
    tifffile.imwrite(file, noise(channels, dtype), **layout | options)
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
    "floating BigTIFF": deep(4, "float32", bigtiff=True),
    "big-endian TIFF": deep(1, "uint16", byteorder=">"),
    "npy": npy(noise(4, "uint16")),
    "Fortran npy": npy(np.asfortranarray(noise(4, "float32"))),
}
HEADER = 120
"""Bytes in which damage does the most."""


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([*SOUND.values()])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, draw(st.sampled_from([HEADER, len(data)]))))
        new = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])))
        data[at : at + draw(st.integers(0, 8))] = new
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOUND)
def test_undamaged_they_are_all_read(name: str) -> None:
    assert None in [refusal(SOUND[name], *run) for run in RUNS]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=damaged(), run=st.sampled_from(RUNS))
def test_damaged_images_are_pixels_or_a_data_error(data: bytes, run: tuple[int, str]) -> None:
    assert "\n" not in (refusal(data, *run) or "")
