"""Tensors in a MindSpore .ckpt, in and out, without MindSpore.

Such a file is one protobuf message (proto2):

    Checkpoint  { repeated Value value = 1 }
    Value       { string tag = 1; TensorProto tensor = 2 (or MapTensorProto maptensor = 3, refused) }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

The content is raw little-endian. A large tensor comes as several consecutive values with the same tag, the dims of
the whole in each; a scalar has no dims (from older versions, one that is 0). No claim of the file is believed: every
length is held against the file's, and what is allocated against what is there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unmask.checkpoint.tensors import widen_bfloat16
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause, written_aside

SLICE = 512 * 2**20
"""Bytes of one value, from which MindSpore splits a tensor."""

_MAX_VALUES = 10_000
_MAX_DIMS = 8
_MAX_DIM = 2**40
_MAX_NAME = 1024
_CRC, _CRC_SIZE = b"crc_num", 17
_VARINT, _BYTES = 0, 2

_DTYPES = {
    "Float64": np.dtype("<f8"), "Float32": np.dtype("<f4"), "Float16": np.dtype("<f2"), "BFloat16": np.dtype("<u2"),
    "Int64": np.dtype("<i8"), "Int32": np.dtype("<i4"), "Int16": np.dtype("<i2"), "Int8": np.dtype("i1"),
    "UInt64": np.dtype("<u8"), "UInt32": np.dtype("<u4"), "UInt16": np.dtype("<u2"), "UInt8": np.dtype("u1"),
    "Bool": np.dtype("?"),
}  # fmt: skip
_TYPES = {dtype: name for name, dtype in _DTYPES.items() if name != "BFloat16"}
_TEXT = "str"
"""What callbacks may put beside the weights."""


class _FormatError(Exception):
    pass


@dataclass(frozen=True)
class _Span:
    """A part of the file, in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Piece:
    """A tensor or a slice of it, as claimed."""

    tag: str
    type: str
    dims: tuple[int, ...]
    content: _Span


