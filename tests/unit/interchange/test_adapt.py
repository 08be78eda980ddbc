from typing import Any

import numpy as np
import pytest

from engine_cases import objective_of
from unmask.config.schema import ModelConfig
from unmask.errors import CheckpointError
from unmask.interchange.adapt import _bicubic, adapt_encoder, interpolate_position_embedding, resample_patch_projection

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "num_classes": 3,
}  # fmt: skip


def config(**fields: Any) -> ModelConfig:
    return ModelConfig.model_validate({**SMALL, **fields})


def pretrained(**fields: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = objective_of("mae", **SMALL | fields).shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_takes_what_a_classifier_has_of_an_autoencoder(pool: str):
    weights = pretrained()
    taken = adapt_encoder(weights, config(pool=pool), source="x", fc_norm=pool == "mean")
    fresh = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    assert taken.keys() == objective_of("classify", **SMALL, pool=pool).shapes().keys() - fresh
    for name, tensor in taken.items():
        assert tensor is weights[name]


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 7)), ((14, 14), (24, 24)), ((14, 14), (9, 5)), ((3, 8), (8, 3)), ((1, 4), (2, 2))]
)
def test_interpolation_equals_that_of_the_official_code(old: tuple[int, int], new: tuple[int, int]):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pos_embed = np.random.default_rng(0).normal(size=(1, 1 + old[0] * old[1], 8)).astype(np.float32)
    ours = interpolate_position_embedding(pos_embed, old, new)
    patches = torch.from_numpy(pos_embed[:, 1:]).reshape(1, *old, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(ours[:, 1:], theirs.permute(0, 2, 3, 1).flatten(1, 2).numpy(), atol=2e-5, rtol=0)
    np.testing.assert_array_equal(ours[:, :1], pos_embed[:, :1])
    assert ours.dtype == np.float32


def test_interpolates_where_the_grid_differs():
    weights = pretrained()
    taken = adapt_encoder(weights, config(image_size=(16, 24)), source="x")
    expected = interpolate_position_embedding(weights["pos_embed"], (4, 4), (4, 6))
    np.testing.assert_array_equal(taken["pos_embed"], expected)


def test_a_grid_that_is_not_square_must_be_told_unless_it_is_the_same():
    weights = pretrained(image_size=(8, 24))
    same = adapt_encoder(weights, config(image_size=(8, 24)), source="x")
    assert same["pos_embed"] is weights["pos_embed"]
    with pytest.raises(CheckpointError, match="neither square nor told"):
        adapt_encoder(weights, config(image_size=32), source="x")
    told = adapt_encoder(weights, config(image_size=32), source="x", known={"image_size": [8, 24]})
    np.testing.assert_array_equal(
        told["pos_embed"], interpolate_position_embedding(weights["pos_embed"], (2, 6), (8, 8))
    )


def test_equally_many_patches_in_another_grid_are_interpolated():
    weights = pretrained(image_size=(16, 16))
    taken = adapt_encoder(weights, config(image_size=(8, 32)), source="x")
    np.testing.assert_array_equal(
        taken["pos_embed"], interpolate_position_embedding(weights["pos_embed"], (4, 4), (2, 8))
    )


@pytest.mark.parametrize("new", [5, 8, 13])
def test_a_resized_patch_gives_the_token_it_gave_before(new: int):
    rng = np.random.default_rng(0)
    weight, patch = rng.normal(size=(6, 3, 4, 4)).astype(np.float32), rng.normal(size=(3, 4, 4))
    resize = _bicubic(4, new)
    resized = np.einsum("yh,xw,chw->cyx", resize, resize, patch)
    ours = np.einsum("dcyx,cyx->d", resample_patch_projection(weight, new), resized)
    np.testing.assert_allclose(ours, np.einsum("dchw,chw->d", weight, patch), rtol=1e-4, atol=1e-5)


def test_a_smaller_patch_is_the_least_squares_answer():
    """No other weight of its size is nearer on patches of noise, for which the error is that of resize^T w_new = w."""
    weight = np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype(np.float32)
    new = resample_patch_projection(weight, 4)
    both = np.kron(_bicubic(6, 4), _bicubic(6, 4))  # (16, 36)
    expected, *_ = np.linalg.lstsq(both.T, weight.reshape(2, 36).T, rcond=None)
    np.testing.assert_allclose(new.reshape(2, 16).T, expected, rtol=1e-4, atol=1e-5)


def test_another_patch_size_is_resampled_and_the_grid_interpolated():
    weights = pretrained()
    taken = adapt_encoder(weights, config(patch_size=8, image_size=(16, 32)), source="x")
    assert taken["patch_embed.proj.weight"].shape == (16, 3, 8, 8)
    np.testing.assert_array_equal(
        taken["pos_embed"], interpolate_position_embedding(weights["pos_embed"], (4, 4), (2, 4))
    )


def test_every_difference_is_listed_in_one_line():
    target = config(patch_size=8, channels=1, width=32, depth=4, heads=4, mlp_ratio=2)
    with pytest.raises(CheckpointError) as raised:
        adapt_encoder(pretrained(), target, source="some.pth", known={"heads": 2})
    assert str(raised.value) == (
        "some.pth does not fit the model: "
        "width is 16 there and 32 here; depth is 2 there and 4 here; heads is 2 there and 4 here; "
        "mlp_ratio is 4.0 there and 2.0 here"
    )


def test_missing_and_misshapen_tensors_are_all_listed():
    weights = pretrained()
    del weights["blocks.1.norm2.bias"], weights["norm.weight"]
    weights["blocks.0.attn.proj.weight"] = np.zeros((16, 15), np.float32)
    with pytest.raises(CheckpointError) as raised:
        adapt_encoder(weights, config(), source="x")
    assert str(raised.value) == (
        "x does not fit the model: blocks.0.attn.proj.weight is [16, 15] there and [16, 16] here; "
        "blocks.1.norm2.bias is missing; norm.weight is missing"
    )


def test_a_ratio_that_gives_as_many_hidden_units_agrees():
    adapt_encoder(pretrained(mlp_ratio=2.7), config(mlp_ratio=2.7), source="x")


def test_weights_of_something_else_are_refused():
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj\.bias is missing"):
        adapt_encoder({"conv1.weight": np.zeros((3, 3))}, config(), source="resnet.pth")
