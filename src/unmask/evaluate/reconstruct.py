"""What a masked autoencoder paints where it sees nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.data.batch import FULL_RANGE, Batch
from unmask.data.decode.convert import to_dtype

MASK_GREY = 128
_SHOWN_STD = 2
Values = tuple[float, ...] | NDArray[np.float64]


@dataclass(frozen=True)
class Reconstruction:
    """Five versions of the same images, each (B, H, W, C) uint8, made `visible` where they are of another dtype."""

    original: NDArray[np.uint8]
    masked: NDArray[np.uint8]
    """Masked patches grey: all the model saw."""
    reconstruction: NDArray[np.uint8]
    """Every patch as the decoder paints it. The loss never asked for the visible ones, so these come out rough."""
    painted: NDArray[np.uint8]
    """The masked patches from the decoder, the visible ones grey: the opposite of `masked`."""
    pasted: NDArray[np.uint8]
    """The visible patches as they are, the masked ones from the decoder."""

    def rows(self, which: NDArray[np.bool_] | slice) -> Reconstruction:
        """Some of the images."""
        return Reconstruction(*(getattr(self, field.name)[which] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Reconstruction]) -> Reconstruction:
        names = [field.name for field in fields(Reconstruction)]
        return Reconstruction(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def paint(
    prediction_BLP: NDArray[np.float32],
    batch: Batch,
    model: ModelConfig,
    norm_pix_loss: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Reconstruction:
    """Turn the decoder's output (`reconstruction`) into pictures, from visible pixels alone.

    With `norm_pix_loss` the decoder tells the structure of a patch but neither its brightness nor its contrast. Those
    are taken from the visible patches around, weighted by inverse squared distance; the true statistics of a masked
    patch, which the official demo uses, are pixels the model did not see.
    """
    ids_keep, ids_mask = batch.inputs["ids_keep"], batch.inputs["ids_mask"]
    order = np.concatenate([ids_keep, ids_mask], axis=1)[:, :, None]
    prediction = np.empty_like(prediction_BLP)
    np.put_along_axis(prediction, order, prediction_BLP, axis=1)  # into image order

    original = patchify(batch.images, model.patch_size)
    repeat = model.patch_dim // model.channels
    channel_mean, channel_std = np.tile(mean, repeat), np.tile(std, repeat)
    normalized = (original / FULL_RANGE[original.dtype.name] - channel_mean) / channel_std
    if norm_pix_loss:
        valid = batch.inputs.get("valid_pixels")
        is_data = np.ones_like(normalized, bool) if valid is None else patchify(valid, model.patch_size)
        patch_mean, patch_std = _visible_statistics(normalized, is_data, ids_keep, model.grid)
        prediction = prediction * patch_std + patch_mean
    painted = to_dtype((prediction * channel_std + channel_mean) * FULL_RANGE[original.dtype.name], original.dtype)
    original, painted = (visible(pixels, channel_mean, channel_std) for pixels in (original, painted))

    kept = np.zeros((*original.shape[:2], 1), bool)
    np.put_along_axis(kept, ids_keep[:, :, None], True, axis=1)
    versions = (
        original,
        np.where(kept, original, np.uint8(MASK_GREY)),
        painted,
        np.where(kept, np.uint8(MASK_GREY), painted),
        np.where(kept, original, painted),
    )
    return Reconstruction(*(unpatchify(version, model) for version in versions))


def visible(pixels: NDArray[Any], mean: Values, std: Values) -> NDArray[np.uint8]:
    """Pixels (..., C) to look at: 8-bit ones as they are, others so that black and white are two `std` from `mean`."""
    if pixels.dtype == np.uint8:
        return pixels
    normalized = (pixels / FULL_RANGE[pixels.dtype.name] - np.asarray(mean)) / np.asarray(std)
    return to_dtype(255 * (0.5 + normalized / (2 * _SHOWN_STD)), np.dtype(np.uint8))


def _visible_statistics(
    patches_BLP: NDArray[Any], is_data_BLP: NDArray[np.bool_], ids_keep: NDArray[np.int32], grid: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation (B, L, 1) of each patch: its own where visible, else from the visible ones around.

    Both are of the data: what was filled in says nothing, and a patch that is mostly filled says little.
    """
    kept, is_data = (np.take_along_axis(of, ids_keep[:, :, None], axis=1) for of in (patches_BLP, is_data_BLP))
    count_BK1 = is_data.sum(-1, keepdims=True)
    mean_BK1 = np.where(is_data, kept, 0).sum(-1, keepdims=True) / np.maximum(count_BK1, 1)
    square_BK1 = (np.where(is_data, kept - mean_BK1, 0) ** 2).sum(-1, keepdims=True) / np.maximum(count_BK1 - 1, 1)
    statistics_BK2 = np.concatenate([mean_BK1, np.sqrt(square_BK1)], axis=-1)
    place = np.stack(np.unravel_index(np.arange(grid[0] * grid[1]), grid), axis=-1)
    distance_BLK = ((place[None, :, None] - place[ids_keep][:, None]) ** 2).sum(-1)
    share_B1K = count_BK1.swapaxes(1, 2) / kept.shape[-1] + 1e-12  # all of them may be empty
    weight_BLK = share_B1K / (distance_BLK + 1e-9)  # a visible patch's distance to itself is 0: it keeps its own
    estimate_BL2 = weight_BLK / weight_BLK.sum(-1, keepdims=True) @ statistics_BK2
    return estimate_BL2[..., :1], estimate_BL2[..., 1:]


def patchify(images_BHWC: NDArray[Any], patch_size: int) -> NDArray[Any]:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    return images_BHWC.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(B, -1, p * p * C)


def unpatchify(patches_BLP: NDArray[Any], model: ModelConfig) -> NDArray[Any]:
    """(B, H, W, C): the inverse of `patchify`."""
    (down, across), p = model.grid, model.patch_size
    patches = patches_BLP.reshape(-1, down, across, p, p, model.channels)
    return patches.swapaxes(2, 3).reshape(-1, *model.image_size, model.channels)
