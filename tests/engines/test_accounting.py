"""A step counted on fake tensors, against one that is really done, and against what is known of it."""

from __future__ import annotations

from functools import partial

import pytest

from engine_cases import make_batch, make_config, make_config_of, start
from unmask.config.schema import Config
from unmask.engines import create_engine
from unmask.engines.base import Account

torch = pytest.importorskip("torch", reason="torch is not installed")

from unmask.engines.torch_engine import accounting  # noqa: E402


def account_of(config: Config, rank: int = 0, world: int = 1) -> Account:
    batches = [make_batch(config, index=i) for i in range(config.train.accumulate)]
    return accounting.account(partial(create_engine, config), batches, {"lr": 1e-3}, rank, world)


def weights_of(config: Config) -> int:
    return sum(weight.numel() for weight in create_engine(config).network.parameters())  # pyright: ignore


@pytest.mark.parametrize(
    ("objective", "train"),
    [
        ("mae", {}),
        ("cross_mae", {"ema_decay": 0.9}),
        ("mae", {"activation_checkpointing": True}),
        ("classify", {"accumulate": 2}),
        ("mae_lejepa", {}),
    ],
)
def test_memory_is_that_of_a_real_step(objective: str, train: dict[str, object]) -> None:
    config = make_config_of(objective, model={"depth": 2, "decoder_depth": 2}, train={"batch_size": 12, **train})
    counted = account_of(config)
    tensors = accounting.Tensors()
    batches = [make_batch(config, index=i) for i in range(config.train.accumulate)]
    with accounting.as_on_a_card(), tensors:
        engine = create_engine(config)
        engine.load(start(config))
        engine.optimizer  # noqa: B018  # pyright: ignore
        result = engine.train_step(batches, {"lr": 1e-3})
    assert engine.read(result)["loss"] > 0
    del result
    assert counted.kept_bytes == tensors.now
    assert counted.peak_bytes == tensors.peak > tensors.now


def test_replicas_keep_weights_gradients_and_moments_and_exchange_the_gradients() -> None:
    config = make_config("pretrain")
    weights = weights_of(config)
    positions = 2 * 3 * 32 + 2 * 3 * 16 + 32 + 16  # are not trained
    alone, one_of_four = account_of(config), account_of(config, world=4)
    assert alone.weights == one_of_four.weights == weights
    assert alone.exchanged_bytes == {}
    assert one_of_four.exchanged_bytes == {"all-reduce": 4 * (weights - positions)}
    assert one_of_four.kept_bytes - alone.kept_bytes == pytest.approx(4 * (weights - positions), rel=0.01)
    assert alone.kept_bytes == pytest.approx(4 * (weights + 2 * (weights - positions)), rel=0.01)
    assert alone.flops == one_of_four.flops


def test_the_exchange_in_bf16_is_half() -> None:
    fp32 = account_of(make_config("pretrain"), world=4)
    bf16 = account_of(make_config("pretrain", train={"exchange_dtype": "bf16"}), world=4)
    assert fp32.exchanged_bytes["all-reduce"] == 2 * bf16.exchanged_bytes["all-reduce"]


def test_micro_batches_exchange_once() -> None:
    once = account_of(make_config("pretrain"), world=4)
    split = account_of(make_config("pretrain", train={"accumulate": 2}), world=4)
    assert once.exchanged_bytes == split.exchanged_bytes
    assert split.flops == 2 * once.flops  # each of these micro-batches is as large as that batch


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_shards_keep_a_share(rank: int) -> None:
    config = make_config("pretrain", train={"shard": True})
    whole, share = account_of(config), account_of(config, rank, world=8)
    assert share.kept_bytes < whole.kept_bytes / 4  # no tensor is split into less than a row
    assert share.exchanged_bytes["reduce-scatter"] >= 4 * weights_of(config) * 0.9
    assert share.exchanged_bytes["all-gather"] > share.exchanged_bytes["reduce-scatter"]
    assert share.flops == whole.flops


def test_operations_of_the_published_base_model() -> None:
    config = make_config(
        "pretrain",
        model={
            "image_size": 224,
            "patch_size": 16,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "decoder_width": 512,
            "decoder_depth": 8,
            "decoder_heads": 16,
            "mask_ratio": 0.75,
        },
        train={"precision": "bf16"},
    )
    batch = make_batch(config, 4)
    counted = accounting.account(partial(create_engine, config), [batch], {"lr": 1e-3}, 0, 1)
    # Forward, an image: 12 blocks over 50 tokens and 8 over 197, of which the last computes the 147 masked alone.
    tokens, D, E = 50, 768, 512
    encoder = 12 * (24 * tokens * D * D + 4 * tokens * tokens * D) + 2 * 49 * D * D
    decoder = 7 * (24 * 197 * E * E + 4 * 197 * 197 * E)
    last = 4 * 197 * E * E + 20 * 147 * E * E + 4 * 147 * 197 * E
    ends = 2 * tokens * D * E + 2 * 147 * E * D
    forward = encoder + decoder + last + ends
    assert counted.flops / 4 == pytest.approx(3 * forward, rel=0.02)  # backward is twice, and attention's a bit more
