"""Same weights, images and mask as transformers' models: same numbers.

In fp32 everything agrees within 1e-5 of the largest value of each tensor, gradients of every weight included.
transformers leaves position embeddings and mask token of a new model at zero; here every weight is set.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_cases import measured
from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config, ModelConfig
from unmask.data.augment.mixing import class_targets
from unmask.data.batch import Batch
from unmask.data.masking import random_mask
from unmask.engines import create_engine
from unmask.engines.base import EngineState, Tensors
from unmask.interchange import StoredModel
from unmask.interchange.transformers import read_transformers, write_transformers
from unmask.models.parameters import POSITIONS
from unmask.objectives.base import create_objective
from unmask.objectives.mae import MaeSection

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")

TOLERANCE = 1e-5
SMALL = {
    "image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "heads": 4,
    "decoder_width": 48, "decoder_depth": 2, "decoder_heads": 3,
}  # fmt: skip
SECTION = MaeSection(mask_ratio=0.7)
CLASSES = {"image_size": (48, 32), "num_classes": 7, "pool": "cls"}


def reference_with(folder: Path, weights: Tensors, config: Config) -> Any:
    """transformers' model with these weights."""
    objective = config.objective.model_dump(include={"mask_ratio", "norm_pix_loss"})
    write_transformers(folder, StoredModel(weights, config.model.model_dump(), None, "unmask", objective=objective))
    architecture = "ViTForImageClassification" if config.model.num_classes else "ViTMAEForPreTraining"
    loaded, report = getattr(transformers, architecture).from_pretrained(
        folder, layer_norm_eps=1e-6, output_loading_info=True
    )
    assert not any(report.values()), "a weight was left out, and so is random"
    return loaded


def gradients_of(reference: Any, folder: Path) -> Tensors:
    """Under our names: they are put in the weights' place, written and read. Zero for what has none."""
    for parameter in reference.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    reference.save_pretrained(folder)
    return read_transformers(folder).weights


def random_weights(config: Config) -> dict[str, NDArray[np.float32]]:
    """Weights of which none is zero or one, so that any term left out shows."""
    rng = np.random.default_rng(1)
    weights = create_objective(config).initial_weights(0)
    return {name: w + 0.1 * rng.standard_normal(w.shape, np.float32) for name, w in weights.items()}


def random_images(model: ModelConfig, count: int) -> NDArray[np.uint8]:
    shape = (count, *model.image_size, model.channels)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


def pixel_values(images: NDArray[np.uint8]) -> Any:
    normalised = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32))


def masked_batch(model: ModelConfig, section: MaeSection, count: int) -> tuple[Batch, Any]:
    """A batch, and the noise by which the reference hides the same patches."""
    rng, num_keep = np.random.default_rng(3), section.num_keep(model)
    masks = [random_mask(rng, model.num_patches, num_keep) for _ in range(count)]
    ids_keep, ids_mask = (np.stack(ids) for ids in zip(*masks, strict=True))
    noise = np.zeros((count, model.num_patches), np.float32)
    np.put_along_axis(noise, ids_keep, np.linspace(0.0, 0.4, num_keep, dtype=np.float32)[None], 1)
    np.put_along_axis(noise, ids_mask, np.linspace(0.6, 1, ids_mask.shape[1], dtype=np.float32)[None], 1)
    inputs = {"ids_keep": ids_keep, "ids_mask": ids_mask}
    batch = Batch(random_images(model, count), np.arange(count), inputs)
    return batch, torch.from_numpy(noise)


def relative_error(value: Any, reference: Any) -> float:
    """Largest absolute difference over the reference's largest absolute value."""
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def assert_same_gradients(gradients: Tensors, expected: Tensors, *, fixed: Set[str] = frozenset()) -> None:
    assert gradients.keys() == expected.keys() - fixed
    errors = {name: relative_error(gradient, expected[name]) for name, gradient in gradients.items()}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


