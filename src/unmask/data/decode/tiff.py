"""TIFF files beyond what Pillow reads: any bands, 16-bit, floating, BigTIFF. Read by tifffile (`unmask[tiff]`).

The image is the first page, or the pages where they are the bands. Of a large page, crops decode only the strips or
tiles that they touch.
"""

from __future__ import annotations

import importlib
import logging
import math
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from unmask.data.decode.picture import Box, DecodeError, FormError, check_pixels, decoding, refusal, upright

_PLAIN = (b"II*\0", b"MM\0*")
BIG_TIFF = (b"II+\0", b"MM\0+")
_SAMPLES, _BITS, _PHOTOMETRIC, _EXTRA, _ORIENTATION, _NODATA = 277, 258, 262, 338, 274, 42113
_WHITE_IS_ZERO, _RGB, _CMYK = 0, 2, 5
_FORMAT = 339
_PLAIN_VALUES = [*((1, bits) for bits in (1, 2, 4, 8, 12, 16)), (2, 16), (2, 32), (3, 32)]
"""Kind (1 natural, 2 signed, 3 floating) and bits of single bands that Pillow reads as they are."""
_MANY = 16
"""Most bands of an image of `max_pixels`, where nothing says how many there should be."""
_MOST_RATIO = 20_000
"""Most bytes of pixels per byte of a TIFF: blank images reach 10,000 with the best compressors, 1,000 with Deflate."""
_LARGE = 2**20
"""The number of pixels from which decoding in parts pays."""
_JPEG = {6, 7, 33007, 34892}
"""Compressions whose tables stand apart from the segments."""


class Tiff:
    """The image of a TIFF file whose header has been read and checked."""

    def __init__(self, data: bytes, channels: int | None, max_pixels: int) -> None:
        """`channels`, where known, tells bands from frames. Raises DecodeError, and tifffile's errors."""
        tifffile = codec("tifffile", "a TIFF of several bands, 16-bit or floating")
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # DecodeError says what is wrong with a file
        self._data = data
        file = tifffile.TiffFile(BytesIO(data))
        page = self._page = file.pages[0]
        check_pixels((page.imagewidth, page.imagelength), max_pixels)
        series = file.series[0]
        # "C": pages that the file calls channels; others are frames, unless there are as many as the run has channels.
        pages = series.ndim == 3 and series.axes[1:] == "YX" and (series.axes[0] == "C" or series.shape[0] == channels)
        self._found = series if pages and series.axes[0] != "S" else page
        sizes = dict(zip(self._found.axes, self._found.shape, strict=True))
        self.bands = math.prod(size for axis, size in sizes.items() if axis not in "YX")
        self.dtype: np.dtype[Any] = np.dtype(page.dtype)
        if channels is not None and self.bands != channels and not {self.bands, channels} <= {1, 2, 3, 4}:
            raise refusal(self.bands, page.dtype, channels)
        check_pixels((page.imagewidth, page.imagelength * self.bands), max_pixels * max(_MANY, channels or 0))
        claimed = math.prod(self._found.shape) * page.dtype.itemsize
        if claimed > _MOST_RATIO * len(data):
            raise DecodeError(f"claims {claimed} bytes of pixels in a file of {len(data)}")
        self._sizes = {axis: size for axis, size in sizes.items() if axis in "YX" or size > 1}
        if len(self._sizes) not in (2, 3) or not {"Y", "X"} <= set(self._sizes):
            raise DecodeError(f"a TIFF with the axes {self._found.axes} is not an image")
        self._orientation = page.tags.valueof(_ORIENTATION) or 1
        extra = page.tags.valueof(_EXTRA) or ()
        self.alpha = self.bands in (2, 4) and tuple(extra) in ((1,), (2,))
        """The last band is opacity."""
        self.height, self.width = sizes["Y"], sizes["X"]
        self.nodata: Any = page.tags.valueof(_NODATA)
        """GDAL's tag as it stands, or None."""
        self._segments: dict[int, NDArray[Any]] = {}

    @property
    def in_parts(self) -> bool:
        """Whether `part` can be used, and pays."""
        page = self._page
        plain = self._found is page and self._orientation == 1 and page.imagedepth == 1 and self.dtype.kind in "uif"
        return plain and len(page.dataoffsets) > 1 and self.height * self.width >= _LARGE

    def whole(self) -> NDArray[Any]:
        """(H, W, bands), upright."""
        pixels = np.asarray(self._found.asarray()).reshape(list(self._sizes.values()))
        axes = list(self._sizes)
        if len(axes) == 2:
            pixels, axes = pixels[:, :, None], [*axes, "S"]
        band = next(axis for axis in axes if axis not in "YX")
        return upright(pixels.transpose([axes.index(axis) for axis in ("Y", "X", band)]), self._orientation)

    def part(self, box: Box) -> NDArray[Any]:
        """The pixels in `box`: (height, width, bands)."""
        left, top, width, height = box
        page = self._page
        out = np.empty((height, width, self.bands), self.dtype)
        segments = math.prod(page.chunked)
        if not len(page.dataoffsets) == len(page.databytecounts) == segments:
            raise DecodeError(f"has {len(page.dataoffsets)} of {segments} strips or tiles")
        for number in range(segments):
            _, (plane, _, y, x, _), (_, length, across, samples) = page.decode(None, number)
            rows = slice(max(y, top), min(y + length, top + height))
            columns = slice(max(x, left), min(x + across, left + width))
            if rows.start < rows.stop and columns.start < columns.stop:
                pixels = self._segment(number)[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                place = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
                out[(*place, slice(plane, plane + samples))] = pixels
        return out

    def _segment(self, number: int) -> NDArray[Any]:
        """A strip or tile: (length, width, samples). Kept, for several crops of one image."""
        if number not in self._segments:
            page = self._page
            start, size = page.dataoffsets[number], page.databytecounts[number]
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
            encoded = self._data[start : start + size]
            if len(encoded) < size:
                raise DecodeError("is cut short")
            pixels, _, (_, *shape) = page.decode(encoded if size else None, number, **tables)
            self._segments[number] = np.full(shape, page.nodata, self.dtype) if pixels is None else pixels[0]
        return self._segments[number]


def codec(module: str, kind: str, extra: str = "tiff") -> Any:
    """A module that reads `kind`. Raises FormError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FormError(f"{kind} is read by {module.partition('.')[0]}; pip install 'unmask[{extra}]'") from None


def open_tiff(data: bytes | NDArray[Any], channels: int | None, max_pixels: int) -> Tiff | None:
    """The image, if it is a TIFF file that Pillow cannot read in full."""
    if isinstance(data, np.ndarray) or not data.startswith((*_PLAIN, *BIG_TIFF)):
        return None
    with decoding():
        plain = data.startswith(_PLAIN) and _is_plain_tiff(data, channels)
        return None if plain else Tiff(data, channels, max_pixels)


def nodata_tag(data: bytes | NDArray[Any]) -> Any:
    """Of a TIFF that Pillow reads."""
    return None if isinstance(data, np.ndarray) or not data.startswith(_PLAIN) else _tags(data).get(_NODATA)


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
    bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (1,)))
    if samples == 1:
        if (kind, bits) not in _PLAIN_VALUES or (color == _WHITE_IS_ZERO and bits == 16 and data[:2] == b"MM"):
            return False
        return channels in (None, 1, 3) or not tags.next  # further pages may be the bands
    if bits > 8:
        return False
    opacity = extra in ((1,), (2,)) or (color == _RGB and not extra)
    return samples == 3 or color == _CMYK or (samples in (2, 4) and opacity)
