"""A trained model and what can be asked of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from unmask.checkpoint.store import Choice
from unmask.config.load import Settings, to_dict
from unmask.config.schema import Config, TrainConfig
from unmask.data.batch import Batch
from unmask.data.decode.raster import check_images
from unmask.data.loader.pipeline import eval_batches
from unmask.data.sources import Images, Source, to_source
from unmask.data.sources.subset import SpansSource
from unmask.engines import create_engine, joined, with_precision
from unmask.engines.base import Engine, EngineState, Tensors
from unmask.errors import ConfigError, DataError
from unmask.evaluate.class_names import head_classes
from unmask.evaluate.classification import ClassificationReport, Tally
from unmask.evaluate.measure import measure, shown
from unmask.evaluate.reconstruct import Reconstruction, paint, visible
from unmask.interchange import read_model
from unmask.interchange.completion import at_size_of, config_of, how_to_tell
from unmask.metrics import log_softmax
from unmask.models.handmade import without_handmade
from unmask.objectives.base import PaintingSection, create_objective

Pool = Literal["mean", "cls", "mean+cls", "patches"]
POOLS = ("mean", "cls", "mean+cls", "patches")


@dataclass(frozen=True)
class Rows:
    """What the model says of some images."""

    index: NDArray[np.int64]
    """(n,) positions in the source."""
    values: NDArray[np.float32]
    """(n, values); NaN where the image could not be decoded."""
    valid: NDArray[np.bool_]
    """(n,) False where the image could not be decoded."""


class Model:
    """A masked autoencoder or a classifier, ready to be asked. Made by `load`.

    The methods take images in any form that `unmask.data.sources.to_source` does. An image that cannot be decoded gives
    a row of NaN (`embed`, `predict`) or is left out (`evaluate`, `reconstruct`).
    """

    def __init__(
        self,
        config: Config,
        weights: Tensors,
        class_names: tuple[str, ...] | None,
        batch_size: int,
        *,
        join: bool = False,
        flip: bool = False,
        untold: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self._untold = untold
        self.objective = create_objective(config)
        self.class_names = class_names
        self.batch_size = batch_size
        self._open = ExitStack()
        self.rank, self.world = (0, 1)
        if join:
            timeout = config.train.process_timeout
            self.rank, self.world = self._open.enter_context(joined(config.engine, config.device, timeout))
        self.engine = self._open.enter_context(closing(create_engine(config, self.world)))
        self.engine.load(EngineState(weights))
        self.flip = flip
        if flip:
            self.engine = cast(Engine, _Mirrored(self.engine))

    def close(self) -> None:
        """Release the device and leave the other processes; `with` does the same at its end."""
        self._open.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, error, at)

    @property
    def module(self) -> Any:
        """The network as a `torch.nn.Module` on normalised images (B, C, H, W); see `unmask.models.torch_vit`.

        Raises ConfigError for a model on another engine.
        """
        try:
            return self.engine.module.eval()  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            raise ConfigError(
                f"engine={self.config.engine} has no module; load the model with engine='torch'"
            ) from None

    def embed(self, images: Images, *, pool: Pool | None = None) -> NDArray[np.float32]:
        """(N, width): features of each whole image after the last norm.

        `pool`: "mean" of the patch tokens, the "cls" token, or "mean+cls", both one after the other (N, 2 width); by
        default what a classifier was trained with, and the mean of any other model. "patches": all of
        `patch_features`, one after the other (N, h * w * width).
        """
        return np.concatenate([rows.values for rows in self.embed_batches(self.source(images), pool=pool)])

    def embed_batches(
        self, source: Source, spans: Sequence[range] | None = None, *, pool: Pool | None = None
    ) -> Iterator[Rows]:
        """The same batch by batch, in order, for any number of images.

        `spans`: only these, each beginning where a batch of all would begin, so that the numbers are the same.
        """
        self._check_pool(pool)
        for batch in self.batches(source, spans):
            if pool == "patches":
                yield _rows(batch, self.engine.output("patch_features", batch).reshape(len(batch), -1))
            else:
                yield _rows(batch, self.engine.output("features", batch, pool=pool))

    def feature_width(self, pool: Pool | None = None) -> int:
        """Values in a row of `embed`."""
        self._check_pool(pool)
        model = self.config.model
        if pool is None:
            return model.width if self.objective.section.task == "pretrain" else model.feature_width
        return model.width * {"mean+cls": 2, "patches": model.num_patches}.get(pool, 1)

    def patch_features(self, images: Images) -> NDArray[np.float32]:
        """(N, h, w, width): features of each patch after the last norm, in their places."""
        self._check_gives("patch_features")
        return np.concatenate([_filled(b, self.engine.output("patch_features", b)) for b in self.batches(images)])

    def attention(self, images: Images, *, block: int = -1) -> NDArray[np.float32]:
        """(N, heads, T, T): the share of its attention that each token (row) gives to each other, in one block.

        The first `config.model.prefix_tokens` are cls and registers, then come the patches row by row: with one cls
        token and no registers, `attention(images)[:, :, 0, 1:]` is what cls looks at.
        """
        if not -self.config.model.depth <= block < self.config.model.depth:
            raise ConfigError(f"block={block}: the model has blocks 0 to {self.config.model.depth - 1}")
        batches = self.batches(images)
        return np.concatenate([_filled(b, self.engine.output("attention", b, block=block)) for b in batches])

    def predict(self, images: Images) -> NDArray[np.float32]:
        """(N, classes): probability of each class. Raises ConfigError for a model without a classification head."""
        return np.concatenate([rows.values for rows in self.predict_batches(self.source(images))])

    def predict_batches(self, source: Source, spans: Sequence[range] | None = None) -> Iterator[Rows]:
        """The same batch by batch, in order, for any number of images; `spans` as for `embed_batches`."""
        self._check_classifier("predict")

        def probabilities(batch: Batch) -> NDArray[np.float32]:
            return np.exp(log_softmax(self.engine.output("logits", batch))).astype(np.float32)

        return (_rows(batch, probabilities(batch)) for batch in self.batches(source, spans))

    def evaluate(
        self, images: Images, *, class_map: Path | None = None, label_offset: int | None = None
    ) -> dict[str, float]:
        """`count` and mean `loss`; for a classifier also the other figures of `ClassificationReport.metrics`.

        With several classes an image, those of `set_measures`. Arguments and errors as for `classification_report`.
        """
        if "logits" not in self.objective.outputs:
            self._check_painting_told()
            with self._share(self.source(images)) as batches:
                return measure(self.engine, self.objective, batches)
        source = self.source(images, labels=True)
        if source.labels is not None:
            return self.classification_report(source, class_map=class_map, label_offset=label_offset).metrics()
        numbers = self.numbers_of_classes(source, class_map, label_offset)
        if not np.array_equal(numbers, np.arange(self.config.model.num_classes or 0)):
            raise DataError("images of several classes need exactly the classes of the model, in its order")
        with self._share(source) as batches:
            return measure(self.engine, self.objective, batches)

    def classification_report(
        self, images: Images, *, class_map: Path | None = None, label_offset: int | None = None, each: bool = False
    ) -> ClassificationReport:
        """Everything about how well the classifier does on images with labels, such as class folders; `each`: also what
        it says of every single one.

        The classes must be those of the model; `class_map` (a file) and `label_offset` are for others, see
        `unmask.evaluate.class_names`. Raises DataError, with the difference, if they do not fit, and ConfigError
        for a model without a classification head.
        """
        self._check_classifier("classify")
        source = self.source(images, labels=True)
        if source.labels is None:
            raise DataError("the report needs images of one class each")
        numbers = self.numbers_of_classes(source, class_map, label_offset)
        names, classes = source.class_names or (), self.config.model.num_classes or 0
        tally = Tally(classes, len(source) if each else 0)
        with self._share(source) as batches:
            for batch in batches:
                logits, labels = self.engine.output("logits", batch), batch.labels
                rows = np.arange(len(batch)) if batch.valid is None else np.flatnonzero(batch.valid)
                if labels is not None and len(rows):
                    tally.add(batch.index[rows], numbers[labels[rows]], logits[rows])
        tally.over_processes(self.engine.sum, self.rank, self.world)
        known = dict(enumerate(self.class_names) if self.class_names else zip(numbers.tolist(), names, strict=True))
        return ClassificationReport(tally, tuple(known.get(number, str(number)) for number in range(classes)))

    def reconstruct(self, images: Images) -> Reconstruction:
        """The images masked (`objective.mask_ratio`, `seed` of the run) and painted again, from visible pixels alone.

        Raises ConfigError for a model without a decoder, DataError if not one image can be decoded.
        """
        norm_pix_loss, data, model = self.painting().norm_pix_loss, self.config.data, self.config.model
        painted: list[Reconstruction] = []
        for batch in self.batches(images):
            prediction = self.engine.output("reconstruction", batch)
            reconstruction = paint(prediction, batch, model, norm_pix_loss, data.mean, data.std)
            painted.append(reconstruction if batch.valid is None else reconstruction.rows(batch.valid))
        result = Reconstruction.concatenate(painted)
        if not len(result.original):
            raise DataError("not one of the images can be decoded")
        return result

    def _check_pool(self, pool: Pool | None) -> None:
        if pool not in (None, *POOLS):
            raise ConfigError(f"pool={pool!r} is none of {', '.join(POOLS)}")
        self._check_gives("patch_features" if pool == "patches" else "features")
        if pool in ("cls", "mean+cls") and not self.config.model.cls_token:
            raise ConfigError(f"pool={pool!r}: this model has no cls token; take the mean (--pool mean)")

    def _check_gives(self, output: str) -> None:
        if output not in self.objective.outputs:
            raise ConfigError(
                f"this model gives no {output.replace('_', ' ')}, as objective.name={self.objective.section.name} has "
                "none; take a Vision Transformer"
            )

    def painting(self) -> PaintingSection:
        """How the model hides and paints patches. Raises ConfigError if it has no decoder."""
        section = self.objective.section
        if "reconstruction" not in self.objective.outputs or not isinstance(section, PaintingSection):
            raise ConfigError("this model cannot reconstruct, it has no decoder; take the pretrained one")
        self._check_painting_told()
        return section

    def _check_painting_told(self) -> None:
        if self._untold:
            raise ConfigError(f"the model {how_to_tell(self._untold)}")

    def fingerprint(self) -> str:
        """SHA-256 over config, batch size and weights: what decides every number the model gives."""
        decisive = to_dict(self.config)
        for key in ("max_bad_share", "workers"):
            del decisive["data"][key]
        decisive["train"]["process_timeout"] = TrainConfig.model_fields["process_timeout"].default  # of no number
        how = [self.batch_size, "flip"] if self.flip else [self.batch_size]
        config = json.dumps([decisive, *how], sort_keys=True)
        digest = hashlib.sha256(config.encode())
        for name, tensor in sorted(self.engine.state().weights.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).data)
        return digest.hexdigest()

    def center_crops(self, source: Source) -> NDArray[np.uint8]:
        """(N, H, W, C): the images as the model sees them, made visible."""
        data = self.config.data
        crops = [
            batch.images if batch.valid is None else batch.images[batch.index >= 0] for batch in self.batches(source)
        ]
        return visible(np.concatenate(crops), data.mean, data.std)

    def source(self, images: Images, *, labels: bool | None = False) -> Source:
        """Images in any accepted form as a source, for this model; `labels` as for `to_source`.

        Raises DataError if there are none, and ConfigError if none of those looked at fits the model.
        """
        source = as_source(images, dtype=self.config.data.dtype, labels=labels)
        check_images(source, "images", self.config.model.channels, self.config.data)
        return source

    def _share(self, source: Source) -> AbstractContextManager[Iterator[Batch]]:
        """The batches of this process, with a bar."""
        batches = self.batches(source, rank=self.rank, world=self.world)
        return shown(batches, "evaluate", -(-len(source) // self.world))

    def numbers_of_classes(self, source: Source, class_map: Path | None, label_offset: int | None) -> NDArray[np.int64]:
        """The class of the head that each class of the images is. Raises DataError as `classification_report`."""
        if source.class_names is None:
            raise DataError("the images have no labels to evaluate with; give class folders or a list with labels")
        return head_classes(
            source.class_names,
            head=self.config.model.num_classes or 0,
            head_names=self.class_names,
            class_map=class_map,
            label_offset=label_offset,
        )

    def _check_classifier(self, what: str) -> None:
        if "logits" not in self.objective.outputs:
            raise ConfigError(f"this model cannot {what}, it has no classification head; fine-tune it first")

    def batches(
        self, images: Images, spans: Sequence[range] | None = None, *, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Images as the engine is given them, in order; see `Batch` for what fills up the last one.

        Batches of the size they have without `spans`, so that their numbers are the same to the last bit.
        """
        if spans is not None and not len(spans):
            return
        config, source = self.config, self.source(images)
        chosen = None if spans is None else SpansSource(source, spans)
        batches = eval_batches(
            chosen or source,
            needs=self.objective.needs(training=False),
            model=config.model,
            data=config.data,
            seed=config.seed,
            batch_size=min(self.batch_size, len(source)),
            rank=rank,
            world=world,
            timeout=config.train.process_timeout,
        )
        for batch in batches:
            if chosen is None:
                yield batch
            else:
                real = batch.index >= 0
                yield dataclasses.replace(batch, index=np.where(real, chosen.rows(batch.index), -1))


