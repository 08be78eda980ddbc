"""Masked prediction of oriented gradients in MindSpore. The PyTorch twin has the same names in the same order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mindspore import Tensor, float32, ops

from unmask.config.schema import ModelConfig
from unmask.data.batch import Pixels
from unmask.models.mindspore_layers import Linear
from unmask.objectives.hog_mae import EPS, ORIENTATIONS, HogMaeSection, cells, target_dim
from unmask.objectives.mae.mindspore import MaskedAutoencoder

atan2: Any = ops.atan2


class MaskedHogPredictor(MaskedAutoencoder):
    def __init__(self, model: ModelConfig, section: HogMaeSection, pixels: Pixels, dtype: Any) -> None:
        super().__init__(model, section, pixels, dtype)
        self.channels = model.channels
        self.decoder_pred = Linear(model.decoder_width, target_dim(model))
        p = model.patch_size
        place = np.arange(p)
        self.before = Tensor(np.maximum(place - 1, 0).astype(np.int32))
        self.after = Tensor(np.minimum(place + 1, p - 1).astype(np.int32))
        self.orientations = Tensor(np.arange(ORIENTATIONS, dtype=np.float32))
        in_cell = (place * cells(model) // p == np.arange(cells(model))[:, None]).astype(np.float32)
        self.in_cells = Tensor(np.kron(in_cell, in_cell))
        self.matmul: Any = ops.MatMul(transpose_b=True)

    def target(self, patches_BMP: Tensor, valid_BMP: Tensor | None = None) -> Tensor:
        """Histograms of each cell and channel, of length 1 (0 where nothing changes): (B, M, cells * cells * C * 9)."""
        B, M, _ = patches_BMP.shape
        p, C, cells = self.patch_size, self.channels, self.in_cells.shape[0]
        x_NyxC = patches_BMP.reshape(B * M, p, p, C)
        down = ops.gather(x_NyxC, self.after, 1) - ops.gather(x_NyxC, self.before, 1)
        across = ops.gather(x_NyxC, self.after, 2) - ops.gather(x_NyxC, self.before, 2)
        size = ops.sqrt(down * down + across * across)
        turns = ops.floor(atan2(down, across) * (ORIENTATIONS / math.pi))
        orientation = turns - ORIENTATIONS * ops.floor(turns / ORIENTATIONS)
        of_orientation = (orientation.expand_dims(-1) == self.orientations).astype(float32)
        sizes_NpCo = (of_orientation * size.expand_dims(-1)).reshape(B * M, p * p, C * ORIENTATIONS)
        columns = sizes_NpCo.transpose(0, 2, 1).reshape(-1, p * p)
        histograms = self.matmul(columns, self.in_cells).reshape(B * M, C * ORIENTATIONS, cells)
        histograms = histograms.transpose(0, 2, 1).reshape(B, M, cells * C, ORIENTATIONS)
        length = ops.sqrt((histograms * histograms).sum(-1, keepdims=True))
        return (histograms / ops.maximum(length, EPS)).reshape(B, M, cells * C * ORIENTATIONS)

    def weights(self, valid_BMP: Tensor) -> Tensor:
        """Of whole patches, (B, M, 1): an edge of the data is no gradient."""
        return super().weights(valid_BMP.min(-1, keepdims=True))
