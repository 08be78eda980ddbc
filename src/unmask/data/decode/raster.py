"""Images beyond 8-bit grey and colour: any number of bands, 16-bit, floating point.

| file | read by |
|---|---|
| JPEG, WebP, GIF, BMP, 8-bit PNG, 16-bit grey PNG, TIFF of 8 bits or one band | Pillow |
| 16-bit colour PNG, of which Pillow would keep the high byte | imagecodecs (`unmask[tiff]`) |
| other TIFF (`tiff.py`) | tifffile (`unmask[tiff]`) |
| DICOM (`dicom.py`) | pydicom (`unmask[dicom]`) |
| .npy: (H, W), (H, W, C) or (C, H, W); never unpickled | NumPy |

Values stay as they are stored, with one exception: in a uint16 run, those of 8-bit files are multiplied by 257. In a
float32 run every file keeps its own values. Grey becomes three equal channels, colour becomes ITU-R 601 luma, and an
alpha channel the model does not ask for is laid over white. Any other difference is refused, and the message names the
keys to set.

Values that are no data, band by band, are masked in what comes out, a `numpy.ma.MaskedArray` where there are any:
`data.nodata`, else what GDAL's tag says; NaN, infinity and what float32 cannot hold. In smaller or larger copies the
others alone are averaged, as GDAL does, and a pixel counts as data where they have half of the weight or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from unmask.config.schema import DataConfig
from unmask.data.batch import FULL_RANGE
from unmask.data.decode.dicom import is_dicom, read_dicom
from unmask.data.decode.picture import (
    Box,
    ChannelsError,
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
from unmask.data.decode.tiff import NODATA, Tiff, codec
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
_NO_DATA = "holds no data: every value is nodata, NaN, infinite or beyond float32"
_LEAST_WEIGHT = 0.5
"""Of the data in a resized pixel, for it to be data too."""
_LOOKS = 4
"""Images looked at before a run starts."""


class Raster:
    """Does for any channels and dtype what `Picture` does for 8-bit grey and colour.

    Crops of a large TIFF decode the parts they touch; anything else is decoded at once.
    """

    def __init__(
        self,
        data: bytes | NDArray[Any],
        channels: int,
        dtype: str,
        max_pixels: int,
        value_range: Range | None = None,
        nodata: float | None = None,
        frame: int | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """`data`: an encoded file, or pixels (H, W, C); `value_range`, `nodata`, `frame`: see `data.range` and so on.

        Without `exact`, 16 bits become 8 as in `Picture`. Raises DecodeError, also where no value at all is data.
        """
        self._max_pixels = max_pixels
        self._convert = partial(
            _converted, channels=channels, dtype=np.dtype(dtype), value_range=value_range, exact=exact
        )
        tiff = None if is_dicom(data) else _tiff(data, channels, max_pixels)
        if tiff is not None and tiff.in_parts:
            self._parts, self._pixels, self._nodata = tiff, None, _nodata(nodata, tiff.nodata)
            self.height, self.width = tiff.height, tiff.width
            self.mode = f"{tiff.bands} x {tiff.dtype}"
            self._convert(Stored(np.zeros((1, 1, tiff.bands), tiff.dtype), tiff.alpha))  # refuses what does not fit
        else:
            if is_dicom(data):
                stored = _dicom(data, channels, max_pixels, dtype, value_range, nodata, frame)
            else:
                stored = _stored(data, tiff, channels, max_pixels, nodata)
            self._pixels = self._convert(stored)
            if isinstance(self._pixels, np.ma.MaskedArray) and np.ma.getmaskarray(self._pixels).all():
                raise DecodeError(_NO_DATA)
            self.height, self.width = self._pixels.shape[:2]
            self.mode = f"{stored.pixels.shape[2]} x {stored.pixels.dtype}"

    def pixels(self) -> NDArray[Any]:
        """The whole image, (H, W, C), masked where it is no data. Raises DecodeError."""
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
        where the box has the size asked for. Masked where it is no data. `reduce` matters to JPEG in `Picture`. Raises
        DecodeError.
        """
        check_pixels((size[1], size[0]), self._max_pixels)
        pixels = self._part(box)
        if pixels.shape[:2] != size:
            pixels = _resized(pixels, size, resample)
        return pixels[:, ::-1] if flip else pixels

    def _part(self, box: Box) -> NDArray[Any]:
        left, top, width, height = box
        if self._pixels is not None:
            return _plain_if_whole(self._pixels[top : top + height, left : left + width])
        with _decoding():
            pixels = self._parts.part(box)
            return self._convert(Stored(pixels, self._parts.alpha, _valid(pixels, self._nodata)))


