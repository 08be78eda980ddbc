"""The figures of a classifier against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unmask.errors import DataError, UnmaskError
from unmask.evaluate.classification import BINS, WORST, ClassificationReport, Tally

# Seven images of three classes; rows are probabilities times ten.
PROBABILITIES = [(8, 1, 1), (6, 3, 1), (1, 7, 2), (2, 7, 1), (5, 4, 1), (1, 2, 7), (2, 7, 1)]
LABELS = [0, 0, 0, 1, 1, 1, 1]
NAMES = ("a", "b", "c")


def tally_of(rows: range, classes: int = 3, images: int = 0) -> Tally:
    tally = Tally(classes, images)
    for row in rows:  # in batches of one
        logits = np.log(np.array([PROBABILITIES[row]], np.float32) / 10) + 3
        tally.add(np.array([10 + row]), np.array([LABELS[row]]), logits)
    return tally


@pytest.fixture
def report() -> ClassificationReport:
    return ClassificationReport(tally_of(range(7)), NAMES)


def test_confusion_rows_are_true_classes(report: ClassificationReport) -> None:
    assert report.confusion.tolist() == [[2, 1, 0], [1, 2, 1], [0, 0, 0]]


def test_per_class(report: ClassificationReport) -> None:
    each = report.per_class()
    assert each.support.tolist() == [3, 4, 0]
    np.testing.assert_allclose(each.recall, [2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(each.precision, [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(each.f1, [2 / 3, 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2), 0])


def test_metrics(report: ClassificationReport) -> None:
    metrics = report.metrics()
    true = [p[label] / 10 for p, label in zip(PROBABILITIES, LABELS, strict=True)]
    # By confidence: 0.5 wrong, 0.6 right, 0.7 four times (two right, two wrong), 0.8 right. Bins are 1/15 wide:
    # 0.5 is in the 8th (0.4667, 0.5333], 0.6 in the 9th (up to 0.6), 0.7 in the 11th, 0.8 in the 12th (up to 0.8).
    calibration = (0.5 + 0.4 + abs(4 * 0.7 - 2) + 0.2) / 7
    assert metrics == pytest.approx(
        {
            "count": 7,
            "loss": -sum(map(math.log, true)) / 7,
            "top1": 4 / 7,
            "top5": 1,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "macro_precision": 2 / 3,
            "macro_f1": (2 / 3 + 4 / 7) / 2,
            "calibration_error": calibration,
        },
        rel=1e-6,
    )


def test_the_worst_come_first(report: ClassificationReport) -> None:
    assert [(m.index, m.true, m.predicted) for m in report.worst[:3]] == [(12, 0, 1), (15, 1, 2), (14, 1, 0)]
    assert report.worst[0].loss == pytest.approx(-math.log(0.1))
    assert report.worst[0].confidence == pytest.approx(0.7)


def test_top5_and_the_many_worst_against_sorting() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 12)).astype(np.float32)
    labels = rng.integers(12, size=200)
    tally = Tally(12)
    for part in np.array_split(np.arange(200), 7):
        tally.add(part, labels[part], logits[part])
    report = ClassificationReport(tally, tuple("abcdefghijkl"))
    best = np.argsort(-logits, axis=1)[:, :5]
    assert report.metrics()["top5"] == pytest.approx((best == labels[:, None]).any(1).mean())
    p = np.exp(logits.astype(float))
    loss = -np.log((p / p.sum(1, keepdims=True))[np.arange(200), labels])
    assert [m.index for m in report.worst] == np.argsort(-loss)[:WORST].tolist()


def test_equal_logits_are_no_success() -> None:
    """A head that says nothing must not score: of equal logits the true class counts as the lowest."""
    tally = Tally(10)
    tally.add(np.arange(10), np.arange(10), np.zeros((10, 10), np.float32))
    metrics = ClassificationReport(tally, tuple("abcdefghij")).metrics()
    assert (metrics["top1"], metrics["top5"]) == (0, 0)
    assert metrics["calibration_error"] == pytest.approx(0.1), "a confidence of 0.1, and never right"


def test_processes_add_up_to_one() -> None:
    """Each of three processes has its share; one has none at all."""
    images = 18  # at 10 to 16; the others could not be decoded
    shares = [tally_of(rows, images=images) for rows in (range(0, 7, 2), range(1, 7, 2), range(0))]
    calls: list[list[np.ndarray]] = []
    for rank, tally in enumerate(shares):  # once to see what each adds, and once with the sums
        mine: list[np.ndarray] = []
        calls.append(mine)
        copy = Tally(3, images)
        copy.__dict__ |= {name: array.copy() for name, array in vars(tally).items()}
        copy.over_processes(lambda array, mine=mine: mine.append(array.copy()) or array, rank, 3)
    sums = [sum(arrays) for arrays in zip(*calls, strict=True)]
    expected = ClassificationReport(tally_of(range(7), images=images), NAMES)
    assert np.isfinite(expected.each).all(axis=1).tolist() == [10 <= index < 17 for index in range(images)]
    for rank, tally in enumerate(shares):
        answers = iter(sums)
        tally.over_processes(lambda _array, answers=answers: next(answers), rank, 3)
        report = ClassificationReport(tally, NAMES)
        assert report.metrics() == pytest.approx(expected.metrics())
        assert report.worst == expected.worst
        np.testing.assert_array_equal(report.each, expected.each)  # each image once, in its place


def test_confidences_of_one_are_in_the_last_bin() -> None:
    tally = Tally(2)
    tally.add(np.arange(1), np.array([0]), np.array([[1000, 0]], np.float32))
    assert tally.bins[BINS - 1].tolist() == [1, 1, 1]


def test_nothing_to_count_and_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        ClassificationReport(Tally(2), ("a", "b"))
    with pytest.raises(UnmaskError, match="not finite"):
        Tally(2).add(np.arange(1), np.array([0]), np.array([[np.nan, 0]], np.float32))
