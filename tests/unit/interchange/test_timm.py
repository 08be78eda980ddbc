"""Folders of timm, against the library itself and transformers' wrapper of it."""

import dataclasses
import json
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from engine_cases import objective_of
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, read_model, write_model
from unmask.interchange.timm import _HEADS, _OTHER_HEADS, _check_architecture

torch = pytest.importorskip("torch", reason="timm needs PyTorch")
timm = pytest.importorskip("timm", reason="timm, which the tests' extra installs, is not there")

DATA: dict[str, Any] = {
    "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "eval_crop": 0.875, "eval_fit": "crop", "interpolation": "bicubic",
    "dtype": "uint8",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "image_size": (56, 56), "patch_size": 8, "width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "norm_eps": 1e-6,
}  # fmt: skip
WHOLE = {"data.eval_crop": 1.0}
"""Images of the model's size are taken as they are."""
EVERYTHING = {"layer_scale": 1e-5, "register_tokens": 3, "qkv_bias": False}


def stored(objective: str, **fields: Any) -> StoredModel:
    """Every weight is drawn, so that any that is misplaced shows."""
    names = ("größe", "b", "c") if objective == "classify" else None
    fields = SMALL | ({"num_classes": 3} if objective == "classify" else {}) | fields
    made = objective_of(objective, **fields)
    rng = np.random.default_rng(0)
    weights = {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in made.shapes().items()}
    return StoredModel(weights, made.model.model_dump(mode="json"), names, "unmask", data=DATA)


def an_image(folder: Path, size: tuple[int, int] = (90, 70), channels: int = 3) -> Path:
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    folder.mkdir(exist_ok=True)
    (small if channels == 3 else small.convert("L")).save(folder / "0.png")
    return folder


def normalised(model: StoredModel, images: np.ndarray) -> Any:
    mean, std = (np.array(model.data[name], np.float32) for name in ("mean", "std"))
    return torch.from_numpy(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))


def assert_close(actual: Any, expected: Any, tolerance: float = 2e-6) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


CLASSIFIERS = {
    "mean": {"pool": "mean"},
    "cls": {"pool": "cls"},
    "mean of everything": {"pool": "mean", **EVERYTHING},
    "cls of everything": {"pool": "cls", **EVERYTHING},
    "no cls token": {"pool": "mean", "cls_token": False, "register_tokens": 1},
    "swiglu": {"pool": "cls", "mlp": "swiglu", "mlp_ratio": 1.5, "layer_scale": 0.1},
    "swiglu without layer scale": {"pool": "mean", "mlp": "swiglu"},
    "pre-norm": {"pool": "cls", "pre_norm": True, "norm_eps": 1e-5},
    "norm_eps": {"pool": "mean", "norm_eps": 1e-5, "layer_scale": 0.1},
    "patch norm": {"pool": "mean", "patch_norm": True},
    "wide": {"pool": "mean", "image_size": (24, 56)},
    "grey": {"pool": "mean", "channels": 1},
}


def data_of(fields: dict[str, Any]) -> dict[str, Any]:
    return DATA | ({"mean": (0.3,), "std": (0.2,)} if fields.get("channels") == 1 else {})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_computes_the_same_in_timm_and_comes_back(tmp_path: Path, name: str):
    fields = CLASSIFIERS[name]
    model = dataclasses.replace(stored("classify", **fields), data=data_of(fields))
    write_model("timm", tmp_path / "ours", model)
    there = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    shape = (2, *model.model["image_size"], model.model["channels"])
    images = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    with torch.no_grad():
        expected = there(normalised(model, images)).softmax(1)
    with unmask.load(tmp_path / "ours", engine="torch", device="cpu", settings=WHOLE) as here:
        assert_close(here.predict(list(images)), expected)
        assert here.class_names == model.class_names
    found = read_model(tmp_path / "ours")
    assert found.format == "timm"
    assert found.data == model.data
    told = {name: value for name, value in found.model.items() if name != "pool"}
    assert told == {key: tuple(v) if isinstance(v := model.model[key], list) else v for key in told} | {
        "image_size": found.model["image_size"]
    }
    assert tuple(found.model["image_size"]) == tuple(model.model["image_size"])
    exact = not model.model["pre_norm"]  # its patch bias is added to the positions
    for tensor, value in found.weights.items():
        if exact:
            np.testing.assert_array_equal(value, model.weights[tensor], err_msg=tensor, strict=True)