def _resized(pixels: NDArray[Any], size: tuple[int, int], resample: Image.Resampling) -> NDArray[Any]:
    out = np.empty((*size, pixels.shape[2]), pixels.dtype)
    mask = np.zeros(out.shape, bool)
    masked = isinstance(pixels, np.ma.MaskedArray)
    for band in range(pixels.shape[2]):
        values = _resized_band(np.asarray(pixels[:, :, band]), size, resample)
        if masked:  # values that are no data are 0 there
            weight = _resized_band(~np.ma.getmaskarray(pixels[:, :, band]), size, resample)
            mask[:, :, band] = weight < _LEAST_WEIGHT
            values = np.divide(values, weight, out=np.zeros_like(values), where=weight >= _LEAST_WEIGHT)
        out[:, :, band] = to_dtype(values, pixels.dtype)
    return _plain_if_whole(np.ma.MaskedArray(out, mask)) if masked else out


def _resized_band(values: NDArray[Any], size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.float32]:
    return np.array(Image.fromarray(values.astype(np.float32)).resize((size[1], size[0]), resample))


def _plain_if_whole(pixels: NDArray[Any]) -> NDArray[Any]:
    """Without a mask that masks nothing."""
    if isinstance(pixels, np.ma.MaskedArray) and not np.ma.getmaskarray(pixels).any():
        return np.asarray(pixels)
    return pixels


def open_image(
    data: bytes | NDArray[Any],
    channels: int,
    dtype: str,
    max_pixels: int,
    value_range: Range | None = None,
    nodata: float | None = None,
    frame: int | None = None,
) -> Picture | Raster:
    """The image of a file or of pixels (H, W, C), for a run with these channels, this dtype, `data.range`,
    `data.nodata` and `data.frame`.

    Raises DecodeError.
    """
    if dtype != "uint8" or channels not in (1, 3) or value_range is not None or is_dicom(data):
        return Raster(data, channels, dtype, max_pixels, value_range, nodata, frame)
    if nodata is not None or _has_nodata(data):
        return Raster(data, channels, dtype, max_pixels, None, nodata, exact=False)
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

    `what` names the source in the message. `exact` is for a run that trains: there 16-bit images do not fit 8-bit
    ones, and the channels are a setting.
    """
    refused: list[str] = []
    for index in sorted({i * (len(source) - 1) // max(1, _LOOKS - 1) for i in range(_LOOKS)}) if len(source) else ():
        try:
            image = source.read(index)
            how = (channels, data.dtype, data.max_pixels, data.range, data.nodata, data.frame)
            (Raster if exact else open_image)(image, *how)
        except FormError as error:
            said = str(error)
            if isinstance(error, ChannelsError) and not exact:
                said = f"{said.partition(';')[0]}, as the model was trained; convert the images, or train one on such"
            refused.append(f"{what}: {printable(source.name(index))}: {said}")
        except StorageError:
            raise
        except DataError:  # found and counted when its turn comes
            continue
        else:
            return
    if refused:
        raise ConfigError(refused[0])


def why_bad(source: Source, index: int, channels: int, data: DataConfig) -> str:
    """Why an image of `source` cannot be used by a run with these channels and this `data`, found out once more; empty
    where it can be."""
    try:
        how = (channels, data.dtype, data.max_pixels, data.range, data.nodata, data.frame)
        open_image(source.read(index), *how).pixels()
    except DataError as error:
        return str(error)
    return ""


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floating `values` as `dtype`: rounded and clipped where that has whole numbers. Overwrites `values`."""
    if dtype.kind == "u":
        np.clip(np.rint(values, out=values), 0, FULL_RANGE[dtype.name], out=values)
    return values.astype(dtype, copy=False)


