"""The masked autoencoder and the classifier: single-device mathematics in PyTorch (He et al. 2021).

Shapes: B images, L patches, K kept, M = L - K masked, T tokens, D width, E decoder width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The MindSpore twin has the same names in the same order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.masking import drop_path_rates

EPS = 1e-6


class Linear(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((fan_out, fan_in), torch.nan))
        self.bias = nn.Parameter(torch.full((fan_out,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), torch.nan))
        self.bias = nn.Parameter(torch.full((dim,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), EPS)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_BTD: Tensor, queries: int) -> Tensor:
        """Attention of the last `queries` tokens to all."""
        B, T, D = x_BTD.shape
        if queries == T:
            q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).unbind(2)
        else:
            weight, bias = self.qkv.weight.to(x_BTD.dtype), self.qkv.bias.to(x_BTD.dtype)
            q = F.linear(x_BTD[:, -queries:], weight[:D], bias[:D]).view(B, queries, self.heads, -1)
            k, v = F.linear(x_BTD, weight[D:], bias[D:]).view(B, T, 2, self.heads, -1).unbind(2)
        x_BHQd = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x_BHQd.transpose(1, 2).reshape(B, queries, D))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x_BTD: Tensor, keep_path_B2: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Pre-norm block; with `queries`, only the last tokens come out, the others serve as context."""
        queries = x_BTD.shape[1] if queries is None else queries
        attended = self.attn(self.norm1(x_BTD), queries)
        x = x_BTD[:, -queries:] + self._drop(attended, keep_path_B2, 0)
        return x + self._drop(self.mlp(self.norm2(x)), keep_path_B2, 1)

    def _drop(self, branch: Tensor, keep_path_B2: Tensor | None, which: int) -> Tensor:
        if keep_path_B2 is None or self.drop_path == 0:
            return branch
        return branch * (keep_path_B2[:, which].to(branch.dtype) / (1 - self.drop_path))[:, None, None]


