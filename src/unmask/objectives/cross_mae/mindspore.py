"""CrossMAE in MindSpore (Fu et al. 2024). The PyTorch twin has the same names in the same order.

Shapes as in `unmask.objectives.mae.mindspore`, and J decoder blocks, Q queries.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_layers import LayerNorm, Linear, Mlp, parameter
from unmask.models.mindspore_operators import Cell, Softmax
from unmask.models.mindspore_patches import select
from unmask.objectives.cross_mae import CrossMaeSection
from unmask.objectives.mae.mindspore import MaskedAutoencoder


class CrossAttention(Cell):
    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim)
        self.kv = Linear(context_dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.split2 = ops.Split(-1, 2)
        self.matmul, self.matmul_transposed = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.softmax = Softmax()

    def construct(self, x_BQE: Tensor, context_BTD: Tensor) -> Tensor:
        """Attention of each query to the context."""
        B, Q, E = x_BQE.shape
        k, v = self.split2(self.kv(context_BTD))
        q_BHQd = self._split_heads(self.q(x_BQE)) * (E // self.heads) ** -0.5
        attention = self.softmax(self.matmul_transposed(q_BHQd, self._split_heads(k)))
        x_BHQd = self.matmul(attention, self._split_heads(v))
        return self.proj(x_BHQd.transpose(0, 2, 1, 3).reshape(B, Q, E))

    def _split_heads(self, x_BTE: Tensor) -> Tensor:
        B, T, E = x_BTE.shape
        return x_BTE.reshape(B, T, self.heads, E // self.heads).transpose(0, 2, 1, 3)


class CrossBlock(Cell):
    """Pre-norm, without attention among the queries."""

    def __init__(self, dim: int, context_dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.attn = CrossAttention(dim, context_dim, heads)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden)

    def construct(self, x_BQE: Tensor, context_BTD: Tensor) -> Tensor:
        x = x_BQE + self.attn(self.norm1(x_BQE), context_BTD)
        return x + self.mlp(self.norm2(x))


class FeatureSums(Cell):
    """A learned sum of features for each decoder block."""

    def __init__(self, features: int, sums: int) -> None:
        super().__init__()
        self.weight = parameter(sums, features)
        self.matmul: Any = ops.MatMul()

    def construct(self, features: list[Tensor]) -> Tensor:
        """(J, *shape) from features of one shape."""
        stacked = ops.stack(features)
        sums = self.matmul(self.weight.astype(stacked.dtype), stacked.reshape(stacked.shape[0], -1))
        return sums.reshape(sums.shape[0], *stacked.shape[1:])


class CrossMaskedAutoencoder(MaskedAutoencoder):
    def __init__(self, model: ModelConfig, section: CrossMaeSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__(model, section, pixels, dtype)
        D, E, J = model.width, model.decoder_width, model.decoder_depth
        heads, hidden = model.decoder_heads, int(E * model.mlp_ratio)
        del self.decoder_embed  # keys and values come from the encoder's width
        self.decoder_features = FeatureSums(1 + model.depth, J) if section.weighted_features else None
        self.decoder_blocks = nn.CellList([CrossBlock(E, D, heads, hidden, model.norm_eps) for _ in range(J)])

    def encode_kept(self, patches_BLP: Tensor, ids_keep: Tensor) -> Tensor:
        """What each decoder block attends to, cls and kept patches: (J, B, 1 + K, D)."""
        x = self._embed(self.normalize(select(patches_BLP, ids_keep)).astype(self.dtype), ids_keep)
        features = [self._without_registers(x)]
        for block in self.blocks:
            x = block(x)
            features.append(self._without_registers(x))
        if self.decoder_features is None:
            x = self.norm(features[-1])
            return ops.broadcast_to(x, (len(self.decoder_blocks), *x.shape))
        return self.norm(self.decoder_features(features))

    def _without_registers(self, x_BTD: Tensor) -> Tensor:
        if not self.register_tokens:
            return x_BTD
        patches = x_BTD[:, self.prefix_tokens :]
        return ops.cat((x_BTD[:, :1], patches), 1) if self.cls_tokens else patches

    def decode(self, x_BTD: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor, queries: int) -> Tensor:
        """Prediction of the last `queries` patches in the order [kept, masked]; `x_BTD` is what `encode_kept` gives."""
        ids = ids_mask_BM if queries == ids_mask_BM.shape[1] else ops.cat((ids_keep_BK, ids_mask_BM), 1)
        x = (self.mask_token + ops.gather(self.decoder_pos_embed[0, self.cls_tokens :], ids, 0)).astype(x_BTD.dtype)
        for i, block in enumerate(self.decoder_blocks):
            x = block(x, x_BTD[i])
        return self.decoder_pred(self.decoder_norm(x))
