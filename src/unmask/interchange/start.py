"""What a run begins with: drawn weights, or those of a pretrained model."""

from __future__ import annotations

from unmask.engines.base import EngineState
from unmask.interchange import read_model
from unmask.interchange.adapt import adapt_encoder
from unmask.objectives.base import Objective


def starting_state(objective: Objective, init: str | None, seed: int) -> EngineState:
    """Initial weights and buffers; with `init`, the encoder of the model there in place of the drawn one.

    Raises CheckpointError if the file at `init` cannot be read or does not fit.
    """
    weights = {**objective.initial_weights(seed)}
    if init is not None:
        found = read_model(init)
        weights |= adapt_encoder(found.weights, objective.model, source=init, known=found.model)
    return EngineState(weights, buffers={**objective.initial_buffers(seed)})
