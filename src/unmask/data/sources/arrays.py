"""Images in NumPy files: `.npy` (mapped, not read) with `labels.npy` beside, or `.npz` with both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import files
from unmask.data.sources.labels import numbered
from unmask.errors import DataError

SUFFIXES = (".npy", ".npz")
_IMAGES = ("images", "x", "data", "arr_0")
_LABELS = ("labels", "y", "label")
_SIDE = 12
"""Channels of an image that is at most 4 pixels high: they are its width."""
_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))


class ArraySource:
    """Images of one size: (N, H, W, C) uint8, uint16 or float32."""

    def __init__(
        self,
        name: str,
        images: NDArray[Any],
        labels: NDArray[np.int64] | None,
        class_names: tuple[str, ...] | None,
        *,
        label_sets: NDArray[np.bool_] | None = None,
        mapped: Path | None = None,
        version: str = "",
    ) -> None:
        """`label_sets`: (N, C) which classes each image has, in place of `labels`.

        `mapped` is the .npy file that `images` are mapped from: it is mapped anew in each loader process.
        """
        self._name = name
        self._images = images
        self._mapped = mapped
        self._version = version
        self.labels = labels
        self.label_sets = label_sets
        self.class_names = class_names

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self._mapped is None else {"_images": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped is not None:
            self._images = _with_channels(_map(self._mapped, str(self._mapped)), str(self._mapped))

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> NDArray[Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._images[index]

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def fingerprint(self) -> str:
        shape = f"{self._images.shape}" + (f" {self._images.dtype}{self._version}" if self._version else "")
        digest = hashlib.sha256(f"{self._name} {shape}".encode())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        if self.label_sets is not None:
            digest.update(np.packbits(self.label_sets).tobytes())
        return digest.hexdigest()


def open_arrays(
    path: str, *, what: str, labels: bool, image: str | None = None, label: str | None = None
) -> ArraySource:
    """Images (N, H, W) or (N, H, W, C) of uint8, uint16 or float32; labels (N,) or (N, 1), numbers or names, or (N, C)
    of 0 and 1, one column for each class an image may have. `image` and `label` name the arrays of an .npz. Pickled
    content is refused. Raises DataError.
    """
    path = files.absolute(path)
    state = files.state(path)
    mapped = None
    if path.lower().endswith(".npz"):
        images, values = _unzip(path, what, image, (label or "") if labels else None)
    else:
        if image or label:
            raise DataError(
                f"{what}: a .npy file is one array, and its labels are labels.npy beside it; leave out the #"
            )
        mapped = None if files.is_remote(path) else Path(path)
        images = _load(path, what) if mapped is None else _map(mapped, what)
        values = _load(files.beside(path, "labels.npy"), what) if labels else None
    images = _with_channels(images, what)
    name = path.rpartition("/")[2]
    if values is None:
        return ArraySource(name, images, None, None, mapped=mapped, version=f" {state.size}")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if (
        values.ndim == 2
        and len(values) == len(images)
        and values.dtype.kind in "iub"
        and not set(np.unique(values)) - {0, 1}
    ):
        names = tuple(str(number) for number in range(values.shape[1]))
        sets = values.astype(bool)
        return ArraySource(name, images, None, names, label_sets=sets, mapped=mapped, version=f" {state.size}")
    if values.shape != images.shape[:1] or values.dtype.kind not in "iubUS":
        raise DataError(
            f"{what}: labels are {values.dtype}{values.shape}; whole numbers or names ({len(images)},), or 0 and 1 "
            f"({len(images)}, classes), are needed"
        )
    distinct, inverse = np.unique(values, return_inverse=True)
    try:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in distinct.tolist()]
    except UnicodeDecodeError:
        raise DataError(f"{what}: labels are bytes that are not UTF-8; store them as text") from None
    numbers, names = numbered(texts, what=what)
    return ArraySource(name, images, numbers[inverse], tuple(names), mapped=mapped, version=f" {state.size}")


def _map(path: Path, what: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's header is text that may hold anything
        raise DataError(f"{what} is not a plain .npy array: {_first_line(error)}") from None


def _load(path: str, what: str) -> NDArray[Any]:
    data = files.read(path)
    try:
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise DataError(f"{what}: {path} is not a plain .npy array: {_first_line(error)}") from None


def _unzip(path: str, what: str, image: str | None, label: str | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The images, and where `label` is not None the labels; "" stands for any of the usual names."""
    data = files.read(path)
    try:
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            images = arrays[_named(arrays.files, image, _IMAGES, "image", what)]
            return images, None if label is None else arrays[_named(arrays.files, label, _LABELS, "label", what)]
    except MemoryError:
        raise DataError(f"{what}: its arrays are larger than memory; store them as .npy, which is mapped") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy's header meet damage in many ways
        raise DataError(f"{what} is not a plain .npz archive: {_first_line(error)}") from None


def _named(there: Sequence[str], wanted: str | None, usual: tuple[str, ...], option: str, what: str) -> str:
    found = [name for name in ((wanted,) if wanted else usual) if name in there]
    if not found:
        missing = f"no array called {wanted}" if wanted else f"no array called {', '.join(usual[:-1])} or {usual[-1]}"
        raise DataError(f"{what} holds {missing}; name one of {', '.join(there)} with #{option}=NAME")
    return found[0]


def _with_channels(images: NDArray[Any], what: str) -> NDArray[Any]:
    if images.dtype not in _TYPES or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{what}: images are {images.dtype}{images.shape}; (N, H, W, C) uint8, uint16 or float32 is needed"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and min(images.shape[2:]) >= _SIDE:
        raise DataError(f"{what}: images are {images.shape}, channels first; store them as (N, H, W, C)")
    return images if images.ndim == 4 else images[..., None]


def _first_line(error: Exception) -> str:
    if "pickle" in (said := str(error)):  # NumPy's advice is to execute what is in it; it takes any other file for that
        return "it is none, or holds Python objects, which would have to be executed"
    return said.partition("\n")[0]
