"""Images beyond 8-bit grey and colour: any number of bands, 16-bit, floating point.

| file | read by |
|---|---|
| JPEG, WebP, GIF, BMP, 8-bit PNG, 16-bit grey PNG, TIFF of 8 bits or one band | Pillow |
| 16-bit colour PNG, of which Pillow would keep the high byte | imagecodecs (`unmask[tiff]`) |
| other TIFF (`tiff.py`) | tifffile (`unmask[tiff]`) |
| .npy: (H, W), (H, W, C) or (C, H, W); never unpickled | NumPy |

Values stay as they are stored, with one exception: in a uint16 run, those of 8-bit files are multiplied by 257. In a
float32 run every file keeps its own values. Grey becomes three equal channels, colour becomes ITU-R 601 luma, and an
alpha channel the model does not ask for is laid over white. Any other difference is refused, and the message names the
keys to set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from unmask.config.schema import DataConfig
from unmask.data.batch import FULL_RANGE
from unmask.data.decode.picture import (
    Box,
    DecodeError,
    FormError,
    Picture,
    Stored,
    check_pixels,
    open_file,
    orientation_of,
    reason,
    refusal,
    stored_pixels,
    upright,
)
from unmask.data.decode.tiff import Tiff, codec
from unmask.data.sources.base import Source, printable
from unmask.errors import ConfigError, DataError, StorageError

Range = tuple[float, float]
"""Values that become black and white."""

_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_BIG_TIFF = (b"II+\0", b"MM\0+")
_SAMPLES, _BITS, _PHOTOMETRIC, _EXTRA = 277, 258, 262, 338
_RGB, _CMYK = 2, 5
_LUMA = np.array([0.299, 0.587, 0.114])
_LOOKS = 4
"""Images looked at before a run starts."""


class Raster:
    """Does for any channels and dtype what `Picture` does for 8-bit grey and colour.

    Crops of a large TIFF decode the parts they touch; anything else is decoded at once.
    """

    def __init__(
        self, data: bytes | NDArray[Any], channels: int, dtype: str, max_pixels: int, value_range: Range | None = None
    ) -> None:
        """`data`: an encoded file, or pixels (H, W, C); `value_range`: see `data.range`. Raises DecodeError."""
        self._max_pixels = max_pixels
        self._convert = partial(_converted, channels=channels, dtype=np.dtype(dtype), value_range=value_range)
        tiff = _tiff(data, channels, max_pixels)
        if tiff is not None and tiff.in_parts:
            self._parts, self._pixels = tiff, None
            self.height, self.width = tiff.height, tiff.width
            self.mode = f"{tiff.bands} x {tiff.dtype}"
            self._convert(Stored(np.zeros((1, 1, tiff.bands), tiff.dtype), tiff.alpha))  # refuses what does not fit
        else:
            stored = _stored(data, tiff, channels, max_pixels)
            self._pixels = self._convert(stored)
            self.height, self.width = self._pixels.shape[:2]
            self.mode = f"{stored.pixels.shape[2]} x {stored.pixels.dtype}"

    def pixels(self) -> NDArray[Any]:
        """The whole image, (H, W, C). Raises DecodeError."""
        return self._part((0, 0, self.width, self.height))

    def crop(
        self,
        box: Box,
        size: tuple[int, int],
        resample: Image.Resampling,
        *,
        flip: bool = False,
        reduce: bool = True,
    ) -> NDArray[Any]:
        """The pixels in `box`, and none around it, resized to `size` (height, width), antialiased: (height, width, C).

        Each band is resized by Pillow in floating point, then rounded and clipped where it holds whole numbers. Exact
        where the box has the size asked for. `reduce` matters to JPEG in `Picture`. Raises DecodeError.
        """
        check_pixels((size[1], size[0]), self._max_pixels)
        pixels = self._part(box)
        if pixels.shape[:2] != size:
            pixels = _resized(pixels, size, resample)
        return pixels[:, ::-1] if flip else pixels

    def _part(self, box: Box) -> NDArray[Any]:
        left, top, width, height = box
        if self._pixels is not None:
            return self._pixels[top : top + height, left : left + width]
        with _decoding():
            return self._convert(Stored(self._parts.part(box), self._parts.alpha))


def _resized(pixels: NDArray[Any], size: tuple[int, int], resample: Image.Resampling) -> NDArray[Any]:
    out = np.empty((*size, pixels.shape[2]), pixels.dtype)
    for band in range(pixels.shape[2]):
        image = Image.fromarray(pixels[:, :, band].astype(np.float32)).resize((size[1], size[0]), resample)
        out[:, :, band] = to_dtype(np.array(image), pixels.dtype)
    return out


def open_image(
    data: bytes | NDArray[Any], channels: int, dtype: str, max_pixels: int, value_range: Range | None = None
) -> Picture | Raster:
    """The image of a file or of pixels (H, W, C), for a run with these channels, this dtype and this `data.range`.

    Raises DecodeError.
    """
    if dtype != "uint8" or channels not in (1, 3) or value_range is not None:
        return Raster(data, channels, dtype, max_pixels, value_range)
    if isinstance(data, np.ndarray):
        plain = data.dtype == np.uint8 and data.ndim == 3 and data.shape[2] in (1, 3)
    else:
        plain = not data.startswith((_NPY, *_BIG_TIFF))
    try:
        if plain:
            return Picture(data, channels, max_pixels)
    except DecodeError as error:  # this is how Pillow speaks of a TIFF of several bands
        if "unknown pixel mode" not in str(error) and "samples per pixel" not in str(error):
            raise
    return Raster(data, channels, dtype, max_pixels)


def check_images(source: Source, what: str, channels: int, data: DataConfig, *, exact: bool = False) -> None:
    """Look at a few images; raise ConfigError when none of them fits a run with these channels and this `data`.

    `what` names the source in the message. With `exact`, 16-bit images do not fit an 8-bit run.
    """
    refused: list[str] = []
    for index in sorted({i * (len(source) - 1) // max(1, _LOOKS - 1) for i in range(_LOOKS)}) if len(source) else ():
        try:
            image = source.read(index)
            (Raster if exact else open_image)(image, channels, data.dtype, data.max_pixels, data.range)
        except FormError as error:
            refused.append(f"{what}: {printable(source.name(index))}: {error}")
        except StorageError:
            raise
        except DataError:  # found and counted when its turn comes
            continue
        else:
            return
    if refused:
        raise ConfigError(refused[0])


def why_bad(source: Source, index: int, channels: int, data: DataConfig) -> str:
    """Why an image of `source` cannot be used by a run with these channels and this `data`, found out once more."""
    try:
        open_image(source.read(index), channels, data.dtype, data.max_pixels, data.range).pixels()
    except DataError as error:
        return str(error)
    return "could be read at another attempt"


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floating `values` as `dtype`: rounded and clipped where that has whole numbers. Overwrites `values`."""
    if dtype.kind == "u":
        np.clip(np.rint(values, out=values), 0, FULL_RANGE[dtype.name], out=values)
    return values.astype(dtype, copy=False)


