"""Masked prediction of oriented gradients in PyTorch. The MindSpore twin has the same names in the same order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.torch_layers import Linear
from unmask.objectives.hog_mae import EPS, ORIENTATIONS, HogMaeSection, cells, target_dim
from unmask.objectives.mae.torch import MaskedAutoencoder


class MaskedHogPredictor(MaskedAutoencoder):
    def __init__(self, model: ModelConfig, section: HogMaeSection, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__(model, section, pixels, dtype)
        self.cells = cells(model)
        self.decoder_pred = Linear(model.decoder_width, target_dim(model))

    def target(self, patches_BMP: Tensor, valid_BMP: Tensor | None = None) -> Tensor:
        """Histograms of each cell and channel, of length 1 (0 where nothing changes): (B, M, cells * cells * C * 9)."""
        p = self.patch_size
        x_BMyxC = patches_BMP.unflatten(-1, (p, p, -1))
        place = torch.arange(p, device=x_BMyxC.device)
        before, after = (place - 1).clamp(min=0), (place + 1).clamp(max=p - 1)
        down = x_BMyxC[:, :, after] - x_BMyxC[:, :, before]
        across = x_BMyxC[:, :, :, after] - x_BMyxC[:, :, :, before]
        size = (down**2 + across**2).sqrt()
        orientation = (torch.atan2(down, across) * (ORIENTATIONS / math.pi)).floor() % ORIENTATIONS
        of_orientation = orientation[..., None] == torch.arange(ORIENTATIONS, device=x_BMyxC.device)
        in_cell = (place * self.cells // p == torch.arange(self.cells, device=place.device)[:, None]).float()
        histograms = torch.einsum("iy,jx,bmyxco->bmijco", in_cell, in_cell, of_orientation * size[..., None])
        length = (histograms**2).sum(-1, keepdim=True).sqrt()
        return (histograms / length.clamp(min=EPS)).flatten(2)

    def weights(self, valid_BMP: Tensor) -> Tensor:
        """Of whole patches, (B, M, 1): an edge of the data is no gradient."""
        return super().weights(valid_BMP.amin(-1, keepdim=True))
