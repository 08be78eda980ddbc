"""Which files are images: by the end of their name, or where that tells nothing, by their first bytes."""

from __future__ import annotations

import re
from collections.abc import Callable

JPEG = (b".jpg", b".jpeg", b".jpe", b".jfif", b".jfi", b".jif", b".pjpeg", b".pjp")
ENCODED = (*JPEG, b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif", b".dcm", b".dicom")
EXTENSIONS = (*ENCODED, b".npy")
"""Of files that are each an image. In a tar, and alone, a .npy is something else: a feature, or many images."""
SHOWN = ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .npy"
"""For messages: the usual ones."""

HEAD = 132
"""Bytes of a file that `by_content` looks at."""
_OTHER = frozenset(
    b"bin bz2 c cache cfg cls cpp css csv db doc docx feather geojson gz h h5 hdf5 htm html ini ipynb js json "
    b"jsonl kml lock log lst m mat md msgpack names npz onnx pdf pickle pkl prj pt pth pty py qml rst "
    b"safetensors sh sha256 shp sqlite tar tex tfw tgz toml tsv txt url vtt xls xlsx xml xz yaml yml zip zst "
    b"arrow parquet mp3 wav flac m4a".split()
)
"""Ends of names that are surely no images, nor what somebody takes for one."""
_UNREAD = frozenset(
    b"heic heif avif jxl jp2 j2k jpx jpf nii mha mhd nrrd mrc svs ndpi czi lif psd exr hdr pfm ppm "
    b"pgm pbm pnm tga ico svg eps dng cr2 cr3 nef arw orf raf rw2 raw apng mp4 avi mov mkv webm mpg mpeg".split()
)
"""Ends of names of pictures, volumes and films that are not read."""


_HIDDEN = re.compile(
    rb"(?i)(?:\A|/)(?:\.|(?:__macosx|@eadir|#recycle|\$recycle\.bin|system volume information|lost\+found)(?:/|\Z))"
)
"""What editors, file managers, systems and servers make beside the images, some of it small copies of them."""


def hidden(path: bytes) -> bool:
    """Whether a file, or a folder on the way to it, is no business of the user's, such as ._photo.jpg."""
    return _HIDDEN.search(path) is not None


def by_name(name: bytes) -> bool | None:
    """Whether a file is an image, as its name tells; None where it does not. `.npy` is left to the caller."""
    lower = name.lower()
    if lower.endswith(ENCODED):
        return True
    _, dot, suffix = lower.rpartition(b"/")[2].rpartition(b".")
    if suffix == b"dicomdir":  # a list of files, which begins like them
        return False
    return False if dot and (suffix in _OTHER or suffix in _UNREAD or suffix == b"npy") else None


def by_content(head: bytes) -> bool:
    """Whether a file begins like one of the kinds that are read."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")):
        return True
    if head[128:132] == b"DICM":
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[:2] == b"BM" and head[6:10] == bytes(4))


def is_image(name: bytes, head: Callable[[], bytes]) -> bool:
    """Whether a file is an image; its first bytes are asked for only where the name does not tell."""
    known = by_name(name)
    return by_content(head()) if known is None else known


def kind(name: bytes) -> tuple[str, bool]:
    """What a file that is no image is called in messages, and whether it may have been meant as one."""
    _, dot, suffix = name.lower().rpartition(b"/")[2].rpartition(b".")
    if not dot:
        return "files that begin like no image", False
    return f".{suffix.decode('utf-8', 'backslashreplace')}", suffix in _UNREAD
