"""The cache of an index is used only as it was written, and may be written by several processes at once."""

import multiprocessing
import os
import pickle
import pwd
import tempfile
from pathlib import Path

import numpy as np
import pytest

from unmask.data.sources import Source, open_source
from unmask.data.sources.table import cache_folder


def make_list(path: Path, count: int) -> Path:
    path.write_text(
        "path,label\n" + "".join(f"images/{n:06}.jpg,{['cat', 'dog', 'cow'][n % 3]}\n" for n in range(count))
    )
    return path


def told(source: Source) -> tuple[list[str], list[int], tuple[str, ...] | None]:
    labels = [] if source.labels is None else source.labels.tolist()
    return [source.name(index) for index in range(len(source))], labels, source.class_names


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_no_flipped_bit_is_believed(tmp_path: Path, cache: Path, kind: str):
    if kind == "list":
        spec = make_list(tmp_path / "l.csv", 30)
    else:
        spec = tmp_path / "photos"
        for n in range(12):
            path = spec / "ab"[n % 2] / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * n)
        for folder in (spec, spec / "a", spec / "b"):
            os.utime(folder, (1_600_000_000, 1_600_000_000))
    expected = told(open_source(str(spec), key="k", labels=True))
    (file,) = cache.glob("*.index")
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in (*range(0, 40), *rng.integers(len(content), size=200).tolist()):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        assert told(open_source(str(spec), key="k", labels=True)) == expected
        file.write_bytes(content)


def _first_start(spec: str) -> bool:
    source = open_source(spec, key="k", labels=True)
    return told(pickle.loads(pickle.dumps(source))) == told(source)


def test_first_starts_at_the_same_time(tmp_path: Path):
    spec = make_list(tmp_path / "l.csv", 20_000)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert all(pool.map(_first_start, [str(spec)] * 8, chunksize=1))


def test_a_user_of_whom_nothing_is_known_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in containers that run under a bare number: no HOME, and no entry in passwd."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("UNMASK_CACHE")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"unmask-{os.getuid()}"
    expected = told(open_source(str(make_list(tmp_path / "l.csv", 30)), key="k", labels=True))
    assert list((tmp_path / f"unmask-{os.getuid()}").iterdir())
    assert told(open_source(str(tmp_path / "l.csv"), key="k", labels=True)) == expected
