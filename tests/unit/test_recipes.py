"""The recipes against the published values (He et al. 2021, tables 8, 9 and 11; the official code's instructions)."""

from pathlib import Path

import pytest

from unmask.config.load import load_config
from unmask.config.schema import AugmentConfig
from unmask.objectives.classify import ClassifySection
from unmask.objectives.linear_probe import LinearProbeSection
from unmask.objectives.mae import MaeSection
from unmask.schedules import peak_lr

RECIPES = Path(__file__).parents[2] / "src/unmask/recipes"

#         width depth heads patch
SIZES = {
    "tiny": (192, 12, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}
PARAMETERS = {"tiny": 5.7e6, "small": 22.1e6, "base": 86.6e6, "large": 304.4e6, "huge": 632.0e6}
"""Of the published ViT classifiers for 1,000 classes (timm; Huge: patch 14)."""

#         epochs base lr layer decay, drop path
FINETUNE = {
    "base": (100, 5e-4, 0.65, 0.1),
    "large": (50, 1e-3, 0.75, 0.2),
    "huge": (50, 1e-3, 0.75, 0.3),
}
#         epochs, drop path
SCRATCH = {"base": (300, 0.1), "large": (200, 0.2), "huge": (200, 0.2)}

#             RandAugment, mixup, cutmix, smoothing, erasing and its mode
AUGMENTATION = {
    "mae": (None, 0, 0, 0, 0, "const"),  # random resized crop and flip alone
    "finetune": ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.1, 0.25, "pixel"),
    "scratch": ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.1, 0, "const"),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_loads_and_starts_by_saying_what_it_is(name: str) -> None:
    load_config(name)
    assert (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mae", "finetune", "scratch", "probe"])
def test_a_header_gives_command_hardware_expectation_and_source(kind: str, size: str) -> None:
    name = f"{kind}-vit-{size}"
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\nbase:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    command = "pretrain" if kind == "mae" else "finetune"
    assert f"# Command    unmask {command} {name} " in header
    assert all(f"\n# {part} " in header for part in ("Hardware", "Expected", "Source"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mae", "finetune", "scratch"])
def test_model_sizes(kind: str, size: str) -> None:
    model = load_config(f"{kind}-vit-{size}").model
    assert (model.width, model.depth, model.heads, model.patch_size) == SIZES[size]
    assert (model.image_size, model.channels, model.mlp_ratio) == ((224, 224), 3, 4.0)
    width, layers = model.width, 12 * model.width**2 + 13 * model.width
    embeddings = width * (model.patch_dim + 1) + width * (model.num_patches + 2)  # patches, positions, class token
    parameters = model.depth * layers + embeddings + 2 * width + 1000 * (width + 1)
    assert parameters == pytest.approx(PARAMETERS[size], rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_pretraining(size: str) -> None:
    config = load_config(f"mae-vit-{size}")
    model, optimizer, train = config.model, config.optimizer, config.train
    assert config.objective.name == "mae"
    assert (train.epochs, optimizer.warmup_epochs, train.batch_size) == (800, 40, 4096)
    assert (model.decoder_width, model.decoder_depth, model.decoder_heads) == (512, 8, 16)
    assert config.objective == MaeSection(mask_ratio=0.75, norm_pix_loss=True)
    assert model.drop_path == 0
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.min_lr) == (0.9, 0.95, 0.05, 0)
    assert peak_lr(optimizer.base_lr, train.batch_size) == pytest.approx(2.4e-3, rel=1e-12)
    assert (optimizer.layer_decay, optimizer.clip_grad, train.ema_decay, config.augment.label_smoothing) == (
        1,
        None,
        None,
        0,
    )
    assert (config.data.crop_scale, config.data.flip, config.data.interpolation) == ((0.2, 1.0), 0.5, "bicubic")


@pytest.mark.parametrize(("size", "published"), FINETUNE.items())
def test_finetuning_follows_the_official_code(size: str, published: tuple[float, ...]) -> None:
    config = load_config(f"finetune-vit-{size}")
    model, optimizer, train = config.model, config.optimizer, config.train
    epochs, base_lr, layer_decay, drop_path = published
    assert (config.objective.name, train.epochs, optimizer.warmup_epochs, train.batch_size) == (
        "classify",
        epochs,
        5,
        1024,
    )
    assert (optimizer.layer_decay, model.drop_path, model.pool) == (layer_decay, drop_path, "mean")
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.min_lr) == (0.9, 0.999, 0.05, 1e-6)
    assert peak_lr(optimizer.base_lr, train.batch_size) == pytest.approx(4 * base_lr, rel=1e-12)
    assert (config.augment.label_smoothing, train.ema_decay, optimizer.clip_grad) == (0.1, None, None)
    assert (config.data.flip, config.data.eval_crop, config.data.interpolation) == (0.5, 224 / 256, "bicubic")


@pytest.mark.parametrize(("size", "published"), SCRATCH.items())
def test_training_from_scratch_follows_the_paper(size: str, published: tuple[float, ...]) -> None:
    config = load_config(f"scratch-vit-{size}")
    model, optimizer, train = config.model, config.optimizer, config.train
    epochs, drop_path = published
    assert (config.objective.name, train.epochs, optimizer.warmup_epochs, train.batch_size) == (
        "classify",
        epochs,
        20,
        4096,
    )
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.3)
    assert peak_lr(optimizer.base_lr, train.batch_size) == pytest.approx(1.6e-3, rel=1e-12)
    assert (model.drop_path, optimizer.layer_decay) == (drop_path, 1)
    assert (config.augment.label_smoothing, train.ema_decay) == (0.1, 0.9999)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "published"), AUGMENTATION.items())
