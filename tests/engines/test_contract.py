"""What every engine promises (unmask/engines/base.py), the fake one included."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from engine_cases import make_batch, make_config, measured, start
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines.base import Engine, EngineState
from unmask.errors import CheckpointError
from unmask.objectives.base import create_objective

Build = Callable[[Config], Engine]
LR = 1e-2


def same(one: EngineState, other: EngineState) -> bool:
    """Bit for bit."""
    pairs = [(one.weights, other.weights), (one.optimizer, other.optimizer), (one.ema, other.ema)]
    return one.scalars == other.scalars and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs
    )


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_training_lowers_the_loss(build: Build, task: str) -> None:
    config = make_config(task, model={"drop_path": 0.1, "depth": 2} if task == "finetune" else {})
    engine, batch = build(config), make_batch(config)
    losses = [engine.read(engine.train_step([batch], {"lr": LR}))["loss"] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.01
    assert measured(engine, config, batch)["loss"] < losses[0]


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_loss_of_a_classifier_is_that_of_soft_targets(build: Build, loss: str) -> None:
    config = make_config("finetune", objective={"name": "classify", "loss": loss})
    engine, batch = build(config), make_batch(config)
    targets = np.random.default_rng(0).random((len(batch), 7)).astype(np.float32)
    logits = engine.output("logits", batch).astype(np.float64)
    if loss == "bce":
        expected = (np.logaddexp(0, logits) - targets * logits).mean()
    else:
        expected = (targets * (np.log(np.exp(logits).sum(1, keepdims=True)) - logits)).sum(1).mean()
    trained = engine.read(engine.train_step([dataclasses.replace(batch, inputs={"targets": targets})], {"lr": LR}))
    assert trained["loss"] == pytest.approx(expected, rel=1e-5)
    gradient = (1 / (1 + np.exp(-logits)) - targets).mean(0) / 7
    if loss == "cross_entropy":
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = (softmax * targets.sum(1, keepdims=True) - targets).mean(0)
    moment = engine.state().optimizer["exp_avg.head.bias"]
    np.testing.assert_allclose(moment, (1 - config.optimizer.beta1) * gradient, rtol=1e-3, atol=1e-7)


def test_the_first_loss_is_that_of_the_weights_given(build: Build) -> None:
    config = make_config()
    engine, batch = build(config), make_batch(config)
    evaluated = measured(engine, config, batch)
    trained = engine.read(engine.train_step([batch], {"lr": 0.0}))
    assert evaluated["count"] == len(batch)
    assert trained["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)


def test_a_state_taken_over_goes_on_bit_for_bit(build: Build) -> None:
    config = make_config(train={"ema_decay": 0.9}, optimizer={"clip_grad": 0.5})
    engine, batches = build(config), [make_batch(config, index=10 * i) for i in range(4)]
    for batch in batches[:2]:
        engine.train_step([batch], {"lr": LR})
    taken = engine.state()
    frozen = dataclasses.replace(taken, weights={name: array.copy() for name, array in taken.weights.items()})
    for batch in batches[2:]:
        engine.train_step([batch], {"lr": LR})
    assert same(taken, frozen), "state() must be a copy"

    other = build(config)
    other.load(taken)
    assert same(other.state(), taken)
    for batch in batches[2:]:
        other.train_step([batch], {"lr": LR})
    assert same(other.state(), engine.state())


def test_state_has_the_canonical_names(build: Build) -> None:
    for task in ("pretrain", "finetune"):
        config = make_config(task)
        state = build(config).state()
        assert {name: array.shape for name, array in state.weights.items()} == create_objective(config).shapes()
        assert all(array.dtype == np.float32 for array in state.weights.values())
        fixed = set() if task == "finetune" else {"pos_embed", "decoder_pos_embed"}
        assert {name.partition(".")[2] for name in state.optimizer} <= state.weights.keys() - fixed


def test_accumulation_equals_one_large_batch(build: Build) -> None:
    config = make_config(optimizer={"clip_grad": 0.1})
    whole = make_batch(config, size=8)
    halves = [_rows(whole, slice(0, 4)), _rows(whole, slice(4, 8))]
    one, two = build(config), build(config)
    first, second = one.read(one.train_step([whole], {"lr": LR})), two.read(two.train_step(halves, {"lr": LR}))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    moments, expected = two.state().optimizer, one.state().optimizer
    for name in expected:
        np.testing.assert_allclose(moments[name], expected[name], rtol=1e-3, atol=1e-7, err_msg=name)


def test_clipping_scales_the_gradient_to_the_norm(build: Build) -> None:
    free, clipped = make_config(), make_config(optimizer={"clip_grad": 0.01})
    batch = make_batch(free)
    one, two = build(free), build(clipped)
    norm = one.read(one.train_step([batch], {"lr": LR}))["grad_norm"]
    assert norm > 0.01
    assert two.read(two.train_step([batch], {"lr": LR}))["grad_norm"] == pytest.approx(norm, rel=1e-5), (
        "before clipping"
    )
    for name, moment in one.state().optimizer.items():
        factor = (0.01 / norm) ** (2 if name.startswith("exp_avg_sq") else 1)
        np.testing.assert_allclose(two.state().optimizer[name], factor * moment, rtol=1e-3, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_non_finite_gradient_changes_nothing(build: Build, precision: str) -> None:
    config = make_config(train={"precision": precision, "ema_decay": 0.9})
    engine, batch = build(config), make_batch(config)
    engine.train_step([batch], {"lr": LR})
    before = engine.state()
    poisoned = {name: array.copy() for name, array in before.weights.items()}
    poisoned["decoder_pred.bias"][:] = 3e38  # finite, but no square or sum of it is
    engine.load(dataclasses.replace(before, weights=poisoned))
    values = engine.read(engine.train_step([batch], {"lr": LR}))
    after = engine.state()
    assert values["skipped"] == 1
    assert all(np.array_equal(after.weights[name], poisoned[name]) for name in poisoned)
    assert all(np.array_equal(after.optimizer[name], before.optimizer[name]) for name in before.optimizer)
    assert all(np.array_equal(after.ema[name], before.ema[name]) for name in before.ema)
    assert after.scalars["updates"] == 1
    if precision == "fp16":
        assert after.scalars["loss_scale"] == before.scalars["loss_scale"] / 2
        assert after.scalars["good_steps"] == 0


def test_fixed_loss_scale_stays_and_changes_only_rounding(build: Build) -> None:
    fixed, plain = make_config(train={"precision": "fp16", "loss_scale": 128.0}), make_config()
    batch = make_batch(plain)
    one, two = build(fixed), build(plain)
    scaled = one.read(one.train_step([batch], {"lr": LR}))
    expected = two.read(two.train_step([batch], {"lr": LR}))
    assert scaled["loss_scale"] == 128.0
    assert one.state().scalars["loss_scale"] == 128.0
    assert scaled["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert scaled["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-2)


def test_dynamic_loss_scale_doubles_after_enough_good_steps(build: Build) -> None:
    config = make_config(train={"precision": "fp16"})
    engine, batch = build(config), make_batch(config)
    engine.train_step([batch], {"lr": LR})
    state = engine.state()
    engine.load(dataclasses.replace(state, scalars=state.scalars | {"loss_scale": 256.0, "good_steps": 1999.0}))
    assert engine.read(engine.train_step([batch], {"lr": LR}))["loss_scale"] == 256.0
    assert engine.state().scalars == {"updates": 2, "loss_scale": 512.0, "good_steps": 0.0}


def test_the_average_follows_the_weights_and_is_what_is_evaluated(build: Build) -> None:
    config = make_config(train={"ema_decay": 0.75})
    engine, batch = build(config), make_batch(config)
    before = measured(engine, config, batch)["loss"]
    start = engine.state()
    engine.train_step([batch], {"lr": LR})
    state = engine.state()
    for name, weight in state.weights.items():
        expected = 0.75 * start.weights[name] + 0.25 * weight
        np.testing.assert_allclose(state.ema[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    averaged = measured(engine, config, batch)["loss"]
    plain = build(make_config())
    plain.load(EngineState(state.ema))
    assert averaged == pytest.approx(measured(plain, config, batch)["loss"], rel=1e-5)
    assert averaged != before


def test_the_average_forgets_the_start_sooner_with_warmup(build: Build) -> None:
    engine = build(config := make_config(train={"ema_decay": 0.75, "ema_warmup": True}))
    average = engine.state().weights
    for update in (1, 2):
        engine.train_step([make_batch(config, index=update)], {"lr": LR})
        state, decay = engine.state(), (1 + update) / (10 + update)
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in state.weights.items()}
        for name, expected in average.items():
            np.testing.assert_allclose(state.ema[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_classifier_that_does_not_tell_classes_apart_is_never_right(build: Build, value: float) -> None:
    engine = build(config := make_config("finetune"))
    weights = engine.state().weights
    head = {name: np.full_like(weights[name], value) for name in ("head.weight", "head.bias")}
    engine.load(EngineState(weights | head))
    values = measured(engine, config, make_batch(config))
    assert (values["top1"], values["top5"]) == (0, 0)


@pytest.mark.parametrize(("task", "trained"), [("finetune", "head.weight"), ("pretrain", "decoder_pred.bias")])
def test_frozen_blocks_and_what_is_before_them_stay(build: Build, task: str, trained: str) -> None:
    engine = build(config := make_config(task, model={"depth": 2}, optimizer={"frozen_blocks": 1, "weight_decay": 0.5}))
    start = engine.state().weights
    for index in range(2):
        engine.train_step([make_batch(config, index=index)], {"lr": LR})
    state = engine.state()
    changed = {name for name, weight in state.weights.items() if not np.array_equal(weight, start[name])}
    assert trained in changed
    assert not {n for n in changed if n.startswith(("blocks.0.", "patch_embed.", "pos_embed", "cls_token"))}
    moments = {name for name in state.optimizer if "decoder" not in name}
    assert not {n for n in moments if "blocks.0." in n or "_embed" in n or "cls_token" in n}


def test_rows_that_fill_up_a_batch_do_not_count(build: Build) -> None:
    config = make_config("finetune")
    engine, batch = build(config), make_batch(config, size=6)
    for _ in range(3):  # away from the first weights, whose logits nearly tie
        engine.train_step([batch], {"lr": LR})
    valid = np.array([True, True, False, True, False, True])
    masked = measured(engine, config, dataclasses.replace(batch, valid=valid))
    parts = [measured(engine, config, _rows(batch, slice(i, i + 1))) for i in np.flatnonzero(valid)]
    assert masked["count"] == len(parts) == 4
    for name in ("loss", "top1", "top5"):
        assert masked[name] == pytest.approx(sum(part[name] for part in parts) / 4, rel=1e-4), name


def test_read_outs_have_the_promised_shapes(build: Build) -> None:
    config = make_config()
    engine, batch = build(config), make_batch(config, size=3)
    assert engine.output("features", batch).shape == (3, 32)
    assert engine.output("reconstruction", batch).shape == (3, 6, 192)
    classifier = make_config("finetune")
    engine, batch = build(classifier), make_batch(classifier, size=3)
    assert engine.output("logits", batch).shape == (3, 7)
    assert engine.output("logits", batch).dtype == engine.output("features", batch).dtype == np.float32


def test_a_state_that_does_not_fit_is_refused_with_every_difference(build: Build) -> None:
    config = make_config()
    engine = build(config)
    weights = dict(start(config).weights)
    weights["head.weight"] = weights.pop("mask_token")
    weights["norm.bias"] = weights["norm.bias"][:5]
    with pytest.raises(CheckpointError) as error:
        engine.load(EngineState(weights))
    for part in ("mask_token is missing", "head.weight is not expected", "norm.bias is [5], the model has [32]"):
        assert part in str(error.value)


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(
        batch.images[rows],
        batch.index[rows],
        {name: array[rows] for name, array in batch.inputs.items()},
        None if batch.labels is None else batch.labels[rows],
    )
