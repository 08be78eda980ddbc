"""Images of every dtype and number of channels are normalised as `data/batch.py` defines, in every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_cases import make_batch, make_config, measured
from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE
from unmask.engines.base import Engine
from unmask.evaluate.reconstruct import patchify

Build = Callable[[Config], Engine]
CASES = [("uint8", 3), ("uint16", 12), ("float32", 12)]


def make_images(dtype: str, channels: int) -> NDArray[Any]:
    """(6, 16, 24, C): whole numbers up to the largest, or floating ones far from 0."""
    rng = np.random.default_rng(0)
    shape = (6, 16, 24, channels)
    if dtype == "float32":
        return rng.normal(-300, 40, shape).astype(np.float32)
    images = rng.integers(0, int(FULL_RANGE[dtype]), shape, dtype, endpoint=True)
    images.flat[:2] = 0, FULL_RANGE[dtype]
    return images


def statistics(dtype: str, channels: int) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(1)
    if dtype == "float32":
        return rng.normal(-300, 10, channels).tolist(), rng.uniform(30, 60, channels).tolist()
    return rng.uniform(0.3, 0.6, channels).tolist(), rng.uniform(0.2, 0.4, channels).tolist()


def normalized(images: NDArray[Any], mean: list[float], std: list[float]) -> NDArray[np.float64]:
    """The definition, in float64."""
    return (images.astype(np.float64) / FULL_RANGE[images.dtype.name] - mean) / std


@pytest.mark.parametrize(("dtype", "channels"), CASES)
def test_what_is_to_be_reconstructed(build: Build, dtype: str, channels: int) -> None:
    """A decoder that paints nothing but zeros has the mean square of its targets for a loss."""
    mean, std = statistics(dtype, channels)
    data = {"dtype": dtype, "mean": mean, "std": std}
    config = make_config(data=data, model={"channels": channels, "norm_pix_loss": False})
    engine = build(config)
    state = engine.state()
    zeros = {name: np.zeros_like(state.weights[name]) for name in ("decoder_pred.weight", "decoder_pred.bias")}
    engine.load(dataclasses.replace(state, weights=state.weights | zeros))
    images = make_images(dtype, channels)
    batch = dataclasses.replace(make_batch(config), images=images)
    patches = patchify(normalized(images, mean, std), config.model.patch_size)
    expected = (np.take_along_axis(patches, batch.inputs["ids_mask"][:, :, None], 1) ** 2).mean()
    assert measured(engine, config, batch)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("dtype", "channels"), CASES)
def test_what_the_encoder_sees(build: Build, dtype: str, channels: int) -> None:
    """The same embedding as of images normalised beforehand, in a run of mean 0 and standard deviation 1."""
    mean, std = statistics(dtype, channels)
    images = make_images(dtype, channels)
    embeddings = []
    for data, pixels in (
        ({"dtype": dtype, "mean": mean, "std": std}, images),
        ({"dtype": "float32", "mean": [0.0] * channels, "std": [1.0] * channels}, normalized(images, mean, std)),
    ):
        config = make_config("finetune", data=data, model={"channels": channels})
        batch = dataclasses.replace(make_batch(config), images=pixels.astype(data["dtype"]))
        embeddings.append(build(config).output("features", batch))
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=1e-4, atol=1e-5)
    assert embeddings[0].std(0).min() > 1e-4, "the images matter"
