"""Features of images as places on a plane, and which are next to which."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.environment import cores
from unmask.evaluate.knn import nearest_others
from unmask.report.progress import say

_KEPT = 50
"""Principal components that t-SNE is given."""
_SMALL = 2_000
"""Images up to which threads cost more than they save."""
_LEAST = 12
"""Images below which a map by t-SNE says nothing."""
NEIGHBOURS = 12
MOST = 50_000
"""Images up to which `neighbourhood` takes minutes at most."""


@dataclass(frozen=True)
class Neighbourhood:
    """Where each image is among all others, by its features; rows of NaN and -1 where it could not be decoded."""

    places: NDArray[np.float32]
    """(N, 2) on a map, between -1 and 1."""
    index: NDArray[np.int64]
    """(N, k) of the most similar other images, the nearest first; k is NEIGHBOURS, or what there are."""
    distance: NDArray[np.float32]
    """(N, k) one minus the cosine similarity."""


def neighbourhood(features: NDArray[np.float32], valid: NDArray[np.bool_]) -> Neighbourhood | None:
    """Of (N, width) features; None where those that are `valid` are none, or more than MOST."""
    rows = np.flatnonzero(valid)
    if not 0 < len(rows) <= MOST:
        return None
    known, count = np.ascontiguousarray(features[rows]), len(features)
    similarity, index = nearest_others(known, NEIGHBOURS)
    found = Neighbourhood(
        np.full((count, 2), np.nan, np.float32),
        np.full((count, index.shape[1]), -1, np.int64),
        np.full((count, index.shape[1]), np.nan, np.float32),
    )
    found.places[rows] = next(iter(maps_of(known).values()))
    found.index[rows], found.distance[rows] = rows[index], 1 - similarity
    return found


def maps_of(features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """By method, (n, 2) places between -1 and 1 of the (n, width) features, each brought to length 1 first.

    `pca`: the first two principal components. `tsne` (van der Maaten & Hinton 2008, by openTSNE), where that is
    installed and there are images enough: it keeps neighbours together, and distances between groups mean little.
    """
    components = principal_components(features, _KEPT)
    maps = {"pca": _between(components[:, :2])}
    if len(features) >= _LEAST and find_spec("openTSNE") is not None:
        maps = {"tsne": _between(_tsne(components)), **maps}
    return maps


def principal_components(features: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """(n, at most count, at least 2) of rows of length 1; each begins with a positive place, so signs do not vary."""
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows -= rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    order = np.argsort(-values)[:count]
    places = rows @ vectors[:, order]
    places *= np.where(places[0] < 0, -1, 1)
    return np.pad(places, ((0, 0), (0, max(0, 2 - places.shape[1]))))


def _tsne(components: NDArray[np.float64]) -> NDArray[np.float64]:
    import openTSNE

    tsne: Any = openTSNE.TSNE  # its types are guessed from defaults
    say(f"t-SNE of {len(components)} images")
    perplexity = min(30, (len(components) - 1) / 3)
    start = components[:, :2] / max(float(components[:, 0].std()), 1e-12) * 1e-4
    made = tsne(
        perplexity=perplexity, initialization=start, n_jobs=cores() if len(components) > _SMALL else 1, random_state=0
    )
    return np.asarray(made.fit(components), np.float64)


def _between(places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Moved and scaled, alike in both directions, to -1..1."""
    low, high = places.min(0), places.max(0)
    return ((places - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)).astype(np.float32)
