"""Each operation against Pillow's own result, or the formula of its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from unmask.data.augment.operations import OPERATIONS, Canvas, ColorJitter, hue

FILL = (124, 116, 104)
CANVAS = Canvas(FILL, Image.Resampling.BICUBIC)


class Signs(np.random.Generator):
    """Draws the direction it is told to."""

    def __init__(self, sign: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.draw = 0.25 if sign > 0 else 0.75

    def random(self, *_: Any, **__: Any) -> Any:
        return self.draw


@pytest.fixture(params=["RGB", "L"])
def image(request: pytest.FixtureRequest) -> Image.Image:
    pixels = np.random.default_rng(1).integers(20, 230, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC).convert(request.param)


def done(image: Image.Image, name: str, magnitude: float, sign: int = 1) -> Image.Image:
    canvas = CANVAS if image.mode == "RGB" else Canvas(FILL[0], CANVAS.resample)
    return OPERATIONS[name](image, magnitude, Signs(sign), canvas)


def factor(enhance: Callable[[Image.Image], Any], value: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: enhance(image).enhance(value)


# name, magnitude, direction, what Pillow does
SAME: list[tuple[str, float, int, Callable[[Image.Image], Image.Image]]] = [
    ("AutoContrast", 3, 1, ImageOps.autocontrast),
    ("Equalize", 3, 1, ImageOps.equalize),
    ("Invert", 3, 1, ImageOps.invert),
    ("Posterize", 9, 1, lambda image: ImageOps.posterize(image, 3)),
    ("Posterize", 2, 1, lambda image: image.point(lambda _: 0)),
    ("PosterizeIncreasing", 9, 1, lambda image: ImageOps.posterize(image, 1)),
    ("PosterizeIncreasing", 0, 1, lambda image: ImageOps.posterize(image, 4)),
    ("PosterizeOriginal", 5, 1, lambda image: ImageOps.posterize(image, 6)),
    ("PosterizeOriginal", 10, 1, lambda image: image),
    ("Solarize", 9, 1, lambda image: ImageOps.solarize(image, 230)),
    ("Solarize", 10, 1, lambda image: image),
    ("SolarizeIncreasing", 9, 1, lambda image: ImageOps.solarize(image, 26)),
    ("SolarizeAdd", 9, 1, lambda image: image.point(lambda v: v + 99 if v < 128 else v)),
    ("Color", 9, 1, factor(ImageEnhance.Color, 1.72)),
    ("ColorIncreasing", 9, 1, factor(ImageEnhance.Color, 1.81)),
    ("ColorIncreasing", 9, -1, factor(ImageEnhance.Color, 0.19)),
    ("Contrast", 1, 1, factor(ImageEnhance.Contrast, 0.28)),
    ("ContrastIncreasing", 5, -1, factor(ImageEnhance.Contrast, 0.55)),
    ("Brightness", 5, 1, factor(ImageEnhance.Brightness, 1.0)),
    ("BrightnessIncreasing", 15, -1, factor(ImageEnhance.Brightness, 0.1)),
    ("Sharpness", 0, 1, factor(ImageEnhance.Sharpness, 0.1)),
    ("SharpnessIncreasing", 10, 1, factor(ImageEnhance.Sharpness, 1.9)),
    ("Desaturate", 10, 1, lambda image: image.convert("L").convert(image.mode)),
    ("Desaturate", 0, 1, factor(ImageEnhance.Color, 0.5)),
    ("GaussianBlur", 5, 1, lambda image: image.filter(ImageFilter.GaussianBlur(1.05))),
    ("GaussianBlur", 12, 1, lambda image: image.filter(ImageFilter.GaussianBlur(2.0))),
]


@pytest.mark.parametrize(("name", "magnitude", "sign", "pillow"), SAME)
def test_operation_is_pillows_at_the_strength_that_the_magnitude_stands_for(
    image: Image.Image, name: str, magnitude: float, sign: int, pillow: Callable[[Image.Image], Image.Image]
) -> None:
    result = done(image, name, magnitude, sign)
    assert (result.mode, result.size) == (image.mode, image.size)
    assert_array_equal(result, pillow(image))


def fill_of(image: Image.Image) -> Any:
    return FILL if image.mode == "RGB" else FILL[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_30_degrees_at_full_strength(image: Image.Image, sign: int) -> None:
    expected = image.rotate(sign * 27, Image.Resampling.BICUBIC, fillcolor=fill_of(image))
    assert_array_equal(done(image, "Rotate", 9, sign), expected)
    assert np.asarray(expected)[0, 0].tolist() == (list(FILL) if image.mode == "RGB" else FILL[0])


def test_translation_is_a_share_of_the_side(image: Image.Image) -> None:
    pixels = np.asarray(image)
    right = np.asarray(done(image, "TranslateXRel", 10, 1))  # 0.45 x 60 = 27 pixels
    assert_array_equal(right[:, :33], pixels[:, 27:])
    assert_array_equal(right[:, 33:], np.broadcast_to(fill_of(image), right[:, 33:].shape))
    up = np.asarray(done(image, "TranslateYRel", 5, -1))  # 0.225 x 40 = 9 pixels
    assert_array_equal(up[9:], pixels[:-9])
    assert_array_equal(up[:9], np.broadcast_to(fill_of(image), up[:9].shape))


@pytest.mark.parametrize(("name", "axis"), [("ShearX", 1), ("ShearY", 0)])
def test_shear_moves_each_line_in_proportion_to_its_number(name: str, axis: int) -> None:
    ramp = np.broadcast_to(np.arange(0, 200, 5, dtype=np.uint8), (40, 40))
    image = Image.fromarray(ramp if axis else ramp.T.copy())
    sheared = np.asarray(done(image, name, 10, 1), np.float64)
    sheared = sheared if axis else sheared.T
    middle = sheared[10:20, 5:20]  # far from what comes in at the border
    expected = 5 * (np.arange(5, 20) + 0.3 * (np.arange(10, 20) + 0.5)[:, None])
    assert np.abs(middle - expected).max() < 1.5  # Pillow interpolates in whole numbers and truncates


def test_the_random_blur_is_between_a_tenth_and_two_pixels() -> None:
    argument = OPERATIONS["GaussianBlurRand"].argument
    rng = np.random.default_rng(0)
    radii = np.array([argument(10, rng) for _ in range(2000)])
    assert 0.1 <= radii.min() < 0.11
    assert 1.99 < radii.max() <= 2.0
    assert radii.mean() == pytest.approx(1.05, abs=0.05)  # 4 standard errors of a uniform distribution


def test_directions_are_even() -> None:
    rng = np.random.default_rng(0)
    for name in ("Rotate", "ShearX", "TranslateYRel", "ContrastIncreasing"):
        neutral = 1 if "Increasing" in name else 0
        signs = [OPERATIONS[name].argument(5, rng) > neutral for _ in range(1000)]
        assert np.mean(signs) == pytest.approx(0.5, abs=0.064), name  # 4 standard errors


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_leaves_its_input_as_it_is(image: Image.Image, name: str) -> None:
    before = np.array(image)
    for magnitude in (0, 5, 10, 30):
        assert done(image, name, magnitude).size == image.size
    assert_array_equal(image, before)


def test_hue_turns_the_colour_circle() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert_array_equal(hue(red, 0.0), red)
    third = np.asarray(hue(red, 1 / 3), int)[0, 0]
    assert np.abs(third - [0, 255, 0]).max() <= 6  # Pillow's circle has 256 steps
    other = np.asarray(hue(red, -1 / 3), int)[0, 0]
    assert np.abs(other - [0, 0, 255]).max() <= 6


def test_jitter_of_one_kind_is_pillows_with_a_uniform_factor() -> None:
    grey = Image.new("RGB", (1, 1), (100, 100, 100))
    rng = np.random.default_rng(0)
    values = np.array([np.asarray(ColorJitter(0.4, 0, 0, 0)(grey, rng))[0, 0, 0] for _ in range(2000)])
    assert 60 <= values.min() <= 61
    assert 139 <= values.max() <= 140
    assert values.mean() == pytest.approx(99.5, abs=2.1)  # truncated by Pillow; 4 standard errors


def test_jitter_comes_in_any_order() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    fixed = ColorJitter(0.5, 0.5, 0.5, 0.5)
    results = {np.asarray(fixed(image, np.random.default_rng(seed))).tobytes() for seed in range(20)}
    assert len(results) == 20
    assert_array_equal(ColorJitter(0, 0, 0, 0)(image, np.random.default_rng(0)), image)
