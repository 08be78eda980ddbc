"""A training step on PyTorch's meta device, which holds no numbers: reading one back, or mixing devices, raises there.

So no step of any objective waits for the device or copies in its middle, on whatever device it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine_cases import make_batch, make_config, make_config_of
from unmask import plugins
from unmask.engines import create_engine
from unmask.plugins import OBJECTIVES

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.overrides import TorchFunctionMode  # noqa: E402

HEAD_IN_NUMPY = {"linear_probe"}
"""Their features come from an engine, and are read back by design."""
NOT_TRAINED = {"encoder"}
"""Models that are read only."""


class FromHost(TorchFunctionMode):
    """Counts what becomes a tensor elsewhere of numbers of the host: a card waits for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor)
        moved = func is torch.Tensor.to and args[0].device != found.device
        self.count += made or moved
        return found


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
        with FromHost() as copies:
            result = engine.train_step([batch, batch], {"lr": 1e-3})
        assert copies.count == 2 * (1 + len(batch.inputs)), "the batches alone"
    assert {"loss", "grad_norm", "skipped"} <= result.keys()
    assert {value.device.type for value in result.values()} == {"meta"}


def test_reading_back_does_raise() -> None:
    config = make_config_of("mae", device="meta")
    engine = create_engine(config)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"[Mm]eta"):
        engine.read(engine.train_step([make_batch(config)], {"lr": 1e-3}))


def test_a_teacher_that_stays_copies_nothing() -> None:
    """Features by hand are products with matrices that were made of numbers."""
    teacher = {"teacher": ["handmade"], "teacher_share": 0.5}
    config = make_config("finetune", device="meta", objective=teacher, data={"eval_crop": 1.0})
    network: Any = create_engine(config).network
    with FromHost() as copies:
        logits = network.logits(torch.zeros(6, *config.model.image_size, 3, dtype=torch.uint8, device="meta"))
    assert (logits.device.type, logits.shape, copies.count) == ("meta", (6, 7), 0)
    assert [name for name in network.state_dict() if "handmade" in name] == [
        f"handmade.{name}" for name in ("filters", "threshold", "head.weight", "head.bias")
    ]
