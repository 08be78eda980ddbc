"""Mean and standard deviation: what NumPy says of all pixels at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image

from unmask.cli import main
from unmask.data.sources import open_source
from unmask.data.stats import Stats, measure
from unmask.errors import DataError

FULL = {"uint8": 255, "uint16": 65535, "float32": 1}
MANY = 10**6


def write(folder: Path, images: list[NDArray[Any]]) -> None:
    """8-bit grey and colour as PNG, what a PNG cannot hold as .npy."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(images):
        if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
            Image.fromarray(pixels.squeeze()).save(folder / f"{number:03}.png")
        else:
            np.save(folder / f"{number:03}.npy", pixels)


def draw(dtype: str, channels: int, count: int = 70) -> list[NDArray[Any]]:
    """Of many sizes: more images than are read at a time, each channel with a mean of its own."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        values = rng.normal(0.2 + 0.6 * np.arange(channels) / channels, 0.1, (*rng.integers(20, 40, 2), channels))
        if dtype == "float32":
            images.append((5e4 + 3 * values).astype(np.float32))  # far from 0, where a sum of squares loses its digits
        else:
            images.append((values.clip(0, 1) * FULL[dtype]).astype(dtype))
    return images


@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint8", 12), ("uint16", 12), ("float32", 12), ("float32", 2)]
)
def test_streamed_equals_numpy_of_all_pixels(tmp_path: Path, dtype: str, channels: int):
    images = draw(dtype, channels)
    write(tmp_path / "data", images)
    source = open_source(str(tmp_path / "data"), key="images", labels=False)
    found = measure(source, channels=None, dtype=None, max_pixels=MANY)
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64) / FULL[dtype]
    assert (found.channels, found.dtype, found.count, found.bad) == (channels, dtype, 70, [])
    assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
    assert_allclose(found.std, pixels.std(0), rtol=1e-9)
    assert found.heights == Counter(image.shape[0] for image in images)
    assert found.widths == Counter(image.shape[1] for image in images)


def test_each_pixel_counts_alike_not_each_image():
    stats = Stats(1, "float32")
    stats.add("F", np.zeros((10, 10, 1), np.float32))
    stats.add("F", np.ones((1, 1, 1), np.float32))
    assert_allclose(stats.mean, [1 / 101])
    assert_allclose(stats.std, [np.sqrt(100) / 101])


def test_other_channels_and_dtype_may_be_asked_for(tmp_path: Path):
    grey = np.full((8, 8, 1), 51, np.uint8)
    write(tmp_path / "data", [grey, grey])
    source = open_source(str(tmp_path / "data"), key="images", labels=False)
    found = measure(source, channels=3, dtype="uint16", max_pixels=MANY)
    assert_allclose(found.mean, [0.2] * 3)
    assert_allclose(found.std, [0] * 3, atol=1e-12)
    assert_allclose(measure(source, channels=1, dtype="float32", max_pixels=MANY).mean, [51])


def test_what_cannot_be_read_is_named_and_does_not_count(tmp_path: Path):
    images = draw("uint8", 3, count=4)
    write(tmp_path / "data", images)
    (tmp_path / "data" / "000.png").write_bytes(b"")
    np.save(tmp_path / "data" / "other.npy", np.zeros((8, 8, 5), np.uint8))
    source = open_source(str(tmp_path / "data"), key="images", labels=False)
    found = measure(source, channels=None, dtype=None, max_pixels=MANY)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images[1:]])
    assert_allclose(found.mean, pixels.mean(0) / 255)
    assert found.count == 3
    assert found.bad[0] == "000.png: empty file"
    assert found.bad[1].startswith("other.npy: has 5 channels of uint8, the run 3")


def test_nothing_to_measure_is_an_error(tmp_path: Path):
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    source = open_source(str(tmp_path), key="images", labels=False)
    with pytest.raises(DataError, match=r"none of the first 20 images can be read; 26\.png: not a JPEG"):
        measure(source, channels=None, dtype=None, max_pixels=MANY)


def test_values_that_fill_a_part_of_16_bits_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(4):
        Image.fromarray(np.linspace(8, 4000 + number, 64).reshape(8, 8).astype(np.uint16)).save(
            tmp_path / f"{number}.png"
        )
    assert main(["stats", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the values reach 4003 of 65535" in said
    assert "data.range=[8,4003]" in said
    assert main(["stats", str(tmp_path), "--set", "data.dtype=uint8", "--set", "data.range=[8,4003]"]) == 0
    said = capsys.readouterr().out
    assert "model.channels=1 data.dtype=uint8 data.range=[8,4003]" in said
    (mean,) = [float(word[11:-1]) for word in said.split() if word.startswith("data.mean=")]
    assert mean == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("value", "kind", "flat"), [(7, np.uint16, "0"), (0, np.uint8, "0"), ((9, 9, 9), np.uint8, "0, 1, 2")]
)
def test_images_of_one_value_have_no_settings_that_would_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any, kind: type, flat: str
):
    pixels = np.full((8, 8, 3) if isinstance(value, tuple) else (8, 8), value, kind)
    for number in range(4):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert main(["stats", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"one value everywhere in channel {flat}: " in said
    assert "data.std=" not in said
    assert "data.range=" not in said