@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"cls_token": False}], ids=["plain", "everything", "no cls"])
def test_an_autoencoder_is_written_as_its_encoder(tmp_path: Path, fields: dict[str, Any], caplog: Any):
    model = stored("mae", decoder_width=16, decoder_depth=1, decoder_heads=2, **fields)
    with caplog.at_level(logging.WARNING, "unmask"):
        write_model("timm", tmp_path / "ours", model)
    assert "the encoder alone is written; timm has no place for a decoder" in caplog.text
    there = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    images = np.random.default_rng(2).integers(0, 256, (2, 56, 56, 3), np.uint8)
    with torch.no_grad():
        features = there.forward_features(normalised(model, images))
        pooled = there(normalised(model, images))
    with unmask.load(tmp_path / "ours", engine="torch", device="cpu", settings=WHOLE) as here:
        assert_close(here.embed(list(images)), pooled)
        prefix = int(model.model["cls_token"]) + model.model["register_tokens"]
        assert_close(here.patch_features(list(images)).reshape(2, 49, 64), features[:, prefix:])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_transformers_wrapper_loads_it_with_its_own_preparation_of_images(tmp_path: Path, pool: str):
    transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")
    write_model("timm", tmp_path / "ours", stored("classify", pool=pool))
    there, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(there).__name__ == "TimmWrapperForImageClassification"
    assert not any(report.values())
    assert there.config.id2label == {0: "größe", 1: "b", 2: "c"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    image = Image.open(an_image(tmp_path / "images") / "0.png")
    with torch.no_grad():
        expected = there(**processor(image)).logits.softmax(1)
    with unmask.load(tmp_path / "ours", engine="torch", device="cpu") as here:
        assert_close(here.predict(str(tmp_path / "images")), expected, 0.02)  # two libraries' resize
    there.save_pretrained(tmp_path / "theirs")
    found = read_model(tmp_path / "theirs")
    written = read_model(tmp_path / "ours")
    assert found.weights.keys() == written.weights.keys()
    assert (found.class_names, found.model, found.data) == (written.class_names, written.model, written.data)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("vit_small_patch16_224", {"num_classes": 5}, {"heads": 6, "pool": "cls", "norm_eps": 1e-6}),
        ("vit_tiny_patch16_224", {"num_classes": 0, "img_size": [64, 96]}, {"heads": 3}),
        ("deit3_small_patch16_224", {"num_classes": 5}, {"heads": 6, "pool": "cls", "layer_scale": 1e-5}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, {"heads": 6, "register_tokens": 4, "patch_size": 14}),
        ("vit_small_patch14_dinov2", {"img_size": 56}, {"heads": 6, "layer_scale": 1e-5}),
        ("vit_giant_patch14_dinov2", {"img_size": 28, "embed_dim": 96, "num_heads": 4}, {"mlp": "swiglu", "heads": 4}),
        ("vit_base_patch16_clip_224", {"embed_dim": 64, "num_heads": 4}, {"pre_norm": True, "norm_eps": 1e-5}),
        ("vit_base_patch16_reg4_gap_256", {"embed_dim": 64, "num_heads": 4}, {"cls_token": False, "pool": "mean"}),
        ("test_vit", {}, {"heads": 2}),
        ("test_vit2", {}, {"heads": 2, "cls_token": False, "register_tokens": 1}),
        ("flexivit_small", {"num_classes": 4, "img_size": 64}, {"heads": 6}),
    ],
)
def test_a_folder_that_timm_saved_computes_the_same(
    tmp_path: Path, name: str, arguments: dict[str, Any], expected: dict[str, Any]
):
    from timm.models import save_for_hf

    arguments = {"depth": 2} | arguments
    there = timm.create_model(name, **arguments).eval()
    rng = torch.Generator().manual_seed(0)
    for parameter in there.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    save_for_hf(there, tmp_path / "theirs", model_args=arguments, safe_serialization="both")
    for kept in ("model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / kept
        folder.mkdir()
        os.link(tmp_path / "theirs" / kept, folder / kept)
        os.link(tmp_path / "theirs" / "config.json", folder / "config.json")
        found = read_model(folder)
        assert expected.items() <= found.model.items()
        config = timm.data.resolve_model_data_config(there)
        assert found.data["mean"] == tuple(config["mean"])
        assert found.data["std"] == tuple(config["std"])
        assert found.data["eval_crop"] == config["crop_pct"]
    images = np.random.default_rng(2).integers(0, 256, (2, *found.model["image_size"], 3), np.uint8)
    with torch.no_grad():
        inputs = normalised(found, images)
        patches = there.forward_features(inputs)[:, there.num_prefix_tokens :]
        logits = there(inputs)
    with unmask.load(folder, engine="torch", device="cpu", settings=WHOLE) as here:
        if there.num_classes:
            assert_close(here.predict(list(images)), logits.softmax(1), 1e-5)
        if "norm.weight" in found.weights:
            assert_close(here.patch_features(list(images)).reshape(patches.shape), patches, 1e-5)


def test_each_architecture_that_is_read_is_a_plain_vit_with_the_heads_of_the_table():
    read = 0
    for name in timm.list_models():
        try:
            _check_architecture(Path("x"), name, {})
        except CheckpointError:
            continue
        with torch.device("meta"):
            there = timm.create_model(name, depth=1)  # its blocks are alike
        if "attn.qkv.weight" not in there.blocks[0].state_dict() or there.attn_pool is not None:
            continue  # its tensors are refused by name
        read += 1
        block = there.blocks[0]
        assert type(there).__name__ == "VisionTransformer", name
        assert type(block).__name__ == "Block", name
        assert block.attn.num_heads == _OTHER_HEADS.get(name, _HEADS[there.embed_dim]), name
        assert type(block.mlp.act).__name__ == (
            "SiLU" if re.search("giant_patch14_.*(dinov2|tipsv2)", name) else "GELU"
        ), name
        assert type(block.norm1).__name__ == "LayerNorm", name
        assert block.norm1.eps == (1e-5 if "_clip" in name else 1e-6), name
        assert not there.pool_include_prefix, name
    assert read > 90


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch32_clip_quickgelu_224", "vit_base_patch16_rpn_224", "vit_base_patch16_rope_224", "resnet18",
     "vit_so400m_patch16_siglip_gap_256", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"],
)  # fmt: skip
def test_an_architecture_that_computes_otherwise_is_refused(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    with pytest.raises(CheckpointError, match=f"is of timm's {name}, which does not compute as our model does"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_args": {"qk_norm": True}}, "model_args that our model does not have: qk_norm"),
        ({"model_args": 3}, "no JSON object"),
        ({"pretrained_cfg": []}, "no JSON object"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std must be positive"),
        ({"pretrained_cfg": {"mean": "x"}}, "prepares images in a way that is none"),
        ({"label_names": ["a"]}, "does not name the 3 classes"),
        ({"label_names": {"0": "a", "2": "b"}}, "does not name the classes 0, 1, 2"),
        ({"model_args": {"global_pool": "map"}}, "pools by map"),
        ({"model_args": {"num_heads": "x"}}, "heads Input should be a valid integer"),
        ({"model_args": {"num_heads": 7}}, "not a multiple of heads"),
        ({"unmask": []}, "no JSON object"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], match: str):
    write_model("timm", tmp_path / "x", stored("classify", pool="mean"))
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=match) as raised:
        read_model(tmp_path / "x")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("prepared", "data"),
    [
        ({"crop_pct": 0.9, "crop_mode": "center"}, {"eval_crop": 0.9, "eval_fit": "crop"}),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, {"eval_fit": "squash"}),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, {}),
        ({"crop_pct": 1.0, "crop_mode": "border"}, {}),
        ({"interpolation": "lanczos"}, {"interpolation": "lanczos"}),
        ({"interpolation": "nearest"}, {"interpolation": "nearest"}),
        ({"interpolation": "hamming"}, {}),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "dtype": "uint8"}),
    ],
)
def test_how_images_are_prepared(tmp_path: Path, prepared: dict[str, Any], data: dict[str, Any], caplog: Any):
    write_model("timm", tmp_path, stored("classify", pool="mean"))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["unmask"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": prepared}))
    with caplog.at_level(logging.WARNING, "unmask"):
        assert read_model(tmp_path).data == data
    assert ("for which there is no setting here" in caplog.text) == (not data)


def test_what_timm_has_no_place_for_is_refused(tmp_path: Path):
    for fields, match in [
        ({"pool": "mean+cls"}, r"no place for a classifier with model\.pool=mean\+cls"),
        ({"pool": "mean", "norm_eps": 1e-3}, r"no such model with model\.norm_eps=0\.001"),
        ({"pool": "mean", "norm_eps": 1e-5, "mlp": "swiglu"}, r"no such model with model\.norm_eps=1e-05"),
    ]:
        with pytest.raises(CheckpointError, match=match):
            write_model("timm", tmp_path / "x", stored("classify", **fields))
    assert not (tmp_path / "x").exists()


def test_the_files_are_for_everyone_whom_the_umask_allows(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_model("timm", tmp_path / "x", stored("classify", pool="mean"))
    finally:
        os.umask(before)
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in (tmp_path / "x").iterdir()}
    assert modes == {"config.json": "-rw-r-----", "model.safetensors": "-rw-r-----"}
