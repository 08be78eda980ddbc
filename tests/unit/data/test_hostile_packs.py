"""Packs of strangers (case 13): whatever a manifest and an index claim, a pack is read as it should be or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmask.data.packs.verify import verify_pack
from unmask.data.packs.write import pack
from unmask.data.sources import open_source
from unmask.errors import DataError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def packed(colours: Path, tmp_path: Path) -> Path:
    pack(colours, tmp_path / "pack", shard_size=15_000)
    open_source(str(tmp_path / "pack"), key="data.train", labels=True)
    return tmp_path / "pack"


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        open_source(str(folder), key="data.train", labels=True)
    with pytest.raises(DataError):
        verify_pack(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(folder: Path, change: Change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def shard(key: str, value: object) -> Change:
    return lambda manifest: manifest["shards"][0].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        shard("name", "../outside.tar"),
        shard("name", "/etc/hostname"),
        shard("name", "000000.tar/../../outside.tar"),
        shard("bytes", -1),
        shard("bytes", 2**80),
        shard("bytes", "10"),
        shard("sha256", None),
        lambda manifest: manifest.update(shards=None),
        lambda manifest: manifest.update(shards=[[]]),
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest.pop("index"),
        lambda manifest: manifest["index"].update(name="../pack/index.parquet"),
        lambda manifest: manifest["index"].update(sha256="0" * 64),
        lambda manifest: manifest.update(class_names="cats"),
        lambda manifest: manifest.update(class_names=[]),
        lambda manifest: manifest.update(images=1),
        lambda manifest: manifest.update(images=True),
    ],
)
def test_manifests_that_lie_are_refused(packed: Path, change: Change) -> None:
    (packed.parent / "outside.tar").write_bytes((packed / "000000.tar").read_bytes())
    rewrite(packed, change)
    assert str(packed) in refused(packed)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: with_column(rows, "shard", [99] * len(rows)),
        lambda rows: with_column(rows, "shard", [-1] * len(rows)),
        lambda rows: with_column(rows, "shard", [None] * len(rows)),
        lambda rows: with_column(rows, "start", [-512] * len(rows)),
        lambda rows: with_column(rows, "start", [2**63 - 1] * len(rows)),
        lambda rows: with_column(rows, "size", [2**62] * len(rows)),
        lambda rows: with_column(rows, "size", [-1] * len(rows)),
        lambda rows: with_column(rows, "labels", [[7]] * len(rows)),
        lambda rows: with_column(rows, "labels", [[-1]] * len(rows)),
        lambda rows: with_column(rows, "labels", [[None]] * len(rows)),
        lambda rows: with_column(rows, "name", [None] * len(rows)),
        lambda rows: rows.drop_columns(["size"]),
        lambda rows: rows.set_column(1, "shard", pa.array(["zero"] * len(rows))),
        lambda rows: rows.slice(1),
    ],
)
def test_indices_that_lie_are_refused(packed: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = packed / "index.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    data = path.read_bytes()
    rewrite(packed, lambda manifest: manifest["index"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    assert "index.parquet" in refused(packed)


def test_an_index_that_is_no_parquet_file_is_refused(packed: Path) -> None:
    data = b"PAR1" + bytes(100) + b"PAR1"
    (packed / "index.parquet").write_bytes(data)
    rewrite(packed, lambda manifest: manifest["index"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    assert "is not the index of a pack" in refused(packed)
