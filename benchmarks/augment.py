"""Our fine-tuning augmentation against timm's (on torchvision), on the same files in one process.

    python benchmarks/augment.py --data FOLDER [--images 256] [--rounds 9]

Both sides read, decode, take the same random resized crop (224, scale 0.08-1, bicubic) and flip; the full augmentation
adds RandAugment (rand-m9-mstd0.5-inc1) and random erasing (0.25, pixel), as published for MAE fine-tuning. Theirs is
`timm.data.create_transform`; it normalises to float32, which its erasing works on, where ours stays uint8 and is
normalised on the device. Mixing is measured for ours alone: theirs runs on the device.

Rounds alternate between the sides. A rate is images per second of CPU time, so that neighbours on the machine do not
enter, on one thread; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import ClassTargets, Needs
from unmask.data.loader.samples import TrainSamples
from unmask.data.sources import Source, open_source

SIZE = 224
_KEPT: list[Any] = []
"""Declarations of operators, which end with their owner."""
POLICY = "rand-m9-mstd0.5-inc1"
OURS = {
    "crop, flip": AugmentConfig(),
    "+ RandAugment": AugmentConfig(policy=POLICY),
    "+ erasing": AugmentConfig(policy=POLICY, erase_prob=0.25, erase_mode="pixel"),
    "+ mixup, cutmix": AugmentConfig(
        policy=POLICY, erase_prob=0.25, erase_mode="pixel", mixup=0.8, cutmix=1.0, label_smoothing=0.1
    ),
}


class Labelled:
    """The images of a source, all of one class: what the labels are costs nothing."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.class_names: tuple[str, ...] | None = ("one",)
        self.labels = np.zeros(len(source), np.int64)
        self.read, self.name, self.fingerprint = source.read, source.name, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)


def ours(source: Source, augment: AugmentConfig) -> Callable[[range], Any]:
    """Makes the training images at these positions of the stream."""
    needs, model, data = Needs(targets=ClassTargets(1000)), ModelConfig(), DataConfig(crop_scale=(0.08, 1.0))
    return TrainSamples(Labelled(source), needs, model, data, 0, augment, 64)


def theirs(paths: list[Path], augment: AugmentConfig) -> Callable[[range], Any]:
    """The same with timm. Raises ImportError where it cannot be imported."""
    create_transform, torch = import_timm()
    torch.set_num_threads(1)
    transform = create_transform(
        SIZE,
        is_training=True,
        color_jitter=None,
        auto_augment=augment.policy,
        interpolation="bicubic",
        re_prob=augment.erase_prob,
        re_mode=augment.erase_mode,
        re_count=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )

    def image(path: Path) -> Any:
        with path.open("rb") as file:
            pixels = Image.open(file).convert("RGB")
        try:
            return transform(pixels)
        except ValueError:  # at full magnitude timm 1.0 asks Pillow 13 for posterizing to 0 bits: 1 image in 660
            return transform(pixels)

    def make(positions: range) -> Any:
        return torch.stack([image(paths[position * 7919 % len(paths)]) for position in positions])

    return make


def import_timm() -> tuple[Any, Any]:
    """timm's create_transform, and torch.

    torchvision's wheels bring compiled operators for one build of torch. Beside another, such as a CPU build, its
    import fails for want of two names, though transforms need no operator: then they are declared.
    """
    torch = import_module("torch")
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return import_module("timm.data").create_transform, torch


def rate(make: Callable[[range], Any], first: int, images: int) -> float:
    """Images per second of CPU time."""
    started = time.process_time()
    for start in range(first, first + images, 32):
        make(range(start, min(start + 32, first + images)))
    return images / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--images", type=int, default=256, help="images of a side in a round")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    source = open_source(args.data, key="--data", labels=False)
    root = Path(args.data).resolve()
    paths = [root / source.name(index) for index in range(len(source))]
    print(f"{len(paths)} images, {args.rounds} rounds of {args.images} a side; images per second of CPU time")
    print(f"{'augmentation':16} {'ours':>8} {'timm':>8} {'ours / timm':>12}")
    for name, augment in OURS.items():
        sides = [ours(source, augment)]
        try:
            sides += [] if augment.mixes else [theirs(paths, augment)]
            missing = "-"
        except ImportError as error:
            missing = f"not installed ({error.name})"
        rounds = [measure(sides, number, args.images) for number in range(args.rounds + 1)][1:]  # the first warms up
        medians = [f"{statistics.median(rates[side] for rates in rounds):8.0f}" for side in range(len(sides))]
        ratio = f"{statistics.median(a / b for a, b in rounds):12.2f}" if len(sides) == 2 else missing
        print(f"{name:16} {' '.join(medians)} {ratio}", flush=True)


def measure(sides: list[Callable[[range], Any]], number: int, images: int) -> list[float]:
    """The rate of each side in a round; which one goes first alternates."""
    rates = [0.0] * len(sides)
    for side in sorted(range(len(sides)), reverse=number % 2 == 1):
        rates[side] = rate(sides[side], number * images, images)
    return rates


if __name__ == "__main__":
    main()
