"""Trained models as files that other runtimes execute."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask import plugins
from unmask.checkpoint.store import Choice
from unmask.config.load import Settings
from unmask.data.batch import FULL_RANGE, Batch
from unmask.data.sources import Images, Source
from unmask.engines import engine_kind
from unmask.engines.base import GraphRunner
from unmask.errors import ConfigError, DataError, EngineError, UnmaskError
from unmask.evaluate.bad_images import check_bad
from unmask.evaluate.inference import Model, load
from unmask.files import ASIDE, cause, check_free
from unmask.objectives.base import valid_rows

OUTPUTS = ("logits", "features", "patch_features", "reconstruction")
"""What a graph may give; by default the first of a classifier, the second of any other model."""
TOLERANCE = 1e-5
"""Of a written graph against the engine, in fp32: share of the largest number of an output."""


@dataclass(frozen=True)
class Cost:
    """What int8 takes and costs, on images that the caller names."""

    images: int
    accuracy: float | None
    """Of the fp32 graph (0..1); None without labels that fit, or without a classification head."""
    int8_accuracy: float | None
    agreement: float
    """Share of the images that both graphs put into the same class; without a head, mean cosine of the first output."""
    classified: bool
    """Whether there is a head."""
    speed: float
    """Of the int8 graph as a multiple of the other's, on this machine."""
    size: float
    """Of its file as a share of the other's."""

    def text(self) -> str:
        known = self.accuracy is not None and self.int8_accuracy is not None
        accuracy = f"accuracy {self.int8_accuracy:.2%}, {self.accuracy:.2%} in fp32; " if known else ""
        same = f"agreement {self.agreement:.2%}" if self.classified else f"mean cosine {self.agreement:.4f}"
        return f"{accuracy}{same}, {self.speed:.2f} times as fast, {self.size:.0%} of the size"


def export(
    model: str | Path,
    out: Path,
    *,
    outputs: Sequence[str] | None = None,
    dtype: str | None = None,
    int8: Images | None = None,
    checkpoint: Choice = "last",
    settings: Settings | None = None,
) -> Cost | None:
    """Write `model` as a graph to `out` (.onnx, .pt2, .mindir), and how it is used to `out`.json.

    The graph takes `images` (any number, height, width, channels), resized and cropped as for evaluation, with the
    values that they are stored with: uint8, or float32 where `data.dtype` is another or `dtype` says so. Normalisation
    is inside. It gives `outputs` (of OUTPUTS), by default the logits of a classifier and the features of any other
    model. For `reconstruction` it also takes which patches are seen and which painted.

    Before it gets its name the file is run by its own runtime and compared with the engine (TOLERANCE). `int8` (.onnx
    only): images on which a graph with int8 weights is compared with the fp32 one; the int8 one is written.
    `checkpoint` of a run, `settings`: see `load`.

    Raises ConfigError for another suffix or output, or where one of the two files is there already; EngineError without
    the engine that writes it, or if the file does not give what the engine gives; the errors of `load`.
    """
    kinds = {name: engine_kind(name) for name in plugins.names(plugins.ENGINES)}
    writers = {suffix: (name, write) for name, kind in kinds.items() for suffix, write in kind.exports.items()}
    if out.suffix not in writers:
        raise ConfigError(f"{out}: the format follows from the name; give one that ends in {' or '.join(writers)}")
    if int8 is not None and out.suffix != ".onnx":
        raise ConfigError(f"{out}: --int8 is for a name that ends in .onnx")
    if dtype not in (None, "uint8", "float32"):
        raise ConfigError(f"dtype={dtype} is none of uint8, float32")
    described = Path(f"{out}.json")
    check_free(out, described)
    engine, write = writers[out.suffix]
    with load(model, checkpoint, engine=engine, device="cpu", settings=settings) as loaded:
        chosen = _outputs(loaded, outputs)
        first, *more = _examples(loaded, chosen, dtype or _dtype(loaded))
        images = None if int8 is None else loaded.source(int8)
        with _folder_beside(out) as folder:
            file = folder / out.name
            run = plugins.resolve(write)(loaded.engine, chosen, first[1], file)
            for batch, arrays in (first, *more):
                _check(loaded, run(arrays), batch, out)
            cost = None
            if images is not None:
                (folder / "int8").mkdir()
                quantized = folder / "int8" / out.name
                run8 = plugins.resolve("unmask.engines.torch_engine.export:quantize")(file, quantized)
                size = quantized.stat().st_size / file.stat().st_size
                cost = _compare(loaded, chosen, (run, run8), images, size, dtype or _dtype(loaded))
                check_bad(loaded, images, len(images) - cost.images, "--int8: ")
                folder = quantized.parent
            description = _description(loaded, first[1], run(first[1]), int8=int8 is not None)
            text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
            (folder / described.name).write_text(text, encoding="utf-8")
            for written in folder.iterdir():  # weights beyond 2 GB have a file of their own
                written.replace(out.with_name(written.name))
    return cost


