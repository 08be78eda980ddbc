"""MindSpore's files and our names in them, against MindSpore itself where it is installed."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_models import EVERY_TYPE, SMALL, Task, assert_equal, mindspore, needs_mindspore, weights_of
from unmask.errors import CheckpointError
from unmask.interchange import Format, StoredModel, read_model, write_model
from unmask.interchange.mindspore import from_mindspore
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt
from unmask.interchange.mindspore_zoo import to_zoo


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(("task", "pool"), [("pretrain", "mean"), ("finetune", "mean"), ("finetune", "cls")])
def test_our_names_with_gamma_and_beta(tmp_path: Path, task: Task, pool: str, suffix: str):
    weights, path = weights_of(task, pool=pool), tmp_path / f"x{suffix}"
    names = ("a", "ö", "c") if task == "finetune" else None
    write_model("mindspore", path, StoredModel(weights, SMALL, names, "unmask"))
    written = read_ckpt(path) if suffix == ".ckpt" else load_file(path)
    norms = {name for name in weights if "norm" in name}
    renamed = {name.replace(".weight", ".gamma").replace(".bias", ".beta") for name in norms}
    assert written.keys() == (weights.keys() - norms) | renamed | {"unmask"}
    found = read_model(path)
    assert_equal(found.weights, weights)
    expected = SMALL | {"image_size": [16, 16], "num_classes": 3} | ({"pool": pool} if names else {})
    assert {name: found.model[name] for name in expected} == expected
    assert (found.format, found.class_names) == ("mindspore", names)


def test_training_state_beside_the_weights_is_left_alone(tmp_path: Path):
    weights, path = weights_of("finetune", pool="cls"), tmp_path / "x.ckpt"
    beside = {
        **{f"{prefix}.{name}": t for prefix in ("adam_m", "moment2", "_ema_weights") for name, t in weights.items()},
        "learning_rate": np.array(1e-3, np.float32),
        "global_step": np.array([7], np.int32),
        "scale_sense": np.array(2.0**24, np.float32),
        "current_iterator_step": np.array(3, np.int32),
        "epoch_num": np.array(3, np.int64),
    }
    write_ckpt(path, weights | beside)
    assert_equal(read_model(path).weights, weights)


def test_half_precision_becomes_float32_and_a_torch_ckpt_is_still_read(tmp_path: Path):
    weights = weights_of("pretrain")
    write_ckpt(tmp_path / "x.ckpt", {name: tensor.astype(np.float16) for name, tensor in weights.items()})
    expected = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in weights.items()}
    assert_equal(read_model(tmp_path / "x.ckpt").weights, expected)
    pytest.importorskip("torch", reason="PyTorch is not installed")
    write_model("facebook", tmp_path / "y.ckpt", StoredModel(weights, SMALL, None, "unmask"))
    assert_equal(read_model(tmp_path / "y.ckpt").weights, weights)


def test_tensors_of_another_model_are_listed(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    write_ckpt(path, {f"layer{i}.conv.weight": np.ones((1, 1), np.float32) for i in range(30)})
    with pytest.raises(CheckpointError, match=r"does not have: layer0\.conv\.weight, .* and 10 more"):
        read_model(path)
    write_ckpt(path, {"norm.gamma": np.ones(2, np.float32), "norm.weight": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match="under both"):
        read_model(path)
    write_ckpt(path, {"learning_rate": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match="holds no model"):
        read_model(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"must end in \.ckpt"):
        write_model("mindspore", tmp_path / "x.pth", StoredModel(weights_of("pretrain"), SMALL, None, "unmask"))
    with pytest.raises(CheckpointError, match="no place for strange"):
        write_model(
            "mindspore", tmp_path / "x.ckpt", StoredModel({"strange": np.ones(1, np.float32)}, SMALL, None, "unmask")
        )
    with pytest.raises(CheckpointError, match=r"cls_token: a \.ckpt has no place"):
        write_model(
            "mindspore",
            tmp_path / "x.ckpt",
            StoredModel({"cls_token": np.ones(1, np.complex64)}, SMALL, None, "unmask"),
        )
    with pytest.raises(CheckpointError, match="cannot write"):
        write_model("mindspore", tmp_path / "no" / "x.ckpt", StoredModel(weights_of("pretrain"), SMALL, None, "unmask"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["mindspore", "mindspore-zoo"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (2, 3, 1), (1, 1, 1, 1, 1), None])
def test_tensors_of_any_shape_or_missing_are_refused_or_read(
    tmp_path: Path, format: Format, shape: tuple[int, ...] | None
):
    path = tmp_path / "x.ckpt"
    write_model(format, path, StoredModel(weights_of("pretrain"), SMALL, None, "unmask"))
    sound = read_ckpt(path)
    for name in sound:
        tensors = {key: tensor for key, tensor in sound.items() if key != name}
        try:
            tensors = tensors if shape is None else {**tensors, name: np.ones(shape, "f4")}
            to_zoo(from_mindspore(path, tensors).weights, norm_eps=1e-6)
        except CheckpointError as error:
            assert str(error).count("\n") == 0  # noqa: PT017 (both outcomes are right)


@needs_mindspore
def test_what_mindspore_writes_is_read_bit_by_bit(tmp_path: Path):
    large = np.random.default_rng(3).normal(size=(70, 100)).astype(np.float32)  # 28,000 bytes, split at 4,096
    tensors = EVERY_TYPE | {"large": large, "row": large[:1]}
    np.savez(tmp_path / "tensors.npz", **tensors)
    save_file(weights := weights_of("pretrain"), tmp_path / "weights.safetensors")
    mindspore(
        """
tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in np.load(folder + "/tensors.npz").items()]
tensors.append({"name": "bf16", "data": ms.Tensor(np.array([1.0, -0.3], np.float32), ms.bfloat16)})
ms.save_checkpoint(tensors, folder + "/whole.ckpt", append_dict={"epoch_num": 3, "note": "text"})
serialization.SLICE_SIZE = 4  # KiB, in place of 512 MiB
ms.save_checkpoint(tensors, folder + "/split.ckpt")
ms.save_checkpoint(tensors, folder + "/crc.ckpt", crc_check=True)
ms.save_checkpoint(tensors, folder + "/encrypted.ckpt", enc_key=b"0123456789abcdef")
from safetensors.numpy import load_file
weights = load_file(folder + "/weights.safetensors")
rename = lambda n: n.replace(".weight", ".gamma").replace(".bias", ".beta") if "norm" in n else n
weights = [{"name": rename(name), "data": ms.Tensor(array)} for name, array in weights.items()]
ms.save_checkpoint(weights, folder + "/model.safetensors", format="safetensors")
ms.save_checkpoint(weights, folder + "/model.ckpt")
""",
        tmp_path,
    )
    bf16 = (np.float32([1.0, -0.3]).view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)
    expected = tensors | {"bf16": bf16}
    assert_equal(read_ckpt(tmp_path / "split.ckpt"), expected)
    assert_equal(read_ckpt(tmp_path / "whole.ckpt"), expected | {"epoch_num": np.array(3, np.int64)})
    assert (tmp_path / "split.ckpt").read_bytes().count(b"large") == 7
    for name, reason in [("crc", "without crc_check"), ("encrypted", "without enc_key")]:
        with pytest.raises(CheckpointError, match=reason):
            read_model(tmp_path / f"{name}.ckpt")
    assert_equal(read_model(tmp_path / "model.ckpt").weights, weights)
    assert_equal(read_model(tmp_path / "model.safetensors").weights, weights)


@needs_mindspore
def test_what_is_written_loads_in_mindspore_bit_by_bit(tmp_path: Path):
    large = np.random.default_rng(3).normal(size=(64, 128)).astype(np.float32)
    tensors = EVERY_TYPE | {"large": large}
    np.savez(tmp_path / "tensors.npz", **tensors)
    write_ckpt(tmp_path / "whole.ckpt", tensors)
    write_ckpt(tmp_path / "split.ckpt", tensors, slice_bytes=4096)
    for task in ("pretrain", "finetune"):
        for suffix in ("ckpt", "safetensors"):
            write_model(
                "mindspore", tmp_path / f"{task}.{suffix}", StoredModel(weights_of(task), SMALL, None, "unmask")
            )
        np.savez(tmp_path / f"{task}.npz", **read_ckpt(tmp_path / f"{task}.ckpt"))
    mindspore(
        """
def check(file, expected, **kwargs):
    loaded = ms.load_checkpoint(folder + "/" + file, **kwargs)
    expected = np.load(folder + "/" + expected)
    assert list(loaded) == list(expected) or kwargs and set(loaded) == set(expected), list(loaded)
    for name, array in expected.items():
        found = loaded[name].asnumpy()
        assert found.dtype == array.dtype and found.shape == array.shape, name
        assert found.tobytes() == array.tobytes(), name
check("whole.ckpt", "tensors.npz")
check("split.ckpt", "tensors.npz")
for task in ("pretrain", "finetune"):
    check(task + ".ckpt", task + ".npz")
    check(task + ".safetensors", task + ".npz", format="safetensors")
tensors = [{"name": name, "data": ms.Tensor(array)} for name, array in np.load(folder + "/tensors.npz").items()]
ms.save_checkpoint(tensors, folder + "/theirs.ckpt")
""",
        tmp_path,
    )
    assert (tmp_path / "theirs.ckpt").read_bytes() == (tmp_path / "whole.ckpt").read_bytes()
