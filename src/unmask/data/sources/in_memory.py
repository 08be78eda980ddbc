"""Images named one by one, or already in memory: what `predict`, `embed` and `reconstruct` are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Item
from unmask.errors import DataError


class InMemorySource:
    """Files by path and arrays (H, W, C), in the order given; no labels."""

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, images: Sequence[str | Path | NDArray[Any]]) -> None:
        if not images:
            raise DataError("no images were given")
        for image in images:
            if not isinstance(image, np.ndarray) and not Path(image).is_file():
                raise DataError(f"{image} is not a file")
        self._images = list(images)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Item:
        image = self._images[index]
        if isinstance(image, np.ndarray):
            return Item(image if image.ndim == 3 else image[:, :, None], -1, self.name(index))
        try:
            return Item(Path(image).read_bytes(), -1, self.name(index))
        except OSError as error:
            raise DataError(f"{image} cannot be read: {error.strerror}") from None

    def name(self, index: int) -> str:
        image = self._images[index]
        return f"array {index}" if isinstance(image, np.ndarray) else str(image)

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.name(i) for i in range(len(self))).encode("utf-8", "replace")).hexdigest()
