"""Figures of an evaluation against values worked out by hand: ties, NaN, several classes, and collapse."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.evaluate.classification import ClassificationReport, Tally
from unmask.metrics import (
    classification_sums,
    effective_rank,
    log_softmax,
    multi_label_sums,
    predicted_class,
    rank_of_true,
)


@pytest.mark.parametrize(
    ("scores", "label", "rank", "predicted"),
    [
        ([3, 2, 1], 0, 0, 0),
        ([3, 2, 1], 2, 2, 0),
        ([1, 1, 1], 0, 2, 1),  # of equal scores the true one is the lowest
        ([1, 1, 1], 1, 2, 0),
        ([2, 2, 1], 1, 1, 0),
        ([2, 2, 1], 0, 1, 1),
        ([2, 2, 3], 0, 2, 2),
        ([-np.inf, 0, -np.inf], 0, 2, 1),
    ],
)
def test_ranks_and_predictions_with_ties(scores: list[float], label: int, rank: int, predicted: int) -> None:
    row, labels = np.array([scores], np.float32), np.array([label])
    assert rank_of_true(row, labels).tolist() == [rank]
    assert predicted_class(row, labels).tolist() == [predicted]


def test_a_score_that_is_not_a_number_is_never_right() -> None:
    nan = np.nan
    scores = np.array([[nan, nan, nan], [nan, 1, 0], [2, nan, nan], [2, 1, nan]], np.float32)
    assert rank_of_true(scores, np.zeros(4, np.int64)).tolist() == [2, 2, 2, 1]
    assert predicted_class(scores, np.zeros(4, np.int64)).tolist() == [1, 1, 1, 2]
    assert classification_sums(scores, np.zeros(4, np.int64))["top1"] == 0


def test_the_predicted_class_is_the_true_one_exactly_where_its_rank_is_first() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 4, (2000, 6)).astype(np.float32), rng.integers(0, 6, 2000)
    rank, predicted = rank_of_true(scores, labels), predicted_class(scores, labels)
    assert (predicted == labels).tolist() == (rank == 0).tolist()
    assert (scores[np.arange(2000), predicted] == scores.max(1)).all(), "always one of the highest"
    assert 0 < (rank == 0).sum() < (scores.argmax(1) == labels).sum(), "there are ties, which a plain argmax wins"


def test_a_model_that_does_not_tell_classes_apart_is_never_right() -> None:
    labels = np.arange(10)
    sums = classification_sums(np.zeros((10, 10), np.float32), labels)
    assert sums == pytest.approx({"count": 10, "loss": 10 * np.log(10), "top1": 0, "top5": 0})


def test_sums_of_classes_equal_the_report() -> None:
    """Training and `unmask evaluate` say the same of the same logits, ties among them."""
    rng = np.random.default_rng(1)
    logits, labels = rng.integers(-3, 4, (300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    tally = Tally(8)
    tally.add(np.arange(300), labels, logits)
    report = ClassificationReport(tally, tuple("abcdefgh")).metrics()
    sums = classification_sums(logits, labels)
    assert {name: sums[name] / 300 for name in ("loss", "top1", "top5")} == pytest.approx(
        {name: report[name] for name in ("loss", "top1", "top5")}
    )


def test_log_softmax_holds_for_large_logits() -> None:
    p = np.exp(log_softmax(np.array([[1e4, 1e4, -1e4]], np.float32)))
    np.testing.assert_allclose(p, [[0.5, 0.5, 0]])
    assert p.dtype == np.float64


def test_measures_of_a_ranking() -> None:
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [1, 0, -1, -2]], np.float32)
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    sums = multi_label_sums(logits, labels)
    assert sums["count"] == 3
    assert sums["top1"] == 2
    assert sums["rank_precision"] == pytest.approx((1 + 2 / 3) / 2 + 1 + 1)
    p = 1 / (1 + np.exp(-logits.astype(float)))
    assert sums["loss"] == pytest.approx(-np.where(labels, np.log(p), np.log(1 - p)).mean(1).sum())


def test_true_classes_of_a_ranking_come_last_among_equals_and_nan_after_all() -> None:
    equal = multi_label_sums(np.zeros((1, 4), np.float32), np.array([[1, 0, 1, 0]], bool))
    assert equal["top1"] == 0
    assert equal["rank_precision"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    unknown = multi_label_sums(np.array([[np.nan, -9, -8]], np.float32), np.array([[1, 0, 0]], bool))
    assert unknown["top1"] == 0
    assert unknown["rank_precision"] == pytest.approx(1 / 3)


def test_effective_rank_of_known_matrices() -> None:
    rng = np.random.default_rng(0)
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(5 * np.eye(7)[:, :3]) == pytest.approx(3)
    assert effective_rank(np.outer(np.arange(1, 9), rng.normal(size=5))) == pytest.approx(1), "all on a line: collapse"
    assert effective_rank(np.zeros((4, 3))) == 1
    # Singular values 3 and 1: shares 3/4 and 1/4.
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3 ** (3 / 4))
    noise = rng.normal(size=(500, 16)).astype(np.float32)
    assert 15.5 < effective_rank(noise) <= 16
