"""Packs on an object store: a server that speaks the S3 protocol."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from runs import start
from unmask.data.packs.verify import verify_pack
from unmask.data.packs.write import pack
from unmask.data.sources import files, open_source, remote
from unmask.errors import ConfigError, DataError

SMALL = 15_000
"""Bytes of a shard, so that there are several."""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def keys(store: Any, folder: str) -> list[str]:
    found = store.list_objects_v2(Bucket="bucket", Prefix=f"{folder}/")
    return [entry["Key"] for entry in found.get("Contents", [])]


def objects(store: Any, folder: str) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{folder}/"): store.get_object(Bucket="bucket", Key=key)["Body"].read()
        for key in keys(store, folder)
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_are_those_of_a_local_pack(store: Any, colours: Path, tmp_path: Path, cache: Path) -> None:
    (colours / "odd" / "07.jpg").write_bytes(b"no image")
    for out in (tmp_path / "here", "s3://bucket/there"):
        pack(colours, out, shard_size=SMALL, max_bad_share=0.05)
    assert len(contents(tmp_path / "here")) > 5
    assert objects(store, "there") == contents(tmp_path / "here")
    here, there = (
        open_source(f"{out}", key="data.train", labels=True) for out in (tmp_path / "here", "s3://bucket/there")
    )
    assert [there.read(i) for i in range(39)] == [here.read(i) for i in range(39)]
    assert [path for path in (cache / "upload").rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_it_goes_on_where_it_ended(
    store: Any, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(colours, tmp_path / "whole", shard_size=SMALL)
    image = colours / "odd" / "07.jpg"
    data = image.read_bytes()
    image.write_bytes(bytes(len(data)))
    with pytest.raises(DataError, match=r"they are listed in s3://bucket/stopped/bad_images\.txt"):
        pack(colours, "s3://bucket/stopped", shard_size=SMALL)
    image.write_bytes(data)
    before = objects(store, "stopped")
    assert {"bad_images.txt", ".parts/job.json", ".parts/000000.json", "000000.tar"} <= before.keys()
    with pytest.raises(ConfigError, match=r"short-side None, not 20"):
        pack(colours, "s3://bucket/stopped", shard_size=SMALL, short_side=20)
    store.put_object(Bucket="bucket", Key="stopped/000001.tar", Body=b"cut")  # what other stores may leave
    pack(colours, "s3://bucket/stopped", shard_size=SMALL)
    assert "of 40 images are done already" in capsys.readouterr().out
    assert objects(store, "stopped") == contents(tmp_path / "whole")
    pack(colours, "s3://bucket/stopped", shard_size=SMALL)
    assert "s3://bucket/stopped is complete" in capsys.readouterr().out


def test_killed_it_goes_on(store: Any, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.ENVIRONMENT", dict(os.environ))  # with this store and cache
    process = start("pack", colours, "s3://bucket/killed", "--shard-size", f"{SMALL}", cwd=tmp_path)
    while "killed/.parts/000001.json" not in keys(store, "killed") and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "killed/manifest.json" not in keys(store, "killed")
    pack(colours, "s3://bucket/killed", shard_size=SMALL)
    pack(colours, tmp_path / "whole", shard_size=SMALL)
    assert objects(store, "killed") == contents(tmp_path / "whole")


def test_verify_names_what_is_damaged(store: Any, colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(colours, "s3://bucket/damaged", shard_size=SMALL)
    verify_pack("s3://bucket/damaged")
    flipped = bytearray(objects(store, "damaged")["000001.tar"])
    flipped[5000] ^= 1
    store.put_object(Bucket="bucket", Key="damaged/000001.tar", Body=bytes(flipped))
    store.delete_object(Bucket="bucket", Key="damaged/000002.tar")
    capsys.readouterr()
    with pytest.raises(DataError, match=r"2 of \d+ files of s3://bucket/damaged are damaged"):
        verify_pack("s3://bucket/damaged")
    shown = capsys.readouterr().out
    assert "s3://bucket/damaged/000001.tar is damaged: its checksum" in shown
    assert "s3://bucket/damaged/000002.tar cannot be read: no such file" in shown


def test_what_is_there_is_not_overwritten(store: Any, colours: Path) -> None:
    store.put_object(Bucket="bucket", Key="mine/photo.jpg", Body=b"photo")
    with pytest.raises(ConfigError, match="s3://bucket/mine is not empty and holds no pack"):
        pack(colours, "s3://bucket/mine")
    assert objects(store, "mine") == {"photo.jpg": b"photo"}
    with pytest.raises(DataError, match=r"s3://nobucket/pack/\.parts/job\.json cannot be written: no such"):
        pack(colours, "s3://nobucket/pack")


@pytest.mark.parametrize(("failures", "attempts"), [(2, 3), (99, remote.ATTEMPTS)])
def test_failed_sends_are_repeated(failures: int, attempts: int, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    send: Any = MemoryFileSystem.put_file
    calls: list[str] = []

    def fails(self: Any, here: str, there: str) -> None:
        calls.append(there)
        if len(calls) <= failures:
            raise ConnectionError("reset by peer")
        send(self, here, there)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fails)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "store", {})
        if failures < remote.ATTEMPTS:
            with remote.written("memory://folder/file") as aside:
                aside.write_bytes(b"content")
            assert files.read("memory://folder/file") == b"content"
        else:
            with (
                pytest.raises(DataError, match=r"file cannot be written, 5 attempts: ConnectionError: reset"),
                remote.written("memory://folder/file") as aside,
            ):
                aside.write_bytes(b"content")
            assert not files.exists("memory://folder/file")
    assert len(calls) == attempts
    assert not any((cache / "upload").iterdir())