def read_ckpt(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Tensors:
    """The wanted tensors by name, in the order of the file, writable; bfloat16 widened to float32. Text is left out.

    Raises CheckpointError for whatever is not a sound checkpoint without encryption and without a CRC.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file).tensors(wanted)
    except _FormatError as error:
        raise CheckpointError(f"{path} cannot be read as a MindSpore checkpoint: {error}") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error


def write_ckpt(path: Path, tensors: Tensors, slice_bytes: int = SLICE) -> None:
    """Write a file that mindspore.load_checkpoint reads, as MindSpore itself would. Raises CheckpointError.

    Tensors of more than `slice_bytes` are split.
    """
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES or not tensor.size]
    if strange:
        raise CheckpointError(
            f"{', '.join(strange)}: a .ckpt has no place for tensors of this type or without elements"
        )
    try:
        with written_aside(path) as aside, aside.open("wb") as file:
            for name, tensor in tensors.items():
                _write_tensor(file, name, tensor, slice_bytes)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {cause(error)}") from error


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = _Span(0, os.fstat(file.fileno()).st_size)
        if self._bytes(_Span(0, min(1, self._whole.size))) != b"\n":  # field 1, bytes: the first value
            raise _FormatError("it is none, or an encrypted one; save it again without enc_key")
        if self._bytes(_Span(max(self._whole.size - _CRC_SIZE, 0), self._whole.size)).startswith(_CRC):
            raise _FormatError("it ends in a CRC; save it again without crc_check")

    def tensors(self, wanted: Callable[[str], bool]) -> Tensors:
        found: Tensors = {}
        names: set[str] = set()
        for tag, group in groupby(self._pieces(), lambda piece: piece.tag):
            pieces = list(group)
            if tag in names:
                raise _FormatError(f"{tag} is there twice")
            names.add(tag)
            if pieces[0].type != _TEXT and wanted(tag):
                found[tag] = self._array(pieces)
        return found

    def _pieces(self) -> Iterator[_Piece]:
        for number, value in self._fields(self._whole, at_most=_MAX_VALUES):
            if number != 1 or not isinstance(value, _Span):
                raise _FormatError(f"it has field {number}, which a checkpoint does not have")
            yield self._piece(value)

    def _piece(self, span: _Span) -> _Piece:
        named, _ = self._message(span, {1: "tag", 2: "tensor"})
        tensor, dims = self._message(named[2], {2: "type", 3: "content"}, integers=1)
        return _Piece(self._text(named[1]), self._text(tensor[2]), tuple(dims), tensor[3])

    def _message(self, span: _Span, required: dict[int, str], integers: int = 0) -> tuple[dict[int, _Span], list[int]]:
        """The required fields, each there once, and the list of integers; there must be no others."""
        found: dict[int, _Span] = {}
        numbers: list[int] = []
        for number, value in self._fields(span, at_most=_MAX_DIMS + len(required)):
            if number == integers:  # MindSpore writes them one by one; protobuf also allows a packed list
                numbers += islice(self._varints(value), _MAX_DIMS + 1) if isinstance(value, _Span) else [value]
            elif number in required and number not in found and isinstance(value, _Span):
                found[number] = value
            else:
                raise _FormatError(f"field {number} of a value is unknown, there twice or of another kind")
        if missing := required.keys() - found.keys():
            raise _FormatError(f"a value lacks its {required[min(missing)]}")
        return found, numbers

    def _array(self, pieces: list[_Piece]) -> NDArray[Any]:
        whole = pieces[0]
        if any(replace(piece, content=whole.content) != whole for piece in pieces):
            raise _FormatError(f"the slices of {whole.tag} differ in shape or type")
        if whole.type not in _DTYPES:
            raise _FormatError(f"{whole.tag} is of type {whole.type!r}, which is not supported")
        if len(whole.dims) > _MAX_DIMS or max(whole.dims, default=0) > _MAX_DIM:
            raise _FormatError(f"{whole.tag} has more than {_MAX_DIMS} dimensions, or an absurd one")
        dtype = _DTYPES[whole.type]
        shape = () if whole.dims == (0,) else whole.dims
        size = math.prod(shape) * dtype.itemsize
        if size == 0 or size != sum(piece.content.size for piece in pieces):
            raise _FormatError(f"{whole.tag} has not as many bytes as {whole.type} {list(shape)} needs")
        raw = bytearray().join(self._bytes(piece.content) for piece in pieces)
        flat = np.frombuffer(raw, dtype)
        return (widen_bfloat16(flat.view(np.uint16)) if whole.type == "BFloat16" else flat).reshape(shape)

    def _fields(self, span: _Span, at_most: int) -> Iterator[tuple[int, int | _Span]]:
        """Number and value of every field: an integer, or where its bytes are."""
        at, count = span.start, 0
        while at < span.end:
            if (count := count + 1) > at_most:
                raise _FormatError(f"it has more than {at_most} fields where no checkpoint needs so many")
            key, at = self._varint(at, span.end)
            value, at = self._varint(at, span.end)
            if key & 7 == _BYTES:
                if value > span.end - at:
                    raise _FormatError("it is cut short or damaged")
                yield key >> 3, _Span(at, at + value)
                at += value
            elif key & 7 == _VARINT:
                yield key >> 3, value
            else:
                raise _FormatError(f"field {key >> 3} is of a kind that a checkpoint does not have")

    def _varints(self, span: _Span) -> Iterator[int]:
        at = span.start
        while at < span.end:
            value, at = self._varint(at, span.end)
            yield value

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The integer at an offset, seven bits a byte, lowest first; and the offset after it."""
        value = 0
        for i, byte in enumerate(self._bytes(_Span(at, min(at + 10, end)))):
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value, at + i + 1
        raise _FormatError("it is cut short or damaged")

    def _text(self, span: _Span) -> str:
        if span.size <= _MAX_NAME:
            raw = self._bytes(span)
            if raw.isascii() and raw.decode("ascii").isprintable():
                return raw.decode("ascii")
        raise _FormatError("a name or type in it is no name")

    def _bytes(self, span: _Span) -> bytes:
        self._file.seek(span.start)
        raw = self._file.read(span.size)
        if len(raw) < span.size:
            raise _FormatError("it became shorter while it was read")
        return raw


def _write_tensor(file: BinaryIO, name: str, tensor: NDArray[Any], slice_bytes: int) -> None:
    dims = b"".join(_key(1, _VARINT) + _encode(dim) for dim in tensor.shape)
    head = dims + _field(2, _TYPES[tensor.dtype].encode())
    content = memoryview(tensor.tobytes())
    for start in range(0, len(content), slice_bytes):
        piece = content[start : start + slice_bytes]
        before = head + _key(3, _BYTES) + _encode(len(piece))
        value = _field(1, name.encode()) + _key(2, _BYTES) + _encode(len(before) + len(piece)) + before
        file.write(_key(1, _BYTES) + _encode(len(value) + len(piece)) + value)
        file.write(piece)


def _field(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _encode(len(content)) + content


def _key(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
