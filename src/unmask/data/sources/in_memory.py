"""Images given one by one: files by path, and objects that hold an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from unmask.data.batch import FULL_RANGE
from unmask.data.decode.picture import reason, stored_pixels
from unmask.data.sources.base import Source, printable
from unmask.errors import DataError

FORMS = "a path, the bytes of a file, a PIL image, an array (H, W) or (H, W, C), a torch tensor (H, W) or (C, H, W)"
"""What one image may be, for messages."""
_SAMPLED = 16
"""Images whose content enters a fingerprint."""


class InMemorySource:
    """Single images in the order given, without labels."""

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, images: Iterable[Any], *, key: str, dtype: str) -> None:
        """`images`: each in a form that `stored_image` takes; files are read when their turn comes.

        `key` names them in messages; `dtype` is `data.dtype` of the run. Raises DataError where an image is none of
        these forms, its shape is not clear, or there are no images.
        """
        self._images: list[Path | bytes | NDArray[Any]] = []
        for number, image in enumerate(images):
            if not isinstance(image, str | Path):
                self._images.append(stored_image(image, f"{key}[{number}]", dtype))
            elif Path(image).is_file():
                self._images.append(Path(image))
            else:
                alone = ", and a folder is given alone" if Path(image).is_dir() else ""
                raise DataError(f"{printable(str(image))} is not a file{alone}")
        if not self._images:
            raise DataError(f"{key}: no images were given")

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes | NDArray[Any]:
        image = self._images[index]
        return _read(image) if isinstance(image, Path) else image

    def name(self, index: int) -> str:
        image = self._images[index]
        return str(image) if isinstance(image, Path) else f"image {index}"

    def place(self, index: int) -> str | None:
        image = self._images[index]
        return str(image.absolute()) if isinstance(image, Path) else None

    def fingerprint(self) -> str:
        """SHA-256 over the names of all images and the content of a few."""
        digest = hashlib.sha256("\0".join(self.name(i) for i in range(len(self))).encode("utf-8", "replace"))
        digest.update(sampled_content(self))
        return digest.hexdigest()


def stored_image(image: Any, what: str, dtype: str) -> bytes | NDArray[Any]:
    """One image as a source gives it: an encoded file, or pixels (H, W, C).

    `image` is one of:
    - a path, or the bytes of a file;
    - a PIL image, which is treated as its file is (palette, transparency, 16 bits, EXIF orientation);
    - an array (H, W) or (H, W, C), taken as it is;
    - a torch tensor (H, W) or (C, H, W): as it is, but for floating values in a run of `dtype` uint8 or uint16. These
      must be 0 to 1, as torchvision's `ToTensor` makes them, and are multiplied by 255 or 65535 and rounded.

    Raises DataError, with `what` for the image's name, where it is something else or its shape is not clear.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image, what)
    pixels = pixels_of(image, what, dtype)
    if pixels is None:
        raise DataError(f"{what} is a {type(image).__name__}, which is no image; give {FORMS}")
    if pixels.ndim == 4:
        raise DataError(f"{what} holds several images, of shape {tuple(image.shape)}; give one image here")
    return pixels


def pixels_of(images: Any, what: str, dtype: str) -> NDArray[Any] | None:
    """(H, W, C) of one image or (N, H, W, C) of several; None where `images` is neither an array nor a torch tensor.

    Values as in `stored_image`. Raises DataError where they are no pixels or it is not clear which axis is which.
    """
    tensor = hasattr(images, "detach")  # so that torch, which may not be there, is not imported
    if tensor:
        values = images.detach().cpu()
        pixels: NDArray[Any] = (values.float() if values.is_floating_point() else values).numpy()
        pixels = np.moveaxis(pixels, -3, -1) if pixels.ndim > 2 else pixels
    elif isinstance(images, np.ndarray):
        pixels = images
    else:
        return None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (3, 4) or not pixels.size or not _clear(pixels):
        forms, turn, grey = (
            ("(H, W), (C, H, W) or (N, C, H, W)", "(H, W, C) with .permute(2, 0, 1)", "(N, 1, H, W)")
            if tensor
            else ("(H, W), (H, W, C) or (N, H, W, C)", "(C, H, W) with .transpose(1, 2, 0)", "(N, H, W, 1)")
        )
        raise DataError(
            f"{what} is {images.dtype} of shape {tuple(images.shape)}, which is not clearly pixels {forms}; "
            f"turn {turn}, and give several grey images as {grey}"
        )
    return _whole(pixels, what, dtype) if tensor and pixels.dtype.kind == "f" and dtype != "float32" else pixels


def sampled_content(source: Source) -> bytes:
    """SHA-256 over what is stored of up to 16 images, spread evenly over the source."""
    digest = hashlib.sha256()
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(np.int64)).tolist():
        try:
            image = source.read(index)
        except DataError:  # found and counted when its turn comes
            image = b""
        if isinstance(image, np.ndarray):
            digest.update(f"{image.shape} {image.dtype}".encode())
            image = np.ascontiguousarray(image).tobytes()
        digest.update(hashlib.sha256(image).digest())
    return digest.digest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _clear(pixels: NDArray[Any]) -> bool:
    """Whether the last axis can only be the channels: there are fewer than rows and than columns."""
    height, width, channels = pixels.shape[-3:]
    return channels == 1 or channels < min(height, width)


def _whole(pixels: NDArray[Any], what: str, dtype: str) -> NDArray[Any]:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused
        raise DataError(
            f"{what} has values from {low:.4g} to {high:.4g}, and a floating tensor must have 0 to 1; "
            "give pixels that are not normalised yet, uint8, or set data.dtype=float32"
        )
    return np.rint(pixels * np.float32(FULL_RANGE[dtype])).astype(dtype)


def _from_pillow(image: Image.Image, what: str) -> bytes | NDArray[Any]:
    """The pixels where these are plain grey or colour, else a file, so that it is decoded as files are."""
    try:
        if (file := _undecoded(image)) is not None:
            return file
        stored = stored_pixels(image)
        if stored.pixels.dtype == np.uint8 and not stored.alpha:
            return stored.pixels
        buffer = BytesIO()  # TIFF has all that is left, uncompressed: opacity, 16 bits, 32 bits
        Image.fromarray(stored.pixels[:, :, 0] if stored.pixels.shape[2] == 1 else stored.pixels).save(buffer, "TIFF")
        return buffer.getvalue()
    except Exception as error:  # decoders meet hostile bytes in many ways
        raise DataError(f"{what} {reason(error)}") from None


def _undecoded(image: Image.Image) -> bytes | None:
    """The file of an image that was opened and not touched since, where that holds more than Pillow would decode.

    JPEG can be decoded at a fraction of its size, PNG has 16-bit colour, and TIFF has any bands.
    """
    if not isinstance(image, ImageFile) or not isinstance(image, JpegImageFile | PngImageFile | TiffImageFile):
        return None
    if not image.tile or image.fp is None or image.tell() or image.decoderconfig:  # decoded, or asked for otherwise
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data
