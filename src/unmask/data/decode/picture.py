"""Encoded images to pixels: one conversion, for every kind of file. `raster.py` has what is not 8-bit grey or colour.

- The pixel count in the header is checked before anything is decoded.
- EXIF rotation is applied. Of an animation, the first frame is taken. Colour profiles are ignored.
- Transparent pixels (alpha channel, transparent palette entry or colour) are laid over white.
- 16-bit grey is divided by 257 and rounded. (16-bit colour: Pillow keeps the high byte.)
- CMYK and YCCK become RGB by Pillow's formula; grey becomes three equal channels, colour becomes ITU-R 601 luma,
  as the model's number of channels asks.

Most JPEG files are decoded by simplejpeg, to the same values as Pillow's and faster; Pillow decides about all others.

The format is recognised by the content, not by the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from unmask.data.decode.resize import resize
from unmask.errors import DataError

# Pillow's own opener would compare with a process-wide limit of its own, and try formats nobody asked for.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}
_JPEG_END = b"\xff\xd9"
_MOST_RATIO = 20_000
"""Most bytes of pixels per byte of a file: blank pictures reach 10,000 with the best compressors."""
_NO_RANGE = (
    "pixels of 32 bits or with a sign have no defined range from black to white; convert them to 8 or 16 bits, or use "
    "them as they are with data.dtype=float32"
)
_SAMPLE_FORMAT = 339
"""Of TIFF: 1 where numbers have no sign."""
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_SPARE = 2.0
"""JPEG is decoded at 1/2, 1/4 or 1/8 size where the crop stays this much larger than the output. The mean difference
from full decoding is then 0.4 grey levels over 425 crops of photographs, and below 1.3 in all but one halftone (3.0);
with 1.5 every hundredth crop is beyond 2, with 1.0 every tenth."""

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels of the upright image."""


class DecodeError(DataError):
    """A file is not an image that can be decoded."""


class FormError(DecodeError):
    """An intact file whose pixels do not fit this run; the message says what to set or to install."""


class ChannelsError(FormError):
    """It has other channels than this run."""


def refusal(found: int, dtype: np.dtype[Any], channels: int) -> ChannelsError:
    """Of an image whose channels are not those of the run."""
    wanted = {"uint8": "uint8", "uint16": "uint16"}.get(dtype.name, "float32")
    return ChannelsError(
        f"has {found} channels of {dtype}, the run {channels}; set model.channels={found} data.dtype={wanted} and the "
        "data.mean and data.std that `unmask stats` prints"
    )


def frames(data: bytes | NDArray[Any]) -> int:
    """How many pictures, frames or pages, a file says that it holds; 1 where it does not say, or cannot be read."""
    if isinstance(data, np.ndarray):
        return 1
    reader = next((reader for mark, reader in _READERS.items() if data.startswith(mark)), None)
    try:
        return 1 if reader is None else int(getattr(reader(BytesIO(data)), "n_frames", 1))
    except Exception:  # whatever a damaged file makes Pillow raise is told by who decodes it
        return 1


@dataclass(frozen=True)
class Stored:
    """The pixels of a file as they are in it, upright."""

    pixels: NDArray[Any]
    """(H, W, C)."""
    alpha: bool = False
    """The last channel is opacity."""
    valid: NDArray[np.bool_] | None = None
    """(H, W, C), or (H, W, 1) for all channels alike: False where a value is no data; None: all are."""


