"""The masked autoencoder in PyTorch (He et al. 2021). The MindSpore twin has the same names in the same order.

Shapes as in `unmask.models.torch_vit`, and M = L - K masked patches, E decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import Block, LayerNorm, Linear, parameter
from unmask.models.torch_patches import patchify, select
from unmask.models.torch_vit import VisionTransformer
from unmask.objectives.base import MaskingSection, PaintingSection
from unmask.objectives.mae import EPS


class MaskedAutoencoder(VisionTransformer):
    norm: LayerNorm

    def __init__(self, model: ModelConfig, section: MaskingSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, pixels, dtype, pool="mean", fc_norm=False)
        D, E, eps = model.width, model.decoder_width, model.norm_eps
        self.norm_pix_loss = isinstance(section, PaintingSection) and section.norm_pix_loss
        self.decoder_embed = Linear(D, E)
        self.mask_token = parameter(1, 1, E)
        self.decoder_pos_embed = parameter(1, self.cls_tokens + model.num_patches, E)
        heads, hidden = model.decoder_heads, int(E * model.mlp_ratio)
        self.decoder_blocks = nn.ModuleList([Block(E, heads, hidden, eps) for _ in range(model.decoder_depth)])
        self.decoder_norm = LayerNorm(E, eps)
        self.decoder_pred = Linear(E, model.patch_dim)

    def loss(
        self, pixels_BHWC: Tensor, ids_keep: Tensor, ids_mask: Tensor, valid_pixels: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"loss": self.errors(pixels_BHWC, ids_keep, ids_mask, valid_pixels).mean()}

    def losses(
        self, pixels_BHWC: Tensor, ids_keep: Tensor, ids_mask: Tensor, valid_pixels: Tensor | None = None
    ) -> Tensor:
        """(B,), of each image."""
        return self.errors(pixels_BHWC, ids_keep, ids_mask, valid_pixels).mean((1, 2))

    def reconstruction(self, pixels_BHWC: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """(B, L, P): the decoder's output for the kept, then the masked patches, in the units of the loss."""
        x = self.encode_kept(patchify(pixels_BHWC, self.patch_size), ids_keep)
        return self.decode(x, ids_keep, ids_mask, queries=ids_keep.shape[1] + ids_mask.shape[1])

    def errors(
        self, pixels_BHWC: Tensor, ids_keep: Tensor, ids_mask: Tensor, valid_BHWC: Tensor | None = None
    ) -> Tensor:
        """Squared error (B, M, P) of the masked patches, in fp32, weighted as in `errors_of`."""
        patches = patchify(pixels_BHWC, self.patch_size)
        return self.errors_of(self.encode_kept(patches, ids_keep), patches, ids_keep, ids_mask, valid_BHWC)

    def errors_of(
        self, x_BTD: Tensor, patches_BLP: Tensor, ids_keep: Tensor, ids_mask: Tensor, valid_BHWC: Tensor | None = None
    ) -> Tensor:
        """The same from the encoder's tokens and all patches, which are not yet normalised.

        Where values are no data, their errors are 0 and the others of the image weigh more: the mean of an image is
        that over its data, and 0 where none of it is masked.
        """
        patches_BMP = self.normalize(select(patches_BLP, ids_mask))
        prediction = self.decode(x_BTD, ids_keep, ids_mask, ids_mask.shape[1])
        if valid_BHWC is None:
            return (prediction.float() - self.target(patches_BMP)) ** 2
        valid_BMP = select(patchify(valid_BHWC.float(), self.patch_size), ids_mask)
        return (prediction.float() - self.target(patches_BMP, valid_BMP)) ** 2 * self.weights(valid_BMP)

    def encode_kept(self, patches_BLP: Tensor, ids_keep: Tensor) -> Tensor:
        """The encoder's tokens (B, T, D) of the kept ones of all patches, which are not yet normalised."""
        return self.encode(self.normalize(select(patches_BLP, ids_keep)).to(self.dtype), ids_keep)

    def decode(self, x_BTD: Tensor, ids_keep_BK: Tensor, ids_mask_BM: Tensor, queries: int) -> Tensor:
        """Prediction of the last `queries` tokens in the order [cls, kept, masked].

        The tokens stay in that order: attention does not care, the position embedding tells.
        """
        x = self.decoder_embed(self.norm(x_BTD))
        pos_embed = self.decoder_pos_embed.to(x.dtype)
        pos_LE = pos_embed[0, self.cls_tokens :]
        cls = [x[:, :1] + pos_embed[:, :1]] if self.cls_tokens else []
        kept = x[:, self.prefix_tokens :] + pos_LE[ids_keep_BK]
        masked = self.mask_token.to(x.dtype) + pos_LE[ids_mask_BM]
        x = torch.cat([*cls, kept, masked], dim=1)
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        x = self.decoder_blocks[-1](x, queries=queries)
        return self.decoder_pred(self.decoder_norm(x))

    def target(self, patches_BMP: Tensor, valid_BMP: Tensor | None = None) -> Tensor:
        """What is to be painted, fp32; with `norm_pix_loss` the data of each patch has mean 0 and (unbiased) variance
        1."""
        if not self.norm_pix_loss:
            return patches_BMP
        if valid_BMP is not None:
            count = valid_BMP.sum(-1, keepdim=True)
            centred = (patches_BMP - (patches_BMP * valid_BMP).sum(-1, keepdim=True) / count.clamp(min=1)) * valid_BMP
            return centred / (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1) + EPS).sqrt()
        mean = patches_BMP.mean(-1, keepdim=True)
        var = patches_BMP.var(-1, keepdim=True)
        return (patches_BMP - mean) / (var + EPS).sqrt()

    def weights(self, valid_BMP: Tensor) -> Tensor:
        """Of the errors: 0 where there is no data, and 1 on average over an image."""
        return valid_BMP * (valid_BMP[0].numel() / valid_BMP.sum((1, 2), keepdim=True).clamp(min=1))
