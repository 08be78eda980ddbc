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
    assert weights["head.weight"].std() == pytest.approx(2e-5, rel=0.05)
    assert (weights["fc_norm.weight"] == 1).all()
    assert all((value == 0).all() for name, value in weights.items() if name.endswith(".bias"))
    assert all(value.dtype == np.float32 for value in weights.values())


def test_position_embedding_is_x_then_y_sine_then_cosine() -> None:
    embedding = sincos_position_embedding(8, (2, 3))
    assert embedding.shape == (7, 8)
    assert (embedding[0] == 0).all(), "the cls token has none"
    omega = np.array([1.0, 1 / 100])  # 1 / 10000^(i / (8 / 4))
    for patch in range(6):
        y, x = divmod(patch, 3)
        expected = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        np.testing.assert_allclose(embedding[1 + patch], np.concatenate(expected), atol=1e-6)
