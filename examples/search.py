"""Which images of a folder look like a given one?

    python examples/search.py runs/mae photos --like query.jpg --top 5

The features of the folder are computed once and kept beside it in `search.npz`; delete that file when images change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import unmask


def normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--like", required=True)
    parser.add_argument("--top", type=int, default=5)
    options = parser.parse_args()

    with unmask.load(options.model) as model:
        kept = Path("search.npz")
        if not kept.exists():
            source = model.source(options.images)
            names = np.array([source.name(i) for i in range(len(source))])
            np.savez(kept, names=names, features=normalised(model.embed(source)))
        index = np.load(kept)
        query = normalised(model.embed([Image.open(options.like).convert("RGB")]))[0]

    cosine = index["features"] @ query
    for place in np.argsort(-cosine)[: options.top]:
        print(f"{cosine[place]:.3f}  {index['names'][place]}")


if __name__ == "__main__":
    main()
