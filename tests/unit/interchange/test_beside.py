"""What stands beside a run that --config_path started: MindSpore's files, which come and go with its checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints import save_durably
from engine_cases import objective_of
from mindspore_models import assert_equal, mindspore, needs_mindspore
from unmask.checkpoint.folder import Checkpoint
from unmask.checkpoint.store import CheckpointStore
from unmask.config.load import check_config, to_dict
from unmask.engines.base import EngineState, Tensors
from unmask.errors import CheckpointError
from unmask.interchange import read_model
from unmask.interchange.beside import RECORD, write_beside

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TINY |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def checkpoint(step: int, images: int = 30, batch: int = 10) -> Checkpoint:
    config = to_dict(check_config({"model": TINY, "train": {"batch_size": batch}}))
    data = {"images": images, "fingerprint": "", "earlier": []}
    weights = dict(objective_of("mae", **TINY).initial_weights(step))
    return Checkpoint(step, EngineState(weights), {"config": config, "class_names": None, "data": data})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.glob("*.ckpt"))


def weights(path: Path) -> Tensors:
    return dict(read_model(path).weights)


@pytest.mark.parametrize("prefix", ["ViT-B-P16", "MaeFintune-1_2", "größe"])
def test_they_are_named_by_epoch_and_step_and_pruned_like_the_others(tmp_path: Path, prefix: str):
    folder = tmp_path / prefix
    with CheckpointStore(folder / "checkpoints", keep=2, saved=lambda: write_beside(folder)) as store:
        for step in (3, 4, 6, 9):
            save_durably(store, checkpoint(step), metric=1 if step == 4 else 0)
    assert files(folder) == [f"{prefix}-{name}.ckpt" for name in ("2_1", "2_3", "3_3")]  # the best, the last two
    for step, name in ((4, "2_1"), (9, "3_3")):
        assert_equal(weights(tmp_path / f"{prefix}-{name}.ckpt"), weights(folder / "checkpoints" / f"step-{step:08d}"))


def test_what_is_gone_or_was_never_written_comes_again_and_a_stranger_s_file_stays(tmp_path: Path, caplog):
    folder = tmp_path / "run"
    (tmp_path / "run-1_3.ckpt").write_bytes(b"of the model zoo")
    (tmp_path / "run-8_312.ckpt").write_bytes(b"of the model zoo")
    with CheckpointStore(folder / "checkpoints", keep=3) as store:
        for step in (3, 6):
            save_durably(store, checkpoint(step))
        write_beside(folder)
        assert "run-1_3.ckpt is there and not of this run" in caplog.text
        assert files(folder) == ["run-1_3.ckpt", "run-2_3.ckpt", "run-8_312.ckpt"]
        (tmp_path / "run-2_3.ckpt").unlink()
        save_durably(store, checkpoint(9))
        write_beside(folder)
    assert files(folder) == ["run-1_3.ckpt", "run-2_3.ckpt", "run-3_3.ckpt", "run-8_312.ckpt"]
    assert (tmp_path / "run-1_3.ckpt").read_bytes() == b"of the model zoo"


def test_a_hostile_record_removes_nothing(tmp_path: Path):
    folder, victims = tmp_path / "run", [tmp_path / "other-1_1.ckpt", tmp_path / "up" / "run-1_1.ckpt", tmp_path / "x"]
    with CheckpointStore(folder / "checkpoints", keep=1) as store:
        save_durably(store, checkpoint(3))
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_bytes(b"")
    (folder / RECORD).write_text(json.dumps({"other-1_1.ckpt": 1, "up/run-1_1.ckpt": 1, "../x": 1, str(victims[2]): 1}))
    write_beside(folder)
    assert all(victim.exists() for victim in victims)
    (folder / RECORD).write_text("{")
    write_beside(folder)
    assert (tmp_path / "run-1_3.ckpt").exists()


def test_a_damaged_checkpoint_has_none(tmp_path: Path):
    folder = tmp_path / "run"
    with CheckpointStore(folder / "checkpoints", keep=2) as store:
        for step in (3, 6):
            save_durably(store, checkpoint(step))
    (folder / "checkpoints" / "step-00000003" / "weights.safetensors").write_bytes(b"cut")
    write_beside(folder)
    assert files(folder) == ["run-2_3.ckpt"]


def test_a_disk_that_takes_no_more_is_an_error(tmp_path: Path):
    folder = tmp_path / "run"
    with CheckpointStore(folder / "checkpoints", keep=2, saved=lambda: write_beside(folder)) as store:
        (tmp_path / ".tmp-run-1_3.ckpt").mkdir()  # where it would be written aside
        with pytest.raises(CheckpointError, match=r"cannot write .*run-1_3\.ckpt"):
            save_durably(store, checkpoint(3))
        assert store.steps() == [3]


def test_naming_one_that_is_gone_names_the_run(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"run-1_3\.ckpt does not exist: .* Name the run, {tmp_path}/run$"):
        read_model(tmp_path / "run-1_3.ckpt")
    with pytest.raises(CheckpointError, match=r"other-1_3\.ckpt does not exist$"):
        read_model(tmp_path / "other-1_3.ckpt")


@needs_mindspore
def test_mindspore_loads_them(tmp_path: Path):
    folder = tmp_path / "run"
    with CheckpointStore(folder / "checkpoints", keep=1, saved=lambda: write_beside(folder)) as store:
        save_durably(store, checkpoint(3))
    np.savez(tmp_path / "expected.npz", **weights(folder))
    mindspore(
        """
loaded = ms.load_checkpoint(folder + "/run-1_3.ckpt")
for name, array in np.load(folder + "/expected.npz").items():
    theirs = name.replace(".weight", ".gamma").replace(".bias", ".beta") if "norm" in name else name
    np.testing.assert_array_equal(loaded[theirs].asnumpy(), array)
""",
        tmp_path,
    )
