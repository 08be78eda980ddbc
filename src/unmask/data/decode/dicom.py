"""DICOM, read by pydicom (`unmask[dicom]`): what a viewer shows of grey values, or the values themselves.

| run | values |
|---|---|
| uint8, uint16 | as shown: rescaled, then the file's first window or VOI LUT, from black to white; without one from the least to the greatest value; MONOCHROME1 inverted |
| `data.range`, with any dtype | rescaled (of CT: Hounsfield units), then `data.range` in place of the file's window; MONOCHROME1 inverted |
| float32 | rescaled, and nothing else |

Colour (RGB, YBR, palette) becomes RGB. Padding (PixelPaddingValue) is no data. Of several frames `data.frame` is taken;
without it they are the channels, where the run has as many, else refused. Overlays, the patient's orientation and the
aspect of pixels are ignored.
"""  # noqa: E501

from __future__ import annotations

import logging
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.decode.picture import DecodeError, FormError, Stored, check_pixels
from unmask.data.decode.tiff import codec

_MOST_RATIO = 20_000
"""Most bytes of pixels per byte of a file, as of other files."""
_MANY = 16
"""Most frames of `data.max_pixels` pixels, where nothing says how many there should be."""
_GROUPS = (b"\x02\x00", b"\x08\x00")
"""What files without DICOM's mark begin with."""

Range = tuple[float, float]


def is_dicom(data: bytes | NDArray[Any]) -> bool:
    """By its mark, whatever stands before that (it may be TIFF at the same time), or by its first group without one."""
    if isinstance(data, np.ndarray):
        return False
    return data[128:132] == b"DICM" or (data[:2] in _GROUPS and data[3:4] == b"\0")


def read_dicom(
    data: bytes,
    channels: int | None,
    max_pixels: int,
    *,
    dtype: str | None = None,
    value_range: Range | None = None,
    nodata: float | None = None,
    frame: int | None = None,
) -> Stored:
    """The image of a DICOM file, for a run with these `channels`, `dtype`, `data.range`, `data.nodata` and
    `data.frame`; without a dtype 8 bits where the file has no more, else 16. Raises DecodeError, and pydicom's errors.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # DecodeError says what is wrong with a file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that say little of the pixels
        file: Any = _pydicom("filereader").dcmread(BytesIO(data), force=True)
        frames = _frames(file, channels, max_pixels, len(data), frame)
        _check_syntax(file)
        if file.SamplesPerPixel > 1 or file.PhotometricInterpretation == "PALETTE COLOR":
            return Stored(_colour(file, frames[0], dtype))
        if dtype is None:
            dtype = "uint8" if file.BitsAllocated <= 8 else "uint16"
        planes = [_grey(file, number, dtype, value_range, nodata) for number in frames]
    valid = np.stack([valid for _, valid in planes], 2)
    return Stored(np.stack([values for values, _ in planes], 2), valid=None if valid.all() else valid)


def _pydicom(module: str) -> Any:
    return codec(f"pydicom.{module}", "DICOM", "dicom")


def _frames(file: Any, channels: int | None, max_pixels: int, size: int, frame: int | None) -> list[int]:
    """Numbers of the frames to read; the header is checked before that."""
    if not any(key in file for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = getattr(file.get("SOPClassUID"), "name", "DICOM")
        raise DecodeError(f"holds no pixels ({kind})")
    count = int(file.get("NumberOfFrames") or 1)
    check_pixels((file.Columns, file.Rows), max_pixels)
    if frame is not None:
        if not -count <= frame < count:
            raise DecodeError(f"has {count} frames, of which data.frame={frame} is none")
        frames = [frame % count]
    elif count > 1 and (file.SamplesPerPixel > 1 or channels not in (None, count)):
        many = "" if file.SamplesPerPixel > 1 else f", or model.channels={count} for all"
        raise FormError(f"has {count} frames; set data.frame=N, counted from 0, for one of them{many}")
    else:
        frames = list(range(count))
        check_pixels((file.Columns, file.Rows * count), max_pixels * max(_MANY, channels or 0))
    claimed = file.Columns * file.Rows * file.SamplesPerPixel * max(1, file.get("BitsAllocated", 32) // 8) * len(frames)
    if claimed > _MOST_RATIO * size:
        raise DecodeError(f"claims {claimed} bytes of pixels in a file of {size}")
    return frames


def _check_syntax(file: Any) -> None:
    """Raise FormError for a compression that no decoder here reads."""
    if "TransferSyntaxUID" not in file.file_meta:
        implicit, little = file.original_encoding
        uid = _pydicom("uid")
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    syntax = file.file_meta.TransferSyntaxUID
    try:
        known = _pydicom("pixels").get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise FormError(
            f"is DICOM compressed as {syntax.name}, for which pydicom has no decoder; {_install(syntax.name)}, or "
            "decompress it"
        )


def unread() -> list[str]:
    """Of the usual compressions of DICOM files, those that no decoder here reads, each with what to install."""
    uid, names = _pydicom("uid"), ("JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless", "HTJ2KLossless")
    syntaxes = [getattr(uid, name) for name in names]
    missing = [syntax for syntax in syntaxes if not _pydicom("pixels").get_decoder(syntax).is_available]
    return [f"{syntax.name.partition(',')[0].partition(' (')[0]}: {_install(syntax.name)}" for syntax in missing]


def _install(syntax: str) -> str:
    return f"pip install pylibjpeg pylibjpeg-{'openjpeg' if '2000' in syntax else 'libjpeg'}"


def _colour(file: Any, frame: int, dtype: str | None) -> NDArray[Any]:
    """(H, W, 3)."""
    pixels = _pydicom("pixels").pixel_array(file, index=frame)
    if file.PhotometricInterpretation == "PALETTE COLOR":
        pixels = _pydicom("pixels").apply_color_lut(pixels, file)
        if pixels.dtype == np.uint16 and dtype in (None, "uint8"):
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def _grey(
    file: Any, frame: int, dtype: str, value_range: Range | None, nodata: float | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values (H, W) of a frame, and which of them are data."""
    raw = _pydicom("pixels").pixel_array(file, index=frame)
    valid = np.isfinite(raw) & ~_padding(file, raw) if nodata is None else np.isfinite(raw) & (raw != nodata)
    rescaling = _of_frame(file, frame, "PixelValueTransformationSequence")
    values = np.asarray(_pydicom("pixels").apply_modality_lut(raw, rescaling), np.float64)
    if values.size and values.min() == values.max() and raw.min() < raw.max():
        raise DecodeError("its RescaleSlope or lookup table makes one value of all its pixels")
    inverted = file.PhotometricInterpretation == "MONOCHROME1"
    if value_range is not None:
        return (sum(value_range) - values if inverted else values), valid
    if dtype == "float32":
        return values, valid
    shown = np.clip(_shown(_of_frame(file, frame, "FrameVOILUTSequence"), values, valid), 0, 1)
    full = np.iinfo(dtype).max
    return np.rint(full * (1 - shown if inverted else shown)).astype(dtype), valid


