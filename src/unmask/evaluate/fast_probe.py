"""The fast linear probe: embed once, then fit the softmax head on the cached features.

The images are centre-cropped and not augmented, which is what makes it fast; the published probe trains through the
loop with augmentation. The features are standardised by the training images' mean and variance, which is what a
BatchNorm without affine parameters does. All learning rates are fitted at once, as one batched product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.rng import Op, generator
from unmask.data.sources.subset import subset
from unmask.errors import ConfigError, DataError
from unmask.evaluate.features import Features, features_of, labelled
from unmask.evaluate.inference import Images, Model, Pool
from unmask.metrics import rank_of_true
from unmask.report.progress import progress, say

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
EPOCHS = 100
MIN_STEPS = 1000
"""Least number of updates: for few images, more epochs than EPOCHS."""
HELD_OUT = 0.2
"""Share of each class of the training images on which the learning rate is chosen, at least one image."""
_BATCH, _MOMENTUM, _EPS = 256, 0.9, 1e-6
_PART = 4096

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ProbeResult:
    learning_rates: tuple[float, ...]
    held_out: tuple[float, ...]
    """Accuracy of each learning rate on the held-out part of the training images, fitted on the others."""
    val: tuple[float, ...]
    """Accuracy of each on the validation images, fitted on all training images."""
    chosen: int
    """The learning rate that was best on the held-out part; val had no say."""

    @property
    def accuracy(self) -> float:
        """On the validation images, with the chosen learning rate."""
        return self.val[self.chosen]


def probe(
    model: Model,
    train: Images,
    val: Images,
    *,
    labels_per_class: int | None = None,
    seed: int = 0,
    learning_rates: Sequence[float] = LEARNING_RATES,
    pool: Pool | None = None,
    cache: Path | None = None,
) -> ProbeResult:
    """Accuracy on `val` of a linear classifier on the frozen model's features of `train`.

    `labels_per_class` takes a balanced subset of `train` drawn by `seed`, the same as `data.labels_per_class` does.
    `pool`: see `Model.embed`; `cache`: see `features_of`, as for errors. Raises DataError too when a class has fewer
    than two images.
    """
    if not learning_rates or min(learning_rates) <= 0:
        raise ConfigError("the learning rates of a probe must be positive")
    source = labelled(train, "train", model.config.data.dtype)
    if labels_per_class is not None:
        source = subset(source, labels_per_class, seed)
    with features_of(model, source, val, cache, pool=pool) as (train_features, val_features, classes):
        result = fit_probe(train_features, val_features, classes, seed=seed, learning_rates=learning_rates)
    if len(learning_rates) > 1 and result.chosen in (0, len(learning_rates) - 1):
        chosen = learning_rates[result.chosen]
        say(f"the chosen learning rate, {chosen:g}, is at the edge; a wider sweep may do better")
    return result


def fit_probe(
    train: Features,
    val: Features,
    classes: int,
    *,
    seed: int = 0,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> ProbeResult:
    """The same on features. Rows whose label is -1 do not count."""
    rates = np.array(learning_rates, np.float32)
    kept, held_out = _split(train.labels, classes, seed)
    choosing = _Heads.fit(train, kept, classes, rates, seed, "choose the learning rate")
    held = choosing.accuracy(train, held_out)
    # Accuracy first; a handful of held-out images leave many equal, and the loss decides.
    chosen = int(np.lexsort((choosing.loss(train, held_out), -held))[0])
    final = _Heads.fit(train, np.flatnonzero(train.labels >= 0), classes, rates, seed, "fit the probe")
    result = final.accuracy(val, np.flatnonzero(val.labels >= 0))
    return ProbeResult(tuple(learning_rates), tuple(held.tolist()), tuple(result.tolist()), chosen)


@dataclass(frozen=True)
class _Heads:
    """R linear classifiers on standardised features, one a learning rate."""

    mean: Floats
    """(D,) of the training features."""
    scale: Floats
    """(D,) one over their standard deviation."""
    weight: Floats
    """(D, R, C)"""
    bias: Floats
    """(R, C)"""

    @classmethod
    def fit(
        cls, features: Features, rows: NDArray[np.int64], classes: int, rates_R: Floats, seed: int, title: str
    ) -> _Heads:
        """SGD with momentum and a cosine schedule on cross entropy, from zero; the problem is convex."""
        mean_D, scale_D = _statistics(features.values, rows)
        D, R, C = len(mean_D), len(rates_R), classes
        batch = min(_BATCH, len(rows))
        steps = max(MIN_STEPS, EPOCHS * len(rows) // batch)
        heads = cls(mean_D, scale_D, np.zeros((D, R, C), np.float32), np.zeros((R, C), np.float32))
        momentum_DRC, momentum_RC = np.zeros_like(heads.weight), np.zeros_like(heads.bias)
        rates_R1 = rates_R[:, None]
        order = _batches(rows, batch, seed)
        with progress(title, total=steps, images_per_unit=batch) as bar:
            for step in range(steps):
                chosen = next(order)
                x_BD = heads._standardise(features.values[chosen])
                error_BRC = _softmax(heads._logits(x_BD))
                error_BRC[np.arange(batch), :, features.labels[chosen]] -= 1
                error_BRC *= np.float32((1 + np.cos(np.pi * step / steps)) / (2 * batch)) * rates_R1
                momentum_DRC *= np.float32(_MOMENTUM)
                momentum_DRC += (x_BD.T @ error_BRC.reshape(batch, -1)).reshape(D, R, C)
                momentum_RC *= np.float32(_MOMENTUM)
                momentum_RC += error_BRC.sum(0)
                np.subtract(heads.weight, momentum_DRC, out=heads.weight)
                np.subtract(heads.bias, momentum_RC, out=heads.bias)
                bar.update()
        return heads

    def accuracy(self, features: Features, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R,) shares of the rows that are classified correctly."""
        right = np.zeros(len(self.bias))
        for part in _parts(rows):
            logits_BRC = self._logits(self._standardise(features.values[part]))
            right += [(rank_of_true(logits_BRC[:, r], features.labels[part]) < 1).sum() for r in range(len(right))]
        return right / len(rows)

    def loss(self, features: Features, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R,) mean cross entropies."""
        total = np.zeros(len(self.bias))
        for part in _parts(rows):
            p_BRC = _softmax(self._logits(self._standardise(features.values[part])))
            p_BR = p_BRC[np.arange(len(part)), :, features.labels[part]]
            total -= np.log(np.maximum(p_BR, np.finfo(np.float32).tiny)).sum(0)
        return total / len(rows)

    def _standardise(self, x_BD: Floats) -> Floats:
        return (x_BD - self.mean) * self.scale

    def _logits(self, x_BD: Floats) -> Floats:
        D, R, C = self.weight.shape
        return (x_BD @ self.weight.reshape(D, R * C)).reshape(-1, R, C) + self.bias


def _statistics(values: Floats, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean, and one over the root of the variance + 1e-6, of each feature; in two passes, part by part."""
    mean_D = sum(values[part].sum(0, dtype=np.float64) for part in _parts(rows)) / len(rows)
    var_D = sum(((values[part] - mean_D) ** 2).sum(0) for part in _parts(rows)) / len(rows)
    return np.asarray(mean_D, np.float32), np.asarray(1 / np.sqrt(var_D + _EPS), np.float32)


def _split(labels: NDArray[np.int64], classes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit and rows to choose on, the same share of each class."""
    kept: list[NDArray[np.int64]] = []
    held: list[NDArray[np.int64]] = []
    for label in range(classes):
        members = generator(seed, 1, label, Op.SUBSET).permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(
                f"class {label} has {len(members)} readable training images; choosing the learning rate needs two"
            )
        count = max(1, round(HELD_OUT * len(members)))
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def _batches(rows: NDArray[np.int64], size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Endless batches of `size` rows, in a new order each epoch, the few left over at its end going to the next."""
    epoch = 0
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, generator(seed, epoch, 0, Op.ORDER).permutation(rows)])
            epoch += 1
        yield np.sort(waiting[:size])  # in the order of the file
        waiting = waiting[size:]


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _PART] for start in range(0, len(rows), _PART))


def _softmax(logits: Floats) -> Floats:
    """Over the last axis, in place."""
    logits -= logits.max(-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(-1, keepdims=True)
    return logits
