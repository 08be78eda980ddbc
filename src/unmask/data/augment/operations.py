"""The single image operations that augmentation policies are made of, on Pillow images (mode L or RGB).

Names and strengths are those of timm, whose policy strings are what recipes publish. The magnitude counts from 0 to 10
(more where a policy allows it). Operations on colour leave grey images as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_FULL = 10.0
"""The magnitude that stands for full strength."""
_TRANSLATE = 0.45
"""Farthest translation, as a share of the side."""
_BLUR = (0.1, 2.0)
"""Least and largest radius of a Gaussian blur, in pixels."""


@dataclass(frozen=True)
class Canvas:
    """How geometric operations fill pixels outside the image and interpolate between pixels."""

    fill: int | tuple[int, ...]
    """Colour of what was outside: one value for grey images."""
    resample: Image.Resampling
    """Nearest, bilinear or bicubic: what Pillow can transform with."""


@dataclass(frozen=True)
class Operation:
    argument: Callable[[float, np.random.Generator], Any]
    """Turns the magnitude into the argument of `apply`; a random direction is drawn here."""
    apply: Callable[[Image.Image, Any, Canvas], Image.Image]

    def __call__(self, image: Image.Image, magnitude: float, rng: np.random.Generator, canvas: Canvas) -> Image.Image:
        return self.apply(image, self.argument(magnitude, rng), canvas)


# --- what magnitudes mean ---


def _nothing(_magnitude: float, _rng: np.random.Generator) -> None:
    return None


def _linear(low: float, high: float) -> Callable[[float, np.random.Generator], float]:
    return lambda magnitude, _: low + (high - low) * magnitude / _FULL


def _bounded(low: float, high: float) -> Callable[[float, np.random.Generator], float]:
    return lambda magnitude, _: min(high, low + (high - low) * magnitude / _FULL)


def _either_way(high: float) -> Callable[[float, np.random.Generator], float]:
    return lambda magnitude, rng: high * magnitude / _FULL * (1 if rng.random() < 0.5 else -1)


def _whole(high: int, limit: int) -> Callable[[float, np.random.Generator], int]:
    return lambda magnitude, _: min(limit, int(magnitude / _FULL * high))


def _away_from_1(magnitude: float, rng: np.random.Generator) -> float:
    """An enhancement factor: 1 changes nothing."""
    return max(0.1, 1 + _either_way(0.9)(magnitude, rng))


def _blur_radius(magnitude: float, rng: np.random.Generator) -> float:
    return _BLUR[0] + (_BLUR[1] * min(1.0, magnitude / _FULL) - _BLUR[0]) * rng.random()


# --- what is done ---


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, canvas.resample, fillcolor=canvas.fill)


def _posterize(image: Image.Image, bits: int, _: Canvas) -> Image.Image:
    table = [value >> (8 - bits) << (8 - bits) for value in range(256)]  # Pillow refuses to keep no bits
    return image.point(table * len(image.getbands()))


def _solarize_add(image: Image.Image, amount: int, _: Canvas) -> Image.Image:
    return image.point(
        [min(255, value + amount) if value < 128 else value for value in range(256)] * len(image.getbands())
    )


def color(image: Image.Image, factor: float) -> Image.Image:
    """Saturation times `factor`; 0 is grey."""
    return image if image.mode == "L" else ImageEnhance.Color(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def hue(image: Image.Image, turn: float) -> Image.Image:
    """Hue moved on by `turn` of the colour circle, -0.5 to 0.5."""
    if image.mode == "L":
        return image
    shift = int(turn * 255)
    channels = list(image.convert("HSV").split())
    channels[0] = channels[0].point([(value + shift) % 256 for value in range(256)])
    return Image.merge("HSV", channels).convert("RGB")


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def _enhancement(name: str, enhance: Callable[[Image.Image, float], Image.Image]) -> dict[str, Operation]:
    return {
        name: Operation(_linear(0.1, 1.9), lambda image, factor, _: enhance(image, factor)),
        f"{name}Increasing": Operation(_away_from_1, lambda image, factor, _: enhance(image, factor)),
    }


def _blur(image: Image.Image, radius: float, _: Canvas) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _solarize(image: Image.Image, threshold: int, _: Canvas) -> Image.Image:
    return ImageOps.solarize(image, threshold)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_nothing, lambda image, _, __: ImageOps.autocontrast(image)),
    "Equalize": Operation(_nothing, lambda image, _, __: ImageOps.equalize(image)),
    "Invert": Operation(_nothing, lambda image, _, __: ImageOps.invert(image)),
    "Rotate": Operation(
        _either_way(30), lambda image, angle, canvas: image.rotate(angle, canvas.resample, fillcolor=canvas.fill)
    ),
    "ShearX": Operation(_either_way(0.3), lambda image, by, canvas: _affine(image, (1, by, 0, 0, 1, 0), canvas)),
    "ShearY": Operation(_either_way(0.3), lambda image, by, canvas: _affine(image, (1, 0, 0, by, 1, 0), canvas)),
    "TranslateXRel": Operation(
        _either_way(_TRANSLATE), lambda image, by, canvas: _affine(image, (1, 0, by * image.width, 0, 1, 0), canvas)
    ),
    "TranslateYRel": Operation(
        _either_way(_TRANSLATE), lambda image, by, canvas: _affine(image, (1, 0, 0, 0, 1, by * image.height), canvas)
    ),
    # Bits that are kept. Three readings of one table exist: timm's, reversed, and that of the AutoAugment paper.
    "Posterize": Operation(_whole(4, 8), _posterize),
    "PosterizeIncreasing": Operation(lambda magnitude, rng: 4 - _whole(4, 4)(magnitude, rng), _posterize),
    "PosterizeOriginal": Operation(lambda magnitude, rng: 4 + _whole(4, 4)(magnitude, rng), _posterize),
    # The value from which on pixels are inverted.
    "Solarize": Operation(_whole(256, 256), _solarize),
    "SolarizeIncreasing": Operation(lambda magnitude, rng: 256 - _whole(256, 256)(magnitude, rng), _solarize),
    "SolarizeAdd": Operation(_whole(110, 128), _solarize_add),
    **_enhancement("Color", color),
    **_enhancement("Contrast", contrast),
    **_enhancement("Brightness", brightness),
    **_enhancement("Sharpness", _sharpness),
    "Desaturate": Operation(_bounded(0.5, 1.0), lambda image, share, _: color(image, 1 - share)),
    "GaussianBlur": Operation(_bounded(*_BLUR), _blur),
    "GaussianBlurRand": Operation(_blur_radius, _blur),
}


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation are multiplied by factors within 1 ± their value, and the hue is turned by up
    to ± its value, in random order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        functions = (brightness, contrast, color, hue)
        for i in rng.permutation(4).tolist():
            if amounts[i] > 0:
                low, high = (-amounts[i], amounts[i]) if i == 3 else (max(0.0, 1 - amounts[i]), 1 + amounts[i])
                image = functions[i](image, rng.uniform(low, high))
        return image
