"""What the features are worth while pretraining goes on: k-NN, a linear probe, and their effective rank."""

from __future__ import annotations

import numpy as np

from unmask.config.schema import DataConfig, EvaluateConfig, ModelConfig
from unmask.data.sources import Source
from unmask.data.sources.subset import spread
from unmask.engines.base import Engine
from unmask.errors import ConfigError
from unmask.evaluate.class_names import check_same_classes
from unmask.evaluate.fast_probe import fit_probe
from unmask.evaluate.features import Features, features_by, labelled
from unmask.evaluate.knn import knn_of
from unmask.metrics import effective_rank
from unmask.report.progress import without_bars

_RANKED = 2048
"""Images whose features' effective rank is taken; it cannot be larger than their number or width."""


class FeatureEvaluation:
    """`evaluate.every` of a run. Each process embeds its share of the images, and all get the same figures."""

    def __init__(
        self,
        wanted: EvaluateConfig,
        engine: Engine,
        unlabelled: Source,
        *,
        model: ModelConfig,
        data: DataConfig,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`unlabelled`: images for the rank, where no labelled ones are given; `batch_size`: images of one process.

        Raises ConfigError or DataError if the labelled images of `evaluate` do not go together.
        """
        self.engine, self.model, self.data, self.seed = engine, model, data, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.labelled: tuple[Source, Source] | None = None
        if (wanted.train is None) != (wanted.val is None):
            raise ConfigError("evaluate.train and evaluate.val go together: labelled images to learn from and to judge")
        if wanted.train is not None and wanted.val is not None:
            train = labelled(wanted.train, "evaluate.train", data.dtype)
            val = labelled(wanted.val, "evaluate.val", data.dtype)
            check_same_classes(train.class_names or (), val.class_names or (), "evaluate.train", "evaluate.val")
            self.labelled = train, val
        self.unlabelled = spread(unlabelled, _RANKED)

    def __call__(self) -> dict[str, float]:
        """`effective_rank`; with labelled images also `knn_top1` and `probe_top1` (shares)."""
        if self.labelled is None:
            return {"effective_rank": _rank_of(self._features(self.unlabelled))}
        train, val = (self._features(source) for source in self.labelled)
        classes = len(self.labelled[0].class_names or ())
        with without_bars():  # the run's own is shown
            return {
                "effective_rank": _rank_of(val),
                "knn_top1": knn_of(train, val, classes)["top1"],
                "probe_top1": fit_probe(train, val, classes, seed=self.seed).accuracy,
            }

    def _features(self, source: Source) -> Features:
        return features_by(
            self.engine,
            source,
            width=self.model.width,
            model=self.model,
            data=self.data,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
        )


def _rank_of(features: Features) -> float:
    rows = np.flatnonzero(features.labels >= 0)
    return effective_rank(features.values[rows[:: max(1, len(rows) // _RANKED)]]) if len(rows) else float("nan")
