"""From the weights of one model to those another starts with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import DataConfig, ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.interchange.stored_model import fields_from_shapes, same_field
from unmask.models.parameters import encoder_shapes, norm_shapes

OF_ARCHITECTURE = (
    "mlp", "qkv_bias", "layer_scale", "norm_eps", "patch_stem", "patch_norm", "pre_norm", "cls_token", "register_tokens"
)  # fmt: skip
"""Fields of ModelConfig that a run takes over from what it starts with, where nothing else is set."""

_MUST_AGREE = ("width", "depth", "heads", "mlp_ratio", *OF_ARCHITECTURE)


def adapt_encoder(
    weights: Tensors,
    model: ModelConfig,
    *,
    source: str,
    known: Mapping[str, Any] | None = None,
    prepared: Mapping[str, Any] | None = None,
    data: DataConfig | None = None,
    fc_norm: bool = False,
) -> Tensors:
    """The encoder in `weights` for a network of the shape `model`, computing what it did as far as that can be.

    Decoder, mask token and any head are left out. With `fc_norm` (a classifier that pools by the mean) `norm` is too:
    in its place `fc_norm` starts fresh, as in the official code. The other way round, `fc_norm` serves as `norm`.
    - Another grid of patches: the position embedding is interpolated (bicubic, 2-D).
    - Another size of patches: their projection is resampled (`resample_patch_projection`).
    - Another number of channels: see `adapt_channels`.
    - Another mean and std: the projection absorbs them, so that the same image gives the same tokens.

    source: where the weights are from, for messages. known: fields of ModelConfig told by the source; the number of
    heads and the grid of an image that is not square cannot be seen in the weights. prepared, data: mean and std there
    and here; without either they are taken for the same.
    Raises CheckpointError listing every difference.
    """
    fields = fields_from_shapes(weights) | dict(known or {})
    problems = [
        f"{name} is {fields[name]} there and {getattr(model, name)} here"
        for name in _MUST_AGREE
        if name in fields and not same_field(name, getattr(model, name), fields[name], model.width)
    ]
    if problems:
        raise _misfit(source, problems)
    if "norm.weight" not in weights and "fc_norm.weight" in weights:
        weights = weights | {f"norm.{kind}": weights[f"fc_norm.{kind}"] for kind in ("weight", "bias")}
    norm = {} if fc_norm else norm_shapes("norm", model.width)
    expected = encoder_shapes(model) | norm
    encoder = {name: weights[name] for name in expected if name in weights}
    if "pos_embed" in encoder:
        grid = _grid(encoder["pos_embed"], fields, model)
        if grid is None:
            raise _misfit(source, ["the grid of its position embedding is neither square nor told"])
        encoder["pos_embed"] = interpolate_position_embedding(encoder["pos_embed"], grid, model.grid)
    if model.patch_stem:
        here = None if data is None else (data.mean, data.std)
        if (there := _pixels(prepared, model.channels)) and here and [*map(tuple, there)] != [*map(tuple, here)]:
            raise _misfit(source, [f"data.mean and data.std are {there} there, and a stem cannot absorb {here} here"])
    elif {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= encoder.keys():
        projection = encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"]
        there, here = _pixels(prepared, projection[0].shape[1]), None if data is None else (data.mean, data.std)
        weight, bias = adapt_channels(*projection, model.channels, there, here)
        encoder["patch_embed.proj.weight"] = resample_patch_projection(weight, model.patch_size)
        encoder["patch_embed.proj.bias"] = bias
    problems = [f"{name} is missing" for name in expected.keys() - encoder.keys()]
    problems += [
        f"{name} is {list(tensor.shape)} there and {list(expected[name])} here"
        for name, tensor in encoder.items()
        if tensor.shape != expected[name]
    ]
    if problems:
        raise _misfit(source, sorted(problems))
    return encoder


def adapt_channels(
    weight: NDArray[Any],
    bias: NDArray[Any],
    channels: int,
    there: tuple[Sequence[float], Sequence[float]] | None,
    here: tuple[Sequence[float], Sequence[float]] | None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A patch projection (D, C, p, p) and its bias (D,), for `channels` that are normalised by `here`, not `there`.

    `there` and `here`: mean and std per channel, of pixels scaled alike. To one channel: a grey image gives the tokens
    of the same image in colour (or in as many bands, all alike). From one channel: so does an image whose channels are
    alike, each having an equal share. Otherwise, such as colour to 12 bands: the channels are repeated in turn, and
    scaled so that their sum has the size it had (timm's rule); means and stds are then taken for the same.
    """
    D, C, *_ = weight.shape
    if channels != C and 1 not in (channels, C):
        turns = np.arange(channels) % C
        return (weight[:, turns] * np.float32(C / channels)).astype(np.float32), bias
    if there is None or here is None:
        there = here = [0.0], [1.0]
    if channels == C and [*map(tuple, there)] == [*map(tuple, here)]:
        return weight, bias
    many = max(C, channels)
    (mean_there, std_there), (mean_here, std_here) = _spread(there, many), _spread(here, many)
    wide = np.broadcast_to(weight, (D, many, *weight.shape[2:])).astype(np.float64)
    wide = wide / many if many > C else wide
    scale, shift = std_here / std_there, (mean_here - mean_there) / std_there
    absorbed = bias + np.einsum("dchw,c->d", wide, shift)
    wide = wide * scale[:, None, None]
    adapted = wide.sum(1, keepdims=True) if channels < many else wide
    return adapted.astype(np.float32), absorbed.astype(np.float32)


