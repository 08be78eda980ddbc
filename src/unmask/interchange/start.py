"""What a run begins with: drawn weights, or those of a pretrained model."""

from __future__ import annotations

import logging
from typing import Any

from unmask.config.schema import Config, ModelConfig
from unmask.engines.base import EngineState, Tensors
from unmask.interchange.adapt import OF_ARCHITECTURE, adapt_encoder
from unmask.interchange.stored_model import StoredModel
from unmask.models.parameters import POSITIONS, encoder_shapes
from unmask.objectives.base import Objective

log = logging.getLogger("unmask")


def with_architecture(model: ModelConfig, fields: dict[str, Any]) -> ModelConfig:
    """`model` with what its start decides and nobody set: whether there are register tokens, layer scale and such."""
    plain = ModelConfig()
    taken = {name: fields[name] for name in OF_ARCHITECTURE if name in fields}
    taken = {name: value for name, value in taken.items() if getattr(model, name) == getattr(plain, name)}
    return ModelConfig.model_validate({**model.model_dump(), **taken})


def starting_state(objective: Objective, config: Config, start: StoredModel | None) -> EngineState:
    """Initial weights and buffers: drawn, but for what is taken from `start`, the model at `config.init`.

    Of it comes the encoder, see `adapt_encoder`; and, with all its tensors or not at all, what else the objective
    trains, such as the decoder of masked autoencoding. Raises CheckpointError if it does not fit.
    """
    weights = {**objective.initial_weights(config.seed)}
    if start is not None:
        weights |= adapt_encoder(
            start.weights,
            objective.model,
            source=str(config.init),
            known=start.model,
            prepared=start.data,
            data=config.data,
            fc_norm="fc_norm.weight" in weights,
        )
        if objective.section.task == "pretrain":
            weights |= _decoder(objective, start, str(config.init))
    return EngineState(weights, buffers={**objective.initial_buffers(config.seed)})


def _decoder(objective: Objective, start: StoredModel, source: str) -> Tensors:
    """All but the encoder, where `start` has it in the same shape; position embeddings are of the run's own grid."""
    encoder = encoder_shapes(objective.model).keys() | {"norm.weight", "norm.bias"}
    wanted = {name: shape for name, shape in objective.shapes().items() if name not in encoder | POSITIONS}
    found = {name: start.weights[name] for name in wanted if name in start.weights}
    if wanted and {name: tensor.shape for name, tensor in found.items()} != wanted:
        log.warning("%s has no decoder of this shape: it starts fresh", source)
        return {}
    return found
