"""What can be added from outside, found by name: objectives and engines.

Those of this package stand in the table below. Another package adds its own by an entry point of the same group, in its
pyproject.toml:

    [project.entry-points."unmask.objectives"]
    my_objective = "my_package.my_objective:MyObjective"
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

OBJECTIVES, ENGINES = "unmask.objectives", "unmask.engines"

_BUILT_IN = {
    OBJECTIVES: {
        "mae": "unmask.objectives.mae:MaskedAutoencoding",
        "cross_mae": "unmask.objectives.cross_mae:CrossMaskedAutoencoding",
        "hog_mae": "unmask.objectives.hog_mae:MaskedHogPrediction",
        "lejepa": "unmask.objectives.lejepa:ViewAgreement",
        "mae_lejepa": "unmask.objectives.lejepa:MaskedViewAgreement",
        "classify": "unmask.objectives.classify:Classification",
        "semi": "unmask.objectives.semi:SemiSupervised",
        "convnet": "unmask.objectives.convnet:ConvNet",
        "linear_probe": "unmask.objectives.linear_probe:LinearProbe",
        "encoder": "unmask.objectives.encoder:EncoderAlone",
    },
    ENGINES: {
        "torch": "unmask.engines.torch_engine:TORCH",
        "mindspore": "unmask.engines.mindspore_engine:MINDSPORE",
    },
}


def names(group: str) -> list[str]:
    """All that there are of a group."""
    return list(_table(group))


def find(group: str, name: str) -> Any:
    """What a name of `names(group)` stands for. Imports its module."""
    return resolve(_table(group)[name])


def resolve(path: str) -> Any:
    """The object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@cache
def _table(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)} | _BUILT_IN[group]
