"""What a server answers about images: everything here is free of HTTP."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.decode.raster import why_bad
from unmask.data.sources import Source, open_with_labels_if_any
from unmask.data.sources.base import printable
from unmask.data.sources.in_memory import InMemorySource
from unmask.data.sources.subset import SubsetSource, spread
from unmask.errors import ConfigError, DataError
from unmask.evaluate.inference import Model
from unmask.evaluate.knn import nearest
from unmask.evaluate.reconstruct import paint, visible
from unmask.metrics import log_softmax
from unmask.report.page import webp
from unmask.report.pictures import to_rgb
from unmask.report.progress import progress, without_bars

WANTED = ("crop", "predictions", "embedding", "reconstruction", "neighbours", "attention")
"""What can be asked for, of a model that has it."""


@dataclass(frozen=True)
class Question:
    """What is wanted of each image."""

    want: frozenset[str]
    top: int = 5
    """Classes of `predictions`, and images of `neighbours`."""
    mask_ratio: float | None = None
    """Share of the patches that `reconstruction` hides; None: the model's own."""
    seed: int = 0
    """Of the hidden patches."""
    hidden: tuple[int, ...] | None = None
    """These patches are hidden, counted row by row from 0, in place of random ones."""
    patch: int | None = None
    """Whose `attention` is told; None: that of cls, or the mean of all."""
    block: int = -1


