"""The attentive probe, on tokens made for it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import check_grad

import unmask.evaluate.attentive
import unmask.evaluate.fast_probe
from unmask.evaluate.attentive import AttentiveHead, fit, fit_attentive, judge_attentive
from unmask.evaluate.fast_probe import LinearHead, fit_probe
from unmask.evaluate.features import Features

PATCHES, WIDTH, CLASSES = 12, 8, 3
SIZES = {"width": WIDTH, "queries": 2}


def tokens(count: int, seed: int, *, everywhere: bool = False) -> Features:
    """Noise; the class is told by one marked token, or, weakly, by all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, PATCHES, WIDTH))
    labels = np.arange(count) % CLASSES
    if everywhere:
        x[:, :, 0] += labels[:, None] - 1
    else:
        place = rng.integers(0, PATCHES, count)
        x[:, :, 5:] *= 4  # what the mean drowns in
        x[:, :, 0] -= 4
        x[:, :, 4] -= 4
        x[np.arange(count), place, 0] += 8  # the marks, one for each query's part
        x[np.arange(count), place, 4] += 8
        x[np.arange(count), place, 1:4] += 2 * np.eye(CLASSES)[labels]
    return Features(x.reshape(count, -1).astype(np.float32), labels)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer folds."""
    for module in (unmask.evaluate.attentive, unmask.evaluate.fast_probe):
        monkeypatch.setattr(module, "FEW", 60)


def means(features: Features) -> Features:
    return Features(features.values.reshape(-1, PATCHES, WIDTH).mean(1), features.labels)


def test_the_gradient_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    features, rng = tokens(9, 0), np.random.default_rng(1)
    plain = LinearHead.fit(means(features), np.arange(9), CLASSES, 0.1)
    monkeypatch.setattr(unmask.evaluate.attentive, "Single", np.float64)
    asked: list[float] = []

    def checked(function, first, **_):
        at = first + rng.normal(0, 0.3, len(first))
        difference = check_grad(lambda x: function(x)[0], lambda x: function(x)[1], at)
        asked.append(difference / np.linalg.norm(function(at)[1]))
        raise InterruptedError

    monkeypatch.setattr(scipy.optimize, "minimize", checked)
    with pytest.raises(InterruptedError):
        fit(features, np.arange(9), AttentiveHead(plain, np.zeros((2, WIDTH))), 0.1, 0.01)
    assert asked[0] < 1e-6


def test_without_queries_it_is_the_linear_probe() -> None:
    features = tokens(30, 0)
    plain = LinearHead.fit(means(features), np.arange(30), CLASSES, 0.1)
    rows = np.arange(30)
    ours, expected = (
        np.concatenate([logits for logits, _ in part])
        for part in (
            AttentiveHead(plain, np.zeros((2, WIDTH))).logits(features, rows),
            plain.logits(means(features), rows),
        )
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_it_looks_where_the_class_is() -> None:
    train, val = tokens(120, 0), tokens(300, 1)
    found = judge_attentive(train, val, CLASSES, **SIZES)
    linear = fit_probe(means(train), means(val), CLASSES).accuracy
    assert found.strength is not None
    assert found.accuracy > linear + 0.15
    assert min(one.loss for one in found.tried) < found.linear.loss


def test_where_looking_does_not_pay_it_is_the_linear_probe() -> None:
    train, val = tokens(30, 0, everywhere=True), tokens(300, 1, everywhere=True)
    found = judge_attentive(train, val, CLASSES, **SIZES)
    assert found.accuracy >= fit_probe(means(train), means(val), CLASSES).accuracy - 0.01


def test_one_image_a_class_and_rows_that_do_not_count() -> None:
    train, val = tokens(CLASSES + 2, 0), tokens(9, 1)
    labels = np.where(np.arange(CLASSES + 2) < CLASSES, train.labels, -1)
    values = np.where(labels[:, None] < 0, np.nan, train.values)
    head, _, tried = fit_attentive(Features(values, labels), CLASSES, **SIZES)
    assert not tried
    assert not head.queries.any()
    assert sum(len(logits) for logits, _ in head.logits(val, np.arange(9))) == 9
