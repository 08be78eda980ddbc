"""Images in tars, read in place: a plain tar, ImageNet's tar of class tars, WebDataset shards.

All images of all shards form one set in byte order of their names, like those of a folder: the same images packed
differently give the same run. An image's class is the member `KEY.cls`, or the field `label` or `cls` of `KEY.json`,
where KEY is the image's name up to a dot (WebDataset: the first), the last of these where several have a label;
otherwise its first folder. An inner tar is a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import files, imagenet
from unmask.data.sources.base import printable
from unmask.data.sources.image_names import HEAD, hidden, is_image
from unmask.data.sources.labels import numbered
from unmask.data.sources.left_out import HIDDEN, LeftOut, Tally
from unmask.data.sources.samples import one_of_each, survey
from unmask.data.sources.table import Table, TableBuilder, cached, classes
from unmask.data.sources.tar_headers import Member, members
from unmask.errors import DataError

_WINDOW = 4096
"""Bytes read at each header."""
_REMOTE_WINDOW = 4 << 20
"""The same behind a URL, where a request takes as long as a few images, so that indexing is as fast as a download."""
_CONNECTIONS = 8
_MOST_LABEL = 1 << 20
"""Bytes of a .cls or .json member."""
_COLUMNS = ("shard", "start", "size", "label")


@dataclass(frozen=True, eq=False)
class TarSource:
    """The images in one or more tars."""

    shards: tuple[str, ...]
    versions: tuple[str, ...]
    index: Table
    class_names: tuple[str, ...] | None
    own_labels: NDArray[np.int64] | None = None
    """(N,) from a file beside the tar, in place of those in it."""

    @classmethod
    def open(
        cls, shards: list[str], *, what: str, labels: bool, labels_file: str | None = None, image: str | None = None
    ) -> TarSource:
        """Index `shards`, or take the index from the cache. `image`: which file of a sample, see `samples.one_of_each`.

        Raises DataError when they are damaged or ambiguous.
        """
        shards = [files.absolute(shard) for shard in shards]
        if len(set(shards)) < len(shards):
            raise DataError(f"{what} names the same tar twice; name it once")
        states = _states(shards)
        identity = ["tar", *([shard, state.size, state.version] for shard, state in zip(shards, states, strict=True))]
        index = cached(identity, lambda: _index(shards, [state.size for state in states], what))
        if not len(index):
            passed = f"; there are {left_out}" if (left_out := LeftOut.told(index)) else ""
            raise DataError(f"{what} holds no images{passed}")
        index = one_of_each(index, image, what)
        source = cls(tuple(shards), tuple(state.version for state in states), index, None)
        if not labels:
            return source
        if labels_file is not None:
            own, names = _labels_of(labels_file, len(index), what)
            return cls(source.shards, source.versions, index, names, own)
        if index.meta["problem"]:
            raise DataError(f"{what}: {index.meta['problem']}")
        return cls(source.shards, source.versions, index, tuple(index.meta["classes"]))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        if self.own_labels is not None or self.class_names is None:
            return self.own_labels
        return self.index.columns["label"]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes:
        shard, start, size = (int(self.index.columns[key][index]) for key in ("shard", "start", "size"))
        return files.read(self.shards[shard], start, size, version=self.versions[shard])

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def fingerprint(self) -> str:
        """Equal to that of a folder of the same files."""
        return self.index.fingerprint("size", *(["label"] if self.index.meta["labelled"] else []))


def _states(shards: list[str]) -> list[files.State]:
    if not files.is_remote(shards[0]):
        return [files.state(shard) for shard in shards]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(files.state, shards))


def _index(shards: list[str], sizes: list[int], what: str) -> Table:
    """One table of all images; its columns are _COLUMNS."""
    table, texts, firsts, left_out = _walked(shards, sizes)
    if not len(table):
        return Table(table.names, table.ends, table.columns, {"left_out": left_out.record()})
    table = _below_common_folder(table)
    labels, names, problem = _labels(table, texts, firsts)
    table = Table(table.names, table.ends, table.columns | {"label": labels})
    repeated = table.repeated()
    other_shard = np.diff(table.columns["shard"], append=table.columns["shard"][-1:]) != 0
    if (repeated & other_shard).any():  # each shard counts from 0: its name tells them apart
        stems = [os.fsencode(shard).rpartition(b"/")[2].removesuffix(b".tar") + b"/" for shard in shards]
        if len(set(stems)) < len(stems):
            raise DataError(f"{what}: images in shards of the same name have the same name; rename the shards")
        table = table.take(np.argsort(np.argsort(stems)[table.columns["shard"]], kind="stable"))  # is now their order
        table = table.with_prefix(stems, table.columns["shard"])
        repeated = table.repeated()
    if repeated.any():  # as on extraction, the last of a name counts
        first = table.name(int(np.argmax(repeated)))
        left_out.add("replaced by later ones of the same name", first, count=int(repeated.sum()))
        table = table.take(~repeated)
    meta = {"classes": names, "problem": problem, "labelled": bool(texts), "left_out": left_out.record()}
    return Table(table.names, table.ends, table.columns, meta | {"samples": survey(table)})


def _walked(shards: list[str], sizes: list[int]) -> tuple[Table, list[bytes], list[int], Tally]:
    """The images of all shards in byte order, the labels as they are written, where those of each shard start, and what
    was left out."""
    rows = TableBuilder(*_COLUMNS, narrow=("shard", "label"))
    texts: list[bytes] = []
    firsts: list[int] = []
    seen: dict[str, str] = {}
    left_out = Tally()
    for shard, walk in zip(shards, _walks(shards, sizes), strict=True):
        _refuse_copy(shard, walk.rows.build(), seen)
        rows.extend(walk.rows)
        firsts.append(len(texts))
        texts += walk.texts
        left_out.merge(walk.left_out.record())
    return rows.sorted(), texts, firsts, left_out


def _walks(shards: list[str], sizes: list[int]) -> Iterator[_Walk]:
    walks = map(_Walk, shards, count(), sizes)
    if files.is_remote(shards[0]):
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            yield from pool.map(_Walk.run, walks)
    else:
        yield from map(_Walk.run, walks)


def _labels(table: Table, texts: list[bytes], firsts: list[int]) -> tuple[NDArray[np.int64], list[str], str]:
    """Label of each image, the class names, and what is wrong with them."""
    if not texts:
        try:
            return *classes(table, ""), ""
        except DataError as error:
            return np.full(len(table), -1, np.int64), [], str(error).removeprefix(": ")
    raw = table.columns["label"]
    which = np.where(raw >= 0, raw + np.array(firsts)[table.columns["shard"]], -1)
    if (missing := which < 0).any():
        name = printable(os.fsdecode(table.name(int(np.argmax(missing)))))
        return which, [], f"{missing.sum()} images have no label in a .cls or .json member, such as {name}"
    used, which = np.unique(which, return_inverse=True)  # a .cls replaces what a .json said
    try:
        values, names = numbered([os.fsdecode(texts[text]) for text in used.tolist()])
    except DataError as error:
        return which, [], str(error).removeprefix(": ")
    return values[which], names, ""


def _refuse_copy(shard: str, table: Table, seen: dict[str, str]) -> None:
    """A shard that is there twice: the same members at the same places, and the same first image."""
    if not len(table):
        return
    other = seen.setdefault(table.fingerprint("start", "size"), shard)
    part = int(table.columns["start"][0]), int(table.columns["size"][0])
    if other != shard and files.read(shard, *part) == files.read(other, *part):
        raise DataError(f"{printable(shard)} holds the same images as {printable(other)}; name only one of them")


def _below_common_folder(table: Table) -> Table:
    """`tar c data` puts `data/` before every name: leave out folders that hold everything, except the innermost."""
    first, last = table.name(0), table.name(len(table) - 1)
    folder = os.path.commonpath([path.rpartition(b"/")[0] for path in (first, last)])
    if not folder:
        return table
    row = 0
    below = table.without_prefix(len(folder) + 1)
    while row < len(table):
        child, slash, _ = below.name(row).partition(b"/")
        if not slash:  # images right in the last of these folders: its name may mean something
            length = len(folder.rpartition(b"/")[0])
            return table.without_prefix(length + 1) if length else table
        row = below.span(child).stop
    return below


class _Walk:
    """Collects the images of one tar."""

    def __init__(self, path: str, number: int, size: int) -> None:
        self.rows = TableBuilder(*_COLUMNS, narrow=("shard", "label"))
        self.texts: dict[bytes, int] = {}
        """Labels as they are written."""
        self.left_out = Tally()
        self._path, self._number, self._size = path, number, size
        self._key = b""
        self._images: dict[bytes, list[int]] = {}
        """Rows of this key by what a label of theirs may be called: `a` and `a.0` of `a.0.jpg`."""
        self._labels: dict[bytes, tuple[int, bool]] = {}
        """Labels of this key by what they are called, and whether they are from a .cls."""
        self._nearest: dict[int, int] = {}
        """How much of the name of a row its label shares."""
        self._window, self._window_start = b"", 0

    def run(self) -> _Walk:
        """Raises DataError when the tar is damaged."""
        what = printable(self._path)
        for member in members(self._read, 0, self._size, what):
            if member.name.lower().endswith(b".tar") and member.kind is None:
                self._inner(member, what)
            else:
                self._add(member.name, member, what)
        return self

    def _inner(self, tar: Member, what: str) -> None:
        folder = tar.name[:-4]
        name = printable(os.fsdecode(tar.name))
        for member in members(self._read, tar.start, tar.start + tar.size, f"{what}, {name} in it,"):
            self._add(folder + b"/" + member.name.removeprefix(b"./"), member, what)

    def _add(self, name: bytes, member: Member, what: str) -> None:
        if hidden(name[name.rfind(b"/") + 1 :]):
            self.left_out.add(HIDDEN, name, doubtful=False)
            return
        lower = name[-5:].lower()
        label = lower.endswith((b".cls", b".json"))
        image = not label and is_image(name, lambda: self._head(member))
        if not image and not label:
            self.left_out.add_file(name)
            return
        if b"//" in name or b"/." in name or name.startswith((b".", b"/")):
            name = _relative(name, what)
        if hidden(name):
            self.left_out.add(HIDDEN, name, doubtful=False)
            return
        folder, slash, base = name.rpartition(b"/")
        key = folder + slash + base.partition(b".")[0]
        if key != self._key:
            self._key, self._images, self._labels, self._nearest = key, {}, {}, {}
        stem = base.rpartition(b".")[0] or base
        if image:
            if member.kind is not None:
                raise DataError(_NOT_PLAIN.format(what, printable(os.fsdecode(name)), member.kind))
            stems = [stem]
            while b"." in stems[-1]:
                stems.append(stems[-1].rpartition(b".")[0])
            nearest = next((each for each in stems if each in self._labels), None)
            label = -1 if nearest is None else self._labels[nearest][0]
            self._nearest[len(self.rows)] = 0 if nearest is None else len(nearest)
            for each in stems:
                self._images.setdefault(each, []).append(len(self.rows))
            self.rows.add(name, self._number, member.start, member.size, label)
        elif member.kind is None and member.size <= _MOST_LABEL:
            self._set_label(stem, lower.endswith(b".cls"), self._read(member.start, member.size))

    def _set_label(self, stem: bytes, cls: bool, payload: bytes) -> None:
        """Of all images whose names go on with a dot; where several labels are theirs, of the longest name: `a.0.jpg`
        has `a.0.cls`, else `a.cls`."""
        text = payload.strip() if cls else _json_label(payload)
        if not text or (not cls and self._labels.get(stem, (0, False))[1]):
            return
        label = self.texts.setdefault(text, len(self.texts))
        self._labels[stem] = label, cls
        for row in self._images.get(stem, ()):
            if self._nearest[row] <= len(stem):
                self._nearest[row] = len(stem)
                self.rows.set("label", row, label)

    def _head(self, member: Member) -> bytes:
        return b"" if member.kind is not None else self._read(member.start, min(member.size, HEAD))

    def _read(self, start: int, length: int) -> bytes:
        first = start - self._window_start
        if first < 0 or first + length > len(self._window):
            window = _REMOTE_WINDOW if files.is_remote(self._path) else _WINDOW
            count = max(0, min(max(length, window), self._size - start))
            self._window, self._window_start, first = files.read(self._path, start, count), start, 0
        return self._window[first : first + length]


_NOT_PLAIN = (
    "{} cannot be used: {} is a {}, not a plain file; "
    "make the tar anew with GNU tar's --hard-dereference --dereference and without --sparse"
)


def _relative(name: bytes, what: str) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts:
        shown = printable(os.fsdecode(name))
        raise DataError(f"{what} cannot be used: its member {shown} lies outside of it; make the tar again")
    return b"/".join(parts)


def _json_label(payload: bytes) -> bytes | None:
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    value = next((fields[key] for key in ("label", "cls") if key in fields), None) if isinstance(fields, dict) else None
    return str(value).encode("utf-8", "surrogatepass") if isinstance(value, int | str) else None


def _labels_of(path: str, count: int, what: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The label of each image from a file with one line for each, in byte order of the names."""
    lines = files.read(files.absolute(path)).decode("utf-8", "surrogateescape").splitlines()
    texts = [line.strip() for line in lines if line.strip()]
    if path.endswith(imagenet.GROUND_TRUTH):
        texts = imagenet.synsets(texts, files.absolute(path))
    if len(texts) != count:
        raise DataError(f"{what} holds {count} images and {printable(path)} {len(texts)} labels; name matching files")
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    values, names = numbered(list(distinct), what=what)
    return values[[distinct[text] for text in texts]], tuple(names)
