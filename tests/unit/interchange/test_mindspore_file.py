"""The container: the bytes of a .ckpt, and whatever else may be in one."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mindspore_models import EVERY_TYPE, SMALL, assert_equal, weights_of
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt


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
            read_model(path)
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
    narrow = {"depth": 1, "width": 4, "heads": 2, "decoder_width": 4}
    weights = weights_of("pretrain", **narrow)
    sound: list[bytes] = []
    for format in ("mindspore", "mindspore-zoo"):
        write_model(format, tmp_path / "x.ckpt", StoredModel(weights, SMALL | narrow, None, "unmask"))
        assert read_model(tmp_path / "x.ckpt").kind == "autoencoder"
        sound.append((tmp_path / "x.ckpt").read_bytes())
    rng = random.Random(0)
    refusals: list[str] = []
    for i in range(3000):
        (tmp_path / "x.ckpt").write_bytes(mutated(sound[i % 2], rng))
        try:
            read_model(tmp_path / "x.ckpt")
        except CheckpointError as error:
            refusals.append(str(error))
    assert 2000 < len(refusals) < 3000
    assert not any("\n" in refusal for refusal in refusals)
