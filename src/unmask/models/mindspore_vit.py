"""The Vision Transformer: single-device mathematics in MindSpore.

Shapes: B images, L patches, K kept, T tokens (cls, registers, patches), D width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The PyTorch twin has the same names in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from mindspore import Tensor, float32, nn, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.data.masking import drop_path_rates
from unmask.models.mindspore_layers import LayerNorm, encoder_block, parameter
from unmask.models.mindspore_operators import Cell
from unmask.models.mindspore_patches import PatchEmbed, patchify

Pool = Literal["mean", "cls", "mean+cls"]
"""How tokens become one vector: mean of the patch tokens, the cls token, or both one after the other."""


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
