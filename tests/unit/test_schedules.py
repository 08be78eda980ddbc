import math

import pytest

from unmask.schedules import is_decayed, layer_scale, learning_rate, peak_lr


@pytest.mark.parametrize(
    ("base_lr", "batch_size", "peak"),
    [(1.5e-4, 4096, 2.4e-3), (5e-4, 1024, 2e-3), (1e-3, 1024, 4e-3), (1e-4, 4096, 1.6e-3), (1e-3, 256, 1e-3)],
)
def test_peak_follows_the_linear_scaling_rule(base_lr: float, batch_size: int, peak: float) -> None:
    assert peak_lr(base_lr, batch_size) == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),  # the first update
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),  # the peak
        (20, 0.5 * (1 + math.cos(math.pi / 9))),
        (55, 0.5),  # half way down
        (99, 0.5 * (1 + math.cos(math.pi * 89 / 90))),
        (100, 0.0),
        (101, 0.0),
    ],
)
def test_rises_linearly_and_falls_as_half_a_cosine(step: int, expected: float) -> None:
    lr = learning_rate(step, total_steps=100, warmup_steps=10, peak=1.0, minimum=0.0)
    assert lr == pytest.approx(expected, abs=1e-15)


def test_ends_at_the_minimum_but_starts_from_zero() -> None:
    schedule = {"total_steps": 100, "warmup_steps": 10, "peak": 2e-3, "minimum": 1e-6}
    assert learning_rate(0, **schedule) == 0.0
    assert learning_rate(55, **schedule) == pytest.approx((2e-3 + 1e-6) / 2, rel=1e-12)
    assert learning_rate(100, **schedule) == 1e-6


def test_is_the_official_formula_in_fractional_epochs() -> None:
    steps_per_epoch, epochs, warmup_epochs, peak, minimum = 313, 6, 2, 2.4e-3, 1e-6
    for step in range(steps_per_epoch * epochs):
        epoch = step / steps_per_epoch
        if epoch < warmup_epochs:
            official = peak * epoch / warmup_epochs
        else:
            progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
            official = minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
        ours = learning_rate(
            step,
            total_steps=steps_per_epoch * epochs,
            warmup_steps=steps_per_epoch * warmup_epochs,
            peak=peak,
            minimum=minimum,
        )
        assert ours == pytest.approx(official, rel=1e-12)


def test_warmup_may_be_absent_or_fractional_or_the_whole_run() -> None:
    assert learning_rate(0, total_steps=10, warmup_steps=0, peak=1.0, minimum=0.0) == 1.0
    assert learning_rate(1, total_steps=10, warmup_steps=2.5, peak=1.0, minimum=0.0) == pytest.approx(0.4)
    assert learning_rate(9, total_steps=10, warmup_steps=10, peak=1.0, minimum=0.0) == pytest.approx(0.9)
    assert learning_rate(10, total_steps=10, warmup_steps=10, peak=1.0, minimum=0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "exponent"),
    [
        ("cls_token", 13),
        ("pos_embed", 13),
        ("patch_embed.proj.weight", 13),
        ("patch_embed.proj.bias", 13),
        ("blocks.0.norm1.weight", 12),
        ("blocks.1.attn.qkv.weight", 11),
        ("blocks.10.mlp.fc2.bias", 2),
        ("blocks.11.mlp.fc1.weight", 1),
        ("norm.weight", 0),
        ("fc_norm.bias", 0),
        ("head.weight", 0),
    ],
)
def test_layer_decay_of_a_base_model(name: str, exponent: int) -> None:
    assert layer_scale(name, depth=12, decay=0.65) == pytest.approx(0.65**exponent, rel=1e-12)
    assert layer_scale(name, depth=12, decay=1.0) == 1.0


@pytest.mark.parametrize(
    ("name", "shape", "decayed"),
    [
        ("patch_embed.proj.weight", (768, 3, 16, 16), True),
        ("blocks.0.attn.qkv.weight", (2304, 768), True),
        ("decoder_blocks.0.mlp.fc1.weight", (2048, 512), True),
        ("head.weight", (1000, 768), True),
        ("head.bias", (1000,), False),
        ("blocks.0.norm1.weight", (768,), False),
        ("blocks.0.attn.qkv.bias", (2304,), False),
        ("cls_token", (1, 1, 768), False),
        ("mask_token", (1, 1, 512), False),
        ("pos_embed", (1, 197, 768), False),
        ("decoder_pos_embed", (1, 197, 512), False),
    ],
)
def test_only_matrices_are_decayed(name: str, shape: tuple[int, ...], decayed: bool) -> None:
    assert is_decayed(name, shape) is decayed
