"""Mean IoU of defects from a handful of masks: `unmask probe --segment`, and a U-Net from scratch on the same masks.

    python benchmarks/segment.py MODEL... --photos FOLDER --masks 5,20 --seconds 120

The defects are made: a blob of another photograph, or a scratch, on photographs cut to 224 pixels, half of which have
none. The U-Net (1.9 M weights, GroupNorm; Ronneberger et al. 2015) sees crops, flips and other brightness, for as many
CPU seconds as `--seconds` says, whatever the number of masks; its last weights count. 60 other photographs judge.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

import unmask
from unmask.data.sources import open_source
from unmask.data.sources.subset import spread
from unmask.evaluate.segment import segment
from unmask.metrics import mean_iou

SIZE, JUDGES, WIDTH = 224, 60, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--masks", default="5,20", help="numbers of training images")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds for each U-Net")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    counts = [int(each) for each in options.masks.split(",")]
    seeds = [int(each) for each in options.seeds.split(",")]
    photos = photographs(options.photos, max(counts) * len(seeds) + JUDGES)
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        judges = written(Path(folder) / "val", photos[:JUDGES], np.random.default_rng(12345))
        for n in counts:
            for place, seed in enumerate(seeds):
                first = JUDGES + place * max(counts)
                own = written(Path(folder) / f"{n}-{seed}", photos[first : first + n], np.random.default_rng(seed))
                for path in options.models:
                    begun = time.process_time()
                    with unmask.load(path) as model:
                        result = segment(model, str(own[0]), str(judges[0]), str(own[1]), str(judges[1]), seed=seed)
                    found.setdefault((path, n), []).append(result.miou)
                    print(f"{path} {n} masks, seed {seed}: {result.miou:.3f}, {time.process_time() - begun:.0f} CPU s")
                miou, steps = unet(own, judges, options.seconds, seed)
                found.setdefault(("U-Net", n), []).append(miou)
                print(f"U-Net {n} masks, seed {seed}: {miou:.3f}, {steps} steps, {options.seconds:.0f} CPU s")
    for (name, n), values in found.items():
        print(f"{name}, {n} masks: mean IoU {np.mean(values):.3f}, standard deviation {np.std(values, ddof=1):.3f}")


def photographs(folder: str, count: int) -> list[NDArray[np.uint8]]:
    """(SIZE, SIZE, 3) each, spread over the folder in an order of their own."""
    source = spread(open_source(folder, key="--photos", labels=False), count)
    found: list[NDArray[np.uint8]] = []
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        with Image.open(io.BytesIO(bytes(source.read(index)))) as photo:
            found.append(np.asarray(ImageOps.fit(photo.convert("RGB"), (SIZE, SIZE))))
    return found


def written(folder: Path, photos: list[NDArray[np.uint8]], rng: np.random.Generator) -> tuple[Path, Path]:
    """Folders of images and of their masks: 0, and 255 where the defect is."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for number, photo in enumerate(photos):
        mask = np.zeros((SIZE, SIZE), bool)
        if number % 2 == 0:
            mask = scratch(rng) if number % 4 else blob(rng)
            other = np.roll(photos[(number + 1) % len(photos)], rng.integers(SIZE), axis=0)
            other = other if number % 4 == 0 else np.full_like(photo, rng.integers(0, 256))
            photo = np.where(mask[..., None], (0.2 * photo + 0.8 * other).astype(np.uint8), photo)
        Image.fromarray(photo).save(images / f"{number:03}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{number:03}.png")
    return images, masks


def blob(rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(50, SIZE - 50, 2)[:, None, None]
    angle = np.arctan2(y, x)
    radius = rng.uniform(18, 40) * (1 + sum(0.15 * np.sin(k * angle + rng.uniform(0, 6.28)) for k in (2, 3, 5)))
    return np.hypot(y, x) < radius


def scratch(rng: np.random.Generator) -> NDArray[np.bool_]:
    """A bent line, 4 to 8 pixels wide."""
    along = np.linspace(0, 1, 400)[:, None]
    begin, middle, end = rng.uniform(20, SIZE - 20, (3, 2))
    path = (1 - along) ** 2 * begin + 2 * along * (1 - along) * middle + along**2 * end
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    far = np.min([np.hypot(y - place[0], x - place[1]) for place in path[::4]], axis=0)
    return far < rng.uniform(2, 4)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
        self.down = nn.ModuleList(pair(before, after) for before, after in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(pair(low + high, low) for low, high in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed: list[Tensor] = []
        for number, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if number else x)
            passed.append(x)
        for layer, beside in zip(self.up, passed[-2::-1], strict=True):
            x = layer(torch.cat([beside, F.interpolate(x, scale_factor=2, mode="bilinear")], 1))
        return self.head(x)


def pair(fan_in: int, fan_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (fan_in, fan_out):
        layers += [nn.Conv2d(width, fan_out, 3, padding=1, bias=False), nn.GroupNorm(8, fan_out), nn.ReLU()]
    return nn.Sequential(*layers)


def unet(own: tuple[Path, Path], judges: tuple[Path, Path], seconds: float, seed: int) -> tuple[float, int]:
    """Mean IoU, and the updates that there was time for; the learning rate falls to 0 along a cosine of the time."""
    torch.manual_seed(seed)
    network, (x, y) = UNet(), tensors(own)
    share = y.float().mean().clamp(min=0.01)
    weight = torch.stack([torch.ones(()), (1 / share).sqrt()])  # defects are few
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    begun, step = time.process_time(), 0
    while (done := (time.process_time() - begun) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 0.5e-3 * (1 + np.cos(np.pi * done))
        rows = torch.randint(len(x), (4,))
        top, left = torch.randint(SIZE - 127, (2,)).tolist()
        images, masks = (each[rows, ..., top : top + 128, left : left + 128] for each in (x, y))
        for axis in (-1, -2):
            if torch.rand(()) < 0.5:
                images, masks = images.flip(axis), masks.flip(axis)
        images = images * (0.8 + 0.4 * torch.rand(4, 1, 1, 1))
        optimizer.zero_grad()
        F.cross_entropy(network(images), masks, weight).backward()
        optimizer.step()
        step += 1
    confusion = np.zeros((2, 2), np.int64)
    with torch.no_grad():
        for images, masks in zip(*(each.split(10) for each in tensors(judges)), strict=True):
            told = network(images).argmax(1)
            confusion += np.bincount((2 * masks + told).ravel().numpy(), minlength=4).reshape(2, 2)
    return mean_iou(confusion)[1], step


def tensors(folders: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
    """(N, 3, SIZE, SIZE) around 0, and (N, SIZE, SIZE) classes."""
    images, masks = (
        np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]) for folder in folders
    )
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 128 - 1, torch.from_numpy(
        (masks > 0).astype(np.int64)
    )


if __name__ == "__main__":
    main()
