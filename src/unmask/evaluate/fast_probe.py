"""The fast linear probe: embed once, then logistic regression on the cached features.

The images are centre-cropped and not augmented, which is what makes it fast; the published probe trains through the
loop with augmentation. The features are standardised by the training images' mean and variance, which is what a
BatchNorm without affine parameters does. The loss is convex and is brought to its minimum, so the only choice is how
strongly the weights are held small: with few labels, all of it. Cross-validation on the training images makes it, by
the cross entropy of what is held out at its best temperature. Without that temperature (Guo et al. 2017, section 4.2)
the strength would also have to set how certain the head is, and with few labels that takes a stronger one than telling
the classes apart does: docs/log.md, "The probe".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
FEW = 250
"""Below this number the folds are drawn anew, up to five times, until as many images were held out."""
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
    """Mean cross entropy, the logits multiplied by `certainty`."""
    certainty: float
    """One over the temperature at which that is lowest."""


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
    return ProbeResult(head.accuracy(val, np.flatnonzero(val.labels >= 0)), strength, tried)


def fit_head(train: Features, classes: int, *, seed: int = 0) -> tuple[LinearHead, float, tuple[Tried, ...]]:
    """The head, the strength it was fitted with, and what was tried. Arguments and errors as for `fit_probe`."""
    rows = np.flatnonzero(train.labels >= 0)
    if missing := sorted({*range(classes)} - {*train.labels[rows].tolist()}):
        raise DataError(f"train: class {missing[0]} has no readable image; a linear probe needs one of each class")
    held_out = folds_to_hold_out(train, rows, seed)
    with progress("fit the probe", total=len(STRENGTHS) * len(held_out) + 1, unit="fit") as bar:
        tried = list(_cross_validated(train, rows, classes, held_out, bar.update))
        best = min(tried, key=lambda one: one.loss, default=Tried(ONE_LABEL, np.nan, np.nan, 1.0))
        head = LinearHead.fit(train, rows, classes, best.strength)
        bar.update((len(STRENGTHS) - len(tried)) * len(held_out) + 1)
    return head.made_certain(best.certainty), best.strength, tuple(tried)


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
        cls,
        features: Features,
        rows: NDArray[np.int64],
        classes: int,
        strength: float,
        start: LinearHead | None = None,
        *,
        weights: Floats | None = None,
    ) -> LinearHead:
        """The minimum of mean cross entropy + strength/2 |W|^2 over the rows, by L-BFGS from zero.

        Or from `start`, a head that was fitted to the same rows. `weights`: of the rows in the mean.
        """
        from scipy.optimize import minimize  # takes half a second, and every run imports this file

        mean_D, scale_D = (start.mean, start.scale) if start else _statistics(features.values, rows)
        (D,), C, N = mean_D.shape, classes, len(rows)
        labels_N = features.labels[rows]
        share_N = np.full(N, 1 / N) if weights is None else weights / weights.sum()

        def x_of(part: slice) -> Floats:
            return (features.values[rows[part]] - mean_D) * scale_D

        # Few rows span all that the weights can use: there are only N numbers a class to find.
        basis_DK, rows_KN = np.linalg.qr(x_of(slice(None)).T) if N < D else (None, None)
        K = min(N, D)

        def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
            weight_KC, bias_C = flat[: K * C].reshape(K, C), flat[K * C :]
            loss, gradient_KC, gradient_C = strength / 2 * np.vdot(weight_KC, weight_KC), strength * weight_KC, 0.0
            for first in range(0, N, _PART):
                part = slice(first, first + _PART)
                x_BK = x_of(part) if rows_KN is None else rows_KN[:, part].T
                log_p_BC = log_softmax(x_BK @ weight_KC + bias_C)
                each, labels_B = np.arange(len(x_BK)), labels_N[part]
                loss -= share_N[part] @ log_p_BC[each, labels_B]
                error_BC = np.exp(log_p_BC)
                error_BC[each, labels_B] -= 1
                error_BC *= share_N[part, None]
                gradient_KC += x_BK.T @ error_BC
                gradient_C += error_BC.sum(0)
            return float(loss), np.concatenate([gradient_KC.ravel(), gradient_C])

        first = np.zeros(K * C + C)
        if start is not None:
            weight_KC = start.weight if basis_DK is None else basis_DK.T @ start.weight
            first = np.concatenate([weight_KC.ravel(), start.bias])
        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "gtol": 1e-5, "ftol": 1e-10}
        found = minimize(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options).x
        weight_KC = found[: K * C].reshape(K, C)
        return cls(mean_D, scale_D, weight_KC if basis_DK is None else basis_DK @ weight_KC, found[K * C :])

    def made_certain(self, certainty: float) -> LinearHead:
        """The same with its logits multiplied by `certainty`."""
        return replace(self, weight=certainty * self.weight, bias=certainty * self.bias)

    def logits(self, features: Features, rows: NDArray[np.int64]) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """(B, C) and the classes (B,), part by part."""
        for first in range(0, len(rows), _PART):
            part = rows[first : first + _PART]
            x_BD = (features.values[part] - self.mean) * self.scale
            yield x_BD @ self.weight + self.bias, features.labels[part]

    def accuracy(self, features: Features, rows: NDArray[np.int64]) -> float:
        return sum(classification_sums(logits, labels)["top1"] for logits, labels in self.logits(features, rows)) / len(
            rows
        )

    def parameters(self) -> Tensors:
        """The same head on features as they are, as `head.weight` (C, D) and `head.bias` (C,) of a classifier."""
        weight_DC = self.weight * self.scale[:, None]
        bias_C = self.bias - self.mean @ weight_DC
        return {"head.weight": weight_DC.T.astype(np.float32), "head.bias": bias_C.astype(np.float32)}


def _cross_validated(
    features: Features,
    rows: NDArray[np.int64],
    classes: int,
    held_out: Sequence[NDArray[np.int64]],
    fitted: Callable[[], object],
) -> Iterator[Tried]:
    """The strengths from the strongest on, each fold's fit starting from its last; none where nothing can be held out.

    It ends when weaker ones have become worse: they take longest. `fitted` is called after each fit.
    """

    def fit(held: NDArray[np.int64], strength: float, start: LinearHead | None) -> LinearHead:
        head = LinearHead.fit(features, np.setdiff1d(rows, held), classes, strength, start)
        fitted()
        return head

    heads: list[LinearHead | None] = [None] * len(held_out)
    best, worse = np.inf, 0
    for strength in STRENGTHS if held_out else ():
        heads = [fit(held, strength, head) for held, head in zip(held_out, heads, strict=True)]
        found = [
            part for held, head in zip(held_out, heads, strict=True) if head for part in head.logits(features, held)
        ]
        logits, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
        yield (tried := judged(strength, logits, labels))
        best, worse = (tried.loss, 0) if tried.loss < best else (best, worse + 1)
        if worse == _PATIENCE:
            return


def judged(strength: float, logits: Floats, labels: NDArray[np.int64]) -> Tried:
    """What logits (N, C) of images that are held out are worth."""
    from scipy.optimize import minimize_scalar

    def loss_at(log_certainty: float) -> float:
        return classification_sums(np.exp(log_certainty) * logits, labels)["loss"] / len(labels)

    lowest: Any = minimize_scalar(loss_at, bounds=(-5, 5), method="bounded")
    accuracy = classification_sums(logits, labels)["top1"] / len(labels)
    return Tried(strength, accuracy, float(lowest.fun), float(np.exp(lowest.x)))


def folds_to_hold_out(features: Features, rows: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Rows that are held out together: each row once, or, of few, once for each time the folds are drawn."""
    repeats, chosen = min(5, -(-FEW // len(rows))), features.labels[rows]
    groups = None if features.groups is None else features.groups[rows]
    drawn = [folds_of(chosen, seed, repeat, groups=groups) for repeat in range(repeats)]
    found = [rows[folds == number] for folds in drawn for number in range(FOLDS if len(rows) < MANY else 1)]
    return [held for held in found if len(held)]


def folds_of(
    labels: NDArray[np.int64],
    seed: int,
    repeat: int = 0,
    count: int = FOLDS,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(N,) the fold in which each row is held out, the same share of each class; -1 for the only one of its class.

    `groups` (N,): rows of the same stay together.
    """
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _folds_of_groups(labels, np.unique(groups, return_inverse=True)[1], seed, repeat, count)
    folds = np.full(len(labels), -1)
    for label in np.unique(labels):
        members = generator(seed, 1 + repeat, int(label), Op.SUBSET).permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            folds[members] = (np.arange(len(members)) + label) % count
    return folds


def _folds_of_groups(
    labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int, repeat: int, count: int
) -> NDArray[np.int64]:
    """As `folds_of`, with each group in one fold, or in none, -1, where a class would be in no other.

    The largest groups come first, each into the fold that has the smallest share of its classes.
    """
    sizes = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(sizes, (groups, labels), 1)
    share = sizes / np.maximum(sizes.sum(0), 1)
    order = generator(seed, 1 + repeat, 0, Op.SUBSET).permutation(len(sizes))
    order = order[np.argsort(-sizes[order].sum(1), kind="stable")]
    chosen, filled = np.full(len(sizes), -1), np.zeros((count, sizes.shape[1]))
    for group in order:
        chosen[group] = np.lexsort((filled.sum(1), (filled * share[group]).sum(1)))[0]
        filled[chosen[group]] += share[group]
    for group in order[::-1]:  # the smallest first
        inside = sizes[chosen == chosen[group]].sum(0)
        if chosen[group] >= 0 and ((inside == sizes.sum(0)) & (sizes[group] > 0)).any():
            chosen[group] = -1
    return chosen[groups]


def _statistics(values: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean, and one over the root of the variance + 1e-6, of each feature; in two passes, part by part."""
    mean_D = sum((values[part].sum(0, dtype=np.float64) for part in _parts(rows)), np.float64(0)) / len(rows)
    var_D = sum((((values[part] - mean_D) ** 2).sum(0) for part in _parts(rows)), np.float64(0)) / len(rows)
    return np.asarray(mean_D), np.asarray(1 / np.sqrt(var_D + _EPS))


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _PART] for start in range(0, len(rows), _PART))
