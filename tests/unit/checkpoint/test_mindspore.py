"""MindSpore's files and names: against MindSpore where it is installed, against its documented format everywhere."""

import importlib.util
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unmask.checkpoint.convert import Format, read_foreign, write_foreign
from unmask.checkpoint.convert.mindspore import from_mindspore
from unmask.checkpoint.convert.mindspore_file import read_ckpt, write_ckpt
from unmask.checkpoint.convert.mindspore_zoo import to_zoo
from unmask.cli import main
from unmask.config.schema import ModelConfig
from unmask.errors import CheckpointError
from unmask.init import Task, parameter_shapes

SMALL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "channels": 3, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "num_classes": 3,
}  # fmt: skip
EVERY_TYPE = {
    f"a.{dtype}": np.arange(6).reshape(2, 3).astype(dtype)
    for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
} | {"scalar": np.array(2.5, np.float32), "one": np.ones(1, np.float32)}


def weights_of(task: Task, **fields: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(ModelConfig.model_validate(SMALL | fields), task)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if task == "pretrain":
        weights["decoder_pos_embed"][:, 0] = 0  # as it always is, sine-cosine
    return weights


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name, strict=True)


# --- the container ----------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor_proto(dims: list[int], kind: bytes = b"Float32", content: bytes | None = None) -> bytes:
    content = bytes(4 * int(np.prod(dims))) if content is None else content
    return b"".join(field(1, dim) for dim in dims) + field(2, kind) + field(3, content)


def value(tag: str, dims: list[int], kind: bytes = b"Float32", content: bytes | None = None) -> bytes:
    return field(1, field(1, tag.encode()) + field(2, tensor_proto(dims, kind, content)))


