"""Masks from a handful of examples: ridge regression on patch features, one score a class, enlarged to the image.

    python examples/segment.py runs/mae train train-masks new --out masks

`train-masks` holds a PNG for each image of `train`, of the same name and size: each pixel the number of its class. How
good that is on masks set aside, `unmask probe --segment` tells, with a classifier that is fitted with more care.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import unmask

STRENGTH = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "masks", "new"):
        parser.add_argument(name)
    parser.add_argument("--out", type=Path, default=Path("masks"))
    options = parser.parse_args()

    # All of each image, however wide, in the model's square: then patches and masks cover the same places.
    whole = {"data.eval_crop": 1, "data.eval_fit": "squash"}
    with unmask.load(options.model, settings=whole) as model:
        source = model.source(options.train)
        patches = model.patch_features(source)  # (images, h, w, width)
        _, h, w, width = patches.shape
        shares = []  # of each class in each patch
        masks = [Image.open(Path(options.masks) / Path(source.name(i)).with_suffix(".png")) for i in range(len(source))]
        classes = 1 + max(int(np.asarray(mask).max()) for mask in masks)
        for mask in masks:
            one_hot = np.asarray(mask)[:, :, None] == np.arange(classes)
            layers = [Image.fromarray(layer.astype(np.float32)).resize((w, h), Image.Resampling.BOX) for layer in
                      np.moveaxis(one_hot, -1, 0)]  # fmt: skip
            shares.append(np.stack([np.asarray(layer) for layer in layers], axis=-1))

        mean, std = patches.mean((0, 1, 2)), patches.std((0, 1, 2)) + 1e-6
        x = ((patches - mean) / std).reshape(-1, width)
        y = np.stack(shares).reshape(-1, classes)
        bias = y.mean(0)
        weights = np.linalg.solve(x.T @ x + STRENGTH * len(x) * np.eye(width), x.T @ (y - bias))

        new = model.source(options.new)
        scores = (model.patch_features(new) - mean) / std @ weights + bias  # (images, h, w, classes)

    options.out.mkdir(exist_ok=True)
    for i, each in enumerate(scores.astype(np.float32)):
        with Image.open(Path(options.new) / new.name(i)) as image:
            size = image.size
        layers = [Image.fromarray(each[:, :, c]).resize(size, Image.Resampling.BILINEAR) for c in range(classes)]
        mask = np.stack([np.asarray(layer) for layer in layers]).argmax(0).astype(np.uint8)
        Image.fromarray(mask).save(options.out / Path(new.name(i)).with_suffix(".png").name)


if __name__ == "__main__":
    main()
