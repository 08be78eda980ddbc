"""The linear probe against the same in PyTorch: BatchNorm1d without affine, Linear, LARS as in the official code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_cases import make_batch, make_config, measured, start
from fake_engine import FakeEngine
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.engines.base import EngineState
from unmask.engines.linear_probe import LinearProbeEngine
from unmask.objectives.base import create_objective

LR = 6.4


def probe_config() -> Config:
    return make_config(
        "finetune",
        objective={"name": "linear_probe"},
        optimizer={"weight_decay": 0.01},
        augment={"label_smoothing": 0.1},
    )


def probe(config: Config) -> LinearProbeEngine:
    engine = LinearProbeEngine(FakeEngine(config), create_objective(config), optimizer=config.optimizer)
    engine.load(start(config))
    return engine


class Reference:
    """In float64."""

    def __init__(self, config: Config) -> None:
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        nn = self.torch.nn
        self.norm = nn.BatchNorm1d(config.model.width, affine=False, eps=1e-6)
        self.linear = nn.Linear(config.model.width, config.model.num_classes)
        self.model = nn.Sequential(self.norm, self.linear).double()
        weights = start(config).weights
        for name in ("weight", "bias"):
            getattr(self.linear, name).data = self.torch.from_numpy(weights[f"head.{name}"]).double()
        self.momentum: dict[Any, Any] = {}
        self.features = FakeEngine(config)

    def inputs(self, batch: Batch) -> Any:
        return self.torch.from_numpy(self.features.output("features", batch)).double()

    def step(self, batches: list[Batch]) -> float:
        x = self.torch.cat([self.inputs(batch) for batch in batches])
        targets = self.torch.from_numpy(np.concatenate([batch.inputs["targets"] for batch in batches])).double()
        loss = self.torch.nn.functional.cross_entropy(self.model.train()(x), targets)
        self.model.zero_grad()
        loss.backward()
        for weight in self.linear.parameters():
            gradient = weight.grad
            if weight.ndim > 1:
                gradient = gradient + 0.01 * weight.data
                gradient = gradient * 1e-3 * weight.data.norm() / gradient.norm()
            self.momentum[weight] = 0.9 * self.momentum.get(weight, 0) + gradient
            weight.data -= LR * self.momentum[weight]
        return loss.item()


def test_losses_and_logits_equal_those_of_torch() -> None:
    config = probe_config()
    engine, reference = probe(config), Reference(config)
    for step in range(5):
        batches = [make_batch(config, index=100 * step), make_batch(config, index=100 * step + 50)]
        ours = engine.read(engine.train_step(batches, {"lr": LR}))
        assert ours["loss"] == pytest.approx(reference.step(batches), rel=1e-5)
    batch = make_batch(config, index=1000)
    expected = reference.model.eval()(reference.inputs(batch)).detach().numpy()
    np.testing.assert_allclose(engine.output("logits", batch), expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_probe_goes_on_bit_for_bit() -> None:
    config = probe_config()
    one, other = probe(config), probe(config)
    for step in range(4):
        one.train_step([make_batch(config, index=10 * step)], {"lr": LR})
        if step == 1:
            other.load(one.state())
        if step > 1:
            other.train_step([make_batch(config, index=10 * step)], {"lr": LR})
    ours, expected = other.state(), one.state()
    assert ours.scalars == expected.scalars == {"updates": 4}
    for part in ("weights", "optimizer", "buffers"):
        for name, tensor in getattr(expected, part).items():
            np.testing.assert_array_equal(getattr(ours, part)[name], tensor, err_msg=name)


def test_only_the_head_changes_and_folds_into_a_plain_classifier() -> None:
    config = probe_config()
    engine = probe(config)
    before = engine.state()
    for step in range(3):
        engine.train_step([make_batch(config, index=10 * step)], {"lr": LR})
    after = engine.state()
    changed = {n for n, w in after.weights.items() if not np.array_equal(w, before.weights[n])}
    assert changed == {"head.weight", "head.bias"}
    assert not any(np.array_equal(b, before.buffers[n]) for n, b in after.buffers.items())
    weights, section = create_objective(config).finished(after.weights, after.buffers)
    assert section.name == "classify"
    plain = FakeEngine(config)
    plain.load(EngineState(weights))
    batch = make_batch(config, index=1000)
    np.testing.assert_allclose(plain.output("logits", batch), engine.output("logits", batch), rtol=1e-4, atol=1e-4)


def test_evaluation_counts_valid_rows_once() -> None:
    config = probe_config()
    engine, batch = probe(config), make_batch(config)
    logits, labels = engine.output("logits", batch), batch.labels
    assert labels is not None
    values = measured(engine, config, batch)
    assert values["count"] == len(batch)
    assert values["top1"] == (logits.argmax(1) == labels).mean()
    exp = np.exp(logits.astype(np.float64))
    expected = -np.log(exp[np.arange(len(batch)), labels] / exp.sum(1)).mean()
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
