"""What the files of official repositories tell beside their tensors: heads, preparation of images, masking.

A file is known by the name under which it was published, by the arguments of its training, or by tensors that only one
repository has. The last tell the heads alone: how others who trained with that code prepared images, they do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD
from unmask.interchange.stored_model import checked_data, published_heads

_IMAGENET: dict[str, Any] = {
    "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "eval_crop": 224 / 256, "eval_fit": "crop", "interpolation": "bicubic",
    "dtype": "uint8",
}  # fmt: skip


class Repository(NamedTuple):
    files: str
    """Names of the files it published; a regular expression."""
    heads: Mapping[int, int]
    """By width."""
    arguments: frozenset[str] = frozenset()
    """Of its training, which no other repository here has."""
    tensors: str = r"(?!)"
    """Tensors as no other repository here has them; a regular expression."""
    data: Mapping[str, Any] = _IMAGENET


REPOSITORIES = {
    "MAE": Repository(
        r"mae_(pretrain|visualize|finetuned|linprobe)_vit_(base|large|huge).*\.pth",
        {768: 12, 1024: 16, 1280: 16},
        frozenset({"norm_pix_loss", "nb_classes"}),
        r"decoder_embed\.weight",
    ),
    "DINO": Repository(
        r"dino_(deitsmall|vitbase)(8|16)_.*\.pth",
        {192: 3, 384: 6, 768: 12},
        frozenset({"teacher_temp", "out_dim"}),
        r"(.+\.)?head\.(mlp|last_layer)\..+",
    ),
    "DINOv2": Repository(
        r"dinov2_vit[sblg]14_(reg4_)?pretrain.*\.pth",
        {384: 6, 768: 12, 1024: 16, 1536: 24},
        tensors=r"(.+\.)?(register_tokens|dino_head\..+|ibot_head\..+|blocks\.[0-9]+\.[0-9]+\..+)",
    ),
    "DeiT": Repository(r"deit_(tiny|small|base)_.*\.pth", {192: 3, 384: 6, 768: 12}, frozenset({"distillation_type"})),
    "DeiT III": Repository(
        r"deit_3_(small|medium|base|large|huge)_.*\.pth",
        {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16},
        tensors=r"(.+\.)?blocks\.[0-9]+\.gamma_1",
        data={**_IMAGENET, "eval_crop": 1.0},
    ),
    "MoCo-v3": Repository(
        r"(linear-)?vit-[sb]-[0-9]+ep\.pth(\.tar)?",
        {384: 12, 768: 12},
        tensors=r"(module\.)?base_encoder\..+",
        data={**_IMAGENET, "interpolation": "bilinear"},
    ),
}


def told(path: Path, names: Iterable[str], content: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of `names` tells, with `content` beside them and `fields` seen in their shapes: `model`, `data` and
    `objective` of a StoredModel. Raises CheckpointError for arguments that are none."""
    arguments = content.get("args") if isinstance(content, dict) else None
    arguments = arguments if isinstance(arguments, dict) else {}
    names = list(names)
    repositories = REPOSITORIES.values()
    stated = next((r for r in repositories if re.fullmatch(r.files, path.name) or r.arguments & arguments.keys()), None)
    known = stated or next((r for r in repositories if any(re.fullmatch(r.tensors, name) for name in names)), None)
    heads = published_heads(fields)
    if known and fields["width"] in known.heads:
        heads["heads"] = known.heads[fields["width"]]
    data = dict(stated.data) if stated else {}
    if stated is REPOSITORIES["MAE"] and "num_classes" in fields and min(fields.get("image_size", (0,))) > 224:
        data["eval_crop"] = 1.0  # as its code has it
    if stated and "eval_crop_ratio" in arguments:
        data["eval_crop"] = arguments["eval_crop_ratio"]
    if fields["channels"] != 3:
        data = {}
    return {
        "model": heads,
        "data": checked_data(path, data),
        "objective": _masking(path, arguments) if "decoder_width" in fields else {},
    }


def _masking(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    objective: dict[str, Any] = {}
    if isinstance(normalised := arguments.get("norm_pix_loss"), bool):
        objective["norm_pix_loss"] = normalised
    if isinstance(ratio := arguments.get("mask_ratio"), float) and 0 < ratio < 1:
        objective["mask_ratio"] = ratio
    if match := re.fullmatch(r"mae_(visualize_vit_.+|pretrain_vit_.+_full)\.pth", path.name):
        objective = {"mask_ratio": 0.75, "norm_pix_loss": match[1].startswith("pretrain")} | objective
    return objective
