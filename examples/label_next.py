"""Which images should be labelled next? Those that a classifier is least sure of, and that do not resemble one another.

Put a handful of labelled images into a folder for each class, and repeat:

    unmask finetune finetune-vit-small init=runs/mae data.train=labelled objective.head=probe train.epochs=0 \\
      output=runs/round1
    python examples/label_next.py runs/round1 unlabelled --count 20
    # move the images that it names into the folders of their classes; then the same with output=runs/round2

The classifier is the linear probe, whose probabilities are calibrated by cross-validation: it takes seconds, not
minutes. Stop when accuracy on images set aside no longer rises: choosing by uncertainty can be worse than choosing by
chance, most of all in the first rounds, so keep such images and compare.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

import unmask

UNSURE = 10
"""Of how many times as many uncertain images the chosen ones are the most different."""


def choose(probabilities: NDArray[np.float32], features: NDArray[np.float32], count: int) -> list[int]:
    """`count` images of (N, classes) probabilities and (N, width) features."""
    best = np.sort(probabilities, axis=1)
    margin = best[:, -1] - best[:, -2]
    unsure = np.argsort(margin, kind="stable")[: UNSURE * count]
    x = features[unsure] / np.linalg.norm(features[unsure], axis=1, keepdims=True)
    chosen = [0]
    nearest = x @ x[0]  # cosine to the nearest of those chosen
    while len(chosen) < min(count, len(x)):
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, x @ x[chosen[-1]])
    return [int(unsure[place]) for place in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("unlabelled")
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()

    with unmask.load(options.classifier) as model:
        source = model.source(options.unlabelled)
        probabilities, features = model.predict(source), model.embed(source)
        classes = model.class_names or tuple(map(str, range(probabilities.shape[1])))
    for place in choose(probabilities, features, options.count):
        guess = int(probabilities[place].argmax())
        print(f"{source.name(place)}\t{classes[guess]}?\t{probabilities[place, guess]:.2f}")


if __name__ == "__main__":
    main()
