"""Thumbnails of many images, put together into a few large pictures: ten thousand of them are some megabytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.report.page import Blobs
from unmask.report.pictures import to_rgb

_SIDES = ((1_000, 96), (4_000, 64), (15_000, 48), (40_000, 32))
_SMALLEST = 20
"""Sides of thumbnails by the number of images: fewer than 20 MB for any of them up to 40,000."""
_SHEET = 2048
"""Least that a phone's browser takes as one picture, in pixels."""
_QUALITY = 70


class Atlas:
    """Thumbnails of `count` images, added in order."""

    def __init__(self, count: int, blobs: Blobs) -> None:
        self.side = next((side for most, side in _SIDES if count <= most), _SMALLEST)
        self._columns = _SHEET // self.side
        self._left, self._blobs = count, blobs
        self._sheet: NDArray[np.uint8] | None = None
        self._used = 0
        self._names: list[str] = []

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add images (B, H, W, C)."""
        for image in to_rgb(images):
            if self._sheet is None:
                rows = min(self._columns, -(-self._left // self._columns))
                self._sheet = np.full((rows * self.side, self._columns * self.side, 3), 128, np.uint8)
            row, column = divmod(self._used, self._columns)
            top, left = row * self.side, column * self.side
            small = _thumbnail(image, self.side)
            top, left = top + (self.side - small.shape[0]) // 2, left + (self.side - small.shape[1]) // 2
            self._sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
            self._used, self._left = self._used + 1, self._left - 1
            if not self._left or self._used == self._columns**2:
                self._close()

    def finished(self) -> Mapping[str, Any]:
        """What the page needs to find them."""
        self._close()
        return {"side": self.side, "columns": self._columns, "sheets": self._names}

    def _close(self) -> None:
        if self._sheet is not None:
            self._names.append(self._blobs.picture(self._sheet, _QUALITY))
        self._sheet, self._used = None, 0


def _thumbnail(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) made small enough for a square, its proportions kept; never enlarged."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.BOX if min(picture.size) > 4 * side else Image.Resampling.BICUBIC)
    return np.asarray(picture)
