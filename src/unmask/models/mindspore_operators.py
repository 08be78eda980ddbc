"""Operators with gradients of their own, where MindSpore's are slow on the CPU (`benchmarks/engines.py` tells)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mindspore import Tensor, float32, nn, ops


class Cell(nn.Cell):
    """MindSpore's module, with types: by its own annotations `construct` never returns."""

    if TYPE_CHECKING:
        construct: Any

        def __call__(self, *inputs: Any) -> Any: ...


class Softmax(Cell):
    """Over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax()

    def construct(self, x: Tensor) -> Tensor:
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        product = out * dout
        return (product - out * product.sum(-1, keepdims=True),)


class NormalCdf(Cell):
    """Phi(x), the distribution function of the normal distribution: gelu(x) = x * Phi(x)."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.erf(x * math.sqrt(0.5)) * 0.5 + 0.5

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (dout * ops.exp(x * x * -0.5 - 0.5 * math.log(2 * math.pi)),)


class Normalize(Cell):
    """Layer normalisation of the rows of x (N, D), then times `weight` (D,) plus `bias` (D,)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.layer_norm: Any = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
        self.matmul: Any = ops.MatMul()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.layer_norm(x, weight, bias)[0]

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        """Sums are matrix products, which are faster than reductions. In fp32."""
        N, D = x.shape
        column, average = weight.astype(float32).reshape(D, 1) / D, ops.ones((D, 1), float32) / D
        row = ops.ones((1, N), float32)
        x32, dout32 = x.astype(float32), dout.astype(float32)
        centred = x32 - self.matmul(x32, average)
        inverse_std = ops.rsqrt(self.matmul(centred * centred, average) + self.eps)
        normalized = centred * inverse_std
        product = dout32 * normalized
        dx = dout32 * weight.astype(float32) - self.matmul(dout32, column) - normalized * self.matmul(product, column)
        dweight, dbias = self.matmul(row, product).reshape(D), self.matmul(row, dout32).reshape(D)
        return (dx * inverse_std).astype(x.dtype), dweight.astype(weight.dtype), dbias.astype(bias.dtype)
