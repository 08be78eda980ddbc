"""Soft targets, mixup and cutmix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from unmask.config.schema import AugmentConfig
from unmask.data.augment.mixing import Mixing, class_targets, mix_pair

SIZE = (32, 48)


def mixing(batch_size: int = 8, **options: Any) -> Mixing:
    return Mixing(AugmentConfig(**options), seed=3, batch_size=batch_size)


def shares(mixing: Mixing, positions: range) -> np.ndarray:
    return np.array([mixing.draw(position, SIZE)[0] for position in positions])


def test_smoothed_targets() -> None:
    targets = class_targets(np.array([2, 0]), 4, 0.1)
    assert targets.dtype == np.float32
    assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)
    assert_array_equal(class_targets(np.array([1]), 3, 0), [[0, 1, 0]])


def test_targets_of_several_classes_move_towards_a_half() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    assert_array_equal(class_targets(labels, 3, 0), labels)
    assert_allclose(class_targets(labels, 3, 0.1), [[0.95, 0.05, 0.95], [0.05, 0.05, 0.05]], rtol=1e-6)


def test_mixup_of_a_pair() -> None:
    images = np.array([[[[0], [10]]], [[[255], [21]]]], np.uint8)
    targets = np.array([[1, 0], [0, 1]], np.float32)
    mix_pair(images, targets, [(0.75, None), (0.5, None)])
    assert images.tolist() == [[[[64], [13]]], [[[128], [16]]]]  # 63.75, 12.75; 127.5 and 15.5 to the even number
    assert_allclose(targets, [[0.75, 0.25], [0.5, 0.5]])


def test_cutmix_of_a_pair() -> None:
    images = np.stack([np.zeros((3, 4, 1), np.uint8), np.full((3, 4, 1), 9, np.uint8)])
    targets = np.array([[1, 0], [0, 1]], np.float32)
    box = (slice(1, 3), slice(0, 2))
    mix_pair(images, targets, [(8 / 12, box), (1.0, None)])
    assert images[0, :, :, 0].tolist() == [[0, 0, 0, 0], [9, 9, 0, 0], [9, 9, 0, 0]]
    assert (images[1] == 9).all()
    assert_allclose(targets, [[2 / 3, 1 / 3], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize(("mode", "same"), [("batch", 8), ("pair", 2), ("elem", 1)])
def test_what_shares_one_draw(mode: str, same: int) -> None:
    drawn = shares(mixing(mixup=0.8, mix_mode=mode), range(64)).reshape(-1, same)
    assert (drawn == drawn[:, :1]).all()
    assert len(np.unique(drawn)) == 64 // same


def test_shares_of_mixup_are_beta_distributed() -> None:
    drawn = shares(mixing(mixup=0.8, mix_mode="elem"), range(4000))
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); tolerances are four standard errors.
    assert drawn.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 10.4 / 4000))
    assert drawn.var() == pytest.approx(1 / 10.4, rel=0.06)
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() <= 1


def test_the_share_of_cutmix_is_the_area_that_is_left() -> None:
    cut = mixing(cutmix=1.0, mix_mode="elem")
    left = []
    for position in range(4000):
        share, box = cut.draw(position, SIZE)
        assert box is not None
        rows, columns = box
        assert 0 <= rows.start <= rows.stop <= SIZE[0]
        assert 0 <= columns.start <= columns.stop <= SIZE[1]
        mask = np.zeros(SIZE)
        mask[box] = 1
        assert share == pytest.approx(1 - mask.mean())
        left.append(share)
    # Uncorrected the share is uniform. A box around a uniform centre loses a quarter of each side r = sqrt(1 - share)
    # on average: the area left is 1 - E[r^2 (1 - r/4)^2] = 1 - (1/2 - 2/5 * 1/2 + 1/16 * 1/3) = 0.679.
    assert np.mean(left) == pytest.approx(0.679, abs=0.02)


def test_a_box_within_bounds_has_sides_between_the_two_shares() -> None:
    cut = mixing(cutmix_minmax=[0.25, 0.75], mix_mode="elem")
    heights, widths = [], []
    for position in range(3000):
        share, box = cut.draw(position, SIZE)
        assert box is not None
        heights.append(box[0].stop - box[0].start)
        widths.append(box[1].stop - box[1].start)
        assert share == pytest.approx(1 - heights[-1] * widths[-1] / (SIZE[0] * SIZE[1]))
        assert box[0].start >= 0
        assert box[1].stop <= SIZE[1]
    assert (min(heights), max(heights)) == (8, 23)
    assert (min(widths), max(widths)) == (12, 35)
    assert np.mean(heights) == pytest.approx(15.5, abs=4 * 4.6 / np.sqrt(3000))


def test_probabilities_of_mixing_and_of_cutmix() -> None:
    both = mixing(mixup=0.8, cutmix=1.0, mix_prob=0.7, mix_switch_prob=0.25, mix_mode="elem")
    draws = [both.draw(position, SIZE) for position in range(4000)]
    mixed = [draw for draw in draws if draw != (1.0, None)]
    assert len(mixed) / 4000 == pytest.approx(0.7, abs=0.029)  # 4 standard errors
    assert np.mean([box is not None for _, box in mixed]) == pytest.approx(0.25, abs=0.033)
    only = [mixing(cutmix=1.0, mix_switch_prob=0.0).draw(8 * step, SIZE)[1] for step in range(20)]
    assert None not in only


def test_images_and_targets_do_not_depend_on_how_the_batch_is_split() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, *SIZE, 3), dtype=np.uint8)
    targets = class_targets(rng.integers(0, 5, 16), 5, 0.1)
    for mode in ("batch", "pair", "elem"):
        mix = mixing(mixup=0.8, cutmix=1.0, mix_mode=mode)
        whole, parts = (images.copy(), targets.copy()), (images.copy(), targets.copy())
        mix(range(16, 32), *whole)
        for first in (0, 2, 8, 12):
            last = {0: 2, 2: 8, 8: 12, 12: 16}[first]
            mix(range(16 + first, 16 + last), parts[0][first:last], parts[1][first:last])
        assert_array_equal(whole[0], parts[0])
        assert_array_equal(whole[1], parts[1])
        assert (whole[0] != images).any()
        assert_allclose(whole[1].sum(1), 1, rtol=1e-5)
