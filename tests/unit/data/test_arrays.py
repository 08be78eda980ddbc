import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.data.sources import Source, open_source, subset
from unmask.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)


def open_file(path: Path, *, labels: bool = True) -> Source:
    return open_source(str(path), key="data.train", labels=labels)


def test_npy_is_mapped_and_labels_lie_beside(tmp_path: Path):
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.array([2, 0, 1, 0, 1, 2]))
    source = open_file(tmp_path / "x.npy")
    assert len(source) == 6
    data = source.read(3)
    assert isinstance(data, np.memmap)
    assert np.array_equal(data, IMAGES[3])
    assert source.name(3) == "x.npy/3"
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1, 0, 1, 2]
    assert source.class_names == ("0", "1", "2")
    assert subset(source, 1, 0).labels is not None
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert np.array_equal(again.read(5), IMAGES[5])
    assert again.fingerprint() == source.fingerprint()
    with pytest.raises(IndexError):
        source.read(-1)


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_npz(tmp_path: Path, names: tuple[str, str]):
    np.savez(tmp_path / "d.npz", **{names[0]: IMAGES, names[1]: np.array(["b", "a"] * 3)})
    source = open_file(tmp_path / "d.npz")
    assert source.class_names == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0] * 3
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(source)).read(4)), IMAGES[4])


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (IMAGES[..., 0], (5, 4, 1)),
        (IMAGES.astype(np.uint16) * 257, (5, 4, 3)),
        (RNG.random((6, 5, 4, 12), np.float32), (5, 4, 12)),
    ],
)
def test_types_and_channels(tmp_path: Path, images: Any, shape: tuple[int, ...]):
    np.save(tmp_path / "x.npy", images)
    data = np.asarray(open_file(tmp_path / "x.npy", labels=False).read(1))
    assert (data.shape, data.dtype) == (shape, images.dtype)
    assert np.array_equal(data.ravel(), images[1].ravel())


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("fired"),)


def test_pickles_in_arrays_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.array([Payload()] * 2, object))
    np.savez(tmp_path / "x.npz", images=np.array([Payload()] * 2, object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="is not a plain"):
            open_file(tmp_path / name, labels=False)
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.array([Payload()] * 6, object))
    with pytest.raises(DataError, match="is not a plain"):
        open_file(tmp_path / "x.npy")
    assert not (tmp_path / "fired").exists()


def test_unusable_arrays_are_refused(tmp_path: Path):
    path = tmp_path / "x.npy"
    for images in (IMAGES.astype(np.float64), IMAGES[0, 0], IMAGES[:0]):
        np.save(path, images)
        with pytest.raises(DataError, match="uint8, uint16 or float32 is needed"):
            open_file(path, labels=False)
    np.save(path, IMAGES)
    with pytest.raises(DataError, match=r"labels\.npy cannot be read"):
        open_file(path)
    for labels in (np.zeros(5, int), np.zeros(6), -np.ones(6, int)):
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(DataError, match="labels"):
            open_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is not a plain"):
        open_file(path, labels=False)
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match="is not a plain"):
        open_file(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", pictures=IMAGES)
    with pytest.raises(DataError, match="holds no array called images"):
        open_file(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 3, 32, 32), np.uint8), np.arange(4), r"images are \(4, 3, 32, 32\), channels first"),
        (np.zeros((4, 1, 28, 28), np.float32), np.arange(4), "channels first"),
        (np.zeros((4, 4, 16, 24), np.uint16), np.arange(4), "channels first"),
        (np.zeros((4, 8, 8), np.uint8), np.array([b"a", b"\xff", b"c", b"d"]), "labels are bytes that are not UTF-8"),
        (np.zeros((4, 8, 8), np.uint8), np.array(["a", "", "c", "d"]), "a label is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, images: Any, labels: Any, message: str):
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    with pytest.raises(DataError, match=message):
        open_source(f"{tmp_path}/set.npz", key="data.train", labels=True)
