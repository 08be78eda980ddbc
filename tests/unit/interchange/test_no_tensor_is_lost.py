"""Of every layout that is read: a tensor that is renamed, added or of another shape is placed, refused by name, or said
to be left out; and settings that contradict the tensors are refused by both names."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engine_cases import objective_of
from mindspore_models import zoo
from unmask.errors import CheckpointError
from unmask.interchange import Format, StoredModel, read_model, write_model
from unmask.interchange.mindspore_file import read_ckpt, write_ckpt

SMALL: dict[str, Any] = {
    "image_size": (16, 16), "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
    "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
PUBLIC: dict[str, Any] = {"layer_scale": 0.1, "register_tokens": 2}
Tensors = dict[str, np.ndarray]
Writer = Callable[[Path, Tensors], Path]


def drawn(objective: str, **fields: Any) -> Tensors:
    """No two values are the same, nor zero, so that what is lost shows."""
    rng = np.random.default_rng(0)
    fields = {"num_classes": 3, **fields} if objective == "classify" else fields
    shapes = objective_of(objective, **SMALL, **fields).shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    for pattern, replacement in pairs:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


def pth(path: Path, tensors: Tensors) -> Path:
    torch = pytest.importorskip("torch", reason="writes with torch")
    torch.save({"model": {name: torch.tensor(tensor) for name, tensor in tensors.items()}}, path / "x.pth")
    return path / "x.pth"


def safetensors(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path / "x.safetensors")
    return path / "x.safetensors"


def ckpt(path: Path, tensors: Tensors) -> Path:
    write_ckpt(path / "x.ckpt", {name: tensor for name, tensor in tensors.items() if tensor.size})
    return path / "x.ckpt"


def folder(path: Path, tensors: Tensors) -> Path:
    """Beside the config.json that is there."""
    save_file(tensors, path / "model.safetensors")
    return path


def shards(path: Path, tensors: Tensors) -> Path:
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, path / file)
    places = {name: file for file, inside in parts.items() for name in inside}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def written(format: Format, objective: str, writer: Writer = folder, **fields: Any) -> Any:
    """A folder as we write it, whose tensors are then changed."""

    def prepare(path: Path) -> tuple[Writer, Tensors]:
        model = objective_of(objective, **SMALL, **({"num_classes": 3} if objective == "classify" else {}), **fields)
        data = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "eval_crop": 1.0, "interpolation": "bicubic"}
        weights = drawn(objective, **fields)
        stored = StoredModel(weights, model.model.model_dump(mode="json"), None, "unmask", None, data)
        write_model(format, path, stored)
        tensors = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        return writer, tensors

    return prepare


def plain(writer: Writer, tensors: Callable[[], Tensors]) -> Any:
    return lambda path: (writer, tensors())


def dino() -> Tensors:
    return renamed(drawn("encoder"), ("^", "module.backbone.")) | {"module.head.mlp.0.weight": np.ones((2, 16), "f4")}


def moco() -> Tensors:
    weights = renamed(drawn("encoder"), ("^", "module.base_encoder."))
    return weights | renamed(weights, ("base_encoder", "momentum_encoder"))


def probe() -> Tensors:
    rng = np.random.default_rng(1)
    norm = {"head.0.running_mean": rng.normal(size=16).astype("f4"), "head.0.running_var": rng.random(16, "f4") + 1}
    return renamed(drawn("classify", pool="cls"), (r"^head\.", "head.1.")) | norm


def deit3() -> Tensors:
    return renamed(drawn("classify", pool="cls", layer_scale=0.1), (r"ls(\d)\.gamma", r"gamma_\1"))


def gamma(tensors: Tensors) -> Tensors:
    return renamed(tensors, (r"(norm\w*)\.weight", r"\1.gamma"), (r"(norm\w*)\.bias", r"\1.beta"))


LAYOUTS: dict[str, Any] = {
    "MAE": plain(pth, lambda: drawn("mae")),
    "MAE, encoder": plain(pth, lambda: drawn("encoder")),
    "MAE, linear probe": plain(pth, probe),
    "DINO": plain(pth, dino),
    "MoCo-v3": plain(pth, moco),
    "DINOv2": plain(pth, lambda: renamed(drawn("encoder", **PUBLIC), ("reg_token", "register_tokens"))),
    "DeiT III": plain(pth, deit3),
    "ours, .safetensors": plain(safetensors, lambda: drawn("classify", pool="mean")),
    "timm": written("timm", "classify", pool="mean"),
    "timm, DINOv2": written("timm", "encoder", **PUBLIC),
    "ViT": written("transformers", "classify", pool="cls"),
    "ViT, shards": written("transformers", "classify", shards, pool="cls"),
    "ViTMAE": written("transformers", "mae"),
    "DINOv2 with registers": written("transformers", "classify", pool="mean+cls", **PUBLIC),
    "MindSpore": plain(ckpt, lambda: gamma(drawn("mae"))),
    "MindSpore, .safetensors": plain(safetensors, lambda: gamma(drawn("classify", pool="cls", **PUBLIC))),
    "model zoo, MAE": plain(ckpt, lambda: zoo("pretrain")),
    "model zoo, ViT": plain(ckpt, lambda: zoo("finetune")),
    "model zoo's course": plain(ckpt, lambda: zoo("finetune", patch_norm=False)),
}  # fmt: skip

NAMES = sorted(
    {
        *drawn("mae"), *drawn("classify", pool="mean", patch_norm=True, pre_norm=True, **PUBLIC), *dino(), *moco(),
        *probe(), *deit3(), *zoo("pretrain"), *zoo("finetune"), "dist_token", "blocks.0.attn.q_norm.weight",
        "rope.freqs", "head.2.weight", "vit.embeddings.mask_token", "vit.pooler.dense.weight",
        "blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc1_x.weight", "blocks.0.attn.qkv.lora_A", "decoder.mask_token",
        "cls_pos", "learning_rate", "adam_m.norm.weight", "global_step", "blocks.00.norm1.weight",
        "blocks.2.norm1.weight", "norm.gamma", "encoder.norm.beta", "classifier.weight",
    }
)  # fmt: skip
"""Names of all layouts, which in another layout must not get lost either."""


def known_values(tensors: Tensors) -> set[float]:
    return {value for tensor in tensors.values() for value in np.asarray(tensor, np.float32).ravel().tolist()}


@st.composite
def changes(draw: st.DrawFn, tensors: Tensors) -> tuple[str, Tensors, set[str]]:
    """What was done, the tensors after it, and the names concerned."""
    what = draw(st.sampled_from(["renamed", "added", "another shape"]))
    name = draw(st.sampled_from(sorted(tensors)))
    new = draw(
        st.one_of(
            st.sampled_from(NAMES),
            st.sampled_from(["_", ".x", ".weight", "0"]).map(lambda end: name + end),
            st.sampled_from(["x.", "module.", "blocks.0.", "decoder."]).map(lambda start: start + name),
            st.from_regex(r"[a-z]{1,6}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True),
        )
    )
    shape = draw(
        st.sampled_from([(), (1,), (16,), (3,), (1, 1, 16), (16, 16), (3, 16), (1, 17, 16), (48, 16), (2, 2, 2, 2)])
    )
    other = np.asarray(np.random.default_rng(7).normal(size=shape) + 9, np.float32)
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    if what == "added":
        return what, {**tensors, new: other}, {new}
    return (
        (what, {**rest, new: tensors[name]}, {name, new})
        if what == "renamed"
        else (what, {**rest, name: other}, {name})
    )


class Layout:
    """A sound file, and what becomes of others like it."""

    def __init__(self, name: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.path, self.caplog = path, caplog
        caplog.set_level(logging.WARNING, "unmask")
        self.write, self.tensors = LAYOUTS[name](path)
        sound = read_model(self.write(path, self.tensors)).weights
        self.names = {*self.tensors, *sound}
        placed = known_values(sound)
        self.computed = {name for name, tensor in self.tensors.items() if known_values({name: tensor}) - placed}
        """What is computed with, such as the positions of registers, and cannot be found again."""

    def check(self, what: str, changed: Tensors, concerned: set[str]) -> None:
        """Everything in the changed file is placed, said to be left out, or refused by name."""
        self.caplog.clear()
        try:
            found = read_model(self.write(self.path, changed)).weights
        except CheckpointError as error:
            message = str(error)
            assert "\n" not in message
            stranger = what == "added" and not concerned & {*NAMES}
            named = concerned if stranger else {*concerned, *self.names}
            assert any(name in message for name in spellings(named)), f"{what} {concerned}: {message}"
            return
        placed = known_values(found)
        for name, tensor in changed.items():
            if name in self.computed or not tensor.any() or not known_values({name: tensor}) - placed:
                continue
            said = any(each in self.caplog.text for each in spellings({name}))
            assert said or re.search(r"(heads of|state of its training).* left out", self.caplog.text), f"{what} {name}"


def spellings(names: set[str]) -> set[str]:
    """As messages may have them: without wrappers, norms and layer scales in our words, or what is beside them."""
    found: set[str] = set()
    for name in names:
        ours = re.sub(r"\.(gamma|lambda1)$", lambda kind: ".weight" if kind[1] == "gamma" else ".gamma", name)
        ours = re.sub(r"\.beta$", ".bias", ours)
        for each in (name, ours):
            short = re.sub(r"^((module|backbone|base_encoder|encoder|decoder|vit|dinov2_with_registers)\.)+", "", each)
            module = short.rpartition(".")[0]
            found |= {each, short, *re.findall(r"blocks\.\d+\.", name), *([f"{module}."] if module else [])}
    return found - {""}


def check_layout(name: str, path: Path, caplog: pytest.LogCaptureFixture, examples: int) -> None:
    layout = Layout(name, path, caplog)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(changes(layout.tensors))
    def check(change: tuple[str, Tensors, set[str]]) -> None:
        layout.check(*change)

    check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_tensor_is_placed_refused_or_said(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    check_layout(layout, tmp_path, caplog, 25)


@pytest.mark.campaign
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_changed_tensors(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    check_layout(layout, tmp_path, caplog, 300)


# --- settings against tensors ---


def edited(path: Path, format: Format, change: dict[str, Any]) -> Path:
    """A classifier as we write it, with other settings beside the same tensors."""
    fields = {"pool": "cls", "num_classes": 3}
    model = objective_of("classify", **SMALL, **fields).model.model_dump(mode="json")
    suffix = {"mindspore": ".ckpt", "mindspore-zoo": ".ckpt", "facebook": ".pth"}.get(format, "")
    place = path / f"x{suffix}"
    write_model(format, place, StoredModel(drawn("classify", **fields), model, ("a", "b", "c"), "unmask"))
    if format == "facebook":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        content = torch.load(place, weights_only=True)
        beside = json.loads(content["unmask"])
        torch.save(content | {"unmask": json.dumps(beside | {"model": model | change})}, place)
    elif suffix:
        tensors = read_ckpt(place)
        beside = json.loads(tensors["unmask"].tobytes())
        text = json.dumps(beside | {"model": model | change}).encode()
        write_ckpt(place, tensors | {"unmask": np.frombuffer(text, np.uint8)})
    else:
        config = json.loads((place / "config.json").read_text())
        if format == "timm":
            config["model_args"] |= change
        else:
            config |= change
        (place / "config.json").write_text(json.dumps(config))
    return place


OURS = [
    ("model.width", 32, "16"), ("model.depth", 3, "2"), ("model.channels", 1, "3"), ("model.patch_size", 8, "4"),
    ("model.num_classes", 4, "3"), ("model.pool", "mean", "cls"), ("model.cls_token", None, ""),
    ("model.image_size", [16, 24], "16 patches"), ("model.mlp_ratio", 4.0, "2.0"), ("model.qkv_bias", False, "True"),
    ("model.patch_norm", True, "False"), ("model.mlp", "swiglu", "gelu"),
]  # fmt: skip
THEIRS: dict[str, list[tuple[str, Any, str]]] = {
    "timm": [
        ("embed_dim", 32, "16"), ("depth", 3, "2"), ("in_chans", 1, "3"), ("patch_size", 8, "4"),
        ("qkv_bias", False, "True"), ("class_token", False, "True"), ("pre_norm", True, "False"),
        ("img_size", [16, 24], "16 patches"),
    ],
    "transformers": [
        ("hidden_size", 32, "16"), ("num_hidden_layers", 3, "2"), ("num_channels", 1, "3"), ("patch_size", 8, "4"),
        ("qkv_bias", False, "True"), ("image_size", [16, 24], "16 patches"),
        ("intermediate_size / hidden_size", 64, "2.0"),
    ],
}  # fmt: skip
CONTRADICTIONS = [
    (format, *case) for format in ("facebook", "mindspore", "mindspore-zoo") for case in OURS if case[1] is not None
] + [(format, *case) for format, cases in THEIRS.items() for case in cases]


@pytest.mark.parametrize(("format", "key", "value", "seen"), CONTRADICTIONS)
def test_settings_that_contradict_the_tensors_are_refused_by_both_names(
    tmp_path: Path, format: Format, key: str, value: Any, seen: str
):
    with pytest.raises(CheckpointError) as raised:
        read_model(edited(tmp_path, format, {re.sub(r"^model\.| / .*", "", key): value}))
    message = str(raised.value)
    assert "contradicts itself" in message
    assert re.search(rf"{re.escape(key)}=.* where its .*{re.escape(seen)}", message), message


@pytest.mark.parametrize("format", ["facebook", "mindspore", "timm", "transformers"])
def test_settings_that_agree_are_read(tmp_path: Path, format: Format):
    found = read_model(edited(tmp_path, format, {}))
    assert (found.model["width"], found.class_names) == (16, ("a", "b", "c"))
