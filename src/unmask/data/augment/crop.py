"""What happens to one image: first a crop, then operations on its pixels.

A crop is chosen from the image's size alone, so the pixels need not be decoded to choose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.config.policies import Policy, parse_policy
from unmask.config.schema import AugmentConfig, DataConfig
from unmask.data.augment.erasing import RandomErasing
from unmask.data.augment.operations import OPERATIONS, Canvas, ColorJitter
from unmask.data.decode.picture import Box, Picture
from unmask.data.decode.raster import Raster
from unmask.data.rng import Op

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
_ATTEMPTS = 10


def random_resized_crop_box(
    rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The crop of torchvision's RandomResizedCrop for an image of `size` (height, width).

    Area uniform in `scale` of the image, width over height log-uniform in `ratio`, place uniform; after ten shapes
    that do not fit, the largest central crop within `ratio`.
    """
    height, width = size
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h


def center_crop(picture: Picture | Raster, size: tuple[int, int], data: DataConfig) -> NDArray[Any]:
    """Evaluation: resize so that the image just covers size / eval_crop, then take the centre: (height, width, C).

    For a square `size` this is the usual resize of the short side and centre crop; with eval_fit=squash the image is
    resized to size / eval_crop. It is decoded and resized as a whole, which is what published accuracies were measured
    with. Raises DecodeError.
    """
    height, width = (round(side / data.eval_crop) for side in size)
    if data.eval_fit == "crop":  # the side that just fits is exact, the other is rounded down, as in torchvision
        if height * picture.width >= width * picture.height:
            width = height * picture.width // picture.height
        else:
            height = width * picture.height // picture.width
    pixels = picture.crop(
        (0, 0, picture.width, picture.height), (height, width), RESAMPLING[data.interpolation], reduce=False
    )
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return pixels[top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class Augmentation:
    """A policy's operations, colour jitter and erasing of one training image; each may be absent."""

    policy: Policy | None
    jitter: ColorJitter | None
    erasing: RandomErasing | None
    canvas: Canvas

    @classmethod
    def of(cls, augment: AugmentConfig, data: DataConfig) -> Augmentation:
        fill = [min(255, round(255 * mean)) for mean in data.mean]
        # Pillow cannot transform with Lanczos or box.
        known = data.interpolation in ("nearest", "bilinear")
        resample = RESAMPLING[data.interpolation] if known else Image.Resampling.BICUBIC
        return cls(
            policy=None if augment.policy is None else parse_policy(augment.policy),
            jitter=ColorJitter(*augment.color_jitter) if any(augment.color_jitter) else None,
            erasing=RandomErasing(augment.erase_prob, augment.erase_mode, augment.erase_count, data.mean, data.std)
            if augment.erase_prob
            else None,
            canvas=Canvas(tuple(fill) if len(fill) > 1 else fill[0], resample),
        )

    def __call__(self, pixels: NDArray[Any], generator: Callable[[Op], np.random.Generator]) -> NDArray[Any]:
        """`pixels` (H, W, C), augmented; `generator` gives the random generator of an operation.

        Policies and jitter are for 8-bit grey and colour; the configuration refuses them for other images.
        """
        if self.policy is not None or self.jitter is not None:
            pixels = self._colored(pixels, generator)
        if self.erasing is not None:
            pixels = pixels.copy()
            self.erasing(pixels, generator(Op.ERASE))
        return pixels

    def _colored(self, pixels: NDArray[np.uint8], generator: Callable[[Op], np.random.Generator]) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        if self.policy is not None:
            rng = generator(Op.POLICY)
            for name, magnitude in self.policy.draw(rng):
                image = OPERATIONS[name](image, magnitude, rng, self.canvas)
        if self.jitter is not None:
            image = self.jitter(image, generator(Op.JITTER))
        return np.asarray(image).reshape(image.height, image.width, -1)
