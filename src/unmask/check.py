"""Look at every image before a week is spent on them: what is broken, blank, tiny, there twice, or in both sets."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unmask.config.schema import DataConfig
from unmask.data.likeness import BITS, SIDE, Look, alike_pairs, groups_of, hash_of, look, same_groups, thumb_of
from unmask.data.parts import Share
from unmask.data.sources import Source, open_with_labels_if_any
from unmask.data.sources.base import printable
from unmask.data.sources.left_out import LeftOut
from unmask.data.spreadsheets import csv_file, csv_rows
from unmask.environment import cores
from unmask.errors import DataError, StorageError, UnmaskError
from unmask.evaluate.resumable import Records, collect
from unmask.files import check_free, write_text, written_aside
from unmask.report.pictures import contact_sheet
from unmask.report.progress import say, speaking, table

CHECK, EXCLUDE = "check.json", "exclude.txt"
_FILES = (CHECK, EXCLUDE, "alike.csv", "alike.png")
BLANK = 0.01
"""Standard deviation of the grey levels, of those between the darkest and the brightest, below which there is nothing
to see."""
_BATCH = 64
_PARTIAL = ("data.partial", "against.partial")
_PIECE = 8192
"""Records read at a time."""
_SHOWN = 48
"""Pairs in the picture."""
_RECORD = np.dtype(
    [
        ("broken", "?"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("spread", "<f4"),
        ("low", "<f4"),
        ("high", "<f4"),
        ("least", "<f4"),
        ("nodata", "<f4"),
        ("digest", "V16"),
        ("hash", "u1", (BITS // 8,)),
        ("thumb", "u1", (256,)),
    ]
)


Thumbs = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""(n, 256) of some rows."""


@dataclass(frozen=True)
class Findings:
    """Rows of the images, each list in order."""

    broken: NDArray[np.int64]
    """Cannot be decoded."""
    blank: NDArray[np.int64]
    """Show nothing: one colour, or almost."""
    tiny: NDArray[np.int64]
    """Have a side below `smallest`."""
    nodata: NDArray[np.int64]
    """Are mostly no data: nodata, NaN or infinite."""
    copies: list[NDArray[np.int64]]
    """Groups of the same bytes."""
    alike: list[NDArray[np.int64]]
    """Groups of pictures of the same, whose bytes differ; blank ones left aside."""
    conflicts: list[NDArray[np.int64]]
    """Groups of copies or alike ones that are in several classes: one of them is mislabelled."""
    leaks: NDArray[np.int64]
    """Images that are, or are like, one of the other set."""
    unseen: NDArray[np.int64]
    """Of the other set, cannot be decoded: what is like them is not among the leaks."""


def check(
    images: str,
    out: Path,
    *,
    against: str | None = None,
    smallest: int = 32,
    data: DataConfig | None = None,
    share: str | None = None,
) -> Findings | None:
    """Decode all of `images`, in as many threads as there are cores, and of `against`, the set they are judged by.

    Of `data`, `max_pixels`, `nodata`, `frame` and `range` count.

    Writes into the folder `out`: `check.json` with all figures; `exclude.txt`, for `data.exclude`, with the broken and
    blank images, all copies but the first, and what is also in `against`; `alike.csv` and `alike.png` with the pairs.
    Interrupted, the same call goes on. `share`: see `unmask.write_embeddings`; None while parts of others are missing,
    and where another process has written all that there is to say. Raises DataError where there are no images,
    ConfigError where `out` has a file of such a name and no earlier result, and what reading the images raises.
    """
    mine, data = Share.of(share), data or DataConfig()
    source, without = open_with_labels_if_any(images, key="DATA")
    if without:
        say(f"classes are not looked at: {without}")
    other = None if against is None else open_with_labels_if_any(against, key="--against")[0]
    job = _job(source, other, smallest, data)
    if mine.count > 1 and _job_of(out) == job:
        say(f"{out} is complete")
        return None
    if not (_job_of(out) or (out / _PARTIAL[0]).exists()):  # images are put right and looked at again
        check_free(*(out / name for name in _FILES))
    records = _records(source, out / _PARTIAL[0], "check", data, mine)
    others = None if other is None else _records(other, out / _PARTIAL[1], "check --against", data, mine)
    if records is None or (other is not None and others is None):
        return None
    with speaking():
        return _find(source, other, records, others, smallest, job, out, against, data)


