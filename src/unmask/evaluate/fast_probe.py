"""The fast linear probe: embed once, then logistic regression on the cached features.

The images are centre-cropped and not augmented, which is what makes it fast; the published probe trains through the
loop with augmentation. The features are standardised by the training images' mean and variance, which is what a
BatchNorm without affine parameters does. The loss is convex and is brought to its minimum, so the only choice is how
strongly the weights are held small: with few labels, all of it. Cross-validation on the training images makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from unmask.data.rng import Op, generator
from unmask.data.sources.subset import subset
from unmask.engines.base import Tensors
from unmask.errors import DataError
from unmask.evaluate.features import Features, features_of, labelled
from unmask.evaluate.inference import Images, Model, Pool
from unmask.metrics import classification_sums, log_softmax
from unmask.report.progress import progress

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(2, -11, -1))
"""What is tried: s in mean cross entropy + s/2 |W|^2, from 10 to 1e-5. scikit-learn's C is 1 / (s N)."""
ONE_LABEL = 1.0
"""The strength where no class has two images, so that nothing is left to choose it on."""
FOLDS = 5
MANY = 20_000
"""From this number of training images on, one fold is enough."""
_PATIENCE = 2
"""Strengths in a row that are worse than the best one, after which the weaker ones are not tried."""
_EPS = 1e-6
_PART = 4096

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tried:
    """One strength, on training images that it was not fitted on."""

    strength: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class ProbeResult:
    accuracy: float
    """On the validation images, which had no say in anything."""
    strength: float
    """The strength that was chosen."""
    tried: tuple[Tried, ...]
    """Empty where no class has two images."""


def probe(
    model: Model,
    train: Images,
    val: Images,
    *,
    labels_per_class: int | None = None,
    seed: int = 0,
    pool: Pool | None = None,
    cache: Path | None = None,
) -> ProbeResult:
    """Accuracy on `val` of a linear classifier on the frozen model's features of `train`.

    `labels_per_class` takes a balanced subset of `train` drawn by `seed`, the same as `data.labels_per_class` does.
    `pool`: see `Model.embed`; `cache`: see `features_of`, as for errors.
    """
    source = labelled(train, "train", model.config.data.dtype)
    if labels_per_class is not None:
        source = subset(source, labels_per_class, seed)
    with features_of(model, source, val, cache, pool=pool) as (train_features, val_features, classes):
        return fit_probe(train_features, val_features, classes, seed=seed)


def fit_probe(train: Features, val: Features, classes: int, *, seed: int = 0) -> ProbeResult:
    """The same on features. Rows whose label is -1 do not count. Raises DataError for a class without an image."""
    head, strength, tried = fit_head(train, classes, seed=seed)
    accuracy, _ = head.measure(val, np.flatnonzero(val.labels >= 0))
    return ProbeResult(accuracy, strength, tried)