def test_augmentation(kind: str, size: str, published: tuple[str | None, float, float, float, float, str]) -> None:
    policy, mixup, cutmix, smoothing, erase_prob, erase_mode = published
    config = load_config(f"{kind}-vit-{size}")
    assert config.augment == AugmentConfig.model_validate(
        {
            "policy": policy,
            "mixup": mixup,
            "cutmix": cutmix,
            "label_smoothing": smoothing,
            "erase_prob": erase_prob,
            "erase_mode": erase_mode,
            # what timm calls Mixup's defaults, and no repeats
            "mix_prob": 1.0,
            "mix_switch_prob": 0.5,
            "mix_mode": "batch",
            "erase_count": 1,
            "repeats": 1,
        }
    )
    assert config.data.crop_scale == ((0.2, 1.0) if kind == "mae" else (0.08, 1.0))
    assert (config.data.flip, config.data.interpolation) == (0.5, "bicubic")
    assert config.objective == (MaeSection() if kind == "mae" else ClassifySection(loss="cross_entropy"))


@pytest.mark.parametrize("kind", ["mae", "finetune", "scratch"])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_unpublished_sizes_are_base_but_for_the_width_and_drop_path(kind: str, size: str) -> None:
    config, base = load_config(f"{kind}-vit-{size}"), load_config(f"{kind}-vit-base")
    width, _, heads, _ = SIZES[size]
    model = base.model.model_copy(update={"width": width, "heads": heads, "drop_path": 0.0})
    assert config == base.model_copy(update={"model": model})
    assert "Nothing is published for this size" in (RECIPES / f"{kind}-vit-{size}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", SIZES)
def test_linear_probe(size: str) -> None:
    """MAE appendix A.1 and the official main_linprobe.py."""
    config = load_config(f"probe-vit-{size}")
    model, optimizer, train = config.model, config.optimizer, config.train
    assert (model.width, model.depth, model.heads, model.patch_size) == SIZES[size]
    assert (config.objective, model.pool, model.drop_path) == (LinearProbeSection(), "cls", 0)
    assert (train.ema_decay, optimizer.frozen_blocks) == (None, 0)
    assert (optimizer.base_lr, optimizer.min_lr, optimizer.beta1, optimizer.weight_decay) == (0.1, 0, 0.9, 0)
    epochs = 50 if size in ("large", "huge") else 90
    assert (train.epochs, optimizer.warmup_epochs, train.batch_size) == (epochs, 10, 16384)
    assert config.augment == AugmentConfig()
    assert (config.data.crop_scale, config.data.flip, config.data.interpolation) == ((0.08, 1.0), 0.5, "bicubic")