def _find(
    source: Source,
    other: Source | None,
    records: Records,
    others: Records | None,
    smallest: int,
    job: dict[str, Any],
    out: Path,
    against: str | None,
    data: DataConfig,
) -> Findings:
    records, thumbs = _apart(records)
    theirs = None if others is None else _apart(others)
    findings = _findings(records, thumbs, source.labels, theirs, smallest)
    excluded = _excluded(findings)
    try:
        _write(source, other, records, findings, excluded, job, out, against, data)
    except OSError as error:
        raise UnmaskError(f"cannot write {out}: {error.strerror or error}") from error
    _tell(source, other, records, findings, len(excluded), out)
    for folder in _PARTIAL:
        shutil.rmtree(out / folder, ignore_errors=True)
    return findings


def _job(source: Source, other: Source | None, smallest: int, data: DataConfig) -> dict[str, Any]:
    """What the answer follows from."""
    sets = {"source": source.fingerprint(), "against": other and other.fingerprint()}
    return {**sets, "smallest": smallest, **_limits(data)}


def _limits(data: DataConfig) -> dict[str, Any]:
    ranged = {} if data.range is None else {"range": list(data.range)}
    return {"max_pixels": data.max_pixels, "nodata": data.nodata, "frame": data.frame, **ranged}


def _look(source: Source, row: int, data: DataConfig) -> Look:
    return look(source.read(row), data.max_pixels, data.nodata, data.frame, data.range)


