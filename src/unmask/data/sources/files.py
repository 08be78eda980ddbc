"""Files by path, on disk or behind a URL (`s3://`, `gs://`, `https://`, `hf://` …): one way to read both.

A path is a string; with "://" in it, it is an fsspec URL. All functions raise DataError.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from unmask.data.sources import remote
from unmask.data.sources.base import printable
from unmask.data.sources.table import splits_of
from unmask.errors import DataError, StorageError
from unmask.files import expanded

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A FIFO would wait for its writer; Windows has none, but reads text unless told otherwise."""
_FAILURES = {
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Of a disk, a network file system or this machine; not of a file."""
_MOST_FILES = 100_000
"""A pattern that names more files than this is a mistake."""


@dataclass(frozen=True)
class State:
    """What a file was when it was looked at."""

    size: int
    version: str
    """Changes when the file does: time of modification, or the store's own tag."""


def is_remote(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """`path` in a form that is valid from any working folder."""
    return path.rstrip("/") if is_remote(path) else str(expanded(path).absolute())


def beside(path: str, name: str) -> str:
    """`name` as seen from the folder of the file `path`."""
    if is_remote(name) or name.startswith("/"):
        return name
    return f"{path.rpartition('/')[0]}/{name}"


def below(folder: str, name: str) -> str:
    """`name`, which is no part of an address yet, as seen from `folder`."""
    return f"{folder}/{quote(name, errors='surrogateescape') if is_web(folder) else name}"


def is_web(path: str) -> bool:
    """Whether names in a listing are parts of addresses, in which a blank is %20."""
    return path.lower().startswith(("http://", "https://"))


def state(path: str) -> State:
    if is_remote(path):
        return State(*remote.state(path))
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _failed(path, error) from None
    _check_regular(path, status)
    return State(status.st_size, f"{status.st_mtime_ns}")


def is_here(path: str) -> bool:
    """Whether a file or folder of this very name is on this machine."""
    try:
        return not is_remote(path) and os.path.lexists(expanded(path))
    except ValueError:  # a NUL
        return False


def exists(path: str) -> bool:
    return remote.exists(path) if is_remote(path) else Path(path).exists()


def remove(path: str) -> None:
    """A file, if it is there."""
    if is_remote(path):
        remote.remove(path)
    else:
        Path(path).unlink(missing_ok=True)


def read(path: str, start: int = 0, length: int | None = None, *, version: str = "") -> bytes:
    """Exactly `length` bytes from `start`, or the whole file. `version` is its State's, where it is known."""
    if is_remote(path):
        return remote.read(path, start, length, version)
    try:
        file = os.open(path, _READ)
        try:
            status = os.fstat(file)
            _check_regular(path, status)
            if length is None:
                length = status.st_size - start
            if start + length > status.st_size:  # before memory is taken for what a damaged index says
                raise _truncated(path, start + length)
            os.lseek(file, start, os.SEEK_SET)
            data = os.read(file, length)
            while 0 < len(data) < length and (more := os.read(file, length - len(data))):
                data += more  # a signal, or more than 2 GiB
        finally:
            os.close(file)
    except OSError as error:
        raise _failed(path, error) from None
    if len(data) != length:
        raise _truncated(path, start + length)
    return data


def read_head(path: str, length: int) -> bytes:
    """The first bytes of a file on this machine, fewer where it is shorter."""
    try:
        file = os.open(path, _READ)
        try:
            _check_regular(path, os.fstat(file))
            return os.read(file, length)
        finally:
            os.close(file)
    except OSError as error:
        raise _failed(path, error) from None


def listing(folder: str) -> Iterator[tuple[str, int, bool]]:
    """Name, size and whether it is a folder, of everything directly in `folder`; hidden names are left out."""
    if is_remote(folder):
        yield from remote.listing(folder)
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, 0, entry.is_dir()
    except OSError as error:
        raise _failed(folder, error) from None


def expand(pattern: str, what: str) -> list[str]:
    """The files that `{000000..000146}`, `{a,b}`, `*`, `?` and `[0-4]` stand for, as in a shell; those of one pattern
    are in byte order.
    """
    pattern = str(expanded(pattern)) if pattern.startswith("~") else pattern
    if not re.search(r"[{*?[]", pattern) or (not is_remote(pattern) and Path(pattern).exists()):
        return [pattern]
    paths: list[str] = []
    for path in _braces(pattern):
        folder, slash, name = path.rpartition("/")
        if not re.search(r"[*?[]", name):
            paths.append(path)
        else:
            found = sorted(os.fsencode(f) for f, _, is_folder in listing(folder or ".") if not is_folder)
            found = [folder + slash + os.fsdecode(f) for f in found if fnmatch.fnmatchcase(os.fsdecode(f), name)]
            check_one_part(found, what)  # words in braces are each meant
            paths += found
        if len(paths) > _MOST_FILES:
            break
    if len(paths) > _MOST_FILES:
        raise DataError(f"{what} names more than {_MOST_FILES:,} files; name fewer and larger ones")
    if not paths:
        raise DataError(f"{what}: no file has such a name")
    return paths


def check_one_part(paths: Sequence[str], what: str) -> None:
    """Raise DataError where files of one folder are parts of a data set, such as train and validation, which together
    are no one set of images."""
    splits = splits_of(path.rpartition("/")[2] for path in paths)
    if len(splits) < 2:
        return
    one = splits[next((split for split in sorted(splits) if "train" in split), min(splits))]
    stem, dot, suffix = one.rpartition(".")
    folder, slash, _ = paths[0].rpartition("/")
    one = folder + slash + re.sub(r"\d{3,}(?:-of-\d.*)?", "*", stem) + dot + suffix
    raise DataError(f"{what} holds {', '.join(sorted(splits))}; name one of them, such as {printable(one)}")


def _braces(pattern: str) -> Iterator[str]:
    """Expands {a,b} and {1..3} like the shell, with the leading zeros of the first number."""
    if not (found := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)[: _MOST_FILES + 1]
        values = (str(number).zfill(len(first)) for number in numbers)
    else:
        values = iter(words.split(","))
    for value in values:
        yield from _braces(pattern[: found.start()] + value + pattern[found.end() :])


def _truncated(path: str, end: int) -> DataError:
    return DataError(f"{printable(path)} ends before byte {end}; it was truncated")


def _check_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable(path)} cannot be read: it is a folder, a FIFO or a device, not a file")


def _failed(path: str, error: OSError) -> DataError:
    failure = StorageError if error.errno in _FAILURES else DataError
    return failure(f"{printable(path)} cannot be read: {error.strerror}")
