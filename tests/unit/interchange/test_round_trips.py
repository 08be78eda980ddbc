"""What is converted gives the run's own numbers: every format, kind of model and kind of image."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import unmask
from unmask.checkpoint.folder import Checkpoint
from unmask.checkpoint.store import CheckpointStore
from unmask.cli import main
from unmask.config.load import check_config, to_dict
from unmask.config.schema import objective_section
from unmask.engines.base import EngineState
from unmask.interchange import read_model
from unmask.objectives.base import create_objective

pytest.importorskip("torch", reason="writes and computes with torch")

SMALL: dict[str, Any] = {
    "image_size": [32, 32], "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 1.7,
    "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
SEED = 5
"""Of the runs: it decides the masks of an evaluation."""


def png(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray((255 * pixels).astype(np.uint8).squeeze()).save(path.with_suffix(".png"))


def png_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray((65535 * pixels).astype(np.uint16).squeeze()).save(path.with_suffix(".png"))


def tiff(path: Path, pixels: np.ndarray) -> None:
    bands = (65535 * pixels).astype(np.uint16)
    tifffile.imwrite(path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig")


def npy(path: Path, pixels: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), 40 * pixels.astype(np.float32) - 3)


BANDS = {"mean": np.linspace(0.3, 0.6, 12).tolist(), "std": np.linspace(0.1, 0.3, 12).tolist()}
IMAGES: dict[str, tuple[Callable[[Path, np.ndarray], None], dict[str, Any]]] = {
    "colour": (png, {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25], "eval_crop": 0.8, "interpolation": "bilinear"}),
    "grey": (png, {"mean": [0.4], "std": [0.3], "eval_fit": "squash", "interpolation": "lanczos", "eval_crop": 1.0}),
    "16 bits": (png_of_16_bits, {"mean": [0.45], "std": [0.2], "dtype": "uint16", "eval_crop": 0.9}),
    "12 bands": (tiff, {**BANDS, "dtype": "uint16", "eval_crop": 0.8, "eval_fit": "squash"}),
    "floating": (npy, {**BANDS, "dtype": "float32"}),
}
"""How each kind of image is written, and how a run prepares them; no value is a default."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("mae", {}),
    "cls": ("classify", {"pool": "cls"}),
    "mean": ("classify", {"pool": "mean"}),
    "mean+cls": ("classify", {"pool": "mean+cls", "mlp_ratio": 2}),
    "encoder": ("lejepa", {}),
}
FORMATS = {
    "x.pth": "facebook", "for-timm": "timm", "for-transformers": "transformers", "x.ckpt": "mindspore",
    "x.safetensors": "mindspore", "zoo.ckpt": "mindspore-zoo",
}  # fmt: skip
REFUSED = {
    ("mean", "transformers"): "no classifier with model.pool=mean, whose norm comes after the pooling; try --to timm",
    ("mean+cls", "timm"): "no place for a classifier with model.pool=mean+cls; try --to transformers, facebook or",
}
ENCODER_ALONE = {("autoencoder", "timm")}


def images(folder: Path, kind: str) -> Path:
    """Six in three classes, of three sizes, smooth with a little noise."""
    write, data = IMAGES[kind]
    rng = np.random.default_rng(3)
    for number, (height, width) in enumerate([(41, 50), (70, 33), (37, 90)] * 2):
        y, x = np.mgrid[:height, :width] / 20
        channels = rng.normal(size=(len(data["mean"]), 3))
        pixels = np.stack([np.sin(a * x + b * y + c) for a, b, c in channels], -1)
        path = folder / "abc"[number % 3] / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, (0.5 + 0.4 * pixels + rng.normal(0, 0.02, pixels.shape)).clip(0, 1))
    return folder


def a_run(folder: Path, model: str, kind: str, **fields: Any) -> Path:
    """With every weight drawn, and settings that are no defaults."""
    name, its_own = MODELS[model]
    data = IMAGES[kind][1]
    classes = ["a", "b", "c"] if objective_section(name).labelled else None
    shape = SMALL | ({"num_classes": 3} if classes else {}) | its_own | fields | {"channels": len(data["mean"])}
    section = {"name": name} | ({"norm_pix_loss": False, "mask_ratio": 0.6} if name == "mae" else {})
    config = check_config({"objective": section, "model": shape, "data": data, "seed": SEED, "device": "cpu"})
    objective, rng = create_objective(config), np.random.default_rng(0)
    weights = {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in objective.shapes().items()}
    if "decoder_pos_embed" in weights:
        weights["decoder_pos_embed"][:, 0] = 0  # as it always is, sine-cosine
    with CheckpointStore(folder / "checkpoints", keep=1) as store:
        state = EngineState(weights, buffers={**objective.initial_buffers(0)})
        store.save(Checkpoint(1, state, {"config": to_dict(config), "class_names": classes}))
    return folder


def numbers(path: Path, photos: Path, engine: str = "torch") -> dict[str, Any]:
    with unmask.load(path, engine=engine, device="cpu") as model:
        figures: dict[str, Any] = {"embed": model.embed(photos)}
        if model.config.model.cls_token:
            figures["mean+cls"] = model.embed(photos, pool="mean+cls")
        if "logits" in model.objective.outputs:
            figures |= {"predict": model.predict(photos), **model.evaluate(photos)}
        if model.config.objective.name == "mae":
            figures |= {"painted": model.reconstruct(photos).reconstruction, **model.evaluate(photos)}
    return figures


