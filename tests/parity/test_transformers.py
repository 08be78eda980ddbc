"""Same weights, images and mask as transformers' ViTMAEForPreTraining and ViTForImageClassification: same numbers.

In fp32 everything agrees within 1e-5 of the largest value of each tensor, gradients of every weight included.
transformers leaves position embeddings and mask token of a new model at zero; here every weight is set.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config, ModelConfig
from unmask.data.batch import Batch
from unmask.data.masking import random_mask
from unmask.engines import create_engine
from unmask.engines.base import EngineState
from unmask.init import initial_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
SMALL = {
    "image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "heads": 4, "mask_ratio": 0.7,
    "decoder_width": 48, "decoder_depth": 2, "decoder_heads": 3,
}  # fmt: skip
CLASSES = {"image_size": (48, 32), "num_classes": 7, "pool": "cls"}

RENAMED = [  # (ours, transformers'), applied in this order to our names
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(decoder_pos_embed|mask_token|decoder_embed|decoder_norm|decoder_pred)", r"decoder.\1"),
    (r"^blocks\.", "vit.layers."),
    (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.qkv\.", ".attention.{}_proj."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
]


def theirs(name: str) -> list[str]:
    """Names in transformers of the tensors which, one above the other, are our tensor `name`."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return [name.format(part) for part in "qkv"] if "{}" in name else [name]


def reference_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "image_size": model.image_size if model.num_classes else model.image_size[0],
        "patch_size": model.patch_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "layer_norm_eps": 1e-6,
    }


def pretraining_reference(model: ModelConfig) -> Any:
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **reference_config(model),
            mask_ratio=model.mask_ratio,
            norm_pix_loss=model.norm_pix_loss,
            decoder_hidden_size=model.decoder_width,
            decoder_num_hidden_layers=model.decoder_depth,
            decoder_num_attention_heads=model.decoder_heads,
            decoder_intermediate_size=int(model.decoder_width * model.mlp_ratio),
        )
    )


def set_weights(reference: Any, weights: dict[str, NDArray[np.float32]]) -> None:
    """Set every weight of the reference; fails if one is left over on either side."""
    tensors = {}
    for name, weight in weights.items():
        parts = theirs(name)
        tensors |= dict(zip(parts, torch.from_numpy(weight).chunk(len(parts)), strict=True))
    reference.load_state_dict(tensors, strict=True)


def random_weights(config: Config) -> dict[str, NDArray[np.float32]]:
    """Weights of which none is zero or one, so that any term left out shows."""
    rng = np.random.default_rng(1)
    weights = initial_weights(config.model, config.task, seed=0)
    return {name: w + 0.1 * rng.standard_normal(w.shape, np.float32) for name, w in weights.items()}


def random_images(model: ModelConfig, count: int) -> NDArray[np.uint8]:
    shape = (count, *model.image_size, model.channels)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


def pixel_values(images: NDArray[np.uint8]) -> Any:
    normalised = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32))


def masked_batch(model: ModelConfig, count: int) -> tuple[Batch, Any]:
    """A batch, and the noise by which the reference hides the same patches."""
    rng = np.random.default_rng(3)
    masks = [random_mask(rng, model.num_patches, model.num_keep) for _ in range(count)]
    ids_keep, ids_mask = (np.stack(ids) for ids in zip(*masks, strict=True))
    noise = np.zeros((count, model.num_patches), np.float32)
    np.put_along_axis(noise, ids_keep, np.linspace(0.0, 0.4, model.num_keep, dtype=np.float32)[None], 1)
    np.put_along_axis(noise, ids_mask, np.linspace(0.6, 1, ids_mask.shape[1], dtype=np.float32)[None], 1)
    batch = Batch(random_images(model, count), np.arange(count), ids_keep, ids_mask)
    return batch, torch.from_numpy(noise)


