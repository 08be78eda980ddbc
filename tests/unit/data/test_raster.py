"""Pixels of any channels and dtype, from real files written here by other libraries."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.config.schema import DataConfig
from unmask.data.augment.crop import RESAMPLING
from unmask.data.decode.picture import DecodeError, FormError, Picture
from unmask.data.decode.raster import Raster, check_images, open_image
from unmask.data.sources.in_memory import InMemorySource
from unmask.errors import ConfigError

MANY = 10**8
RNG = np.random.default_rng(0)


def noise(*shape: int, dtype: str = "uint16") -> NDArray[Any]:
    if dtype == "float32":
        return RNG.normal(0, 1000, shape).astype(np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack"} | options)
    return file.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(pixels: NDArray[Any]) -> bytes:
    if pixels.ndim == 2:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()
    return imagecodecs.png_encode(pixels)


def read(data: bytes | NDArray[Any], channels: int, dtype: str) -> NDArray[Any]:
    pixels = open_image(data, channels, dtype, MANY).pixels()
    assert (pixels.shape[2], pixels.dtype) == (channels, dtype)
    return pixels


LAST: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "plain": lambda p: tiff(p, planarconfig="contig"),
    "separate planes": lambda p: tiff(p.transpose(2, 0, 1), planarconfig="separate"),
    "tiles, deflate, predictor": lambda p: tiff(
        p, planarconfig="contig", tile=(16, 16), compression="zlib", predictor=True
    ),
    "LZW, big-endian": lambda p: tiff(p, planarconfig="contig", compression="lzw", byteorder=">"),
    "BigTIFF": lambda p: tiff(p, planarconfig="contig", bigtiff=True),
    "bands as pages": lambda p: tiff(p.transpose(2, 0, 1)),
    "ImageJ channels": lambda p: tiff(p.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
    "npy": npy,
    "npy, bands first": lambda p: npy(p.transpose(2, 0, 1)),
    "npy, Fortran order": lambda p: npy(np.asfortranarray(p)),
}


@pytest.mark.parametrize(("channels", "dtype"), [(4, "uint16"), (12, "float32"), (2, "uint8")])
@pytest.mark.parametrize("layout", LAST)
def test_bands_come_back_as_they_were_written(layout: str, channels: int, dtype: str):
    pixels = noise(33, 20, channels, dtype=dtype)
    assert_array_equal(read(LAST[layout](pixels), channels, dtype), pixels)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("write", [tiff, npy])
def test_one_band(write: Callable[[NDArray[Any]], bytes], dtype: str):
    pixels = noise(9, 7, dtype=dtype)
    assert_array_equal(read(write(pixels), 1, dtype)[:, :, 0], pixels)
    assert_array_equal(read(write(pixels), 3, dtype), np.repeat(pixels[:, :, None], 3, 2))


def test_sixteen_bit_png():
    grey, colour = noise(9, 7), noise(9, 7, 3)
    assert_array_equal(read(png(grey), 1, "uint16")[:, :, 0], grey)
    assert_array_equal(read(png(colour), 3, "uint16"), colour)
    assert_array_equal(read(tiff(colour, photometric="rgb"), 3, "uint16"), colour)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert_allclose(read(png(colour), 1, "uint16")[:, :, 0], luma, atol=0.51)


def test_opacity_is_laid_over_white_or_kept_as_a_band():
    pixels = noise(9, 7, 4)
    share = pixels[:, :, 3:] / 65535
    assert_allclose(read(png(pixels), 3, "uint16"), pixels[:, :, :3] * share + 65535 * (1 - share), atol=0.51)
    assert_array_equal(read(png(pixels), 4, "uint16"), pixels)
    eight = noise(9, 7, 4, dtype="uint8")
    assert_array_equal(read(png(eight), 4, "uint8"), eight)
    widened = read(png(eight), 3, "uint16")
    assert_allclose(widened / 257, Picture(png(eight), 3, MANY).pixels(), atol=1)
    assert_array_equal(read(tiff(eight, photometric="rgb", extrasamples=[0]), 4, "uint8"), eight)


def test_eight_bit_files_in_other_runs():
    """Exactly the same share of the range as 16 bits; the file's own numbers as floats."""
    pixels = noise(9, 7, 3, dtype="uint8")
    assert_array_equal(read(png(pixels), 3, "uint16"), pixels.astype(np.uint16) * 257)
    assert_array_equal(read(png(pixels), 3, "float32"), pixels)
    assert_array_equal(read(png(noise(9, 7)), 1, "float32") % 1, 0)


