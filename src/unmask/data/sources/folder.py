"""A folder of images: flat or nested; where labels are asked for, one folder per class."""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Item, printable
from unmask.data.sources.scan import EXTENSIONS, Index, index_folder
from unmask.errors import DataError


@dataclass(frozen=True, eq=False)
class FolderSource:
    """The JPEG, PNG, WebP, BMP, TIFF and GIF files below a folder, in byte order of their paths."""

    root: Path
    index: Index
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, root: Path, *, key: str, labels: bool) -> FolderSource:
        """Index `root`. Raises DataError when it is missing, holds no images, or its classes are not clear."""
        what = f"{key}={printable(str(root))}"
        try:
            root = root.expanduser().resolve(strict=True)
            index = index_folder(root)
        except FileNotFoundError:
            raise DataError(f"{what}: no such folder") from None
        except NotADirectoryError:
            raise DataError(f"{what} is not a folder; name the folder that holds the images") from None
        except (OSError, RuntimeError) as error:
            raise DataError(f"{what} cannot be listed: {error}") from None
        if not len(index):
            kinds = " ".join(extension.decode() for extension in EXTENSIONS)
            passed = "".join(f"; {count} {kind} were not taken" for kind, count in sorted(index.skipped.items()))
            raise DataError(f"{what} holds no images ({kinds}){passed}")
        if not labels:
            return cls(root, index, None, None)
        return cls(root, index, *_classes(index, what))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> Item:
        label = -1 if self.labels is None else int(self.labels[index])
        try:
            data = (self.root / os.fsdecode(self.index.path(index))).read_bytes()
        except OSError as error:
            raise DataError(f"{printable(self.name(index))} in {self.root} cannot be read: {error.strerror}") from None
        return Item(data, label, self.name(index))

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.path(index))

    def fingerprint(self) -> str:
        return self.index.fingerprint()  # labels are part of the paths


def _classes(index: Index, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Label of each image and the class names in byte order: the first folder of each path."""
    names = sorted(os.fsencode(path) for path in index.folders if path and "/" not in path)
    labels = np.full(len(index), -1, np.int64)
    for label, name in enumerate(names):
        # Paths are in byte order, and "0" is the byte after "/".
        first, last = (bisect_left(range(len(index)), name + end, key=index.path) for end in (b"/", b"0"))
        if first == last:
            raise DataError(f"{what}: class folder {printable(os.fsdecode(name))} holds no images; fill or remove it")
        labels[first:last] = label
    if len(stray := np.flatnonzero(labels < 0)):
        name = printable(os.fsdecode(index.path(int(stray[0]))))
        raise DataError(f"{what}: {len(stray)} images are in no class folder, such as {name}; move them into one")
    return labels, tuple(os.fsdecode(name) for name in names)