def relative_error(value: Any, reference: Any) -> float:
    """Largest absolute difference over the reference's largest absolute value."""
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def assert_same_gradients(gradients: dict[str, NDArray[np.float32]], reference: Any) -> None:
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    assert sorted(part for name in gradients for part in theirs(name)) == sorted(expected)
    errors = {n: relative_error(g, np.concatenate([expected[t] for t in theirs(n)])) for n, g in gradients.items()}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pretraining_equals_vit_mae(measure: Any, norm_pix_loss: bool) -> None:
    model = SMALL | {"norm_pix_loss": norm_pix_loss}
    config = Config.model_validate({"model": model})
    weights = random_weights(config)
    batch, noise = masked_batch(config.model, 5)
    reference = pretraining_reference(config.model)
    set_weights(reference, weights)
    expected = reference(pixel_values=pixel_values(batch.images), noise=noise)
    expected.loss.backward()

    ours = measure({"model": model}, weights, batch)

    assert relative_error(ours.loss, expected.loss.detach()) <= TOLERANCE
    assert_same_gradients(ours.gradients, reference)
    # transformers' own prediction is in the order of the image, ours keeps [kept, masked].
    order = np.concatenate([batch.ids_keep, batch.ids_mask], axis=1)[:, :, None]
    prediction = np.take_along_axis(expected.logits.detach().numpy(), order, axis=1)
    assert relative_error(ours.engine.predict_patches(batch), prediction) <= TOLERANCE


def test_classifier_equals_vit(measure: Any) -> None:
    model = SMALL | CLASSES
    config = Config.model_validate({"task": "finetune", "model": model})
    weights = random_weights(config)
    labels = np.array([3, 0, 6, 1, 3])
    batch = Batch(random_images(config.model, len(labels)), np.arange(len(labels)), labels=labels)
    reference = transformers.ViTForImageClassification(
        transformers.ViTConfig(**reference_config(config.model), num_labels=7)
    )
    set_weights(reference, weights)
    expected = reference(pixel_values=pixel_values(batch.images), labels=torch.from_numpy(labels))
    expected.loss.backward()

    ours = measure({"task": "finetune", "model": model}, weights, batch)

    assert relative_error(ours.loss, expected.loss.detach()) <= TOLERANCE
    assert_same_gradients(ours.gradients, reference)
    assert relative_error(ours.engine.logits(batch), expected.logits.detach()) <= TOLERANCE


def test_vit_base_at_its_real_size_equals_vit_mae(engine_name: str) -> None:
    config = Config.model_validate({"engine": engine_name, "device": "cpu"})
    weights = initial_weights(config.model, config.task, seed=0)
    batch, noise = masked_batch(config.model, 1)
    with torch.device("meta"):
        reference = pretraining_reference(config.model)
    set_weights(reference.to_empty(device="cpu"), weights)
    with torch.no_grad():
        expected = reference(pixel_values=pixel_values(batch.images), noise=noise)

    engine = create_engine(config)
    engine.load(EngineState(weights))

    order = np.concatenate([batch.ids_keep, batch.ids_mask], axis=1)[:, :, None]
    prediction = np.take_along_axis(expected.logits.numpy(), order, axis=1)
    assert relative_error(engine.predict_patches(batch), prediction) <= TOLERANCE
    assert relative_error(engine.read(engine.eval_step(batch))["loss"], expected.loss) <= TOLERANCE


def test_bf16_stays_near_fp32(measure: Any) -> None:
    """Loss within 0.1 %, each gradient within 3 % in L2 norm: bf16 has 8 bits of mantissa."""
    config = Config.model_validate({"model": SMALL})
    weights = random_weights(config)
    batch, _ = masked_batch(config.model, 5)
    exact = measure({"model": SMALL}, weights, batch)
    bf16 = measure({"model": SMALL, "train": {"precision": "bf16"}}, weights, batch)

    assert 0 < abs(bf16.loss / exact.loss - 1) <= 1e-3
    errors = {n: np.linalg.norm(bf16.gradients[n] - g) / np.linalg.norm(g) for n, g in exact.gradients.items()}
    assert {name: error for name, error in errors.items() if not error <= 3e-2} == {}
