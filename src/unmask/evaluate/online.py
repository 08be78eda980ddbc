"""What the features are worth while pretraining goes on: k-NN, a linear probe, and their effective rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unmask.config.schema import EvaluateConfig
from unmask.data.sources import Source
from unmask.data.sources.same_classes import with_classes_of
from unmask.data.sources.subset import spread
from unmask.errors import ConfigError
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import Features, labelled
from unmask.evaluate.knn import knn_of
from unmask.metrics import effective_rank

_RANKED = 2048
"""Images whose features' effective rank is taken; it cannot be larger than their number or width."""


class FeatureEvaluation:
    """`evaluate.every` of a run. Each process embeds its share of the images, and all get the same figures."""

    def __init__(
        self,
        wanted: EvaluateConfig,
        embed: Callable[[Source], Features],
        unlabelled: Source,
        *,
        dtype: str,
        seed: int,
    ) -> None:
        """`embed` gives the features of images, see `features_by`; `unlabelled`: images for the rank, where no labelled
        ones are given; `dtype`: of the images, as `data.dtype`.

        Raises ConfigError or DataError if the labelled images of `evaluate` do not go together.
        """
        self.embed, self.seed = embed, seed
        self.labelled: tuple[Source, Source] | None = None
        if (wanted.train is None) != (wanted.val is None):
            raise ConfigError("evaluate.train and evaluate.val go together: labelled images to learn from and to judge")
        if wanted.train is not None and wanted.val is not None:
            train = labelled(wanted.train, "evaluate.train", dtype)
            val = labelled(wanted.val, "evaluate.val", dtype)
            val = with_classes_of(val, train.class_names or (), "evaluate.val", "evaluate.train")
            self.labelled = train, val
        self.unlabelled = spread(unlabelled, _RANKED)

    def __call__(self) -> dict[str, float]:
        """`effective_rank`; with labelled images also `knn_top1` and `probe_top1` (shares)."""
        if self.labelled is None:
            return {"effective_rank": _rank_of(self.embed(self.unlabelled))}
        train, val = (self.embed(source) for source in self.labelled)
        classes = len(self.labelled[0].class_names or ())
        return {
            "effective_rank": _rank_of(val),
            "knn_top1": knn_of(train, val, classes)["top1"],
            "probe_top1": fit_probe(train, val, classes, seed=self.seed).accuracy,
        }


def _rank_of(features: Features) -> float:
    rows = np.flatnonzero(features.labels >= 0)
    return effective_rank(features.values[rows[:: max(1, len(rows) // _RANKED)]]) if len(rows) else float("nan")
