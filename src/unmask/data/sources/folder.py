"""A folder of images: flat or nested; where labels are asked for, one folder per class.

Images are read anew each time, but a file overwritten in place, under its name, keeps its old size in the index and the
fingerprint until something in its folder is added, removed or renamed: noticing it would mean looking at every file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import files
from unmask.data.sources.folder_scan import EXTENSIONS, index_folder, scan_remote
from unmask.data.sources.table import Table, classes
from unmask.errors import DataError

KINDS = "name a folder, .tar, .parquet, .arrow, .npy, .npz or a list (.txt .csv .json)"


class NoImagesError(DataError):
    """The folder exists, but there is no image file below it."""


@dataclass(frozen=True, eq=False)
class FolderSource:
    """The JPEG, PNG, WebP, BMP, TIFF, GIF and .npy files below a folder, in byte order of their paths."""

    root: str
    index: Table
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, root: str, *, what: str, labels: bool) -> FolderSource:
        """Index `root`. Raises DataError when it is missing, holds no images, or its classes are not clear."""
        root = files.absolute(root) if files.is_remote(root) else _resolved(root, what)
        try:
            index = scan_remote(root) if files.is_remote(root) else index_folder(Path(root))
        except OSError as error:
            raise DataError(f"{what} cannot be listed: {error}") from None
        if not len(index):
            kinds = " ".join(extension.decode() for extension in EXTENSIONS)
            passed = "".join(
                f"; {count} {kind} were not taken" for kind, count in sorted(index.meta["skipped"].items())
            )
            raise NoImagesError(f"{what} holds no images ({kinds}){passed}")
        if not labels:
            return cls(root, index, None, None)
        folders = [os.fsencode(path) for path in index.meta["folders"] if path and "/" not in path]
        values, names = classes(index, what, folders)
        return cls(root, index, values, tuple(names))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes:
        size = int(self.index.columns["size"][index])
        # Ranges are kept in the cache of what is remote; here the file is what it is now.
        length = size if size and files.is_remote(self.root) else None
        return files.read(f"{self.root}/{self.name(index)}", 0, length)

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def fingerprint(self) -> str:
        return self.index.fingerprint("size")  # labels are part of the paths


def _resolved(root: str, what: str) -> str:
    try:
        path = Path(root).expanduser().resolve(strict=True)
    except FileNotFoundError:
        raise DataError(f"{what}: no such folder") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{what} cannot be listed: {error}") from None
    if not path.is_dir():
        raise DataError(f"{what} is not a folder of images, nor a known kind of file; {KINDS}")
    return str(path)
