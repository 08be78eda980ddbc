"""Least squares on the classes, for features of several kinds: how much each kind counts is chosen, not guessed.

The kernel is a weighted sum of the kinds' own linear kernels (multiple kernel learning), and for least squares the
answer for each image by a fit that left it out, with all of its group (`data.val_group`), has a closed form. So all
images judge each choice, where folds would hold back a fifth, and there is no fitting by steps. With fewer labels than
features that is better than the logistic regression of `fast_probe`, by 1 to 4 points on handmade features
(docs/log.md), and it takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from unmask.data.rng import Op, generator
from unmask.errors import DataError
from unmask.evaluate.fast_probe import Floats, LinearHead, judged
from unmask.evaluate.features import Features

RATIOS = (0.1, 0.3, 1.0, 3.0)
"""What each kind but the first may count, the first counting 1."""
NOISES = tuple(10.0 ** (exponent / 2) for exponent in range(-6, 4))
"""What is added to the kernel's diagonal, which is 1 in the mean."""
DEFAULT = (0.3, 1.0, 8.0)
"""Ratio of the other kinds, noise and certainty where no class has two images (two groups): nothing can be chosen."""
JUDGES = 1000
"""Most images that the choice is made on; the weights are fitted to all."""
_CONSTANT = 0.1
"""The kernel of a bias, which is held small like other weights: the classes' shares are taken off beforehand."""
_PART = 4096


def fit_ridge(features: Features, widths: Sequence[int], classes: int, *, seed: int = 0) -> LinearHead:
    """A classifier with probabilities, on features whose columns are kinds of these `widths`, one after the other.

    Rows whose label is -1 do not count. Raises DataError for a class without an image.
    """
    rows = np.flatnonzero(features.labels >= 0)
    if missing := sorted({*range(classes)} - {*features.labels[rows].tolist()}):
        raise DataError(f"train: class {missing[0]} has no readable image; a classifier needs one of each class")
    kinds = [slice(*ends) for ends in pairwise(np.cumsum([0, *widths]).tolist()) if ends[0] < ends[1]]
    mean_D, scale_D = _statistics(features.values, rows, kinds)
    chosen = _chosen(features, rows, kinds, classes, mean_D, scale_D, seed)
    for kind, share in zip(kinds, chosen.shares, strict=True):
        scale_D[kind] *= np.sqrt(share)
    weight_DC, bias_C = _fitted(features, rows, classes, mean_D, scale_D, chosen.noise)
    return LinearHead(mean_D, scale_D, weight_DC, bias_C).made_certain(chosen.certainty)


@dataclass(frozen=True)
class _Choice:
    shares: tuple[float, ...]
    noise: float
    certainty: float


def _chosen(
    features: Features,
    rows: NDArray[np.int64],
    kinds: Sequence[slice],
    classes: int,
    mean_D: Floats,
    scale_D: Floats,
    seed: int,
) -> _Choice:
    """By the squared error of the answers for images that were left out."""
    if len(rows) > JUDGES:
        rows = np.sort(generator(seed, 1, 0, Op.SUBSET).choice(rows, JUDGES, replace=False))
    labels = features.labels[rows]
    groups = np.arange(len(rows)) if features.groups is None else features.groups[rows]
    several = ((labels[:, None] == labels) & (groups[:, None] != groups)).any(1)
    if not several.any():
        ratio, noise, certainty = DEFAULT
        return _Choice(_shares([ratio] * (len(kinds) - 1)), noise, certainty)
    x_ND = (features.values[rows] - mean_D) * scale_D
    kernels = [x_ND[:, kind] @ x_ND[:, kind].T for kind in kinds]
    targets_NC = _targets(labels, classes)
    best = np.inf, _Choice((), 0.0, 1.0), targets_NC
    for ratios in product(RATIOS, repeat=len(kinds) - 1):
        shares = _shares(ratios)
        kernel = np.full_like(kernels[0], _CONSTANT)
        for share, each in zip(shares, kernels, strict=True):
            kernel += share * each
        for noise, errors_NC in _left_out(kernel, targets_NC, groups):
            loss = float((errors_NC[several] ** 2).mean())
            if loss < best[0]:
                best = loss, _Choice(shares, noise, 1.0), targets_NC - errors_NC
    tried = judged(best[1].noise, best[2][several] + _prior(labels, classes), labels[several])
    return _Choice(best[1].shares, best[1].noise, tried.certainty)