class Picture:
    """An image whose header has been read; pixels are decoded when asked for, and no more of them than needed."""

    def __init__(self, data: bytes | NDArray[np.uint8], channels: int, max_pixels: int) -> None:
        """`data`: an encoded file, or pixels (H, W, C). `channels`: 1 or 3. Raises DecodeError."""
        self._data = data
        self._mode = {1: "L", 3: "RGB"}[channels]
        self._max_pixels = max_pixels
        self._image = _from_array(data) if isinstance(data, np.ndarray) else open_file(data, max_pixels)
        if isinstance(self._image, TiffImageFile) and 2 in _numbers(self._image, _SAMPLE_FORMAT):
            raise DecodeError(_NO_RANGE)
        self._orientation = orientation_of(self._image)
        width, height = self._image.size
        self.height, self.width = (width, height) if self._orientation in _SIDEWAYS else (height, width)
        self.format, self.mode = self._image.format or "", self._image.mode
        """As stored: "JPEG", "PNG" …, or "" for an array; and Pillow's mode."""
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        """Decoded images by the factor their size is divided by, kept for several crops of one image."""

    def pixels(self) -> NDArray[np.uint8]:
        """The whole image, (H, W, C). Raises DecodeError."""
        return self._at(1)

    def crop(
        self,
        box: Box,
        size: tuple[int, int],
        resample: Image.Resampling,
        *,
        flip: bool = False,
        reduce: bool = True,
    ) -> NDArray[np.uint8]:
        """The pixels in `box`, and none around it, resized to `size` (height, width), antialiased: (height, width, C).

        With `flip`, left and right are swapped. With `reduce`, a JPEG is decoded at a fraction of its size where that
        keeps the quality. Raises DecodeError.
        """
        check_pixels((size[1], size[0]), self._max_pixels)  # a hair-thin image may grow without bound
        factor = self._factor(box, size) if reduce and resample != Image.Resampling.NEAREST else 1
        left, top, width, height = (side / factor for side in box)
        return resize(self._at(factor), (left, top, width, height), size, resample, flip=flip)

    def _factor(self, box: Box, size: tuple[int, int]) -> int:
        """How many times smaller the image may be decoded for this crop."""
        if not isinstance(self._image, JpegImageFile):
            return 1
        room = min(box[2] / size[1], box[3] / size[0]) / _SPARE
        return next((factor for factor in (8, 4, 2) if factor <= room), 1)

    def _at(self, factor: int) -> NDArray[np.uint8]:
        """The image upright and in the mode asked for, its sides divided by `factor` and rounded up."""
        if factor not in self._decoded:
            pixels = self._fast_jpeg(factor) if isinstance(self._image, JpegImageFile) else None
            self._decoded[factor] = upright(self._by_pillow(factor) if pixels is None else pixels, self._orientation)
        return self._decoded[factor]

    def _fast_jpeg(self, factor: int) -> NDArray[np.uint8] | None:
        """None where Pillow must decide: unusual colours, files with errors."""
        if self.mode not in ("L", self._mode):
            return None
        width, height = (-(-side // factor) for side in self._image.size)
        colors = {"L": "GRAY", "RGB": "RGB"}[self._mode]
        # Where nothing but the end mark is missing, all pixels are there: with the mark there is nothing to warn of.
        for data in (self._data, bytes(self._data) + _JPEG_END):
            try:
                pixels = simplejpeg.decode_jpeg(data, colors, min_height=height, min_width=width, min_factor=factor)
            except ValueError:
                continue
            return pixels if pixels.shape[:2] == (height, width) else None
        return None

    def _by_pillow(self, factor: int) -> NDArray[np.uint8]:
        image = self._image
        if isinstance(image, JpegImageFile):
            image = open_file(bytes(self._data), self._max_pixels)  # which can be decoded at one size only
            image.draft(None, (image.width // factor, image.height // factor))
        try:
            return np.asarray(_convert(image, self._mode))
        except Exception as error:
            raise DecodeError(reason(error)) from None


_OTHERS = {
    "AVIF": r"....ftypavi[fs]",
    "HEIC, as phones write it": r"....ftyp(hei|hev|mif|msf)",
    "JPEG XL": r"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": r"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a PDF": r"%PDF-",
    "SVG": r"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
    "a page of HTML": r"(?i)\s*<(!doctype html|html)",
    "an answer in XML": r"\s*<\?xml",
    "an answer in JSON": r"\s*\{\s*\"",
    "compressed by gzip": r"\x1f\x8b",
    "nothing but zeros": r"\0{32}",
    "a pointer to one in Git LFS: `git lfs pull` brings it": r"version https://git-lfs",
}
"""What often stands where an image should, and how it begins."""
_OTHERS_RE = {what: re.compile(pattern.encode("latin-1"), re.DOTALL) for what, pattern in _OTHERS.items()}


def _is(data: bytes) -> str:
    return next((f", but {what}" for what, pattern in _OTHERS_RE.items() if pattern.match(data[:200])), "")


def open_file(data: bytes, max_pixels: int) -> Image.Image:
    """The image of an encoded file, its size checked; of a JPEG only the header is read. Raises DecodeError."""
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise DecodeError("empty file" if not data else f"not a JPEG, PNG, WebP, GIF, BMP or TIFF file{_is(data)}")
    try:
        image = _opened(reader, data)
        check_pixels(image.size, max_pixels)
        if (claimed := 3 * image.width * image.height) > _MOST_RATIO * len(data):
            raise DecodeError(f"claims {claimed} bytes of pixels in a file of {len(data)}")
        if not isinstance(image, JpegImageFile):
            image.load()  # the orientation may stand behind the pixels
        if isinstance(image, PngImageFile):
            _scale_transparency(image, data[24])
    except DecodeError:
        raise
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DecodeError(reason(error)) from None
    return image


def _opened(reader: type[ImageFile], data: bytes) -> ImageFile:
    """Long texts and profiles in a PNG, at which Pillow gives up, are no part of the picture: they are left out."""
    try:
        return reader(BytesIO(data))
    except ValueError as error:
        if reader is not PngImageFile or "MAX_TEXT" not in str(error):
            raise
        return reader(BytesIO(_without_text(data)))


def _scale_transparency(image: Image.Image, bits: int) -> None:
    """What is transparent has as many bits as the PNG; Pillow's pixels have eight, or sixteen of grey."""
    given: Any = image.info.get("transparency")
    if image.mode == "L" and isinstance(given, int) and bits < 8:
        image.info["transparency"] = given * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(given, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in cast(tuple[int, ...], given))


def _without_text(data: bytes) -> bytes:
    """A PNG without its chunks of text and its colour profile."""
    kept, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[position : position + 12 + length])
        position += 12 + length
    return b"".join(kept)


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raise DecodeError when an image of `size` is larger than allowed."""
    if size[0] * size[1] > max_pixels:
        raise DecodeError(f"{size[0]} x {size[1]} pixels are more than data.max_pixels={max_pixels}")


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DecodeError(f"pixels of shape {pixels.shape} are not (height, width, 1 or 3)")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _numbers(image: TiffImageFile, tag: int) -> tuple[Any, ...]:
    values: Any = image.tag_v2.get(tag, ())
    return values if isinstance(values, tuple) else (values,)


def orientation_of(image: Image.Image) -> int:
    """As EXIF numbers them: 1 is upright."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
        return turn if isinstance(turn, int) else 1  # viewers pass over what is no number
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = _from_16_bit(image)
    if image.mode in ("F", "I"):
        raise ValueError(_NO_RANGE)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(_NO_RANGE)
    grey = ((values + 128) // 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def stored_pixels(image: Image.Image, nodata: float | None = None) -> Stored:
    """The pixels of an opened image; palettes, CMYK and bits become grey or colour. `nodata` is an entry of a palette,
    or else for the caller to look for."""
    image.load()
    turn = orientation_of(image)
    valid = upright(np.asarray(image) != nodata, turn) if image.mode == "P" and nodata is not None else None
    if image.mode == "I" and image.format == "PNG":
        return Stored(upright(np.asarray(image).astype(np.uint16)[:, :, None], turn))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        return Stored(upright(pixels.astype(pixels.dtype.newbyteorder("="))[:, :, None], turn))
    alpha = image.has_transparency_data
    if alpha or image.mode not in ("L", "RGB"):
        grey = image.mode in ("1", "LA", "La")
        image = image.convert(("LA" if grey else "RGBA") if alpha else "L" if grey else "RGB")
    pixels = np.asarray(image)
    return Stored(upright(pixels if pixels.ndim == 3 else pixels[:, :, None], turn), alpha, valid)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turned as EXIF's `orientation` says: (H, W, C), of (H, W) as well."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def reason(error: Exception) -> str:
    """What a decoder's exception says, on one line, for DecodeError."""
    if str(error).isdigit():  # all that Pillow says of a TIFF
        return f"cannot be decoded: its compression or its kind of pixels ({error}) is not read; save it with another"
    return f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"


@contextmanager
def decoding() -> Generator[None]:
    """Whatever a decoder raises within becomes a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DecodeError(reason(error)) from None
