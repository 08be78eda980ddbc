"""What the pipeline asks of a set of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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

    So two names never look alike: `\xe9` is a byte, `\u00a0` a character. On Windows, where a backslash is between
    folders, it stays as it is.
    """
    raw = name.encode("utf-8", "surrogateescape")
    text = (raw if os.sep == "\\" else raw.replace(b"\\", b"\\\\")).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if "\x80" <= character <= "\xff" else character.encode("unicode_escape").decode()


def from_printable(text: str) -> str:
    """The name that `printable` made `text` of, except on Windows, where that is not certain."""
    return text if os.sep == "\\" else _ESCAPE.sub(_meant, text)


_ESCAPE = re.compile(r"(?:\\x[89a-f][0-9a-f])+|\\(?:x[0-7][0-9a-f]|u[0-9a-f]{4}|U[0-9a-f]{8}|[\\nrt])")


def _meant(found: re.Match[str]) -> str:
    text = found[0]
    if re.match(r"\\x[89a-f]", text):  # bytes that are no UTF-8
        return bytes.fromhex(text.replace("\\x", "")).decode("utf-8", "surrogateescape")
    return text.encode().decode("unicode_escape")


def place_of(source: Source, index: int) -> str | None:
    """The path or URL of the file that an image is; None where it is within another file, or was given as an object."""
    place: Callable[[int], str | None] | None = getattr(source, "place", None)
    return None if place is None else place(index)
