"""What a Vision Transformer is made of, in PyTorch; shapes and dtypes as in `unmask.models.torch_vit`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.config.schema import ModelConfig

_IN_CACHE = 2**20
"""Scores of attention at a time, where no gradient needs them all: 2 MB."""


def parameter(*shape: int) -> nn.Parameter:
    """NaN until the engine loads weights: one that is forgotten shows."""
    return nn.Parameter(torch.full(shape, torch.nan))


def constant(array: NDArray[Any]) -> nn.Buffer:
    """Numbers that lie where the weights do and are no part of a model's state: nothing is copied to use them."""
    return nn.Buffer(torch.tensor(array), persistent=False)


class Linear(nn.Linear):
    bias: nn.Parameter | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def reset_parameters(self) -> None:
        """As `parameter`."""
        nn.init.constant_(self.weight, torch.nan)
        if self.bias is not None:
            nn.init.constant_(self.bias, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input)

    def product(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        """What the layer gives, or GELU of it."""
        weight, bias = self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype)
        if bias is not None and _is_fused(input, weight):
            return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "gelu" if gelu else "none", [], "none")
        x = F.linear(input, weight, bias)
        return F.gelu(x) if gelu else x


class LayerNorm(nn.LayerNorm):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)
        nn.init.constant_(self.bias, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, x_BTD: Tensor, queries: int) -> Tensor:
        """Attention of the last `queries` tokens to all."""
        B, T, D = x_BTD.shape
        # An adapter or quantiser may have replaced the layer; one without bias is not worth a path of its own.
        if queries == T or type(self.qkv) is not Linear or self.qkv.bias is None:
            q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).unbind(2)
            q = q if queries == T else q[:, -queries:]  # the gradient of a slice is a copy, even of the whole
        else:
            weight, bias = self.qkv.weight.to(x_BTD.dtype), self.qkv.bias.to(x_BTD.dtype)
            q = F.linear(x_BTD[:, -queries:], weight[:D], bias[:D]).view(B, queries, self.heads, -1)
            k, v = F.linear(x_BTD, weight[D:], bias[D:]).view(B, T, 2, self.heads, -1).unbind(2)
        x_BHQd = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x_BHQd.transpose(1, 2).reshape(B, queries, D))

    def weights(self, x_BTD: Tensor) -> Tensor:
        """(B, H, T, T): how much each token (row) attends to each other; rows add up to 1."""
        B, T, _ = x_BTD.shape
        q, k, _ = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float().softmax(-1)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        fc1 = self.fc1
        # An adapter or quantiser may have replaced the layer, or hooked on to what it gives.
        plain = type(fc1) is Linear and not (fc1._forward_hooks or fc1._forward_pre_hooks)
        return self.fc2(fc1.product(x, gelu=True) if plain else F.gelu(fc1(x)))


class SwiGlu(nn.Module):
    """An MLP whose hidden values are products: the first half of what fc1 gives, through silu, opens the second."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor on each value of a branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


class Block(nn.Module):
    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        eps: float,
        *,
        drop_path: float = 0.0,
        swiglu: bool = False,
        qkv_bias: bool = True,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = SwiGlu(dim, hidden) if swiglu else Mlp(dim, hidden)
        self.ls1 = LayerScale(dim) if layer_scale else None
        self.ls2 = LayerScale(dim) if layer_scale else None

    def forward(self, x_BTD: Tensor, keep_path_B2: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Pre-norm block; with `queries`, only the last tokens come out, the others serve as context."""
        queries = x_BTD.shape[1] if queries is None else queries
        branch = self.attn(self.norm1(x_BTD), queries)
        branch = branch if self.ls1 is None else self.ls1(branch)
        x = x_BTD[:, -queries:] + self._drop(branch, keep_path_B2, 0)
        branch = self.mlp(self.norm2(x))
        branch = branch if self.ls2 is None else self.ls2(branch)
        return x + self._drop(branch, keep_path_B2, 1)

    def _drop(self, branch: Tensor, keep_path_B2: Tensor | None, which: int) -> Tensor:
        if keep_path_B2 is None or self.drop_path == 0:
            return branch
        return branch * (keep_path_B2[:, which].to(branch.dtype) / (1 - self.drop_path))[:, None, None]


def encoder_block(model: ModelConfig, drop_path: float) -> Block:
    return Block(
        model.width,
        model.heads,
        int(model.width * model.mlp_ratio),
        model.norm_eps,
        drop_path=drop_path,
        swiglu=model.mlp == "swiglu",
        qkv_bias=model.qkv_bias,
        layer_scale=model.layer_scale is not None,
    )


def attention(q_BHQd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v, (B, H, Q, d)."""
    if not products_are_faster(q_BHQd):
        return F.scaled_dot_product_attention(q_BHQd, k_BHTd, v_BHTd)
    if torch.is_grad_enabled():
        return _products(q_BHQd, k_BHTd, v_BHTd)
    images = max(1, _IN_CACHE // (q_BHQd.shape[1] * q_BHQd.shape[2] * k_BHTd.shape[2]))
    parts = zip(q_BHQd.split(images), k_BHTd.split(images), v_BHTd.split(images), strict=True)
    return torch.cat([_products(*part).transpose(1, 2) for part in parts]).transpose(1, 2)  # laid out as it is read


def products_are_faster(x: Tensor) -> bool:
    """Whether plain products beat the fused kernel: in bf16 on the CPU. Its backward takes two to eight times as long;
    its forward pass alone 1.1 to 2 times, but with AMX two thirds."""
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return False
    return torch.is_grad_enabled() or not (_has_amx() or torch.compiler.is_compiling())


def _products(q_BHQd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> Tensor:
    scores_BHQT = (q_BHQd * q_BHQd.shape[-1] ** -0.5) @ k_BHTd.transpose(-2, -1)
    return scores_BHQT.softmax(-1) @ v_BHTd


@cache
def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def _is_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN adds the bias, and GELU, while it writes the product: to read a network in bf16.

    PyTorch's own way is a pass of its own for each. Its compiler calls the same operator; it has no gradient.
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return False
    plain = type(weight) in (Tensor, nn.Parameter) and type(x) is Tensor  # not of a quantiser, not a share of a weight
    return plain and _has_fused() and not torch.compiler.is_compiling()


@cache
def _has_fused() -> bool:
    able = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return able and hasattr(torch.ops.mkldnn, "_linear_pointwise")
