"""Nearest neighbours in blocks against all similarities at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unmask.evaluate import knn as module
from unmask.evaluate.knn import nearest, vote


def naive(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    similarity = unit(queries.astype(np.float64)) @ unit(database.astype(np.float64)).T
    order = np.argsort(-similarity, axis=1)[:, :k]
    return np.take_along_axis(similarity, order, 1), order


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("blocks", [(16, 64), (1000, 10_000), (7, 5)])
def test_blocks_of_any_size_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, blocks: tuple[int, int]
) -> None:
    monkeypatch.setattr(module, "_QUERIES", blocks[0])
    monkeypatch.setattr(module, "_DATABASE", blocks[1])
    rng = np.random.default_rng(0)
    np.save(tmp_path / "database.npy", rng.normal(size=(1003, 12)).astype(np.float32))
    database = np.load(tmp_path / "database.npy", mmap_mode="r")
    queries = rng.normal(size=(37, 12)).astype(np.float32)
    similarity, index = nearest(queries, database, k)
    expected, order = naive(queries, database, k)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_rows_that_are_not_valid_are_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DATABASE", 4)
    rng = np.random.default_rng(0)
    database, queries = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    valid = np.arange(10) % 3 == 1
    database[~valid] = np.nan
    similarity, index = nearest(queries, database, 4, valid=valid)
    expected, order = naive(queries, database[valid], 3)
    np.testing.assert_array_equal(index[:, :3], np.flatnonzero(valid)[order])
    np.testing.assert_allclose(similarity[:, :3], expected, atol=1e-6)
    assert np.isneginf(similarity[:, 3]).all(), "there are only three"


def test_votes_are_weighted_as_in_dino() -> None:
    rng = np.random.default_rng(0)
    similarity = -np.sort(-rng.uniform(-1, 1, size=(20, 9)).astype(np.float32), axis=1)
    labels = rng.integers(4, size=(20, 9))
    scores = vote(similarity, labels, 4, temperature=0.07)
    weight = np.exp(similarity.astype(np.float64) / 0.07)
    expected = np.stack([(weight * (labels == label)).sum(1) for label in range(4)], axis=1)
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), expected / expected.sum(1, keepdims=True), rtol=1e-5
    )


def test_a_neighbour_without_a_class_does_not_vote() -> None:
    similarity = np.array([[0.9, 0.5, -np.inf]], np.float32)
    scores = vote(similarity, np.array([[-1, 2, -1]]), 3, temperature=0.1)
    assert (scores[0] > 0).tolist() == [False, False, True]


def test_close_similarities_do_not_overflow() -> None:
    similarity = np.array([[1.0, 0.999]], np.float32)
    scores = vote(similarity, np.array([[0, 1]]), 2, temperature=1e-5)
    np.testing.assert_allclose(scores, [[1, 0]], atol=1e-30)
