"""What is computed with the model: losses, measures and read-outs, each the body of one compiled graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, bfloat16, float16, float32, ops

from unmask.config.schema import Config
from unmask.data.batch import FULL_RANGE
from unmask.models.mindspore_operators import Cell
from unmask.models.mindspore_vit import (
    Classifier,
    MaskedAutoencoder,
    normalize,
    patchify,
    reconstruction_target,
    select,
)

one_hot: Any = ops.one_hot
DTYPES = {"fp32": float32, "bf16": bfloat16, "fp16": float16}


class Task(Cell):
    """A model between images (B, H, W, C; uint8 or float32) and numbers in fp32."""

    def __init__(self, model: Cell, config: Config) -> None:
        super().__init__(auto_prefix=False)  # the weights keep the names they have in the model
        self.model = model
        self.patch_size = config.model.patch_size
        self.dtype = DTYPES[config.train.precision]
        self.mean = Tensor(np.array(config.data.mean, np.float32))
        self.std = Tensor(np.array(config.data.std, np.float32))
        self.full_range = FULL_RANGE[config.data.dtype]

    def patches(self, images: Tensor) -> Tensor:
        return normalize(patchify(images, self.patch_size), self.mean, self.std, self.full_range).astype(self.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """(B, D)."""
        return self.model.embed(self.patches(images)).astype(float32)


class Pretraining(Task):
    def __init__(self, model: MaskedAutoencoder, config: Config) -> None:
        super().__init__(model, config)
        self.norm_pix_loss = config.model.norm_pix_loss
        self.num_patches = config.model.num_patches

    def construct(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """The loss."""
        return self.errors(images, ids_keep, ids_mask).mean()

    def errors(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Squared error (B, M, P) of the masked patches, in fp32."""
        patches = patchify(images, self.patch_size)
        kept = normalize(select(patches, ids_keep), self.mean, self.std, self.full_range)
        masked = normalize(select(patches, ids_mask), self.mean, self.std, self.full_range)
        prediction = self.model(kept.astype(self.dtype), ids_keep, ids_mask)
        return ops.square(prediction.astype(float32) - reconstruction_target(masked, self.norm_pix_loss))

    def measure(self, valid: Tensor, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the valid rows: count, loss."""
        return valid.sum(), (self.errors(images, ids_keep, ids_mask).mean((1, 2)) * valid).sum()

    def predict_patches(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """(B, L, P): the decoder's output for the kept, then the masked patches."""
        x = self.model.encode(select(self.patches(images), ids_keep), ids_keep)
        return self.model.decode(x, ids_keep, ids_mask, self.num_patches).astype(float32)


class Classification(Task):
    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(model, config)
        self.loss = binary_cross_entropy if config.train.loss == "bce" else cross_entropy

    def construct(self, images: Tensor, targets: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """The loss."""
        logits = self.model(self.patches(images), keep_path).astype(float32)
        return self.loss(logits, targets).mean()

    def measure(self, valid: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the valid rows: count, loss, top1, top5."""
        logits = self.logits(images)
        loss = cross_entropy(logits, one_hot(labels, logits.shape[1], 1.0, 0.0).astype(float32))
        score = ops.gather_elements(logits, 1, labels.reshape(-1, 1))
        # How many other classes do not score lower than the true one: ties count against it, and so does NaN.
        rank = ops.logical_not(logits < score).astype(float32).sum(1) - 1
        top1, top5 = (rank < 1).astype(float32), (rank < 5).astype(float32)
        return valid.sum(), (loss * valid).sum(), (top1 * valid).sum(), (top5 * valid).sum()

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes)."""
        return self.model(self.patches(images)).astype(float32)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,), of targets (B, classes)."""
    return -(targets * ops.log_softmax(logits, 1)).sum(1)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,), of targets (B, classes); mean over the classes."""
    return -(targets * ops.logsigmoid(logits) + (1 - targets) * ops.logsigmoid(-logits)).mean(1)
