"""Where images come from. A further kind of source is a module beside these and a line in `open_source`."""

from __future__ import annotations

from pathlib import Path

from unmask.data.sources.base import Item, Source
from unmask.data.sources.bundled import PREFIX, open_bundled
from unmask.data.sources.folder import FolderSource
from unmask.data.sources.subset import subset

__all__ = ["Item", "Source", "open_source", "subset"]


def open_source(spec: str, *, key: str, labels: bool) -> Source:
    """Open the images that `spec` names: a folder, or `bundled:mnist5k/train`.

    `key` is the configuration key `spec` came from, for messages. With `labels`, every image must belong to a class:
    its first folder below the root. Raises DataError when there is nothing usable.
    """
    if spec.startswith(PREFIX):
        return open_bundled(spec, key=key)
    return FolderSource.open(Path(spec), key=key, labels=labels)
