"""Painting from the decoder's output: no pixel the model did not see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from unmask.config.schema import ModelConfig
from unmask.data.batch import Batch
from unmask.evaluate.reconstruct import paint, patchify, unpatchify

SIZES = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make() -> tuple[ModelConfig, Batch, np.ndarray]:
    """A model, two smooth images with every second patch masked, and their patches as the loss sees them."""
    model = ModelConfig(image_size=(16, 24), patch_size=4, **SIZES)
    y, x, c = np.meshgrid(np.arange(16), np.arange(24), np.arange(3), indexing="ij")
    images = np.stack([40 + 3 * x + 2 * y + 10 * c + (x % 3), 200 - 4 * x - 3 * y + 5 * (y % 2) + 0 * c]).astype(
        np.uint8
    )
    ids_keep = np.tile(np.arange(0, 24, 2, dtype=np.int32), (2, 1))
    batch = Batch(images, np.arange(2), {"ids_keep": ids_keep, "ids_mask": ids_keep + 1})
    normalized = (patchify(images, 4) / 255 - np.tile(MEAN, 16)) / np.tile(STD, 16)
    order = np.concatenate([ids_keep, ids_keep + 1], 1)[:, :, None]
    return model, batch, np.take_along_axis(normalized, order, 1).astype(np.float32)


def test_patchify_is_row_column_channel_and_unpatchify_inverts_it() -> None:
    model, batch, _ = make()
    patches = patchify(batch.images, 4)
    assert patches.shape == (2, 24, 48)
    np.testing.assert_array_equal(patches[0, 7], batch.images[0, 4:8, 4:8].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, model), batch.images)


def test_a_perfect_prediction_of_pixels_gives_the_image_back() -> None:
    model, batch, patches = make()
    painted = paint(patches, batch, model, False, MEAN, STD)
    np.testing.assert_array_equal(painted.reconstruction, batch.images)
    np.testing.assert_array_equal(painted.pasted, batch.images)
    hidden = np.zeros((2, 24, 1), bool)
    np.put_along_axis(hidden, batch.inputs["ids_mask"][:, :, None], True, 1)
    grey = unpatchify(np.where(hidden, np.uint8(128), patchify(batch.images, 4)), model)
    np.testing.assert_array_equal(painted.masked, grey)
    opposite = unpatchify(np.where(hidden, patchify(batch.images, 4), np.uint8(128)), model)
    np.testing.assert_array_equal(painted.painted, opposite)


def test_normalized_patches_get_brightness_and_contrast_from_the_visible_ones() -> None:
    model, batch, patches = make()
    target = (patches - patches.mean(-1, keepdims=True)) / patches.std(-1, ddof=1, keepdims=True)
    painted = paint(target, batch, model, True, MEAN, STD)
    assert np.abs(painted.reconstruction.astype(int) - batch.images).mean() < 12, "smooth images are nearly recovered"
    visible = painted.masked != 128
    np.testing.assert_array_equal(painted.pasted[visible], batch.images[visible])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_masked_pixels_never_enter(norm_pix_loss: bool) -> None:
    model, batch, patches = make()
    painted = paint(patches, batch, model, norm_pix_loss, MEAN, STD)
    hidden = patchify(batch.images, 4).copy()
    np.put_along_axis(hidden, batch.inputs["ids_mask"][:, :, None], np.uint8(0), 1)
    blind = paint(
        patches, dataclasses.replace(batch, images=unpatchify(hidden, model)), model, norm_pix_loss, MEAN, STD
    )
    np.testing.assert_array_equal(blind.reconstruction, painted.reconstruction)
    np.testing.assert_array_equal(blind.pasted, painted.pasted)


def test_what_was_filled_in_gives_neither_brightness_nor_contrast() -> None:
    """Half of each image is no data: the other half is painted as if its neighbours were all there is."""
    model, batch, patches = make()
    target = (patches - patches.mean(-1, keepdims=True)) / patches.std(-1, ddof=1, keepdims=True)
    images, valid = batch.images.copy(), np.ones(batch.images.shape, bool)
    valid[:, :, :10] = False  # two columns of patches, and half of the third
    images[~valid] = 255
    gaps = dataclasses.replace(batch, images=images, inputs={**batch.inputs, "valid_pixels": valid})
    right = np.s_[:, :, 12:]
    painted = paint(target, gaps, model, True, MEAN, STD).reconstruction[right].astype(int)
    believed = paint(target, dataclasses.replace(batch, images=images), model, True, MEAN, STD).reconstruction[right]
    off, off_believed = (np.abs(one.astype(int) - batch.images[right]).mean() for one in (painted, believed))
    assert off < 12
    assert off < off_believed / 1.5
    valid[:] = False
    empty = dataclasses.replace(batch, inputs={**batch.inputs, "valid_pixels": valid})
    paint(target, empty, model, True, MEAN, STD)  # warnings are errors
