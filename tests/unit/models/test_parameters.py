"""Initial weights: what the official code draws, by name and seed."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import objective_of
from unmask.models.parameters import sincos_position_embedding

MODEL = {
    "image_size": (32, 48), "width": 64, "depth": 2, "heads": 4,
    "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4,
}  # fmt: skip


def test_vit_base_has_the_published_number_of_weights() -> None:
    encoder = objective_of("classify", num_classes=1000).shapes()
    assert sum(int(np.prod(shape)) for shape in encoder.values()) == 86_567_656  # ViT-B/16 of timm and the paper
    mae = objective_of("mae").shapes()
    assert sum(int(np.prod(shape)) for shape in mae.values()) == 111_907_840  # official mae_vit_base_patch16


def test_each_weight_depends_on_seed_and_name_alone() -> None:
    one, again, other = (objective_of("mae", **MODEL).initial_weights(seed) for seed in (3, 3, 4))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not np.array_equal(one["blocks.0.attn.qkv.weight"], one["blocks.1.attn.qkv.weight"])
    deeper = objective_of("mae", **MODEL | {"depth": 3}).initial_weights(3)
    assert all(np.array_equal(one[name], deeper[name]) for name in one)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "decoder_pred.weight"])
def test_matrices_are_xavier_uniform_qkv_as_one(name: str) -> None:
    weight = objective_of("mae", **MODEL).initial_weights(0)[name]
    bound = np.sqrt(6 / (weight.shape[0] + weight[0].size))
    assert np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert abs(weight.mean()) < 0.03 * bound


def test_tokens_norms_biases_and_head() -> None:
    weights = objective_of("classify", **MODEL | {"width": 4096, "num_classes": 10}).initial_weights(0)
    assert weights["cls_token"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["head.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert (weights["fc_norm.weight"] == 1).all()
    assert all((value == 0).all() for name, value in weights.items() if name.endswith(".bias"))
    assert all(value.dtype == np.float32 for value in weights.values())


def test_what_public_weights_need_of_the_encoder() -> None:
    model = MODEL | {
        "mlp": "swiglu", "qkv_bias": False, "layer_scale": 1e-4, "patch_norm": True, "pre_norm": True,
        "cls_token": False, "register_tokens": 3,
    }  # fmt: skip
    weights, plain = (objective_of("mae", **fields).initial_weights(0) for fields in (model, MODEL))
    assert plain.keys() - weights.keys() == {"cls_token", "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"}
    scales = {f"blocks.{block}.{branch}.gamma" for block in (0, 1) for branch in ("ls1", "ls2")}
    norms = {f"{name}.{what}" for name in ("patch_embed.norm", "norm_pre") for what in ("weight", "bias")}
    assert weights.keys() - plain.keys() == scales | norms | {"reg_token"}
    assert all((weights[name] == np.float32(1e-4)).all() for name in scales)
    assert weights["reg_token"].shape == (1, 3, 64)
    assert weights["blocks.0.mlp.fc1.weight"].shape == (2 * 256, 64)
    for name in ("pos_embed", "decoder_pos_embed"):
        np.testing.assert_array_equal(weights[name], plain[name][:, 1:])
    decoder = {name for name in plain if name.startswith("decoder_blocks.")}
    assert all(weights[name].shape == plain[name].shape for name in decoder)


@pytest.mark.parametrize("objective", ["classify", "linear_probe"])
@pytest.mark.parametrize(
    ("pool", "norm", "width"), [("mean", "fc_norm", 64), ("cls", "norm", 64), ("mean+cls", "norm", 128)]
)
def test_the_head_is_as_wide_as_what_is_pooled(objective: str, pool: str, norm: str, width: int) -> None:
    made = objective_of(objective, **MODEL, num_classes=7, pool=pool)
    shapes = made.shapes()
    assert shapes["head.weight"] == (7, width)
    assert {"norm.weight", "fc_norm.weight"} & shapes.keys() == {f"{norm}.weight"}
    assert all(shape == (width,) for shape in made.buffers().values())


def test_position_embedding_is_x_then_y_sine_then_cosine() -> None:
    embedding = sincos_position_embedding(8, (2, 3))
    assert embedding.shape == (7, 8)
    assert (embedding[0] == 0).all(), "the cls token has none"
    omega = np.array([1.0, 1 / 100])  # 1 / 10000^(i / (8 / 4))
    for patch in range(6):
        y, x = divmod(patch, 3)
        expected = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        np.testing.assert_allclose(embedding[1 + patch], np.concatenate(expected), atol=1e-6)
