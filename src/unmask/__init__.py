"""unmask: masked-autoencoder pretraining of Vision Transformers, and everything a person does with it.

>>> run = unmask.pretrain("mae-vit-small", {"data.train": "photos", "train.epochs": 100})
>>> model = unmask.load(run)
>>> features = model.embed("photos")
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.api import finetune, pretrain, sweep_labels
    from unmask.data.packs.verify import verify_pack
    from unmask.data.packs.write import pack
    from unmask.evaluate.fast_probe import probe
    from unmask.evaluate.inference import Model, load
    from unmask.evaluate.knn import knn

# Importing Grain logs a warning for everyone who does not use JAX, once in every loader process.
logging.getLogger("absl").addFilter(lambda record: "jax profiler" not in record.getMessage())

__all__ = ["Model", "finetune", "knn", "load", "pack", "pretrain", "probe", "sweep_labels", "verify_pack"]

_HOME = {
    "Model": "unmask.evaluate.inference",
    "knn": "unmask.evaluate.knn",
    "load": "unmask.evaluate.inference",
    "pack": "unmask.data.packs.write",
    "probe": "unmask.evaluate.fast_probe",
    "verify_pack": "unmask.data.packs.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import unmask` stays fast and needs no framework."""
    if name not in __all__:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "unmask.api")), name)
