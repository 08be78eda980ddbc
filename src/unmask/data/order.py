"""The endless stream of training samples: which image stands at which position."""

from __future__ import annotations

from functools import lru_cache

from grain.experimental import index_shuffle

from unmask.data.rng import Op, generator


def sample_at(position: int, count: int, seed: int) -> tuple[int, int]:
    """Epoch and image at a position of the stream over `count` images.

    Every epoch is a permutation of all images, computed for one position at a time (a cipher over the index), so
    that no list of them is ever held.
    """
    epoch, place = divmod(position, count)
    return epoch, index_shuffle(place, max_index=count - 1, seed=_epoch_seed(seed, epoch), rounds=4)


@lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(generator(seed, epoch, 0, Op.ORDER).integers(2**32))
