"""What a Vision Transformer is made of, in MindSpore; shapes and dtypes as in `unmask.models.mindspore_vit`."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, float32, ops

from unmask.config.schema import ModelConfig
from unmask.models.mindspore_operators import Cell, NormalCdf, Normalize, Softmax

matmul_transposed: Any = ops.MatMul(transpose_b=True)


def parameter(*shape: int) -> Parameter:
    """NaN until the engine loads weights: one that is forgotten shows."""
    return Parameter(Tensor(np.full(shape, np.nan, np.float32)))


class Linear(Cell):
    def __init__(self, fan_in: int, fan_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = parameter(fan_out, fan_in)
        self.bias = parameter(fan_out) if bias else None

    def construct(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.astype(x.dtype)
        return linear(x, self.weight.astype(x.dtype), bias)


class LayerNorm(Cell):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(dim)
        self.bias = parameter(dim)
        self.normalize = Normalize(eps)

    def construct(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        return self.normalize(x_ND, self.weight.astype(x.dtype), self.bias.astype(x.dtype)).reshape(x.shape)


class Attention(Cell):
    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.split3, self.split2 = ops.Split(-1, 3), ops.Split(-1, 2)
        self.matmul, self.matmul_transposed = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.softmax = Softmax()

    def construct(self, x_BTD: Tensor, queries: int) -> Tensor:
        """Attention of the last `queries` tokens to all."""
        B, T, D = x_BTD.shape
        if queries == T or self.qkv.bias is None:  # a layer without bias is not worth a path of its own
            q, k, v = self.split3(self.qkv(x_BTD))
            q = last(q, queries)
        else:
            weight, bias = self.qkv.weight.astype(x_BTD.dtype), self.qkv.bias.astype(x_BTD.dtype)
            q = linear(last(x_BTD, queries), weight[:D], bias[:D])
            k, v = self.split2(linear(x_BTD, weight[D:], bias[D:]))
        q_BHTd = self._split_heads(q) * (D // self.heads) ** -0.5
        attention = self.softmax(self.matmul_transposed(q_BHTd, self._split_heads(k)))
        x_BHTd = self.matmul(attention, self._split_heads(v))
        return self.proj(x_BHTd.transpose(0, 2, 1, 3).reshape(B, queries, D))

    def weights(self, x_BTD: Tensor) -> Tensor:
        """(B, H, T, T): how much each token (row) attends to each other; rows add up to 1."""
        q, k, _ = self.split3(self.qkv(x_BTD))
        q_BHTd = self._split_heads(q) * (x_BTD.shape[-1] // self.heads) ** -0.5
        return self.softmax(self.matmul_transposed(q_BHTd, self._split_heads(k)).astype(float32))

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        return x_BTD.reshape(B, T, self.heads, D // self.heads).transpose(0, 2, 1, 3)


class Mlp(Cell):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.normal_cdf = NormalCdf()

    def construct(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * self.normal_cdf(x))


class SwiGlu(Cell):
    """An MLP whose hidden values are products: the first half of what fc1 gives, through silu, opens the second."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.fc2 = Linear(hidden, dim)
        self.split2 = ops.Split(-1, 2)

    def construct(self, x: Tensor) -> Tensor:
        gate, value = self.split2(self.fc1(x))
        return self.fc2(gate * ops.sigmoid(gate) * value)


class LayerScale(Cell):
    """A learned factor on each value of a branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = parameter(dim)

    def construct(self, x: Tensor) -> Tensor:
        return x * self.gamma.astype(x.dtype)


class Block(Cell):
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

    def construct(self, x_BTD: Tensor, keep_path_B2: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Pre-norm block; with `queries`, only the last tokens come out, the others serve as context."""
        queries = x_BTD.shape[1] if queries is None else queries
        branch = self.attn(self.norm1(x_BTD), queries)
        branch = branch if self.ls1 is None else self.ls1(branch)
        x = last(x_BTD, queries) + self._drop(branch, keep_path_B2, 0)
        branch = self.mlp(self.norm2(x))
        branch = branch if self.ls2 is None else self.ls2(branch)
        return x + self._drop(branch, keep_path_B2, 1)

    def _drop(self, branch: Tensor, keep_path_B2: Tensor | None, which: int) -> Tensor:
        if keep_path_B2 is None or self.drop_path == 0:
            return branch
        return branch * (keep_path_B2[:, which].astype(branch.dtype) / (1 - self.drop_path)).reshape(-1, 1, 1)


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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias over the last axis."""
    y_NF = matmul_transposed(x.reshape(-1, x.shape[-1]), weight)
    y_NF = y_NF if bias is None else y_NF + bias
    return y_NF.reshape(*x.shape[:-1], weight.shape[0])


def last(x_BTD: Tensor, count: int) -> Tensor:
    """The last tokens; a slice of all of them would be copied, and slowly."""
    B, T, D = x_BTD.shape
    return x_BTD if count == T else ops.slice(x_BTD, (0, T - count, 0), (B, count, D))
