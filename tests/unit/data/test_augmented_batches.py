"""Augmentation and soft targets as they arrive in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Batch, ClassTargets, Needs
from unmask.data.loader.order import sample_at
from unmask.data.loader.pipeline import eval_batches, train_batches
from unmask.data.masking import RandomMask
from unmask.errors import ConfigError

COUNT, CLASSES = 21, 4
EVERYTHING = AugmentConfig(
    policy="rand-m9-mstd0.5-inc1",
    color_jitter=(0.3, 0.3, 0.3, 0.1),
    erase_prob=0.5,
    erase_mode="pixel",
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
)


class Noise:
    """Images in memory; class i of 4 stands for every fourth image."""

    def __init__(self, channels: int = 3) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (COUNT, 24, 20, channels), dtype=np.uint8)
        self.labels: NDArray[np.int64] | None = np.arange(COUNT) % CLASSES
        self.label_sets: NDArray[np.bool_] | None = None
        self.class_names: tuple[str, ...] | None = tuple("abcd")

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int) -> Any:
        return self.images[index]

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return "noise"


def train(source: Any = None, **changes: Any) -> Iterator[list[Batch]]:
    arguments: dict[str, Any] = {
        "needs": Needs(targets=ClassTargets(CLASSES)),
        "model": ModelConfig(image_size=(16, 16), patch_size=8),
        "data": DataConfig(),
        "augment": EVERYTHING,
        "seed": 1,
        "batch_size": 12,
        "accumulate": 1,
        "start_step": 0,
        "stop_step": 6,
    }
    return train_batches(source or Noise(), **arguments | changes)


def values(batch: Batch, field: str) -> NDArray[Any]:
    return batch.inputs["targets"] if field == "targets" else getattr(batch, field)


def joined(steps: Iterator[list[Batch]], field: str) -> NDArray[Any]:
    return np.concatenate([values(batch, field) for step in steps for batch in step])


FIELDS = ("images", "targets", "labels", "index")


@pytest.mark.parametrize(
    ("mode", "split"),
    [
        ("batch", {"accumulate": 3}),
        ("pair", {"accumulate": 3}),
        ("elem", {"accumulate": 3}),
        ("batch", {"data": DataConfig(workers=2)}),
    ],
)
def test_accumulation_and_workers_change_nothing(mode: str, split: dict[str, Any]) -> None:
    augment = EVERYTHING.model_copy(update={"mix_mode": mode, "repeats": 2})
    whole = list(train(augment=augment, stop_step=3))
    parts = list(train(augment=augment, stop_step=3, **split))
    for field in FIELDS:
        assert_array_equal(joined(iter(parts), field), joined(iter(whole), field), err_msg=field)


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_share_the_batches_of_one_process_and_a_resumed_run_goes_on(repeats: int) -> None:
    augment = EVERYTHING.model_copy(update={"repeats": repeats})
    whole = list(train(augment=augment))
    ranks = [list(train(augment=augment, rank=rank, world=3)) for rank in range(3)]
    resumed = list(train(augment=augment, start_step=4))
    for field in FIELDS:
        for step, (batch,) in enumerate(whole):
            parts = [values(ranks[rank][step][0], field) for rank in range(3)]
            assert_array_equal(np.concatenate(parts), values(batch, field), err_msg=field)
        assert_array_equal(values(resumed[0][0], field), values(whole[4][0], field), err_msg=field)


def test_repeated_augmentation_shows_each_image_several_times_and_never_the_same() -> None:
    shown = [sample_at(position, COUNT, 1, repeats=3) for position in range(6 * COUNT)]
    assert len(set(shown)) == len(shown), "each showing has random numbers of its own"
    images = np.array([index for _, index in shown])
    assert_array_equal(np.bincount(images), [6] * COUNT)
    pairs = images.reshape(-1, 3, 2)
    assert (pairs == pairs[:, :1]).all(), "two images in turn"
    assert (pairs[:, 0, 0] != pairs[:, 0, 1]).all()

    plain = AugmentConfig(repeats=3)
    (batch,) = next(train(augment=plain))
    assert batch.index[0] == batch.index[2] == batch.index[4] != batch.index[1]
    assert len({batch.images[i].tobytes() for i in (0, 2, 4)}) == 3
    every = [batch for step in train(augment=plain, stop_step=21) for batch in step]
    crops = {image.tobytes() for batch in every for image in batch.images}
    assert len(crops) == 21 * 12, "nor in a later epoch"


def test_each_kind_of_augmentation_changes_images_and_none_changes_what_the_others_draw() -> None:
    plain = joined(train(augment=AugmentConfig(label_smoothing=0.1)), "images")
    kinds = {
        "policy": AugmentConfig(policy="3a"),
        "jitter": AugmentConfig(color_jitter=0.4),  # pyright: ignore[reportArgumentType]
        "erase": AugmentConfig(erase_prob=1.0),
    }
    for name, augment in kinds.items():
        images = joined(train(augment=augment), "images")
        assert images.shape == plain.shape
        assert np.mean([(a != b).any() for a, b in zip(images, plain, strict=True)]) > 0.95, name
    erased = joined(train(augment=kinds["erase"]), "images")
    mean = np.rint(255 * np.array(DataConfig().mean)).astype(np.uint8)
    assert ((erased == plain).all(3) | (erased == mean).all(3)).all(), "same crop and flip, but for the box"


@pytest.mark.parametrize("policy", ["rand-m10-mstd3-n4-p1", "rand-inc1-n15-p1", "v0", "originalr", "3a", "rand-t3aw"])
def test_grey_images_go_through_every_policy(policy: str) -> None:
    model = ModelConfig(image_size=(16, 16), patch_size=8, channels=1)
    data = DataConfig(mean=(0.5,), std=(0.25,))
    augment = EVERYTHING.model_copy(update={"policy": policy})
    images = joined(train(Noise(channels=1), augment=augment, model=model, data=data), "images")
    assert (images.shape, images.dtype) == ((72, 16, 16, 1), np.uint8)
    assert images.std() > 10


def test_images_without_targets_take_the_policy_too() -> None:
    needs = Needs((RandomMask(4, 1),))
    augment = AugmentConfig(policy="3a")
    (batch,) = next(train(needs=needs, augment=augment))
    (plain,) = next(train(needs=needs, augment=AugmentConfig()))
    assert batch.inputs.keys() == {"ids_keep", "ids_mask"}
    assert_array_equal(batch.inputs["ids_keep"], plain.inputs["ids_keep"])
    assert (batch.images != plain.images).any()


def test_class_weights_multiply_the_targets() -> None:
    plain = joined(train(), "targets")
    weights = (1.0, 0.5, 0.0, 2.0)
    weighted = joined(train(needs=Needs(targets=ClassTargets(CLASSES, weights))), "targets")
    assert_allclose(weighted, plain * weights, rtol=1e-6)
    balanced = joined(train(needs=Needs(targets=ClassTargets(CLASSES, "balanced"))), "targets")
    images = np.array([6, 5, 5, 5])
    assert_allclose(balanced, plain * (COUNT / CLASSES / images), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"objective.class_weights has 3 values for 4 classes"):
        train(needs=Needs(targets=ClassTargets(CLASSES, (1, 2, 3))))


def test_several_classes_an_image() -> None:
    source = Noise()
    source.labels, source.label_sets = None, np.random.default_rng(0).random((COUNT, CLASSES)) < 0.5
    (batch,) = next(train(source, augment=AugmentConfig(label_smoothing=0.2)))
    assert_allclose(batch.inputs["targets"], 0.1 + 0.8 * source.label_sets[batch.index], rtol=1e-6)
    needs = Needs(targets=ClassTargets(CLASSES))
    evaluated = list(eval_batches(source, needs=needs, model=ModelConfig(), data=DataConfig(), seed=0, batch_size=16))
    labels = np.concatenate([batch.labels for batch in evaluated])  # pyright: ignore
    assert_array_equal(labels[:COUNT], source.label_sets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, r"train.batch_size=9 over 1 processes x train.accumulate=1 makes micro-batches of 9"),
        ({"accumulate": 4}, r"micro-batches of 3; make them even"),
        ({"world": 2, "accumulate": 2}, r"micro-batches of 3; make them even"),
        ({"needs": Needs(targets=ClassTargets(None))}, r"model.num_classes is not set"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_batch(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(**changes)
