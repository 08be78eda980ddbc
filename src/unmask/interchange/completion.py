"""A model read from anywhere, made whole: what its source does not tell comes from settings, or is asked for by key."""

from __future__ import annotations

import dataclasses
from typing import Any

from unmask.config.load import Settings, apply_settings, check_config, to_dict
from unmask.config.schema import Config, ModelConfig
from unmask.engines.base import Tensors
from unmask.errors import ConfigError
from unmask.interchange.adapt import interpolate_position_embedding
from unmask.interchange.stored_model import OF_DATA, StoredModel
from unmask.models.parameters import POSITIONS

NORM_PIX_LOSS = "objective.norm_pix_loss"
_ASKED = {
    "model.heads": "N",
    "model.decoder_heads": "N",
    "model.image_size": "[HEIGHT,WIDTH]",
    "data.mean": "[…]",
    "data.std": "[…]",
    NORM_PIX_LOSS: "true, or false",
}
"""What weights alone do not tell, and how it is written."""


def how_to_tell(keys: tuple[str, ...]) -> str:
    """What a person does about keys that a source does not tell."""
    given = " ".join(f"--set {key}={_ASKED[key]}" for key in keys)
    return f"does not tell {', '.join(keys)}; give {given} (in Python settings={{'{keys[0]}': …}})"


def config_of(found: StoredModel, source: str, settings: Settings = (), **root: Any) -> tuple[Config, tuple[str, ...]]:
    """The configuration under which the model computes, and the keys that are left to chance in it.

    `settings` go over what the source tells, `root` (keys of the root) over what a run of ours was trained with.
    Only `objective.norm_pix_loss` may be left: all but reconstruction and its loss does without. Raises ConfigError
    naming everything else that the source does not tell.
    """
    values: dict[str, Any] = found.config or {
        "model": found.model,
        "data": found.data,
        "objective": _objective(found),
        **({} if found.seed is None else {"seed": found.seed}),
    }
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()} | root
    origins = apply_settings(values, settings)
    untold = (
        () if found.config else tuple(key for key in _needed(found) if key not in origins and not _told(key, values))
    )
    if missing := tuple(key for key in untold if key != NORM_PIX_LOSS):
        raise ConfigError(f"{source} {how_to_tell(missing)}")
    return check_config(values, origins), untold


def at_size_of(found: StoredModel, model: ModelConfig) -> Tensors:
    """The weights for images of the size that settings ask for: position embeddings are interpolated."""
    if "image_size" not in found.model:
        return found.weights
    old = model.model_copy(update={"image_size": tuple(found.model["image_size"])}).grid
    positions = {name: found.weights[name] for name in POSITIONS if name in found.weights}
    return found.weights | {
        n: interpolate_position_embedding(tensor, old, model.grid) for n, tensor in positions.items()
    }


def completed(found: StoredModel, source: str, settings: Settings = ()) -> StoredModel:
    """The same model with every field of `model`, and those of `data` and `objective` that belong to it.

    Raises ConfigError as `config_of`.
    """
    config, untold = config_of(found, source, settings)
    values = to_dict(config)
    return dataclasses.replace(
        found,
        weights=at_size_of(found, config.model),
        model=values["model"],
        data={name: values["data"][name] for name in OF_DATA},
        objective={k: v for k, v in values["objective"].items() if k != "name" and f"objective.{k}" not in untold},
        seed=config.seed if found.kind == "autoencoder" else None,
    )


def _objective(found: StoredModel) -> dict[str, Any]:
    if found.kind == "classifier":
        return {"name": "classify"}
    if found.kind == "autoencoder":
        return {"name": "mae", **found.objective}
    return {"name": "encoder", "fc_norm": "fc_norm.weight" in found.weights}


def _needed(found: StoredModel) -> list[str]:
    decoder = ["model.decoder_heads", NORM_PIX_LOSS] if found.kind == "autoencoder" else []
    return ["model.heads", "model.image_size", "data.mean", "data.std", *decoder]


def _told(key: str, values: dict[str, Any]) -> bool:
    section, _, name = key.partition(".")
    return name in values[section]
