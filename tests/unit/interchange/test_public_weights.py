"""The road in: weights as they are published, what is asked for, and going on with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from engine_cases import objective_of
from unmask.cli import main
from unmask.config.schema import DataConfig, ModelConfig
from unmask.errors import CheckpointError, ConfigError
from unmask.interchange import read_model
from unmask.interchange.adapt import adapt_channels, adapt_encoder

torch = pytest.importorskip("torch", reason="writes and computes with torch")

SMALL: dict[str, Any] = {
    "image_size": [32, 32], "patch_size": 8, "width": 24, "depth": 2, "heads": 3,
    "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
TOLD = {"model.heads": 3, "model.decoder_heads": 2}
IMAGENET = {"data.mean": [0.485, 0.456, 0.406], "data.std": [0.229, 0.224, 0.225]}
Weights = dict[str, np.ndarray]


def weights_of(objective: str, **fields: Any) -> Weights:
    rng = np.random.default_rng(0)
    shapes = objective_of(objective, **SMALL | fields).shapes()
    return {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def saved(path: Path, weights: Weights, **beside: Any) -> Path:
    torch.save({"model": {name: torch.tensor(tensor) for name, tensor in weights.items()}, **beside}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    for number in range(9):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        path = tmp_path / "photos" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((50, 41), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


# --- in ---


def test_the_published_encoder_alone_gives_all_but_reconstructions(tmp_path: Path, photos: Path):
    whole = weights_of("mae")
    encoder = {name: t for name, t in whole.items() if "decoder" not in name and name != "mask_token"}
    path = saved(tmp_path / "mae_pretrain_vit_base.pth", encoder)
    with pytest.raises(ConfigError, match=r"does not tell model\.heads; give --set model\.heads=N"):
        unmask.load(path)
    full = unmask.load(saved(tmp_path / "mae_pretrain_vit_base_full.pth", whole), settings=TOLD)
    alone = unmask.load(path, settings={"model.heads": 3})
    for pool in ("mean", "cls"):
        np.testing.assert_array_equal(alone.embed(photos, pool=pool), full.embed(photos, pool=pool))
    assert alone.config.data.mean == (0.485, 0.456, 0.406)
    assert full.reconstruct(photos).original.shape == (9, 32, 32, 3)
    with pytest.raises(ConfigError, match="cannot reconstruct, it has no decoder"):
        alone.reconstruct(photos)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("mae_visualize_vit_base.pth", None, False),
        ("mae_pretrain_vit_base_full.pth", None, True),
        ("checkpoint-799.pth", argparse.Namespace(norm_pix_loss=False, mask_ratio=0.6), False),
        ("checkpoint-799.pth", argparse.Namespace(norm_pix_loss=True), True),
        ("mine.pth", None, None),
    ],
)
def test_whether_targets_were_normalised_is_told_or_asked(
    tmp_path: Path, photos: Path, name: str, arguments: Any, told: bool | None
):
    path = saved(tmp_path / name, weights_of("mae"), **({} if arguments is None else {"args": arguments}))
    model = unmask.load(path, settings=TOLD if told is not None else TOLD | IMAGENET)
    if told is not None:
        assert model.painting().norm_pix_loss is told
        return
    assert model.embed(photos).shape == (9, 24)
    with pytest.raises(ConfigError, match=r"does not tell objective\.norm_pix_loss"):
        model.evaluate(photos)
    settings = TOLD | IMAGENET | {"objective.norm_pix_loss": False}
    assert not unmask.load(path, settings=settings).painting().norm_pix_loss


def test_a_linear_probe_of_the_official_code_is_a_classifier(tmp_path: Path):
    weights = weights_of("classify", num_classes=3, pool="cls")
    rng = np.random.default_rng(1)
    mean, var = rng.standard_normal(24, np.float32), rng.random(24, np.float32) + 0.5
    probe = {f"head.1.{kind}": weights.pop(f"head.{kind}") for kind in ("weight", "bias")}
    probe |= {"head.0.running_mean": mean, "head.0.running_var": var, "head.0.num_batches_tracked": np.array(7)}
    found = read_model(saved(tmp_path / "x.pth", weights | probe))
    features = rng.standard_normal((4, 24), np.float32)
    expected = (features - mean) / np.sqrt(var + 1e-6) @ probe["head.1.weight"].T + probe["head.1.bias"]
    ours = features @ found.weights["head.weight"].T + found.weights["head.bias"]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (found.kind, found.model["pool"]) == ("classifier", "cls")


def as_dino(weights: Weights) -> dict[str, Any]:
    teacher = {f"module.backbone.{name}": torch.tensor(t) for name, t in weights.items()}
    head = {"module.head.last_layer.weight_g": torch.ones(2, 1)}
    return {"student": teacher | head, "teacher": teacher | head, "args": argparse.Namespace(arch="vit_small")}


def as_moco(weights: Weights) -> dict[str, Any]:
    return {"state_dict": {f"module.base_encoder.{name}": torch.tensor(t) for name, t in weights.items()}}


def as_deit3(weights: Weights) -> dict[str, Any]:
    """No position for cls; layer scale under another name."""
    named = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for n, t in weights.items()}
    named["pos_embed"] = weights["pos_embed"][:, 1:]
    return {"model": {name: torch.tensor(tensor) for name, tensor in named.items()}}


def as_dinov2(weights: Weights) -> dict[str, Any]:
    named = {n.replace("reg_token", "register_tokens"): torch.tensor(t) for n, t in weights.items()}
    return named | {"mask_token": torch.zeros(1, 24)}


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        (as_dino, {}),
        (as_moco, {}),
        (as_deit3, {"layer_scale": 1e-4}),
        (as_dinov2, {"layer_scale": 1e-5, "register_tokens": 4}),
    ],
)
def test_other_published_layouts_are_read_whole(tmp_path: Path, layout: Any, fields: dict[str, Any]):
    weights = weights_of("encoder", **fields)
    if layout is as_deit3:
        weights["pos_embed"][:, 0] = 0
    torch.save(layout(weights), tmp_path / "x.pth")
    found = read_model(tmp_path / "x.pth")
    assert found.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found.weights[name], tensor, err_msg=name)
    assert found.model.get("register_tokens", 0) == fields.get("register_tokens", 0)
    assert ("layer_scale" in found.model) == ("layer_scale" in fields)


@pytest.mark.parametrize("stranger", ["blocks.0.attn.q_norm.weight", "rope_embed.periods", "dist_token", "blocks.0.x"])
def test_a_tensor_without_a_place_is_refused_by_name(tmp_path: Path, stranger: str):
    path = saved(tmp_path / "x.pth", weights_of("encoder") | {stranger: np.ones((1, 1, 24), np.float32)})
    with pytest.raises(CheckpointError, match=stranger.replace(".", r"\.")):
        read_model(path)


# --- going on ---


def test_other_channels_and_other_normalisation_give_the_same_tokens():
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((5, 3, 4, 4)), rng.standard_normal(5)
    there, here = ([0.5, 0.4, 0.3], [0.3, 0.2, 0.25]), ([0.2], [0.7])

    def tokens(weight: np.ndarray, bias: np.ndarray, pixels_CHW: np.ndarray, mean: Any, std: Any) -> np.ndarray:
        normalised = (pixels_CHW - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        return np.einsum("dchw,chw->d", weight, normalised) + bias

    grey = rng.random((1, 4, 4))
    expected = tokens(weight, bias, np.repeat(grey, 3, 0), *there)
    np.testing.assert_allclose(tokens(*adapt_channels(weight, bias, 1, there, here), grey, *here), expected, atol=1e-5)
    colour, others = rng.random((3, 4, 4)), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    renormalised = tokens(*adapt_channels(weight, bias, 3, there, others), colour, *others)
    np.testing.assert_allclose(renormalised, tokens(weight, bias, colour, *there), atol=1e-5)
    one = adapt_channels(weight, bias, 1, there, here)
    back = tokens(*adapt_channels(*one, 3, here, there), np.repeat(grey, 3, 0), *there)
    np.testing.assert_allclose(back, expected, atol=1e-5)
    twelve, _ = adapt_channels(weight, bias, 12, there, None)
    np.testing.assert_allclose(twelve.sum(1), weight.sum(1), atol=1e-5)


def test_pretraining_goes_on_from_an_encoder_with_all_it_has(tmp_path: Path, photos: Path):
    fields = {"layer_scale": 1e-5, "register_tokens": 2, "image_size": [64, 64]}
    torch.save({n: torch.tensor(t) for n, t in weights_of("encoder", **fields).items()}, tmp_path / "start.pth")
    settings: dict[str, Any] = {f"model.{name}": value for name, value in SMALL.items()} | {
        "init": tmp_path / "start.pth",
        "data.train": photos,
        "output": tmp_path / "run",
        "train.epochs": 2,
        "train.batch_size": 3,
        "optimizer.warmup_epochs": 0,
        "optimizer.base_lr": 0,
        "optimizer.weight_decay": 0,
        "device": "cpu",
    }
    unmask.pretrain("mae-vit-tiny", settings)
    found = read_model(tmp_path / "run")
    expected = adapt_encoder(
        read_model(tmp_path / "start.pth").weights,
        ModelConfig.model_validate(found.model),
        source="start",
        data=DataConfig(),
    )
    assert {"reg_token", "blocks.1.ls2.gamma"} <= expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.weights[name], tensor, err_msg=name)
    assert found.kind == "autoencoder"
    # Going on needs the start no more; another run takes the decoder too.
    (tmp_path / "start.pth").unlink()
    unmask.pretrain("mae-vit-tiny", settings)
    longer = settings | {"init": tmp_path / "run", "output": tmp_path / "longer", "seed": 5}
    unmask.pretrain("mae-vit-tiny", longer)
    for name, tensor in read_model(tmp_path / "longer").weights.items():
        np.testing.assert_array_equal(tensor, found.weights[name], err_msg=name)


def test_a_setting_tells_what_a_file_does_not(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    path = saved(tmp_path / "x.pth", weights_of("encoder"))
    command = ["embed", str(path), str(photos / "a"), "--out", str(tmp_path / "e.parquet")]
    assert main(command) == 2
    assert "--set model.heads=N" in capsys.readouterr().err
    pixels = ["--set", "data.mean=[0.5,0.5,0.5]", "--set", "data.std=[0.5,0.5,0.5]"]
    assert main([*command, "--set", "model.heads=3", *pixels]) == 0