def assert_same(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, values in expected.items():
        difference = np.abs(np.asarray(found[name], np.float64) - np.asarray(values, np.float64)).max()
        assert difference <= 1e-6 * max(1, np.abs(values).max()), f"{what}: {name}"


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_gives_the_numbers_of_the_run(
    tmp_path: Path, model: str, kind: str, capsys: pytest.CaptureFixture[str]
):
    run, photos = a_run(tmp_path / "run", model, kind), images(tmp_path / "photos", kind)
    expected, source = numbers(run, photos), read_model(run)
    for name, format in FORMATS.items():
        capsys.readouterr()
        refused = REFUSED.get((model, format))
        assert main(["convert", str(run), str(tmp_path / name), "--to", format]) == (4 if refused else 0)
        if refused:
            assert refused in capsys.readouterr().err
            continue
        wanted = expected
        if (model, format) in ENCODER_ALONE:
            wanted = {what: expected[what] for what in ("embed", "mean+cls")}
        assert_same(numbers(tmp_path / name, photos), wanted, name)
        found = read_model(tmp_path / name)
        assert found.class_names == source.class_names
        # transformers keeps eval_crop as two sizes in whole pixels
        assert prepared(found.data) == prepared(source.data), name


def prepared(data: dict[str, Any]) -> dict[str, Any]:
    return {n: tuple(v) if isinstance(v, list) else v for n, v in data.items() if n != "eval_crop"}


EXTRAS: dict[str, dict[str, Any]] = {
    "layer scale, registers": {"layer_scale": 0.1, "register_tokens": 2, "mlp_ratio": 2},
    "swiglu": {"mlp": "swiglu", "mlp_ratio": 2, "qkv_bias": False},
    "norms": {"pre_norm": True, "patch_norm": True, "norm_eps": 1e-5},
    "no cls": {"cls_token": False, "image_size": [24, 40]},
    "stem": {"patch_stem": 8},
}


@pytest.mark.parametrize("fields", EXTRAS)
@pytest.mark.parametrize("model", ["autoencoder", "cls", "mean"])
def test_what_public_weights_have_comes_back_too_or_is_refused_by_name(
    tmp_path: Path, model: str, fields: str, capsys: pytest.CaptureFixture[str]
):
    if model == "cls" and fields == "no cls":
        return
    run, photos = a_run(tmp_path / "run", model, "colour", **EXTRAS[fields]), images(tmp_path / "photos", "colour")
    expected = numbers(run, photos)
    written: list[str] = []
    for name, format in FORMATS.items():
        capsys.readouterr()
        if main(["convert", str(run), str(tmp_path / name), "--to", format]):
            assert "; try --to " in (told := capsys.readouterr().err)
            assert told.count("\n") == 1
            continue
        found = numbers(tmp_path / name, photos)
        assert_same(found, {what: expected[what] for what in found}, name)
        assert (model, format) in ENCODER_ALONE or found.keys() == expected.keys()
        written.append(format)
    assert {"facebook", "mindspore"} <= set(written)


@pytest.mark.parametrize(("model", "out"), [("autoencoder", "x.pt2"), ("cls", "x.onnx"), ("mean", "x.pt2")])
def test_a_stem_is_refused_with_the_commands_that_write_it(
    tmp_path: Path, model: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = a_run(tmp_path / "run", model, "colour", **EXTRAS["stem"])
    for to in ("timm", "transformers"):
        assert main(["convert", str(run), str(tmp_path / "out"), "--to", to]) == 4
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "; try --to facebook or mindspore, or `unmask export MODEL OUT.onnx` (or OUT.pt2)" in told
    assert main(["convert", str(run), str(tmp_path / "x.pth"), "--to", "facebook"]) == 0
    assert main(["convert", str(run), str(tmp_path / "x.ckpt"), "--to", "mindspore"]) == 0
    assert main(["export", str(run), str(tmp_path / out)]) == 0


def test_from_format_to_format_nothing_is_lost(tmp_path: Path):
    photos = images(tmp_path / "photos", "16 bits")
    for model, names in (
        ("autoencoder", ["for-transformers", "x.pth", "x.ckpt", "zoo.ckpt", "again", "x.safetensors"]),
        ("cls", ["for-timm", "for-transformers", "x.pth", "x.ckpt", "zoo.ckpt", "x.safetensors"]),
    ):
        last = a_run(tmp_path / model / "run", model, "16 bits", image_size=[24, 24])
        expected = numbers(last, photos)
        for name in names:
            place = last.parent / name
            assert main(["convert", str(last), str(place), "--to", FORMATS.get(name, "transformers")]) == 0
            last = place
        assert_same(numbers(last, photos), expected, model)


def test_what_is_written_is_for_everyone_whom_the_umask_allows(tmp_path: Path):
    run = a_run(tmp_path / "run", "cls", "colour")
    (tmp_path / "out").mkdir()
    before = os.umask(0o027)
    try:
        for name, format in FORMATS.items():
            assert main(["convert", str(run), str(tmp_path / "out" / name), "--to", format]) == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {stat.filemode(path.stat().st_mode) for path in files} == {"-rw-r-----"}


@pytest.mark.campaign
def test_on_the_other_engine_a_file_gives_the_numbers_of_the_run_too(tmp_path: Path):
    pytest.importorskip("mindspore", reason="MindSpore is not installed")
    run, photos = a_run(tmp_path / "run", "autoencoder", "12 bands"), images(tmp_path / "photos", "12 bands")
    assert main(["convert", str(run), str(tmp_path / "x.ckpt"), "--to", "mindspore"]) == 0
    assert_same(numbers(tmp_path / "x.ckpt", photos, "mindspore"), numbers(run, photos, "mindspore"), "mindspore")
