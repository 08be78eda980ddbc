"""What objectives beside masked autoencoding and classification ask for and start from; no framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unmask.config.load import check_config, load_config
from unmask.config.schema import Config
from unmask.data.loader.pipeline import eval_batches, train_batches
from unmask.data.rng import generator
from unmask.data.sources import open_source
from unmask.errors import ConfigError
from unmask.objectives.base import Objective, create_objective

DIGITS = {"image_size": 28, "patch_size": 7, "channels": 1, "width": 16, "depth": 3, "heads": 4}
DECODER = {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2}
NAMES = ("cross_mae", "hog_mae", "lejepa", "mae_lejepa")


def config_of(name: str, model: dict[str, Any] | None = None, **keys: Any) -> Config:
    data = {"train": "bundled:mnist5k/train", "mean": [0.1307], "std": [0.3081]}
    model = DIGITS | DECODER | (model or {})
    return check_config({"objective": {"name": name, **keys}, "model": model, "data": data})


def objective_of(name: str, model: dict[str, Any] | None = None, **keys: Any) -> Objective:
    return create_objective(config_of(name, model, **keys))


@pytest.mark.parametrize("name", NAMES)
def test_first_values_are_of_the_shapes_and_depend_on_seed_and_name(name: str) -> None:
    objective = objective_of(name)
    one, again, other = (objective.initial_weights(seed) for seed in (0, 0, 1))
    assert {key: value.shape for key, value in one.items()} == objective.shapes()
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in one.values())
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert not np.array_equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    mae = objective_of("mae").initial_weights(0)
    assert all(np.array_equal(one[key], mae[key]) for key in one if key.startswith(("blocks.", "patch_embed.")))


def test_weights_of_the_encoders_features_are_normal_with_variance_1_over_their_number() -> None:
    weight = objective_of("cross_mae", {"depth": 63, "decoder_depth": 32}).initial_weights(0)["decoder_features.weight"]
    assert weight.shape == (32, 64)
    assert weight.std() == pytest.approx(1 / 8, rel=0.05)
    assert abs(weight.mean()) < 0.01
    assert "decoder_features.weight" not in objective_of("cross_mae", weighted_features=False).shapes()


@pytest.mark.parametrize(("mask_ratio", "predict_ratio", "counts"), [(0.75, 0.25, (4, 4)), (0.75, 0.75, (4, 12))])
def test_a_part_of_the_hidden_patches_is_predicted_in_training(
    mask_ratio: float, predict_ratio: float, counts: tuple[int, int]
) -> None:
    objective = objective_of("cross_mae", mask_ratio=mask_ratio, predict_ratio=predict_ratio)
    chosen = np.zeros(16)
    for index in range(400):
        arrays = objective.needs(training=True).rows[0](lambda op, i=index: generator(0, 0, i, op))
        whole = objective.needs(training=False).rows[0](lambda op, i=index: generator(0, 0, i, op))
        keep, mask = arrays["ids_keep"], arrays["ids_mask"]
        assert (len(keep), len(mask)) == counts
        assert np.array_equal(keep, whole["ids_keep"])
        assert set(mask) <= set(whole["ids_mask"])
        assert sorted([*keep, *whole["ids_mask"]]) == list(range(16))
        chosen[mask] += 1
    np.testing.assert_allclose(chosen / 400, predict_ratio, atol=0.1)


def test_more_cannot_be_predicted_than_is_hidden() -> None:
    with pytest.raises(ConfigError, match=r"objective.predict_ratio=0.6 .* objective.mask_ratio=0.5"):
        config_of("cross_mae", mask_ratio=0.5, predict_ratio=0.6)


def test_the_published_sizes_of_crossmae() -> None:
    """Of the paper's ViT-B with 25 % of 196 patches predicted: the decoder takes the encoder's width."""
    config = load_config("cross-mae-vit-base")
    needs, shapes = create_objective(config).needs(training=True), create_objective(config).shapes()
    assert (needs.rows[0].num_keep, needs.rows[0].num_predict) == (49, 49)  # pyright: ignore
    assert shapes["decoder_blocks.11.attn.kv.weight"] == (1024, 768)
    assert shapes["decoder_features.weight"] == (12, 13)
    assert "decoder_embed.weight" not in shapes


@pytest.mark.parametrize(
    ("patch_size", "channels", "values"), [(16, 3, 108), (8, 3, 27), (7, 1, 9), (4, 5, 45), (28, 1, 81)]
)
def test_histograms_that_are_predicted_of_a_patch(patch_size: int, channels: int, values: int) -> None:
    size = {"image_size": 112, "patch_size": patch_size, "channels": channels}
    data = {"mean": [0.5] * channels, "std": [0.2] * channels}
    config = check_config({"objective": "hog_mae", "model": DIGITS | DECODER | size, "data": data})
    objective = create_objective(config)
    assert objective.shapes()["decoder_pred.weight"] == (values, 8)
    assert objective.initial_weights(0)["decoder_pred.bias"].shape == (values,)
    assert "reconstruction" not in objective.outputs
    with pytest.raises(ConfigError, match=r"objective.norm_pix_loss: unknown key"):
        config_of("hog_mae", norm_pix_loss=True)


@pytest.mark.parametrize("name", ["lejepa", "mae_lejepa"])
def test_batches_of_views(name: str) -> None:
    config = config_of(name, views=3, directions=5, projection_width=4)
    objective, source = create_objective(config), open_source(str(config.data.train), key="data.train", labels=False)
    common: dict[str, Any] = {"model": config.model, "data": config.data, "seed": 3, "batch_size": 8}
    training = {"needs": objective.needs(training=True), "augment": config.augment, "accumulate": 2}
    first, second = train_batches(source, start_step=4, stop_step=6, **training, **common)
    (resumed,) = train_batches(source, start_step=5, stop_step=6, **training, **common)
    assert first[0].images.shape == (4, 3, 28, 28, 1)
    assert not np.array_equal(first[0].images[:, 0], first[0].images[:, 1])
    directions = first[0].inputs["directions"]
    assert directions.shape == (4, 5)
    assert directions.dtype == np.float32
    np.testing.assert_allclose((directions**2).sum(0), 1, rtol=1e-6)
    assert np.array_equal(directions, first[1].inputs["directions"]), "of a step, not of a micro-batch"
    assert not np.array_equal(directions, second[0].inputs["directions"])
    for one, other in zip(second, resumed, strict=True):
        assert np.array_equal(one.images, other.images)
        assert one.inputs.keys() == other.inputs.keys()
        assert all(np.array_equal(one.inputs[key], other.inputs[key]) for key in one.inputs)
    if name == "mae_lejepa":
        assert first[0].inputs["ids_keep"].shape == (4, 3, 4)
        assert not np.array_equal(first[0].inputs["ids_keep"][:, 0], first[0].inputs["ids_keep"][:, 1])
    evaluated = next(iter(eval_batches(source, needs=objective.needs(training=False), **common)))
    assert evaluated.images.shape == (8, 28, 28, 1)
    assert evaluated.inputs.keys() == ({"ids_keep", "ids_mask"} if name == "mae_lejepa" else set())
    assert objective.evaluated == ("losses" if name == "mae_lejepa" else None)


def test_directions_are_uniform_on_the_sphere() -> None:
    step = objective_of("lejepa", directions=4096, projection_width=8).needs(training=True).step
    assert step is not None
    directions = step(0, 0)["directions"]
    np.testing.assert_allclose(directions.mean(1), 0, atol=0.03)
    np.testing.assert_allclose(directions @ directions.T / 4096, np.eye(8) / 8, atol=0.01)
