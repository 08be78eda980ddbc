"""Images that cannot be decoded: how many are too many, and why each cannot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unmask.config.schema import DataConfig
from unmask.data.decode.raster import why_bad
from unmask.data.loader.bad_files import ACCEPT, OF_A_RUN, check_share
from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.evaluate.inference import Model
from unmask.report.progress import say


def check_bad(model: Model, source: Source, bad: int, said: str = "", advice: str = ACCEPT) -> None:
    """Raise DataError where more images could not be decoded than `data.max_bad_share` allows. `said` comes first."""
    check_share(bad, len(source), model.config.data.max_bad_share, lambda: _such_as(model, source), said, advice)


def check_written(model: Model, source: Source, bad: int, out: Path | None, *, renewed: bool = False) -> None:
    """The same once `out` is written, which another call does not overwrite, unless it is `renewed`."""
    again = "" if out is None or renewed else f"; then remove {out}, which is not overwritten, or name another --out"
    check_bad(model, source, bad, "" if out is None else f"{out} is written, but ", ACCEPT + again)


def check_judged(source: Source, bad: int, among: Iterable[int], channels: int, data: DataConfig, what: str) -> None:
    """Within a run: tell of the images that could not be decoded and so judge nothing, which are `among` these.

    Raises DataError where they are more than `data.max_bad_share` allows.
    """
    if not bad:
        return
    say(f"{what}: {bad} of {len(source)} images cannot be decoded and are left out")

    def such_as() -> str:
        reasons = ((index, why_bad(source, index, channels, data)) for index in among)
        return next((f"{printable(source.name(index))}: {why}" for index, why in reasons if why), "")

    check_share(bad, len(source), data.max_bad_share, such_as, f"{what}: ", OF_A_RUN)


def line_of(model: Model, source: Source, index: int) -> str:
    """Of a list of bad images: the name, and behind a tab the reason."""
    return f"{printable(source.name(index))}\t{_why(model, source, index) or 'could be read at another attempt'}"


def _such_as(model: Model, source: Source) -> str:
    for index in range(len(source)):
        if why := _why(model, source, index):
            return f"{printable(source.name(index))}: {why}"
    return ""


def _why(model: Model, source: Source, index: int) -> str:
    return why_bad(source, index, model.config.model.channels, model.config.data)
