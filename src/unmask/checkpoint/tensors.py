"""Named arrays in safetensors files, and JSON, read as from a stranger: every flaw is a CheckpointError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import load_file, save_file

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause

NUMPY_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, which numpy lacks, given as its bits: the upper half of a float32. Exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError or SafetensorError (which is how safetensors reports a full disk)."""
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; safetensors makes its files for their owner alone
    # safetensors reads the raw buffer, so a transposed view would be written in the wrong order.
    save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, path, metadata)
    path.chmod(mode)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file into writable arrays; bfloat16 is widened to float32.

    Raises CheckpointError for whatever is not a sound safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            dtypes = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        unknown = sorted(set(dtypes.values()) - NUMPY_DTYPES.keys() - {"BF16"})
        if unknown:
            raise CheckpointError(f"{path}: tensors of type {', '.join(unknown)} are not supported")
        return _read_with_bfloat16(path) if "BF16" in dtypes.values() else load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}") from error


def _read_with_bfloat16(path: Path) -> Tensors:
    def array(entry: dict[str, Any]) -> NDArray[Any]:
        if entry["dtype"] == "BF16":
            return widen_bfloat16(np.frombuffer(entry["data"], np.uint16)).reshape(entry["shape"])
        return np.frombuffer(entry["data"], NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()

    return {name: array(entry) for name, entry in deserialize(path.read_bytes())}
