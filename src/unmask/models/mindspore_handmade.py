"""A linear classifier on features by hand, in MindSpore. The PyTorch twin has the same names in the same order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mindspore import Tensor, float32, ops
from numpy.typing import NDArray

from unmask.config.schema import ModelConfig
from unmask.models.handmade import (
    CELLS,
    CLIP,
    CONTRAST,
    EPS,
    FIELDS,
    LEVELS,
    ORIENTATIONS,
    PARTS,
    PATCH,
    ROUNDING,
    WORDS,
    has_dictionary,
    resampling,
    shares,
    size_of,
    widths,
)
from unmask.models.mindspore_layers import Linear, parameter
from unmask.models.mindspore_operators import Cell

atan2: Any = ops.atan2
conv2d: Any = ops.conv2d


class Handmade(Cell):
    """What `unmask.evaluate.handmade` computes in NumPy and `evaluate.ridge` fits; in fp32."""

    def __init__(self, model: ModelConfig, classes: int, *, mirrored: bool) -> None:
        """`mirrored`: features are the mean over an image and its mirror image."""
        super().__init__()
        (height, width), self.mirrored, self.channels = size_of(model), mirrored, model.channels
        self.has_dictionary = has_dictionary((height, width))
        if self.has_dictionary:
            self.filters, self.threshold = parameter(WORDS, model.channels, PATCH, PATCH), parameter(WORDS)
            self.average = Tensor(
                np.full((1, model.channels, PATCH, PATCH), 1 / (model.channels * PATCH**2), np.float32)
            )
            self.in_parts = means(PARTS, (height - PATCH + 1, width - PATCH + 1))
        self.head = Linear(sum(widths(model)), classes)
        self.shrunk = EachWay(*(resampling(*sizes) for sizes in zip((height, width), model.image_size, strict=True)))
        self.in_cells, self.in_fields = (means(parts, (height, width)) for parts in (CELLS, FIELDS))
        self.down, self.across = Gradient(height, 1), Gradient(width, 2)
        self.backwards = Tensor(np.arange(width)[::-1].astype(np.int32))
        self.orientations = Tensor(np.arange(ORIENTATIONS, dtype=np.float32))
        self.colours = Tensor(np.arange(LEVELS ** min(model.channels, 3), dtype=np.float32))

    def construct(self, images_BHWC: Tensor) -> Tensor:
        """Log-probabilities (B, classes) of images whose channels are in 0..1."""
        x = ops.clamp(self.shrunk(images_BHWC.astype(float32)), 0.0, 1.0)
        features = self.features(x)
        if self.mirrored:
            features = (features + self.features(ops.gather(x, self.backwards, 2))) / 2
        return ops.log_softmax(self.head(features), 1)

    def features(self, x_BHWC: Tensor) -> Tensor:
        kinds = (self.oriented_gradients(x_BHWC), *self.fields(x_BHWC))
        if self.has_dictionary:
            kinds = (*kinds, self.answers(x_BHWC))
        return ops.concat([kind.reshape(kind.shape[0], -1) for kind in kinds], 1)

    def oriented_gradients(self, x_BHWC: Tensor) -> Tensor:
        """(B, 7, 7, 36): each block's four histograms, its length 1."""
        down, across = self.down(x_BHWC), self.across(x_BHWC)
        y, x = down[..., 0], across[..., 0]
        for i in range(1, self.channels):  # of the channel where it is the strongest
            each_y, each_x = down[..., i], across[..., i]
            stronger = each_y * each_y + each_x * each_x > y * y + x * x
            y, x = ops.select(stronger, each_y, y), ops.select(stronger, each_x, x)
        size = ops.sqrt(y * y + x * x)
        turn = atan2(y, x) * (ORIENTATIONS / math.pi)
        lower = ops.floor(turn)
        share = turn - lower  # between the two orientations that are nearest
        votes = self.of_orientation(lower) * (1 - share).expand_dims(-1)
        votes = votes + self.of_orientation(lower + 1) * share.expand_dims(-1)
        cells, last = self.in_cells(votes * size.expand_dims(-1)), CELLS - 1
        upper, lower = cells[:, :last], cells[:, 1:]
        blocks = ops.concat([upper[:, :, :last], upper[:, :, 1:], lower[:, :, :last], lower[:, :, 1:]], -1)
        return unit(ops.minimum(unit(blocks), Tensor(CLIP, float32)))

    def of_orientation(self, number: Tensor) -> Tensor:
        return ((number - ORIENTATIONS * ops.floor(number / ORIENTATIONS)).expand_dims(-1) == self.orientations).astype(
            float32
        )

    def fields(self, x_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Means, deviations, and the roots of the shares that colours have."""
        mean = self.in_fields(x_BHWC)
        deviation = ops.sqrt(ops.relu(self.in_fields(x_BHWC * x_BHWC) - mean * mean))
        if self.channels > 3:
            return mean, deviation
        levels = ops.minimum(ops.floor(x_BHWC * LEVELS + ROUNDING), Tensor(LEVELS - 1, float32))
        colour = levels[..., 0]
        for i in range(1, self.channels):
            colour = colour + levels[..., i] * LEVELS**i
        seen = (colour.expand_dims(-1) == self.colours).astype(float32)
        return mean, deviation, ops.sqrt(seen.mean((1, 2)))

    def answers(self, x_BHWC: Tensor) -> Tensor:
        """(B, 3, 3, words): how strongly words answer in each of 3 x 3 fields to patches, normalised in contrast."""
        x = x_BHWC.transpose(0, 3, 1, 2)
        mean, square = conv2d(x, self.average, pad_mode="valid"), conv2d(x * x, self.average, pad_mode="valid")
        contrast = ops.rsqrt(ops.relu(square - mean * mean) + CONTRAST)
        said = conv2d(x, self.filters, pad_mode="valid") - mean * self.filters.sum((1, 2, 3)).reshape(1, -1, 1, 1)
        said = ops.relu(said * contrast - self.threshold.reshape(1, -1, 1, 1))
        return ops.sqrt(self.in_parts(said.transpose(0, 2, 3, 1)))


def means(parts: int, size: tuple[int, int]) -> EachWay:
    """Over each of parts x parts fields of equal size."""
    return EachWay(*(shares(parts, side) for side in size))


class Gradient(Cell):
    """Half the difference of the two neighbours; at the edge, of a pixel and its neighbour the whole."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        place = np.arange(size)
        before, after = np.maximum(place - 1, 0), np.minimum(place + 1, size - 1)
        self.before, self.after, self.axis = Tensor(before.astype(np.int32)), Tensor(after.astype(np.int32)), axis
        self.gap = Tensor((after - before).astype(np.float32).reshape(-1, *(1,) * (3 - axis)))

    def construct(self, x_BHWC: Tensor) -> Tensor:
        return (ops.gather(x_BHWC, self.after, self.axis) - ops.gather(x_BHWC, self.before, self.axis)) / self.gap


class EachWay(Cell):
    """Rows and columns, each times a matrix."""

    def __init__(self, down: NDArray[np.float32], across: NDArray[np.float32]) -> None:
        super().__init__()
        self.after = len(down), len(across)
        self.down, self.across = Tensor(down), Tensor(across)
        self.matmul: Any = ops.MatMul()

    def construct(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        rows, columns = self.after
        x = self.matmul(self.down, x_BHWC.transpose(1, 0, 2, 3).reshape(H, B * W * C)).reshape(rows, B, W, C)
        x = self.matmul(self.across, x.transpose(2, 0, 1, 3).reshape(W, rows * B * C))
        return x.reshape(columns, rows, B, C).transpose(2, 1, 0, 3)


def unit(blocks: Tensor) -> Tensor:
    return blocks * ops.rsqrt((blocks * blocks).sum(-1, keepdims=True) + EPS)
