"""The Vision Transformer: single-device mathematics in MindSpore.

Shapes: B images, L patches, K kept, T tokens (cls, registers, patches), D width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The PyTorch twin has the same names in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from mindspore import Parameter, Tensor, float32, int32, nn, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.data.masking import drop_path_rates
from unmask.models.mindspore_operators import Cell, NormalCdf, Normalize, Softmax
from unmask.models.parameters import STANDARDIZED_EPS

Pool = Literal["mean", "cls", "mean+cls"]
"""How tokens become one vector: mean of the patch tokens, the cls token, or both one after the other."""

arange: Any = ops.arange
conv2d: Any = ops.conv2d
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


class PatchProjection(Cell):
    """The weight has the layout of the convolution it equals, (D, C, p, p)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(model.width, model.channels, model.patch_size, model.patch_size)
        self.bias = parameter(model.width)

    def construct(self, x_BLP: Tensor) -> Tensor:
        weight_DP = self.weight.transpose(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
        return linear(x_BLP, weight_DP.astype(x_BLP.dtype), self.bias.astype(x_BLP.dtype))


class StemLayer(Cell):
    """A convolution that halves an image, and perhaps two more that add to what it gives (He et al. 2016).

    Their weights are standardised and each has a norm over all places after it (Qiao et al. 2019). Places that are not
    given are empty after each and do not count.
    """

    def __init__(self, fan_in: int, fan_out: int, eps: float, *, residual: bool) -> None:
        super().__init__()
        self.conv = StemConvolution(fan_in, fan_out, stride=2)
        self.norm = StemNorm(fan_out, eps)
        self.residual = StemResidual(fan_out, eps) if residual else None

    def construct(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = ops.relu(self.norm(self.conv(x_BHWC), given_BHW1))
        return x if self.residual is None else ops.relu(x + self.residual(x, given_BHW1))


class StemResidual(Cell):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = StemConvolution(dim, dim), StemNorm(dim, eps)
        self.conv2, self.norm2 = StemConvolution(dim, dim), StemNorm(dim, eps)

    def construct(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = ops.relu(self.norm1(self.conv1(x_BHWC), given_BHW1))
        return self.norm2(self.conv2(x), given_BHW1)


class StemConvolution(Cell):
    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = parameter(fan_out, fan_in, 3, 3)
        self.stride = stride

    def construct(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, C)."""
        x_BCHW = x_BHWC.transpose(0, 3, 1, 2)
        weight = standardized(self.weight).astype(x_BCHW.dtype)
        x_BCHW = conv2d(x_BCHW, weight, stride=self.stride, pad_mode="pad", padding=1)
        return x_BCHW.transpose(0, 2, 3, 1)


class StemNorm(Cell):
    """Of all values at all places of an image that are given; the others become 0. A factor and a bias each channel."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(dim), parameter(dim), eps

    def construct(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        weight, bias, x = self.weight.astype(x_BHWC.dtype), self.bias.astype(x_BHWC.dtype), x_BHWC.astype(float32)
        if given_BHW1 is None:
            x = x - x.mean((1, 2, 3), keep_dims=True)
            x = x * ops.rsqrt((x * x).mean((1, 2, 3), keep_dims=True) + self.eps)
            return x.astype(x_BHWC.dtype) * weight + bias
        given = given_BHW1.astype(float32)
        share = given.mean((1, 2, 3), keep_dims=True)
        x = (x - (x * given).mean((1, 2, 3), keep_dims=True) / share) * given
        x = x * ops.rsqrt((x * x).mean((1, 2, 3), keep_dims=True) / share + self.eps)
        return (x.astype(x_BHWC.dtype) * weight + bias) * given_BHW1


def standardized(weight: Parameter) -> Tensor:
    """(out, in, kh, kw) to mean 0 and variance 1 / fan-in of each output."""
    flat = weight.reshape(weight.shape[0], -1)
    flat = flat - flat.mean(1, keep_dims=True)
    return (flat / ops.sqrt((flat * flat).sum(1, keepdims=True) + STANDARDIZED_EPS)).reshape(weight.shape)


class PatchEmbed(Cell):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.channels, self.grid = model.patch_size, model.channels, model.grid
        pairs = list(pairwise((model.channels, *model.stem_widths)))
        inner = range(1, len(pairs) - 1)
        self.stem = nn.CellList([StemLayer(*pair, model.norm_eps, residual=i in inner) for i, pair in enumerate(pairs)])
        self.proj = None if pairs else PatchProjection(model)
        self.norm = LayerNorm(model.width, model.norm_eps) if model.patch_norm else None

    def construct(self, x_BLP: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens of patches; `ids` (B, L) says which these are, None: all, row by row."""
        x = self._stem(x_BLP, ids) if self.proj is None else self.proj(x_BLP)
        return x if self.norm is None else self.norm(x)

    def _stem(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        """Tokens as the convolutions leave them: (B, L, D). Patches that are not given are empty after each."""
        B = x_BLP.shape[0]
        (h, w), side = self.grid, self.patch_size
        places = None
        if ids is not None:  # as matrix products, whose gradients are fast
            places = ops.one_hot(ids, h * w, Tensor(1.0, x_BLP.dtype), Tensor(0.0, x_BLP.dtype))
            x_BLP = ops.matmul(places.transpose(0, 2, 1), x_BLP)
        x = x_BLP.reshape(B, h, w, side, side, self.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(B, h * side, w * side, self.channels)
        for layer in self.stem:
            side = side // 2
            x = layer(x, None if places is None else self._spread(places.sum(1), side))
        x = x.reshape(B, h * w, -1)
        return x if places is None else ops.matmul(places, x)

    def _spread(self, given_BL: Tensor, side: int) -> Tensor:
        """(B, H, W, 1) of (B, L): the same in all of a patch, which has `side` places down and across here."""
        B = given_BL.shape[0]
        h, w = self.grid
        places = ops.broadcast_to(given_BL.reshape(B, h, 1, w, 1, 1), (B, h, side, w, side, 1))
        return places.reshape(B, h * side, w * side, 1)


class VisionTransformer(Cell):
    """What all networks share: an encoder, its last norm, and how features are read out of it.

    As a cell for everyone it takes normalised floating images (B, C, H, W), in the dtype it is to compute in:
    `construct`, `forward_features`, `get_intermediate_layers`, `attention_maps`. The engine calls the methods that take
    pixels as they are stored, (B, H, W, C), which normalise only what they need; both go through the same layers.
    """

    terms: tuple[str, ...] = ("loss",)
    """Names of what the network's `loss` returns, the loss first: graphs of MindSpore 2.10 fail with some dicts."""

    def __init__(self, model: ModelConfig, pixels: Pixels, dtype: Any, *, pool: Pool, fc_norm: bool) -> None:
        """With `fc_norm` the last norm comes after the pooling, by the name fc_norm; else before, by the name norm."""
        super().__init__()
        D, eps = model.width, model.norm_eps
        self.image_size, self.patch_size, self.grid = model.image_size, model.patch_size, model.grid
        self.pool: Pool = pool
        self.full_range, self.dtype = pixels.full_range, dtype
        self.mean = Tensor(np.array(pixels.mean, np.float32))
        self.std = Tensor(np.array(pixels.std, np.float32))
        self.cls_tokens, self.register_tokens = int(model.cls_token), model.register_tokens
        self.prefix_tokens = model.prefix_tokens
        self.cls_token = parameter(1, 1, D) if model.cls_token else None
        self.reg_token = parameter(1, model.register_tokens, D) if model.register_tokens else None
        self.pos_embed = parameter(1, self.cls_tokens + model.num_patches, D)
        self.patch_embed = PatchEmbed(model)
        self.norm_pre = LayerNorm(D, eps) if model.pre_norm else None
        rates = drop_path_rates(model.drop_path, model.depth)
        self.blocks = nn.CellList([encoder_block(model, rate) for rate in rates])
        self.norm = None if fc_norm else LayerNorm(D, eps)
        self.fc_norm = LayerNorm(D, eps) if fc_norm else None

    # --- for everyone: normalised images (B, C, H, W) ---

    def construct(self, images_BCHW: Tensor) -> Tensor:
        """What the network says of whole images: pooled features (B, D), or a classifier's logits."""
        return self.pooled(self.encode(self._patches_of(images_BCHW)), self.pool)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, T, D) after the last norm: cls, registers, then the patches row by row.

        The patches are those from `prefix_tokens` on.
        """
        return self._last_norm(self.encode(self._patches_of(images_BCHW)))

    def get_intermediate_layers(
        self,
        images_BCHW: Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Patch tokens (B, L, D) after the last `n` blocks, or after the blocks of these numbers; as in DINOv2.

        With `reshape` they are (B, D, h, w); with `return_class_token` each comes with its cls token (B, D); with
        `norm` the last norm is applied to all of them. Raises ValueError for the cls token of a network without one.
        """
        if return_class_token:
            self._check_cls_token()
        wanted = range(len(self.blocks) - n, len(self.blocks)) if isinstance(n, int) else n
        x = self._embed(self._patches_of(images_BCHW), None)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            found[number] = x
        outputs = [self._last_norm(found[number]) if norm else found[number] for number in wanted]
        patches = [output[:, self.prefix_tokens :] for output in outputs]
        if reshape:
            B, _, D = patches[0].shape
            patches = [each.transpose(0, 2, 1).reshape(B, D, *self.grid) for each in patches]
        if return_class_token:  # a graph knows no zip with strict
            return tuple([(patches[i], outputs[i][:, 0]) for i in range(len(outputs))])
        return tuple(patches)

    def attention_maps(self, images_BCHW: Tensor, blocks: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """(B, H, T, T) fp32 of each of these blocks: the share of its attention each token (row) gives to each other.

        Tokens are those of `forward_features`.
        """
        x = self._embed(self._patches_of(images_BCHW), None)
        return tuple([self._attention(x, block) for block in blocks])

    # --- for the engine: pixels (B, H, W, C) as they are stored ---

    def features(self, pixels_BHWC: Tensor, *, pool: Pool | None = None) -> Tensor:
        """(B, D), or (B, 2 D) for mean+cls; `pool` defaults to the network's own. Errors as for `pooled`."""
        return self.pooled(self.encode(self.patches(pixels_BHWC)), pool or self.pool)

    def patch_features(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, h, w, D): the patch tokens after the last norm, in their places."""
        x = self._last_norm(self.encode(self.patches(pixels_BHWC)))[:, self.prefix_tokens :]
        return x.reshape(x.shape[0], *self.grid, x.shape[-1])

    def attention(self, pixels_BHWC: Tensor, *, block: int = -1) -> Tensor:
        """(B, H, T, T) fp32; see `attention_maps`."""
        return self._attention(self._embed(self.patches(pixels_BHWC), None), block)

    def patches(self, pixels_BHWC: Tensor) -> Tensor:
        """All patches, normalised: (B, L, P)."""
        return self.normalize(patchify(pixels_BHWC, self.patch_size)).astype(self.dtype)

    def normalize(self, patches: Tensor) -> Tensor:
        """Patches (..., P) to fp32 with the data's mean and std, in which `full_range` counts as 1."""
        repeat = patches.shape[-1] // self.mean.shape[0]
        scale = ops.tile(1 / (self.full_range * self.std), (repeat,))
        shift = ops.tile(self.mean / self.std, (repeat,))
        return patches.astype(float32) * scale - shift

    # --- what both share ---

    def encode(self, x_BLP: Tensor, ids: Tensor | None = None, keep_path: Tensor | None = None) -> Tensor:
        """Tokens (B, T, D) before the last norm: cls, registers, patches; `ids` (B, L) says which patches these are."""
        x = self._embed(x_BLP, ids)
        for i, block in enumerate(self.blocks):
            x = block(x, None if keep_path is None else keep_path[:, i])
        return x

    def pooled(self, x_BTD: Tensor, pool: Pool) -> Tensor:
        """Features of tokens before the last norm: (B, D), or (B, 2 D). Raises ValueError without the cls token."""
        if pool != "mean":
            self._check_cls_token()
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        parts = ("mean", "cls") if pool == "mean+cls" else (pool,)
        chosen = [x_BTD[:, self.prefix_tokens :].mean(1) if part == "mean" else x_BTD[:, 0] for part in parts]
        if self.fc_norm is not None:
            chosen = [self.fc_norm(part) for part in chosen]
        return chosen[0] if len(chosen) == 1 else ops.cat(chosen, 1)

    def _embed(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        pos_embed = self.pos_embed.astype(x_BLP.dtype)
        pos_LD = pos_embed[0, self.cls_tokens :]
        x = self.patch_embed(x_BLP, ids) + (pos_LD if ids is None else ops.gather(pos_LD, ids, 0))
        B, _, D = x.shape
        prefix = ()
        if self.cls_token is not None:
            prefix += (ops.broadcast_to(self.cls_token.astype(x.dtype) + pos_embed[:, :1], (B, 1, D)),)
        if self.reg_token is not None:
            prefix += (ops.broadcast_to(self.reg_token.astype(x.dtype), (B, self.register_tokens, D)),)
        x = ops.cat((*prefix, x), 1)
        return x if self.norm_pre is None else self.norm_pre(x)

    def _attention(self, x_BTD: Tensor, number: int) -> Tensor:
        """Of one block, from what enters the first: graphs (MindSpore 2.10) fail with blocks whose result is unused."""
        number = range(len(self.blocks))[number]
        for i in range(number):
            x_BTD = self.blocks[i](x_BTD)
        block = self.blocks[number]
        return block.attn.weights(block.norm1(x_BTD))

    def _last_norm(self, x_BTD: Tensor) -> Tensor:
        norm = self.norm if self.norm is not None else self.fc_norm
        return x_BTD if norm is None else norm(x_BTD)

    def _check_cls_token(self) -> None:
        if self.cls_token is None:
            raise ValueError("this network has no cls token")

    def _patches_of(self, images_BCHW: Tensor) -> Tensor:
        if tuple(images_BCHW.shape[2:]) != tuple(self.image_size):
            found, wanted = tuple(images_BCHW.shape), tuple(self.image_size)
            raise ValueError(f"images of shape {found}; this network takes (B, C, {wanted[0]}, {wanted[1]})")
        return patchify(images_BCHW.transpose(0, 2, 3, 1), self.patch_size)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias over the last axis."""
    y_NF = matmul_transposed(x.reshape(-1, x.shape[-1]), weight)
    y_NF = y_NF if bias is None else y_NF + bias
    return y_NF.reshape(*x.shape[:-1], weight.shape[0])


def last(x_BTD: Tensor, count: int) -> Tensor:
    """The last tokens; a slice of all of them would be copied, and slowly."""
    B, T, D = x_BTD.shape
    return x_BTD if count == T else ops.slice(x_BTD, (0, T - count, 0), (B, count, D))


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    patches = images_BHWC.reshape(B, H // p, p, W // p, p, C).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(B, (H // p) * (W // p), p * p * C)


def select(x_BLP: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, P): the patches with these numbers."""
    B, L, P = x_BLP.shape
    rows_BK = ids_BK + arange(0, B * L, L, dtype=int32).reshape(B, 1)
    return ops.gather(x_BLP.reshape(B * L, P), rows_BK, 0)
