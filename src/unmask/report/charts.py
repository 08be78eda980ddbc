"""Charts of evaluations, as PNG: confusion matrices, and accuracy against the number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unmask.files import written_aside
from unmask.report.fonts import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 20
"""Classes up to which the cells of a confusion matrix carry their counts."""
_MOST_TICKS = 60
"""Classes up to which each has its name at the axes."""


def confusion_chart(counts: NDArray[np.int64], names: Sequence[str], out: Path, *, title: str = "") -> Path:
    """Draw a confusion matrix (classes, classes): rows are true classes, columns predicted ones.

    Colour is the share of the row, so that classes of different size compare. Writes PNG to `out` and returns it.
    """
    with drawing([*names, title]), written_aside(out) as aside:
        _confusion_figure(counts, names, title).savefig(aside, dpi=120, bbox_inches="tight")
    return out


def _confusion_figure(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    from matplotlib.figure import Figure

    classes = len(names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.42 * classes, 4.5, 14))
    figure = Figure(figsize=(side + 1, side), layout="compressed")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the true class")
    ticks = range(0, classes, -(-classes // _MOST_TICKS))
    size = float(np.clip(260 / len(ticks), 5, 9))
    labels = [_short(names[i]) for i in ticks]
    axis.set_xticks(ticks, labels, rotation=90, fontsize=size)
    axis.set_yticks(ticks, labels, fontsize=size)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    if classes <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    return figure


def few_labels_chart(accuracy: Mapping[str, Mapping[int, Sequence[float]]], out: Path, *, title: str) -> Path:
    """Draw accuracy against labels per class, a line a method: mean over the seeds, bars of one standard deviation.

    accuracy: for each method and number of labels the accuracies (0..1), one a seed. Writes PNG to `out`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis: Any = figure.subplots()
    for method, by_labels in accuracy.items():
        numbers = sorted(by_labels)
        mean, deviation = zip(*(mean_and_deviation(by_labels[number]) for number in numbers), strict=True)
        axis.errorbar(
            numbers, 100 * np.array(mean), 100 * np.array(deviation), marker="o", capsize=4, markersize=4, label=method
        )
    numbers = sorted({number for by_labels in accuracy.values() for number in by_labels})
    axis.set_xscale("log")
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    axis.set(xlabel="labels per class", ylabel="validation accuracy (%)", title=title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    with written_aside(out) as aside:
        figure.savefig(aside, dpi=120)
    return out


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the standard deviation of the sample (n - 1); 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