def test_eight_bit_grey_and_colour_stay_with_the_fast_reader():
    assert isinstance(open_image(png(noise(9, 7, 3, dtype="uint8")), 3, "uint8", MANY), Picture)
    assert isinstance(open_image(noise(9, 7, 1, dtype="uint8"), 3, "uint8", MANY), Picture)
    pixels = noise(9, 7, 3, dtype="uint8")
    assert_array_equal(read(npy(pixels), 3, "uint8"), pixels)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64, np.float16, np.uint32])
def test_float_runs_take_all_numbers(dtype: type):
    values = RNG.integers(0, 2000, (9, 7, 5)).astype(dtype)
    for data in (npy(values), tiff(values, planarconfig="contig")):
        assert_array_equal(read(data, 5, "float32"), values.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int):
    pixels = noise(6, 4, 5)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }
    tags = [(274, "H", 1, orientation, True)]
    assert_array_equal(read(tiff(pixels, planarconfig="contig", extratags=tags), 5, "uint16"), turned[orientation])


# --- crops ---


def test_crop_without_resizing_is_exact():
    pixels = noise(40, 30, 12)
    raster = Raster(pixels, 12, "uint16", MANY)
    out = raster.crop((3, 5, 20, 16), (16, 20), Image.Resampling.BICUBIC)
    assert_array_equal(out, pixels[5:21, 3:23])
    assert_array_equal(
        raster.crop((3, 5, 20, 16), (16, 20), Image.Resampling.BICUBIC, flip=True), pixels[5:21, 3:23][:, ::-1]
    )


@pytest.mark.parametrize("resample", RESAMPLING.values(), ids=RESAMPLING.keys())
@pytest.mark.parametrize("box", [(0, 0, 90, 70), (30, 20, 40, 33), (80, 60, 10, 10)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_resize_is_pillow_s_antialiased_one(dtype: str, box: tuple[int, int, int, int], resample: Image.Resampling):
    pixels = noise(70, 90, 2, dtype=dtype)
    out = Raster(pixels, 2, dtype, MANY).crop(box, (16, 24), resample)
    inside = pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
    for band in range(2):
        image = Image.fromarray(inside[:, :, band].astype(np.float32)).resize((24, 16), resample)
        expected = np.asarray(image)
        if dtype != "float32":
            expected = np.clip(expected, 0, np.iinfo(dtype).max)
        assert_allclose(out[:, :, band], expected, atol=0.501 if dtype != "float32" else 1e-3)
    if dtype == "uint8" and resample == Image.Resampling.BILINEAR:  # the others overshoot, which 8 bits clip twice
        eight = Image.fromarray(inside[:, :, 0]).resize((24, 16), resample)
        assert_allclose(out[:, :, 0].astype(int), np.asarray(eight), atol=1)


# --- what does not go together ---


def source_of(paths: list[Path]) -> InMemorySource:
    return InMemorySource(paths, key="data.train", dtype="uint8")


@pytest.mark.parametrize(
    ("pixels", "run", "message"),
    [
        (noise(9, 7, 4), (3, "uint8"), r"has 4 channels of uint16, the run 3; set model.channels=4 data.dtype=uint16"),
        (noise(40, 30, 12, dtype="uint8"), (3, "uint8"), r"model.channels=12 data.dtype=uint8 and the data.mean"),
        (noise(9, 7, 3), (4, "uint16"), r"has 3 channels of uint16, the run 4; set model.channels=3"),
        (noise(9, 7, 3), (3, "uint8"), r"has pixels of uint16, the run of uint8; set data.dtype=uint16"),
        (noise(9, 7, 2, dtype="float32"), (2, "uint16"), r"float32, the run of uint16; set data.dtype=float32"),
    ],
)
def test_refusal_names_the_keys(tmp_path: Path, pixels: NDArray[Any], run: tuple[int, str], message: str):
    for number, data in enumerate((npy(pixels), tiff(pixels, planarconfig="contig"))):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"data\.train: .*{number}\.tif: .*{message}") as caught:
            check_images(source_of([path]), "data.train", run[0], DataConfig(dtype=run[1]), exact=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(FormError, match=message):
        open_image(pixels, *run, MANY)


def test_one_look_at_images_is_enough_and_broken_ones_are_left_to_the_count(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "good.png").write_bytes(png(noise(9, 7, 3, dtype="uint8")))
    (tmp_path / "deep.png").write_bytes(png(noise(9, 7)))
    source = source_of([tmp_path / name for name in ("broken.png", "good.png", "deep.png")])
    check_images(source, "data.train", 3, DataConfig(), exact=True)
    check_images(source_of([tmp_path / "broken.png"]), "data.train", 3, DataConfig(), exact=True)
    deep = source_of([tmp_path / "deep.png"])
    with pytest.raises(ConfigError, match=r"set data\.dtype=uint16"):
        check_images(deep, "data.train", 3, DataConfig(), exact=True)
    check_images(deep, "images", 3, DataConfig())  # a trained model takes it, divided by 257


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(FormError, match=r"is read by tifffile; pip install 'unmask\[tiff\]'"):
        read(tiff(noise(9, 7, 4), planarconfig="contig"), 4, "uint16")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(FormError, match="is read by imagecodecs"):
        read(png(noise(9, 7, 3)), 3, "uint16")
    assert_array_equal(read(png(np.full((2, 2), 700, np.uint16)), 1, "uint16"), 700)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(noise(5, 4, 5)), r"shape \(5, 4, 5\) is not clearly"),
        (npy(noise(2, 5, 4, 5)), r"shape \(2, 5, 4, 5\) is not clearly"),
        (npy(noise(5)), "is not clearly"),
        (npy(np.array([["a"]])), "cannot be read as pixels"),
        (npy(np.full((4, 4, 7), np.nan, np.float32)), "holds no data"),
        (npy(np.full((4, 4, 7), 1e300)), "beyond float32"),
        (npy(np.zeros((0, 4, 7))), "cannot be read as pixels"),
        (npy(noise(9, 9, 7))[:-1], "cannot be decoded"),
        (npy(noise(9, 9, 7)).replace(b"(9, 9, 7)", b"(9e9,9,7)"), "cannot be decoded"),
        (npy(np.zeros((1, 1, 7), np.uint8)).replace(b"(1, 1, 7), }", b"(999999,99999,7), }"), "cannot be decoded"),
        (b"\x93NUMPY\x09\x00", "cannot be decoded"),
        (tiff(noise(9, 9, 7), planarconfig="contig")[:300], "cannot be decoded"),
    ],
)
def test_hostile_files(data: bytes, message: str):
    with pytest.raises(DecodeError, match=message):
        Raster(data, 7, "float32", 10**6)


