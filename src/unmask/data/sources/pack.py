"""A folder that `unmask pack` wrote: plain tars, the index of their images, and a manifest written last.

The tars can be read by anything that reads tars or WebDataset. The index keeps what tar members cannot: the names
and the order of any source, its class names, several classes per image. With it, a pack opens without reading the tars.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from unmask.data.sources import files
from unmask.data.sources.base import printable
from unmask.data.sources.labels import TableLabels
from unmask.data.sources.table import Table, cached
from unmask.errors import DataError

MANIFEST = "manifest.json"
INDEX = "index.parquet"
PARTS = ".parts"
"""What is known of the shards while a pack is written."""
BAD = "bad_images.txt"
FORMAT = "unmask pack"
VERSION = 1


Count = Annotated[int, Field(ge=0, lt=2**63)]


class Shard(BaseModel):
    name: Annotated[str, Field(pattern=r"^[0-9]+\.tar$")]
    images: Count
    bytes: Count
    sha256: str


class IndexFile(BaseModel):
    name: Literal["index.parquet"]
    bytes: Count
    sha256: str


class Manifest(BaseModel):
    """What a manifest must hold; it is checked, because packs are downloaded from strangers."""

    images: Count
    class_names: list[str] | None
    labels_in_names: bool
    settings: dict[str, Any]
    source: dict[str, Any]
    index: IndexFile
    shards: list[Shard]


@dataclass(frozen=True, eq=False)
class PackSource(TableLabels):
    """The images of a pack, with the names, classes and order they had in its source."""

    shards: tuple[str, ...]
    versions: tuple[str, ...]
    """SHA-256 of each shard, as the manifest has it."""
    index: Table
    """Columns shard, start, size, label_end, and `label`: the classes of all images one after the other."""
    class_names: tuple[str, ...] | None
    labels_in_names: bool
    """Whether the classes are the images' first folders."""

    @classmethod
    def open(cls, folder: str, manifest: dict[str, Any], *, what: str, labels: bool) -> PackSource:
        """Raises DataError when files are missing or damaged or, with `labels`, when the pack has none."""
        folder = files.absolute(folder)
        identity = ["pack", *(manifest[key] for key in ("images", "index", "shards", "class_names"))]
        index = cached(identity, lambda: read_index(folder, manifest))
        if labels and manifest["class_names"] is None:
            raise DataError(f"{what} was packed from images without labels; pack them again from class folders")
        shards = tuple(f"{folder}/{shard['name']}" for shard in manifest["shards"])
        if not files.is_remote(folder):  # from afar this would take a request each
            for path, shard in zip(shards, manifest["shards"], strict=True):
                if (size := files.state(path).size) != shard["bytes"]:
                    raise DataError(f"{printable(path)} has {size} bytes, not {shard['bytes']}; copy or pack it again")
        names = tuple(manifest["class_names"]) if labels else None
        return cls(
            shards, tuple(shard["sha256"] for shard in manifest["shards"]), index, names, manifest["labels_in_names"]
        )

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes:
        shard, start, size = (int(self.index.columns[key][index]) for key in ("shard", "start", "size"))
        return files.read(self.shards[shard], start, size, version=self.versions[shard])

    def name(self, index: int) -> str:
        return os.fsdecode(self.index.name(index))

    def fingerprint(self) -> str:
        """Equal to that of a folder, or of tars, of the same files."""
        labelled = self.labels is not None and not self.labels_in_names
        return self.index.fingerprint("size", *(["label"] if labelled else []))


def manifest_path(folder: str) -> str:
    return f"{files.absolute(folder)}/{MANIFEST}"


def is_unfinished_pack(folder: str) -> bool:
    """Whether `unmask pack` was interrupted there: what it has written so far are tars like any others."""
    return files.exists(f"{files.absolute(folder)}/{PARTS}/job.json")


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest of the pack in `folder`; None where there is no pack. Raises DataError when it is damaged."""
    path = manifest_path(folder)
    if not files.exists(path):
        return None
    try:
        manifest: Any = json.loads(files.read(path))
    except (ValueError, RecursionError):
        raise DataError(f"{printable(path)} is not JSON; pack again, or remove it if it is not from a pack") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None  # manifest.json is a common name
    if manifest.get("version") != VERSION:
        raise DataError(f"{printable(path)} is of version {manifest.get('version')}, not {VERSION}; update unmask")
    try:
        Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise DataError(f"{printable(path)} is damaged: {where}: {wrong['msg']}; copy or pack it again") from None
    return manifest


def read_index(folder: str, manifest: dict[str, Any]) -> Table:
    """The index of the pack in `folder`. Raises DataError when it is not the one that the manifest describes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{folder}/{manifest['index']['name']}"
    data = files.read(path)
    if hashlib.sha256(data).hexdigest() != manifest["index"]["sha256"]:
        raise DataError(f"{printable(path)} is damaged: its checksum is not that of {MANIFEST}; copy or pack it again")
    try:
        rows = pq.read_table(BytesIO(data), schema=_schema()).combine_chunks()
        rows.validate(full=True)
        labels = rows["labels"].combine_chunks()
        if any(column.null_count for column in (*rows.columns, labels.flatten())):
            raise ValueError("a column or a value is missing")
        columns = {key: rows[key].to_numpy().astype(np.int64) for key in ("shard", "start", "size")}
        columns["label_end"] = labels.offsets.to_numpy().astype(np.int64)[1:]
        columns["label"] = labels.flatten().to_numpy().astype(np.int64)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not the index of a pack: {str(error).partition(chr(10))[0]}; pack again") from None
    if (problem := _problem(columns, manifest)) is not None:
        raise DataError(f"{path} does not go with {MANIFEST}: {problem}; copy or pack it again")
    empty = Table(np.zeros(0, np.uint8), np.zeros(0, np.int64), {})
    return empty.renamed(rows["name"].combine_chunks(), columns)


def _problem(columns: dict[str, NDArray[np.int64]], manifest: dict[str, Any]) -> str | None:
    """What is impossible in these rows, if anything."""
    shard, start, size, label = (columns[key] for key in ("shard", "start", "size", "label"))
    if len(shard) != manifest["images"]:
        return f"it has {len(shard)} images, not {manifest['images']}"
    ends = np.array([shard["bytes"] for shard in manifest["shards"]], np.int64)
    if ((shard < 0) | (shard >= len(ends))).any():
        return "images lie in shards that are not there"
    if ((start < 0) | (size < 0) | (size > ends[shard]) | (start > ends[shard] - size)).any():
        return "images lie beyond the ends of their shards"
    if ((label < 0) | (label >= len(manifest["class_names"] or ()))).any():
        return "images are of classes that are not there"
    return None


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "name": pa.large_binary(),
            "shard": pa.int32(),
            "start": pa.int64(),
            "size": pa.int64(),
            "labels": pa.list_(pa.int32()),
        }
    )


def index_bytes(
    names: Table, rows: NDArray[np.int64], labels: NDArray[np.int64], label_ends: NDArray[np.int64]
) -> bytes:
    """The index of images given as (N, 4) shard, number in the source, first byte, bytes, as a Parquet file.

    `names` are those of all of the source's images, `labels` the classes of these, one after the other.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard, number, start, size = rows.T
    offsets = np.concatenate([[0], label_ends]).astype(np.int32)
    arrays = [
        names.take(number).arrow(),
        pa.array(shard, pa.int32()),
        pa.array(start, pa.int64()),
        pa.array(size, pa.int64()),
        pa.ListArray.from_arrays(offsets, pa.array(labels, pa.int32())),
    ]
    table = pa.Table.from_arrays(arrays, schema=_schema())
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
