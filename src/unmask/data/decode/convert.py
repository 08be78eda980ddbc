"""Pixels as they are stored to pixels as a run has them: bands, range and dtype, and where there is data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import FULL_RANGE
from unmask.data.decode.picture import FormError, Stored, refusal

Range = tuple[float, float]
"""Values that become black and white."""
_LUMA = np.array([0.299, 0.587, 0.114])


def converted(
    stored: Stored, channels: int, dtype: np.dtype[Any], value_range: Range | None, exact: bool
) -> NDArray[Any]:
    """(H, W, channels), masked where it is no data; `raster.py` says how. Raises FormError."""
    pixels, valid = stored.pixels, stored.valid
    if valid is not None:
        valid = np.broadcast_to(valid, pixels.shape)
        pixels = np.where(valid, pixels, pixels.dtype.type(0))
    if stored.alpha and channels in (1, 3) and pixels.dtype.kind == "u":
        pixels = _over_white(pixels)
        valid = None if valid is None else valid[:, :, :-1]
    if value_range is not None:
        pixels = _ranged(pixels, dtype, *value_range)
    found = pixels.shape[2]
    if {found, channels} <= {1, 3}:
        if found < channels:
            pixels = np.repeat(pixels, channels, 2)
        elif found > channels:
            valid = None if valid is None else valid.all(2, keepdims=True)
            luma = (pixels @ _LUMA)[:, :, None]
            pixels = np.rint(luma).astype(pixels.dtype) if pixels.dtype.kind in "ui" else luma.astype(pixels.dtype)
    elif found != channels:
        raise refusal(found, pixels.dtype, channels)
    if pixels.dtype == np.uint8 and dtype == np.uint16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    elif pixels.dtype == np.uint16 and dtype == np.uint8 and not exact:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif dtype == np.float32:
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32, copy=False)
        if (fits := valid_values(pixels, None)) is not None:
            valid = fits if valid is None else valid & fits
    if pixels.dtype != dtype:
        wanted = "uint16" if pixels.dtype == np.uint16 else "float32"
        raise FormError(f"has pixels of {pixels.dtype}, the run of {dtype}; set data.dtype={wanted}")
    if valid is None:
        return pixels
    valid = np.broadcast_to(valid, pixels.shape)
    return np.ma.MaskedArray(np.where(valid, pixels, dtype.type(0)), ~valid)


def _ranged(pixels: NDArray[Any], dtype: np.dtype[Any], low: float, high: float) -> NDArray[Any]:
    """The values from `low` to `high` spread over what `dtype` holds."""
    values = np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1)
    return to_dtype(values * FULL_RANGE[dtype.name], dtype)


def _over_white(pixels: NDArray[np.unsignedinteger[Any]]) -> NDArray[Any]:
    white = np.iinfo(pixels.dtype).max
    opacity = pixels[:, :, -1:] / white
    return to_dtype(pixels[:, :, :-1] * opacity + white * (1 - opacity), pixels.dtype)


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floating `values` as `dtype`: rounded and clipped where that has whole numbers. Overwrites `values`."""
    if dtype.kind == "u":
        np.clip(np.rint(values, out=values), 0, FULL_RANGE[dtype.name], out=values)
    return values.astype(dtype, copy=False)


def valid_values(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Where there is data; None where all is."""
    valid = np.isfinite(pixels) if pixels.dtype.kind == "f" else None
    if nodata is not None:
        with np.errstate(over="ignore"):  # GDAL writes the lowest float64 for bands of float32
            is_data = pixels != nodata
        valid = is_data if valid is None else valid & is_data
    return None if valid is None or valid.all() else valid
