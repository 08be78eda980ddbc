"""Weighted k-nearest-neighbour classification on embeddings, as in Wu et al. 2018 and DINO; exact, in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.errors import ConfigError
from unmask.evaluate.features import Features, features_of
from unmask.evaluate.inference import Images, Model, Pool
from unmask.metrics import rank_of_true
from unmask.report.progress import progress

_QUERIES, _DATABASE = 1024, 16384
"""Rows of the two in a block: 64 MiB of similarities."""


def knn(
    model: Model,
    train: Images,
    val: Images,
    *,
    k: int = 20,
    temperature: float = 0.07,
    pool: Pool | None = None,
    cache: Path | None = None,
) -> dict[str, float]:
    """`count`, `top1` and `top5` (shares) on `val`, of the classes of the `k` most similar training images.

    A neighbour of cosine similarity s votes for its class with weight exp(s / temperature). Images that cannot be
    decoded neither vote nor count. `pool`: see `Model.embed`; `cache`: see `features_of`, as for errors.
    """
    if k < 1 or temperature <= 0:
        raise ConfigError(f"k={k}, temperature={temperature}: both must be positive")
    with features_of(model, train, val, cache, pool=pool) as (database, queries, classes):
        return knn_of(database, queries, classes, k=k, temperature=temperature)


def knn_of(
    database: Features, queries: Features, classes: int, *, k: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """The same on features. Rows whose label is -1 neither vote nor count."""
    similarity, index = nearest(queries.values, database.values, k, valid=database.labels >= 0)
    neighbours = np.where(np.isfinite(similarity), database.labels[index], -1)
    counted = np.flatnonzero(queries.labels >= 0)
    hits = np.zeros(2)
    for rows in np.array_split(counted, -(-len(counted) // _QUERIES)):
        scores, labels = vote(similarity[rows], neighbours[rows], classes, temperature), queries.labels[rows]
        voted = np.take_along_axis(scores, labels[:, None], 1)[:, 0] > 0
        rank = rank_of_true(scores, labels)
        hits += [(voted & (rank < 1)).sum(), (voted & (rank < 5)).sum()]
    top1, top5 = hits / len(counted)
    return {"count": float(len(counted)), "top1": float(top1), "top5": float(top5)}


def nearest(
    queries: NDArray[np.float32], database: NDArray[np.float32], k: int, *, valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(Q, k) cosine similarities, highest first, and positions of the most similar rows of `database`, exactly.

    queries (Q, width) and database (N, width) may be memory-mapped: the database is read once, block by block, and
    beside the result only a few blocks are in memory. Rows of the database that are not `valid` are no one's
    neighbours; where there are fewer than `k`, the similarity is -inf. A query of NaN has arbitrary neighbours.
    """
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    index = np.zeros((len(queries), k), np.int64)
    blocks = -(-len(database) // _DATABASE) * -(-len(queries) // _QUERIES)
    with progress("nearest neighbours", total=blocks, unit="block") as bar:
        for first in range(0, len(database), _DATABASE):
            block = _normalized(database[first : first + _DATABASE])
            ignored = None if valid is None else ~valid[first : first + _DATABASE]
            for start in range(0, len(queries), _QUERIES):
                rows = slice(start, start + _QUERIES)
                found = _normalized(queries[rows]) @ block.T
                if ignored is not None:
                    found[:, ignored] = -np.inf
                _merge(similarity[rows], index[rows], found, first)
                bar.update()
    order = np.lexsort((index, -similarity), axis=1)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(index, order, 1)


def nearest_others(features: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, at most k) cosine similarities, highest first, and positions of the most similar other rows of each row."""
    k = max(0, min(k, len(features) - 1))
    similarity, index = nearest(features, features, k + 1)
    other = index != np.arange(len(features))[:, None]
    other[other.all(1), -1] = False  # one of several copies, which come before it
    shape = (len(features), k)
    return similarity[other].reshape(shape), index[other].reshape(shape)


def vote(
    similarity: NDArray[np.float32], labels: NDArray[np.int64], classes: int, temperature: float
) -> NDArray[np.float64]:
    """(Q, classes) sums of exp(similarity / temperature) over the (Q, k) neighbours of each class; -1 does not vote.

    Relative to the most similar neighbour, whose weight is 1: only the order and the ratios of scores mean anything.
    """
    known = labels >= 0
    with np.errstate(invalid="ignore"):
        weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    scores = np.zeros((len(labels), classes))
    rows = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    np.add.at(scores, (rows[known], labels[known]), weight[known])
    return scores


def _merge(similarity: NDArray[np.float32], index: NDArray[np.int64], found: NDArray[np.float32], first: int) -> None:
    """Update the best k of each query, in place, by its similarities (Q, n) to rows `first`... of the database."""
    k = similarity.shape[1]
    better = found > similarity.min(1, keepdims=True)
    if np.count_nonzero(better) > 4 * k * len(found):  # at first, most are; later few, and looking at them is quick
        best = np.argpartition(found, -k, axis=1)[:, -k:]
        rows, columns = np.repeat(np.arange(len(found)), k), best.reshape(-1)
    else:
        rows, columns = np.nonzero(better)
    if not len(rows):
        return
    place = k + np.arange(len(rows)) - np.searchsorted(rows, rows)
    candidates = np.full((len(found), place.max() + 1), -np.inf, np.float32)
    positions = np.zeros(candidates.shape, np.int64)
    candidates[:, :k], positions[:, :k] = similarity, index
    candidates[rows, place], positions[rows, place] = found[rows, columns], columns + first
    keep = np.argpartition(candidates, -k, axis=1)[:, -k:]
    similarity[:] = np.take_along_axis(candidates, keep, 1)
    index[:] = np.take_along_axis(positions, keep, 1)


def _normalized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
