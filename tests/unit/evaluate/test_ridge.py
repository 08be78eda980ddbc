"""Least squares on several kinds of features, against fits that leave each image out one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from unmask.errors import DataError
from unmask.evaluate import ridge
from unmask.evaluate.features import Features
from unmask.evaluate.ridge import fit_ridge
from unmask.metrics import log_softmax


def clusters(count: int, tells: tuple[float, ...], classes: int = 3, seed: int = 0, width: int = 20) -> Features:
    """Kinds of `width` features each; in each the classes are this far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(7).standard_normal((classes, len(tells), width)) * np.array(tells)[:, None]
    values = centres[labels] + rng.standard_normal((count, len(tells), width))
    return Features(values.reshape(count, -1).astype(np.float32), labels)


@pytest.mark.parametrize(
    "groups", [range(12), [0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 0], [0, 1] * 6], ids=["none", "some", "two"]
)
def test_the_answer_without_images_is_that_of_a_fit_without_them(groups: Sequence[int]) -> None:
    rng, group_of = np.random.default_rng(0), np.array(groups)
    x, targets = rng.standard_normal((12, 5)), rng.standard_normal((12, 2))
    kernel = x @ x.T
    for noise, errors in ridge._left_out(kernel, targets, group_of):  # pyright: ignore[reportPrivateUsage]
        for i in range(12):
            rest = group_of != group_of[i]
            weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + noise * np.eye(rest.sum()), targets[rest])
            assert targets[i] - kernel[i, rest] @ weights == pytest.approx(errors[i], abs=1e-5)


def test_both_forms_of_the_fit_are_the_same() -> None:
    """More images than features, and fewer: the same head on the same features, whichever matrix is smaller."""
    few = clusters(30, (0.5, 0.2))
    padded = Features(
        np.concatenate([few.values, few.values[:, :1] * np.zeros((1, 60), np.float32)], axis=1), few.labels
    )
    one = fit_ridge(few, (20, 20), 3)
    other = fit_ridge(padded, (20, 20, 0), 3)
    long = clusters(300, (0.5, 0.2))
    primal = ridge._fitted(long, np.arange(300), 3, one.mean, one.scale, 0.1)  # pyright: ignore[reportPrivateUsage]
    wide = Features(np.concatenate([long.values, np.zeros((300, 400), np.float32)], axis=1), long.labels)
    dual = ridge._fitted(  # pyright: ignore[reportPrivateUsage]
        wide, np.arange(300), 3, np.append(one.mean, np.zeros(400)), np.append(one.scale, np.zeros(400)), 0.1
    )
    np.testing.assert_allclose(dual[0][:40], primal[0], atol=1e-8)
    np.testing.assert_allclose(dual[1], primal[1], atol=1e-8)
    np.testing.assert_allclose(other.weight[:40], one.weight, atol=1e-8)


@pytest.mark.parametrize("tells", [(0.7, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.7)], ids=["first", "second", "third"])
def test_the_kind_that_tells_the_classes_counts_most(tells: tuple[float, ...]) -> None:
    train, val = clusters(60, tells), clusters(600, tells, seed=1)
    head = fit_ridge(train, (20, 20, 20), 3)
    strength = [float((head.scale[i : i + 20] ** 2).sum()) for i in (0, 20, 40)]
    assert int(np.argmax(strength)) == int(np.argmax(tells))
    assert head.accuracy(val, np.arange(600)) > 0.85


def test_probabilities_are_calibrated() -> None:
    train, val = clusters(300, (0.25,)), clusters(3000, (0.25,), seed=1)
    head = fit_ridge(train, (20,), 3)
    logits, labels = next(head.logits(val, np.arange(3000)))
    sure = np.exp(log_softmax(logits)).max(1).mean()
    assert sure == pytest.approx((logits.argmax(1) == labels).mean(), abs=0.06)


def test_one_image_a_class_and_more_than_the_judges() -> None:
    one = fit_ridge(clusters(3, (2.0, 0.1)), (20, 20), 3)
    assert one.accuracy(clusters(300, (2.0, 0.1), seed=1), np.arange(300)) > 0.9
    count = ridge.JUDGES + 500
    head = fit_ridge(clusters(count, (0.6, 0.1)), (20, 20), 3)
    assert head.accuracy(clusters(600, (0.6, 0.1), seed=1), np.arange(600)) > 0.85


def test_broken_images_do_not_count_and_each_class_needs_one() -> None:
    features = clusters(30, (1.0,))
    broken = Features(
        np.concatenate([features.values, np.full((2, 20), np.nan, np.float32)]), np.append(features.labels, [-1, -1])
    )
    np.testing.assert_array_equal(fit_ridge(broken, (20,), 3).weight, fit_ridge(features, (20,), 3).weight)
    with pytest.raises(DataError, match="class 3 has no readable image"):
        fit_ridge(features, (20,), 4)
