"""A trained model and what can be asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.checkpoint.convert import read_foreign
from unmask.config.load import check_config
from unmask.config.schema import Config
from unmask.data.batch import Batch
from unmask.data.pipeline import eval_batches
from unmask.data.sources import Source, open_source
from unmask.data.sources.listed import ListSource
from unmask.engines import create_engine
from unmask.engines.base import EngineState, Tensors
from unmask.errors import ConfigError, DataError
from unmask.evaluate.measure import measure
from unmask.evaluate.reconstruct import Reconstruction, paint

Images = str | Path | Sequence[str | Path | NDArray[np.uint8]] | Source
"""A folder, a file, `bundled:mnist5k/val`, a list of files and (H, W, C) uint8 arrays, or an opened source."""

Rows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(n,) positions in the source and (n, values) what the model says of each."""


class Model:
    """A masked autoencoder or a classifier, ready to be asked. Made by `load`.

    The methods take images in any form of `Images`. An image that cannot be decoded gives a row of NaN (`embed`,
    `predict`) or is left out (`evaluate`, `reconstruct`).
    """

    def __init__(self, config: Config, weights: Tensors, class_names: tuple[str, ...] | None, batch_size: int) -> None:
        self.config = config
        self.class_names = class_names
        self.batch_size = batch_size
        self._engine = create_engine(config)
        self._engine.load(EngineState(weights))

    def embed(self, images: Images) -> NDArray[np.float32]:
        """(N, width): the mean patch token (or cls token, `model.pool=cls`) of each whole image after the last norm."""
        return np.concatenate([embeddings for _, embeddings in self.embed_batches(as_source(images))])

    def embed_batches(self, source: Source) -> Iterator[Rows]:
        """The same batch by batch, in order; for any number of images."""
        for batch in self._batches(source):
            yield _rows(batch, self._engine.embed(batch))

    def predict(self, images: Images) -> NDArray[np.float32]:
        """(N, classes): probability of each class. Raises ConfigError for a model without a classification head."""
        return np.concatenate([probabilities for _, probabilities in self.predict_batches(as_source(images))])

    def predict_batches(self, source: Source) -> Iterator[Rows]:
        """The same batch by batch, in order; for any number of images."""
        if self.config.task != "finetune":
            raise ConfigError("this model cannot predict, it has no classification head; fine-tune it first")
        return (_rows(batch, _softmax(self._engine.logits(batch))) for batch in self._batches(source))

    def evaluate(self, images: Images) -> dict[str, float]:
        """`count`, mean `loss`, and for a classifier `top1` and `top5` (shares), on images in class folders.

        Raises DataError, with the difference, if the classes are not those of the model.
        """
        source = as_source(images, labels=self.config.task == "finetune")
        if self.config.task == "finetune" and self.class_names and source.class_names != self.class_names:
            missing = sorted(set(self.class_names) - set(source.class_names or ()))
            unknown = sorted(set(source.class_names or ()) - set(self.class_names))
            raise DataError(f"{images} has other classes than the model: missing {missing}, unknown {unknown}")
        return measure(self._engine, self._batches(source))

    def reconstruct(self, images: Images) -> Reconstruction:
        """The images masked (`model.mask_ratio` and `seed` of the run) and painted again, from visible pixels alone.

        Raises ConfigError for a model without a decoder, DataError if not one image can be decoded.
        """
        if self.config.task != "pretrain":
            raise ConfigError("this model cannot reconstruct, it has no decoder; take the pretrained one")
        data, model = self.config.data, self.config.model
        painted: list[Reconstruction] = []
        for batch in self._batches(as_source(images)):
            reconstruction = paint(self._engine.predict_patches(batch), batch, model, data.mean, data.std)
            painted.append(reconstruction if batch.valid is None else reconstruction.rows(batch.valid))
        result = Reconstruction.concatenate(painted)
        if not len(result.original):
            raise DataError("not one of the images can be decoded")
        return result

    def _batches(self, source: Source) -> Iterator[Batch]:
        config = self.config
        return eval_batches(
            source,
            task=config.task,
            model=config.model,
            data=config.data,
            seed=config.seed,
            batch_size=min(self.batch_size, len(source)),
        )


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    settings: Mapping[str, Any] | None = None,
) -> Model:
    """The model at `path`: a run folder (its newest checkpoint), a checkpoint, or a model of another format.

    Other formats: the official MAE `.pth`, a transformers folder. With a moving average, that is what is loaded.
    `engine` defaults to the one the model was trained on. `settings` changes the run's config, such as
    `{"model.mask_ratio": 0.5}`. Raises CheckpointError, ConfigError or EngineError.
    """
    found = read_foreign(path)
    if "heads" not in found.model and "model.heads" not in (settings or {}):
        raise ConfigError(f"{path} does not tell the number of attention heads; give settings={{'model.heads': N}}")
    values: dict[str, Any] = dict(found.config or {"model": found.model})
    values["task"] = "finetune" if "head.weight" in found.weights else "pretrain"
    values |= {"init": None, "device": device, "engine": engine or values.get("engine", "torch")}
    values["train"] = {**values.get("train", {}), "precision": precision, "ema_decay": None}
    for key, value in (settings or {}).items():
        section, _, name = key.rpartition(".")
        values |= {section: {**values.get(section, {}), name: value}} if section else {name: value}
    return Model(check_config(values), found.weights, found.class_names, batch_size)


def as_source(images: Images, *, labels: bool = False) -> Source:
    """Images in any of the accepted forms. Raises DataError if there are none."""
    if isinstance(images, str | Path):
        if str(images).startswith("bundled:") or not Path(images).is_file():
            return open_source(str(images), key="images", labels=labels)
        return ListSource([images])
    return ListSource(images) if isinstance(images, Sequence) else images


def _rows(batch: Batch, values: NDArray[np.float32]) -> Rows:
    """Without the rows that fill up the last batch; NaN where the image could not be decoded."""
    if batch.valid is None:
        return batch.index, values
    values = np.where(batch.valid[:, None], values, np.float32(np.nan))
    real = batch.index >= 0
    return batch.index[real], values[real]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)