def _outputs(model: Model, wanted: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """What each output of the graph takes beside the images."""
    possible = {name: model.objective.outputs[name] for name in OUTPUTS if name in model.objective.outputs}
    if not wanted:
        wanted = ("logits",) if "logits" in possible else ("features",)
    if unknown := [name for name in wanted if name not in possible]:
        raise ConfigError(f"--outputs {' '.join(unknown)}: this model gives {', '.join(possible)}")
    return {name: possible[name] for name in wanted}


def _dtype(model: Model) -> str:
    return "uint8" if model.config.data.dtype == "uint8" else "float32"


def _examples(
    model: Model, outputs: Mapping[str, Sequence[str]], dtype: str
) -> Iterator[tuple[Batch, dict[str, NDArray[Any]]]]:
    """Batches of two sizes, of noise, and what the graph takes of them."""
    data, shape = model.config.data, (*model.config.model.image_size, model.config.model.channels)
    rng = np.random.default_rng(0)
    for rows in (3, 1):
        noise = rng.uniform(0, FULL_RANGE[data.dtype], (rows, *shape)).astype(data.dtype)
        for batch in model.batches(noise):
            yield batch, _arrays(outputs, batch, dtype)


def _arrays(outputs: Mapping[str, Sequence[str]], batch: Batch, dtype: str) -> dict[str, NDArray[Any]]:
    """The inputs of the graph, by name: images as `dtype`, indices as int64."""
    taken = dict.fromkeys(name for names in outputs.values() for name in names)
    return {"images": batch.images.astype(dtype), **{name: batch.inputs[name].astype(np.int64) for name in taken}}


def _check(model: Model, given: Mapping[str, NDArray[Any]], batch: Batch, out: Path) -> None:
    """Raise EngineError unless the graph gives what the engine gives."""
    for name, values in given.items():
        expected = model.engine.output(name, batch)
        distance = float(np.abs(values - expected).max() / max(1.0, np.abs(expected).max()))
        if not distance <= TOLERANCE:
            raise EngineError(
                f"{out}: {name} of the written graph is {distance:.1e} from the model's, more than {TOLERANCE:.0e}; "
                "nothing was written"
            )


def _compare(
    model: Model,
    outputs: Mapping[str, Sequence[str]],
    graphs: tuple[GraphRunner, GraphRunner],
    images: Source,
    size: float,
    dtype: str,
) -> Cost:
    """Both graphs, fp32 and int8, on the same images, in turn."""
    name, seconds = next(iter(outputs)), [0.0, 0.0]
    labelled = name == "logits" and images.labels is not None and images.class_names == model.class_names
    agreed, right, count = 0.0, [0, 0], 0
    for batch in model.batches(images):
        arrays, rows = _arrays(outputs, batch, dtype), valid_rows(batch)
        if not rows.any():
            continue
        values: list[NDArray[np.float32]] = []
        for i, graph in enumerate(graphs):
            begun = time.perf_counter()
            values.append(graph(arrays)[name][rows].reshape(rows.sum(), -1))
            seconds[i] += time.perf_counter() - begun
        count += int(rows.sum())
        if name == "logits":
            classes = [each.argmax(1) for each in values]
            agreed += float((classes[0] == classes[1]).sum())
            if labelled and batch.labels is not None:
                right = [n + int((found == batch.labels[rows]).sum()) for n, found in zip(right, classes, strict=True)]
        else:
            a, b = (each / np.linalg.norm(each, axis=1, keepdims=True).clip(1e-12) for each in values)
            agreed += float((a * b).sum())
    if not count:
        raise DataError("not one of the images can be decoded")
    accuracies = [n / count if labelled else None for n in right]
    return Cost(count, accuracies[0], accuracies[1], agreed / count, name == "logits", seconds[0] / seconds[1], size)


_WHAT = {
    "images": "(number, height, width, channels), values as they are stored; normalisation is inside",
    "ids_keep": "numbers of the patches that are seen, from 0, row by row",
    "ids_mask": "numbers of the patches to be painted",
    "logits": "score of each class before the softmax",
    "features": "of the whole image",
    "patch_features": "of each patch in its place: (number, down, across, width)",
    "reconstruction": "of the patches in ids_keep, then in ids_mask: row, column, channel; in units of data.std",
}


def _description(
    model: Model, arrays: Mapping[str, NDArray[Any]], given: Mapping[str, NDArray[Any]], *, int8: bool
) -> dict[str, Any]:
    """All that someone without unmask has to know to use the graph."""
    config, section = model.config, model.objective.section
    fields: dict[str, Any] = {
        kind: {
            name: {"dtype": str(array.dtype), "shape": [None, *array.shape[1:]], "what": _WHAT[name]}
            for name, array in tensors.items()
        }
        for kind, tensors in (("inputs", arrays), ("outputs", given))
    }
    if "reconstruction" in given:
        fields["outputs"]["reconstruction"]["normalised_by_patch"] = getattr(section, "norm_pix_loss", False)
    return {
        **fields,
        "weights": "int8" if int8 else "float32",
        "full_range": FULL_RANGE[config.data.dtype],
        "mean": config.data.mean,
        "std": config.data.std,
        "preprocessing": {
            "short_side" if config.data.eval_fit == "crop" else "height_and_width": [
                round(side / config.data.eval_crop) for side in config.model.image_size
            ],
            "center_crop": config.model.image_size,
            "interpolation": config.data.interpolation,
        },
        "class_names": model.class_names if "logits" in given else None,
    }


@contextmanager
def _folder_beside(out: Path) -> Generator[Path]:
    """A folder on the disk of `out`, for files that are moved there when they are right. Raises UnmaskError."""
    try:
        with tempfile.TemporaryDirectory(prefix=ASIDE, dir=out.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {cause(error)}") from error
