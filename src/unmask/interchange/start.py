"""The weights a run begins with: drawn, or taken over from a pretrained model."""

from __future__ import annotations

from unmask.config.schema import Config
from unmask.engines.base import Tensors
from unmask.interchange import read_model
from unmask.interchange.adapt import adapt_encoder
from unmask.models.parameters import initial_weights


def starting_weights(config: Config) -> Tensors:
    """Initial weights for `config`; with `init`, the encoder of that model in place of the drawn one.

    Raises CheckpointError if the file at `init` cannot be read or does not fit.
    """
    weights: Tensors = {**initial_weights(config.model, "probe" if config.train.probe else config.task, config.seed)}
    if config.init is not None:
        found = read_model(config.init)
        weights |= adapt_encoder(found.weights, config.model, source=config.init, known=found.model)
    return weights
