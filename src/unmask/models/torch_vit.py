"""The Vision Transformer: single-device mathematics in PyTorch.

Shapes: B images, L patches, K kept, T tokens (cls, registers, patches), D width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The MindSpore twin has the same names in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.data.masking import drop_path_rates
from unmask.models.parameters import STANDARDIZED_EPS

Pool = Literal["mean", "cls", "mean+cls"]
"""How tokens become one vector: mean of the patch tokens, the cls token, or both one after the other."""


def parameter(*shape: int) -> nn.Parameter:
    """NaN until the engine loads weights: one that is forgotten shows."""
    return nn.Parameter(torch.full(shape, torch.nan))


class Linear(nn.Linear):
    bias: nn.Parameter | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def reset_parameters(self) -> None:
        """As `parameter`."""
        nn.init.constant_(self.weight, torch.nan)
        if self.bias is not None:
            nn.init.constant_(self.bias, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


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
        return self.fc2(F.gelu(self.fc1(x)))


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


class PatchProjection(nn.Conv2d):
    """The convolution that makes tokens of patches, as the matrix product over patches that it equals."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.channels, model.width, kernel_size=model.patch_size, stride=model.patch_size)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)
        if self.bias is not None:
            nn.init.constant_(self.bias, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        """Patches (B, L, P) to tokens (B, L, D)."""
        weight_DP = self.weight.permute(0, 2, 3, 1).flatten(1)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, weight_DP.to(input.dtype), bias)


class StemLayer(nn.Module):
    """A convolution that halves an image, and perhaps two more that add to what it gives (He et al. 2016).

    Their weights are standardised and each has a norm over all places after it (Qiao et al. 2019): with a LayerNorm at
    each place instead, training on a thousand images took more than twice as long (docs/log.md). Places that are not
    given are empty after each and do not count.
    """

    def __init__(self, fan_in: int, fan_out: int, eps: float, *, residual: bool) -> None:
        super().__init__()
        self.conv = StemConvolution(fan_in, fan_out, stride=2)
        self.norm = StemNorm(fan_out, eps)
        self.residual = StemResidual(fan_out, eps) if residual else None

    def forward(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = F.relu(self.norm(self.conv(x_BHWC), given_BHW1))
        return x if self.residual is None else F.relu(x + self.residual(x, given_BHW1))


class StemResidual(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = StemConvolution(dim, dim), StemNorm(dim, eps)
        self.conv2, self.norm2 = StemConvolution(dim, dim), StemNorm(dim, eps)

    def forward(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x_BHWC), given_BHW1))
        return self.norm2(self.conv2(x), given_BHW1)


class StemConvolution(nn.Conv2d):
    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__(fan_in, fan_out, kernel_size=3, stride=stride, padding=1, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, C)."""
        x_BCHW = input.permute(0, 3, 1, 2)
        weight = standardized(self.weight).to(input.dtype)
        return F.conv2d(x_BCHW, weight, stride=self.stride, padding=self.padding).permute(0, 2, 3, 1)


class StemNorm(nn.Module):
    """Of all values at all places of an image that are given; the others become 0. A factor and a bias each channel."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = parameter(dim), parameter(dim), eps

    def forward(self, x_BHWC: Tensor, given_BHW1: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(x_BHWC.dtype), self.bias.to(x_BHWC.dtype)
        if given_BHW1 is None:
            return F.layer_norm(x_BHWC, x_BHWC.shape[1:], eps=self.eps) * weight + bias
        x, given = x_BHWC.float(), given_BHW1.float()
        share = given.mean((1, 2, 3), keepdim=True)
        x = (x - (x * given).mean((1, 2, 3), keepdim=True) / share) * given
        x = x * (x.square().mean((1, 2, 3), keepdim=True) / share + self.eps).rsqrt()
        return (x.to(x_BHWC.dtype) * weight + bias) * given_BHW1


def standardized(weight: Tensor) -> Tensor:
    """(out, in, kh, kw) to mean 0 and variance 1 / fan-in of each output."""
    flat = weight.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / (flat.square().sum(1, keepdim=True) + STANDARDIZED_EPS).sqrt()).view_as(weight)


