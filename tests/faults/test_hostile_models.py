"""Pickles and safetensors from a stranger, wherever a file may be named (cases 12 and 13).

tests/unit/checkpoint/test_hostile_files.py has the programs, and what the reader of PyTorch's archives says of each;
here they come in every other wrapping, and the whole command runs on some.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runs import TINY_MODEL
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.errors import CheckpointError, DataError, UnmaskError
from unmask.interchange import read_model

PAYLOADS = [
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("subprocess", "getoutput", "touch {}"),
    ("builtins", "eval", "open({!r}, 'w').close()"),
    ("builtins", "exec", "open({!r}, 'w').close()"),
    ("profile", "run", "open({!r}, 'w').close()"),
    ("os", "mkdir", "{}"),
    ("os", "popen", "touch {}"),
    ("pathlib", "Path.touch", None),
    ("cProfile", "run", "open({!r}, 'w').close()"),
]


def opcodes(module: str, name: str, argument: str | None, fired: Path) -> bytes:
    """A pickle that calls module.name(argument) as soon as it is loaded."""
    text = str(fired) if argument is None else argument.format(str(fired))
    words = [word.encode() for word in (module, name, text)]
    module_, name_, text_ = (b"X" + len(word).to_bytes(4, "little") + word for word in words)
    body = module_ + name_ + b"\x93"
    if argument is None:  # an instance, then its method
        path = b"cpathlib\nPath\n(" + text_ + b"tR"
        return b"\x80\x04" + body + b"(" + path + b"tR."
    return b"\x80\x04" + body + b"(" + text_ + b"tR."


def npy(content: bytes, shape: str = "(1,)") -> bytes:
    """An array of objects: NumPy's header, and a pickle behind it."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


def wrap(folder: Path, content: bytes) -> list[Path]:
    """The pickle as every kind of model file, and as every kind of data that may be pickled."""
    models = [folder / name for name in ("bare.pth", "bare.ckpt", "bare.bin", "bare.pt", "bare.safetensors", "bare")]
    for path in models:
        path.write_bytes(content)
    for suffix in ("pth", "ckpt", "pt"):
        archive = folder / f"archive.{suffix}"
        with zipfile.ZipFile(archive, "w") as file:
            for name, data in {"data.pkl": content, "version": b"3\n"}.items():
                file.writestr(f"archive/{name}", data)
        models.append(archive)
    hub = folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text('{"model_type": "vit_mae"}')
    shutil.copy(folder / "archive.pth", hub / "pytorch_model.bin")
    (folder / "objects.npy").write_bytes(npy(content))
    zipped(folder / "objects.npz", images__npy=npy(content))
    return [*models, hub]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: ".".join(payload[:2]))
def test_no_pickle_fires_whatever_the_file_is_called(tmp_path: Path, payload: tuple[str, str, str | None]) -> None:
    """10 payloads in 15 wrappings."""
    fired = tmp_path / "fired"
    content = opcodes(*payload, fired)
    for path in wrap(tmp_path, content):
        with pytest.raises(CheckpointError) as raised:
            read_model(path)
        assert "\n" not in str(raised.value)
        assert not fired.exists(), path
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.npy").write_bytes(npy(content, "(1, 1)"))
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "labels.npy").write_bytes(npy(content, "(2,)"))
    for name, labels in (("objects.npy", False), ("objects.npz", False), ("x.npy", True)):
        with pytest.raises(DataError) as refused:
            open_source(str(tmp_path / name), key="data.train", labels=labels)
        assert "\n" not in str(refused.value)
        assert not fired.exists(), name
    with pytest.raises(UnmaskError, match=r"none of the first 1 images can be read; 1\.npy: .*cannot be read as pixel"):
        main_stats(tmp_path / "images")
    assert not fired.exists()


def main_stats(folder: Path) -> None:
    from unmask.data.stats import measure

    source = open_source(str(folder), key="images", labels=False)
    measure(source, channels=None, dtype=None, max_pixels=10**6)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: ".".join(payload[:2]))
def test_the_payloads_are_live(tmp_path: Path, payload: tuple[str, str, str | None]) -> None:
    fired = tmp_path / "fired"
    (tmp_path / "x.npy").write_bytes(npy(opcodes(*payload, fired)))
    code = "import sys, numpy, pathlib; numpy.load(sys.argv[1], allow_pickle=True)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.npy"], check=False, capture_output=True)
    assert fired.exists()


