"""What an option's value may be: numbers within bounds, places, shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def _whole(text: str, least: int, most: int, what: str, part: str | None = None) -> int:
    """`part`: of the text, all of which is shown if it is wrong."""
    try:
        number = int(text if part is None else part)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def count(text: str) -> int:
    return _whole(text, 1, 2**31 - 1, "a whole number from 1 on")


def number(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a whole number from 0 on")


def port(text: str) -> int:
    return _whole(text, 0, 65535, "a port, from 0 to 65535")


def size(text: str) -> tuple[int, int]:
    """Machines, and cards of each."""
    nodes, _, cards = text.partition("x")
    what = "of the form NODESxCARDS, such as 16x8"
    return _whole(text, 1, 2**16, what, nodes), _whole(text, 1, 2**10, what, cards)


def seed(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a seed, a whole number from 0 to 2147483647")


def quality(text: str) -> int:
    return _whole(text, 1, 100, "a quality, from 1 to 100")


def _real(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not fits(number):  # no comparison holds of NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def share(text: str) -> float:
    return _real(text, "a share, from 0 to 1", lambda number: 0 <= number <= 1)


def share_of(text: str) -> str:
    number, slash, count = text.partition("/")
    numbers = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in (number, count)]
    if not slash or not 1 <= numbers[0] <= numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, from 1/100 to 100/100")
    return text


def positive(text: str) -> float:
    return _real(text, "a positive number", lambda number: 0 < number < float("inf"))


def place(text: str) -> Path:
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name that a file can have")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; name a file or folder here, and copy it")
    return Path(text)


def size_in_bytes(text: str) -> int:
    """A number of bytes, such as 256M."""
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    try:
        return int(positive(text if scale == 1 else text[:-1]) * scale) or 1
    except (argparse.ArgumentTypeError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 256M") from None


def checkpoint(text: str) -> str | int:
    if text not in ("last", "best") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not last, best, or the number of a step")
    return int(text) if text.isdecimal() else text
