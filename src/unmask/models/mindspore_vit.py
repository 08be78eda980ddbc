"""The masked autoencoder and the classifier: single-device mathematics in MindSpore (He et al. 2021).

Shapes: B images, L patches, K kept, M = L - K masked, T tokens, D width, E decoder width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The PyTorch twin has the same names in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, float32, int32, nn, ops

from unmask.config.schema import ModelConfig
from unmask.data.masking import drop_path_rates
from unmask.models.mindspore_operators import Cell, NormalCdf, Normalize, Softmax

EPS = 1e-6
arange: Any = ops.arange
matmul_transposed: Any = ops.MatMul(transpose_b=True)


def parameter(*shape: int) -> Parameter:
    return Parameter(Tensor(np.full(shape, np.nan, np.float32)))


class Linear(Cell):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = parameter(fan_out, fan_in)
        self.bias = parameter(fan_out)

    def construct(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.astype(x.dtype), self.bias.astype(x.dtype))


class LayerNorm(Cell):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = parameter(dim)
        self.bias = parameter(dim)
        self.normalize = Normalize(EPS)

    def construct(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        return self.normalize(x_ND, self.weight.astype(x.dtype), self.bias.astype(x.dtype)).reshape(x.shape)


class Attention(Cell):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.split3, self.split2 = ops.Split(-1, 3), ops.Split(-1, 2)
        self.matmul, self.matmul_transposed = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.softmax = Softmax()

    def construct(self, x_BTD: Tensor, queries: int) -> Tensor:
        """Attention of the last `queries` tokens to all."""
        B, T, D = x_BTD.shape
        if queries == T:
            q, k, v = self.split3(self.qkv(x_BTD))
        else:
            weight, bias = self.qkv.weight.astype(x_BTD.dtype), self.qkv.bias.astype(x_BTD.dtype)
            q = linear(last(x_BTD, queries), weight[:D], bias[:D])
            k, v = self.split2(linear(x_BTD, weight[D:], bias[D:]))
        q_BHTd = self._split_heads(q) * (D // self.heads) ** -0.5
        attention = self.softmax(self.matmul_transposed(q_BHTd, self._split_heads(k)))
        x_BHTd = self.matmul(attention, self._split_heads(v))
        return self.proj(x_BHTd.transpose(0, 2, 1, 3).reshape(B, queries, D))

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


class Block(Cell):
    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def construct(self, x_BTD: Tensor, keep_path_B2: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Pre-norm block; with `queries`, only the last tokens come out, the others serve as context."""
        queries = x_BTD.shape[1] if queries is None else queries
        attended = self.attn(self.norm1(x_BTD), queries)
        x = last(x_BTD, queries) + self._drop(attended, keep_path_B2, 0)
        return x + self._drop(self.mlp(self.norm2(x)), keep_path_B2, 1)

    def _drop(self, branch: Tensor, keep_path_B2: Tensor | None, which: int) -> Tensor:
        if keep_path_B2 is None or self.drop_path == 0:
            return branch
        return branch * (keep_path_B2[:, which].astype(branch.dtype) / (1 - self.drop_path)).reshape(-1, 1, 1)


