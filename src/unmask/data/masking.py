"""What is hidden from the model: patches while pretraining, residual branches while fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Arrays, Draw
from unmask.data.rng import Op


@dataclass(frozen=True)
class RandomMask:
    """`ids_keep` (num_keep,) and `ids_mask` of one image; see `random_mask`."""

    num_patches: int
    num_keep: int
    num_predict: int | None = None

    def __call__(self, draw: Draw) -> Arrays:
        ids_keep, ids_mask = random_mask(draw(Op.MASK), self.num_patches, self.num_keep, self.num_predict)
        return {"ids_keep": ids_keep, "ids_mask": ids_mask}


@dataclass(frozen=True)
class DropPath:
    """`keep_path` (depth, 2) of one image; see `keep_path`."""

    depth: int
    drop_path: float

    def __call__(self, draw: Draw) -> Arrays:
        return {"keep_path": keep_path(draw(Op.DROP_PATH), self.depth, self.drop_path)}


def random_mask(
    rng: np.random.Generator, num_patches: int, num_keep: int, num_predict: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Uniformly random subset of the patches: those of the `num_keep` smallest of independent noise values.

    Returns `ids_keep` (num_keep,) and `ids_mask`, both ascending: all others, or `num_predict` of them, which are
    uniformly random too.
    """
    order = rng.random(num_patches).argsort().astype(np.int32)
    end = None if num_predict is None else num_keep + num_predict
    return np.sort(order[:num_keep]), np.sort(order[num_keep:end])


def keep_path(rng: np.random.Generator, depth: int, drop_path: float) -> NDArray[np.bool_]:
    """Whether each residual branch of one sample is kept: attention and MLP of each block, independently. (depth, 2)"""
    return rng.random((depth, 2)) >= np.asarray(drop_path_rates(drop_path, depth))[:, None]


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Probability that a block's branches are dropped, linear in its number (stochastic depth, Huang et al. 2016)."""
    return np.linspace(0, drop_path, depth).tolist()
