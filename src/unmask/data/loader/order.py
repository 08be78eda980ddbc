"""The endless stream of training samples: which image stands at which position."""

from __future__ import annotations

from functools import lru_cache

from grain.experimental import index_shuffle

from unmask.data.rng import Op, generator


def sample_at(position: int, count: int, seed: int, repeats: int = 1, *, op: Op = Op.ORDER) -> tuple[int, int]:
    """What stands at a position of the stream over `count` images: how often the image was shown before, and its index.

    Every pass is a permutation of all images, computed for one position at a time (a cipher over the index), so that
    no list of them is ever held. The pair is different at every position.

    With `repeats` (repeated augmentation, Hoffer et al. 2019), each run of 2 x repeats positions shows two images
    alternately, so that neighbours, which are mixed with one another, remain different images. A pass then takes
    `repeats` times as many positions, while an epoch of the configuration remains `count` of them. `op`: the order.
    """
    block, place = divmod(position, 2 * repeats)
    copy, which = divmod(place, 2)
    number, place = divmod(2 * block + which, count)
    return number * repeats + copy, _shuffled(place, count, _pass_seed(seed, number, op))


def unlabelled_at(position: int, each: int, count: int, seed: int) -> list[tuple[int, int]]:
    """The same of the `each` images without labels, of `count`, that come with the image at a position."""
    positions = range(position * each, (position + 1) * each)
    return [sample_at(place, count, seed, op=Op.UNLABELLED) for place in positions]


@lru_cache(maxsize=16)  # for repeats
def _shuffled(place: int, count: int, seed: int) -> int:
    return index_shuffle(place, max_index=count - 1, seed=seed, rounds=4)


@lru_cache(maxsize=16)
def _pass_seed(seed: int, number: int, op: Op) -> int:
    return int(generator(seed, number, 0, op).integers(2**32))