def test_pickled_array_is_never_run(tmp_path: Path):
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "fired",)

    file = BytesIO()
    np.save(file, np.array([[Payload()]], object), allow_pickle=True)
    with pytest.raises(DecodeError, match="object cannot be read as pixels"):
        Raster(file.getvalue(), 1, "float32", MANY)
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("kind", ["tiff", "png", "npy"])
def test_sizes_are_checked_before_decoding(kind: str):
    pixels = noise(30, 40, 3)
    data = {"tiff": tiff(pixels, photometric="rgb"), "png": png(pixels), "npy": npy(pixels)}[kind]
    with pytest.raises(DecodeError, match=r"40 x 30 pixels are more than data\.max_pixels=1199"):
        Raster(data, 3, "uint16", 1199)


CT = np.array([[-1000, -160, 40, 240, 3000]], np.int16).repeat(2, 0)[:, :, None]


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_a_range_of_values_is_spread_over_what_the_run_holds(dtype: str, full: float):
    found = open_image(npy(CT), 1, dtype, MANY, (-160, 240)).pixels()[0, :, 0]
    assert found.dtype == dtype
    assert_allclose(found, np.array([0, 0, 0.5, 1, 1]) * full, atol=0.51 if full > 1 else 1e-6)


def test_12_bits_in_16_are_not_black_for_a_model_of_8_bit_images():
    xray = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    file = BytesIO()
    Image.fromarray(xray).save(file, "PNG")
    for data in (file.getvalue(), tiff(xray)):
        assert open_image(data, 3, "uint8", MANY).pixels().max() == 16
        seen = open_image(data, 3, "uint8", MANY, (0, 4095)).pixels()
        assert (seen.shape, seen.max(), seen.min()) == ((8, 8, 3), 255, 0)
        assert_allclose(seen[:, :, 0], xray * (255 / 4095), atol=0.51)


def test_a_range_cuts_off_and_fits_any_kind_of_file():
    values = np.array([[np.nan, 9, -9, 0.5]], np.float32).repeat(2, 0)[:, :, None]
    assert open_image(npy(values), 1, "uint8", MANY, (0, 1)).pixels()[0, :, 0].tolist() == [None, 255, 0, 128]
    check_images_of = {"float": npy(values), "deep": png(noise(9, 7)), "plain": png(noise(9, 7, 3, dtype="uint8"))}
    for data in check_images_of.values():
        assert Raster(data, 3, "uint8", MANY, (0, 255)).pixels().dtype == np.uint8
