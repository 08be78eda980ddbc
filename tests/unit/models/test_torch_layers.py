"""What a network computes where no gradient is needed: other kernels, the same numbers but for rounding."""

from __future__ import annotations

from typing import Any

import pytest

from unmask.config.schema import ModelConfig

torch = pytest.importorskip("torch", reason="torch is not installed")
layers = pytest.importorskip("unmask.models.torch_layers", reason="torch is not installed")
BF16 = {"rtol": 2e-2, "atol": 2e-2}


def normal(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize(("images", "queries", "at_a_time"), [(5, 7, 2), (5, 3, 1), (4, 7, 4), (3, 7, 100)])
def test_attention_in_parts_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch, images: int, queries: int, at_a_time: int, has_amx: bool
) -> None:
    monkeypatch.setattr(layers, "_IN_CACHE", at_a_time * 2 * queries * 7)
    monkeypatch.setattr(layers, "_has_amx", lambda: has_amx)
    q, k, v = normal(images, 2, queries, 4), normal(images, 2, 7, 4), normal(images, 2, 7, 5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        found = layers.attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    torch.testing.assert_close(found.float(), expected, **BF16)


def test_a_block_that_is_read_is_the_block_that_is_trained() -> None:
    block = layers.encoder_block(ModelConfig(image_size=(32, 32), patch_size=8, width=24, heads=3), 0.0)
    for weight in block.parameters():
        weight.data = 0.3 * normal(*weight.shape)
    x = normal(2, 9, 24)
    expected = block(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = block(x.bfloat16())
        torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
        assert found.requires_grad == grad


@pytest.mark.skipif(not layers._has_fused(), reason="this processor has no AVX-512 bf16")
def test_products_are_fused_only_where_nothing_is_lost() -> None:
    """The operator has no gradient, and knows no tensors that stand for others."""
    layer, x = layers.Linear(6, 4), normal(3, 6).bfloat16()
    layer.weight.data, layer.bias.data = normal(4, 6), normal(4)
    plain = torch.nn.functional.gelu(torch.nn.functional.linear(x.float(), layer.weight, layer.bias))

    class Quantised(torch.Tensor):
        pass

    with torch.no_grad():
        weight = layer.weight.bfloat16()
        assert layers._is_fused(x, weight)
        assert not layers._is_fused(x, weight.as_subclass(Quantised))
        assert not layers._is_fused(x.float(), weight.float())
        torch.testing.assert_close(layer.product(x, gelu=True).float(), plain, **BF16)
    assert not layers._is_fused(x, weight)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_listens_to_a_layer_of_an_mlp_hears_it(register: str) -> None:
    mlp, heard = layers.Mlp(4, 8), list[Any]()

    def hear(_: Any, *values: Any) -> None:
        heard.append(values[-1])

    getattr(mlp.fc1, register)(hear)
    with torch.no_grad():
        x = normal(2, 4).bfloat16()
        mlp(x)
        (found,) = heard
        expected = torch.nn.functional.linear(x, mlp.fc1.weight.bfloat16(), mlp.fc1.bias.bfloat16())
    torch.testing.assert_close(found, expected if register == "register_forward_hook" else (x,), equal_nan=True)
