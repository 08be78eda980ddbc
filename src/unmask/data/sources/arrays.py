"""Images in NumPy files: `.npy` (mapped, not read) with `labels.npy` beside, or `.npz` with both."""

from __future__ import annotations

import hashlib
import zipfile
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
        mapped: Path | None = None,
        version: str = "",
    ) -> None:
        """`mapped` is the .npy file that `images` are mapped from: it is mapped anew in each loader process."""
        self._name = name
        self._images = images
        self._mapped = mapped
        self._version = version
        self.labels = labels
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
        return digest.hexdigest()


def open_arrays(path: str, *, what: str, labels: bool) -> ArraySource:
    """Images (N, H, W) or (N, H, W, C) of uint8, uint16 or float32. Pickled content is refused. Raises DataError."""
    path = files.absolute(path)
    state = files.state(path)
    mapped = None
    if path.lower().endswith(".npz"):
        arrays = _unzip(path, what)
        images = _named(arrays, _IMAGES, what)
        values = _named(arrays, _LABELS, what) if labels else None
    else:
        mapped = None if files.is_remote(path) else Path(path)
        images = _load(path, what) if mapped is None else _map(mapped, what)
        values = _load(files.beside(path, "labels.npy"), what) if labels else None
    images = _with_channels(images, what)
    name = path.rpartition("/")[2]
    if values is None:
        return ArraySource(name, images, None, None, mapped=mapped, version=f" {state.size}")
    if values.shape != images.shape[:1] or values.dtype.kind not in "iuUS":
        raise DataError(
            f"{what}: labels are {values.dtype}{values.shape}; whole numbers or names ({len(images)},) are needed"
        )
    distinct, inverse = np.unique(values, return_inverse=True)
    if distinct.dtype.kind in "iu" and distinct.min(initial=0) < 0:
        raise DataError(f"{what}: there are negative labels; number the classes from 0")
    numbers, names = numbered([text.decode() if isinstance(text, bytes) else str(text) for text in distinct.tolist()])
    return ArraySource(name, images, numbers[inverse], tuple(names), mapped=mapped, version=f" {state.size}")


def _map(path: Path, what: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{what} is not a plain .npy array: {_first_line(error)}") from None


def _load(path: str, what: str) -> NDArray[Any]:
    data = files.read(path)
    try:
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{what}: {path} is not a plain .npy array: {_first_line(error)}") from None


def _unzip(path: str, what: str) -> dict[str, NDArray[Any]]:
    data = files.read(path)
    try:
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in _IMAGES + _LABELS}
    except MemoryError:
        raise DataError(f"{what}: its arrays are larger than memory; store them as .npy, which is mapped") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{what} is not a plain .npz archive: {_first_line(error)}") from None


def _named(arrays: dict[str, NDArray[Any]], names: tuple[str, ...], what: str) -> NDArray[Any]:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DataError(f"{what} holds no array called {', '.join(names[:-1])} or {names[-1]}")


def _with_channels(images: NDArray[Any], what: str) -> NDArray[Any]:
    if images.dtype not in _TYPES or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{what}: images are {images.dtype}{images.shape}; (N, H, W, C) uint8, uint16 or float32 is needed"
        )
    return images if images.ndim == 4 else images[..., None]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
