"""State dicts of Vision Transformers in the names that timm, the official repositories and we share, to our tensors.

What differs from one to the other is in the tables here. Everything that a file holds is placed, known by name not to
belong to the network and named in a log line, or refused.
"""

from __future__ import annotations

import logging
import re

import numpy as np

from unmask.config.schema import ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.interchange.naming import listed, misplaced, unfitting
from unmask.interchange.stored_model import checked_model, fields_from_shapes
from unmask.models.parameters import Shapes
from unmask.objectives.base import Objective
from unmask.objectives.classify import Classification, ClassifySection
from unmask.objectives.encoder import EncoderAlone, EncoderSection
from unmask.objectives.linear_probe import without_norm
from unmask.objectives.mae import MaeSection, MaskedAutoencoding

log = logging.getLogger("unmask")

PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.", "backbone.", "encoder.", "base_encoder.")
"""Of wrappers: data parallelism, torch.compile, Lightning, transformers' TimmWrapper, DINO, MoCo."""

TRAINING = {
    "the projection heads of DINO": r"(head|dino_head|ibot_head)\.(mlp\.[0-9]+\.(weight|bias)|last_layer\..+)",
    "the momentum encoder and the heads of MoCo-v3": (
        r"(momentum_encoder|predictor)\..+"
        r"|base_encoder\.head\.[0-9]+\.(weight|bias|running_mean|running_var|num_batches_tracked)"
    ),
}
"""What pretraining has beside the network that it is for."""
_MASK_TOKEN = re.compile(r"mask_token|masked_embed")
"""In a file without decoder: of the encoder that masked tokens were given to (DINOv2, iBOT)."""

_RENAMED = [
    (re.compile(r"blocks\.[0-9]+\.([0-9]+)\.(.+)"), r"blocks.\1.\2"),  # DINOv2's chunks; blocks are numbered through
    (re.compile(r"(blocks\.[0-9]+)\.gamma_([12])"), r"\1.ls\2.gamma"),  # DeiT III
    (re.compile(r"register_tokens"), "reg_token"),  # DINOv2
    (re.compile(r"(blocks\.[0-9]+\.mlp)\.w12\.(.+)"), r"\1.fc1.\2"),  # DINOv2 ViT-g
    (re.compile(r"(blocks\.[0-9]+\.mlp)\.w3\.(.+)"), r"\1.fc2.\2"),
]
_GATE = re.compile(r"(blocks\.[0-9]+\.mlp)\.fc1_g\.(weight|bias)")
"""timm's SwiGLU; the value's projection is fc1_x."""
_PROBE = {"head.0.running_mean", "head.0.running_var", "head.1.weight", "head.1.bias"}
"""The official linear probe: BatchNorm without affine, then the head."""


_TELLING = ("patch_embed.proj.weight", "reg_token", "blocks.0.mlp.fc1.weight", "decoder_embed.weight", "head.weight")
"""What most fields of a model follow from."""
_ANCHORS = ("patch_embed.proj.weight", "patch_embed.stem.0.conv1.weight")
"""Every Vision Transformer has one of them, so they show which prefixes are a wrapper's."""


def from_state_dict(source: str, tensors: Tensors, taken: str = "", patches: int | None = None) -> Tensors:
    """Our weights from `tensors`, wrappers and heads of pretraining taken off; a log line names them.

    taken: what of the file `tensors` are, for that line. patches: how many the position embedding is for, where known;
    otherwise a square number is looked for, with a row for cls if that can be.
    Raises CheckpointError naming what has no place, is missing, or has another shape.
    """
    notes = [taken] if taken else []
    weights = _placed(source, _unwrapped(source, tensors, notes), patches)
    check(source, weights)
    if notes:
        log.warning("%s: %s", source, "; ".join(notes))
    return weights


def check(source: str, weights: Tensors) -> None:
    """Raise CheckpointError naming every tensor that our model does not have, that is missing, or of another shape."""
    check_shapes(source, weights, _objective(source, weights).shapes())


def check_shapes(source: str, weights: Tensors, expected: Shapes) -> None:
    """Raise CheckpointError naming every tensor that is not expected, that is missing, or of another shape."""
    if unknown := weights.keys() - expected.keys():
        raise misplaced(source, unknown)
    if missing := expected.keys() - weights.keys():
        raise CheckpointError(f"{source} holds no whole Vision Transformer: {listed(missing)} is missing")
    if wrong := [
        f"{name} is {list(tensor.shape)}, not {list(expected[name])}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name]
    ]:
        raise CheckpointError(f"{source} has tensors that do not fit together: {listed(wrong)}")


