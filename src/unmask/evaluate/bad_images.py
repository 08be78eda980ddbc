"""Images that cannot be decoded: how many are too many, and why each cannot."""

from __future__ import annotations

from unmask.data.decode.raster import why_bad
from unmask.data.loader.bad_files import check_share
from unmask.data.sources import Source
from unmask.data.sources.base import printable
from unmask.evaluate.inference import Model


def check_bad(model: Model, source: Source, bad: int, said: str = "") -> None:
    """Raise DataError where more images could not be decoded than `data.max_bad_share` allows. `said` comes first."""
    check_share(bad, len(source), model.config.data.max_bad_share, lambda: _such_as(model, source), said)


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
