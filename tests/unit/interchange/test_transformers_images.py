"""How transformers prepares images, against its own processors; and what the difference of two resizes costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from engine_cases import objective_of
from unmask.config.schema import DataConfig, ModelConfig
from unmask.data.augment.crop import center_crop
from unmask.data.decode.picture import Picture
from unmask.errors import CheckpointError
from unmask.interchange import StoredModel, write_model
from unmask.interchange.transformers_images import FILE, preparation_json, read_preparation

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")

PROCESSORS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "ViT": (
        "vit",
        lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 64}),
        {"eval_fit": "squash", "eval_crop": 1.0, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "ViT, Lanczos": (
        "vit",
        lambda: transformers.ViTImageProcessor(size={"height": 64, "width": 64}, resample=1),
        {"eval_fit": "squash", "interpolation": "lanczos"},
    ),
    "ViTMAE": (
        "vit_mae",
        lambda: transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3),
        {"eval_fit": "squash", "interpolation": "bicubic", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    ),
    "DINOv2": (
        "dinov2",
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}),
        {"eval_fit": "crop", "eval_crop": 64 / 73, "interpolation": "bicubic"},
    ),
    "DeiT": (
        "vit",
        lambda: transformers.DeiTImageProcessor(size={"height": 80, "width": 80}, crop_size=64),
        {"eval_fit": "squash", "eval_crop": 0.8, "interpolation": "bicubic"},
    ),
    "not rescaled": (
        "vit",
        lambda: transformers.ViTImageProcessor(do_rescale=False, image_mean=[99.0] * 3, image_std=[55.0] * 3),
        {"dtype": "float32", "mean": (99.0,) * 3, "std": (55.0,) * 3},
    ),
    "not normalised": (
        "vit",
        lambda: transformers.ViTImageProcessor(do_normalize=False),
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    ),
}  # fmt: skip


def a_photo(width: int, height: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(width * height)
    small = Image.fromarray(rng.integers(50, 200, (7, 9, 3), np.uint8))  # what overshoots is cut at another time there
    photo = small.resize((width, height), Image.Resampling.BICUBIC)
    return photo if channels == 3 else photo.convert("L")


def shifted(width: int, height: int, data: DataConfig, size: tuple[int, int]) -> bool:
    """Whether the middle is half a pixel off the grid, which rounds up here (half to even) and down there."""
    if data.eval_fit == "squash":
        return False
    edge = round(size[0] / data.eval_crop)
    sides = edge * width // min(width, height), edge * height // min(width, height)
    return any((side - size[0]) % 4 == 3 for side in sides)


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_come_out_as_its_processors_make_them(tmp_path: Path, name: str):
    """To two grey levels, but for a shift by one pixel where the middle is half a pixel off, for a quarter of sizes."""
    model_type, make, expected = PROCESSORS[name]
    processor = make()
    processor.save_pretrained(tmp_path)
    found, size = read_preparation(tmp_path, model_type, 3)
    assert size is not None
    assert expected.items() <= found.items()
    data = DataConfig.model_validate(found)
    scale = 1 if data.dtype == "float32" else 255
    with_shift: list[bool] = []
    for width in (150, 151, 152, 153, 90):
        photo = a_photo(width, 120)
        ours = center_crop(Picture(np.asarray(photo), 3, 10**9), size, data).astype(float)
        theirs = processor(photo, return_tensors="pt")["pixel_values"][0].numpy().transpose(1, 2, 0)
        theirs = scale * (theirs * np.array(data.std) + np.array(data.mean))
        with_shift.append(shifted(width, 120, data, size))
        if with_shift[-1]:
            ours, theirs = ours[:, :-1], theirs[:, 1:]
        assert np.abs(ours - theirs).max() < 2.01, width
    assert any(with_shift) == (name == "DINOv2")
    assert not all(with_shift)


MODELS = {
    "cls": ("classify", {"pool": "cls"}, {"eval_fit": "squash", "eval_crop": 1.0}),
    "grey": ("classify", {"pool": "cls", "channels": 1}, {"eval_fit": "crop", "eval_crop": 0.875}),
    "mean+cls": (
        "classify",
        {"pool": "mean+cls", "layer_scale": 0.1, "register_tokens": 2},
        {"eval_fit": "crop", "eval_crop": 0.875},
    ),
    "autoencoder": (
        "mae",
        {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        {"eval_fit": "crop", "eval_crop": 1.0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_its_own_preparation_of_images_costs(tmp_path: Path, name: str):
    """transformers, from file to probabilities or cls token, beside `unmask predict` and `embed` on the same folder."""
    objective, fields, data = MODELS[name]
    channels = fields.get("channels", 3)
    made = objective_of(
        objective, image_size=(56, 56), patch_size=8, width=64, depth=2, heads=4, mlp_ratio=2,
        **fields, **({"num_classes": 10} if objective == "classify" else {}),
    )  # fmt: skip
    weights = {**made.initial_weights(0)}
    if objective == "classify":
        weights["head.weight"] = weights["head.weight"] * np.float32(3e3)
    data = {"mean": (0.4, 0.5, 0.6)[:channels], "std": (0.25, 0.3, 0.2)[:channels], "interpolation": "bicubic"} | data
    section = {"mask_ratio": 0.75, "norm_pix_loss": True} if objective == "mae" else {}
    stored = StoredModel(weights, made.model.model_dump(mode="json"), None, "unmask", None, data, section)
    write_model("transformers", tmp_path / "x", stored)
    (tmp_path / "photos").mkdir()
    for number, width in enumerate((150, 151, 153, 156)):
        a_photo(width, 120, channels).save(tmp_path / "photos" / f"{number}.png")
    photos = [Image.open(tmp_path / "photos" / f"{number}.png") for number in range(4)]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "x")
    with unmask.load(tmp_path / "x", engine="torch", device="cpu") as here, torch.no_grad():
        if objective == "classify":
            there = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "x")
            expected = there(**processor(photos, return_tensors="pt")).logits.softmax(1).numpy()
            assert expected.max() > 0.15, "probabilities that could differ"
            cost = np.abs(here.predict(tmp_path / "photos") - expected).max(1)
        else:
            there = transformers.ViTMAEModel.from_pretrained(tmp_path / "x", mask_ratio=0.0)
            expected = there(**processor(photos, return_tensors="pt")).last_hidden_state[:, 0].numpy()
            found = here.embed(tmp_path / "photos", pool="cls")
            cost = 1 - (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        off = [shifted(*photo.size, here.config.data, (56, 56)) for photo in photos]
    assert any(off) == (data["eval_fit"] == "crop")
    for number, of_shifted in enumerate(off):
        assert cost[number] < (0.02 if of_shifted else 1e-3), number


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "fit", [{"eval_fit": "crop", "eval_crop": 0.8}, {"eval_fit": "squash", "eval_crop": 0.8}, {"eval_fit": "squash"}]
)
def test_what_is_written_is_read_back(tmp_path: Path, channels: int, dtype: str, fit: dict[str, Any]):
    values = tuple((np.arange(1, channels + 1) / 20).tolist())
    data = {"mean": values, "std": values, "dtype": dtype, "interpolation": "lanczos", "eval_crop": 1.0} | fit
    written, unsaid = preparation_json(ModelConfig(image_size=(64, 64), channels=channels), data)
    assert written is not None
    assert bool(unsaid) == (dtype != "uint8" or channels == 12)
    (tmp_path / FILE).write_text(json.dumps(written))
    assert read_preparation(tmp_path, "vit", channels) == (data, (64, 64))
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)).__name__.startswith(
        written["image_processor_type"].removesuffix("ImageProcessor")
    )


def test_what_is_not_known_is_not_written():
    whole = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "eval_crop": 0.9, "interpolation": "bicubic"}
    for name in whole:
        data = {other: value for other, value in whole.items() if other != name}
        assert preparation_json(ModelConfig(), data) == (None, f"the source does not tell data.{name}")
    wide = ModelConfig(image_size=(32, 64))
    assert "are known to none" in preparation_json(wide, whole)[1]
    assert preparation_json(wide, whole | {"eval_fit": "squash"})[0] is not None


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"do_resize": False}, "do_resize=False"),
        ({"resample": 5}, r"resample=5 \(hamming\)"),
        ({"resample": 9}, "resample=9"),
        ({"rescale_factor": 0.5}, r"rescale_factor=0\.5"),
        ({"do_pad": True, "pad_size": 8}, "do_pad=True, pad_size=8"),
        ({"size": {"longest_edge": 224}}, "size={'longest_edge': 224}"),
        ({"do_center_crop": True, "crop_size": 448}, "size=224 with do_center_crop=True with crop_size=448"),
        ({"image_mean": [0.5]}, "has 1 values of image_mean for 3 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std must be positive"),
    ],
)
def test_a_preparation_that_is_not_ours_is_refused_by_name(tmp_path: Path, told: dict[str, Any], match: str):
    (tmp_path / FILE).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=match) as raised:
        read_preparation(tmp_path, "vit", 3)
    assert str(tmp_path / FILE) in str(raised.value)
    assert "\n" not in str(raised.value)
