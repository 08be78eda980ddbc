"""What `evaluate` and `reconstruct` write."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.data.sources.subset import SubsetSource, spread
from unmask.data.spreadsheets import EVALUATED, csv_file, csv_rows
from unmask.evaluate.bad_images import check_written
from unmask.evaluate.classification import ClassificationReport
from unmask.evaluate.formats import Labels
from unmask.evaluate.inference import Images, Model
from unmask.evaluate.result import writing
from unmask.files import check_free, folder_written_aside, write_text, written_aside
from unmask.report.charts import confusion_chart
from unmask.report.pictures import contact_sheet, reconstruction_grid
from unmask.report.progress import say, table


def write_evaluation(
    model: Model,
    images: Images,
    out: Path | None,
    *,
    class_map: Path | None = None,
    label_offset: int | None = None,
) -> dict[str, float]:
    """What `Model.evaluate` returns, shown, and written to the folder `out` as `metrics.json`.

    For a classifier also `predictions.csv`, of each image its class, the one it is taken for, the probability of that
    and the loss, empty where it could not be decoded; `per_class.csv`; `confusion.csv` and `confusion.png`, a row for
    each true class and a column for each predicted one, of those that occur; and `worst.png`, the images of highest
    loss as the model sees them. Raises ConfigError where `out` is there already.
    """
    if out is not None:
        check_free(out)
    labelled = model.config.objective.labelled
    source, report = model.source(images, labels=labelled), None
    if "logits" in model.objective.outputs and source.labels is not None:
        report = model.classification_report(
            source, class_map=class_map, label_offset=label_offset, each=out is not None
        )
    values = report.metrics() if report else model.evaluate(source, class_map=class_map, label_offset=label_offset)
    if model.rank == 0:
        if out is not None:
            _write_evaluation(out, model, source, values, report)
        rows = [[name, f"{value:.4f}" if name != "count" else int(value)] for name, value in values.items()]
        table(rows, ["", "value"])
        if "top1" in values:
            say(f"accuracy={values['top1']:.3f}")
    check_written(model, source, len(source) - int(values["count"]), out)
    return values


def _write_evaluation(
    out: Path, model: Model, source: Source, values: Mapping[str, float], report: ClassificationReport | None
) -> None:
    with writing(out), folder_written_aside(out) as aside:
        write_text(aside / "metrics.json", json.dumps(values, indent=2) + "\n")
        if report is not None:
            _write_predictions(report, source, aside / "predictions.csv")
            _write_per_class(report, aside / "per_class.csv")
            _write_confusion(report, aside)
            _write_worst(report, model, source, aside / "worst.png")
    say(f"evaluation in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _write_predictions(report: ClassificationReport, source: Source, out: Path) -> None:
    labels, names = Labels(source), [printable(name) for name in report.class_names]

    def row(index: int, said: list[float]) -> list[object]:
        true, predicted, probability, loss = said
        if np.isnan(true):
            return [labels.name(index), None, None, None, None]
        return [labels.name(index), names[int(true)], names[int(predicted)], f"{probability:.6f}", f"{loss:.6f}"]

    with written_aside(out) as aside, csv_file(aside, chain(names, labels.texts())) as file:
        csv_rows(file, [EVALUATED])
        csv_rows(file, (row(index, said) for index, said in enumerate(map(np.ndarray.tolist, report.each))))


def _write_per_class(report: ClassificationReport, out: Path) -> None:
    each, names = report.per_class(), [printable(name) for name in report.class_names]
    with written_aside(out) as aside, csv_file(aside, names) as file:
        csv_rows(file, [["class", "images", "precision", "recall", "f1"]])
        for name, support, *shares in zip(names, each.support, each.precision, each.recall, each.f1, strict=True):
            cells = ("" if np.isnan(share) else f"{share:.6f}" for share in shares)
            csv_rows(file, [[name, int(support), *cells]])


def _write_confusion(report: ClassificationReport, folder: Path) -> None:
    occurs = np.flatnonzero(report.confusion.any(0) | report.confusion.any(1))
    counts, names = report.confusion[np.ix_(occurs, occurs)], [printable(report.class_names[i]) for i in occurs]
    with written_aside(folder / "confusion.csv") as aside, csv_file(aside, names) as file:
        csv_rows(file, [["true \\ predicted", *names]])
        csv_rows(file, ([name, *row] for name, row in zip(names, counts.tolist(), strict=True)))
    confusion_chart(counts, names, folder / "confusion.png", title=_title(report))


def _title(report: ClassificationReport) -> str:
    return f"{report.count:,} images, accuracy {report.metrics()['top1']:.1%}"


def _write_worst(report: ClassificationReport, model: Model, source: Source, out: Path) -> None:
    names = [printable(name) for name in report.class_names]
    crops = model.center_crops(SubsetSource(source, np.array([mistake.index for mistake in report.worst])))
    captions = [
        f"{printable(source.name(m.index).rpartition('/')[2])}\n"
        f"is {names[m.true]}\ntaken for {names[m.predicted]} ({m.confidence:.0%})\nloss {m.loss:.2f}"
        for m in report.worst
    ]
    contact_sheet(crops, out, captions=captions, title=f"highest loss of {_title(report)}")


def write_reconstruction(model: Model, images: Images, out: Path, count: int, *, renewed: bool = True) -> None:
    """`count` of the images original, masked, painted, and with the visible patches pasted, as one PNG.

    Raises ConfigError where `out` is there already, unless it may be `renewed`.
    """
    if not renewed:
        check_free(out)
    source = spread(model.source(images), count)
    painted = model.reconstruct(source)
    section = model.painting()
    note = f"{section.mask_ratio:.0%} masked"
    if section.norm_pix_loss:
        note += "; brightness and contrast of masked patches estimated from the visible ones"
    bad = len(source) - len(painted.original)
    with _aside(out) as path:
        reconstruction_grid(painted.original, painted.masked, painted.painted, painted.pasted, path, note=note)
    say(f"{len(painted.original)} reconstructions in {out}")
    check_written(model, source, bad, out, renewed=renewed)


@contextmanager
def _aside(out: Path) -> Generator[Path]:
    """A path to write to that becomes `out` when all is written: there is no half a file under that name."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(out) as path:
            yield path
