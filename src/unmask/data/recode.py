"""An image as a pack stores it: as it is, or smaller."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unmask.data.decode import DecodeError, Picture

_GREY = ("1", "L", "LA")
_DEEP = ("I;16", "I;16B", "I;16L", "I")
"""Grey of 16 bits; PNG and TIFF come as these."""
_LOSSY = ("JPEG", "WEBP")


def recode(
    data: bytes | NDArray[np.uint8], short_side: int | None, quality: int, *, max_pixels: int
) -> tuple[bytes, str]:
    """The file to store, and its format as Pillow calls it. Raises DecodeError for what cannot be decoded whole.

    Files come back as they are, unless their shorter side exceeds `short_side`: these are decoded as for training
    (upright, transparency over white), resized with antialiased bicubic, and encoded as JPEG or WebP of `quality` where
    they were that, else as PNG, without loss. Grey stays grey, 16-bit grey stays 16-bit. Arrays become PNG.
    """
    if isinstance(data, np.ndarray):
        data = _png(data)
    picture = Picture(data, 3, max_pixels)
    height, width = picture.height, picture.width
    bicubic = Image.Resampling.BICUBIC
    if short_side is None or min(height, width) <= short_side:
        picture.crop((0, 0, width, height), (1, 1), Image.Resampling.BOX)  # the cheapest way to decode all of it
        return data, picture.format
    scale = short_side / min(height, width)
    size = max(short_side, round(height * scale)), max(short_side, round(width * scale))
    if picture.mode in _DEEP:
        return _png(_resized_deep(data, size)), "PNG"
    pixels = picture.crop((0, 0, width, height), size, bicubic, reduce=False)
    if picture.mode in _GREY:
        pixels = pixels[:, :, :1]
    if picture.format not in _LOSSY:
        return _png(pixels), "PNG"
    return _encoded(pixels, picture.format, quality=quality), picture.format


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    channels = pixels.shape[2]
    if pixels.dtype == np.uint8 and channels in (1, 3):
        return _encoded(pixels, "PNG")
    if pixels.dtype == np.uint16 and channels == 1:
        return _encoded(pixels, "PNG")
    raise DecodeError(f"{pixels.dtype} of {channels} channels has no image format; .npy needs no pack")


def _encoded(pixels: NDArray[np.uint8] | NDArray[np.uint16], kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _resized_deep(data: bytes, size: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W, 1). Pillow resizes 16 bits by way of floating point only."""
    try:
        with Image.open(BytesIO(data)) as stored:
            values = Image.fromarray(np.asarray(ImageOps.exif_transpose(stored), np.float32))
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DecodeError(f"cannot be decoded: {error}") from None
    resized = np.asarray(values.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.clip(np.rint(resized), 0, 0xFFFF).astype(np.uint16)[:, :, None]