def _job_of(out: Path) -> dict[str, Any] | None:
    """Of the result that is there; None where there is none."""
    try:
        return json.loads((out / CHECK).read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _records(source: Source, folder: Path, title: str, data: DataConfig, share: Share) -> Records | None:
    def one(index: int) -> Records:
        record = np.zeros((), _RECORD)
        try:
            image = source.read(index)
            raw = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
            record["digest"] = np.void(hashlib.sha256(raw).digest()[:16])
            seen = look(image, data.max_pixels, data.nodata, data.frame, data.range)
            (record["height"], record["width"]), record["nodata"] = seen.size, seen.nodata
            record["low"], record["high"], record["least"] = seen.levels.min(), seen.levels.max(), seen.least
            record["spread"] = seen.levels.std(dtype=np.float64)
            record["hash"], record["thumb"] = hash_of(seen.grey), thumb_of(seen.grey)
        except StorageError:
            raise
        except DataError:
            record["broken"] = True
        return record

    def compute(spans: Sequence[range]) -> Iterator[Records]:
        with ThreadPoolExecutor(cores()) as pool:
            for span in spans:
                for first in range(span.start, span.stop, _BATCH):
                    yield np.stack(list(pool.map(one, range(first, min(first + _BATCH, span.stop)))))

    job = {
        "settings": {"command": "check", "side": SIDE, "record": _RECORD.itemsize, **_limits(data)},
        "source": {"images": len(source), "fingerprint": source.fingerprint()},
    }
    return collect(folder, job, _RECORD, len(source), compute, batch_size=_BATCH // 16, title=title, share=share)


def _apart(records: Records) -> tuple[Records, Thumbs]:
    """The records in memory without their thumbs, and these, of which few are needed, where they are.

    Read in pieces: what is mapped and looked at once counts as memory of this process.
    """
    kept = np.empty(len(records), np.dtype([(name, _RECORD[name]) for name in _RECORD.names or () if name != "thumb"]))
    with Path(cast("np.memmap[Any, Any]", records).filename or "").open("rb") as file:
        for start in range(0, len(kept), _PIECE):
            piece = np.frombuffer(file.read(_PIECE * _RECORD.itemsize), _RECORD)
            for name in kept.dtype.names or ():
                kept[name][start : start + len(piece)] = piece[name]
    return kept, lambda rows: records["thumb"][rows]


def _findings(
    records: Records,
    thumbs: Thumbs,
    labels: NDArray[np.int64] | None,
    others: tuple[Records, Thumbs] | None,
    smallest: int,
) -> Findings:
    good = ~records["broken"]
    blank = _blank(records)
    tiny = good & (np.minimum(records["height"], records["width"]) < smallest)
    seen = np.flatnonzero(good)
    copies = _copies(records["digest"], seen)
    clear = np.flatnonzero(good & ~blank)
    pairs = clear[alike_pairs(records["hash"][clear], lambda rows: thumbs(clear[rows]))]
    same = records["digest"][pairs[:, 0]] == records["digest"][pairs[:, 1]]
    alike = groups_of(pairs[~same], len(records))
    conflicts = [] if labels is None else [g for g in [*copies, *alike] if len(set(labels[g].tolist())) > 1]
    leaks = np.zeros(0, np.int64) if others is None else _leaks(records, thumbs, clear, seen, *others)
    nodata = good & (records["nodata"] > 0.5)
    broken, blank, tiny, nodata = (np.flatnonzero(found) for found in (~good, blank, tiny, nodata))
    unseen = np.zeros(0, np.int64) if others is None else np.flatnonzero(others[0]["broken"])
    return Findings(broken, blank, tiny, nodata, copies, alike, conflicts, leaks, unseen)


def _blank(records: Records) -> NDArray[np.bool_]:
    """Which show nothing, by the levels that each really has. Where those of all images together lie nearer than a
    picture's, such as the 0 and 1 of drawings, it is no noise that differs."""
    good = ~records["broken"]
    low, high = records["low"].astype(np.float64), records["high"].astype(np.float64)
    every = high[good].max() - low[good].min() if good.any() else 0.0
    scale = np.maximum(high - low, np.minimum(records["least"], every))
    return good & (records["spread"] <= BLANK * scale)


def _copies(digests: NDArray[Any], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    halves = np.ascontiguousarray(digests[rows]).view("<u8").reshape(-1, 2)
    order = np.lexsort(halves.T)
    halves = halves[order]
    groups = [rows[group] for group in same_groups(order, (halves[1:] != halves[:-1]).any(1))]
    return sorted(groups, key=lambda group: digests[group[0]].tobytes())


def _leaks(
    records: Records,
    thumbs: Thumbs,
    clear: NDArray[np.int64],
    seen: NDArray[np.int64],
    others: Records,
    their_thumbs: Thumbs,
) -> NDArray[np.int64]:
    known = ~others["broken"]
    copied = seen[np.isin(records["digest"][seen], others["digest"][known])]
    theirs = np.flatnonzero(known & ~_blank(others))

    def of_both(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        found, mine = np.empty((len(rows), 256), np.uint8), rows < len(clear)
        found[mine], found[~mine] = thumbs(clear[rows[mine]]), their_thumbs(theirs[rows[~mine] - len(clear)])
        return found

    pairs = alike_pairs(np.concatenate([records["hash"][clear], others["hash"][theirs]]), of_both)
    across = pairs[(pairs[:, 0] < len(clear)) & (pairs[:, 1] >= len(clear))]
    return np.unique(np.concatenate([copied, clear[across[:, 0]]]))


def _excluded(findings: Findings) -> NDArray[np.int64]:
    again = [group[1:] for group in findings.copies]
    return np.unique(np.concatenate([findings.broken, findings.blank, findings.leaks, *again]))


def _write(
    source: Source,
    other: Source | None,
    records: Records,
    findings: Findings,
    excluded: NDArray[np.int64],
    job: dict[str, Any],
    out: Path,
    against: str | None,
    data: DataConfig,
) -> None:
    def name(row: int) -> str:
        return printable(source.name(int(row)))

    def named(rows: NDArray[np.int64]) -> list[str]:
        return [name(row) for row in rows.tolist()]

    groups: dict[str, Callable[[], list[list[str]]]] = {
        key: lambda found=found: [named(group) for group in found]
        for key, found in (("copies", findings.copies), ("alike", findings.alike), ("conflicts", findings.conflicts))
    }
    sides = {key: _quantiles(records[key][~records["broken"]]) for key in ("height", "width")}
    content = {
        "images": len(source),
        "against": against,
        "images_of_against": 0 if other is None else len(other),
        "left_out": LeftOut.of(source).counts(),
        **{key: named(getattr(findings, key)) for key in ("broken", "blank", "tiny", "nodata", "leaks")},
        **{key: make() for key, make in groups.items()},
        "reasons": _reasons(source, findings.broken, data),
        "broken_in_against": {} if other is None else _reasons(other, findings.unseen, data),
        "classes": _balance(source),
        **sides,
        "job": job,
    }
    write_text(out / EXCLUDE, "".join(f"{line}\n" for line in named(excluded)))
    rows = [(number, row) for number, group in enumerate(findings.alike, 1) for row in group.tolist()]
    texts = [(name(row), _class(source, row)) for _, row in rows]
    with written_aside(out / "alike.csv") as aside, csv_file(aside, chain.from_iterable(texts)) as file:
        csv_rows(file, [["group", "file", "class"]])
        csv_rows(file, ([number, *text] for (number, _), text in zip(rows, texts, strict=True)))
    _draw(source, findings.alike, out / "alike.png", data)
    write_text(out / CHECK, json.dumps(content, indent=1, ensure_ascii=False) + "\n")  # the last


def _class(source: Source, row: int) -> str:
    if source.labels is None or source.class_names is None:
        return ""
    return printable(source.class_names[int(source.labels[row])])


def _balance(source: Source) -> dict[str, int]:
    if source.labels is None or source.class_names is None:
        return {}
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    return {printable(name): count for name, count in zip(source.class_names, counts, strict=True)}


def _quantiles(sides: NDArray[np.int32]) -> dict[str, int]:
    if not len(sides):
        return {}
    low, median, high = np.quantile(sides, [0, 0.5, 1]).astype(int).tolist()
    return {"min": low, "median": median, "max": high}


def _reasons(source: Source, rows: NDArray[np.int64], data: DataConfig) -> dict[str, str]:
    return {printable(source.name(row)): reason_of(source, row, data) for row in rows.tolist()}


def reason_of(source: Source, row: int, data: DataConfig) -> str:
    """Why an image cannot be decoded."""
    try:
        _look(source, row, data)
    except DataError as error:
        return str(error)
    return ""


def _draw(source: Source, groups: Sequence[NDArray[np.int64]], out: Path, data: DataConfig) -> None:
    """The first two of each group, side by side."""
    rows = [row for group in groups[: _SHOWN // 2] for row in group[:2].tolist()]
    if not rows:
        out.unlink(missing_ok=True)
        return
    looks = [_look(source, row, data) for row in rows]
    pictures = np.stack([seen.grey for seen in looks])[..., None]
    files = [printable(source.name(row).rpartition("/")[2]) for row in rows]
    names = [f"{number // 2 + 1}: {file}" for number, file in enumerate(files)]
    contact_sheet(pictures, out, captions=names)


def _tell(source: Source, other: Source | None, records: Records, findings: Findings, excluded: int, out: Path) -> None:
    def some(rows: Sequence[int], source: Source = source) -> str:
        shown = ", ".join(printable(source.name(row)) for row in rows[:3])
        return shown + (", …" if len(rows) > 3 else "")

    lists = (("broken", findings.broken), ("blank", findings.blank), ("tiny", findings.tiny))
    lists = (*lists, ("mostly no data", findings.nodata), ("also in --against", findings.leaks))
    rows = [[what, len(found), some(found.tolist())] for what, found in lists]
    for what, groups in (
        ("copies", findings.copies),
        ("alike", findings.alike),
        ("in two classes", findings.conflicts),
    ):
        rows.append(
            [what, sum(len(group) - 1 for group in groups), some([row for g in groups[:2] for row in g[:2].tolist()])]
        )
    if other is not None:
        rows.append(["broken in --against", len(findings.unseen), some(findings.unseen.tolist(), other)])
    table([row for row in rows if row[1]] or [["nothing found", 0, ""]], ["", "images", "such as"])
    classes = Counter(_balance(source))
    if classes:
        (most, many), (least, few) = classes.most_common(1)[0], min(classes.items(), key=lambda item: item[1])
        say(f"{len(classes)} classes, from {few} images ({least}) to {many} ({most})")
    say(f"{len(source)} images; in {out}: check.json, alike.csv, {EXCLUDE} with {excluded} names")
    if excluded:
        say(f"to do without these: data.exclude={out / EXCLUDE}")
