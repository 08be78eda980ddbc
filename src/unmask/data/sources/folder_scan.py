"""The index of an image folder on this machine: built by one bounded walk, kept in a cache file."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from unmask.data.sources import files
from unmask.data.sources.table import Table, TableBuilder, cache_folder, load_table, store_table

ENCODED = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")
EXTENSIONS = (*ENCODED, b".npy")
"""Of files that are each an image. In a tar, and alone, a .npy is something else: a feature, or many images."""
_SETTLED_NS = 2_000_000_000
"""A folder changed more recently than this may change again without a new modification time."""


def index_folder(root: Path) -> Table:
    """The images below `root` in byte order of their paths, with the column `size` in bytes; from the cache when no
    folder changed since it was built.

    `meta["folders"]` has the modification time in ns of each folder below the root, "" being the root itself, and
    `meta["skipped"]` how many links and special files were left out, by kind. Only a folder's modification time is
    looked at: a file overwritten in place keeps its place in the index. Raises OSError when `root` cannot be listed.
    """
    cache = cache_folder() / f"folder-{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.index"
    if (index := load_table(cache)) is not None and _unchanged(root, index):
        return index
    started = time.time_ns()
    index = scan(root)
    settled = max(index.meta["folders"].values()) < started - _SETTLED_NS
    if len(index) and settled and store_table(cache, index):
        return load_table(cache) or index
    return index


def scan(root: Path) -> Table:
    """Walk `root`. Links to folders are not followed, nor links to files outside of it; hidden names are left out."""
    folders: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    inside = os.fsencode(root.resolve()) + b"/"

    def children(path: bytes) -> Iterator[tuple[bytes, int]]:
        folder = root / os.fsdecode(path)
        folders[os.fsdecode(path[:-1])] = folder.stat().st_mtime_ns
        return _list(folder, inside, skipped)

    return _walk(children).sorted(folders=folders, skipped=skipped)


def scan_remote(url: str) -> Table:
    """The images below a folder of an object store or web server. Not cached: nothing tells when it changes."""
    folders: dict[str, int] = {}

    def children(path: bytes) -> Iterator[tuple[bytes, int]]:
        folders[os.fsdecode(path[:-1])] = 0
        for name, size, is_folder in files.listing(f"{url}/{os.fsdecode(path)}"):
            if is_folder:
                yield os.fsencode(name) + b"/", 0
            elif os.fsencode(name).lower().endswith(EXTENSIONS):
                yield os.fsencode(name), size

    return _walk(children).sorted(folders=folders, skipped={})


def _walk(children: Callable[[bytes], Iterator[tuple[bytes, int]]]) -> TableBuilder:
    """All images and their sizes; `children` gives those right in a folder, and folders with a slash."""
    rows = TableBuilder("size")
    pending = [b""]
    while pending:
        folder = pending.pop()
        for name, size in children(folder):
            if name.endswith(b"/"):
                pending.append(folder + name)
            else:
                rows.add(folder + name, size)
    return rows


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


def _unchanged(root: Path, index: Table) -> bool:
    try:
        return all((root / path).stat().st_mtime_ns == modified for path, modified in index.meta["folders"].items())
    except OSError:
        return False