def read_stored(data: bytes | NDArray[Any], channels: int | None, max_pixels: int) -> Stored:
    """The pixels as they are stored. `channels`, where known, tells bands from rows and pages. Raises DecodeError."""
    return _stored(data, _tiff(data, channels, max_pixels), channels, max_pixels)


def _stored(data: bytes | NDArray[Any], tiff: Tiff | None, channels: int | None, max_pixels: int) -> Stored:
    with _decoding():
        stored = _read(data, channels, max_pixels) if tiff is None else Stored(tiff.whole(), tiff.alpha)
    if stored.pixels.dtype.kind not in "uif" or not stored.pixels.size:
        raise DecodeError(f"{stored.pixels.dtype}{stored.pixels.shape} cannot be read as pixels")
    return stored


@contextmanager
def _decoding() -> Generator[None]:
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DecodeError(reason(error)) from None


def _tiff(data: bytes | NDArray[Any], channels: int | None, max_pixels: int) -> Tiff | None:
    """The image, if it is a TIFF file that Pillow cannot read in full."""
    if isinstance(data, np.ndarray) or not data.startswith((*_TIFF, *_BIG_TIFF)):
        return None
    with _decoding():
        plain = data.startswith(_TIFF) and _is_plain_tiff(data, channels)
        return None if plain else Tiff(data, channels, max_pixels)


