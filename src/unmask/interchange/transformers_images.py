"""`preprocessor_config.json` of a transformers folder: how images are prepared, as fields of DataConfig and a size.

The processors of plain Vision Transformers are known by name, with what they do where the file is silent. Whatever our
evaluation cannot do alike is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from unmask.config.schema import ModelConfig
from unmask.errors import CheckpointError
from unmask.files import parse_json, read_bytes
from unmask.interchange.stored_model import checked_data

FILE = "preprocessor_config.json"

_HALF = [0.5, 0.5, 0.5]
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_SQUARE = {"size": 224, "resample": 2, "image_mean": _HALF, "image_std": _HALF}
_CROPPED = {
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}  # fmt: skip
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _SQUARE,
    "DeiT": {**_SQUARE, "size": 256, "resample": 3, "crop_size": 224, "do_center_crop": True},
    "Bit": _CROPPED,
    "CLIP": _CROPPED,
}
"""Their defaults, but for those that all share."""
_SHARED = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_OF_MODEL = {"vit": "ViT", "vit_mae": "ViT"}
"""The processor where the file does not name it, as the first versions did not; Bit for DINOv2."""
_WITHOUT_EFFECT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_convert_rgb", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square", "_valid_processor_keys",
}  # fmt: skip
_PIL = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box")
_LEVELS = {"uint8": 255, "uint16": 65535}


def read_preparation(folder: Path, model_type: str, channels: int) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Fields of DataConfig, and the (height, width) that images are brought to; nothing where there is no such file.

    Raises CheckpointError naming everything in the file that our evaluation does not do.
    """
    path = folder / FILE
    if not path.exists():
        return {}, None
    told = parse_json(path, read_bytes(path))
    kind = str(
        told.get("image_processor_type") or told.get("feature_extractor_type") or _OF_MODEL.get(model_type, "Bit")
    )
    short = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if short not in _PROCESSORS:
        raise _refusal(path, [kind])
    settings: dict[str, Any] = (
        _SHARED | _PROCESSORS[short] | {name: value for name, value in told.items() if value is not None}
    )
    problems = [
        f"{name}={value}"
        for name, value in settings.items()
        if value and name not in _SHARED.keys() | _CROPPED.keys() | _WITHOUT_EFFECT
    ]
    problems += [] if settings["do_resize"] is True else [f"do_resize={settings['do_resize']}"]
    if settings["resample"] not in [_PIL.index(name) for name in _INTERPOLATIONS]:
        number = settings["resample"]
        known = isinstance(number, int) and 0 <= number < len(_PIL)
        problems.append(f"resample={number}" + (f" ({_PIL[number]})" if known else ""))
    dtype = _dtype(settings)
    problems += [] if dtype else [f"rescale_factor={settings['rescale_factor']}"]
    fit = _fit(settings, squash=short in ("ViT", "DeiT"))
    if fit is None:
        names = ("size", "do_center_crop", "crop_size")
        problems.append(" with ".join(f"{name}={settings[name]}" for name in names if name in settings))
    if problems or fit is None:
        raise _refusal(path, problems)
    data: dict[str, Any] = {"interpolation": _PIL[settings["resample"]], "dtype": dtype, **fit[0]}
    for ours, theirs, without in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        values = settings[theirs] if settings["do_normalize"] else without
        data[ours] = values if isinstance(values, list) else [values] * channels
        if len(data[ours]) != channels:
            raise CheckpointError(f"{path} has {len(data[ours])} values of {theirs} for {channels} channels")
    return checked_data(path, data), fit[1]


def preparation_json(model: ModelConfig, data: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What to write for `data`, fields of DataConfig (None: nothing), and what of it cannot be said, for a message."""
    needed = ("mean", "std", "interpolation", "eval_crop")
    if missing := [f"data.{name}" for name in needed if name not in data]:
        return None, f"the source does not tell {', '.join(missing)}"
    height, width = model.image_size
    squash = data.get("eval_fit") == "squash"
    if height != width and not squash:
        return None, f"images of {height}x{width} that keep their proportions (data.eval_fit=crop) are known to none"
    resized = [round(side / data["eval_crop"]) for side in model.image_size]
    cropped = resized != [height, width] or not squash
    dtype = data.get("dtype", "uint8")
    processor: dict[str, Any] = {
        "image_processor_type": ("DeiT" if cropped else "ViT") + "ImageProcessor" if squash else "BitImageProcessor",
        "do_resize": True,
        "size": {"height": resized[0], "width": resized[1]} if squash else {"shortest_edge": resized[0]},
        "resample": _PIL.index(data["interpolation"]),
        "do_center_crop": cropped,
        "do_rescale": dtype in _LEVELS,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
        "do_convert_rgb": model.channels == 3 and dtype == "uint8",
    }
    processor |= {"crop_size": {"height": height, "width": width}} if cropped else {}
    processor |= {"rescale_factor": 1 / _LEVELS[dtype]} if dtype in _LEVELS else {}
    if dtype != "uint8" or model.channels not in (1, 3):
        return processor, f"processors resize 8-bit images of 1 or 3 channels, not {dtype} of {model.channels}"
    return processor, ""


def _dtype(settings: Mapping[str, Any]) -> str | None:
    """What pixels are kept in, so that `mean` and `std` are of the values that they are given for."""
    if not settings["do_rescale"]:
        return "float32"
    factor = settings["rescale_factor"]
    close = [
        d for d, most in _LEVELS.items() if isinstance(factor, float) and math.isclose(factor * most, 1, rel_tol=1e-6)
    ]
    return close[0] if close else None


def _fit(settings: Mapping[str, Any], *, squash: bool) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Of DataConfig eval_fit and eval_crop, and the size images come out with; None if we have no such way.

    squash: whether a size that is one number, as in old files, is that of both sides.
    """
    size, crop = settings["size"], _sides(settings.get("crop_size")) if settings["do_center_crop"] else None
    if settings["do_center_crop"] and crop is None:
        return None
    if isinstance(size, int) and not squash:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        edge = size["shortest_edge"]
        if crop is None or crop[0] != crop[1] or not _is_length(edge):
            return None
        return _cut("crop", (edge, edge), crop)
    sides = _sides(size)
    return None if sides is None else _cut("squash", sides, crop or sides)


def _cut(fit: str, resized: tuple[int, int], crop: tuple[int, int]) -> tuple[dict[str, Any], tuple[int, int]] | None:
    share = crop[0] / resized[0]
    if share > 1 or tuple(round(side / share) for side in crop) != resized:
        return None  # padded, or one side cut more than the other
    return {"eval_fit": fit, "eval_crop": share}, crop


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width, in any of the ways they were written."""
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        size = [size["height"], size["width"]]
    sides = cast("list[Any]", size if isinstance(size, list) else [size, size])
    if len(sides) != 2 or not all(map(_is_length, sides)):
        return None
    return sides[0], sides[1]


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refusal(path: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} has {', '.join(problems)}, which our evaluation does not do; without this file, "
        "data.mean, data.std, data.eval_crop and data.eval_fit tell how images are prepared"
    )
