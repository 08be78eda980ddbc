"""What is no data counts nothing in the loss of a masked autoencoder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

import engine_cases
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines import create_engine
from unmask.engines.base import Engine
from unmask.evaluate.reconstruct import patchify
from unmask.objectives.base import create_objective

pytest.importorskip("torch", reason="torch is not installed")  # tests/parity holds MindSpore to the same

OBJECTIVES = ("mae", "cross_mae", "hog_mae")


def engine_of(config: Config) -> Engine:
    engine = create_engine(config)
    engine.load(engine_cases.start(config))
    return engine


def with_gaps(batch: Batch, valid: NDArray[np.bool_]) -> Batch:
    return dataclasses.replace(batch, inputs={**batch.inputs, "valid_pixels": valid})


def hidden(batch: Batch, config: Config) -> NDArray[np.bool_]:
    """(B, H, W, C) True in the hidden patches of each image."""
    down, across = config.model.grid
    patches = np.zeros((len(batch), down * across), bool)
    np.put_along_axis(patches, batch.inputs["ids_mask"], True, 1)
    sides = patches.reshape(len(batch), down, across).repeat(config.model.patch_size, 1)
    return np.broadcast_to(sides.repeat(config.model.patch_size, 2)[..., None], batch.images.shape)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_against_the_mean_over_the_data(norm_pix_loss: bool) -> None:
    config = engine_cases.make_config(model={"norm_pix_loss": norm_pix_loss})
    batch, engine = engine_cases.make_batch(config), engine_of(config)
    valid = np.random.default_rng(1).random(batch.images.shape) < 0.7
    valid[0], valid[1, :8] = False, False
    losses = engine.output("losses", with_gaps(batch, valid))

    ids, p = batch.inputs["ids_mask"][..., None], config.model.patch_size
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    target = np.take_along_axis(patchify((batch.images / 255 - mean) / std, p), ids, 1)
    counts = np.take_along_axis(patchify(valid, p), ids, 1)
    for patch, data in zip(target.reshape(-1, target.shape[-1]), counts.reshape(-1, target.shape[-1]), strict=True):
        if norm_pix_loss and data.sum() > 1:
            patch[:] = (patch - patch[data].mean()) / np.sqrt(patch[data].var(ddof=1) + 1e-6)
    painted = engine.output("reconstruction", batch)[:, -ids.shape[1] :]
    expected = [((painted[i] - target[i]) ** 2)[counts[i]].mean() if counts[i].any() else 0 for i in range(len(batch))]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert engine.read(engine.train_step([with_gaps(batch, valid)], {"lr": 0.0}))["loss"] == pytest.approx(
        np.mean(expected), rel=1e-4
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_in_a_hidden_gap_does_not_matter(name: str) -> None:
    config = engine_cases.make_config_of(name)
    batch, engine = engine_cases.make_batch(config, training=False), engine_of(config)
    gap = np.random.default_rng(1).random(batch.images.shape) < 0.01
    gap[:, :, 3:5] = True
    gap &= hidden(batch, config)
    other = dataclasses.replace(batch, images=np.where(gap, 255 - batch.images, batch.images))
    one, two = (engine.output("losses", with_gaps(each, ~gap)) for each in (batch, other))
    np.testing.assert_array_equal(one, two)
    assert (one != engine.output("losses", batch)).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mask_of_all_data_changes_no_more_than_rounding(name: str) -> None:
    config = engine_cases.make_config_of(name)
    batch, engine = engine_cases.make_batch(config), engine_of(config)
    whole = with_gaps(batch, np.ones(batch.images.shape, bool))
    np.testing.assert_allclose(engine.output("losses", whole), engine.output("losses", batch), rtol=1e-5)


def test_accumulation_equals_one_large_batch() -> None:
    config = engine_cases.make_config()
    batch = engine_cases.make_batch(config, 6)
    valid = np.random.default_rng(1).random(batch.images.shape) < 0.7
    valid[0], valid[4:] = False, True
    halves = [
        Batch(batch.images[half], batch.index[half], {name: a[half] for name, a in batch.inputs.items()})
        for half in (slice(0, 3), slice(3, 6))
    ]
    masked = [with_gaps(each, valid[half]) for each, half in zip(halves, (slice(0, 3), slice(3, 6)), strict=True)]
    states = []
    for batches in ([with_gaps(batch, valid)], masked):
        engine = engine_of(config)
        assert engine.read(engine.train_step(batches, {"lr": 1e-3}))["loss"] > 0
        states.append(engine.state().optimizer)
    for name, moment in states[0].items():
        np.testing.assert_allclose(states[1][name], moment, rtol=1e-3, atol=1e-9)


def test_objectives_that_paint_ask_for_it() -> None:
    for name, asks in (("mae", True), ("cross_mae", True), ("hog_mae", True), ("mae_lejepa", True), ("lejepa", False)):
        objective = create_objective(engine_cases.make_config_of(name))
        assert objective.needs(training=True).valid_pixels is asks
