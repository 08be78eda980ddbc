"""The network as a torch.nn.Module: what everyone's tools see, and that it is what the engine computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_cases import make_batch, make_config, start
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines import create_engine
from unmask.errors import ConfigError
from unmask.evaluate.inference import Model

torch = pytest.importorskip("torch", reason="torch is not installed")
GRID, PATCHES, WIDTH, HEADS = (2, 3), 6, 32, 4


OTHER: dict[str, Any] = {
    "mlp": "swiglu", "qkv_bias": False, "layer_scale": 0.1, "norm_eps": 1e-4,
    "patch_norm": True, "pre_norm": True, "register_tokens": 2,
}  # fmt: skip


TWO_BLOCKS = {"depth": 2, "decoder_depth": 2}


def network(task: str, **model: Any) -> tuple[Any, Any, Batch, Any]:
    """Engine, module, a batch of three images and the same normalised, (3, C, H, W)."""
    config: Config = make_config(task, model=TWO_BLOCKS | model)
    engine: Any = create_engine(config)
    engine.load(start(config))
    batch = make_batch(config, size=3)
    pixels = (batch.images / 255 - np.array(config.data.mean)) / np.array(config.data.std)
    return engine, engine.module.eval(), batch, torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("pretrain", {}),
        ("finetune", {}),
        ("finetune", {"pool": "cls"}),
        ("pretrain", OTHER),
        ("pretrain", OTHER | {"cls_token": False}),
        ("finetune", OTHER | {"cls_token": False}),
        ("finetune", OTHER | {"pool": "mean+cls"}),
    ],
)
def test_it_computes_what_the_engine_does(task: str, model: dict[str, Any]) -> None:
    engine, module, batch, images = network(task, **model)
    with torch.no_grad():
        answer = module(images).numpy()
        tokens = module.forward_features(images)
    expected = engine.output("features" if task == "pretrain" else "logits", batch)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    prefix = module.prefix_tokens
    assert prefix == model.get("cls_token", True) + model.get("register_tokens", 0)
    assert tokens.shape == (3, prefix + PATCHES, WIDTH)
    patches = engine.output("patch_features", batch)
    np.testing.assert_allclose(tokens[:, prefix:].unflatten(1, GRID).numpy(), patches, rtol=1e-4, atol=1e-5)
    assert engine.output("attention", batch).shape == (3, HEADS, prefix + PATCHES, prefix + PATCHES)


def test_pooling_is_chosen_at_read_out() -> None:
    for task, model in (("pretrain", {}), ("finetune", {}), ("finetune", {"pool": "cls"})):
        engine, _, batch, _ = network(task, **model)
        mean, cls, both = (engine.output("features", batch, pool=pool) for pool in ("mean", "cls", "mean+cls"))
        assert not np.allclose(mean, cls, atol=1e-3)
        np.testing.assert_array_equal(both, np.concatenate([mean, cls], axis=1))
        own = cls if model else mean
        np.testing.assert_array_equal(engine.output("features", batch), own)


def test_pooling_is_over_patches_and_refused_without_cls() -> None:
    engine, module, batch, images = network("pretrain", **OTHER, cls_token=False)
    with torch.no_grad():
        tokens = module.forward_features(images)
        (patches,) = module.get_intermediate_layers(images)
    torch.testing.assert_close(patches, tokens[:, 2:])
    np.testing.assert_allclose(engine.output("features", batch), patches.mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no cls token"):
        engine.output("features", batch, pool="cls")
    with pytest.raises(ValueError, match="no cls token"):
        module.get_intermediate_layers(images, return_class_token=True)


def test_registers_are_no_concern_of_the_decoder() -> None:
    """They have no position there: what the decoder paints of given tokens does not change with them."""
    _, module, batch, _ = network("pretrain", **OTHER)
    ids_keep, ids_mask = (torch.from_numpy(batch.inputs[name]).long() for name in ("ids_keep", "ids_mask"))
    with torch.no_grad():
        tokens = torch.randn(3, 3 + ids_keep.shape[1], WIDTH)
        painted = module.decode(tokens, ids_keep, ids_mask, ids_mask.shape[1])
        others = torch.cat([tokens[:, :1], torch.randn(3, 2, WIDTH), tokens[:, 3:]], dim=1)
        torch.testing.assert_close(module.decode(others, ids_keep, ids_mask, ids_mask.shape[1]), painted)
        changed = torch.cat([tokens[:, :3], torch.randn(3, tokens.shape[1] - 3, WIDTH)], dim=1)
    assert not torch.allclose(module.decode(changed, ids_keep, ids_mask, ids_mask.shape[1]), painted)


def test_layer_scale_of_zero_leaves_the_residual_alone() -> None:
    _, module, _, images = network("pretrain", **OTHER)
    with torch.no_grad():
        for block in module.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        embedded = module._embed(module._patches_of(images), None)
        torch.testing.assert_close(module.encode(module._patches_of(images)), embedded, rtol=0, atol=0)


def test_intermediate_layers_are_those_of_dinov2s_interface() -> None:
    _, module, _, images = network("pretrain")
    with torch.no_grad():
        (last,) = module.get_intermediate_layers(images)
        first, second = module.get_intermediate_layers(images, [0, 1], norm=False, return_class_token=True)
        (maps,) = module.get_intermediate_layers(images, 1, reshape=True)
        tokens = module.forward_features(images)
        both = module.get_intermediate_layers(images, 2)
    torch.testing.assert_close(last, tokens[:, 1:])
    torch.testing.assert_close(both[-1], last)
    assert len(both) == 2
    assert maps.shape == (3, WIDTH, *GRID)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), last)
    assert (first[0].shape, first[1].shape) == ((3, PATCHES, WIDTH), (3, WIDTH))
    torch.testing.assert_close(module.norm(second[0]), last)


def test_attention_maps_are_shares_and_explain_the_block() -> None:
    engine, module, batch, images = network("pretrain")
    with torch.no_grad():
        first, last = module.attention_maps(images, (0, -1))
        tokens = module._embed(module._patches_of(images), None)
        block = module.blocks[0]
        values = block.attn.qkv(block.norm1(tokens)).view(3, 1 + PATCHES, 3, HEADS, -1)[:, :, 2].transpose(1, 2)
        mixed = block.attn.proj((first @ values).transpose(1, 2).flatten(2))
        expected = block.attn(block.norm1(tokens), 1 + PATCHES)
    assert first.shape == (3, HEADS, 1 + PATCHES, 1 + PATCHES)
    torch.testing.assert_close(first.sum(-1), torch.ones_like(first[..., 0]))
    torch.testing.assert_close(mixed, expected)
    np.testing.assert_allclose(engine.output("attention", batch), last.numpy(), rtol=1e-4, atol=1e-6)


def test_tools_see_its_layers() -> None:
    """Adapters and quantisers look for nn.Linear, wrapping policies for modules, profilers for matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    _, module, _, images = network("pretrain")
    names = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert {"blocks.0.attn.qkv", "blocks.1.mlp.fc2", "decoder_embed", "decoder_pred"} <= set(names)
    assert isinstance(module.norm, torch.nn.LayerNorm)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    tokens, hidden = 1 + PATCHES, 4 * WIDTH
    linear = PATCHES * 192 * WIDTH + 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * hidden)
    attention = 2 * 2 * tokens**2 * WIDTH
    # The counter knows the attention kernels of some devices alone.
    assert counter.get_total_flops() in (2 * 3 * linear, 2 * 3 * (linear + attention))


