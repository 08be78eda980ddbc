"""Random erasing (Zhong et al. 2017) with timm's definition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import FULL_RANGE
from unmask.data.decode.convert import to_dtype

_AREA = (0.02, 1 / 3)
"""Area to erase, as a share of the image; the boxes divide it among them."""
_ASPECT = (0.3, 1 / 0.3)
"""Height over width, drawn log-uniformly."""
_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErasing:
    """Overwrites 1 to `count` boxes of an image with probability `prob`.

    timm erases after the normalisation: `const` with 0, `rand` with one normal random colour a box, `pixel` with normal
    noise of unit variance. Here images are not normalised yet, so these values are converted back with mean and
    standard deviation, and rounded and clipped where pixels are whole numbers; `const` is the mean colour.
    """

    prob: float
    mode: Literal["const", "rand", "pixel"]
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: NDArray[Any], rng: np.random.Generator) -> None:
        """Erase in `image` (H, W, C) itself."""
        if rng.random() < self.prob:
            for top, left, height, width in self.boxes(rng, *image.shape[:2]):
                image[top : top + height, left : left + width] = self._colors(rng, height, width, image.dtype)

    def boxes(self, rng: np.random.Generator, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """Top, left, height, width of each box. A box for which ten shapes in a row do not fit is left out."""
        count = int(rng.integers(1, self.count + 1))
        for _ in range(count):
            for _ in range(_ATTEMPTS):
                area = rng.uniform(*_AREA) * height * width / count
                aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h < height and w < width:
                    yield int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
                    break

    def _colors(self, rng: np.random.Generator, height: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        shape = (height, width, len(self.mean)) if self.mode == "pixel" else (1, 1, len(self.mean))
        noise = np.zeros(shape, np.float32) if self.mode == "const" else rng.standard_normal(shape, np.float32)
        full_range = np.float32(FULL_RANGE[dtype.name])
        values = full_range * (np.array(self.mean, np.float32) + np.array(self.std, np.float32) * noise)
        return to_dtype(values, dtype)