class PatchProjection(Cell):
    """The weight has the layout of the convolution it equals, (D, C, p, p)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(model.width, model.channels, model.patch_size, model.patch_size)
        self.bias = parameter(model.width)

    def construct(self, x_BLP: Tensor) -> Tensor:
        weight_DP = self.weight.transpose(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
        return linear(x_BLP, weight_DP.astype(x_BLP.dtype), self.bias.astype(x_BLP.dtype))


class PatchEmbed(Cell):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.proj = PatchProjection(model)

    def construct(self, x_BLP: Tensor) -> Tensor:
        return self.proj(x_BLP)


class VisionTransformer(Cell):
    """What pretraining and classification share: patches in, tokens after the last block out."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        D, hidden = model.width, int(model.width * model.mlp_ratio)
        self.cls_token = parameter(1, 1, D)
        self.pos_embed = parameter(1, model.num_patches + 1, D)
        self.patch_embed = PatchEmbed(model)
        rates = drop_path_rates(model.drop_path, model.depth)
        self.blocks = nn.CellList([Block(D, model.heads, hidden, rate) for rate in rates])

    def encode(self, x_BLP: Tensor, ids: Tensor | None = None, keep_path: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + L, D), cls first, of normalised patches; `ids` (B, L) says which patches these are."""
        pos_embed = self.pos_embed.astype(x_BLP.dtype)
        pos_LD = pos_embed[0, 1:]
        x = self.patch_embed(x_BLP) + (pos_LD if ids is None else ops.gather(pos_LD, ids, 0))
        cls = self.cls_token.astype(x.dtype) + pos_embed[:, :1]
        x = ops.cat((ops.broadcast_to(cls, (x.shape[0], 1, x.shape[2])), x), 1)
        for i, block in enumerate(self.blocks):
            x = block(x, None if keep_path is None else keep_path[:, i])
        return x


class MaskedAutoencoder(VisionTransformer):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        D, E = model.width, model.decoder_width
        self.norm = LayerNorm(D)
        self.decoder_embed = Linear(D, E)
        self.mask_token = parameter(1, 1, E)
        self.decoder_pos_embed = parameter(1, model.num_patches + 1, E)
        hidden = int(E * model.mlp_ratio)
        self.decoder_blocks = nn.CellList([Block(E, model.decoder_heads, hidden) for _ in range(model.decoder_depth)])
        self.decoder_norm = LayerNorm(E)
        self.decoder_pred = Linear(E, model.patch_dim)

    def construct(self, x_BKP: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor) -> Tensor:
        """Prediction (B, M, P) of the masked patches from the normalised kept ones."""
        return self.decode(self.encode(x_BKP, ids_keep_BK), ids_keep_BK, ids_mask_BM, ids_mask_BM.shape[1])

    def decode(self, x_BTD: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor, queries: int) -> Tensor:
        """Prediction of the last `queries` tokens in the order [cls, kept, masked].

        The tokens stay in that order: attention does not care, the position embedding tells.
        """
        x = self.decoder_embed(self.norm(x_BTD))
        pos_embed = self.decoder_pos_embed.astype(x.dtype)
        pos_LE = pos_embed[0, 1:]
        x = ops.cat(
            (
                x[:, :1] + pos_embed[:, :1],
                x[:, 1:] + ops.gather(pos_LE, ids_keep_BK, 0),
                self.mask_token.astype(x.dtype) + ops.gather(pos_LE, ids_mask_BM, 0),
            ),
            1,
        )
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, None, queries)
        return self.decoder_pred(self.decoder_norm(x))

    def embed(self, x_BLP: Tensor) -> Tensor:
        """(B, D): mean of the patch tokens of the unmasked image, after the final norm."""
        return self.norm(self.encode(x_BLP))[:, 1:].mean(1)


class Classifier(VisionTransformer):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        if model.num_classes is None:
            raise ValueError("model.num_classes is not set")
        self.pool = model.pool
        if model.pool == "mean":
            self.fc_norm = LayerNorm(model.width)
        else:
            self.norm = LayerNorm(model.width)
        self.head = Linear(model.width, model.num_classes)

    def construct(self, x_BLP: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of normalised patches."""
        return self.head(self.embed(x_BLP, keep_path))

    def embed(self, x_BLP: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """(B, D): the norm of the mean patch token (`fc_norm`), or the normalised cls token."""
        x = self.encode(x_BLP, None, keep_path)
        if self.pool == "mean":
            return self.fc_norm(x[:, 1:].mean(1))
        return self.norm(x)[:, 0]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight.T + bias over the last axis."""
    x_NF = x.reshape(-1, x.shape[-1])
    return (matmul_transposed(x_NF, weight) + bias).reshape(*x.shape[:-1], weight.shape[0])


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


def normalize(patches: Tensor, mean: Tensor, std: Tensor, full_range: float) -> Tensor:
    """Patches (..., P) to fp32 with the data's mean and std (C,), in which `full_range` counts as 1."""
    repeat = patches.shape[-1] // mean.shape[0]
    scale, shift = ops.tile(1 / (full_range * std), (repeat,)), ops.tile(mean / std, (repeat,))
    return patches.astype(float32) * scale - shift


def reconstruction_target(patches_BMP: Tensor, norm_pix_loss: bool) -> Tensor:
    """fp32 target; with `norm_pix_loss` each patch has mean 0 and (unbiased) variance 1."""
    if not norm_pix_loss:
        return patches_BMP
    centred = patches_BMP - patches_BMP.mean(-1, keep_dims=True)
    var = (centred * centred).sum(-1, keepdims=True) / (patches_BMP.shape[-1] - 1)
    return centred / ops.sqrt(var + EPS)
