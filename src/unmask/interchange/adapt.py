"""From the weights of a pretrained model to those a classifier takes over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.interchange.stored_model import fields_from_shapes
from unmask.models.parameters import encoder_shapes, norm_shapes

_MUST_AGREE = ("channels", "width", "depth", "heads", "mlp_ratio")


def adapt_encoder(
    weights: Tensors, model: ModelConfig, *, source: str, known: Mapping[str, Any] | None = None
) -> Tensors:
    """The encoder in `weights`, for a classifier of the shape `model`.

    Dropped: decoder, mask token, any head; for model.pool=mean also `norm`, in whose place `fc_norm` starts fresh, as
    in the official code. The position embedding is interpolated (bicubic, 2-D) when the grid of patches differs, the
    patch projection resampled when their size does.

    source: where the weights are from, for messages. known: fields of ModelConfig told by the source; the number of
    heads and the grid of an image that is not square cannot be seen in the weights.
    Raises CheckpointError listing every difference.
    """
    fields = fields_from_shapes(weights) | dict(known or {})
    problems = [
        f"{name} is {fields[name]} there and {getattr(model, name)} here"
        for name in _MUST_AGREE
        if name in fields and not _agree(name, fields[name], model)
    ]
    if problems:
        raise _misfit(source, problems)
    expected = {
        name: shape
        for name, shape in (encoder_shapes(model) | norm_shapes("norm", model.width)).items()
        if not (model.pool == "mean" and name.startswith("norm."))
    }
    encoder = {name: weights[name] for name in expected if name in weights}
    if "pos_embed" in encoder:
        grid = _grid(encoder["pos_embed"], fields, model)
        if grid is None:
            raise _misfit(source, ["the grid of its position embedding is neither square nor told"])
        encoder["pos_embed"] = interpolate_position_embedding(encoder["pos_embed"], grid, model.grid)
    if "patch_embed.proj.weight" in encoder:
        encoder["patch_embed.proj.weight"] = resample_patch_projection(
            encoder["patch_embed.proj.weight"], model.patch_size
        )
    problems = [f"{name} is missing" for name in expected.keys() - encoder.keys()]
    problems += [
        f"{name} is {list(tensor.shape)} there and {list(expected[name])} here"
        for name, tensor in encoder.items()
        if tensor.shape != expected[name]
    ]
    if problems:
        raise _misfit(source, sorted(problems))
    return encoder


def interpolate_position_embedding(
    pos_embed: NDArray[Any], old: tuple[int, int], new: tuple[int, int]
) -> NDArray[np.float32]:
    """(1, 1 + old[0] * old[1], D) -> (1, 1 + new[0] * new[1], D), bicubic; the cls token's row is kept.

    As torch.nn.functional.interpolate(mode="bicubic", align_corners=False), which the official code uses.
    """
    if old == new:
        return pos_embed
    cls_1D, patches_LD = pos_embed[0, :1], pos_embed[0, 1:]
    patches_HWD = patches_LD.reshape(*old, -1).astype(np.float64)
    down, across = (_bicubic(old_size, new_size) for old_size, new_size in zip(old, new, strict=True))
    resized_HWD = np.einsum("yh,xw,hwd->yxd", down, across, patches_HWD, optimize=True)
    resized_LD = resized_HWD.reshape(-1, pos_embed.shape[-1]).astype(np.float32)
    return np.concatenate([cls_1D, resized_LD])[None]


def resample_patch_projection(weight: NDArray[Any], patch_size: int) -> NDArray[np.float32]:
    """(D, C, p, p) -> (D, C, patch_size, patch_size), so that a patch that is resized gives the token it gave before.

    The pseudo-inverse of the (bicubic) resize; exact for larger patches, least squares for smaller ones (FlexiViT,
    Beyer et al. 2023, section 3.4).
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    resize = _bicubic(old, patch_size)
    inverse = np.linalg.pinv(resize)  # (old, new); of the resize in two dimensions it is the Kronecker product
    return np.einsum("hy,wx,dchw->dcyx", inverse, inverse, weight.astype(np.float64), optimize=True).astype(np.float32)


def _bicubic(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): how much of each old sample is in each new one. Keys' kernel, a = -0.75; borders repeat."""
    a = -0.75
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - tap)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            matrix[row, min(max(tap, 0), old - 1)] += near if x <= 1 else far
    return matrix


def _grid(pos_embed: NDArray[Any], fields: Mapping[str, Any], model: ModelConfig) -> tuple[int, int] | None:
    """Rows and columns of a position embedding: as told, else square, else those of the model if it has as many."""
    patches = pos_embed.shape[1] - 1
    if "image_size" in fields:
        height, width = fields["image_size"]
        patch_size = fields.get("patch_size", model.patch_size)
        told = height // patch_size, width // patch_size
        return told if math.prod(told) == patches else None
    return model.grid if patches == model.num_patches else None


def _agree(name: str, there: Any, model: ModelConfig) -> bool:
    here = getattr(model, name)
    # A ratio read off the shapes may differ from the one that was set, and give as many hidden units.
    return int(model.width * there) == int(model.width * here) if name == "mlp_ratio" else there == here


def _misfit(source: str, problems: list[str]) -> CheckpointError:
    return CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")
