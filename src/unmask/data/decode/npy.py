"""Arrays in .npy files as images: (H, W), (H, W, C) or (C, H, W); never unpickled."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.decode.picture import DecodeError, check_pixels


def is_npy(data: bytes) -> bool:
    return data.startswith(np.lib.format.MAGIC_PREFIX)


def read_npy(data: bytes, channels: int | None, max_pixels: int) -> NDArray[Any]:
    """(H, W, C); `channels`, where known, tells bands from rows. Raises DecodeError, and NumPy's errors."""
    file = BytesIO(data)
    version = np.lib.format.read_magic(file)
    headers: dict[tuple[int, int], Callable[[BytesIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = headers[version](file)
    if dtype.hasobject or dtype.kind not in "uif":
        raise DecodeError(f"an array of {dtype} cannot be read as pixels")
    count = math.prod(shape)
    pixels = np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")
    pixels = pixels.astype(dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.ndim != 3 or (axis := _band_axis(pixels.shape, channels)) is None:
        raise DecodeError(f"an array of shape {shape} is not clearly (H, W), (H, W, C) or (C, H, W)")
    elif axis == 0:
        pixels = pixels.transpose(1, 2, 0)
    check_pixels((pixels.shape[1], pixels.shape[0]), max_pixels)
    return pixels


def _band_axis(shape: tuple[int, ...], channels: int | None) -> int | None:
    """The first axis or the last, whichever has `channels`, or else the shorter; None where that may be both."""
    first, last = shape[0], shape[2]
    if (first == channels) != (last == channels):
        return 0 if first == channels else 2
    return None if first == last else 0 if first < last else 2
