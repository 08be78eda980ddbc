"""What the pipeline asks of a set of images."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Source(Protocol):
    """Random access to images. Sources are pickled to the loader processes, so they hold no open files."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) class of each image; None where the source has no labels."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of each class; None where the source has no labels."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | NDArray[Any]:
        """An image as it is stored: an encoded file, or pixels (H, W, C).

        Raises DataError when the image cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Name of an image within the source; unique, and stable from run to run."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and labels of all images, in order."""
        ...


def whole(source: Any) -> Any:
    """The source that a subset, however often taken, is of."""
    while (parent := getattr(source, "parent", None)) is not None:
        source = parent
    return source


def printable(name: str) -> str:
    """`name` on one line: line breaks, control characters, undecodable bytes and backslashes are escaped.

    So two names never look alike. On Windows, where a backslash is between folders, it stays as it is.
    """
    raw = name.encode("utf-8", "surrogateescape")
    text = (raw if os.sep == "\\" else raw.replace(b"\\", b"\\\\")).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
