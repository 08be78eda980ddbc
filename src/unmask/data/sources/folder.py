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
from unmask.data.sources.folder_scan import index_folder, scan_remote
from unmask.data.sources.image_names import SHOWN
from unmask.data.sources.left_out import LeftOut
from unmask.data.sources.samples import one_of_each
from unmask.data.sources.table import Table, classes
from unmask.errors import DataError
from unmask.files import expanded

KINDS = "name a folder, .tar, .parquet, .arrow, .npy, .npz or a list (.txt .csv .json)"


class NoImagesError(DataError):
    """The folder exists, but there is no image file below it."""


@dataclass(frozen=True, eq=False)
class FolderSource:
    """The JPEG, PNG, WebP, BMP, TIFF, GIF and .npy files below a folder, in byte order of their paths.

    A file is taken by the end of its name, or by its first bytes where the name does not tell.
    """

    root: str
    index: Table
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None

    @classmethod
    def open(
        cls, root: str, *, what: str, labels: bool, follow: bool = False, image: str | None = None
    ) -> FolderSource:
        """Index `root`. `follow`: links too; `image`: which file of a sample, see `samples.one_of_each`.

        Raises DataError when it is missing, holds no images, or its classes are not clear.
        """
        root = files.absolute(root) if files.is_remote(root) else _resolved(root, what)
        try:
            index = scan_remote(root) if files.is_remote(root) else index_folder(Path(root), follow=follow)
        except OSError as error:
            raise DataError(f"{what} cannot be listed: {error}") from None
        if not len(index):
            passed = f"; there are {left_out}" if (left_out := LeftOut.told(index)) else ""
            raise NoImagesError(f"{what} holds no images ({SHOWN}){passed}")
        index = one_of_each(index, image, what)
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
        return files.read(self.place(index), 0, length)

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def place(self, index: int) -> str:
        return files.below(self.root, self.name(index))

    def fingerprint(self) -> str:
        return self.index.fingerprint("size")  # labels are part of the paths


def _resolved(root: str, what: str) -> str:
    try:
        path = expanded(root).resolve(strict=True)
    except FileNotFoundError:
        raise DataError(f"{what}: no such folder") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{what} cannot be listed: {error}") from None
    if not path.is_dir():
        raise DataError(f"{what} is not a folder of images, nor a known kind of file; {KINDS}")
    return str(path)
