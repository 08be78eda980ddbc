"""Features of labelled images, computed once: what the read-outs of a frozen model work on."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.pipeline import eval_batches
from unmask.data.sources import Source
from unmask.data.sources.same_classes import with_classes_of
from unmask.data.sources.split import groups_of
from unmask.engines.base import Engine
from unmask.errors import DataError
from unmask.evaluate.bad_images import check_bad, check_judged
from unmask.evaluate.inference import Images, Model, Pool, as_source
from unmask.evaluate.measure import shown
from unmask.evaluate.resumable import Records, collect
from unmask.report.progress import say


@dataclass(frozen=True)
class Features:
    """One feature vector and class for each image."""

    values: NDArray[np.float32]
    """(N, width), memory-mapped; NaN where the image could not be decoded."""
    labels: NDArray[np.int64]
    """(N,) class of each image; -1 where it could not be decoded."""
    groups: NDArray[np.int64] | None = None
    """(N,) the number of the group that each image belongs to (`data.val_group`); None: each stands for itself."""

    def rows(self, index: NDArray[np.int64]) -> Features:
        """Some of the images, in memory."""
        groups = None if self.groups is None else self.groups[index]
        return Features(self.values[index], self.labels[index], groups)


@contextmanager
def features_of(
    model: Model, train: Images, val: Images, cache: Path | None = None, *, pool: Pool | None = None
) -> Generator[tuple[Features, Features, int]]:
    """Features of training and validation images, and the number of classes.

    With `cache`, a folder, they stay there: interrupted, the same call goes on, and later ones for the same model and
    images find them. Without, they lie in a temporary folder while the context lasts. Raises DataError if the classes
    of the two are not the same.
    """
    sources = [labelled(train, "train", model.config.data.dtype), labelled(val, "val", model.config.data.dtype)]
    names = sources[0].class_names or ()
    sources[1] = with_classes_of(sources[1], names, "val", "train")
    with tempfile.TemporaryDirectory(prefix="unmask-") if cache is None else _kept(cache) as folder:
        found = [
            embed_labelled(model, source, Path(folder), f"embed {title}", pool=pool)
            for source, title in zip(sources, ("train", "val"), strict=True)
        ]
        group, groups = model.config.data.val_group, found[0].groups
        if groups is not None and len(np.unique(groups)) == len(groups):
            say(f"data.val_group={group} puts no two images of TRAIN together: each stands for itself")
        yield found[0], found[1], len(names)


def labelled(images: Images, what: str, dtype: str) -> Source:
    """The images as a source with labels. Raises DataError if they have none."""
    source = as_source(images, dtype=dtype, labels=True)
    if source.labels is None or source.class_names is None:
        raise DataError(f"{what}: the images need one label each; give class folders or a list with labels")
    return source


def embed_labelled(model: Model, source: Source, folder: Path, title: str, *, pool: Pool | None = None) -> Features:
    """Features of a source with labels, kept below `folder` under a name of their own."""
    job = {
        "settings": {"command": "embed", "pool": pool, "model": model.fingerprint()},
        "source": {"images": len(source), "fingerprint": source.fingerprint()},
    }
    name = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]

    def compute(spans: Sequence[range]) -> Iterator[Records]:
        return embeddings(model, source, spans, pool)

    records = collect(
        folder / name,
        job,
        embedding_records(model.feature_width(pool)),
        len(source),
        compute,
        batch_size=min(model.batch_size, len(source)),
        title=title,
    )
    assert records is not None, "all parts are of one share"
    valid = np.asarray(records["valid"])
    check_bad(model, source, int(np.count_nonzero(~valid)), f"{title}: ")
    if not valid.any():
        raise DataError(f"{title}: not one of the images can be decoded")
    if not valid.all():
        say(f"{title}: {np.count_nonzero(~valid)} of {len(source)} images cannot be decoded and are left out")
    labels = np.where(valid, source.labels, -1) if source.labels is not None else np.full(len(source), -1)
    return Features(records["embedding"], labels, groups_of(source, model.config.data.val_group))


def features_by(
    engine: Engine,
    source: Source,
    *,
    model: ModelConfig,
    data: DataConfig,
    seed: int,
    batch_size: int,
    timeout: float,
    rank: int = 0,
    world: int = 1,
) -> Features:
    """Features (N, D) of a network in training; each process computes a share, and all get all, in memory.

    `timeout`: see `eval_batches`.
    """
    found = np.zeros(len(source))
    values: NDArray[np.float64] | None = None
    batches = eval_batches(
        source,
        needs=Needs(),
        model=model,
        data=data,
        seed=seed,
        batch_size=min(batch_size, len(source)),
        rank=rank,
        world=world,
        timeout=timeout,
    )
    with shown(batches, "embed", -(-len(source) // world)) as counted:
        for batch in counted:
            valid = np.ones(len(batch), bool) if batch.valid is None else batch.valid
            computed = engine.output("features", batch)
            values = np.zeros((len(source), computed.shape[1])) if values is None else values
            values[batch.index[valid]] = computed[valid]
            found[batch.index[valid]] = 1
    if values is None:
        raise DataError("there are no images to compute features of")
    values, found = engine.sum(values), engine.sum(found)
    bad = np.flatnonzero(found == 0)
    check_judged(source, len(bad), bad.tolist(), model.channels, data, "features")
    labels = np.zeros(len(source), np.int64) if source.labels is None else source.labels
    groups = groups_of(source, data.val_group)
    return Features(values.astype(np.float32), np.where(found > 0, labels, -1), groups)


def embedding_records(width: int) -> np.dtype[np.void]:
    return np.dtype([("valid", "?"), ("embedding", "<f4", (width,))])


def embeddings(model: Model, source: Source, spans: Sequence[range], pool: Pool | None) -> Iterator[Records]:
    """Records of `embedding_records` of the images in some spans, batch by batch."""
    dtype = embedding_records(model.feature_width(pool))
    for rows in model.embed_batches(source, spans, pool=pool):
        records = np.empty(len(rows.index), dtype)
        records["valid"], records["embedding"] = rows.valid, rows.values
        yield records


@contextmanager
def _kept(folder: Path) -> Generator[Path]:
    yield folder
