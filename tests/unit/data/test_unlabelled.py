"""Images without labels beside those of a batch: which, in which views, whoever makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, ClassTargets, Needs
from unmask.data.loader.order import unlabelled_at
from unmask.data.loader.pipeline import train_batches
from unmask.data.loader.spikes import Spikes
from unmask.data.masking import DropPath
from unmask.data.sources import Source, open_source
from unmask.data.sources.subset import BothSource
from unmask.errors import DataError

MODEL = ModelConfig(image_size=(32, 32), patch_size=8)
CLASSIFY = Needs((DropPath(3, 0.3),), ClassTargets(2))
SEMI = Needs((DropPath(3, 0.3),), ClassTargets(2), unlabelled=3)
MIXED = AugmentConfig(policy="rand-m9-mstd0.5-inc1", erase_prob=0.5, mixup=0.8, cutmix=1.0)


class Unseen:
    """Pictures of one grey value each, which is their number; whoever looks at their labels fails."""

    class_names = None

    def __init__(self, count: int, bad: frozenset[int] = frozenset()) -> None:
        self.count, self.bad = count, bad

    @property
    def labels(self) -> NDArray[np.int64] | None:
        raise AssertionError("labels were looked at")

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> NDArray[np.uint8]:
        if index in self.bad:
            raise DataError("broken")
        return np.full((40, 40, 3), index, np.uint8)

    def name(self, index: int) -> str:
        return f"unseen/{index}"

    def fingerprint(self) -> str:
        return str(self.count)


@pytest.fixture
def source(colours: Path) -> Source:
    return open_source(str(colours), key="data.train", labels=True)


def train(source: Source, unlabelled: Source | None, **changes: Any) -> Iterator[list[Batch]]:
    arguments: dict[str, Any] = {
        "needs": SEMI,
        "model": MODEL,
        "data": DataConfig(),
        "augment": AugmentConfig(),
        "seed": 5,
        "batch_size": 8,
        "accumulate": 1,
        "start_step": 0,
        "stop_step": 4,
    }
    return train_batches(source, unlabelled=unlabelled, **arguments | changes)


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert_array_equal(one.images, other.images)
        assert one.inputs.keys() == other.inputs.keys()
        assert all(np.array_equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def joined(micro: list[Batch]) -> Batch:
    inputs = {name: np.concatenate([batch.inputs[name] for batch in micro]) for name in micro[0].inputs}
    return Batch(np.concatenate([b.images for b in micro]), np.concatenate([b.index for b in micro]), inputs)


def test_every_image_comes_once_a_pass_in_a_strong_and_a_weak_view(source: Source) -> None:
    steps = [batch for (batch,) in train(source, Unseen(16), stop_step=2)]
    shown = np.concatenate([batch.images[:, 1:4, 0, 0, 0].ravel() for batch in steps])
    for passed in np.split(shown, 3):
        assert sorted(passed) == list(range(16))
    assert not np.array_equal(shown[:16], shown[16:32])
    assert shown.tolist() == [index for row in range(16) for _, index in unlabelled_at(row, 3, 16, 5)]
    for batch in steps:
        assert batch.images.shape == (8, 7, 32, 32, 3)
        assert_array_equal(batch.images[:, 1:4, 0, 0], batch.images[:, 4:, 0, 0])
        assert batch.inputs["keep_path"].shape == (8, 4, 3, 2), "of the image and the strong views"


def test_weak_views_are_cropped_and_flipped_alone(source: Source) -> None:
    plain, strong = (
        next(train(source, source, augment=augment))[0]
        for augment in (AugmentConfig(), AugmentConfig(policy="rand-m9-mstd0.5-inc1", erase_prob=0.5))
    )
    assert_array_equal(plain.images[:, 4:], strong.images[:, 4:])
    changed = (plain.images[:, 1:4] != strong.images[:, 1:4]).any((2, 3, 4))
    assert changed.mean() > 0.5


def test_the_labelled_images_are_those_of_a_run_without_others(source: Source) -> None:
    """Mixed with one another, and in no way with those without labels."""
    without = [batch for (batch,) in train(source, None, needs=CLASSIFY, augment=MIXED)]
    beside = [batch for (batch,) in train(source, Unseen(16), augment=MIXED)]
    for one, other in zip(without, beside, strict=True):
        assert_array_equal(one.images, other.images[:, 0])
        assert_array_equal(one.inputs["targets"], other.inputs["targets"])
        assert_array_equal(one.inputs["keep_path"], other.inputs["keep_path"][:, 0])
    assert len({tuple(np.unique(picture)) for batch in beside for picture in batch.images[:, 4:].reshape(-1, 3072)}) > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_neither_workers_nor_where_a_run_goes_on_enter_the_result(source: Source, workers: int) -> None:
    """Parts of 32 rows, so that several workers share a batch of 80."""
    how = {"batch_size": 80, "augment": MIXED, "stop_step": 3}
    expected = [batch for (batch,) in train(source, source, **how)]
    spread = train(source, source, data=DataConfig(workers=workers), start_step=1, **how)
    assert_same([batch for (batch,) in spread], expected[1:])


def test_accumulation_and_processes_share_the_same_rows(source: Source) -> None:
    whole = [batch for (batch,) in train(source, source, batch_size=16)]
    shares = [list(train(source, source, batch_size=16, accumulate=2, rank=rank, world=2)) for rank in (0, 1)]
    assert_same([joined([*shares[0][step], *shares[1][step]]) for step in range(4)], whole)


def test_images_that_cannot_be_decoded_are_replaced_and_told_apart(source: Source, tmp_path: Path) -> None:
    unseen = Unseen(16, bad=frozenset({3, 7}))
    both = BothSource(source, unseen)
    batches = [batch for (batch,) in train(source, unseen, stop_step=2)]
    bad = np.concatenate([batch.bad for batch in batches if batch.bad is not None])
    assert {both.name(int(index)) for index in bad} == {"unseen/3", "unseen/7"}
    shown = np.concatenate([batch.images[:, 1:] for batch in batches])[..., 0, 0, 0]
    assert not {3, 7} & {*shown.ravel().tolist()}
    assert (len(both), both.name(0), both.labels) == (len(source) + 16, source.name(0), None)
    assert both.read(0) == source.read(0)
    assert both.fingerprint() not in (source.fingerprint(), BothSource(source, Unseen(17)).fingerprint())
    with pytest.raises(DataError, match=r"unseen/\d+: broken; check data.unlabelled"):
        list(train(source, Unseen(16, bad=frozenset(range(16)))))

    spikes = Spikes(source, tmp_path / "x", seed=5, batch_size=8, repeats=1, unlabelled=unseen, each=3)
    named = {name for name in spikes.images(1) if name.startswith("unseen")}
    assert named == {f"unseen/{index}" for row in range(8) for _, index in unlabelled_at(row, 3, 16, 5)}
    assert len(spikes.images(1)) == 8 + len(named)
