"""Pictures of a run, as PNG: its curves, grids of reconstructions, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from unmask.errors import UnmaskError
from unmask.files import written_aside
from unmask.report.fonts import drawing, pillow_fonts
from unmask.report.log import METRICS_FILE, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 160
"""Least side of an image in a grid, in pixels; smaller ones are scaled up."""
_GAP, _FONT_SIZE, _LINE = 8, 15, 26
_SMALL_FONT_SIZE, _SMALL_LINE = 13, 17
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "accuracy": "Validation accuracy (%)",
    "effective_rank": "Effective rank of the features",
}
_LABELS = {"top1": "classifier", "knn_top1": "k-NN", "probe_top1": "linear probe"}
_COLORS = {"top1": "tab:green", "knn_top1": "tab:blue", "probe_top1": "tab:orange"}
_START = 20
"""One part of so many is the start of a run."""
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def curves(run_folder: Path, out: Path | None = None) -> Path:
    """Draw loss, learning rate and, where evaluated, validation accuracies and effective rank of a run over its steps.

    Reads `metrics.jsonl`: `loss` and `lr` of the train lines; `loss`, `top1`, `knn_top1`, `probe_top1` (0..1) and
    `effective_rank` of the val lines. Writes `out`,
    by default `curves.png` in the run folder, and returns its path. Raises UnmaskError when nothing is logged yet.
    """
    # Here, not at the top: nothing but drawing needs matplotlib. Without pyplot no global state is touched.
    from matplotlib.figure import Figure

    rows = read_log(run_folder / METRICS_FILE)
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    if not train:
        raise UnmaskError(f"{run_folder / METRICS_FILE} holds no training step; train first, or name another run")
    judged = [name for name in ("top1", "knn_top1", "probe_top1") if any(name in row for row in val)]
    panels = ["loss", "lr"] + ["accuracy"] * bool(judged)
    panels += ["effective_rank"] * any("effective_rank" in row for row in val)
    title = _title(run_folder, train, val)
    figure = Figure(figsize=(5.2 * len(panels), 4))
    # In inches, with room for any number at the axis: to look for the layout draws everything twice.
    left, right, bottom, top, between = 0.8, 0.35, 0.55, 0.65, 0.9
    width, height = figure.get_size_inches()
    each = (width - left - right - between * (len(panels) - 1)) / len(panels)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, between / each)
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for name in panels:
        axes[name].set(title=_TITLES[name], xlabel="Step")
        axes[name].grid(alpha=0.25)
        axes[name].spines[["top", "right"]].set_visible(False)
    _draw_loss(axes["loss"], train, val)
    axes["lr"].plot(*_series(train, "lr"), color="tab:gray")
    axes["lr"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for name in judged:
        steps, accuracy = _series(val, name)
        axes["accuracy"].plot(steps, 100 * accuracy, color=_COLORS[name], label=_LABELS[name], marker="o", markersize=3)
    if judged != ["top1"] and judged:
        axes["accuracy"].legend(frameon=False)
    if "effective_rank" in axes:
        axes["effective_rank"].plot(*_series(val, "effective_rank"), color="tab:gray", marker="o", markersize=3)
    path = out or run_folder / "curves.png"
    with drawing([title]), written_aside(path) as aside:
        figure.suptitle(title, fontsize=11)
        figure.savefig(aside, dpi=120)
    return path


def _title(run_folder: Path, train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]]) -> str:
    """Name of the run, how long it was trained, and how well it does."""
    step = max(row["step"] for row in train)
    parts = [run_folder.resolve().name, f"{step:,} steps"]
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):  # as of a log alone
        written = yaml.safe_load((run_folder / "run.yaml").read_text(encoding="utf-8"))
        parts.insert(1, f"{written['config']['train']['epochs']:g} epochs")
    last = {name: row[name] for row in val for name in _LABELS if name in row}
    accuracy = {**_LABELS, "top1": "accuracy"}
    return "  ·  ".join([*parts, *(f"{accuracy[name]} {value:.1%}" for name, value in last.items())])


def reconstruction_grid(
    original: NDArray[Any],
    masked: NDArray[Any],
    painted: NDArray[Any],
    pasted: NDArray[Any],
    out: Path,
    *,
    captions: Sequence[str] = (),
    note: str = "",
) -> Path:
    """Draw one row per image: original, what the network saw, what it painted, and the two together.

    Each array is (B, H, W, C), uint8 in 0..255 or floating in 0..1 (clipped). One channel is drawn grey, of more than
    three the first three are drawn. `captions` (one per row) stand under the rows, `note` under all of them. Images
    smaller than 160 pixels are scaled up by a whole factor, without smoothing. Writes PNG to `out` and returns it.
    """
    from PIL import Image, ImageDraw

    columns = {
        "original": original,
        "what it sees": masked,
        "what it paints": painted,
        "both together": pasted,
    }
    count, height, width = original.shape[:3]
    factor = max(1, -(-CELL // min(height, width)))
    height, width = height * factor, width * factor
    row_height = height + _GAP + _LINE * bool(captions)
    size = (_GAP + len(columns) * (width + _GAP), _LINE + count * row_height + _LINE * bool(note))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font_of = pillow_fonts(_FONT_SIZE, captions)
    font = font_of("")
    for column, (title, images) in enumerate(columns.items()):
        left = _GAP + column * (width + _GAP)
        draw.text((left + width // 2, _LINE // 2 + 2), title, _INK, font, anchor="mm")
        for row, image in enumerate(to_rgb(images)):
            scaled = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(scaled, (left, _LINE + row * row_height))
    for row, caption in enumerate(captions):
        draw.text((_GAP, _LINE + row * row_height + height + _LINE // 2), caption, _INK, font_of(caption), anchor="lm")
    draw.text((_GAP, size[1] - _LINE // 2 - 2), note, _INK, font, anchor="lm")
    sheet.save(out, format="PNG")
    return out


def contact_sheet(
    images: NDArray[Any], out: Path, *, captions: Sequence[str], columns: int = 6, title: str = ""
) -> Path:
    """Draw images (B, H, W, C), as `reconstruction_grid` takes them, row by row, each with its caption below.

    A caption may have several lines; of one too wide for the image the middle is left out. `title` stands above all.
    Writes PNG to `out` and returns it.
    """
    from PIL import Image, ImageDraw

    count, height, width = images.shape[:3]
    factor = max(1, -(-CELL // min(height, width)))
    height, width = height * factor, width * factor
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    cell_height = height + lines * _SMALL_LINE + 2 * _GAP
    columns = max(1, min(columns, count))
    above = _LINE * bool(title)
    size = (_GAP + columns * (width + _GAP), above + _GAP + -(-count // columns) * cell_height)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, above // 2 + 4), title, _INK, pillow_fonts(_FONT_SIZE, [title])(title), anchor="lm")
    font_of = pillow_fonts(_SMALL_FONT_SIZE, captions)
    for number, (image, caption) in enumerate(zip(to_rgb(images), captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (width + _GAP), above + _GAP + row * cell_height
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(caption.split("\n")):
            shown, kept, font = text, len(text), font_of(text)
            while kept and draw.textlength(shown, font) > width:
                kept -= 1
                shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
            baseline = top + height + 4 + _SMALL_FONT_SIZE + line * _SMALL_LINE
            draw.text((left, baseline), shown, _INK, font, anchor="ls")
    with written_aside(out) as aside:
        sheet.save(aside, format="PNG")
    return out


def _draw_loss(axis: Axes, train: list[dict[str, Any]], val: list[dict[str, Any]]) -> None:
    steps, loss = _series(train, "loss")
    window = max(1, len(loss) // 50)
    if window == 1:
        axis.plot(steps, loss, color="tab:blue", label="train")
    else:
        axis.plot(steps, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
        smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        axis.plot(
            steps[window // 2 :][: len(smooth)], smooth, color="tab:blue", label=f"train (mean of {window} steps)"
        )
    if any("loss" in row for row in val):
        axis.plot(*_series(val, "loss"), color="tab:orange", marker="o", markersize=3, label="validation")
    axis.legend(frameon=False)
    _leave_out_the_start(axis, loss, [row["loss"] for row in val if "loss" in row])


def _leave_out_the_start(axis: Axes, loss: NDArray[np.float64], val: Sequence[float]) -> None:
    """The first steps fall so far that all later ones would be a flat line: they may begin above the picture."""
    start = len(loss) // _START if len(loss) >= 2 * _START else 0
    later = np.array([*loss[start:], *val])
    later = later[np.isfinite(later)]
    if start and len(later):
        low, high = float(later.min()), float(later.max())
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        if np.nanmax(np.where(np.isfinite(loss), loss, np.nan)) > high + 0.25 * (high - low):
            axis.set_ylim(low - margin, high + margin)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the rows that have the value."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def to_rgb(images: NDArray[Any]) -> NDArray[np.uint8]:
    """(B, H, W, C) of either range to (B, H, W, 3) uint8."""
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)
    channels = images.shape[-1]
    return images[..., :3] if channels >= 3 else np.repeat(images[..., :1], 3, axis=-1)