def masked_predictions(logits: Any, batch: Batch) -> NDArray[np.float32]:
    """transformers' predictions, which are in the order of the image, in our order [kept, masked]."""
    order = np.concatenate([batch.inputs["ids_keep"], batch.inputs["ids_mask"]], axis=1)[:, :, None]
    return np.take_along_axis(logits.detach().numpy(), order, axis=1)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pretraining_equals_vit_mae(measure: Any, tmp_path: Path, norm_pix_loss: bool) -> None:
    section = MaeSection(mask_ratio=0.7, norm_pix_loss=norm_pix_loss)
    config = Config.model_validate({"objective": section, "model": SMALL})
    weights = random_weights(config)
    batch, noise = masked_batch(config.model, section, 5)
    reference = reference_with(tmp_path, weights, config)
    expected = reference(pixel_values=pixel_values(batch.images), noise=noise)
    expected.loss.backward()

    ours = measure({"objective": section, "model": config.model}, weights, batch)

    assert relative_error(ours.loss, expected.loss.detach()) <= TOLERANCE
    assert_same_gradients(ours.gradients, gradients_of(reference, tmp_path), fixed=POSITIONS)
    predictions = masked_predictions(expected.logits, batch)
    assert relative_error(ours.engine.output("reconstruction", batch), predictions) <= TOLERANCE


def test_classifier_equals_vit(measure: Any, tmp_path: Path) -> None:
    config = Config.model_validate({"objective": "classify", "model": SMALL | CLASSES})
    weights = random_weights(config)
    labels = np.array([3, 0, 6, 1, 3])
    targets = class_targets(labels, 7, smoothing=0)
    batch = Batch(random_images(config.model, len(labels)), np.arange(len(labels)), {"targets": targets}, labels)
    reference = reference_with(tmp_path, weights, config)
    expected = reference(pixel_values=pixel_values(batch.images), labels=torch.from_numpy(labels))
    expected.loss.backward()

    ours = measure({"objective": "classify", "model": config.model}, weights, batch)

    assert relative_error(ours.loss, expected.loss.detach()) <= TOLERANCE
    assert_same_gradients(ours.gradients, gradients_of(reference, tmp_path))
    assert relative_error(ours.engine.output("logits", batch), expected.logits.detach()) <= TOLERANCE


def test_vit_base_at_its_real_size_equals_vit_mae(engine_name: str, tmp_path: Path) -> None:
    config = Config.model_validate({"engine": engine_name, "device": "cpu"})
    weights = create_objective(config).initial_weights(0)
    batch, noise = masked_batch(config.model, MaeSection(), 1)
    reference = reference_with(tmp_path, weights, config)
    with torch.no_grad():
        expected = reference(pixel_values=pixel_values(batch.images), noise=noise)

    engine = create_engine(config)
    engine.load(EngineState(weights))

    predictions = masked_predictions(expected.logits, batch)
    assert relative_error(engine.output("reconstruction", batch), predictions) <= TOLERANCE
    assert relative_error(measured(engine, config, batch)["loss"], expected.loss) <= TOLERANCE


NAMES = {
    r"(vision_model|embeddings|encoder|patch_embeddings)\.|(?<=attention\.)attention\.": "",
    r"^class_embedding$": "cls_token",
    r"^register_tokens$": "reg_token",
    r"^position_embeddings?(\.weight)?$": "pos_embed",
    r"^(projection|patch_embedding)\b": "patch_embed.proj",
    r"^pre_layrnorm\b": "norm_pre",
    r"^(post_)?layernorm\b": "norm",
    r"^layers?\.": "blocks.",
    r"layer_norm": "norm",
    r"(self_attn|attention)\.": "attn.",
    r"(query|q_proj)\b": "qkv.0",
    r"(key|k_proj)\b": "qkv.1",
    r"(value|v_proj)\b": "qkv.2",
    r"(output\.dense|out_proj)\b": "proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"weights_in\b": "fc1",
    r"weights_out\b": "fc2",
}
"""Names in the files of DINOv2 and CLIP as ours, one rule after the other; qkv is in three parts."""


