"""What the augmentation section accepts."""

from __future__ import annotations

from typing import Any

import pytest

from unmask.config.load import check_config, flatten, to_dict
from unmask.config.schema import AugmentConfig
from unmask.errors import ConfigError


def augmented(**values: Any) -> AugmentConfig:
    return check_config({"objective": "classify", "augment": values}).augment


def test_by_default_nothing_is_augmented() -> None:
    assert not augmented().mixes
    assert augmented().policy is None


def test_one_jitter_stands_for_brightness_contrast_and_saturation() -> None:
    assert augmented(color_jitter=0.4).color_jitter == (0.4, 0.4, 0.4, 0)
    assert augmented(color_jitter=[0.1, 0.2, 0.3, 0.5]).color_jitter == (0.1, 0.2, 0.3, 0.5)


def test_a_range_for_boxes_turns_cutmix_on() -> None:
    assert augmented(cutmix_minmax=[0.2, 0.8]).cuts
    assert not augmented(mixup=0.2).cuts


def test_a_config_is_written_and_read_again() -> None:
    config = check_config(
        {"objective": "classify", "augment": {"policy": "v0-mstd0.5", "color_jitter": 0.4, "cutmix_minmax": [0.2, 0.8]}}
    )
    assert check_config(to_dict(config)) == config
    assert flatten(to_dict(config))["augment.policy"] == "v0-mstd0.5"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": {"policy": "augmix-m3"}}, "policy='augmix-m3': AugMix is not supported"),
        ({"augment": {"policy": "rand-q1"}}, "'q1' is no option"),
        ({"augment": {"color_jitter": -0.1}}, "must not be negative"),
        ({"augment": {"color_jitter": [0, 0, 0, 0.6]}}, "a hue of 0.6 is beyond half the colour circle"),
        ({"augment": {"erase_mode": "noise"}}, "augment.erase_mode"),
        ({"augment": {"mix_mode": "half"}}, "augment.mix_mode"),
        ({"augment": {"mixup": -1}}, "augment.mixup"),
        ({"augment": {"cutmix_minmax": [0.8, 0.2]}}, "cutmix_minmax=[0.8, 0.2] is not a range within 0 to 1"),
        ({"augment": {"repeats": 0}}, "augment.repeats"),
        ({"objective": "mae", "augment": {"mixup": 0.8}}, "mixup, cutmix and erasing are for training with labels"),
        (
            {"objective": "mae", "augment": {"erase_prob": 0.1}},
            "mixup, cutmix and erasing are for training with labels",
        ),
        ({"objective": {"name": "classify", "class_weights": [1, -1]}}, "class_weights must not be negative"),
        ({"objective": {"name": "classify", "class_weights": "even"}}, "objective.class_weights"),
        (
            {"objective": {"name": "classify", "class_weights": "balanced", "loss": "bce"}},
            "objective.class_weights is for objective.loss=cross_entropy",
        ),
        ({"train": {"label_smoothing": 0.1}}, "label_smoothing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config({"objective": "classify"} | values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
