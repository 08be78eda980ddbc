"""Convolutions before the tokens: they let nothing of a masked patch through, and start only what has the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unmask.config.load import load_config
from unmask.config.schema import DataConfig, ModelConfig
from unmask.data.batch import Pixels
from unmask.errors import CheckpointError, ConfigError
from unmask.interchange.adapt import adapt_encoder
from unmask.interchange.stored_model import fields_from_shapes
from unmask.models.parameters import draw, encoder_shapes

MODEL = ModelConfig(image_size=(32, 48), patch_size=16, width=20, depth=1, heads=2, patch_stem=8)


def weights(model: ModelConfig) -> dict[str, Any]:
    return {name: draw(name, shape, model, 0) for name, shape in encoder_shapes(model).items()}


def test_shapes_tell_the_stem_and_what_is_behind_it() -> None:
    shapes = encoder_shapes(MODEL)
    assert [shapes[f"patch_embed.stem.{i}.conv1.weight"] for i in range(4)] == [
        (8, 3, 3, 3),
        (16, 8, 3, 3),
        (32, 16, 3, 3),
        (20, 32, 3, 3),  # the tokens
    ]
    assert shapes["patch_embed.stem.2.conv2.weight"] == (32, 32, 3, 3)
    assert [f"patch_embed.stem.{i}.conv2.weight" in shapes for i in range(4)] == [False, True, True, True]
    assert "patch_embed.proj.weight" not in shapes
    square = MODEL.model_copy(update={"image_size": (64, 64)})
    told = fields_from_shapes(weights(square))
    for field in ("image_size", "patch_size", "patch_stem", "channels", "width"):
        assert told[field] == getattr(square, field), field
    assert fields_from_shapes(weights(MODEL.model_copy(update={"patch_stem": None})))["patch_stem"] is None


def test_patches_that_are_not_given_are_empty_after_each_layer() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from unmask.models.torch_patches import select
    from unmask.models.torch_vit import VisionTransformer

    network = VisionTransformer(MODEL, Pixels.of(DataConfig()), torch.float32, pool="mean", fc_norm=True)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights(MODEL).items()}, strict=False)
    embed = network.patch_embed
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        patches = network.patches(torch.from_numpy(image))
        whole = embed(patches)
        order = torch.tensor([[5, 0, 3, 1, 2, 4], [2, 4, 0, 5, 1, 3]])
        torch.testing.assert_close(embed(select(patches, order), order), select(whole, order))

        kept = torch.tensor([[4, 5], [4, 5]])  # of two rows of three
        assert not torch.isclose(embed(select(patches, kept), kept), select(whole, kept)).all(-1).any()

        given = torch.zeros(2, 6, 1).index_fill(1, torch.tensor([4, 5]), 1)
        x, side = torch.from_numpy(image) / 255.0, 16
        x = x * embed._spread(given, side)
        for layer in embed.stem:
            side //= 2
            places = embed._spread(given, side)
            x = layer(x, places)
            assert not x[(places == 0).expand_as(x)].any()
            assert x[(places == 1).expand_as(x)].any()


def test_the_norm_is_of_the_places_that_are_given() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from unmask.models.torch_patches import StemNorm

    norm = StemNorm(4, 1e-6)
    norm.load_state_dict({"weight": torch.tensor([1.0, 2, 3, 4]), "bias": torch.tensor([0.0, 1, -1, 2])})
    x = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (2, 6, 5, 4)).astype(np.float32))
    given = torch.zeros(2, 6, 5, 1)
    given[:, 1:3, 2:] = 1
    with torch.no_grad():
        torch.testing.assert_close(norm(x, torch.ones(2, 6, 5, 1)), norm(x, None))
        alone = norm(x[:, 1:3, 2:], None)
        torch.testing.assert_close(norm(x, given)[:, 1:3, 2:], alone)
        assert not norm(x, given)[(given == 0).expand_as(x)].any()


@pytest.mark.parametrize("patch_size", [2, 7, 14, 12])
def test_a_patch_that_cannot_be_halved_is_refused(patch_size: int) -> None:
    settings = [f"model.patch_size={patch_size}", f"model.image_size={8 * patch_size}", "model.patch_stem=8"]
    with pytest.raises(ConfigError, match=f"needs a patch_size of 4, 8, 16 or 32, not {patch_size}"):
        load_config("mae-vit-tiny", settings)


def test_it_starts_what_has_the_same_stem_and_pixels() -> None:
    data, known = DataConfig(), {"image_size": (32, 48)}
    prepared: dict[str, Any] = {"mean": data.mean, "std": data.std}
    same = adapt_encoder(weights(MODEL), MODEL, source="x", known=known, prepared=prepared, data=data, fc_norm=True)
    assert all(np.array_equal(same[name], array) for name, array in weights(MODEL).items())
    plain = MODEL.model_copy(update={"patch_stem": None})
    with pytest.raises(CheckpointError, match="patch_stem is 8 there and None here"):
        adapt_encoder(weights(MODEL), plain, source="x", fc_norm=True)
    prepared["mean"] = (0.1,) * 3
    with pytest.raises(CheckpointError, match="a stem cannot absorb"):
        adapt_encoder(weights(MODEL), MODEL, source="x", known=known, prepared=prepared, data=data, fc_norm=True)


@pytest.mark.parametrize("stem", [8, None])
def test_weights_that_are_cast_once_give_the_same_bits(stem: int | None) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from unmask.models.torch_vit import VisionTransformer, cast_once

    model = MODEL.model_copy(update={"patch_stem": stem})
    network = VisionTransformer(model, Pixels.of(DataConfig()), torch.bfloat16, pool="mean", fc_norm=False)
    arrays = weights(model) | {"norm.weight": np.ones(20, np.float32), "norm.bias": np.zeros(20, np.float32)}
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 48)).astype(np.float32)).bfloat16()
    with torch.no_grad():
        expected, found = network(image), cast_once(network, torch.bfloat16)(image)
    assert torch.equal(expected, found)
