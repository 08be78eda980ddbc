"""How images and their labels are called and laid out in the tars of a pack."""

from __future__ import annotations

import json
import os
from tarfile import GNU_FORMAT, LENGTH_NAME, TarInfo
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.decode.dicom import is_dicom
from unmask.data.sources import Source
from unmask.data.sources.image_names import ENCODED
from unmask.data.sources.table import Table, TableBuilder, classes
from unmask.errors import DataError

_BLOCK = 512
_SUFFIXES = {
    b"\xff\xd8\xff": (b".jpg", b".jpeg"),
    b"\x89PNG": (b".png",),
    b"RIFF": (b".webp",),
    b"GIF8": (b".gif",),
    b"BM": (b".bmp",),
    b"II": (b".tif", b".tiff"),
    b"MM": (b".tif", b".tiff"),
    b"\x93NUMPY": (b".npy",),
}
"""Of files that begin with these bytes."""
_DICOM = (b".dcm", b".dicom")


class Members:
    """The members of each image of a source.

    Images keep their names where these are paths in byte order that tell the class, if there is one, as in folders and
    tars. Others are numbered, with the class in a `.cls` file beside (several: a `.json` file), as in WebDataset.
    """

    def __init__(self, images: Source) -> None:
        self.names = _names(images)
        ordered = _ordered_paths(self.names)
        self._labels = images.labels
        self._sets = getattr(images, "label_sets", None)
        self.labels_in_names = ordered and _tell_classes(self.names, images)
        self._written = (self._labels is not None or self._sets is not None) and not self.labels_in_names
        self._named = ordered and not self._written

    def labels(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of some images, one after the other, and where those of each end; none where the source has none."""
        if self._labels is not None:
            return self._labels[rows], np.arange(1, len(rows) + 1)
        if self._sets is None:
            return np.zeros(0, np.int64), np.zeros(len(rows), np.int64)
        sets = self._sets[rows]
        return np.nonzero(sets)[1], np.cumsum(sets.sum(1))

    def bytes_of(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """(N,) bytes that all images, of these sizes, take in tars."""
        lengths = np.diff(self.names.ends, prepend=0) if self._named else np.array(9)
        long = np.where(lengths > LENGTH_NAME, _BLOCK + _ceil(lengths + 1), 0)
        return _BLOCK + long + _ceil(sizes) + (2 * _BLOCK if self._written else 0)

    def of(self, index: int, data: bytes, *, changed: bool) -> tuple[bytes, int]:
        """The bytes to add to a tar for an image, and where among them its file starts.

        `data` begins like an image file, DICOM or .npy. `changed`: whether it differs from the source's file.
        """
        name = self.names.name(index) if self._named else b"%09d" % index
        kinds = (suffixes for magic, suffixes in _SUFFIXES.items() if data.startswith(magic))
        suffixes = _DICOM if is_dicom(data) else next(kinds)
        if not self._named or (changed and not name.lower().endswith(suffixes)):
            name += suffixes[0]
        head = _header(name, len(data))
        content = head + _padded(data)
        if self._written:
            labels = self.labels(np.array([index]))[0].tolist()
            suffix, text = (
                (b".cls", str(labels[0])) if self._sets is None else (b".json", json.dumps({"label": labels}))
            )
            content += _header(b"%09d" % index + suffix, len(text)) + _padded(text.encode())
        return content, len(head)


def _header(name: bytes, size: int) -> bytes:
    """The header of a plain file without owner, dated 1970."""
    info = TarInfo(os.fsdecode(name))
    info.size = size
    return info.tobuf(GNU_FORMAT, "utf-8", "surrogateescape")


def _ceil(sizes: NDArray[Any]) -> NDArray[np.int64]:
    return -(-np.ceil(sizes).astype(np.int64) // _BLOCK) * _BLOCK


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _names(images: Source) -> Table:
    rows = TableBuilder()
    for index in range(len(images)):
        rows.add(os.fsencode(images.name(index)))
    return rows.build()


def _ordered_paths(names: Table) -> bool:
    """Whether a tar with members of these names is read with the same names in the same order."""
    before = b""
    for name in map(names.name, range(len(names))):
        plain = name.lower().endswith(ENCODED) and b"//" not in name and b"/." not in name
        if not plain or name.startswith((b"/", b".")) or name <= before:
            return False
        before = name
    return True


def _tell_classes(names: Table, images: Source) -> bool:
    """Whether the images' first folders are their classes."""
    if images.labels is None:
        return False
    try:
        labels, class_names = classes(names, "")
    except DataError:
        return False
    return tuple(class_names) == images.class_names and np.array_equal(labels, images.labels)
