import numpy as np
import pytest
from numpy.testing import assert_array_equal

from unmask.data.loader.order import sample_at
from unmask.data.masking import keep_path, random_mask
from unmask.data.rng import Op, generator


def test_generator_is_a_function_of_its_arguments():
    assert_array_equal(generator(7, 2, 31, Op.CROP).random(5), generator(7, 2, 31, Op.CROP).random(5))


@pytest.mark.parametrize("other", [(8, 2, 31, Op.CROP), (7, 3, 31, Op.CROP), (7, 2, 32, Op.CROP), (7, 2, 31, Op.FLIP)])
def test_streams_share_no_numbers(other: tuple[int, int, int, Op]):
    assert not np.isin(generator(*other).random(1000), generator(7, 2, 31, Op.CROP).random(1000)).any()


def test_views_share_no_numbers():
    views = [generator(7, 2, 31, Op.CROP, view).random(1000) for view in range(10)]
    assert len(np.unique(views)) == 10_000


def test_first_view_is_the_stream_without_views():
    expected = np.random.Generator(np.random.Philox(key=(7, Op.CROP), counter=(0, 0, 31, 2))).random(5)
    assert_array_equal(generator(7, 2, 31, Op.CROP).random(5), expected)
    assert_array_equal(generator(7, 2, 31, Op.CROP, view=0).random(5), expected)


def test_largest_arguments_are_taken():
    assert 0 <= generator(2**31 - 1, 10**6, 10**12, Op.SUBSET, 10**6).random() < 1


def test_published_stream():
    """The numbers are part of every result: a change here changes every run."""
    assert generator(1, 2, 3, Op.CROP).integers(1000, size=6).tolist() == [488, 673, 359, 397, 186, 817]
    assert [sample_at(position, 10, seed=1)[1] for position in range(10)] == [1, 7, 9, 8, 5, 4, 3, 2, 0, 6]


def test_mask_partitions_the_patches():
    keep, mask = random_mask(np.random.default_rng(0), 196, 49)
    assert keep.dtype == mask.dtype == np.int32
    assert (np.diff(keep) > 0).all()
    assert (np.diff(mask) > 0).all()
    assert_array_equal(np.sort(np.concatenate([keep, mask])), np.arange(196))


def test_mask_is_uniform_over_subsets():
    rng = np.random.default_rng(0)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        keep = tuple(random_mask(rng, 4, 2)[0].tolist())
        seen[keep] = seen.get(keep, 0) + 1
    assert len(seen) == 6
    assert all(abs(count - 1000) < 150 for count in seen.values())  # five standard deviations


def test_drop_path_rises_linearly_with_depth():
    kept = np.mean([keep_path(generator(0, 0, index, Op.DROP_PATH), 5, 0.4) for index in range(4000)], axis=0)
    assert kept.shape == (5, 2)
    assert kept[0].tolist() == [1, 1]
    np.testing.assert_allclose(kept, 1 - np.array([0, 0.1, 0.2, 0.3, 0.4])[:, None] * [1, 1], atol=0.035)


def test_drop_path_of_a_single_block_is_zero():
    assert keep_path(np.random.default_rng(0), 1, 0.9).all()


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_epoch_is_a_permutation(count: int):
    samples = [sample_at(position, count, seed=3) for position in range(3 * count)]
    orders = [[index for epoch, index in samples if epoch == wanted] for wanted in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count == 1000:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != [sample_at(position, count, seed=4)[1] for position in range(count)]
        # No trend: neighbours in the stream are unrelated.
        assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.16


def test_order_needs_no_memory_for_many_images():
    assert sample_at(10**12 + 5, 10**7, seed=0)[0] == 10**5