SWIGLU = {"use_swiglu_ffn": True}
SWIGLU_OF_OURS = {"mlp": "swiglu", "mlp_ratio": 2.75}  # two thirds of 4 * 64, up to the next multiple of 8


def weights_of(reference: Any, folder: Path) -> Tensors:
    """Of an encoder, in our names and shapes, from the file that it writes."""
    from safetensors.numpy import load_file

    reference.save_pretrained(folder)
    named: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for pattern, ours in NAMES.items():
            name = re.sub(pattern, ours, name)
        named[name] = tensor
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for name, tensor in sorted(named.items()):
        parts.setdefault(re.sub(r"qkv\.\d", "qkv", name), []).append(tensor)
    weights = {name: np.concatenate(tensors) for name, tensors in parts.items() if name != "mask_token"}
    weights["patch_embed.proj.bias"] = weights.get("patch_embed.proj.bias", np.zeros(SMALL["width"], np.float32))
    return weights | {name: weights[name].reshape(1, -1, SMALL["width"]) for name in ("cls_token", "pos_embed")}


@pytest.mark.parametrize(
    ("architecture", "settings", "model"),
    [
        ("Dinov2Model", {}, {}),
        ("Dinov2Model", SWIGLU, SWIGLU_OF_OURS),
        ("Dinov2WithRegistersModel", SWIGLU, SWIGLU_OF_OURS | {"register_tokens": 4}),
        ("Dinov2WithRegistersModel", {"qkv_bias": False}, {"qkv_bias": False, "register_tokens": 4}),
        ("CLIPVisionModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-4, "intermediate_size": 256}, {}),
    ],
)
def test_encoders_equal_dinov2_and_clip(
    architecture: str, settings: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    kind, rng = getattr(transformers, architecture), np.random.default_rng(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    reference = kind(kind.config_class(**sizes, **settings)).eval()
    for parameter in reference.parameters():  # none is zero or one, so that any term left out shows
        noise = 0.1 * rng.standard_normal(parameter.shape, np.float32)
        parameter.data += torch.from_numpy(noise)
    clip = architecture == "CLIPVisionModel"
    model = model | ({"pre_norm": True, "norm_eps": 1e-4} if clip else {"layer_scale": 1.0})
    config = Config.model_validate({"objective": "lejepa", "device": "cpu", "model": SMALL | model})
    weights = {n: w for n, w in create_objective(config).initial_weights(0).items() if n.startswith("projector.")}
    engine: Any = create_engine(config)
    engine.load(EngineState(weights | weights_of(reference, tmp_path)))

    images = pixel_values(random_images(config.model, 3))
    with torch.no_grad():
        expected = reference(pixel_values=images).last_hidden_state
        if clip:  # its last norm is for cls alone
            expected = getattr(reference, "vision_model", reference).post_layernorm(expected)
        tokens = engine.module.eval().forward_features(images)

    assert relative_error(tokens, expected) <= TOLERANCE


@pytest.mark.parametrize("engine_name", ["torch"])  # MindSpore has no bf16 kernels on the CPU
def test_bf16_stays_near_fp32(measure: Any) -> None:
    """Loss within 0.1 %, each gradient within 5 % in L2 norm: bf16 has 8 bits of mantissa."""
    config = Config.model_validate({"objective": SECTION, "model": SMALL})
    weights = random_weights(config)
    batch, _ = masked_batch(config.model, SECTION, 5)
    exact = measure({"objective": SECTION, "model": SMALL}, weights, batch)
    bf16 = measure({"objective": SECTION, "model": SMALL, "train": {"precision": "bf16"}}, weights, batch)

    assert 0 < abs(bf16.loss / exact.loss - 1) <= 1e-3
    errors = {n: np.linalg.norm(bf16.gradients[n] - g) / np.linalg.norm(g) for n, g in exact.gradients.items()}
    assert {name: error for name, error in errors.items() if not error <= 5e-2} == {}
