import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.checkpoint import Checkpoint, CheckpointStore
from unmask.config.load import check_config, to_dict
from unmask.engines.base import EngineState
from unmask.errors import CheckpointError
from unmask.interchange import read_model

MODEL = {"width": 16, "heads": 2, "image_size": [16, 32]}
CONFIG: dict[str, Any] = {"objective": {"name": "mae", "mask_ratio": 0.5}, "model": MODEL}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointStore(tmp_path / "run" / "checkpoints", keep=3) as store:
        for step, average in [(1, {}), (2, {"norm.bias": np.full(2, 2.5, np.float32)}), (3, {})]:
            state = EngineState({"norm.bias": np.full(2, step, np.float32)}, {}, average)
            store.save(Checkpoint(step, state, {"config": CONFIG, "class_names": ["a", "b"]}))
    return tmp_path / "run"


def test_a_run_gives_its_newest_checkpoint_and_its_config(run: Path):
    found = read_model(str(run))
    assert found.weights["norm.bias"].tolist() == [3, 3]
    assert (found.format, found.config) == ("unmask", to_dict(check_config(CONFIG)))
    assert found.model == to_dict(check_config(CONFIG))["model"]
    assert found.objective == {"mask_ratio": 0.5, "norm_pix_loss": True}
    assert found.class_names == ("a", "b")


def test_a_run_gives_its_newest_good_checkpoint_and_the_average(run: Path, caplog: pytest.LogCaptureFixture):
    (run / "checkpoints" / "step-00000003" / "weights.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "unmask"):
        assert read_model(run).weights["norm.bias"].tolist() == [2.5, 2.5]
    assert "going on from step 2 instead" in caplog.text


def test_a_checkpoint_folder(run: Path):
    assert read_model(run / "checkpoints" / "step-00000001").weights["norm.bias"].tolist() == [1, 1]


def test_a_file_of_weights(run: Path):
    found = read_model(run / "checkpoints" / "step-00000001" / "weights.safetensors")
    assert found.weights["norm.bias"].tolist() == [1, 1]
    assert (found.format, found.model, found.config) == ("safetensors", {}, None)


@pytest.mark.parametrize("meta", [{}, {"config": 1}, {"config": {"model": 1}}, {"config": CONFIG, "class_names": [1]}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, meta: dict[str, Any]):
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(Checkpoint(1, EngineState({"a": np.ones(1, np.float32)}), meta))
    with pytest.raises(CheckpointError, match="does not hold model settings and class names"):
        read_model(tmp_path / "step-00000001")


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run, a checkpoint nor a folder of timm or transformers"):
        read_model(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read"):
        read_model(tmp_path / "x.safetensors")
