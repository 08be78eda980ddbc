import json
import logging
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from checkpoints import best_of, save_durably
from unmask.checkpoint import Checkpoint, CheckpointStore, load_newest, read_checkpoint, read_weights
from unmask.checkpoint.folder import folder_name
from unmask.engines.base import EngineState
from unmask.errors import CheckpointError


def make(step: int, *, ema: bool = True, optimizer: bool = True) -> Checkpoint:
    rng = np.random.default_rng(step)
    weights = {"cls_token": rng.normal(size=(1, 1, 4)).astype(np.float32), "norm.bias": np.float32([step, 1e-45, -0.0])}
    moments = {f"exp_avg.{name}": value * 2 for name, value in weights.items()}
    averages = {name: value + 1 for name, value in weights.items()}
    state = EngineState(
        weights, moments if optimizer else {}, averages if ema else {}, scalars={"updates": float(step)}
    )
    return Checkpoint(step, state, {"config": {"lr": 0.1 + 0.2, "name": "größe"}, "tiny": 5e-324})


def assert_same(actual: Checkpoint, expected: Checkpoint) -> None:
    assert (actual.step, actual.meta, actual.state.scalars) == (expected.step, expected.meta, expected.state.scalars)
    for group in ("weights", "optimizer", "ema"):
        ours, theirs = getattr(actual.state, group), getattr(expected.state, group)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert tensor.tobytes() == theirs[name].tobytes()
            assert tensor.shape == theirs[name].shape
            assert tensor.flags.writeable  # torch.from_numpy warns otherwise


def test_round_trip_is_exact(tmp_path: Path):
    with CheckpointStore(tmp_path / "checkpoints", keep=1) as store:
        save_durably(store, make(7))
        assert_same(store.load(), make(7))
        assert_same(read_checkpoint(store.root / folder_name(7)), make(7))


def test_special_floats_and_memory_layouts_survive(tmp_path: Path):
    weights = {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "scalar": np.array(2.5, np.float32)}
    state = EngineState(weights, scalars={"loss_scale": 65536.0, "x": 0.1, "inf": math.inf})
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, Checkpoint(1, state, {}))
        loaded = store.load().state
    assert loaded.scalars == state.scalars
    np.testing.assert_array_equal(loaded.weights["t"], weights["t"])
    assert loaded.weights["scalar"].shape == ()


def test_folder_holds_only_what_is_not_empty(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, make(1, ema=False, optimizer=False))
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {"weights.safetensors", "state.json", "checksums.json"}
    assert_same(read_checkpoint(tmp_path / "step-00000001"), make(1, ema=False, optimizer=False))


def test_save_returns_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gate, fsync = threading.Event(), os.fsync
    with CheckpointStore(tmp_path, keep=1) as store:
        monkeypatch.setattr(os, "fsync", lambda descriptor: gate.wait(10) and fsync(descriptor))
        store.save(make(1))
        assert store.steps() == []
        gate.set()
        store.wait()
        assert store.steps() == [1]


def test_keeps_the_newest_and_the_best(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=2) as store:
        for step, metric in [(1, 0.1), (2, 0.9), (3, 0.9), (4, math.nan), (5, None), (6, 0.2)]:
            store.save(make(step), metric=metric)
        store.wait()
        assert store.steps() == [2, 5, 6]
        assert best_of(store) == tmp_path / "step-00000002"
    with CheckpointStore(tmp_path, keep=1) as store:  # a resumed run knows the best from the disk
        save_durably(store, make(7), metric=0.95)
        assert store.steps() == [7]
        assert best_of(store) == tmp_path / "step-00000007"


def test_best_is_decided_by_metric_and_step_not_by_time(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=9) as store:
        for step in (1, 2, 3):
            save_durably(store, make(step), metric=1.0)
        os.utime(tmp_path / "step-00000001", (2e9, 2e9))
        os.utime(tmp_path / "step-00000003", (1, 1))
        assert best_of(store) == tmp_path / "step-00000001"
        assert store.load().step == 3


def test_no_metric_no_best(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        assert best_of(store) is None
        save_durably(store, make(1))
        assert best_of(store) is None


def test_same_step_twice_is_harmless(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, make(1), metric=0.5)
        save_durably(store, make(1))
        assert store.steps() == [1]
        assert_same(store.load(), make(1))
        assert best_of(store) is not None


def test_falls_back_to_the_previous_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with CheckpointStore(tmp_path, keep=3) as store:
        for step in (1, 2, 3):
            store.save(make(step))
        store.wait()
        (tmp_path / "step-00000003" / "weights.safetensors").unlink()
        (tmp_path / "step-00000002" / "state.json").write_bytes(b"")
        with caplog.at_level(logging.WARNING, "unmask"):
            assert_same(store.load(), make(1))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/step-00000003/weights.safetensors is missing; going on from step 1 instead",
        f"{tmp_path}/step-00000002/state.json is damaged: its SHA-256 is not the one in checksums.json; "
        "going on from step 1 instead",
    ]