class Adapted(torch.nn.Module):
    """A low-rank adapter around a linear layer, as those of peft."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Any) -> Any:
        return self.layer(x) + self.up(self.down(x))


def test_a_layer_can_be_replaced() -> None:
    engine, module, batch, images = network("pretrain")
    before, painted = module(images).detach(), engine.output("reconstruction", batch)
    for block in (*module.blocks, *module.decoder_blocks):
        block.attn.qkv = Adapted(block.attn.qkv)
    assert not torch.allclose(module(images), before)
    after = engine.output("reconstruction", batch)
    assert after.shape == painted.shape
    assert not np.allclose(after, painted)


def test_images_of_another_size_are_refused() -> None:
    _, module, _, _ = network("pretrain")
    with pytest.raises(ValueError, match=r"takes \(B, C, 16, 24\)"):
        module(torch.zeros(1, 3, 32, 32))


def test_a_model_embeds_what_its_pool_says() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    for task, model, width in (
        ("finetune", {"pool": "mean+cls"}, 2 * WIDTH),
        ("finetune", {"pool": "cls"}, WIDTH),
        ("pretrain", {"pool": "mean+cls"}, WIDTH),  # the pool is for its classifier
        ("pretrain", OTHER | {"cls_token": False}, WIDTH),
    ):
        config = make_config(task, model=TWO_BLOCKS | model)
        with Model(config, start(config).weights, None, 3) as loaded:
            assert loaded.embed(images).shape == (3, width)
            assert loaded.feature_width() == width
            if not config.model.cls_token:
                with pytest.raises(ConfigError, match="no cls token"):
                    loaded.embed(images, pool="mean+cls")
