"""The Vision Transformer: single-device mathematics in PyTorch.

Shapes: B images, L patches, K kept, T tokens (cls, registers, patches), D width, H heads, P values in a patch.
Weights are fp32; every layer computes in the dtype of its input, so the dtype the patches are given decides.
Nothing here is random. The MindSpore twin has the same names in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.data.masking import drop_path_rates
from unmask.models.torch_layers import Block, LayerNorm, Linear, encoder_block, parameter
from unmask.models.torch_patches import PatchEmbed, PatchProjection, patchify

Pool = Literal["mean", "cls", "mean+cls"]
"""How tokens become one vector: mean of the patch tokens, the cls token, or both one after the other."""


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


def cast_once(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network, to be read alone, with the weights of its products in the dtype it computes in: the same bits,
    without a cast in every batch. All other tensors are shared."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for layer in network.modules():
        if isinstance(layer, Linear | PatchProjection):
            memo[id(layer.weight)] = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(network, memo)
