"""How large a head begins: near zero on a pretrained network only."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import make_config_of
from unmask.interchange.start import starting_state
from unmask.interchange.stored_model import StoredModel
from unmask.models.parameters import draw, encoder_shapes
from unmask.objectives.base import create_objective

WIDE = {"width": 4096, "depth": 1, "heads": 1, "mlp_ratio": 1 / 64, "decoder_width": 16, "decoder_heads": 2}


@pytest.mark.parametrize(
    ("objective", "pretrained", "std"),
    [
        ("classify", False, 0.02),
        ("semi", False, 0.02),
        ("classify", True, 2e-5),  # as the official fine-tuning
        ("semi", True, 2e-5),
        ("linear_probe", False, 0.01),  # as the official linear probe
        ("linear_probe", True, 0.01),
    ],
)
def test_a_head_begins_near_zero_where_the_network_is_pretrained(objective: str, pretrained: bool, std: float) -> None:
    config = make_config_of(objective, model=WIDE)
    names = encoder_shapes(config.model).items()
    weights = {name: draw(name, shape, config.model, 1) for name, shape in names}
    weights |= {"norm.weight": np.ones(4096, np.float32), "norm.bias": np.zeros(4096, np.float32)}
    start = StoredModel(weights, config.model.model_dump(), None, "unmask") if pretrained else None
    state = starting_state(create_objective(config), config, start)
    assert state.weights["head.weight"].std() == pytest.approx(std, rel=0.05)
    assert state.weights["head.weight"].dtype == np.float32
    assert not state.weights["head.bias"].any()