class Answers:
    """A model, and images to find neighbours among, ready to be asked by one thread at a time."""

    def __init__(self, model: Model, name: str, images: str | None, most: int) -> None:
        self.model, self.name = model, name
        self.source: Source | None = None
        if images is not None:
            source = open_with_labels_if_any(images, key="--images")[0]
            self.source = spread(source, most) if len(source) > most else source
            self._embed(self.source)
        self.can = self._abilities()

    def about(self) -> dict[str, Any]:
        """What a client has to know of the model."""
        model, section = self.model.config.model, self.model.objective.section
        return {
            "name": self.name,
            "objective": section.name,
            "engine": self.model.config.engine,
            "imageSize": list(model.image_size),
            "patchSize": model.patch_size,
            "grid": list(model.grid),
            "depth": model.depth,
            "maskRatio": getattr(section, "mask_ratio", None),
            "classes": [printable(name) for name in self.model.class_names or ()],
            "can": sorted(self.can),
            "images": 0 if self.source is None else len(self.source),
        }

    def check(self, question: Question) -> None:
        """Raise ConfigError for what this model cannot answer."""
        model = self.model.config.model
        if lacking := sorted(question.want - self.can):
            raise ConfigError(f"want={lacking[0]}: this model answers {', '.join(sorted(self.can))}")
        if question.hidden is not None and not all(0 <= patch < model.num_patches for patch in question.hidden):
            raise ConfigError(f"hidden: patches are numbered 0 to {model.num_patches - 1}")
        if question.hidden is not None and not 0 < len(set(question.hidden)) < model.num_patches:
            raise ConfigError("hidden: at least one patch must be hidden and one visible")
        if question.patch is not None and not 0 <= question.patch < model.num_patches:
            raise ConfigError(f"patch={question.patch}: patches are numbered 0 to {model.num_patches - 1}")
        if not -model.depth <= question.block < model.depth:
            raise ConfigError(f"block={question.block}: the model has blocks 0 to {model.depth - 1}")

    def answer(self, images: Sequence[bytes], question: Question) -> list[dict[str, Any]]:
        """For each image what is wanted, or `error` where it cannot be read.

        Raises ConfigError for what this model cannot answer.
        """
        self.check(question)
        source = InMemorySource(images, key="image", dtype=self.model.config.data.dtype)
        found: list[dict[str, Any]] = []
        for batch in self.model.batches(source):
            found += self._of(batch, source, question)
        return found

    def picture(self, index: int) -> bytes:
        """One of the images that are neighbours, as the model sees it, in WebP. Raises DataError."""
        if self.source is None or not 0 <= index < len(self.source):
            raise DataError(f"there is no image {index}")
        return webp(to_rgb(self.model.center_crops(SubsetSource(self.source, np.array([index]))))[0])

    def _of(self, batch: Batch, source: Source, question: Question) -> list[dict[str, Any]]:
        data = self.model.config.data
        real = np.ones(len(batch), bool) if batch.valid is None else batch.index >= 0
        valid = real if batch.valid is None else batch.valid
        parts = {name: getattr(self, f"_{name}")(batch, question) for name in WANTED if name in question.want}
        found: list[dict[str, Any]] = []
        for row in np.flatnonzero(real).tolist():
            if valid[row]:
                found.append({name: part[row] for name, part in parts.items()})
            else:
                why = why_bad(source, int(batch.index[row]), self.model.config.model.channels, data)
                found.append({"error": printable(why)})
        return found

    def _abilities(self) -> frozenset[str]:
        outputs = self.model.objective.outputs
        has = {
            "crop": True,
            "predictions": "logits" in outputs,
            "embedding": "features" in outputs,
            "attention": "attention" in outputs,
            "neighbours": self.source is not None,
        }
        try:
            self.model.painting()
        except ConfigError:
            return frozenset(name for name, there in has.items() if there)
        return frozenset({"reconstruction", *(name for name, there in has.items() if there)})

    def _crop(self, batch: Batch, question: Question) -> list[str]:
        """What the model sees of the image."""
        data = self.model.config.data
        return [_encoded(image) for image in visible(batch.images, data.mean, data.std)]

    def _predictions(self, batch: Batch, question: Question) -> list[list[dict[str, Any]]]:
        shares = np.exp(log_softmax(self.model.engine.output("logits", batch)))
        names = [printable(name) for name in self.model.class_names or ()]
        best = np.argsort(-shares, axis=1, kind="stable")[:, : question.top]
        return [
            [{"class": names[c] if c < len(names) else str(c), "probability": round(float(row[c]), 6)} for c in order]
            for row, order in zip(shares, best.tolist(), strict=True)
        ]

    def _embedding(self, batch: Batch, question: Question) -> list[list[float]]:
        return self.model.engine.output("features", batch, pool=None).tolist()

    def _attention(self, batch: Batch, question: Question) -> list[dict[str, Any]]:
        """Shares of a token's attention that go to each patch, mean over the heads."""
        prefix = self.model.config.model.prefix_tokens
        shares = self.model.engine.output("attention", batch, block=question.block).mean(1)[:, :, prefix:]
        if question.patch is not None:
            rows = shares[:, prefix + question.patch]
        else:
            rows = shares[:, 0] if self.model.config.model.cls_token else shares[:, prefix:].mean(1)
        return [{"patches": [round(value, 7) for value in row]} for row in rows.tolist()]

    def _neighbours(self, batch: Batch, question: Question) -> list[list[dict[str, Any]]]:
        features = self.model.engine.output("features", batch, pool=None)
        with without_bars():
            similarity, index = nearest(
                features, self._database, min(question.top, int(self._usable.sum())), valid=self._usable
            )
        return [
            [{**self._named(i), "similarity": round(s, 6)} for i, s in zip(places, likeness, strict=True)]
            for places, likeness in zip(index.tolist(), similarity.tolist(), strict=True)
        ]

    def _named(self, index: int) -> dict[str, Any]:
        assert self.source is not None
        named: dict[str, Any] = {"image": index, "name": printable(self.source.name(index))}
        if self.source.labels is not None and self.source.class_names is not None:
            named["class"] = printable(self.source.class_names[self.source.labels[index]])
        return named

    def _reconstruction(self, batch: Batch, question: Question) -> list[dict[str, Any]]:
        config, section = self.model.config, self.model.painting()
        order = _order(config.model.num_patches, question, section.mask_ratio)
        order = tuple(np.repeat(ids[None], len(batch), axis=0) for ids in order)
        hidden = dataclasses.replace(batch, inputs={**batch.inputs, "ids_keep": order[0], "ids_mask": order[1]})
        prediction = self.model.engine.output("reconstruction", hidden)
        data = config.data
        painted = paint(prediction, hidden, config.model, section.norm_pix_loss, data.mean, data.std)
        return [
            {
                "hidden": order[1][row].tolist(),
                **{name: _encoded(getattr(painted, name)[row]) for name in ("masked", "reconstruction", "pasted")},
            }
            for row in range(len(batch))
        ]

    def _embed(self, source: Source) -> None:
        found: list[NDArray[np.float32]] = []
        with progress("embed the images", total=len(source), unit="image") as bar:
            for rows in self.model.embed_batches(source):
                found.append(rows.values)
                bar.update(len(rows.values))
        values = np.concatenate(found)
        self._database, self._usable = values, ~np.isnan(values[:, 0])
        if not self._usable.any():
            raise DataError("--images: not one of the images can be decoded")


def _order(patches: int, question: Question, ratio: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The visible and the hidden patches."""
    if question.hidden is not None:
        hidden = np.unique(np.array(question.hidden, np.int32))
        return np.setdiff1d(np.arange(patches, dtype=np.int32), hidden), hidden
    share = ratio if question.mask_ratio is None else question.mask_ratio
    keep = min(max(int(patches * (1 - share)), 1), patches - 1)
    order = np.random.default_rng(question.seed).permutation(patches).astype(np.int32)
    return np.sort(order[:keep]), np.sort(order[keep:])


def _encoded(image: NDArray[np.uint8]) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp(to_rgb(image[None])[0], 90)).decode()}"