class PatchEmbed(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.channels, self.grid = model.patch_size, model.channels, model.grid
        pairs = list(pairwise((model.channels, *model.stem_widths)))
        inner = range(1, len(pairs) - 1)
        self.stem = nn.ModuleList(
            [StemLayer(*pair, model.norm_eps, residual=i in inner) for i, pair in enumerate(pairs)]
        )
        self.proj = None if pairs else PatchProjection(model)
        self.norm = LayerNorm(model.width, model.norm_eps) if model.patch_norm else None

    def forward(self, x_BLP: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens of patches; `ids` (B, L) says which these are, None: all, row by row."""
        x = self._stem(x_BLP, ids) if self.proj is None else self.proj(x_BLP)
        return x if self.norm is None else self.norm(x)

    def _stem(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        """Tokens as the convolutions leave them: (B, L, D). Patches that are not given are empty after each."""
        B, _, P = x_BLP.shape
        (h, w), side = self.grid, self.patch_size
        given = None
        if ids is not None:
            given = x_BLP.new_zeros(B, h * w, 1).scatter(1, ids[:, :, None], 1.0)
            x_BLP = x_BLP.new_zeros(B, h * w, P).scatter(1, ids[:, :, None].expand(-1, -1, P), x_BLP)
        x = x_BLP.reshape(B, h, w, side, side, self.channels).transpose(2, 3).reshape(B, h * side, w * side, -1)
        for layer in self.stem:
            side //= 2
            x = layer(x, None if given is None else self._spread(given, side))
        x = x.flatten(1, 2)
        return x if ids is None else select(x, ids)

    def _spread(self, given_BL1: Tensor, side: int) -> Tensor:
        """(B, H, W, 1) of (B, L, 1): the same in all of a patch, which has `side` places down and across here."""
        h, w = self.grid
        places = given_BL1.view(-1, h, 1, w, 1, 1).expand(-1, -1, side, -1, side, -1)
        return places.reshape(-1, h * side, w * side, 1)


class VisionTransformer(nn.Module):
    """What all networks share: an encoder, its last norm, and how features are read out of it.

    As a module for everyone it takes normalised floating images (B, C, H, W), in the dtype it is to compute in:
    `forward`, `forward_features`, `get_intermediate_layers`, `attention_maps`. The engine calls the methods that take
    pixels as they are stored, (B, H, W, C), which normalise only what they need; both go through the same layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, pixels: Pixels, dtype: torch.dtype, *, pool: Pool, fc_norm: bool) -> None:
        """With `fc_norm` the last norm comes after the pooling, by the name fc_norm; else before, by the name norm."""
        super().__init__()
        D, eps = model.width, model.norm_eps
        self.image_size, self.patch_size, self.grid = model.image_size, model.patch_size, model.grid
        self.pool: Pool = pool
        self.full_range, self.dtype = pixels.full_range, dtype
        self.register_buffer("mean", torch.tensor(pixels.mean), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std), persistent=False)
        self.cls_tokens, self.register_tokens = int(model.cls_token), model.register_tokens
        self.prefix_tokens = model.prefix_tokens
        self.cls_token = parameter(1, 1, D) if model.cls_token else None
        self.reg_token = parameter(1, model.register_tokens, D) if model.register_tokens else None
        self.pos_embed = parameter(1, self.cls_tokens + model.num_patches, D)
        self.patch_embed = PatchEmbed(model)
        self.norm_pre = LayerNorm(D, eps) if model.pre_norm else None
        rates = drop_path_rates(model.drop_path, model.depth)
        self.blocks = nn.ModuleList([encoder_block(model, rate) for rate in rates])
        self.norm = None if fc_norm else LayerNorm(D, eps)
        self.fc_norm = LayerNorm(D, eps) if fc_norm else None

    # --- for everyone: normalised images (B, C, H, W) ---

    def forward(self, images_BCHW: Tensor) -> Tensor:
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
            patches = [each.transpose(1, 2).unflatten(2, self.grid) for each in patches]
        if return_class_token:
            return tuple((each, output[:, 0]) for each, output in zip(patches, outputs, strict=True))
        return tuple(patches)

    def attention_maps(self, images_BCHW: Tensor, blocks: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """(B, H, T, T) fp32 of each of these blocks: the share of its attention each token (row) gives to each other.

        Tokens are those of `forward_features`.
        """
        return self._attention(self._patches_of(images_BCHW), blocks)

    # --- for the engine: pixels (B, H, W, C) as they are stored ---

    def features(self, pixels_BHWC: Tensor, *, pool: Pool | None = None) -> Tensor:
        """(B, D), or (B, 2 D) for mean+cls; `pool` defaults to the network's own. Errors as for `pooled`."""
        return self.pooled(self.encode(self.patches(pixels_BHWC)), pool or self.pool)

    def patch_features(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, h, w, D): the patch tokens after the last norm, in their places."""
        x = self._last_norm(self.encode(self.patches(pixels_BHWC)))
        return x[:, self.prefix_tokens :].unflatten(1, self.grid)

    def attention(self, pixels_BHWC: Tensor, *, block: int = -1) -> Tensor:
        """(B, H, T, T) fp32; see `attention_maps`."""
        return self._attention(self.patches(pixels_BHWC), (block,))[0]

    def patches(self, pixels_BHWC: Tensor) -> Tensor:
        """All patches, normalised: (B, L, P)."""
        return self.normalize(patchify(pixels_BHWC, self.patch_size)).to(self.dtype)

    def normalize(self, patches: Tensor) -> Tensor:
        """Patches (..., P) to fp32 with the data's mean and std, in which `full_range` counts as 1."""
        repeat = patches.shape[-1] // len(self.mean)
        scale, shift = (1 / (self.full_range * self.std)).repeat(repeat), (self.mean / self.std).repeat(repeat)
        return patches.float() * scale - shift

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
        parts = {"mean": x_BTD[:, self.prefix_tokens :].mean(1), "cls": x_BTD[:, 0]}
        chosen = [parts[part] for part in pool.split("+")]
        if self.fc_norm is not None:
            chosen = [self.fc_norm(part) for part in chosen]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)

    def _embed(self, x_BLP: Tensor, ids: Tensor | None) -> Tensor:
        pos_embed = self.pos_embed.to(x_BLP.dtype)
        pos_LD = pos_embed[0, self.cls_tokens :]
        x = self.patch_embed(x_BLP, ids) + (pos_LD if ids is None else pos_LD[ids])
        prefix: list[Tensor] = []
        if self.cls_token is not None:
            prefix.append(self.cls_token.to(x.dtype) + pos_embed[:, :1])
        if self.reg_token is not None:
            prefix.append(self.reg_token.to(x.dtype))
        x = torch.cat([*(tokens.expand(x.shape[0], -1, -1) for tokens in prefix), x], dim=1)
        return x if self.norm_pre is None else self.norm_pre(x)

    def _attention(self, x_BLP: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        wanted = [range(len(self.blocks))[number] for number in blocks]
        x = self._embed(x_BLP, None)
        maps: dict[int, Tensor] = {}
        for number, block in enumerate(cast("Iterable[Block]", self.blocks[: max(wanted) + 1])):
            if number in wanted:
                maps[number] = block.attn.weights(block.norm1(x))
            if number < max(wanted):
                x = block(x)
        return tuple(maps[number] for number in wanted)

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
        return patchify(images_BCHW.permute(0, 2, 3, 1), self.patch_size)


def attention(q_BHQd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v, (B, H, Q, d)."""
    if products_are_faster(q_BHQd):
        scores_BHQT = (q_BHQd * q_BHQd.shape[-1] ** -0.5) @ k_BHTd.transpose(-2, -1)
        return scores_BHQT.softmax(-1) @ v_BHTd
    return F.scaled_dot_product_attention(q_BHQd, k_BHTd, v_BHTd)


def products_are_faster(x: Tensor) -> bool:
    """The fused kernel's backward takes twice to four times as long in bf16 on the CPU as plain products; its forward
    pass alone takes two thirds."""
    return x.device.type == "cpu" and x.dtype != torch.float32 and torch.is_grad_enabled()


def cast_once(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network, to be read alone, with the weights of its products in the dtype it computes in: the same bits,
    without a cast in every batch. All other tensors are shared."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for layer in network.modules():
        if isinstance(layer, Linear | PatchProjection | StemConvolution):
            memo[id(layer.weight)] = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(network, memo)


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    return images_BHWC.reshape(B, H // p, p, W // p, p, C).transpose(2, 3).reshape(B, -1, p * p * C)


def select(x_BLP: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, P): the patches with these numbers."""
    return x_BLP.gather(1, ids_BK[:, :, None].expand(-1, -1, x_BLP.shape[-1]))
