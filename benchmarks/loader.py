"""Our loader against torch's DataLoader with the official MAE pretraining transform, on the same files.

    python benchmarks/loader.py --data FOLDER [--workers 0 1 2] [--rounds 7]

Both sides decode, take the same random resized crop (224, scale 0.2-1, bicubic), flip and batch; ours also draws the
masks. Theirs hands out normalised float32, which is what its training loop takes; ours uint8, because our engines
normalise on the device. With workers=0 theirs loads in the training thread, ours in as many threads as there are
cores. Rounds alternate between the two. A rate counts the images after the first batch of each worker, which arrive
together in torch's loader; medians are printed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig, ModelConfig
from unmask.data.pipeline import train_batches
from unmask.data.sources import Source, open_source

SIZE = 224
BATCH = 64


class OfficialTransform:
    """RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize as torchvision computes them."""

    def __init__(self, paths: list[Path]) -> None:
        import torch  # here, because our loader processes import this module too

        self.from_numpy = torch.from_numpy
        self.float32 = torch.float32
        self.paths = paths
        self.mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with self.paths[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, width, height = random_crop(image.width, image.height)
        image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = self.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
        return pixels.to(self.float32).div_(255).sub_(self.mean).div_(self.std)


def random_crop(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(0.2, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def ours(source: Source, workers: int, steps: int) -> Iterator[int]:
    """Number of images in each batch."""
    batches = train_batches(
        source,
        task="pretrain",
        model=ModelConfig(image_size=(SIZE, SIZE)),
        data=DataConfig(workers=workers, max_bad_share=0),
        augment=AugmentConfig(),
        seed=0,
        batch_size=BATCH,
        accumulate=1,
        start_step=0,
        stop_step=steps,
    )
    for (batch,) in batches:
        yield len(batch.images)


def theirs(paths: list[Path], workers: int, steps: int) -> Iterator[int]:
    """Number of images in each batch."""
    from torch import set_num_threads
    from torch.utils.data import DataLoader, RandomSampler

    set_num_threads(1)
    data = OfficialTransform(paths)
    sampler = RandomSampler(data, replacement=True, num_samples=steps * BATCH)
    for images in DataLoader(data, BATCH, sampler=sampler, num_workers=workers):
        yield len(images)


def measure(batches: Iterator[int], warm: int) -> tuple[float, float]:
    """Seconds until the first batch, and images per second after `warm` batches."""
    started = time.perf_counter()
    next(batches)
    first = last = time.perf_counter()
    for _ in range(warm - 1):
        next(batches)
        last = time.perf_counter()
    count, begun = 0, last
    for images in batches:
        count += images
        last = time.perf_counter()  # without the time it takes to end the workers
    return first - started, count / (last - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1024, help="images per measurement")
    args = parser.parse_args()

    source = open_source(args.data, key="--data", labels=False)
    root = Path(args.data).resolve()
    paths = [root / source.name(index) for index in range(len(source))]
    steps = max(2, args.images // BATCH)
    print(
        f"{len(paths)} images, {steps} batches of {BATCH}, {args.rounds} rounds; ours uint8, theirs float32 normalised"
    )
    print(f"{'workers':>7} {'ours img/s':>11} {'torch img/s':>12} {'ratio':>6} {'first batch ours / torch (s)':>29}")
    for workers in args.workers:
        rounds: list[list[tuple[float, float]]] = []
        for number in range(args.rounds):
            sides = {0: ours(source, workers, steps), 1: theirs(paths, workers, steps)}
            order = (0, 1) if number % 2 else (1, 0)
            measured = {side: measure(sides[side], max(1, workers)) for side in order}
            rounds.append([measured[0], measured[1]])
        our_rate, their_rate = (statistics.median(pair[side][1] for pair in rounds) for side in (0, 1))
        ratio = statistics.median(our[1] / their[1] for our, their in rounds)
        waits = " / ".join(f"{statistics.median(pair[side][0] for pair in rounds):.2f}" for side in (0, 1))
        print(f"{workers:>7} {our_rate:>11.0f} {their_rate:>12.0f} {ratio:>6.2f} {waits:>29}", flush=True)


if __name__ == "__main__":
    main()