def test_the_bytes_of_a_file(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    write_ckpt(path, {"ab": np.array([[1.0, -2.0]], np.float32)})
    expected = (
        b"\x0a\x1d"  # one value of 29 bytes
        b"\x0a\x02ab"  # tag
        b"\x12\x17"  # tensor of 23 bytes
        b"\x08\x01\x08\x02"  # dims 1, 2
        b"\x12\x07Float32"
        b"\x1a\x08\x00\x00\x80\x3f\x00\x00\x00\xc0"  # content
    )
    assert path.read_bytes() == expected == value("ab", [1, 2], content=expected[-8:])


@pytest.mark.parametrize("slice_bytes", [2**20, 8, 5, 1])
def test_every_type_comes_back_whole_or_split(tmp_path: Path, slice_bytes: int):
    path = tmp_path / "x.ckpt"
    write_ckpt(path, {**EVERY_TYPE, "t": np.arange(6, dtype=np.float32).reshape(2, 3).T}, slice_bytes)
    found = read_ckpt(path)
    assert_equal(found, {**EVERY_TYPE, "t": np.float32([[0, 3], [1, 4], [2, 5]])})
    assert list(found)[:2] == ["a.f8", "a.f4"]
    assert all(tensor.flags.writeable for tensor in found.values())


def test_what_older_or_other_writers_do(tmp_path: Path):
    one, half = np.float32(1).tobytes(), bytes([0x80, 0x3F])
    packed = field(1, varint(1) + varint(2)) + field(2, b"Float32") + field(3, one + one)
    path = tmp_path / "x.ckpt"
    path.write_bytes(
        value("scalar", [0], content=one)
        + value("bf16", [1, 3], b"BFloat16", half * 3)
        + value("note", [0], b"str", "hé".encode("utf-32-le"))
        + field(1, field(2, packed) + field(1, b"packed"))
    )
    expected = {"scalar": np.float32(1).reshape(()), "bf16": np.ones((1, 3)), "packed": np.ones((1, 2))}
    assert_equal(read_ckpt(path), {name: np.asarray(tensor, np.float32) for name, tensor in expected.items()})


def test_only_what_is_wanted_is_read(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(value("a", [2]) + value("b", [3], b"Int4", b"?"))
    assert_equal(read_ckpt(path, lambda name: name == "a"), {"a": np.zeros(2, np.float32)})


MALFORMED = {
    "empty": (b"", "none, or an encrypted one"),
    "encrypted": (b"\xd8\x5e\x3a\x7f" + bytes(100), "without enc_key"),
    "crc": (value("a", [2]) + b"crc_num" + bytes(10), "without crc_check"),
    "cut_content": (value("a", [2])[:-1], "cut short"),
    "cut_length": (b"\x0a\x80", "cut short"),
    "cut_key": (value("a", [2]) + b"\x80", "cut short"),
    "endless_varint": (b"\x0a" + b"\xff" * 30, "cut short or damaged"),
    "length_of_exabytes": (b"\x0a" + varint(2**62), "cut short"),
    "overlapping": (field(1, field(1, b"a") + b"\x12" + varint(30) + tensor_proto([2])) + value("b", [2]), "cut short"),
    "too_many_bytes": (value("a", [2], content=bytes(12)), "not as many bytes"),
    "too_few_bytes": (value("a", [2, 2], content=bytes(12)), "not as many bytes"),
    "no_elements": (value("a", [0, 3], content=b""), "not as many bytes"),
    "empty_scalar": (value("a", [], content=b""), "not as many bytes"),
    "absurd_dim": (value("a", [2**62], content=b""), "absurd"),
    "negative_dim": (value("a", [2**64 - 1], content=b""), "absurd"),
    "nine_dims": (value("a", [1] * 9), "no checkpoint needs so many"),
    "ten_thousand_dims": (value("a", [1] * 10_000), "no checkpoint needs so many"),
    "packed_dims": (
        field(1, field(1, b"a") + field(2, field(1, b"\x01" * 10_000) + tensor_proto([]))),
        "more than 8 dimensions",
    ),
    "unknown_type": (value("a", [2], b"Complex64"), "'Complex64', which is not supported"),
    "half_bytes": (value("a", [2], b"Int4", b"x"), "'Int4', which is not supported"),
    "wrong_dtype": (value("a", [2], b"Float16"), "not as many bytes"),
    "no_tag": (field(1, field(2, tensor_proto([2]))), "lacks its tag"),
    "no_tensor": (field(1, field(1, b"a")), "lacks its tensor"),
    "no_type": (field(1, field(1, b"a") + field(2, field(3, b"x"))), "lacks its type"),
    "no_content": (field(1, field(1, b"a") + field(2, field(2, b"Int8"))), "lacks its content"),
    "two_tags": (field(1, field(1, b"a") + field(1, b"b") + field(2, tensor_proto([2]))), "there twice"),
    "map_tensor": (field(1, field(1, b"a") + field(3, field(1, tensor_proto([2])))), "field 3"),
    "tag_is_a_number": (field(1, field(1, 7) + field(2, tensor_proto([2]))), "of another kind"),
    "value_is_a_number": (value("a", [2]) + field(1, 7), "field 1"),
    "unknown_field": (value("a", [2]) + field(2, b"x"), "field 2"),
    "group": (value("a", [2]) + b"\x0b\x00", "of a kind"),
    "not_text": (field(1, field(1, b"\xff") + field(2, tensor_proto([2]))), "is no name"),
    "escape_codes": (value("\x1b[2J", [2]), "is no name"),
    "endless_tag": (value("a" * 2000, [2]), "is no name"),
    "twice": (value("a", [2]) + value("b", [2]) + value("a", [2]), "a is there twice"),
    "too_many_slices": (value("a", [2]) * 2, "not as many bytes"),
    "slices_of_two_shapes": (value("a", [2, 1], content=bytes(4)) + value("a", [1, 2], content=bytes(4)), "differ"),
    "half_a_slice_missing": (value("a", [4], content=bytes(8)), "not as many bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_in_one_line_and_no_memory(tmp_path: Path, name: str):
    content, reason = MALFORMED[name]
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as raised:
            read_foreign(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(path))


def test_a_file_of_many_tiny_values_is_refused_before_it_fills_the_memory(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"".join(value(f"{i:x}", [1]) for i in range(10_001)))
    with pytest.raises(CheckpointError, match="more than 10000 fields"):
        read_ckpt(path, lambda name: False)


def mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 9, 40))
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = rng.choice((rng.randbytes(length), b"\xff" * length, varint(2 ** rng.randrange(64))))
            case 3:
                changed[at:at] = changed[(start := rng.randrange(len(changed) + 1)) : start + 10 * length]
            case _:
                del changed[at:]
    return bytes(changed)


def test_thousands_of_damaged_files_are_refused_or_read(tmp_path: Path):
    weights = weights_of("pretrain", depth=1, width=4, heads=2, decoder_width=4)
    sound: list[bytes] = []
    for format in ("mindspore", "mindspore-zoo"):
        write_foreign(format, tmp_path / "x.ckpt", weights, SMALL, None)
        sound.append((tmp_path / "x.ckpt").read_bytes())
    rng = random.Random(0)
    refusals: list[str] = []
    for i in range(3000):
        (tmp_path / "x.ckpt").write_bytes(mutated(sound[i % 2], rng))
        try:
            read_foreign(tmp_path / "x.ckpt")
        except CheckpointError as error:
            refusals.append(str(error))
    assert 2000 < len(refusals) < 3000
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize("format", ["mindspore", "mindspore-zoo"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (2, 3, 1), (1, 1, 1, 1, 1), None])
def test_tensors_of_any_shape_or_missing_are_refused_or_read(
    tmp_path: Path, format: Format, shape: tuple[int, ...] | None
):
    path = tmp_path / "x.ckpt"
    write_foreign(format, path, weights_of("pretrain"), SMALL, None)
    sound = read_ckpt(path)
    for name in sound:
        tensors = {key: tensor for key, tensor in sound.items() if key != name}
        try:
            to_zoo(from_mindspore(path, tensors if shape is None else {**tensors, name: np.ones(shape, "f4")}).weights)
        except CheckpointError as error:
            assert str(error).count("\n") == 0  # noqa: PT017 (both outcomes are right)


# --- the names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(("task", "pool"), [("pretrain", "mean"), ("finetune", "mean"), ("finetune", "cls")])
def test_our_names_with_gamma_and_beta(tmp_path: Path, task: Task, pool: str, suffix: str):
    weights, path = weights_of(task, pool=pool), tmp_path / f"x{suffix}"
    names = ("a", "ö", "c") if task == "finetune" else None
    write_foreign("mindspore", path, weights, SMALL, names)
    written = read_ckpt(path) if suffix == ".ckpt" else load_file(path)
    norms = {name for name in weights if "norm" in name}
    renamed = {name.replace(".weight", ".gamma").replace(".bias", ".beta") for name in norms}
    assert written.keys() == (weights.keys() - norms) | renamed | {"unmask"}
    found = read_foreign(path)
    assert_equal(found.weights, weights)
    assert found.model == SMALL | {"image_size": [16, 16], "num_classes": 3} | ({"pool": pool} if names else {})
    assert (found.format, found.class_names) == ("mindspore", names)


def test_training_state_and_text_beside_the_weights_are_left_alone(tmp_path: Path):
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
    path.write_bytes(path.read_bytes() + value("note", [0], b"str", "x".encode("utf-32-le")))
    assert_equal(read_foreign(path).weights, weights)


def test_half_precision_becomes_float32_and_a_torch_ckpt_is_still_read(tmp_path: Path):
    weights = weights_of("pretrain")
    write_ckpt(tmp_path / "x.ckpt", {name: tensor.astype(np.float16) for name, tensor in weights.items()})
    expected = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in weights.items()}
    assert_equal(read_foreign(tmp_path / "x.ckpt").weights, expected)
    pytest.importorskip("torch")
    write_foreign("facebook", tmp_path / "y.ckpt", weights, SMALL, None)
    assert_equal(read_foreign(tmp_path / "y.ckpt").weights, weights)


def test_tensors_of_another_model_are_listed(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    write_ckpt(path, {f"layer{i}.conv.weight": np.ones((1, 1), np.float32) for i in range(30)})
    with pytest.raises(CheckpointError, match=r"does not have: layer0\.conv\.weight, .* and 10 more"):
        read_foreign(path)
    write_ckpt(path, {"norm.gamma": np.ones(2, np.float32), "norm.weight": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match="under both"):
        read_foreign(path)
    write_ckpt(path, {"learning_rate": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match="holds no model"):
        read_foreign(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"must end in \.ckpt"):
        write_foreign("mindspore", tmp_path / "x.pth", weights_of("pretrain"), SMALL, None)
    with pytest.raises(CheckpointError, match="no place for strange"):
        write_foreign("mindspore", tmp_path / "x.ckpt", {"strange": np.ones(1, np.float32)}, SMALL, None)
    with pytest.raises(CheckpointError, match=r"cls_token: a \.ckpt has no place"):
        write_foreign("mindspore", tmp_path / "x.ckpt", {"cls_token": np.ones(1, np.complex64)}, SMALL, None)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_foreign("mindspore", tmp_path / "no" / "x.ckpt", weights_of("pretrain"), SMALL, None)
    assert list(tmp_path.iterdir()) == []


# --- the names of the model zoo ---------------------------------------------------------------------------------------


def zoo_block(name: str, dim: int, cross: bool) -> dict[str, tuple[int, ...]]:
    """A layer of mindspore.nn.transformer: dense1 to dense3 are (out, in), the others (in, out)."""
    attentions = ["attention", "cross_attention"] if cross else ["attention"]
    norms = ["layernorm1", "layernorm2"] + (["cross_attention_layernorm"] if cross else [])
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{norm}.{kind}": (dim,) for norm in norms for kind in ("gamma", "beta")
    }
    for attention in attentions:
        for dense in ("dense1", "dense2", "dense3", "projection"):
            shapes |= {f"{name}.{attention}.{dense}.weight": (dim, dim), f"{name}.{attention}.{dense}.bias": (dim,)}
    shapes |= {f"{name}.output.mapping.weight": (dim, 2 * dim), f"{name}.output.mapping.bias": (2 * dim,)}
    return shapes | {f"{name}.output.projection.weight": (2 * dim, dim), f"{name}.output.projection.bias": (dim,)}


def zoo(task: Task, D: int = 16, E: int = 8, L: int = 16) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.encoder_pos_embedding": (1, L + 1, D),
        "encoder.patch_embed.projection.weight": (D, 3, 4, 4),
        "encoder.patch_embed.projection.bias": (D,),
        "encoder.norm.gamma": (D,),
        "encoder.norm.beta": (D,),
    }
    for i in range(2):
        shapes |= zoo_block(f"encoder.encoder.blocks.{i}", D, cross=False)
    if task == "finetune":
        shapes |= {
            "encoder.fc_norm.gamma": (D,),
            "encoder.fc_norm.beta": (D,),
            "head.weight": (3, D),
            "head.bias": (3,),
        }
    else:
        shapes |= {"mask_token": (E,), "enc_to_dec.weight": (E, D), "enc_to_dec.bias": (E,)}
        shapes |= {"decoder_pos_embedding.embedding_table": (L + 1, E)} | zoo_block("decoder.blocks.0", E, cross=True)
        shapes |= {"decoder_norm.gamma": (E,), "decoder_norm.beta": (E,)}
        shapes |= {"to_pixels.weight": (48, E), "to_pixels.bias": (48,)}
    rng = np.random.default_rng(1)
    return {name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}


class Zoo:
    """What the model zoo's code computes, as far as a converted model can (exact GELU, epsilon 1e-6, class token 0)."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * self.t[f"{name}.gamma"] + self.t[f"{name}.beta"]

    def dense(self, name: str, x: np.ndarray, *, in_out: bool = False) -> np.ndarray:
        weight = self.t[f"{name}.weight"]
        return x @ (weight if in_out else weight.T) + self.t[f"{name}.bias"]

    def block(self, name: str, x: np.ndarray, heads: int = 2) -> np.ndarray:
        torch = pytest.importorskip("torch")
        y = self.norm(f"{name}.layernorm1", x)
        q, k, v = (
            self.dense(f"{name}.attention.dense{i}", y).reshape(len(y), heads, -1).swapaxes(0, 1) for i in (1, 2, 3)
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        y = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = x + self.dense(f"{name}.attention.projection", y, in_out=True)
        y = self.dense(f"{name}.output.mapping", self.norm(f"{name}.layernorm2", x), in_out=True)
        y = torch.nn.functional.gelu(torch.tensor(y)).numpy()
        return x + self.dense(f"{name}.output.projection", y, in_out=True)

    def encode(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(1 + K, D) of one (C, H, W) image."""
        C, H, W = image.shape
        patches = image.reshape(C, H // 4, 4, W // 4, 4).transpose(1, 3, 0, 2, 4).reshape(-1, C * 16)
        kernel = self.t["encoder.patch_embed.projection.weight"].reshape(-1, C * 16)
        x = patches @ kernel.T + self.t["encoder.patch_embed.projection.bias"]
        positions = self.t["encoder.encoder_pos_embedding"][0]
        x = np.concatenate([positions[:1], (x + positions[1:])[ids]])
        for i in range(2):
            x = self.block(f"encoder.encoder.blocks.{i}", x)
        return x

    def classify(self, image: np.ndarray) -> np.ndarray:
        x = self.encode(image, np.arange(16))[1:].mean(0)
        return self.dense("head", self.norm("encoder.fc_norm", x))

    def paint(self, image: np.ndarray, keep: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(M, C * p * p), channels first."""
        x = self.dense("enc_to_dec", self.norm("encoder.norm", self.encode(image, keep)))
        table = self.t["decoder_pos_embedding.embedding_table"]
        x = np.concatenate([x[:1], x[1:] + table[keep], self.t["mask_token"] + table[mask]])
        x = self.dense("to_pixels", self.norm("decoder_norm", self.block("decoder.blocks.0", x)))
        return x[-len(mask) :]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(3, 16, 16))


def torch_model(kind: str, found: Any, image: np.ndarray) -> tuple[Any, Any]:
    """Our PyTorch model with the weights, and the patches (1, L, P) of the image."""
    torch = pytest.importorskip("torch")
    from unmask.engines.torch_engine import model as torch_models

    model = getattr(torch_models, kind)(ModelConfig.model_validate({**found.model, "heads": 2, "decoder_heads": 2}))
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in found.weights.items()})
    pixels = torch.tensor(image.transpose(1, 2, 0)[None].copy())
    return model.double(), torch_models.patchify(pixels, 4)


def test_a_classifier_of_the_zoo_computes_the_same(tmp_path: Path, image: np.ndarray):
    write_ckpt(tmp_path / "x.ckpt", zoo("finetune"))
    found = read_foreign(tmp_path / "x.ckpt")
    assert (found.format, found.model["num_classes"], found.model["pool"]) == ("mindspore-zoo", 3, "mean")
    model, patches = torch_model("Classifier", found, image)
    np.testing.assert_allclose(model(patches).detach().numpy()[0], Zoo(zoo("finetune")).classify(image), atol=1e-9)


def test_an_autoencoder_of_the_zoo_computes_the_same(tmp_path: Path, image: np.ndarray):
    torch = pytest.importorskip("torch")
    write_ckpt(tmp_path / "x.ckpt", zoo("pretrain"))
    model, patches = torch_model("MaskedAutoencoder", read_foreign(tmp_path / "x.ckpt"), image)
    keep, mask = np.array([11, 0, 3, 7, 15]), np.array([1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14])
    ids = torch.tensor(keep)[None], torch.tensor(mask)[None]
    ours = model(patches[:, keep], *ids).detach().numpy()[0]
    theirs = Zoo(zoo("pretrain")).paint(image, keep, mask).reshape(-1, 3, 4, 4).transpose(0, 2, 3, 1).reshape(-1, 48)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_a_file_of_the_zoo_says_what_it_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_ckpt(tmp_path / "x.ckpt", zoo("pretrain"))
    found = read_foreign(tmp_path / "x.ckpt")
    assert "does not hold the class token" in caplog.text
    assert not found.weights["cls_token"].any()
    assert {name: tensor.shape for name, tensor in found.weights.items()} == parameter_shapes(
        ModelConfig.model_validate(SMALL), "pretrain"
    )


def test_a_norm_after_the_patch_projection_is_refused(tmp_path: Path):
    ones = np.ones(16, np.float32)
    norm = {"encoder.patch_embed.norm.gamma": ones, "encoder.patch_embed.norm.beta": ones}
    write_ckpt(tmp_path / "x.ckpt", zoo("pretrain") | norm)
    with pytest.raises(
        CheckpointError, match=r"does not have: encoder\.patch_embed\.norm\.bias, encoder\.patch_embed\.n"
    ):
        read_foreign(tmp_path / "x.ckpt")


@pytest.mark.parametrize(("task", "pool"), [("pretrain", "mean"), ("finetune", "mean"), ("finetune", "cls")])
def test_what_is_written_in_the_names_of_the_zoo_comes_back(
    tmp_path: Path, task: Task, pool: str, caplog: pytest.LogCaptureFixture
):
    weights, path = weights_of(task, pool=pool), tmp_path / "x.ckpt"
    write_foreign("mindspore-zoo", path, weights, SMALL, None)
    used = {name: tensor.shape for name, tensor in zoo(task).items() if "cross_attention" not in name}
    if task == "finetune":
        used = {name: shape for name, shape in used.items() if ("fc_norm" if pool == "cls" else "r.norm") not in name}
    assert {name: tensor.shape for name, tensor in read_ckpt(path).items() if name != "unmask"} == used
    found = read_foreign(path)
    # The class token has moved into the position embedding, where it computes the same.
    weights["pos_embed"][:, :1] += weights["cls_token"]
    weights["cls_token"][:] = 0
    assert_equal(found.weights, weights)
    assert (found.format, found.model["heads"], caplog.text) == ("mindspore-zoo", 2, "")


def test_a_position_of_the_class_token_in_the_decoder_has_no_place(tmp_path: Path):
    weights = weights_of("pretrain")
    weights["decoder_pos_embed"][0, 0, 0] = 1
    with pytest.raises(CheckpointError, match="no place for a decoder position embedding of the class token"):
        write_foreign("mindspore-zoo", tmp_path / "x.ckpt", weights, SMALL, None)


def test_convert_from_one_naming_to_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = weights_of("finetune")
    write_foreign("mindspore", tmp_path / "a.ckpt", weights, SMALL, ("a", "b", "c"))
    first, second, third = (str(tmp_path / name) for name in ("a.ckpt", "b.safetensors", "c.ckpt"))
    assert main(["convert", first, second, "--to", "mindspore-zoo"]) == 0
    assert main(["convert", second, third, "--to", "mindspore"]) == 0
    assert "(mindspore-zoo) -> " in capsys.readouterr().out.replace("\n", " ")
    found = read_foreign(third)
    assert_equal({**found.weights, "cls_token": 0, "pos_embed": 0}, {**weights, "cls_token": 0, "pos_embed": 0})
    assert found.class_names == ("a", "b", "c")


# --- MindSpore itself -------------------------------------------------------------------------------------------------

needs_mindspore = pytest.mark.skipif(
    importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed: its own files are not compared"
)

PRELUDE = """
import json, sys
import numpy as np
import mindspore as ms
from mindspore.train import serialization
try:  # the first call into a part that was built against NumPy 1 fails
    ms.Tensor([1.0, 2.0]).reshape((2, 1))
except SystemError:
    pass
folder = sys.argv[1]
"""


def mindspore(script: str, folder: Path) -> None:
    """Run a script with MindSpore in its own process: its import warns, and must not see what this one imported."""
    environment = os.environ | {"GLOG_v": "3", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", PRELUDE + script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


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
            read_foreign(tmp_path / f"{name}.ckpt")
    assert_equal(read_foreign(tmp_path / "model.ckpt").weights, weights)
    assert_equal(read_foreign(tmp_path / "model.safetensors").weights, weights)


@needs_mindspore
def test_what_is_written_loads_in_mindspore_bit_by_bit(tmp_path: Path):
    large = np.random.default_rng(3).normal(size=(64, 128)).astype(np.float32)
    tensors = EVERY_TYPE | {"large": large}
    np.savez(tmp_path / "tensors.npz", **tensors)
    write_ckpt(tmp_path / "whole.ckpt", tensors)
    write_ckpt(tmp_path / "split.ckpt", tensors, slice_bytes=4096)
    for task in ("pretrain", "finetune"):
        for suffix in ("ckpt", "safetensors"):
            write_foreign("mindspore", tmp_path / f"{task}.{suffix}", weights_of(task), SMALL, None)
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