def _read(data: bytes | NDArray[Any], channels: int | None, max_pixels: int) -> Stored:
    if isinstance(data, np.ndarray):
        return Stored(data if data.ndim == 3 else data[:, :, None])
    if data.startswith(_NPY):
        return Stored(_read_npy(data, channels, max_pixels))
    image = open_file(data, max_pixels)
    if data.startswith(_PNG) and data[24] == 16 and data[25] in (2, 4, 6):  # bit depth, colour type
        pixels = np.asarray(codec("imagecodecs", "a 16-bit colour PNG").png_decode(data))
        return Stored(upright(pixels, orientation_of(image)), alpha=data[25] != 2)
    return stored_pixels(image)


def _read_npy(data: bytes, channels: int | None, max_pixels: int) -> NDArray[Any]:
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


def _tags(data: bytes) -> ImageFileDirectory_v2:
    """Of the first page of a TIFF."""
    tags, file = ImageFileDirectory_v2(data[:8]), BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _is_plain_tiff(data: bytes, channels: int | None) -> bool:
    """Whether Pillow reads all there is: one band, or 8 bits of grey or colour, perhaps with opacity."""
    tags = _tags(data)
    samples, color, extra = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC, 0), tuple(tags.get(_EXTRA, ()))
    if samples == 1:
        return channels in (None, 1, 3) or not tags.next  # further pages may be the bands
    if max(tags.get(_BITS, (1,))) > 8:
        return False
    opacity = extra in ((1,), (2,)) or (color == _RGB and not extra)
    return samples == 3 or color == _CMYK or (samples in (2, 4) and opacity)


def _converted(stored: Stored, channels: int, dtype: np.dtype[Any], value_range: Range | None) -> NDArray[Any]:
    pixels = stored.pixels
    if stored.alpha and channels in (1, 3) and pixels.dtype.kind == "u":
        pixels = _over_white(pixels)
    if value_range is not None:
        pixels = _ranged(pixels, dtype, *value_range)
    found = pixels.shape[2]
    if {found, channels} <= {1, 3}:
        if found < channels:
            pixels = np.repeat(pixels, channels, 2)
        elif found > channels:
            luma = (pixels @ _LUMA)[:, :, None]
            pixels = np.rint(luma).astype(pixels.dtype) if pixels.dtype.kind in "ui" else luma.astype(pixels.dtype)
    elif found != channels:
        raise refusal(found, pixels.dtype, channels)
    if pixels.dtype == np.uint8 and dtype == np.uint16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    elif dtype == np.float32:
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32, copy=False)
        if not np.isfinite(pixels).all():
            raise DecodeError("has pixels that are NaN, infinite or beyond float32; give them a value")
    if pixels.dtype != dtype:
        wanted = "uint16" if pixels.dtype == np.uint16 else "float32"
        raise FormError(f"has pixels of {pixels.dtype}, the run of {dtype}; set data.dtype={wanted}")
    return pixels


def _ranged(pixels: NDArray[Any], dtype: np.dtype[Any], low: float, high: float) -> NDArray[Any]:
    """The values from `low` to `high` spread over what `dtype` holds."""
    values = np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1)
    return to_dtype(np.nan_to_num(values, copy=False) * FULL_RANGE[dtype.name], dtype)


def _over_white(pixels: NDArray[np.unsignedinteger[Any]]) -> NDArray[Any]:
    white = np.iinfo(pixels.dtype).max
    opacity = pixels[:, :, -1:] / white
    return to_dtype(pixels[:, :, :-1] * opacity + white * (1 - opacity), pixels.dtype)
