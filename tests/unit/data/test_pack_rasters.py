"""Packs of images that are not 8-bit grey or colour hold every value of every band."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, Needs
from unmask.data.decode.picture import DecodeError
from unmask.data.decode.raster import Raster, read_stored
from unmask.data.loader.pipeline import train_batches
from unmask.data.packs.recode import recode
from unmask.data.packs.verify import verify_pack
from unmask.data.packs.write import pack
from unmask.data.sources import Source, open_source
from unmask.errors import DataError

MANY = 10**8
RNG = np.random.default_rng(0)


def opened(spec: Path, *, labels: bool = False) -> Source:
    return open_source(str(spec), key="data.train", labels=labels)


def noise(*shape: int, dtype: str) -> NDArray[Any]:
    if dtype == "float32":
        return RNG.normal(0, 1000, shape).astype(np.float32)
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def tiff(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig" if pixels.ndim == 3 else None}
    tifffile.imwrite(path, pixels, **defaults | options)
    return path


def members(folder: Path) -> list[str]:
    names: list[str] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


@pytest.fixture
def bands(tmp_path: Path) -> Path:
    """12 TIFFs of 12 bands in 2 class folders, one stored plane by plane."""
    for i in range(12):
        pixels = noise(30 + i, 20, 12, dtype="uint16")
        path = tmp_path / "bands" / ("land", "sea")[i % 2] / f"{i:02}.tif"
        if i == 5:
            tiff(path, pixels.transpose(2, 0, 1), planarconfig="separate")
        else:
            tiff(path, pixels)
    return tmp_path / "bands"


def batches(source: Source) -> list[Batch]:
    steps = train_batches(
        source,
        needs=Needs(),
        model=ModelConfig(image_size=(16, 16), patch_size=8, channels=12),
        data=DataConfig(dtype="uint16", mean=(0.5,) * 12, std=(0.25,) * 12),
        augment=AugmentConfig(),
        seed=5,
        batch_size=8,
        accumulate=1,
        start_step=0,
        stop_step=3,
    )
    return [batch for step in steps for batch in step]


def test_twelve_bands_are_trained_from_a_pack_as_from_the_folder(bands: Path, tmp_path: Path) -> None:
    pack(bands, tmp_path / "pack", shard_size=50_000)
    before, after = opened(bands, labels=True), opened(tmp_path / "pack", labels=True)
    assert [after.read(i) for i in range(12)] == [before.read(i) for i in range(12)]
    assert after.class_names == ("land", "sea")
    assert_array_equal(after.labels, before.labels)
    assert after.fingerprint() == before.fingerprint()
    assert len(members(tmp_path / "pack")) == 12
    verify_pack(tmp_path / "pack")
    for one, other in zip(batches(before), batches(after), strict=True):
        assert (one.images.shape, one.images.dtype) == ((8, 16, 16, 12), np.uint16)
        assert_array_equal(one.images, other.images)


def test_twelve_bands_are_resized_without_loss(bands: Path, tmp_path: Path) -> None:
    pack(bands, tmp_path / "pack", short_side=10)
    before, after = opened(bands, labels=True), opened(tmp_path / "pack", labels=True)
    for i in range(12):
        assert after.name(i) == before.name(i)
        raster = Raster(before.read(i), 12, "uint16", MANY)
        wanted = raster.crop((0, 0, 20, raster.height), (round(raster.height / 2), 10), Image.Resampling.BICUBIC)
        assert_array_equal(Raster(after.read(i), 12, "uint16", MANY).pixels(), wanted)
    assert members(tmp_path / "pack")[0] == "land/00.tif.npy"
    assert len(batches(after)) == 3


@pytest.mark.parametrize(
    ("dtype", "channels", "suffix"),
    [("uint8", 1, "png"), ("uint8", 4, "npy"), ("uint16", 1, "png"), ("uint16", 3, "npy"), ("float32", 1, "npy")],
)
def test_arrays_keep_every_value(tmp_path: Path, dtype: str, channels: int, suffix: str) -> None:
    images = noise(5, 9, 7, channels, dtype=dtype)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.arange(5) % 2)
    pack(tmp_path / "images.npy", tmp_path / "pack")
    after = opened(tmp_path / "pack", labels=True)
    for i in range(5):
        assert after.name(i) == f"images.npy/{i}"
        assert_array_equal(Raster(after.read(i), channels, dtype, MANY).pixels(), images[i])
    assert after.labels is not None
    assert after.labels.tolist() == [0, 1, 0, 1, 0]
    assert members(tmp_path / "pack")[:2] == [f"000000000.{suffix}", "000000000.cls"]


def test_files_of_arrays_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", noise(5, 40, 60, dtype="float32"))  # bands first
    pack(tmp_path / "in", tmp_path / "whole")
    pack(tmp_path / "in", tmp_path / "small", short_side=20)
    assert opened(tmp_path / "whole").read(0) == opened(tmp_path / "in").read(0)
    small = opened(tmp_path / "small")
    assert small.name(0) == "a.npy"
    assert Raster(small.read(0), 5, "float32", MANY).pixels().shape == (20, 30, 5)


def small(path: Path) -> NDArray[Any]:
    data = recode(path.read_bytes(), 10, 90, max_pixels=MANY)
    return read_stored(data, None, MANY).pixels


@pytest.mark.parametrize(
    ("dtype", "shape", "wanted"),
    [("uint16", (30, 20), "uint16"), ("int16", (30, 20), "float32"), ("float32", (30, 20, 5), "float32")],
)
def test_types_stay(tmp_path: Path, dtype: str, shape: tuple[int, ...], wanted: str) -> None:
    value = -7 if dtype == "int16" else 1234
    pixels = small(tiff(tmp_path / "a.tif", np.full(shape, value, dtype)))
    assert (pixels.shape, pixels.dtype) == ((15, 10, shape[2] if shape[2:] else 1), wanted)
    assert np.unique(pixels).tolist() == [value]


def test_transparency_of_8_bit_files_is_laid_over_white_and_the_fourth_band_of_others_stays(tmp_path: Path) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    clear = tiff(tmp_path / "a.tif", np.zeros((30, 20, 4), np.uint8), **options)
    assert small(clear).tolist() == [[[255] * 3] * 10] * 15
    infrared = tiff(tmp_path / "b.tif", np.full((30, 20, 4), 9, np.uint16), **options)
    assert small(infrared).tolist() == [[[9] * 4] * 10] * 15


def test_pages_that_may_be_bands_or_frames_are_not_resized(tmp_path: Path) -> None:
    pages = tiff(tmp_path / "a.tif", noise(12, 30, 20, dtype="uint16"), planarconfig=None)
    assert recode(pages.read_bytes(), None, 90, max_pixels=MANY) == pages.read_bytes()
    with pytest.raises(DecodeError, match=r"has several pages.*without --short-side"):
        recode(pages.read_bytes(), 10, 90, max_pixels=MANY)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(np.full((30, 20), 5, np.uint16), photometric="minisblack")
        file.write(np.full((15, 10), 5, np.uint16), photometric="minisblack", subfiletype=1)
    assert np.unique(small(tmp_path / "b.tif")).tolist() == [5]


def test_what_no_run_could_read_is_bad(tmp_path: Path) -> None:
    bad = {"cut.tif": b"", "hole.tif": np.full((6, 5), np.nan, np.float32), "cube.npy": np.zeros((8, 30, 8), np.uint8)}
    (tmp_path / "in").mkdir()
    for name, value in bad.items():
        if name == "cut.tif":
            whole = tiff(tmp_path / "in" / name, noise(50, 50, 12, dtype="uint16")).read_bytes()
            (tmp_path / "in" / name).write_bytes(whole[: len(whole) // 2])
        elif name.endswith(".tif"):
            tiff(tmp_path / "in" / name, np.asarray(value))
        else:
            np.save(tmp_path / "in" / name, value)
    tiff(tmp_path / "in" / "good.tif", noise(6, 5, 12, dtype="uint16"))
    pack(tmp_path / "in", tmp_path / "pack", max_bad_share=0.8)
    lines = (tmp_path / "pack" / "bad_images.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(bad)
    assert "not clearly" in lines[0]
    assert "NaN" in lines[2]
    assert opened(tmp_path / "pack").name(0) == "good.tif"


def test_a_missing_library_makes_no_image_bad(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"land/00\.tif: .*pip install 'unmask\[tiff\]'"):
        pack(bands, tmp_path / "pack", max_bad_share=1)
    assert not (tmp_path / "pack" / "bad_images.txt").exists()
