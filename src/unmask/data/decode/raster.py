"""Images beyond 8-bit grey and colour: any number of bands, 16-bit, floating point.

| file | read by |
|---|---|
| JPEG, WebP, GIF, BMP, 8-bit PNG, 16-bit grey PNG, TIFF of 8 bits or one band | Pillow |
| 16-bit colour PNG, of which Pillow would keep the high byte | imagecodecs (`unmask[tiff]`) |
| other TIFF (`tiff.py`) | tifffile (`unmask[tiff]`) |
| DICOM (`dicom.py`) | pydicom (`unmask[dicom]`) |
| .npy (`npy.py`) | NumPy |

Values stay as they are stored, with one exception: in a uint16 run, those of 8-bit files are multiplied by 257. In a
float32 run every file keeps its own values. Grey becomes three equal channels, colour becomes ITU-R 601 luma, and an
alpha channel the model does not ask for is laid over white (`convert.py`). Any other difference is refused, and the
message names the keys to set.

Values that are no data, band by band, are masked in what comes out, a `numpy.ma.MaskedArray` where there are any:
`data.nodata`, else what GDAL's tag says; NaN, infinity and what float32 cannot hold. In smaller or larger copies the
others alone are averaged, as GDAL does, and a pixel counts as data where they have half of the weight or more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from unmask.config.schema import DataConfig
from unmask.data.decode.convert import Range, converted, to_dtype, valid_values
from unmask.data.decode.dicom import is_dicom, read_dicom
from unmask.data.decode.npy import is_npy, read_npy
from unmask.data.decode.picture import (
    Box,
    ChannelsError,
    DecodeError,
    FormError,
    Picture,
    Stored,
    check_pixels,
    decoding,
    open_file,
    orientation_of,
    stored_pixels,
    upright,
)
from unmask.data.decode.tiff import BIG_TIFF, Tiff, codec, nodata_tag, open_tiff
from unmask.data.sources.base import Source, printable
from unmask.errors import ConfigError, DataError, StorageError

_PNG = b"\x89PNG\r\n\x1a\n"
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
            converted, channels=channels, dtype=np.dtype(dtype), value_range=value_range, exact=exact
        )
        tiff = None if is_dicom(data) else open_tiff(data, channels, max_pixels)
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
        with decoding():
            pixels = self._parts.part(box)
            return self._convert(Stored(pixels, self._parts.alpha, valid_values(pixels, self._nodata)))


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
        plain = not is_npy(data) and not data.startswith(BIG_TIFF)
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


def read_stored(
    data: bytes | NDArray[Any],
    channels: int | None,
    max_pixels: int,
    nodata: float | None = None,
    frame: int | None = None,
    *,
    shown: bool = True,
) -> Stored:
    """The pixels as they are stored, of DICOM as they are shown, or not. `channels`, where known, tells bands from rows
    and pages; `nodata` and `frame`: see `data.nodata`, `data.frame`. Raises DecodeError."""
    if is_dicom(data):
        return _dicom(data, channels, max_pixels, None if shown else "float32", None, nodata, frame)
    return _stored(data, open_tiff(data, channels, max_pixels), channels, max_pixels, nodata)


def _stored(
    data: bytes | NDArray[Any], tiff: Tiff | None, channels: int | None, max_pixels: int, nodata: float | None
) -> Stored:
    with decoding():
        if tiff is None:
            nodata = _nodata(nodata, nodata_tag(data))
            stored = _read(data, channels, max_pixels, nodata)
        else:
            nodata = _nodata(nodata, tiff.nodata)
            stored = Stored(tiff.whole(), tiff.alpha)
    if stored.pixels.dtype.kind not in "uif" or not stored.pixels.size:
        raise DecodeError(f"{stored.pixels.dtype}{stored.pixels.shape} cannot be read as pixels")
    if stored.valid is None:
        stored = replace(stored, valid=valid_values(stored.pixels, nodata))
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
    with decoding():
        stored = read_dicom(
            bytes(data), channels, max_pixels, dtype=dtype, value_range=value_range, nodata=nodata, frame=frame
        )
    return _with_data(stored)


def _with_data(stored: Stored) -> Stored:
    if stored.valid is not None and not stored.valid.any():
        raise DecodeError(_NO_DATA)
    return stored


def _nodata(key: float | None, tag: Any) -> float | None:
    """What stands for no data, if anything; `tag` is GDAL's text. Raises DecodeError."""
    if key is not None or tag is None:
        return key
    try:
        value = float(str(tag).strip("\0 "))
    except ValueError:
        raise DecodeError(f"says GDAL_NODATA={str(tag)[:40]!r}, which is no number; set data.nodata") from None
    return value if math.isfinite(value) else None  # what is not finite is no data anyway


def _has_nodata(data: bytes | NDArray[Any]) -> bool:
    try:
        return nodata_tag(data) is not None
    except Exception:  # a damaged file, of which its reader will say so
        return False


def _read(data: bytes | NDArray[Any], channels: int | None, max_pixels: int, nodata: float | None) -> Stored:
    if isinstance(data, np.ndarray):
        return Stored(data if data.ndim == 3 else data[:, :, None])
    if is_npy(data):
        return Stored(read_npy(data, channels, max_pixels))
    image = open_file(data, max_pixels)
    if data.startswith(_PNG) and data[24] == 16 and data[25] in (2, 4, 6):  # bit depth, colour type
        pixels = np.asarray(codec("imagecodecs", "a 16-bit colour PNG").png_decode(data))
        return Stored(upright(pixels, orientation_of(image)), alpha=data[25] != 2)
    if isinstance(image, JpegImageFile) and image.mode in ("L", "RGB"):  # also without its end mark
        return Stored(Picture(data, 1 if image.mode == "L" else 3, max_pixels).pixels())
    return stored_pixels(image, nodata)
