"""What a run's model makes of images, for a page: a map, neighbours, classes, mistakes, reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.data.sources.subset import SubsetSource, spread
from unmask.errors import DataError
from unmask.evaluate.classification import ClassificationReport, Tally
from unmask.evaluate.inference import Model
from unmask.evaluate.knn import nearest_others
from unmask.evaluate.maps import NEIGHBOURS, maps_of
from unmask.evaluate.reconstruct import visible
from unmask.metrics import log_softmax
from unmask.report.atlas import Atlas
from unmask.report.page import Blobs
from unmask.report.pictures import to_rgb
from unmask.report.progress import progress

RECONSTRUCTIONS = 8
_LARGEST = 512
"""Pixels of the longer side of a picture that is shown by itself."""


def look(model: Model, source: Source, most: int, blobs: Blobs) -> dict[str, Any]:
    """At most `most` images, spread over the source. Raises DataError where not one can be decoded."""
    shown = spread(source, most) if len(source) > most else source
    seen = _Seen(model, shown, blobs)
    found: dict[str, Any] = {
        "total": len(source),
        "count": len(seen.index),
        "unreadable": len(shown) - len(seen.index),
        "names": [printable(shown.name(i)) for i in seen.index.tolist()],
        "atlas": seen.atlas,
        "classes": [printable(name) for name in shown.class_names or ()],
        "labels": None if shown.labels is None else blobs.array(shown.labels[seen.index], "<i4"),
        "maps": {name: blobs.array(places, "<f4") for name, places in maps_of(seen.features).items()},
        "neighbours": _neighbours(seen.features, blobs),
    }
    if "logits" in model.objective.outputs:
        found |= _classified(model, shown, seen, blobs)
    if "reconstruction" in model.objective.outputs:
        found["reconstructions"] = _reconstructions(model, shown, blobs)
    return found


def counts_by_class(source: Source) -> dict[str, Any] | None:
    """Names of the classes, and how many images are of each; None where the source has no labels."""
    names = source.class_names
    if source.labels is None or names is None:
        return None
    counts = np.bincount(source.labels, minlength=len(names))
    return {"classes": [printable(name) for name in names], "counts": counts.tolist()}


def shown_picture(image: NDArray[np.uint8], blobs: Blobs) -> str:
    """One image (H, W, C) by itself."""
    from PIL import Image

    picture = Image.fromarray(to_rgb(image[None])[0])
    picture.thumbnail((_LARGEST, _LARGEST))
    return blobs.picture(np.asarray(picture))


class _Seen:
    """All images once through the network: thumbnails, features, and what a classifier says.

    That stands for features where the network gives none.
    """

    def __init__(self, model: Model, source: Source, blobs: Blobs) -> None:
        atlas = Atlas(len(source), blobs)
        data, classifies = model.config.data, "logits" in model.objective.outputs
        has_features = "features" in model.objective.outputs
        index: list[NDArray[np.int64]] = []
        features: list[NDArray[np.float32]] = []
        logits: list[NDArray[np.float32]] = []
        with progress("look at the images", total=len(source), unit="image") as bar:
            for batch in model.batches(source):
                rows = np.arange(len(batch)) if batch.valid is None else np.flatnonzero(batch.valid)
                atlas.add(visible(batch.images[rows], data.mean, data.std))
                index.append(batch.index[rows])
                if classifies:
                    logits.append(model.engine.output("logits", batch)[rows])
                if has_features:
                    features.append(model.engine.output("features", batch, pool=None)[rows])
                bar.update(len(rows))
        self.index = np.concatenate(index)
        if not len(self.index):
            raise DataError("not one of the images can be decoded")
        self.logits = np.concatenate(logits) if logits else None
        self.features = np.concatenate(features or logits)
        self.atlas = atlas.finished()


def _neighbours(features: NDArray[np.float32], blobs: Blobs) -> dict[str, Any] | None:
    """The most similar of the other images, for each."""
    likeness, places = nearest_others(features, NEIGHBOURS)
    k = places.shape[1]
    return {"k": k, "index": blobs.array(places, "<u4"), "similarity": blobs.array(likeness, "<f4")} if k else None


def _classified(model: Model, source: Source, seen: _Seen, blobs: Blobs) -> dict[str, Any]:
    """Of a classifier: what it says of each image, and how right it is where the classes are known."""
    assert seen.logits is not None
    head = model.config.model.num_classes or 0
    probabilities = np.exp(log_softmax(seen.logits))
    best = probabilities.argmax(1)
    names = [printable(name) for name in model.class_names or map(str, range(head))]
    found: dict[str, Any] = {
        "predicted": blobs.array(best, "<i4"),
        "confidence": blobs.array(probabilities[np.arange(len(best)), best], "<f4"),
        "classes": names,
    }
    if source.labels is None:
        return found
    numbers = model.numbers_of_classes(source, None, None)
    labels = numbers[source.labels[seen.index]]
    tally = Tally(head)
    tally.add(seen.index, labels, seen.logits)
    report = ClassificationReport(tally, tuple(names))
    each = report.per_class()
    rows, columns = np.nonzero(report.confusion)
    found |= {
        "labels": blobs.array(labels, "<i4"),
        "metrics": report.metrics(),
        "confusion": np.stack([rows, columns, report.confusion[rows, columns]], axis=1).tolist(),
        "perClass": [
            [int(support), *(None if np.isnan(share) else round(float(share), 4) for share in shares)]
            for support, *shares in zip(each.support, each.precision, each.recall, each.f1, strict=True)
        ],
        "bins": [[int(n), round(float(sum), 3), int(right)] for n, sum, right in report.bins],
        "worst": _worst(report, model, source, seen, blobs),
    }
    return found


def _worst(
    report: ClassificationReport, model: Model, source: Source, seen: _Seen, blobs: Blobs
) -> list[Mapping[str, Any]]:
    """The images of highest loss among those that are taken for another class, each as a picture."""
    wrong = [mistake for mistake in report.worst if mistake.true != mistake.predicted]
    if not wrong:
        return []
    crops = model.center_crops(SubsetSource(source, np.array([mistake.index for mistake in wrong])))
    places = {int(position): place for place, position in enumerate(seen.index)}
    return [
        {
            "image": places[mistake.index],
            "true": mistake.true,
            "predicted": mistake.predicted,
            "confidence": round(mistake.confidence, 4),
            "loss": round(mistake.loss, 4),
            "picture": shown_picture(crop, blobs),
        }
        for mistake, crop in zip(wrong, crops, strict=True)
    ]


def _reconstructions(model: Model, source: Source, blobs: Blobs) -> dict[str, Any]:
    few = spread(source, RECONSTRUCTIONS)
    painted, section = model.reconstruct(few), model.painting()
    versions = (painted.original, painted.masked, painted.reconstruction, painted.pasted)
    return {
        "maskRatio": section.mask_ratio,
        "normPix": section.norm_pix_loss,
        "rows": [[shown_picture(image, blobs) for image in images] for images in zip(*versions, strict=True)],
        "names": _names_if_all(few, len(painted.original)),
    }


def _names_if_all(source: Source, painted: int) -> Sequence[str]:
    """The names, unless some of the images could not be decoded: then it is not known which are left."""
    return [printable(source.name(i)) for i in range(len(source))] if painted == len(source) else [""] * painted