def fit_head(train: Features, classes: int, *, seed: int = 0) -> tuple[LinearHead, float, tuple[Tried, ...]]:
    """The head, the strength it was fitted with, and what was tried. Arguments and errors as for `fit_probe`."""
    rows = np.flatnonzero(train.labels >= 0)
    if missing := sorted({*range(classes)} - {*train.labels[rows].tolist()}):
        raise DataError(f"train: class {missing[0]} has no readable image; a linear probe needs one of each class")
    with progress("fit the probe", total=len(STRENGTHS) + 1, unit="strength") as bar:
        tried: list[Tried] = []
        for one in _cross_validated(train, rows, classes, seed):
            tried.append(one)
            bar.update()
        strength = min(tried, key=lambda one: one.loss).strength if tried else ONE_LABEL
        head = LinearHead.fit(train, rows, classes, strength)
        bar.update(len(STRENGTHS) + 1 - len(tried))
    return head, strength, tuple(tried)


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on standardised features."""

    mean: Floats
    """(D,) of the training features."""
    scale: Floats
    """(D,) one over their standard deviation."""
    weight: Floats
    """(D, C)"""
    bias: Floats
    """(C,)"""

    @classmethod
    def fit(
        cls, features: Features, rows: NDArray[np.int64], classes: int, strength: float, start: LinearHead | None = None
    ) -> LinearHead:
        """The minimum of mean cross entropy + strength/2 |W|^2 over the rows, by L-BFGS from `start` or from zero."""
        mean_D, scale_D = (start.mean, start.scale) if start else _statistics(features.values, rows)
        D, C, N = len(mean_D), classes, len(rows)

        def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
            head = cls(mean_D, scale_D, flat[: D * C].reshape(D, C), flat[D * C :])
            loss, gradient_DC, gradient_C = (
                strength / 2 * np.vdot(head.weight, head.weight),
                strength * head.weight,
                0.0,
            )
            for part in _parts(rows):
                x_BD = head._standardise(features.values[part])
                log_p_BC = log_softmax(x_BD @ head.weight + head.bias)
                each, labels_B = np.arange(len(part)), features.labels[part]
                loss -= log_p_BC[each, labels_B].sum() / N
                error_BC = np.exp(log_p_BC)
                error_BC[each, labels_B] -= 1
                error_BC /= N
                gradient_DC += x_BD.T @ error_BC
                gradient_C += error_BC.sum(0)
            return float(loss), np.concatenate([gradient_DC.ravel(), gradient_C])

        first = np.concatenate([start.weight.ravel(), start.bias]) if start else np.zeros(D * C + C)
        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "gtol": 1e-6, "ftol": 1e-12}
        found = minimize(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options).x
        return cls(mean_D, scale_D, found[: D * C].reshape(D, C), found[D * C :])

    def measure(self, features: Features, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Accuracy and mean cross entropy on the rows."""
        total = Counter[str]()
        for part in _parts(rows):
            logits_BC = self._standardise(features.values[part]) @ self.weight + self.bias
            total.update(classification_sums(logits_BC, features.labels[part]))
        return total["top1"] / len(rows), total["loss"] / len(rows)

    def parameters(self) -> Tensors:
        """The same head on features as they are, as `head.weight` (C, D) and `head.bias` (C,) of a classifier."""
        weight_DC = self.weight * self.scale[:, None]
        bias_C = self.bias - self.mean @ weight_DC
        return {"head.weight": weight_DC.T.astype(np.float32), "head.bias": bias_C.astype(np.float32)}

    def _standardise(self, x_BD: NDArray[np.float32]) -> Floats:
        return (x_BD - self.mean) * self.scale


def _cross_validated(features: Features, rows: NDArray[np.int64], classes: int, seed: int) -> Iterator[Tried]:
    """The strengths from the strongest on, each fold's fit starting from its last; none where nothing can be held out.

    It ends when weaker ones have become worse: they take longest, and fit noise.
    """
    fold = _folds(features.labels[rows], seed)
    held_out = [rows[fold == number] for number in range(FOLDS if len(rows) < MANY else 1)]
    held_out = [held for held in held_out if len(held)]
    heads: list[LinearHead | None] = [None] * len(held_out)
    best, worse = np.inf, 0
    for strength in STRENGTHS if held_out else ():
        heads = [
            LinearHead.fit(features, np.setdiff1d(rows, held), classes, strength, head)
            for held, head in zip(held_out, heads, strict=True)
        ]
        shares = np.array([len(held) for held in held_out]) / sum(map(len, held_out))
        found = [head.measure(features, held) for held, head in zip(held_out, heads, strict=True) if head]
        accuracy, loss = (float(value) for value in shares @ np.array(found))
        yield Tried(strength, accuracy, loss)
        best, worse = (loss, 0) if loss < best else (best, worse + 1)
        if worse == _PATIENCE:
            return


def _folds(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) the fold in which each row is held out, the same share of each class; -1 for the only one of its class."""
    folds = np.full(len(labels), -1)
    for label in np.unique(labels):
        members = generator(seed, 1, int(label), Op.SUBSET).permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            folds[members] = (np.arange(len(members)) + label) % FOLDS
    return folds


def _statistics(values: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean, and one over the root of the variance + 1e-6, of each feature; in two passes, part by part."""
    mean_D = sum((values[part].sum(0, dtype=np.float64) for part in _parts(rows)), np.float64(0)) / len(rows)
    var_D = sum((((values[part] - mean_D) ** 2).sum(0) for part in _parts(rows)), np.float64(0)) / len(rows)
    return np.asarray(mean_D), np.asarray(1 / np.sqrt(var_D + _EPS))


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _PART] for start in range(0, len(rows), _PART))
