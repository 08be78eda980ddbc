"""The container of the official code, against torch itself."""

import argparse
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import objective_of
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.facebook import read_state_dict
from unmask.interchange.torch_file import TorchFile

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

SMALL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "channels": 3, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "num_classes": 3,
}  # fmt: skip


def weights_of(objective: str, **fields: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = objective_of(objective, **SMALL | fields).shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == np.float32
        assert tensor.flags.writeable
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name, strict=True)


def official(path: Path, weights: dict[str, Any], **beside: Any) -> Path:
    torch.save({"model": OrderedDict((name, torch.tensor(value)) for name, value in weights.items()), **beside}, path)
    return path


def test_a_pretrained_file_with_all_that_the_official_code_puts_beside_the_model(tmp_path: Path):
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_tracker": 0},
        "args": argparse.Namespace(batch_size=64, model="mae_vit_base_patch16", resume="", betas=(0.9, 0.95), x=None),
    }
    weights = weights_of("mae")
    found = read_model(official(tmp_path / "mae.pth", weights, **beside))
    assert_equal(found.weights, weights)
    assert found.format == "facebook"
    expected = {name: value for name, value in SMALL.items() if name not in ("heads", "decoder_heads", "num_classes")}
    assert {name: found.model[name] for name in expected} == expected
    assert found.objective == {}  # these arguments do not tell how it was trained
    assert found.class_names is None


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_fine_tuned_file(tmp_path: Path, pool: str):
    weights = weights_of("classify", pool=pool)
    found = read_model(official(tmp_path / "x.pth", weights))
    assert_equal(found.weights, weights)
    assert (found.model["num_classes"], found.model["pool"]) == (3, pool)
    assert "decoder_width" not in found.model


def test_a_real_state_dict_with_parameters_views_and_every_type(tmp_path: Path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1).expand(1),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
        "fp64": base.double(),
        "fp16": base.half(),
        "bf16": (base / 3).bfloat16(),
        **{str(kind): base.to(kind) for kind in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": base > 3,
    }
    for protocol in (2, 4, 5):
        torch.save(tensors, tmp_path / "x.bin", pickle_protocol=protocol)
        with TorchFile(tmp_path / "x.bin") as file:
            found = read_state_dict(file)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            expected = tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()
            np.testing.assert_array_equal(found[name], expected, err_msg=name, strict=True)


def test_a_module_with_metadata(tmp_path: Path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save({"model": module.state_dict()}, tmp_path / "x.pth")
    with TorchFile(tmp_path / "x.pth") as file:
        found = read_state_dict(file)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("objective", ["mae", "classify"])
def test_what_is_written_loads_in_torch_and_comes_back(tmp_path: Path, objective: str):
    weights, path = weights_of(objective), tmp_path / "x.pth"
    names = ("größe", "b", "c") if objective == "classify" else None
    write_model("facebook", path, StoredModel(weights, SMALL, names, "unmask"))
    loaded = torch.load(path, weights_only=True)["model"]
    assert_equal({name: tensor.numpy() for name, tensor in loaded.items()}, weights)
    found = read_model(path)
    assert_equal(found.weights, weights)
    assert found.class_names == names
    assert {name: found.model[name] for name in ("heads", "decoder_heads", "width")} == {
        "heads": 2, "decoder_heads": 2, "width": 16,
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_a_hostile_note_of_ours_is_refused(tmp_path: Path):
    for note in ('{"model": []}', '{"model": {}, "class_names": [[1]]}', "[", "{" * 10**5):
        with pytest.raises(CheckpointError):
            read_model(official(tmp_path / "x.pth", {"a": np.ones(1)}, unmask=note))


def test_the_format_before_1_6_is_refused_with_the_way_out(tmp_path: Path):
    torch.save({"model": {}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6; convert it with torch\.save\(torch\.load\(FILE"):
        read_model(tmp_path / "old.pth")


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path):
    path = tmp_path / "x.pth"
    write_model("facebook", path, StoredModel(weights_of("mae"), SMALL, None, "unmask"))
    before = path.read_bytes()
    (tmp_path / ".tmp-x.pth").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*x\.pth"):
        write_model("facebook", path, StoredModel(weights_of("classify"), SMALL, None, "unmask"))
    assert path.read_bytes() == before
    with pytest.raises(CheckpointError, match=r"cannot write .*missing/x\.pth"):
        write_model(
            "facebook", tmp_path / "missing" / "x.pth", StoredModel(weights_of("classify"), SMALL, None, "unmask")
        )


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.errors import CheckpointError
found = read_model(sys.argv[1])
print(len(found.weights))
try:
    write_model("facebook", sys.argv[1], StoredModel(found.weights, found.model, None, "unmask"))
except CheckpointError as error:
    print(error)
"""


def test_reading_needs_no_torch_and_writing_says_so(tmp_path: Path):
    path = official(tmp_path / "x.pth", weights_of("mae"))
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        str(len(weights_of("mae"))),
        "writing a .pth needs PyTorch: pip install 'unmask[torch]'",
    ]