def _objective(source: str, weights: Tensors) -> Objective:
    """The objective whose network has such tensors."""
    fields = fields_from_shapes(weights) | {"heads": 1, "decoder_heads": 1}  # no shape follows from heads
    positions = weights["pos_embed"].shape if "pos_embed" in weights else ()
    patches = max(1, positions[1] - int("cls_token" in weights)) if len(positions) == 3 else 1
    patch_size = fields.get("patch_size", ModelConfig().patch_size)
    try:
        model = checked_model(source, fields | {"image_size": (patch_size, patch_size * patches)})
    except CheckpointError as error:
        shapes = [f"{name} is {list(weights[name].shape)}" for name in _TELLING if name in weights]
        raise CheckpointError(f"{error}; {', '.join(shapes)}") from error
    if any(name.startswith("decoder_") for name in weights):
        return MaskedAutoencoding(model, MaeSection())
    if any(name.startswith("head.") for name in weights):
        return Classification(model.model_copy(update={"num_classes": model.num_classes or 2}), ClassifySection())
    return EncoderAlone(model, EncoderSection(fc_norm="fc_norm.weight" in weights))


def _unwrapped(source: str, tensors: Tensors, notes: list[str]) -> Tensors:
    taken_off = ""
    while True:
        for what, pattern in TRAINING.items():
            kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(pattern, name)}
            if kept and len(kept) < len(tensors):
                notes.append(f"{what} are left out ({len(tensors) - len(kept)} tensors)")
                tensors = kept
        telling = [name for name in tensors if name.endswith(_ANCHORS)] or list(tensors)
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in telling)), None)
        if prefix is None or not tensors:
            break
        if twice := {name for name in tensors if prefix + name in tensors}:
            raise CheckpointError(f"{source} has tensors both with and without {prefix}: {listed(twice)}")
        taken_off += prefix
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if taken_off:
        notes.append(f"{taken_off} is taken off the names")
    if not any(name.startswith("decoder_") for name in tensors):
        for name in [name for name in tensors if _MASK_TOKEN.fullmatch(name)]:
            notes.append(f"{name}, which only pretraining needs, is left out")
            tensors = {other: tensor for other, tensor in tensors.items() if other != name}
    return tensors


def _placed(source: str, tensors: Tensors, patches: int | None) -> Tensors:
    weights: Tensors = {}
    for theirs, tensor in tensors.items():
        name = theirs
        for pattern, ours in _RENAMED:
            name = pattern.sub(ours, name) if pattern.fullmatch(name) else name
        if name in weights:
            raise CheckpointError(f"{source} has {name} twice, once as {theirs}")
        weights[name] = tensor
    try:
        for match in filter(None, map(_GATE.fullmatch, list(weights))):
            value = weights.get(f"{match[1]}.fc1_x.{match[2]}")
            if value is None or not value.ndim or value.shape != weights[match[0]].shape:
                raise misplaced(source, [match[0]])
            del weights[f"{match[1]}.fc1_x.{match[2]}"]
            weights[f"{match[1]}.fc1.{match[2]}"] = np.concatenate([weights.pop(match[0]), value])
        if weights.keys() >= _PROBE:
            weights = _without_probe_norm(weights)
        if "norm_pre.weight" in weights and "patch_embed.proj.weight" in weights:  # CLIP has no bias before its norm
            bias = np.zeros(len(weights["patch_embed.proj.weight"]), np.float32)
            weights.setdefault("patch_embed.proj.bias", bias)
        return _with_our_positions(weights, patches)
    except (TypeError, ValueError, LookupError) as error:
        raise unfitting(source, {name: t for name, t in weights.items() if "blocks" not in name}) from error


def _without_probe_norm(weights: Tensors) -> Tensors:
    head = {name.replace("head.1.", "head."): weights[name] for name in ("head.1.weight", "head.1.bias")}
    rest = {name: tensor for name, tensor in weights.items() if name not in _PROBE | {"head.0.num_batches_tracked"}}
    return without_norm(rest | head, weights["head.0.running_mean"], weights["head.0.running_var"])


def _with_our_positions(weights: Tensors, patches: int | None) -> Tensors:
    """Position embeddings of cls and patches alone: a row of zeros for cls where it has none, those of registers added
    to them."""
    pos_embed, registers = weights.get("pos_embed"), weights.get("reg_token")
    if pos_embed is None or pos_embed.ndim != 3:
        return weights
    rows, cls = pos_embed.shape[1], int("cls_token" in weights)
    count = registers.shape[1] if registers is not None and registers.ndim == 3 else 0
    prefixes = [cls, 0, cls + count]
    fitting = [prefix for prefix in prefixes if _fits(rows - prefix, patches)]
    prefix = fitting[0] if fitting else cls
    if prefix < cls:
        pos_embed = np.concatenate([np.zeros_like(pos_embed[:, :1]), pos_embed], axis=1)
    elif prefix > cls and registers is not None:
        first, of_registers, rest = np.split(pos_embed, [cls, prefix], axis=1)
        pos_embed = np.concatenate([first, rest], axis=1)
        weights["reg_token"] = registers + of_registers
    weights["pos_embed"] = pos_embed
    return weights


def _fits(rows: int, patches: int | None) -> bool:
    return rows > 0 and (int(rows**0.5 + 0.5) ** 2 == rows if patches is None else rows == patches)