def _shown(window: Any, values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """0 is black, 1 is white; values beyond are to be cut off. DICOM PS3.3, C.11.2.1."""
    if "VOILUTSequence" in window:
        table = window.VOILUTSequence[0]
        white = 2.0 ** int(table.LUTDescriptor[2]) - 1
        return _pydicom("pixels").apply_voi(np.rint(values).astype(np.int64), window) / white
    center, width = (_first(window.get(key)) for key in ("WindowCenter", "WindowWidth"))
    function = window.get("VOILUTFunction") or "LINEAR"
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-12):
        inside = values[valid]
        low, high = (inside.min(), inside.max()) if inside.size else (0.0, 1.0)
        return (values - low) / max(high - low, 1e-12)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    return (values - (center - 0.5)) / max(width - 1, 1e-12) + 0.5


def _first(value: Any) -> float | None:
    """Of a value that may be several windows to choose from."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])


def _of_frame(file: Any, frame: int, sequence: str) -> Any:
    """Where the values of a frame stand: in a group of it, in one of all frames, or in the file itself."""
    for groups, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if groups in file and number < len(file[groups].value) and sequence in file[groups].value[number]:
            return file[groups].value[number][sequence].value[0]
    return file


def _padding(file: Any, raw: NDArray[Any]) -> NDArray[np.bool_]:
    if (value := file.get("PixelPaddingValue")) is None or raw.dtype.kind not in "ui":
        return np.zeros(raw.shape, bool)
    limit = file.get("PixelPaddingRangeLimit")
    bounds = [int(np.array(int(each)).astype(raw.dtype)) for each in (value, value if limit is None else limit)]
    return (raw >= min(bounds)) & (raw <= max(bounds))
