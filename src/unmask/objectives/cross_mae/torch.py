"""CrossMAE in PyTorch (Fu et al. 2024). The MindSpore twin has the same names in the same order.

Shapes as in `unmask.objectives.mae.torch`, and J decoder blocks, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import LayerNorm, Linear, Mlp, attention
from unmask.models.torch_patches import select
from unmask.objectives.cross_mae import CrossMaeSection
from unmask.objectives.mae.torch import MaskedAutoencoder


class CrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim)
        self.kv = Linear(context_dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_BQE: Tensor, context_BTD: Tensor) -> Tensor:
        """Attention of each query to the context."""
        B, Q, E = x_BQE.shape
        q = self.q(x_BQE).view(B, Q, self.heads, -1)
        k, v = self.kv(context_BTD).view(B, context_BTD.shape[1], 2, self.heads, -1).unbind(2)
        x_BHQd = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x_BHQd.transpose(1, 2).reshape(B, Q, E))


class CrossBlock(nn.Module):
    """Pre-norm, without attention among the queries."""

    def __init__(self, dim: int, context_dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.attn = CrossAttention(dim, context_dim, heads)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x_BQE: Tensor, context_BTD: Tensor) -> Tensor:
        x = x_BQE + self.attn(self.norm1(x_BQE), context_BTD)
        return x + self.mlp(self.norm2(x))


class FeatureSums(nn.Module):
    """A learned sum of features for each decoder block."""

    def __init__(self, features: int, sums: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((sums, features), torch.nan))

    def forward(self, features: list[Tensor]) -> Tensor:
        """(J, *shape) from features of one shape."""
        return torch.einsum("jn,n...->j...", self.weight.to(features[0].dtype), torch.stack(features))


class CrossMaskedAutoencoder(MaskedAutoencoder):
    def __init__(self, model: ModelConfig, section: CrossMaeSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, section, pixels, dtype)
        D, E, J = model.width, model.decoder_width, model.decoder_depth
        heads, hidden = model.decoder_heads, int(E * model.mlp_ratio)
        del self.decoder_embed  # keys and values come from the encoder's width
        self.decoder_features = FeatureSums(1 + model.depth, J) if section.weighted_features else None
        self.decoder_blocks = nn.ModuleList([CrossBlock(E, D, heads, hidden, model.norm_eps) for _ in range(J)])

    def encode_kept(self, patches_BLP: Tensor, ids_keep: Tensor) -> Tensor:
        """What each decoder block attends to, cls and kept patches: (J, B, 1 + K, D)."""
        x = self._embed(self.normalize(select(patches_BLP, ids_keep)).to(self.dtype), ids_keep)
        features = [self._without_registers(x)]
        for block in self.blocks:
            x = block(x)
            features.append(self._without_registers(x))
        if self.decoder_features is None:
            return self.norm(features[-1]).expand(len(self.decoder_blocks), -1, -1, -1)
        return self.norm(self.decoder_features(features))

    def _without_registers(self, x_BTD: Tensor) -> Tensor:
        if not self.register_tokens:
            return x_BTD
        patches = x_BTD[:, self.prefix_tokens :]
        return torch.cat([x_BTD[:, :1], patches], dim=1) if self.cls_tokens else patches

    def decode(self, x_BTD: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor, queries: int) -> Tensor:
        """Prediction of the last `queries` patches in the order [kept, masked]; `x_BTD` is what `encode_kept` gives."""
        ids = torch.cat([ids_keep_BK, ids_mask_BM], dim=1)[:, -queries:]
        x = (self.mask_token + self.decoder_pos_embed[0, self.cls_tokens :][ids]).to(x_BTD.dtype)
        for i, block in enumerate(self.decoder_blocks):
            x = block(x, x_BTD[i])
        return self.decoder_pred(self.decoder_norm(x))
