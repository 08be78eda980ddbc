"""Tensors in a file of torch.save, as numpy arrays, without torch and without executing anything.

Such a file is a zip archive of a pickle (`data.pkl`) and uncompressed records (`data/0`, `data/1` …) in the machine's
byte order. No claim of the file is believed: sizes come from the archive, and the archive's from the file.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.checkpoint.tensors import widen_bfloat16
from unmask.errors import CheckpointError
from unmask.files import cause
from unmask.interchange.unpickle import StorageRecord, TensorRecord, unpickle

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MALFORMED = (
    zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError, KeyError, IndexError,
    OverflowError, MemoryError, struct.error,
)  # fmt: skip


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as torch.save has it, in this format or the old one."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LEGACY)).startswith((_ZIP, _LEGACY))
    except OSError:
        return False


class TorchFile:
    """An open file of torch.save. `content`: what was saved, with TensorRecords that `array` reads one by one.

    Raises CheckpointError for anything torch would not have written, naming what it wanted to call.
    """

    content: Any

    def __init__(self, path: Path) -> None:
        self.path = path
        self._storages: dict[StorageRecord, NDArray[Any]] = {}
        try:
            with path.open("rb") as file:
                start = file.read(len(_LEGACY))
            if start == _LEGACY:
                raise self._refusal(
                    "is in the format of torch before 1.6; convert it with torch.save(torch.load(FILE, "
                    "weights_only=True), NEW)"
                )
            if not start.startswith(_ZIP):
                raise self._refusal("is not a file of torch.save")
            self._zip = zipfile.ZipFile(path)
        except _MALFORMED as error:
            raise self._refusal(f"cannot be read: {cause(error)}") from error
        try:
            self._records = self._check_records()
            self.content = unpickle(self._read("data.pkl"))
        except CheckpointError as error:
            self._zip.close()
            raise error if str(path) in str(error) else self._refusal(f"is refused: {error}") from error

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def array(self, tensor: TensorRecord) -> NDArray[Any]:
        """A tensor in C order; bfloat16 widened to float32. Tensors that share a storage may share memory."""
        count = math.prod(tensor.shape)
        extents = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False)]
        if (
            len(tensor.shape) != len(tensor.strides)
            or len(tensor.shape) > 8
            or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0
            or count > tensor.storage.size
            or (count and tensor.offset + sum(extents) >= tensor.storage.size)
            or max((0, *tensor.shape)) > 2**40
        ):
            raise self._refusal("is refused: a tensor reaches beyond its storage")
        flat = self._storage(tensor.storage)
        if not count:
            return np.empty(tensor.shape, flat.dtype)
        self._budget -= count * flat.itemsize
        if self._budget < 0:  # the same storage again and again, each time in another order
            raise self._refusal("is refused: its tensors are larger than the file")
        strides = tuple(stride * flat.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
        return np.asarray(view, order="C")

    def _check_records(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        size = self.path.stat().st_size
        self._budget = 4 * size
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise self._refusal("is refused: its records are compressed or encrypted, as torch never writes them")
        if sum(entry.file_size for entry in entries) > size:
            raise self._refusal("is refused: its records overlap")
        names = [entry.filename for entry in entries]
        if any(re.search(r"^/|\\|(^|/)\.\.(/|$)|:", name) for name in names) or len(set(names)) < len(names):
            raise self._refusal("is refused: a record's name leads out of the archive or is there twice")
        folders = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(folders) != 1:
            raise self._refusal("is not a file of torch.save")
        return {entry.filename.removeprefix(f"{folders[0]}/"): entry for entry in entries}

    def _storage(self, storage: StorageRecord) -> NDArray[Any]:
        if storage not in self._storages:
            if self._records.get("byteorder") and self._read("byteorder") != b"little":
                raise self._refusal("was written on a big-endian machine, which is not supported")
            raw = np.frombuffer(bytearray(self._read(f"data/{storage.key}")), np.uint8)
            itemsize = 2 if storage.dtype is None else storage.dtype.itemsize
            if raw.size != storage.size * itemsize:
                raise self._refusal(f"is refused: data/{storage.key} has {raw.size} bytes, not what its pickle claims")
            bits = raw.view(np.uint16 if storage.dtype is None else storage.dtype)
            self._storages[storage] = widen_bfloat16(bits) if storage.dtype is None else bits
        return self._storages[storage]

    def _read(self, name: str) -> bytes:
        if name not in self._records:
            raise self._refusal(f"has no record {name}")
        try:
            return self._zip.read(self._records[name])  # compares the CRC
        except _MALFORMED as error:
            raise self._refusal(f"is damaged at {name}: {cause(error)}") from error

    def _refusal(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {why}")
