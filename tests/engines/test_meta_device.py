"""A training step on PyTorch's meta device, which holds no numbers: reading one back, or mixing devices, raises there.

So no step of any objective waits for the device or copies in its middle, on whatever device it runs.
"""

from __future__ import annotations

import pytest

from engine_cases import make_batch, make_config_of
from unmask import plugins
from unmask.engines import create_engine
from unmask.plugins import OBJECTIVES

torch = pytest.importorskip("torch", reason="torch is not installed")

HEAD_IN_NUMPY = {"linear_probe"}
"""Their features come from an engine, and are read back by design."""
NOT_TRAINED = {"encoder"}
"""Models that are read only."""


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("objective", sorted({*plugins.names(OBJECTIVES)} - HEAD_IN_NUMPY - NOT_TRAINED))
def test_a_step_reads_nothing_back(objective: str, precision: str) -> None:
    config = make_config_of(
        objective,
        device="meta",
        train={"precision": precision, "ema_decay": 0.9, "ema_warmup": True, "activation_checkpointing": True},
        optimizer={"clip_grad": 1.0},
    )
    engine, batch = create_engine(config), make_batch(config)
    for _ in range(2):
        result = engine.train_step([batch, batch], {"lr": 1e-3})
    assert {"loss", "grad_norm", "skipped"} <= result.keys()
    assert {value.device.type for value in result.values()} == {"meta"}


def test_reading_back_does_raise() -> None:
    config = make_config_of("mae", device="meta")
    engine = create_engine(config)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"[Mm]eta"):
        engine.read(engine.train_step([make_batch(config)], {"lr": 1e-3}))
