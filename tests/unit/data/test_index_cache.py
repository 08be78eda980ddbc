"""The cache of an index is used only as it was written, and may be written by several processes at once."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from unmask.data.sources import Source, open_source


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
        import os

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
