"""Crops of large TIFF files, which decode in parts, against the same files decoded whole."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode import tiff
from unmask.data.decode.picture import DecodeError
from unmask.data.decode.raster import Raster

tifffile = pytest.importorskip("tifffile", reason="TIFF of many bands needs unmask[tiff]")
MANY = 10**9
H, W = 150, 201
BOXES = [(0, 0, W, H), (0, 0, 1, 1), (W - 1, H - 1, 1, 1), (37, 11, 100, 64), (64, 64, 64, 64), (0, 130, W, 20)]


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_LARGE", 1)


def noise(channels: int, dtype: str) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 200, (H, W, channels))
    return values.astype(dtype)


def written(pixels: NDArray[Any], **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack", "planarconfig": "contig"} | options)
    return file.getvalue()


LAYOUTS: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "strips": lambda p: written(p, rowsperstrip=16),
    "strips, LZW": lambda p: written(p, rowsperstrip=7, compression="lzw"),
    "tiles": lambda p: written(p, tile=(64, 32)),
    "tiles, deflate, predictor": lambda p: written(p, tile=(64, 64), compression="zlib", predictor=True),
    "separate planes in tiles": lambda p: written(p.transpose(2, 0, 1), tile=(64, 64), planarconfig="separate"),
    "separate planes in strips": lambda p: written(p.transpose(2, 0, 1), rowsperstrip=16, planarconfig="separate"),
    "big-endian": lambda p: written(p, tile=(64, 64), byteorder=">"),
    "BigTIFF": lambda p: written(p, tile=(64, 64), bigtiff=True),
}


@pytest.mark.parametrize(("channels", "dtype"), [(5, "uint16"), (12, "float32"), (4, "uint8")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_crops_are_those_of_the_whole_image(layout: str, channels: int, dtype: str):
    pixels = noise(channels, dtype)
    raster = Raster(LAYOUTS[layout](pixels), channels, dtype, MANY)
    assert raster._pixels is None, "decoded in parts"
    assert (raster.height, raster.width) == (H, W)
    for left, top, width, height in BOXES:
        crop = raster.crop((left, top, width, height), (height, width), Image.Resampling.BICUBIC)
        assert crop.dtype == dtype
        assert_array_equal(crop, pixels[top : top + height, left : left + width])
    assert_array_equal(raster.pixels(), pixels)


def test_jpeg_in_tiles():
    grey = np.linspace(0, 250, H * W).reshape(H, W, 1).astype(np.uint8)
    data = written(np.repeat(grey, 5, 2), tile=(64, 64), compression="zlib")
    colour = written(np.repeat(grey, 3, 2), tile=(64, 64), compression="jpeg", photometric="rgb", bigtiff=True)
    assert_array_equal(Raster(data, 5, "uint8", MANY).pixels()[:, :, :1], grey)
    crop = Raster(colour, 3, "uint8", MANY)._part((37, 11, 100, 64))
    whole = tifffile.imread(BytesIO(colour))
    assert_array_equal(crop, whole[11:75, 37:137])


def test_only_what_is_touched_is_decoded_and_kept():
    pixels = noise(5, "uint16")
    raster = Raster(written(pixels, tile=(32, 32), compression="zlib"), 5, "uint16", MANY)
    for box in ((40, 40, 20, 20), (40, 40, 60, 20)):
        raster.crop(box, (8, 8), Image.Resampling.BICUBIC)
    assert sorted(raster._parts._segments) == [7 + 1, 7 + 2, 7 + 3]


def test_empty_tiles_hold_what_the_file_says_of_no_data():
    tags = [(42113, "s", 0, "7", False)]  # GDAL_NODATA
    data = bytearray(written(noise(5, "uint16"), tile=(64, 64), extratags=tags))
    with tifffile.TiffFile(BytesIO(data)) as file:
        sizes = file.pages[0].tags[325]  # TileByteCounts
        assert sizes.dtype.name == "SHORT"
    data[sizes.valueoffset : sizes.valueoffset + 2] = bytes(2)
    raster = Raster(bytes(data), 5, "uint16", MANY)
    assert_array_equal(raster._part((0, 0, 64, 64)), np.full((64, 64, 5), 7))
    assert_array_equal(raster.pixels(), tifffile.imread(BytesIO(data)))


def test_small_turned_and_contiguous_images_are_decoded_whole(monkeypatch: pytest.MonkeyPatch):
    pixels = noise(5, "uint16")
    assert Raster(written(pixels), 5, "uint16", MANY)._pixels is not None, "one strip"
    turned = written(pixels, tile=(64, 64), extratags=[(274, "H", 1, 6, False)])
    assert Raster(turned, 5, "uint16", MANY).height == W
    frames = written(np.stack([noise(1, "uint16")[:, :, 0]] * 5), tile=(64, 64), planarconfig=None)
    assert Raster(frames, 5, "uint16", MANY)._pixels is not None, "a page a band"
    monkeypatch.setattr(tiff, "_LARGE", H * W + 1)
    assert Raster(written(pixels, tile=(64, 64)), 5, "uint16", MANY)._pixels is not None


def test_complex_numbers_are_no_pixels():
    with pytest.raises(DecodeError, match="cannot be read as pixels"):
        Raster(written(noise(5, "complex64"), tile=(64, 64)), 5, "float32", MANY)


def test_damage_is_an_error_where_it_is_touched():
    good = written(noise(5, "uint16"), tile=(64, 64), compression="zlib")
    raster = Raster(good[:-1000], 5, "uint16", MANY)
    raster.crop((0, 0, 10, 10), (10, 10), Image.Resampling.BICUBIC)
    with pytest.raises(DecodeError, match="is cut short"):
        raster.crop((W - 10, H - 10, 10, 10), (10, 10), Image.Resampling.BICUBIC)
