"""The index of an image folder: built by one bounded walk, held in arrays, kept in a cache file.

A million images take some 60 MB here, mapped from the cache rather than read, and shared by all loader processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.errors import DataError

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")
_VERSION = 1
_SETTLED_NS = 2_000_000_000
"""A folder changed more recently than this may change again without a new modification time."""


@dataclass(frozen=True, eq=False)
class Index:
    """All images below a folder, in byte order of their paths."""

    names: NDArray[np.uint8]
    """Paths below the root, one after the other, without separators."""
    ends: NDArray[np.int64]
    """(N,) where each path ends in `names`."""
    sizes: NDArray[np.int64]
    """(N,) bytes in each file."""
    folders: dict[str, int]
    """Modification time in ns of each folder below the root, as `os.fsdecode` names them; "" is the root."""
    skipped: dict[str, int]
    """How many links and special files were not taken, by kind."""
    token: str = ""
    """Names this very index: a cache file may be replaced while the arrays mapped from it are in use."""
    cache: Path | None = None
    """File these arrays are mapped from."""

    def __len__(self) -> int:
        return len(self.ends)

    def __reduce__(self) -> tuple[Any, ...]:
        # Loader processes map the same file instead of receiving a copy.
        if self.cache is not None and (current := _load(self.cache)) is not None and current.token == self.token:
            return _reopen, (self.cache, self.token)
        arrays = (np.array(values) for values in (self.names, self.ends, self.sizes))
        return Index, (*arrays, self.folders, self.skipped)

    def path(self, index: int) -> bytes:
        """Path of one image below the root."""
        if not 0 <= index < len(self.ends):
            raise IndexError(f"image {index} of {len(self.ends)}")
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].tobytes()

    def fingerprint(self) -> str:
        """SHA-256 over paths and sizes."""
        digest = hashlib.sha256()
        for values in (self.names, self.ends, self.sizes):
            digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def _reopen(cache: Path, token: str) -> Index:
    index = _load(cache)
    if index is None or index.token != token:
        raise DataError(f"{cache} was replaced while a loader process was starting; start again")
    return index


def index_folder(root: Path) -> Index:
    """The index of `root`, from the cache when no folder changed since it was built.

    Only a folder's modification time is looked at: a file overwritten in place keeps its place in the index. Raises
    OSError when `root` cannot be listed.
    """
    cache = _cache_file(root)
    if (index := _load(cache)) is not None and _unchanged(root, index):
        return index
    started = time.time_ns()
    index = scan(root)
    settled = max(index.folders.values()) < started - _SETTLED_NS
    if len(index) and settled and _store(cache, index):
        return _load(cache) or index
    return index


def scan(root: Path) -> Index:
    """Walk `root`. Links to folders are not followed, nor links to files outside of it; hidden names are left out."""
    names, ends, sizes = bytearray(), array("q"), array("q")
    folders: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    inside = os.fsencode(root.resolve()) + b"/"
    # A folder sorts as its name with a slash, so that walking in this order yields whole paths in byte order.
    pending = [(b"", 0)]
    while pending:
        path, size = pending.pop()
        if path and not path.endswith(b"/"):
            names += path
            ends.append(len(names))
            sizes.append(size)
            continue
        folder = root / os.fsdecode(path)
        folders[os.fsdecode(path[:-1])] = folder.stat().st_mtime_ns
        children = sorted(_list(folder, inside, skipped), reverse=True)
        pending.extend((path + child, size) for child, size in children)
    return Index(
        np.frombuffer(bytes(names), np.uint8), np.array(ends, np.int64), np.array(sizes, np.int64), folders, skipped
    )


def _list(folder: Path, inside: bytes, skipped: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """Images and their sizes, and folders with a slash, directly in `folder`."""
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):  # editors' and file managers' own, such as ._photo.jpg
                continue
            if entry.is_dir(follow_symlinks=False):
                yield entry.name + b"/", 0
            elif entry.name.lower().endswith(EXTENSIONS) or entry.is_symlink():
                size = _size(entry, inside)
                if isinstance(size, str):
                    skipped[size] += 1
                elif entry.name.lower().endswith(EXTENSIONS):
                    yield entry.name, size


def _size(entry: os.DirEntry[bytes], inside: bytes) -> int | str:
    """Bytes in a file, or what it is instead of a file in this folder."""
    if entry.is_symlink() and not (os.path.realpath(entry.path) + b"/").startswith(inside):
        return "links out of the folder"
    try:
        status = entry.stat()
    except OSError:  # dangling, a loop, or removed while we walk
        return "broken links"
    if stat.S_ISDIR(status.st_mode):
        return "links to folders"
    return status.st_size if stat.S_ISREG(status.st_mode) else "special files"


def _unchanged(root: Path, index: Index) -> bool:
    try:
        return all((root / path).stat().st_mtime_ns == modified for path, modified in index.folders.items())
    except OSError:
        return False


def _cache_file(root: Path) -> Path:
    folder = os.environ.get("UNMASK_CACHE")
    base = Path(folder or "~/.cache/unmask").expanduser()
    return base / f"folder-{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.index"


def _store(cache: Path, index: Index) -> bool:
    """Write the cache file in one step. False where that is not possible, which costs only the next scan."""
    aside = cache.with_name(f"{cache.name}.{os.getpid()}-{secrets.token_hex(4)}")
    head = {
        "version": _VERSION,
        "token": aside.name,
        "images": len(index),
        "folders": index.folders,
        "skipped": index.skipped,
    }
    line = json.dumps(head).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"  # so that the numbers are aligned
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("xb") as file:
                file.write(line)
                for values in (index.ends, index.sizes, index.names):
                    file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
            aside.replace(cache)
        finally:
            aside.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _load(cache: Path) -> Index | None:
    """The index in a cache file, mapped into memory; None when there is none that can be used."""
    try:
        with cache.open("rb") as file:
            line = file.readline()
            head = json.loads(line)
            values = np.memmap(file, np.uint8, "r", len(line))
        if head["version"] != _VERSION:
            return None
        count = head["images"]
        ends, sizes = (values[8 * count * i : 8 * count * (i + 1)].view("<i8") for i in range(2))
        names = values[16 * count :]
        if ends[-1] != len(names):
            return None
        return Index(names, ends, sizes, head["folders"], head["skipped"], head["token"], cache)
    except (OSError, ValueError, LookupError, TypeError):
        return None
