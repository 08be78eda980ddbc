import numpy as np
import pytest
from numpy.testing import assert_array_equal

from unmask.data.sources import subset
from unmask.data.sources.bundled import ArraySource
from unmask.errors import DataError


def source_of(labels: list[int]) -> ArraySource:
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource("numbers", images, np.array(labels, np.int64), ("zero", "one"))


def test_subset_is_balanced_and_renumbered():
    parent = source_of([0, 1] * 20 + [0] * 10)
    chosen = subset(parent, 5, seed=1)
    assert len(chosen) == 10
    assert chosen.labels is not None
    assert np.bincount(chosen.labels).tolist() == [5, 5]
    assert chosen.class_names == ("zero", "one")
    originals = [int(np.asarray(chosen.read(i)).item()) for i in range(10)]
    assert originals == sorted(set(originals))
    assert chosen.labels.tolist() == parent.labels[originals].tolist()
    assert chosen.name(3) == f"numbers/{originals[3]}"


def test_subset_is_determined_by_the_seed():
    parent = source_of([0, 1] * 20)
    first, again, other = (subset(parent, 5, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert [first.name(i) for i in range(10)] == [again.name(i) for i in range(10)]


def test_larger_subset_contains_the_smaller():
    parent = source_of([0, 1] * 20)
    small, large = ({s.name(i) for i in range(len(s))} for s in (subset(parent, 3, seed=1), subset(parent, 9, seed=1)))
    assert small < large


def test_whole_class_may_be_taken():
    assert_array_equal(subset(source_of([0, 1, 0, 1]), 2, seed=0).labels, [0, 1, 0, 1])


def test_class_with_too_few_images_is_named():
    with pytest.raises(DataError, match=r"class 'one' has 2 images, fewer than the 3 labels per class"):
        subset(source_of([0] * 9 + [1] * 2), 3, seed=0)


def test_labels_are_needed():
    parent = source_of([0, 1])
    parent.labels = None
    with pytest.raises(DataError, match=r"data.labels_per_class needs labels"):
        subset(parent, 1, seed=0)
