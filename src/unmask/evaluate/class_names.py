"""Which class of a classification head each class of the images is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.same_classes import check_same_classes, places_of, shortened
from unmask.errors import ConfigError, DataError
from unmask.files import cause


def head_classes(
    names: Sequence[str],
    *,
    head: int,
    head_names: Sequence[str] | None,
    class_map: Path | None = None,
    label_offset: int | None = None,
) -> NDArray[np.int64]:
    """(len(names),) the class of the head, 0..head-1, that each class of the images is.

    By `class_map` (see `read_class_map`), which may name any of the head's classes, some twice and some not at all; or
    by `label_offset`, class i of the images being i + offset of the head (1 for ImageNet heads of 1,001 classes, whose
    class 0 is background); or, by default, in order: then the names must be those of the head (of numbers, some may be
    missing), or as many if the head has none. Raises DataError with the difference otherwise, and ConfigError for a
    map that does not fit.
    """
    if class_map is not None and label_offset is not None:
        raise ConfigError("give either a class map or a label offset, not both")
    if class_map is not None:
        return _mapped(names, head, head_names, class_map)
    if label_offset is not None:
        if label_offset < 0 or label_offset + len(names) > head:
            raise ConfigError(
                f"label offset {label_offset}: {len(names)} classes of the images do not fit the {head} of the model"
            )
        return np.arange(len(names)) + label_offset
    if head_names is not None:
        if (places := places_of(names, head_names)) is not None:
            return places
        try:
            check_same_classes(names, head_names, "the images", "the model")
        except DataError as error:
            raise DataError(f"{error}; a class map tells which is which (--class-map FILE)") from None
    elif len(names) != head:
        raise DataError(
            f"the images have {len(names)} classes and the model's head has {head}, without names: give a class map "
            "(--class-map FILE) or the label offset (--label-offset 1 where class 0 of the head is background, 0 where "
            "its last classes are not used)"
        )
    return np.arange(len(names))


def read_class_map(path: Path) -> dict[str, str | int]:
    """Class of the images (folder name) -> class of the head, by number or by name.

    JSON: `{"n01440764": 0, ...}`. CSV: `n01440764,0`, one pair a line below the header `folder,class`.
    Raises ConfigError if the file is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _pairs_from_json(text) if path.suffix == ".json" else _pairs_from_csv(text)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"class map {path} cannot be read: {cause(error)}") from None
    result: dict[str, str | int] = {}
    for name, target in pairs:
        if name in result:
            raise ConfigError(f"class map {path} names {name!r} twice")
        result[name] = target
    return result


def _pairs_from_json(text: str) -> list[tuple[str, str | int]]:
    # Pairs, not an object: of a key that stands there twice the first would be lost.
    pairs: Any = json.loads(text, object_pairs_hook=list)
    good = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], int | str) and not isinstance(pair[1], bool) for pair in pairs
    )
    if not good:
        raise ValueError('it is not an object of the form {"folder": class}')
    return pairs


def _pairs_from_csv(text: str) -> list[tuple[str, str | int]]:
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row] or [[]]
    if header != ["folder", "class"]:
        raise ValueError("its first line is not folder,class")
    if odd := [row for row in rows if len(row) != 2]:
        raise ValueError(f"{','.join(odd[0])!r} is not of the form folder,class")
    return [(name, int(target) if target.isdecimal() else target) for name, target in rows]


def _mapped(names: Sequence[str], head: int, head_names: Sequence[str] | None, path: Path) -> NDArray[np.int64]:
    class_map = read_class_map(path)
    if missing := [name for name in names if name not in class_map]:
        raise DataError(f"class map {path} does not name these classes of the images: {shortened(missing)}")
    by_name = {name: number for number, name in enumerate(head_names or ())}
    targets = [class_map[name] for name in names]
    numbers = [by_name.get(target, -1) if isinstance(target, str) else target for target in targets]
    if wrong := [str(t) for t, number in zip(targets, numbers, strict=True) if not 0 <= number < head]:
        known = f"and has the names {shortened(head_names)}" if head_names else "and carries no names"
        raise ConfigError(f"class map {path}: the model, of {head} classes {known}, has no class {shortened(wrong)}")
    return np.array(numbers, np.int64)