class _Mirrored:
    """An engine whose features and logits are the mean over each image and its mirror image."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def output(self, name: str, batch: Batch, **options: Any) -> NDArray[np.float32]:
        values = self._engine.output(name, batch, **options)
        if name not in ("features", "patch_features", "logits"):
            return values
        mirrored = self._engine.output(
            name, dataclasses.replace(batch, images=batch.images[:, :, ::-1].copy()), **options
        )
        return (values + (mirrored[:, :, ::-1] if name == "patch_features" else mirrored)) / np.float32(2)


def load(
    path: str | os.PathLike[str],
    checkpoint: Choice = "last",
    *,
    engine: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    settings: Settings | None = None,
    join: bool = False,
    flip: bool = False,
) -> Model:
    """The model at `path`: whatever `read_model` reads, such as a run, an official .pth or hf://OWNER/NAME.

    `checkpoint` of a run: the "last", the "best" (highest accuracy on data.val, without labels lowest loss; without
    data.val highest accuracy of k-NN, see `evaluate.every`), or that of a step. With a moving average, that is what is
    loaded.
    `engine` defaults to the one the model was trained on. `precision`: fp32, bf16, fp16, or "auto", which of them the
    device multiplies in hardware. `settings` changes the run's config, such as
    `{"objective.mask_ratio": 0.5}`, and tells what the source does not, such as `{"model.heads": 6}`. With `join`, the
    processes that were launched together share the images of `evaluate` between them, and all must call it. With
    `flip`, features and logits are the mean over an image and its mirror image, at twice the time. Raises
    CheckpointError, ConfigError or EngineError.
    """
    found = read_model(path, checkpoint)
    stated = found.config or {}
    config, untold = config_of(
        found,
        str(path),
        settings or (),
        init=None,
        device=device,
        engine=engine or stated.get("engine", "torch"),
        train={**stated.get("train", {}), "precision": precision, "ema_decay": None},
        # Loader processes cost a second to start, and threads load as fast as a model answers.
        data={**(stated.get("data") or found.data), "workers": 0},
    )
    config = with_precision(config)  # before the fingerprint
    weights = at_size_of(found, config.model)
    if not config.objective.keeps_teacher:
        weights = without_handmade(weights)
    return Model(config, weights, found.class_names, batch_size, join=join, flip=flip, untold=untold)


def as_source(images: Images, *, dtype: str, labels: bool | None = False) -> Source:
    """Images in any form that `to_source` takes, for a model of this `data.dtype`. Raises DataError."""
    return to_source(images, key="images", labels=labels, dtype=dtype)


def _filled(batch: Batch, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the rows that only fill up the last batch; NaN where an image could not be decoded."""
    if batch.valid is None:
        return values
    values[~batch.valid] = np.nan
    return values[batch.index >= 0]


def _rows(batch: Batch, values: NDArray[np.float32]) -> Rows:
    """Without the rows that only fill up the last batch."""
    if batch.valid is None:
        return Rows(batch.index, values, np.ones(len(batch), bool))
    values = np.where(batch.valid[:, None], values, np.float32(np.nan))
    real = batch.index >= 0
    return Rows(batch.index[real], values[real], batch.valid[real])
