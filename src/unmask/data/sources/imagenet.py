"""ImageNet's validation labels, which its development kit numbers in an order of its own."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from unmask.data.sources import files
from unmask.errors import DataError

VAL_TAR = "ILSVRC2012_img_val.tar"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def ground_truth(tar: str) -> str | None:
    """The file of validation labels beside this tar, if it is ImageNet's validation tar."""
    path = files.beside(files.absolute(tar), GROUND_TRUTH)
    return path if tar.endswith(VAL_TAR) and files.exists(path) else None


def synsets(numbers: list[str], path: str) -> list[str]:
    """WordNet ids such as n01440764, which are the names of the training classes, for ILSVRC2012_IDs from 1.

    `path` is the file the numbers are from; the kit's meta.mat lies beside it. Raises DataError.
    """
    meta = files.beside(path, "meta.mat")
    if not files.exists(meta):
        raise DataError(
            f"{path}: its numbers mean nothing without meta.mat of the development kit; put it beside, "
            "or name a file of one class name a line with #labels="
        )
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{meta} needs scipy; pip install scipy, or name a file of class names with #labels=") from None
    try:
        table: Any = loadmat(BytesIO(files.read(meta)), squeeze_me=True)["synsets"]
        names = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
        return [names[number] for number in numbers]
    except DataError:
        raise
    except Exception as error:  # scipy meets damaged files in many ways
        raise DataError(f"{meta} does not belong to {path}: {type(error).__name__} {error}") from None