class PatchEmbed(nn.Module):
    """The projection of patches; its weight has the layout of the convolution it equals, (D, C, p, p)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        shape = (model.width, model.channels, model.patch_size, model.patch_size)
        self.proj = nn.ParameterDict(
            {"weight": torch.full(shape, torch.nan), "bias": torch.full((model.width,), torch.nan)}
        )

    def forward(self, x_BLP: Tensor) -> Tensor:
        weight_DP = self.proj["weight"].permute(0, 2, 3, 1).flatten(1)
        return F.linear(x_BLP, weight_DP.to(x_BLP.dtype), self.proj["bias"].to(x_BLP.dtype))


class VisionTransformer(nn.Module):
    """What pretraining and classification share: patches in, tokens after the last block out."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        D, hidden = model.width, int(model.width * model.mlp_ratio)
        self.cls_token = nn.Parameter(torch.full((1, 1, D), torch.nan))
        self.pos_embed = nn.Parameter(torch.full((1, model.num_patches + 1, D), torch.nan))
        self.patch_embed = PatchEmbed(model)
        rates = drop_path_rates(model.drop_path, model.depth)
        self.blocks = nn.ModuleList([Block(D, model.heads, hidden, rate) for rate in rates])

    def encode(self, x_BLP: Tensor, ids: Tensor | None = None, keep_path: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + L, D), cls first, of normalised patches; `ids` (B, L) says which patches these are."""
        pos_embed = self.pos_embed.to(x_BLP.dtype)
        pos_LD = pos_embed[0, 1:]
        x = self.patch_embed(x_BLP) + (pos_LD if ids is None else pos_LD[ids])
        cls = self.cls_token.to(x.dtype) + pos_embed[:, :1]
        x = torch.cat([cls.expand(len(x), -1, -1), x], dim=1)
        for i, block in enumerate(self.blocks):
            x = block(x, None if keep_path is None else keep_path[:, i])
        return x


class MaskedAutoencoder(VisionTransformer):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        D, E = model.width, model.decoder_width
        self.norm = LayerNorm(D)
        self.decoder_embed = Linear(D, E)
        self.mask_token = nn.Parameter(torch.full((1, 1, E), torch.nan))
        self.decoder_pos_embed = nn.Parameter(torch.full((1, model.num_patches + 1, E), torch.nan))
        hidden = int(E * model.mlp_ratio)
        self.decoder_blocks = nn.ModuleList([Block(E, model.decoder_heads, hidden) for _ in range(model.decoder_depth)])
        self.decoder_norm = LayerNorm(E)
        self.decoder_pred = Linear(E, model.patch_dim)

    def forward(self, x_BKP: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor) -> Tensor:
        """Prediction (B, M, P) of the masked patches from the normalised kept ones."""
        return self.decode(self.encode(x_BKP, ids_keep_BK), ids_keep_BK, ids_mask_BM, ids_mask_BM.shape[1])

    def decode(self, x_BTD: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor, queries: int) -> Tensor:
        """Prediction of the last `queries` tokens in the order [cls, kept, masked].

        The tokens stay in that order: attention does not care, the position embedding tells.
        """
        x = self.decoder_embed(self.norm(x_BTD))
        pos_embed = self.decoder_pos_embed.to(x.dtype)
        pos_LE = pos_embed[0, 1:]
        x = torch.cat(
            [
                x[:, :1] + pos_embed[:, :1],
                x[:, 1:] + pos_LE[ids_keep_BK],
                self.mask_token.to(x.dtype) + pos_LE[ids_mask_BM],
            ],
            dim=1,
        )
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, queries=queries)
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

    def forward(self, x_BLP: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of normalised patches."""
        return self.head(self.embed(x_BLP, keep_path))

    def embed(self, x_BLP: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """(B, D): the norm of the mean patch token (`fc_norm`), or the normalised cls token."""
        x = self.encode(x_BLP, keep_path=keep_path)
        return self.fc_norm(x[:, 1:].mean(1)) if self.pool == "mean" else self.norm(x)[:, 0]


def attention(q_BHQd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v, (B, H, Q, d)."""
    if q_BHQd.device.type != "cpu" or q_BHQd.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_BHQd, k_BHTd, v_BHTd)
    # The fused kernel's backward takes twice to four times as long in bf16 on the CPU as these products.
    scores_BHQT = (q_BHQd * q_BHQd.shape[-1] ** -0.5) @ k_BHTd.transpose(-2, -1)
    return scores_BHQT.softmax(-1) @ v_BHTd


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, L, P): patches row by row, the values of each in the order row, column, channel."""
    B, H, W, C = images_BHWC.shape
    p = patch_size
    return images_BHWC.view(B, H // p, p, W // p, p, C).transpose(2, 3).reshape(B, -1, p * p * C)


def select(x_BLP: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, P): the patches with these numbers."""
    return x_BLP.gather(1, ids_BK[:, :, None].expand(-1, -1, x_BLP.shape[-1]))


def normalize(patches: Tensor, mean: Tensor, std: Tensor, full_range: float) -> Tensor:
    """Patches (..., P) to fp32 with the data's mean and std (C,), in which `full_range` counts as 1."""
    repeat = patches.shape[-1] // len(mean)
    scale, shift = (1 / (full_range * std)).repeat(repeat), (mean / std).repeat(repeat)
    return patches.float() * scale - shift


def reconstruction_target(patches_BMP: Tensor, norm_pix_loss: bool) -> Tensor:
    """fp32 target; with `norm_pix_loss` each patch has mean 0 and (unbiased) variance 1."""
    if not norm_pix_loss:
        return patches_BMP
    mean = patches_BMP.mean(-1, keepdim=True)
    var = patches_BMP.var(-1, keepdim=True)
    return (patches_BMP - mean) / (var + EPS).sqrt()
