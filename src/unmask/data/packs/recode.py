"""An image as a pack stores it: as it is, or smaller."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from unmask.data.decode.dicom import is_dicom
from unmask.data.decode.picture import DecodeError, Picture, reason
from unmask.data.decode.raster import Raster, read_stored

_PHOTO = (b"\xff\xd8\xff", b"RIFF")
"""JPEG and WebP."""
_TIFF = (b"II", b"MM")
_WHOLE = ("uint8", "uint16")
_BICUBIC = Image.Resampling.BICUBIC


def recode(
    data: bytes | NDArray[Any],
    short_side: int | None,
    quality: int,
    *,
    max_pixels: int,
    nodata: float | None = None,
    frame: int | None = None,
) -> bytes:
    """The file to store; `nodata` and `frame`: see `data.nodata` and `data.frame`.

    Files come back as they are, unless their shorter side exceeds `short_side`: these are decoded upright, resized with
    antialiased bicubic, and encoded as JPEG or WebP of `quality` where they were that, else without loss. Grey stays
    grey, any bands stay as many and of their dtype (signed and 64-bit numbers become float32, as in a run), and the
    transparency of 8-bit files is laid over white. Arrays (H, W, C) are always encoded, without loss. What PNG holds
    of these is PNG: 8-bit grey and colour, 16-bit grey; the rest is .npy, in which values that are no data are NaN.
    Raises DecodeError for what cannot be decoded whole.
    """
    photo = data if isinstance(data, bytes) and data.startswith(_PHOTO) else None
    if photo is not None and nodata is None:
        return _photo(photo, short_side, quality, max_pixels)
    stored = read_stored(data, None, max_pixels, nodata, frame)
    if photo is not None and stored.valid is None:
        return _photo(photo, short_side, quality, max_pixels)
    bands, dtype = stored.pixels.shape[2], stored.pixels.dtype
    pixels, dtype_out = stored.pixels, dtype.name if dtype.name in _WHOLE else "float32"
    if stored.valid is not None and dtype_out == "float32":
        pixels = np.where(stored.valid, pixels, np.nan)
    if stored.alpha and dtype == np.uint8:
        raster = Raster(data, bands - 1, "uint8", max_pixels)
    else:
        raster = Raster(pixels, bands, dtype_out, max_pixels)
    if (size := _smaller(raster.height, raster.width, short_side)) is None:
        return data if isinstance(data, bytes) else _lossless(raster.pixels(), max_pixels)
    if bands == 1 and isinstance(data, bytes) and data.startswith(_TIFF) and _pages(data) > 1:
        raise DecodeError("has several pages, which may be bands or frames; pack such files without --short-side")
    if is_dicom(data):
        raise DecodeError("is DICOM, of which a smaller copy would not keep the values; pack without --short-side")
    if stored.valid is not None and dtype_out != "float32":
        raise DecodeError("has values that are no data, which a smaller copy mixes in; pack without --short-side")
    return _lossless(raster.crop((0, 0, raster.width, raster.height), size, _BICUBIC), max_pixels)


def _photo(data: bytes, short_side: int | None, quality: int, max_pixels: int) -> bytes:
    picture = Picture(data, 3, max_pixels)
    whole = (0, 0, picture.width, picture.height)
    if (size := _smaller(picture.height, picture.width, short_side)) is None:
        picture.crop(whole, (1, 1), Image.Resampling.BOX)  # the cheapest way to decode all of it
        return data
    pixels = picture.crop(whole, size, _BICUBIC, reduce=False)
    return _encoded(pixels[:, :, 0] if picture.mode == "L" else pixels, picture.format, quality=quality)


def _smaller(height: int, width: int, short_side: int | None) -> tuple[int, int] | None:
    """Height and width to resize to; None where the image is small enough."""
    if short_side is None or min(height, width) <= short_side:
        return None
    scale = short_side / min(height, width)
    return max(short_side, round(height * scale)), max(short_side, round(width * scale))


def _lossless(pixels: NDArray[Any], max_pixels: int) -> bytes:
    bands = pixels.shape[2]
    if isinstance(pixels, np.ma.MaskedArray):
        pixels = np.where(np.ma.getmaskarray(pixels), np.float32(np.nan), np.asarray(pixels))
    plane = pixels[:, :, 0] if bands == 1 else pixels
    if (pixels.dtype == np.uint8 and bands in (1, 3)) or (pixels.dtype == np.uint16 and bands == 1):
        return _encoded(plane, "PNG")
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(plane), allow_pickle=False)
    data = buffer.getvalue()
    read_stored(data, bands, max_pixels)  # refuses where bands could be taken for rows
    return data


def _encoded(pixels: NDArray[Any], kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _pages(data: bytes) -> int:
    """Pages of a TIFF that are as large as the first; smaller ones are previews."""
    try:
        with TiffImageFile(BytesIO(data)) as image:
            sizes: list[tuple[int, int]] = []
            for page in range(image.n_frames):
                image.seek(page)
                sizes.append(image.size)
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DecodeError(reason(error)) from None
    return sizes.count(sizes[0])