def test_after_a_fall_back_the_damaged_step_is_replaced_and_never_displaces_a_good_one(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, make(20))
        (tmp_path / "step-00000020" / "ema.safetensors").write_bytes(b"")
        save_durably(store, make(10))
        assert store.steps() == [10, 20]
        assert store.load().step == 10
        save_durably(store, make(20))
        assert store.steps() == [20]
        assert_same(store.load(), make(20))


def test_none_good_lists_each_and_why(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no good checkpoint in .*: it holds none"):
        load_newest(tmp_path)
    with CheckpointStore(tmp_path, keep=2) as store:
        for step in (1, 2):
            save_durably(store, make(step))
            (tmp_path / f"step-{step:08d}" / "checksums.json").unlink()
        with pytest.raises(
            CheckpointError, match=r"step-00000002/checksums.json is missing; .*step-00000001/"
        ) as raised:
            store.load()
    assert "\n" not in str(raised.value)


def test_weights_alone_prefer_the_average(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=2) as store:
        store.save(make(1))
        save_durably(store, make(2, ema=False))
    folder = tmp_path / "step-00000001"
    (folder / "optimizer.safetensors").write_bytes(b"not needed here")
    np.testing.assert_array_equal(read_weights(folder)["cls_token"], make(1).state.ema["cls_token"])
    np.testing.assert_array_equal(
        read_weights(folder, prefer_ema=False)["cls_token"], make(1).state.weights["cls_token"]
    )
    second = read_weights(tmp_path / "step-00000002")
    np.testing.assert_array_equal(second["cls_token"], make(2).state.weights["cls_token"])
    (folder / "ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is damaged"):
        read_weights(folder)


def test_meta_is_a_snapshot_and_must_be_json(tmp_path: Path):
    checkpoint = make(1)
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(checkpoint)
        checkpoint.meta["late"] = True
        assert "late" not in store.load().meta
        with pytest.raises(TypeError):
            store.save(Checkpoint(2, checkpoint.state, {"path": tmp_path}))


def test_construction_cleans_left_overs_and_reading_does_not(tmp_path: Path):
    left_over = tmp_path / ".tmp-step-00000002"
    with CheckpointStore(tmp_path, keep=1) as store:
        save_durably(store, make(1))
    left_over.mkdir()
    (left_over / "weights.safetensors").write_bytes(b"half")
    assert load_newest(tmp_path).step == 1
    assert left_over.exists()
    CheckpointStore(tmp_path, keep=1).close()
    assert not left_over.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "weights.safetensors/../state.json", "extra.bin"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str):
    folder = sealed(tmp_path)
    checksums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**checksums, name: "0" * 64}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match=r"checksums\.json is damaged"):
        read_checkpoint(folder)


def sealed(root: Path, **files: bytes) -> Path:
    """A checkpoint whose files were exchanged by someone who knows how to compute checksums."""
    import hashlib

    with CheckpointStore(root, keep=1) as store:
        save_durably(store, make(1))
    folder = root / "step-00000001"
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    names = sorted(path.name for path in folder.iterdir() if path.name != "checksums.json")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n")
    return folder


def header(content: str, data: bytes = b"") -> bytes:
    return len(content).to_bytes(8, "little") + content.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header("{"),
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}', bytes(4)),
        header(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        header('{"a":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        header('{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    ],
)
def test_hostile_safetensors_with_good_checksums_are_refused(tmp_path: Path, content: bytes):
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        read_checkpoint(sealed(tmp_path, weights__safetensors=content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"step":1,"metric":null,"scalars":{},"meta":[]}',
        b'{"step":1.5,"metric":null,"scalars":{},"meta":{}}',
        b'{"step":2,"metric":null,"scalars":{},"meta":{}}',
        b'{"step":1,"metric":null,"scalars":{"updates":"1"},"meta":{}}',
        b'{"step":1,"metric":"best","scalars":{},"meta":{}}',
        b'{"step":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ],
)
def test_hostile_state_with_good_checksums_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_checkpoint(sealed(tmp_path, state__json=content))


def test_a_special_file_is_not_opened(tmp_path: Path):
    folder = sealed(tmp_path)
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")  # opening it would block for ever
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        read_checkpoint(folder)
