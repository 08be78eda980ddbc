"""`unmask pack --verify`: whether a pack is what its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.pack import manifest_path, read_index, read_manifest
from unmask.errors import DataError
from unmask.report.progress import progress, say

_CHUNK = 1 << 24


def verify_pack(folder: str | Path) -> None:
    """Read all of a pack, on disk or behind a URL, and print a line for each file that is missing or damaged.

    Raises DataError when there is one, or `folder` is no pack.
    """
    folder = files.absolute(str(folder))
    if (manifest := read_manifest(folder)) is None:
        raise DataError(f"{printable(folder)} holds no complete pack: {manifest_path(folder)} is missing; pack again")
    flaws = [flaw for flaw in _flaws(folder, manifest) if not say(flaw)]
    total = len(manifest["shards"]) + 1
    if flaws:
        raise DataError(f"{len(flaws)} of {total} files of {printable(folder)} are damaged; copy or pack them again")
    say(f"{folder}: {manifest['images']} images in {total - 1} shards, all as packed")


def _flaws(folder: str, manifest: dict[str, Any]) -> Iterator[str]:
    counts = None
    try:
        counts = np.bincount(read_index(folder, manifest).columns["shard"], minlength=len(manifest["shards"]))
    except DataError as error:
        yield str(error)
    with progress("verify", total=len(manifest["shards"]), unit="shard") as bar:
        for number, shard in enumerate(manifest["shards"]):
            path = f"{folder}/{shard['name']}"
            try:
                digest = _sha256(path, shard["bytes"])
            except DataError as error:
                yield str(error)
            else:
                if digest != shard["sha256"]:
                    yield f"{printable(path)} is damaged: its checksum is not that of the manifest"
                elif counts is not None and counts[number] != shard["images"]:
                    yield f"{printable(path)} has {shard['images']} images, but {counts[number]} in the index"
            bar.update()


def _sha256(path: str, size: int) -> str:
    if (found := files.state(path).size) != size:
        raise DataError(f"{printable(path)} is damaged: it has {found} bytes, not {size}")
    digest = hashlib.sha256()
    for start in range(0, size, _CHUNK):
        digest.update(files.read(path, start, min(_CHUNK, size - start)))
    return digest.hexdigest()
