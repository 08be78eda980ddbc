"""Our resizing against Pillow's, which published accuracies assume."""

from importlib import import_module

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from unmask.data.decode import resize as module
from unmask.data.decode.resize import resize

RESAMPLE = [Image.Resampling[name] for name in ("BICUBIC", "BILINEAR", "LANCZOS", "BOX", "NEAREST")]


def picture(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth, but for steps."""
    y, x = np.mgrid[:height, :width]
    bands = [127 + 100 * np.sin(x / 9), (y * 255 // height), np.where((x // 20 + y // 20) % 2, 60, 180)]
    return np.stack(bands[:channels], -1).astype(np.uint8)


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 200, 150), (60, 70)),
        ((13, 7, 90, 110), (224, 224)),
        ((5, 5, 1, 1), (8, 8)),
        ((0, 0, 200, 150), (1, 1)),
        ((10.5, 20.25, 99.75, 80.5), (64, 48)),
        ((100, 75, 100.5, 75.5), (30, 30)),  # ends beyond the image
    ],
)
def test_resize_is_pillow_s(box: tuple[float, ...], size: tuple[int, int], channels: int, resample: Image.Resampling):
    pixels = picture(150, 200, channels)
    got = resize(pixels, box, size, resample)
    left, top, width, height = box
    x, y = int(left), int(top)
    near = Image.fromarray(pixels[y:, x:].squeeze()).crop((0, 0, -int(-(left + width) // 1) - x, 999))
    near = near.crop((0, 0, min(near.width, 200 - x), min(-int(-(top + height) // 1) - y, 150 - y)))
    inside = (left - x, top - y, min(left - x + width, near.width), min(top - y + height, near.height))
    expected = np.asarray(near.resize((size[1], size[0]), resample, inside)).reshape(*size, channels)
    assert got.dtype == np.uint8
    assert got.shape == (*size, channels)
    difference = np.abs(got.astype(int) - expected)
    assert difference.mean() <= 0.3
    assert difference.max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_swaps_left_and_right(channels: int):
    pixels = picture(40, 50, channels)
    straight = resize(pixels, (3, 4, 30, 30), (20, 24), Image.Resampling.BICUBIC)
    assert_array_equal(resize(pixels, (3, 4, 30, 30), (20, 24), Image.Resampling.BICUBIC, flip=True), straight[:, ::-1])


def test_pixels_of_the_size_asked_for_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert_array_equal(resize(pixels, (7, 9, 20, 16), (16, 20), Image.Resampling.BICUBIC), pixels[9:25, 7:27])


@pytest.mark.skipif(module.by_cykooz is None, reason="cykooz.resizer has no wheel for this platform")
def test_every_instruction_set_gives_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    resizer = import_module("unmask.data.decode.resize_cykooz").thread.resizer
    extensions = type(resizer.cpu_extensions)
    used = resizer.cpu_extensions
    expected = resize(pixels, (0, 0, 70, 90), (33, 47), Image.Resampling.BICUBIC)
    try:
        resizer.cpu_extensions = extensions.none
        assert_array_equal(resize(pixels, (0, 0, 70, 90), (33, 47), Image.Resampling.BICUBIC), expected)
    finally:
        resizer.cpu_extensions = used


def test_where_there_is_only_pillow(monkeypatch: pytest.MonkeyPatch):
    pixels = picture(150, 200, 3)
    fast = resize(pixels, (10, 10, 120, 100), (50, 60), Image.Resampling.BICUBIC, flip=True)
    monkeypatch.setattr(module, "by_cykooz", None)
    slow = resize(pixels, (10, 10, 120, 100), (50, 60), Image.Resampling.BICUBIC, flip=True)
    assert np.abs(fast.astype(int) - slow).mean() <= 0.3
