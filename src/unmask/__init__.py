"""unmask: masked-autoencoder pretraining of Vision Transformers, and everything a person does with it.

>>> run = unmask.pretrain("mae-vit-small", {"data.train": "photos", "train.epochs": 100})
>>> model = unmask.load(run)
>>> features = model.embed("photos")
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from unmask import errors

if TYPE_CHECKING:
    from unmask.api import Run, finetune, pretrain
    from unmask.config.schema import Config
    from unmask.data.packs.verify import verify_pack
    from unmask.data.packs.write import pack
    from unmask.evaluate.fast_probe import probe
    from unmask.evaluate.inference import Model, load
    from unmask.evaluate.knn import knn
    from unmask.evaluate.output import write_embeddings, write_predictions
    from unmask.overview import write_report
    from unmask.sweep import sweep_labels

    __version__: str

# Importing Grain logs a warning for everyone who does not use JAX, once in every loader process.
logging.getLogger("absl").addFilter(lambda record: "jax profiler" not in record.getMessage())

__all__ = [
    "Config",
    "Model",
    "Run",
    "__version__",
    "errors",
    "finetune",
    "knn",
    "load",
    "pack",
    "pretrain",
    "probe",
    "sweep_labels",
    "verify_pack",
    "write_embeddings",
    "write_predictions",
    "write_report",
]

HOMES = {
    "Config": "config.schema",
    "Model": "evaluate.inference",
    "Run": "api",
    "finetune": "api",
    "knn": "evaluate.knn",
    "load": "evaluate.inference",
    "pack": "data.packs.write",
    "pretrain": "api",
    "probe": "evaluate.fast_probe",
    "sweep_labels": "sweep",
    "verify_pack": "data.packs.verify",
    "write_embeddings": "evaluate.output",
    "write_predictions": "evaluate.output",
    "write_report": "overview",
}
"""Where each public name is defined, below `unmask.`."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import unmask` stays fast and needs no framework."""
    if name == "__version__":
        from importlib.metadata import version

        return version("unmask")
    if name not in HOMES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"unmask.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