def _left_out(kernel: Floats, targets_NC: Floats, groups: NDArray[np.int64]) -> Iterator[tuple[float, Floats]]:
    """For each noise the errors (N, C) of the answers for images that were left out with all of their group."""
    values, vectors = np.linalg.eigh(kernel)
    turned = vectors.T @ targets_NC
    numbers, sizes = np.unique(groups, return_counts=True)
    together = [np.flatnonzero(groups == number) for number in numbers[sizes > 1]]
    for noise in NOISES:
        inverse = 1 / (np.maximum(values, 0) + noise)
        weights_NC = vectors @ (inverse[:, None] * turned)
        errors_NC = weights_NC / (vectors**2 @ inverse)[:, None]
        for members in together:
            block = (vectors[members] * inverse) @ vectors[members].T
            errors_NC[members] = np.linalg.solve(block, weights_NC[members])
        yield noise, errors_NC


def _fitted(
    features: Features, rows: NDArray[np.int64], classes: int, mean_D: Floats, scale_D: Floats, noise: float
) -> tuple[Floats, Floats]:
    """Weights (D, C) and bias (C,); in whichever of the two forms has the smaller matrix."""
    labels, prior_C = features.labels[rows], _prior(features.labels[rows], classes)
    targets_NC = _targets(labels, classes)

    def x_of(part: slice) -> Floats:
        x: Floats = (features.values[rows[part]] - mean_D) * scale_D
        return np.concatenate([x, np.full((len(x), 1), np.sqrt(_CONSTANT))], axis=1)

    N, D = len(rows), len(mean_D) + 1
    if N <= D:
        x_ND = x_of(slice(None))
        weight_DC = x_ND.T @ np.linalg.solve(x_ND @ x_ND.T + noise * np.eye(N), targets_NC)
    else:
        gram, right = noise * np.eye(D), np.zeros((D, classes))
        for first in range(0, N, _PART):
            part = slice(first, first + _PART)
            x_BD = x_of(part)
            gram += x_BD.T @ x_BD
            right += x_BD.T @ targets_NC[part]
        weight_DC = np.linalg.solve(gram, right)
    return weight_DC[:-1].astype(np.float64), (weight_DC[-1] * _CONSTANT**0.5 + prior_C).astype(np.float64)


def _statistics(values: NDArray[np.float32], rows: NDArray[np.int64], kinds: Sequence[slice]) -> tuple[Floats, Floats]:
    """(D,) means, and scales with which each kind's squared length is 1 in the mean."""
    parts = [rows[first : first + _PART] for first in range(0, len(rows), _PART)]
    mean_D = np.asarray(sum(values[part].sum(0, dtype=np.float64) for part in parts)) / len(rows)
    variance_D = np.asarray(sum(((values[part] - mean_D) ** 2).sum(0, dtype=np.float64) for part in parts)) / len(rows)
    std_D = np.sqrt(variance_D)
    scale_D = np.zeros_like(mean_D)
    for kind in kinds:
        least = 1e-3 * float(std_D[kind].mean())  # what hardly ever differs is not blown up
        scale_D[kind] = 1 / ((std_D[kind] + least + 1e-12) * np.sqrt(kind.stop - kind.start))
    return mean_D, scale_D


def _shares(ratios: Sequence[float]) -> tuple[float, ...]:
    whole = 1 + sum(ratios)
    return (1 / whole, *(ratio / whole for ratio in ratios))


def _targets(labels: NDArray[np.int64], classes: int) -> Floats:
    """(N, C): 1 for the class, less the share that the class has."""
    return np.eye(classes)[labels] - _prior(labels, classes)


def _prior(labels: NDArray[np.int64], classes: int) -> Floats:
    return np.bincount(labels, minlength=classes) / len(labels)