def test_the_command_line_refuses_a_hostile_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fired = tmp_path / "fired"
    wrap(tmp_path, opcodes(*PAYLOADS[0], fired))
    data = "data.train=bundled:mnist5k/train"
    init, run = f"init={tmp_path / 'archive.pth'}", tmp_path / "run"
    for arguments in (
        ["finetune", "finetune-vit-tiny", *TINY_MODEL, data, init, f"output={run}"],
        ["convert", str(tmp_path / "archive.ckpt"), str(tmp_path / "out"), "--to", "transformers"],
        ["predict", str(tmp_path / "bare.pth"), "bundled:mnist5k/val", "--out", str(tmp_path / "out.csv")],
    ):
        assert main(arguments) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("unmask: ")
    assert not fired.exists()


# --- 13: safetensors and JSON ---


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    raw = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + content


def tensor(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "length beyond the file": safetensors({}, length=2**40),
    "length of all ones": b"\xff" * 8 + b"{}",
    "header is a list": safetensors([]),
    "not UTF-8": safetensors(b"\xff\xfe{}"),
    "deep nesting": safetensors(b"[" * 100_000),
    "end beyond the file": safetensors({"norm.weight": tensor([4], [0, 16])}, bytes(12)),
    "start after end": safetensors({"norm.weight": tensor([0], [8, 4])}, bytes(8)),
    "negative offset": safetensors({"norm.weight": tensor([1], [-4, 0])}, bytes(4)),
    "offset of 2^64": safetensors({"norm.weight": tensor([1], [2**64 - 4, 2**64])}, bytes(4)),
    "shape that overflows": safetensors({"norm.weight": tensor([2**33, 2**33], [0, 0])}),
    "shape that overflows to fit": safetensors({"norm.weight": tensor([2**62 + 1, 4], [0, 16])}, bytes(16)),
    "negative shape": safetensors({"norm.weight": tensor([-1], [0, 4])}, bytes(4)),
    "fractional shape": safetensors({"norm.weight": tensor([1.5], [0, 6])}, bytes(6)),
    "overlap": safetensors({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, bytes(12)),
    "the same bytes twice": safetensors({"a": tensor([1], [0, 4]), "b": tensor([1], [0, 4])}, bytes(4)),
    "hole": safetensors({"a": tensor([1], [0, 4]), "b": tensor([1], [8, 12])}, bytes(12)),
    "bytes left over": safetensors({"a": tensor([1], [0, 4])}, bytes(8)),
    "unknown dtype": safetensors({"a": tensor([1], [0, 8], "OBJECT")}, bytes(8)),
    "metadata that is no text": safetensors({"__metadata__": {"a": [1]}, "a": tensor([1], [0, 4])}, bytes(4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text('{"model_type": "vit_mae"}')
    for path, named in ((tmp_path / "x.safetensors", tmp_path / "x.safetensors"), (hub / "model.safetensors", hub)):
        path.write_bytes(HOSTILE[name])
        with pytest.raises(CheckpointError) as raised:
            read_model(named)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 600 + len(str(path))
        path.unlink()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "shards/../../secret.safetensors"])
def test_an_index_of_shards_is_not_followed(tmp_path: Path, name: str) -> None:
    """Folders of several files are not read at all, so that no index can lead out of them."""
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file({"norm.weight": np.zeros(4, np.float32)}, tmp_path / "secret.safetensors")
    (hub / "config.json").write_text('{"model_type": "vit_mae"}')
    index = {"metadata": {}, "weight_map": {"norm.weight": name}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="has no weight_map from tensors to files beside it"):
        read_model(hub)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b"{" + b" " * 17 * 2**20 + b"}",
        b'{"model_type": "vit_mae", "hidden_size": 1e400}',
        b'{"model_type": "vit_mae", "hidden_size": -1}',
        b'{"model_type": "vit_mae", "image_size": 99999999999999999999}',
        b'{"model_type": "vit_mae", "num_hidden_layers": "../../x"}',
        b'{"model_type": ["vit_mae"]}',
        b'{"model_type": "vit_mae", "architectures": ["os.system"]}',
        b'{"model_type": "vit_mae", "auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]}',
    ],
)
def test_a_hostile_config_is_refused(tmp_path: Path, config: bytes) -> None:
    save_file({"vit.layernorm.weight": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError) as raised:
        read_model(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_pickle_that_calls_itself_json_or_safetensors_is_only_text(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    for name in ("checksums.json", "state.json", "weights.safetensors"):
        (folder / name).write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(CheckpointError, match=r"checksums\.json is not JSON"):
        read_model(folder)
