"""The index of an image folder on this machine: built by one bounded walk, kept in a cache file."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.image_names import EXTENSIONS, HEAD, by_content, by_name, hidden
from unmask.data.sources.left_out import HIDDEN, LINKS_TO_FOLDERS, TEXT_LINKS, Tally
from unmask.data.sources.samples import survey
from unmask.data.sources.table import Table, TableBuilder, cache_folder, load_table, store_table
from unmask.errors import DataError

_SETTLED_NS = 2_000_000_000
"""A folder changed more recently than this may change again without a new modification time."""
_MOST_PATH = 4096
"""Bytes of a link."""
_MOST_FOLDERS = 1_000_000
"""Links may multiply folders: each of twenty that has two of the next makes a million of them."""


def index_folder(root: Path, *, follow: bool = False) -> Table:
    """The images below `root` in byte order of their paths, with the column `size` in bytes; from the cache when no
    folder changed since it was built.

    `follow`: links, to files and folders anywhere. `meta["folders"]` has the modification time in ns of each folder
    below the root, "" being the root itself; `meta["left_out"]` what was not taken (`left_out.Tally`);
    `meta["samples"]` what `samples.survey` tells. Only a folder's modification time is looked at: a file overwritten in
    place keeps its place in the index. Raises OSError when `root` cannot be listed, DataError when links lead in a
    circle.
    """
    name = hashlib.sha256(os.fsencode(root) + b"\0follow" * follow).hexdigest()[:32]
    cache = cache_folder() / f"folder-{name}.index"
    if (index := load_table(cache, check=True)) is not None and "samples" in index.meta and _unchanged(root, index):
        return index
    started = time.time_ns()
    index = scan(root, follow=follow)
    settled = max(index.meta["folders"].values()) < started - _SETTLED_NS
    if len(index) and settled and store_table(cache, index):
        return load_table(cache) or index
    return index


def scan(root: Path, *, follow: bool = False) -> Table:
    """Walk `root`. Unless `follow`, links to folders are not followed, nor links to files outside of it; hidden names
    are left out."""
    folders: dict[str, int] = {}
    left_out = Tally()
    inside = os.fsencode(root.resolve()) + b"/"

    def children(path: bytes) -> Iterator[tuple[bytes, int]]:
        folder = root / os.fsdecode(path)
        folders[os.fsdecode(path[:-1])] = folder.stat().st_mtime_ns
        if len(folders) > _MOST_FOLDERS:
            raise DataError(f"{root} has more than {_MOST_FOLDERS:,} folders below it; name one of them")
        yield from _list(root, path, None if follow else inside, left_out)

    return _surveyed(_walk(children).sorted(folders=folders, left_out=left_out.record()))


_DEEPEST = 32
"""Folders within each other, behind a URL."""


def scan_remote(url: str) -> Table:
    """The images below a folder of an object store or web server. Not cached: nothing tells when it changes."""
    folders: dict[str, int] = {}
    left_out = Tally()

    def children(path: bytes) -> Iterator[tuple[bytes, int]]:
        folders[os.fsdecode(path[:-1])] = 0
        if path.count(b"/") > _DEEPEST:  # some servers have one page, with links, for whatever is asked for
            raise DataError(
                f"{printable(url)} leads on and on, to {printable(os.fsdecode(path))}; name a folder below it"
            )
        for text, size, is_folder in files.listing(files.below(url, os.fsdecode(path))):
            name = os.fsencode(unquote(text, errors="surrogateescape") if files.is_web(url) else text)
            if b"/" in name:
                name = os.fsencode(text)
            if hidden(name):
                left_out.add(HIDDEN, path + name, doubtful=False)
            elif is_folder:
                yield name + b"/", 0
            elif name.lower().endswith(EXTENSIONS):
                yield name, size
            elif size and by_name(name) is None:  # to look into each would take a request
                left_out.add("without the suffix of an image", path + name)
            else:
                left_out.add_file(path + name)

    return _surveyed(_walk(children).sorted(folders=folders, left_out=left_out.record()))


def _surveyed(index: Table) -> Table:
    index.meta["samples"] = survey(index)
    return index


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


def _list(root: Path, path: bytes, inside: bytes | None, left_out: Tally) -> Iterator[tuple[bytes, int]]:
    """Images and their sizes, and folders with a slash, directly in the folder `path`; links within `inside` count as
    what they lead to, without it (None) all do."""
    with os.scandir(os.fsencode(root) + b"/" + path) as entries:
        for entry in entries:
            if hidden(entry.name):
                left_out.add(HIDDEN, path + entry.name, doubtful=False)
                continue
            if entry.is_dir(follow_symlinks=False):
                yield entry.name + b"/", 0
                continue
            link = entry.is_symlink()
            if not link and not entry.name.lower().endswith(EXTENSIONS) and by_name(entry.name) is False:
                left_out.add_file(path + entry.name)
                continue
            size = _size(entry, inside)
            if size == LINKS_TO_FOLDERS and inside is None:
                _refuse_circle(root, path + entry.name)
                yield entry.name + b"/", 0
            elif isinstance(size, str):
                left_out.add(size, path + entry.name)
            elif entry.name.lower().endswith(EXTENSIONS) or (by_name(entry.name) is None and _begins_so(entry)):
                yield entry.name, size
            elif by_name(entry.name) is None and _names_a_folder(entry, size):
                left_out.add(TEXT_LINKS, path + entry.name)
            else:
                left_out.add_file(path + entry.name)


def _size(entry: os.DirEntry[bytes], inside: bytes | None) -> int | str:
    """Bytes in a file, or what it is instead of a file in this folder."""
    try:
        status = entry.stat()
    except OSError:  # dangling, a loop, or removed while we walk
        return "broken links"
    if stat.S_ISDIR(status.st_mode):
        return LINKS_TO_FOLDERS
    if entry.is_symlink() and inside and not (os.path.realpath(entry.path) + b"/").startswith(inside):
        return "links out of the folder"
    return status.st_size if stat.S_ISREG(status.st_mode) else "special files"


def _begins_so(entry: os.DirEntry[bytes]) -> bool:
    try:
        return by_content(files.read_head(os.fsdecode(entry.path), HEAD))
    except DataError:
        return False


def _names_a_folder(entry: os.DirEntry[bytes], size: int) -> bool:
    """Whether a file holds nothing but the way to a folder: what git makes of a link where it cannot make links."""
    if not 0 < size <= _MOST_PATH:
        return False
    try:
        path = Path(os.fsdecode(entry.path))
        target = os.fsdecode(files.read_head(str(path), size))
        return "\0" not in target and (path.parent / target).is_dir()
    except (DataError, OSError):
        return False


def _refuse_circle(root: Path, link: bytes) -> None:
    """Raises DataError when a link leads to a folder that was passed on the way to it."""
    target, above = os.path.realpath(os.fsencode(root) + b"/" + link), link
    while above:
        above = above.rpartition(b"/")[0]
        if os.path.realpath(os.fsencode(root) + b"/" + above) == target:
            shown = printable(os.fsdecode(link))
            raise DataError(f"{root}: the link {shown} leads back to a folder above it; remove it")


def _unchanged(root: Path, index: Table) -> bool:
    try:
        return all((root / path).stat().st_mtime_ns == modified for path, modified in index.meta["folders"].items())
    except OSError:
        return False
