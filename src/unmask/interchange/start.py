"""What a run begins with: drawn weights, or those of a pretrained model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from unmask.config.schema import Config, ModelConfig
from unmask.engines.base import EngineState, Tensors
from unmask.interchange.adapt import OF_ARCHITECTURE, adapt_encoder
from unmask.interchange.stored_model import StoredModel
from unmask.models.parameters import POSITIONS, encoder_shapes
from unmask.objectives.base import Objective
from unmask.objectives.classify import HeadSection

log = logging.getLogger("unmask")

_HEAD_OF_PRETRAINED = np.float32(1e-3)
"""A head that is drawn for a pretrained network begins near zero (std 2e-5, as the official fine-tuning), so that it
tells the network little before it has learnt something. A network that is drawn too must not: until such a head has
grown, its gradients are noise, which Adam scales up to full steps (docs/log.md, "A head of nearly zero")."""


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
        if isinstance(objective.section, HeadSection):
            weights["head.weight"] = weights["head.weight"] * _HEAD_OF_PRETRAINED
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
