"""Map-style data sets of other libraries, such as torchvision's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Source
from unmask.data.sources.in_memory import sampled_content, stored_image
from unmask.data.sources.labels import numbered
from unmask.errors import DataError
from unmask.report.progress import progress

Label = int | str


class Dataset(Protocol):
    """Anything with a length whose items, by number from 0, are an image or a tuple (image, label).

    An image is any form that `unmask.data.sources.in_memory.stored_image` takes; a label is a whole number or a text.
    It must be the same each time, for what a run is made of is to be found again, and threads ask for several at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DatasetSource:
    """The images of a data set, in its order."""

    def __init__(self, dataset: Dataset, *, key: str, labels: bool, dtype: str) -> None:
        """`key` names the data set in messages; `dtype` is `data.dtype` of the run.

        With `labels`, these are taken from `dataset.targets` or `dataset.labels`, where it has one for each item and
        no `target_transform`; else all items are read once. Raises DataError when labels are missing or unclear.
        """
        self._dataset = dataset
        self._type = type(dataset).__qualname__
        self._dtype = dtype
        self._count = len(dataset)
        if not self._count:
            raise DataError(f"{key}: the {self._type} holds no images")
        self.labels: NDArray[np.int64] | None = None
        self.class_names: tuple[str, ...] | None = None
        if labels:
            values = _known_labels(dataset) or self._read_labels()
            self.labels, self.class_names = _classes(values, dataset, f"{key}: {self._type}")

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> bytes | NDArray[Any]:
        item = self._item(index)
        return stored_image(item[0] if isinstance(item, tuple) else item, self.name(index), self._dtype)

    def name(self, index: int) -> str:
        return f"{self._type}[{index}]"

    def fingerprint(self) -> str:
        """SHA-256 over the type of the data set, its length and labels, and the content of a few images."""
        kind = type(self._dataset)
        digest = hashlib.sha256(f"dataset {kind.__module__}.{kind.__qualname__} {len(self)}".encode())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        digest.update(sampled_content(self))
        return digest.hexdigest()

    def _item(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever a data set of someone else's may raise
            raise DataError(f"{self.name(index)} raised {_said(error)}") from None
        if isinstance(item, tuple) and len(item) not in (1, 2):
            raise DataError(f"{self.name(index)} is a tuple of {len(item)}; it must be an image or (image, label)")
        return item

    def _read_labels(self) -> list[Label]:
        values: list[Label] = []
        with progress("labels", total=len(self), unit="image") as bar:
            for index in range(len(self)):
                item = self._item(index)
                label = _label(item[1]) if isinstance(item, tuple) and len(item) == 2 else None
                if label is None:
                    raise DataError(
                        f"{self.name(index)} has no label; its items must be (image, label), where a label is a whole "
                        "number or a text, or the data set must have all of them as .targets"
                    )
                values.append(label)
                bar.update()
        return values


def check_picklable(source: Source, key: str) -> None:
    """Raise DataError where loader processes cannot be given `source`, which `key` names."""
    import cloudpickle  # Grain's way to send it

    try:
        with Path(os.devnull).open("wb") as nowhere:
            cloudpickle.dump(source, nowhere)
    except Exception as error:  # whatever a data set of someone else's may raise
        raise DataError(
            f"{key} cannot be sent to loader processes: {_said(error)}; set data.workers=0, which loads in threads"
        ) from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _known_labels(dataset: Dataset) -> list[Label]:
    """By torchvision's convention; empty where the data set does not follow it."""
    if getattr(dataset, "target_transform", None) is not None:  # items have other labels than these
        return []
    for attribute in ("targets", "labels"):
        values: Any = getattr(dataset, attribute, None)
        values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, list | tuple) and len(values) == len(dataset):
            labels = [_label(value) for value in values]
            if None not in labels:
                return [label for label in labels if label is not None]
    return []


def _label(value: Any) -> Label | None:
    """None where `value` is none."""
    if getattr(value, "shape", None) == ():  # NumPy's numbers, and arrays and tensors of one
        value = value.item()
    return value if isinstance(value, int | str) else None


def _classes(values: list[Label], dataset: Dataset, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of each item and the names of all: those of `dataset.classes`, where these go with the labels."""
    names = _names(getattr(dataset, "classes", None))
    if all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        return np.array(values, np.int64), names
    texts = [value if isinstance(value, str) else str(int(value)) for value in values]
    places = {name: place for place, name in enumerate(names)}
    if all(isinstance(value, str) and value in places for value in values):
        return np.array([places[text] for text in texts], np.int64), names
    numbers, distinct = numbered(texts, what=what)
    return numbers, tuple(distinct)


def _names(classes: Any) -> tuple[str, ...]:
    if not isinstance(classes, list | tuple):
        return ()
    several: Iterable[Any] = classes  # torchvision's ImageNet has a tuple of words for each class
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in several)
