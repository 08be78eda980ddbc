"""The probe on features whose best linear classifier is known, and against scikit-learn's logistic regression."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from unmask.errors import DataError
from unmask.evaluate import fast_probe as module
from unmask.evaluate.fast_probe import FOLDS, ONE_LABEL, STRENGTHS, LinearHead, fit_probe
from unmask.evaluate.features import Features
from unmask.metrics import log_softmax


def gaussians(count: int, seed: int, distance: float = 4.0, classes: int = 3) -> Features:
    """Unit Gaussians in 8 dimensions, on scales from 0.001 to 1000 and far from zero, the classes in turns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    values = rng.normal(size=(count, 8))
    values[np.arange(count), labels] += distance
    return Features((values * np.logspace(-3, 3, 8) + 100 * np.logspace(-3, 3, 8)).astype(np.float32), labels)


def test_it_comes_near_the_best_possible_whatever_the_scale_of_the_features() -> None:
    train, val = gaussians(1000, 0), gaussians(3000, 1)
    result = fit_probe(train, val, 3)
    # The Bayes classifier takes the largest of the first three, unscaled.
    bayes = ((val.values[:, :3] / np.logspace(-3, 3, 8)[:3]).argmax(1) == val.labels).mean()
    assert 0.98 < bayes < 1
    assert result.accuracy == pytest.approx(bayes, abs=0.005)


@pytest.mark.parametrize("strength", [1.0, 0.01])
@pytest.mark.parametrize("count", [6, 12, 300])
def test_it_is_the_logistic_regression_of_scikit_learn(strength: float, count: int, monkeypatch: Any) -> None:
    linear_model: Any = pytest.importorskip("sklearn.linear_model", reason="scikit-learn comes with the demo's extra")
    monkeypatch.setattr(module, "_PART", 7)  # parts that do not divide the images
    features = gaussians(count, 0, distance=1.0)
    head = LinearHead.fit(features, np.arange(count), 3, strength)
    x = (features.values.astype(np.float64) - head.mean) * head.scale
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(x.std(0)[1:], 1, atol=0.1)  # of the first, 1e-6 is half of the variance
    reference = linear_model.LogisticRegression(C=1 / (strength * count), tol=1e-10, max_iter=10_000)
    reference.fit(x, features.labels)
    np.testing.assert_allclose(head.weight.T, reference.coef_, atol=1e-3)
    np.testing.assert_allclose(
        head.bias - head.bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-3
    )


def test_starting_elsewhere_leads_to_the_same_head() -> None:
    features = gaussians(100, 0, distance=1.0)
    stronger = LinearHead.fit(features, np.arange(100), 3, 1.0)
    assert np.abs(stronger.weight).max() < 0.5
    again = LinearHead.fit(features, np.arange(100), 3, 0.01, stronger)
    np.testing.assert_allclose(again.weight, LinearHead.fit(features, np.arange(100), 3, 0.01).weight, atol=1e-4)


def test_the_strength_is_chosen_without_looking_at_val() -> None:
    train, val = gaussians(600, 0), gaussians(600, 1)
    wrong = Features(val.values, (val.labels + 1) % 3)
    right_choice, wrong_choice = fit_probe(train, val, 3), fit_probe(train, wrong, 3)
    assert dataclasses.replace(wrong_choice, accuracy=right_choice.accuracy) == right_choice
    assert wrong_choice.accuracy < 0.1


def test_noise_takes_a_stronger_hold() -> None:
    """Two of a hundred features tell the classes; those of the rest that seem to must be held down."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    values = rng.normal(size=(300, 100))
    values[:, 0] += 2 * labels
    result = fit_probe(Features(values.astype(np.float32), labels), Features(values.astype(np.float32), labels), 2)
    loss = {one.strength: one.loss for one in result.tried}
    assert 0.05 < result.strength < 5
    assert loss[result.strength] < loss[result.tried[-1].strength] - 0.01
    assert loss[result.strength] < loss[STRENGTHS[0]] - 0.001


def test_the_head_is_as_certain_as_it_is_right() -> None:
    """Its strength is chosen for telling the classes apart; how far to trust it is then set by what was held out."""
    train, val = gaussians(60, 0, distance=1.5), gaussians(3000, 1, distance=1.5)
    head, _, _ = module.fit_head(train, 3)
    logits = np.concatenate([part for part, _ in head.logits(val, np.arange(3000))])
    confidence = np.exp(log_softmax(logits)).max(1).mean()
    assert confidence == pytest.approx(head.accuracy(val, np.arange(3000)), abs=0.06)


def test_every_image_is_held_out_once_and_no_class_goes_missing_meanwhile() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 4, 23])
    folds = module.folds_of(labels, seed=0)
    assert folds[0] == -1, "the only image of its class is always fitted on"
    for number in range(FOLDS):
        held = folds == number
        assert {*labels[~held]} == {0, 1, 2, 3}
        assert 4 <= np.count_nonzero(held & (labels == 3)) <= 5
    assert {*folds[1:]} == {*range(FOLDS)}


def test_one_image_a_class_leaves_nothing_to_choose() -> None:
    train, val = gaussians(3, 0), gaussians(300, 1)
    result = fit_probe(train, val, 3)
    assert (result.strength, result.tried) == (ONE_LABEL, ())
    assert result.accuracy > 0.6


def test_many_images_are_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", 100)
    fits: list[int] = []
    fit = LinearHead.fit.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(LinearHead, "fit", classmethod(lambda cls, *a: fits.append(len(a[1])) or fit(cls, *a)))
    result = fit_probe(gaussians(300, 0), gaussians(300, 1), 3)
    assert {*fits} == {240, 300}
    assert len(fits) == len(result.tried) + 1 <= len(STRENGTHS) + 1


def test_images_that_cannot_be_decoded_do_not_count() -> None:
    train, val = gaussians(300, 0), gaussians(300, 1)

    def with_gaps(features: Features) -> Features:
        values = np.insert(features.values, 5, np.nan, axis=0)
        return Features(values, np.insert(features.labels, 5, -1))

    expected, result = fit_probe(train, val, 3), fit_probe(with_gaps(train), with_gaps(val), 3)
    assert result.strength == expected.strength
    assert result.accuracy == pytest.approx(expected.accuracy, abs=0.01)


def test_the_same_seed_gives_the_same_bits() -> None:
    train, val = gaussians(200, 0), gaussians(200, 1)
    assert fit_probe(train, val, 3, seed=1) == fit_probe(train, val, 3, seed=1)


def test_a_class_without_images_is_refused() -> None:
    train = gaussians(50, 0)
    with pytest.raises(DataError, match="class 3 has no readable image"):
        fit_probe(train, train, 4)
