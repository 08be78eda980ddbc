"""Resizing by cykooz.resizer, a Rust library, where it is installed."""

from __future__ import annotations

from threading import local

import cykooz_resizer as cykooz
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PIXEL = {1: cykooz.PixelType.U8, 3: cykooz.PixelType.U8x3}
_FILTER = {
    Image.Resampling.BOX: cykooz.FilterType.box,
    Image.Resampling.BILINEAR: cykooz.FilterType.bilinear,
    Image.Resampling.BICUBIC: cykooz.FilterType.catmull_rom,  # a = -0.5, as Pillow's
    Image.Resampling.LANCZOS: cykooz.FilterType.lanczos3,
}


class _Thread(local):
    def __init__(self) -> None:
        self.resizer = cykooz.Resizer()  # holds buffers, and is not for several threads at once


thread = _Thread()


def by_cykooz(
    pixels: NDArray[np.uint8],
    inside: tuple[float, float, float, float],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> NDArray[np.uint8]:
    """The part of `pixels` (H, W, 1 or 3) `inside` (left, top, right, bottom) as (*size, C), read-only."""
    left, top, right, bottom = inside
    kind = _PIXEL[pixels.shape[2]]
    box = cykooz.CropBox(left, top, right - left, bottom - top)
    options = cykooz.ResizeOptions(cykooz.ResizeAlg.convolution(_FILTER[resample]), use_alpha=False, crop_box=box)
    source = cykooz.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    out = cykooz.ImageData(size[1], size[0], kind)
    thread.resizer.resize(source, out, options)
    return np.frombuffer(out.get_buffer(), np.uint8).reshape(*size, -1)