def read_stored(
    data: bytes | NDArray[Any],
    channels: int | None,
    max_pixels: int,
    nodata: float | None = None,
    frame: int | None = None,
) -> Stored:
    """The pixels as they are stored, of DICOM as they are shown. `channels`, where known, tells bands from rows and
    pages; `nodata` and `frame`: see `data.nodata`, `data.frame`. Raises DecodeError."""
    if is_dicom(data):
        return _dicom(data, channels, max_pixels, None, None, nodata, frame)
    return _stored(data, _tiff(data, channels, max_pixels), channels, max_pixels, nodata)


def _stored(
    data: bytes | NDArray[Any], tiff: Tiff | None, channels: int | None, max_pixels: int, nodata: float | None
) -> Stored:
    with _decoding():
        if tiff is None:
            nodata = _nodata(nodata, _nodata_tag(data))
            stored = _read(data, channels, max_pixels, nodata)
        else:
            nodata = _nodata(nodata, tiff.nodata)
            stored = Stored(tiff.whole(), tiff.alpha)
    if stored.pixels.dtype.kind not in "uif" or not stored.pixels.size:
        raise DecodeError(f"{stored.pixels.dtype}{stored.pixels.shape} cannot be read as pixels")
    if stored.valid is None:
        stored = replace(stored, valid=_valid(stored.pixels, nodata))
    return _with_data(stored)


def _dicom(
    data: bytes | NDArray[Any],
    channels: int | None,
    max_pixels: int,
    dtype: str | None,
    value_range: Range | None,
    nodata: float | None,
    frame: int | None,
) -> Stored:
    with _decoding():
        stored = read_dicom(
            bytes(data), channels, max_pixels, dtype=dtype, value_range=value_range, nodata=nodata, frame=frame
        )
    return _with_data(stored)


def _with_data(stored: Stored) -> Stored:
    if stored.valid is not None and not stored.valid.any():
        raise DecodeError(_NO_DATA)
    return stored


def _valid(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Where there is data; None where all is."""
    valid = np.isfinite(pixels) if pixels.dtype.kind == "f" else None
    if nodata is not None:
        with np.errstate(over="ignore"):  # GDAL writes the lowest float64 for bands of float32
            is_data = pixels != nodata
        valid = is_data if valid is None else valid & is_data
    return None if valid is None or valid.all() else valid


def _nodata(key: float | None, tag: Any) -> float | None:
    """What stands for no data, if anything; `tag` is GDAL's text. Raises DecodeError."""
    if key is not None or tag is None:
        return key
    try:
        value = float(str(tag).strip("\0 "))
    except ValueError:
        raise DecodeError(f"says GDAL_NODATA={str(tag)[:40]!r}, which is no number; set data.nodata") from None
    return value if math.isfinite(value) else None  # what is not finite is no data anyway


def _nodata_tag(data: bytes | NDArray[Any]) -> Any:
    """Of a TIFF that Pillow reads."""
    return None if isinstance(data, np.ndarray) or not data.startswith(_TIFF) else _tags(data).get(NODATA)


def _has_nodata(data: bytes | NDArray[Any]) -> bool:
    try:
        return _nodata_tag(data) is not None
    except Exception:  # a damaged file, of which its reader will say so
        return False


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


def _read(data: bytes | NDArray[Any], channels: int | None, max_pixels: int, nodata: float | None) -> Stored:
    if isinstance(data, np.ndarray):
        return Stored(data if data.ndim == 3 else data[:, :, None])
    if data.startswith(_NPY):
        return Stored(_read_npy(data, channels, max_pixels))
    image = open_file(data, max_pixels)
    if data.startswith(_PNG) and data[24] == 16 and data[25] in (2, 4, 6):  # bit depth, colour type
        pixels = np.asarray(codec("imagecodecs", "a 16-bit colour PNG").png_decode(data))
        return Stored(upright(pixels, orientation_of(image)), alpha=data[25] != 2)
    return stored_pixels(image, nodata)


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


def _converted(
    stored: Stored, channels: int, dtype: np.dtype[Any], value_range: Range | None, exact: bool
) -> NDArray[Any]:
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
        if (fits := _valid(pixels, None)) is not None:
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
