"""Our loader against torch's DataLoader with the official MAE pretraining transform, on the same photographs.

    python benchmarks/loader.py --data FOLDER [--pack FOLDER] [--workers 0 1 2] [--rounds 7] [--views 4]

(a) torch's DataLoader, Pillow, and the official transform; ours: (b) from the folder, (c) from a pack of it with
`--short-side 256` (made beside the measurement unless --pack names one), (d) from the pack with `augment.repeats`, so
that an image is decoded once for so many views, and (e) the same from the folder.

All decode, take the same random resized crop (224, scale 0.2-1, bicubic), flip and batch; ours also draws the masks.
(a) hands out normalised float32, which is what its training loop takes; ours uint8, because our engines normalise on
the device. With workers=0, (a) loads in the training thread, ours in as many threads as there are cores. Rounds take
all of them in turn. A rate counts the images after the first batch of each worker, which arrive together in torch's
loader; medians are printed. CPU: milliseconds of all processes for an image, start and first batches included.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.pipeline import train_batches
from unmask.data.masking import RandomMask
from unmask.data.packs.write import pack
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


def ours(source: Source, workers: int, steps: int, views: int = 1) -> Iterator[int]:
    """Number of images in each batch."""
    batches = train_batches(
        source,
        needs=Needs((RandomMask(196, 49),)),
        model=ModelConfig(image_size=(SIZE, SIZE)),
        data=DataConfig(workers=workers, max_bad_share=0),
        augment=AugmentConfig(repeats=views),
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


def measure(batches: Iterator[int], warm: int) -> tuple[float, float, float]:
    """Images per second after `warm` batches, CPU milliseconds an image, seconds until the first batch."""
    cpu, started = cpu_seconds(), time.perf_counter()
    total = next(batches)
    first = last = time.perf_counter()
    for _ in range(warm - 1):
        total += next(batches)
        last = time.perf_counter()
    count, begun = 0, last
    for images in batches:
        count += images
        last = time.perf_counter()  # without the time it takes to end the workers
    return count / (last - begun), (cpu_seconds() - cpu) / (total + count) * 1000, first - started


def cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--pack", help="pack of the same images with --short-side 256")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1024, help="images per measurement")
    parser.add_argument("--views", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.pack:
            args.pack = f"{folder}/pack"
            pack(args.data, Path(args.pack), short_side=256)
        run(args)


def run(args: argparse.Namespace) -> None:
    folder, shards = (open_source(data, key="--data", labels=False) for data in (args.data, args.pack))
    root = Path(args.data).resolve()
    paths = [root / folder.name(index) for index in range(len(folder))]
    steps = max(2, args.images // BATCH)
    sides: dict[str, Callable[[int], Iterator[int]]] = {
        "(a) torch, Pillow": lambda workers: theirs(paths, workers, steps),
        "(b) folder": lambda workers: ours(folder, workers, steps),
        "(c) pack": lambda workers: ours(shards, workers, steps),
        f"(d) pack, {args.views} views": lambda workers: ours(shards, workers, steps, args.views),
        f"(e) folder, {args.views} views": lambda workers: ours(folder, workers, steps, args.views),
    }
    print(f"{len(paths)} images, {steps} batches of {BATCH}, {args.rounds} rounds")
    print("| workers | loader | images/s | times (a) | times (b) | CPU ms an image | first batch, s |")
    print("|---|---|---|---|---|---|---|")
    for workers in args.workers:
        rounds = [
            {name: measure(side(workers), max(1, workers)) for name, side in shuffled(sides, number)}
            for number in range(args.rounds)
        ]
        a, b, *_ = sides
        for name in sides:
            rate, cpu, first = (statistics.median(measured[name][i] for measured in rounds) for i in range(3))
            to_a, to_b = (statistics.median(each[name][0] / each[base][0] for each in rounds) for base in (a, b))
            print(
                f"| {workers} | {name} | {rate:.0f} | {to_a:.2f} | {to_b:.2f} | {cpu:.2f} | {first:.2f} |", flush=True
            )


def shuffled(sides: dict[str, Callable[[int], Iterator[int]]], number: int) -> list[tuple[str, Any]]:
    """Each comes first in its turn."""
    items = list(sides.items())
    first = number % len(items)
    return items[first:] + items[:first]


if __name__ == "__main__":
    main()
