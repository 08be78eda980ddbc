"""Folders of transformers, against transformers itself."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import objective_of
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, read_model, write_model

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")

SMALL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "channels": 1, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 3.0,
    "mask_ratio": 0.5, "norm_pix_loss": True, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 4,
}  # fmt: skip
MAE_ONLY = ("mask_ratio", "norm_pix_loss", "decoder_width", "decoder_depth", "decoder_heads")
THEIRS = {
    "image_size": 16, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "layer_norm_eps": 1e-6,
}  # fmt: skip
THEIRS_MAE = {
    "mask_ratio": 0.5, "norm_pix_loss": True, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4, "decoder_intermediate_size": 24,
}  # fmt: skip
OBJECTIVES = ["mae", "classify"]


def shaping(model: dict[str, Any]) -> dict[str, Any]:
    """Without what decides no shape, and belongs to the objective."""
    return {name: value for name, value in model.items() if name not in ("mask_ratio", "norm_pix_loss")}


def stored(weights: dict[str, np.ndarray], fields: dict[str, Any], names: Any) -> StoredModel:
    objective = {name: fields[name] for name in ("mask_ratio", "norm_pix_loss")}
    return StoredModel(weights, shaping(fields), names, "unmask", objective=objective)


def ours(objective: str, **fields: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    model = SMALL | {"num_classes": 3 if objective == "classify" else None, "pool": "cls"} | fields
    rng = np.random.default_rng(0)
    shapes = objective_of(objective, **shaping(model)).shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, model


def theirs(objective: str, **config: Any) -> Any:
    if objective == "mae":
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**THEIRS, **THEIRS_MAE, **config))
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**THEIRS, **config))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.normal_()
    return model


def assert_same(found: StoredModel, model: Any) -> None:
    """Every tensor of a transformers model, whichever version named it, is in its place."""
    weights = dict(found.weights)
    for name, tensor in model.state_dict().items():
        expected, actual = tensor.numpy(), weights
        stack, _, rest = re.sub(r"^(vit\.encoder\.layer|vit\.layers)\.", "blocks.", name).partition("decoder_layers.")
        module = f"decoder_blocks.{rest}" if rest else stack
        part = re.search(r"\.attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$", name)
        if part:
            fused = f"{module[: module.index('.attention')]}.attn.qkv.{part[2]}"
            row = "qkv".index(part[1][0])
            width = len(expected)
            np.testing.assert_array_equal(actual[fused][row * width : (row + 1) * width], expected, strict=True)
            continue
        for pattern, replacement in [
            (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
            (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^vit\.embeddings\.|^vit\.layernorm", lambda match: "norm" if "norm" in match[0] else ""),
            (r"^decoder\.", ""),
            (r"^classifier", "head"),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"attention\.(output\.dense|o_proj)", "attn.proj"),
            (r"\.intermediate\.dense|\.mlp\.fc1", ".mlp.fc1"),
            (r"\.output\.dense|\.mlp\.fc2", ".mlp.fc2"),
        ]:
            module = re.sub(pattern, replacement, module)
        np.testing.assert_array_equal(actual.pop(module), expected, err_msg=f"{module} {name}", strict=True)
    assert all("qkv" in name for name in weights)


@pytest.mark.parametrize("original", [True, False], ids=["names of 4", "names of 5"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_transformers_saves_is_read_tensor_by_tensor(tmp_path: Path, objective: str, original: bool):
    labels = {} if objective == "mae" else {"id2label": {0: "größe", 1: "b", 2: "c"}}
    model = theirs(objective, **labels)
    model.save_pretrained(tmp_path, save_original_format=original)
    found = read_model(tmp_path)
    assert_same(found, model)
    assert found.format == "transformers"
    told = {name: found.model[name] for name in SMALL if name in found.model}
    if objective == "mae":
        assert told == shaping(SMALL)
        assert found.objective == {"mask_ratio": 0.5, "norm_pix_loss": True}
        assert found.class_names is None
    else:
        assert told == {name: value for name, value in SMALL.items() if name not in MAE_ONLY}
        assert (found.model["num_classes"], found.model["pool"]) == (3, "cls")
        assert found.class_names == ("größe", "b", "c")
    shapes = objective_of(objective, **shaping(found.model)).shapes()
    assert {name: tensor.shape for name, tensor in found.weights.items()} == shapes


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_written_loads_strictly_and_comes_back(tmp_path: Path, objective: str):
    weights, fields = ours(objective)
    names = ("größe", "b", "c") if objective == "classify" else None
    write_model("transformers", tmp_path, stored(weights, fields, names))
    kind = transformers.ViTMAEForPreTraining if objective == "mae" else transformers.ViTForImageClassification
    model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    found = read_model(tmp_path)
    assert_same(found, model)
    assert found.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found.weights[name], tensor, strict=True)
    assert model.config.layer_norm_eps == 1e-6
    assert found.class_names == names
    if names:
        assert model.config.id2label == dict(enumerate(names))
        assert model.config.label2id["größe"] == 0
    assert {name: found.model[name] for name in shaping(fields) if name in found.model} == {
        name: value for name, value in shaping(fields).items() if name in found.model
    }


def test_what_is_written_has_the_names_of_transformers_4(tmp_path: Path):
    from safetensors import safe_open

    write_model("transformers", tmp_path, stored(*ours("mae"), None))
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert {
        "vit.encoder.layer.1.attention.attention.query.weight",
        "vit.encoder.layer.1.attention.output.dense.bias",
        "vit.encoder.layer.0.intermediate.dense.weight",
        "decoder.decoder_layers.0.attention.attention.value.bias",
        "decoder.decoder_layers.0.output.dense.weight",
        "decoder.mask_token",
        "vit.embeddings.patch_embeddings.projection.weight",
    } <= names


def test_a_classifier_that_is_not_square(tmp_path: Path):
    weights, fields = ours("classify", image_size=(8, 16))
    write_model("transformers", tmp_path, stored(weights, fields, None))
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    assert model(torch.zeros(1, 1, 8, 16)).logits.shape == (1, 3)
    found = read_model(tmp_path)
    assert found.model["image_size"] == (8, 16)
    assert found.class_names is None  # LABEL_0 … is nobody's name


def test_half_precision_is_widened(tmp_path: Path):
    for kind in (torch.bfloat16, torch.float16):
        model = theirs("classify").to(kind)
        model.save_pretrained(tmp_path)
        assert_same(read_model(tmp_path), model.float())


def test_the_older_pytorch_model_bin(tmp_path: Path):
    model = theirs("mae")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(read_model(tmp_path), model)


def test_what_transformers_has_no_place_for_is_refused(tmp_path: Path):
    def refused(objective: str, match: str, *, without: str = "", names: Any = None, **fields: Any) -> None:
        weights, model = ours(objective, **fields)
        model.pop(without, None)
        with pytest.raises(CheckpointError, match=match) as raised:
            write_model("transformers", tmp_path / "x", stored(weights, model, names))
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "x").exists()

    refused("classify", "has no classifier with model.pool=mean.*--to timm", pool="mean")
    refused("mae", "has no autoencoder with model.image_size=.*not square", image_size=(8, 16))
    refused("mae", "does not tell decoder_heads", without="decoder_heads")
    refused("classify", "does not tell heads", without="heads")
    refused("classify", "2 class names for a head of 3 classes", names=("a", "b"))
    weights, model = ours("mae")
    encoder = {name: tensor for name, tensor in weights.items() if name != "decoder_norm.bias"}
    with pytest.raises(CheckpointError, match=r"decoder_norm\.bias is missing"):
        write_model("transformers", tmp_path / "x", stored(encoder, model, None))
    with pytest.raises(CheckpointError, match=r"not one of our models: .*not a multiple of heads=5"):
        write_model("transformers", tmp_path / "x", stored(weights, model | {"heads": 5}, None))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_act": "relu"}, "hidden_act=relu"),
        ({"qkv_bias": False}, "contradicts itself: it says qkv_bias=False where its tensors have True"),
        ({"layer_norm_eps": "x"}, "norm_eps Input should be a valid number"),
        ({"decoder_intermediate_size": 32}, "decoder_intermediate_size=32, where our model"),
        ({"hidden_size": 0}, "a number that is none"),
        ({"hidden_size": [16]}, "a number that is none"),
        ({"num_attention_heads": 3}, "not a multiple of heads=3"),
        ({"patch_size": [4, 8]}, "patch_size"),
        ({"image_size": "big"}, "image_size"),
        ({"image_size": 18}, "not a multiple of patch_size"),
        ({"model_type": "bert"}, "is of bert"),
        ({"model_type": ["vit"]}, "is of"),
        ({"architectures": ["ViTMAEModel"]}, r"does not have: decoder_blocks"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(tmp_path: Path, change: dict[str, Any], match: str):
    write_model("transformers", tmp_path, stored(*ours("mae"), None))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=match) as raised:
        read_model(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_that_do_not_count_up_are_refused(tmp_path: Path):
    write_model("transformers", tmp_path, stored(*ours("classify"), ("a", "b", "c")))
    path = tmp_path / "config.json"
    for labels in ({"0": "a", "2": "b"}, [1], 7):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": labels}))
        with pytest.raises(CheckpointError, match="id2label does not name the classes"):
            read_model(tmp_path)


def test_unknown_and_incomplete_tensors_are_all_listed(tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    write_model("transformers", tmp_path, stored(*ours("classify"), None))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vit.encoder.layer.1.attention.attention.key.bias"]
    save_file(tensors | {"vit.stranger.bias": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"an incomplete blocks\.1\.attn\.qkv\.bias, .*stranger\.bias"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has neither model"):
        read_model(tmp_path)


def test_a_failed_write_is_one_line(tmp_path: Path):
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*/x: "):
        write_model("transformers", tmp_path / "x", stored(*ours("mae"), None))