def _spread(values: tuple[Sequence[float], Sequence[float]], channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    mean, std = (np.broadcast_to(np.asarray(each, np.float64), (channels,)) for each in values)
    return mean, std


def _pixels(prepared: Mapping[str, Any] | None, channels: int) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std that the source tells, if they are those of its channels."""
    if prepared is None or "mean" not in prepared or "std" not in prepared or len(prepared["mean"]) != channels:
        return None
    return tuple(prepared["mean"]), tuple(prepared["std"])


def interpolate_position_embedding(
    pos_embed: NDArray[Any], old: tuple[int, int], new: tuple[int, int], *, antialias: bool = False
) -> NDArray[np.float32]:
    """(1, 1 + old[0] * old[1], D) -> (1, 1 + new[0] * new[1], D), bicubic; the cls token's row, if any, is kept.

    As torch.nn.functional.interpolate(mode="bicubic", align_corners=False), which the official code uses; `antialias`
    as there (DINOv2 with registers).
    """
    if old == new:
        return pos_embed
    cls_1D, patches_LD = np.split(pos_embed[0], [-old[0] * old[1]])
    patches_HWD = patches_LD.reshape(*old, -1).astype(np.float64)
    matrix = _bicubic_antialiased if antialias else _bicubic
    down, across = (matrix(old_size, new_size) for old_size, new_size in zip(old, new, strict=True))
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
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(tap, 0), old - 1)] += _keys(abs(centre - tap), -0.75)
    return matrix


def _bicubic_antialiased(old: int, new: int) -> NDArray[np.float64]:
    """The same with a = -0.5 and a kernel as wide as a new sample; at the borders the rest of it counts for more."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distances = np.abs(centres[:, None] - np.arange(old)) / scale
    matrix = np.array([[_keys(float(x), -0.5) for x in row] for row in distances])
    return matrix / matrix.sum(1, keepdims=True)


def _keys(x: float, a: float) -> float:
    """The weight of a sample at the distance x >= 0."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def _grid(pos_embed: NDArray[Any], fields: Mapping[str, Any], model: ModelConfig) -> tuple[int, int] | None:
    """Rows and columns of a position embedding: as told, else square, else those of the model if it has as many."""
    patches = pos_embed.shape[1] - int(model.cls_token)
    if "image_size" in fields:
        height, width = fields["image_size"]
        patch_size = fields.get("patch_size", model.patch_size)
        told = height // patch_size, width // patch_size
        return told if math.prod(told) == patches else None
    return model.grid if patches == model.num_patches else None


def _misfit(source: str, problems: list[str]) -> CheckpointError:
    return CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")
