"""Keeps account of the images that could not be decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from unmask.data.batch import Batch
from unmask.data.sources.base import Source, printable
from unmask.errors import DataError
from unmask.files import naming

ACCEPT = "--set data.max_bad_share=1 accepts any number"
OF_A_RUN = "set that higher and the same command goes on"


def check_share(
    bad: int,
    images: int,
    most: float,
    such_as: Callable[[], str],
    said: str = "",
    advice: str = ACCEPT,
) -> None:
    """Raise DataError where more than the share `most` of the images, `data.max_bad_share`, could not be decoded.

    For what looks at images once. `said` comes first; `such_as` gives one of them, and why; `advice` is what to do.
    """
    if bad > most * images:
        example = such_as().rstrip(".")
        named = f", such as {example}" if example else ""
        raise DataError(
            f"{said}{bad} of {images} images ({bad / images:.2%}) cannot be decoded, more than "
            f"data.max_bad_share={most}{named}; {advice}"
        )


class BadFiles:
    """Lists bad images in a file of the run folder and stops the run when they become too many."""

    def __init__(
        self, source: Source, max_share: float, path: Path, why: Callable[[int], str], *, writes: bool = True
    ) -> None:
        """`path`: the list, one name per line, and behind a tab what `why` says of it; a resumed run continues it. Of
        several processes one `writes` it."""
        self._source = source
        self._max_share = max_share
        self._path = path
        self._why, self._writes = why, writes
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._listed = {line.partition("\t")[0] for line in lines}

    def __len__(self) -> int:
        """Distinct bad images so far."""
        return len(self._listed)

    def new(self, batch: Batch) -> list[int]:
        """The images of `batch.bad` that are not listed yet."""
        indices: list[int] = [] if batch.bad is None else batch.bad.tolist()
        return [index for index in dict.fromkeys(indices) if self._name(index) not in self._listed]

    def add(self, indices: Iterable[int]) -> None:
        """Take note of these images. Raises DataError when more than the allowed share of all images is bad."""
        new = {name: index for index in indices if (name := self._name(index)) not in self._listed}
        if not new:
            return
        if self._writes:
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.writelines(
                    f"{name}\t{self._why(index) or 'could be read at another attempt'}\n" for name, index in new.items()
                )
        self._listed.update(new)
        if len(self) > self._max_share * len(self._source):
            raise DataError(
                f"{len(self)} of {len(self._source)} images ({len(self) / len(self._source):.2%}) cannot be decoded, "
                f"more than data.max_bad_share={self._max_share}; they are listed in {self._path}. Set that higher and "
                "the same command goes on"
            )

    def _name(self, index: int) -> str:
        return printable(self._source.name(index))
