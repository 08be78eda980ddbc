"""Where images come from. To add a kind of source, add a module here and a line in `open_source`, or in `to_source` for
what is no path.

| what `data.train` names | source |
|---|---|
| a folder | its images; class folders; without images the tars or Parquet files in it |
| a folder of `unmask pack` | the images packed there |
| `.txt`, `.csv`, `.tsv`, `.json`, `.jsonl` | the files listed there |
| `.tar`, `{000000..000146}.tar`, `*.tar` | images in tars, read in place; WebDataset; ImageNet's tars as shipped |
| `.parquet`, `.arrow`, a folder of them, `*.parquet` | Hugging Face layout |
| `.npy`, `.npz` | arrays |
| `bundled:mnist5k` | digits |

All but the last may be behind a URL that fsspec knows. Options follow a `#`:

| option | of | says |
|---|---|---|
| `image=COLUMN`, `label=COLUMN` | Parquet, Arrow, CSV, JSON, .npz | which column, field or array |
| `split=train` | Parquet, Arrow, CSV, JSON | which rows, by a column such as `split`, see `split_column.py`; `*`: all |
| `image=jpg` | folders, tars | which file of a sample is the image, where there are several; `*`: each |
| `labels=FILE` | tars | one class per line, in byte order of the images' names |
| `links=follow` | folders | links to folders and to files elsewhere are followed |
| `left_out=SHARE` | folders, tars | how much may be left out, see `left_out.py`; 1: anything |
| `root=FOLDER` | lists | where relative paths start, in place of the list's own folder |
| `classes=FILE` | lists | all classes, one a line, in order |
| `encoding=NAME` | lists | of the text, where it is not UTF-8 |

Python programs give objects as well: `to_source` says which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from numpy.typing import NDArray
from PIL import Image

from unmask.data.sources import arrays, files, imagenet, list_file
from unmask.data.sources.base import Source, printable, whole
from unmask.data.sources.bundled import PREFIX, open_bundled
from unmask.data.sources.dataset import Dataset, DatasetSource, check_picklable
from unmask.data.sources.folder import FolderSource, NoImagesError
from unmask.data.sources.image_names import ENCODED
from unmask.data.sources.in_memory import FORMS, InMemorySource, pixels_of
from unmask.data.sources.labels import alike_names, doubtful_names
from unmask.data.sources.left_out import LeftOut
from unmask.data.sources.pack import PackSource, is_unfinished_pack, read_manifest
from unmask.data.sources.subset import subset
from unmask.data.sources.table import parts_in
from unmask.data.sources.tar import TarSource
from unmask.errors import DataError, StorageError
from unmask.report.progress import say

__all__ = ["Dataset", "Images", "Source", "check_picklable", "open_source", "subset", "to_source"]

OneImage = str | Path | bytes | Image.Image | NDArray[Any]
Images = OneImage | Sequence[OneImage] | Dataset | Source
"""What `to_source` takes; a torch tensor is a `Dataset` to a type checker."""

_IMAGES = tuple(extension.decode() for extension in ENCODED)
_COLUMNAR = (".parquet", ".arrow")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".zip")


def to_source(images: Images, *, key: str, labels: bool | None, dtype: str) -> Source:
    """The images in `images`, which is one of:

    - all that `open_source` takes, as a text or a path, or the path of one image file;
    - a single image: the bytes of a file, a PIL image, an array (H, W) or (H, W, C), a torch tensor (H, W) or
      (C, H, W);
    - several: an array (N, H, W, C), a torch tensor (N, C, H, W), a list of single images, which may be paths;
    - a data set with `__len__` and `__getitem__`, whose items are images or (image, label), see `Dataset`;
    - a source, which is returned as it is.

    `key` is what messages call them. `labels`: whether each image must have a class; None: those of what `open_source`
    takes are read where it tells them. Single images have none, which is for the caller to refuse. `dtype` is
    `data.dtype` of the run, see `unmask.data.sources.in_memory.stored_image`.
    Raises DataError for anything else, and where there are no images.
    """
    given: Any = images
    if isinstance(given, str | Path):
        if Path(given).suffix.lower() in _IMAGES and Path(given).is_file():
            return InMemorySource([given], key=key, dtype=dtype)
        if labels is None:
            return open_with_labels_if_any(str(given), key=key)[0]
        return open_source(str(given), key=key, labels=labels)
    if _is_source(given):
        return given
    if isinstance(given, bytes | Image.Image):
        return InMemorySource([given], key=key, dtype=dtype)
    if (pixels := pixels_of(given, key, dtype)) is not None:
        return InMemorySource(pixels if pixels.ndim == 4 else [pixels], key=key, dtype=dtype)
    if isinstance(given, list | tuple) and not any(isinstance(image, tuple) for image in given[:1]):
        return InMemorySource(given, key=key, dtype=dtype)
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, Mapping):
        return DatasetSource(given, key=key, labels=bool(labels), dtype=dtype)
    raise DataError(
        f"{key} is a {type(given).__name__}; give {FORMS}, several of these as a list, an array (N, H, W, C), a torch "
        "tensor (N, C, H, W), or a data set with __len__ and __getitem__"
    )


def is_stored(source: Source) -> bool:
    """Whether images are the same whenever they are read: not those that a program makes."""
    ours = type(source).__module__.startswith(__name__)
    return ours and not isinstance(whole(source), DatasetSource | InMemorySource)


def _is_source(images: Any) -> TypeGuard[Source]:
    return all(callable(getattr(images, name, None)) for name in ("read", "name", "fingerprint"))


_OPTIONS = {
    "a folder": ("image", "links", "left_out"),
    "a pack": (),
    "a tar": ("image", "labels", "left_out"),
    "a list": ("image", "label", "split", "root", "classes", "encoding"),
    "Parquet or Arrow": ("image", "label", "split"),
    "arrays": ("image", "label"),
}
"""What may follow a `#`."""


def open_source(spec: str, *, key: str, labels: bool) -> Source:
    """Open the images that `spec` names, of any kind in this module's table; say what of it is not taken.

    `key` is the configuration key `spec` came from, for messages. With `labels`, every image must have a class. Raises
    DataError when there is nothing usable, or when more is left out than may be overlooked (`left_out.LeftOut.check`).
    """
    what = f"{key}={printable(spec)}"
    if not spec or "\0" in spec:
        raise DataError(f"{what} names nothing; give a folder, a file or a URL (a variable of the shell may be unset)")
    if spec.startswith(PREFIX):
        return open_bundled(spec, key=key)
    path, options = _options(spec)
    source = _opened(path, options, what=what, labels=labels)
    left_out = LeftOut.of(source)
    left_out.check(len(source), what, _share(options.get("left_out"), what))
    if left_out:
        say(f"{what}: {len(source)} images; left out: {left_out}")
    if not labels and isinstance(source, FolderSource | TarSource) and len(parts := parts_in(source.index)) > 1:
        say(f"{what}: the folders {', '.join(parts)} are parts of a data set, and the images of all are taken")
    if labels and (alike := alike_names(source.class_names or ())):
        named = " and ".join(f"'{printable(name)}'" for name in alike)
        say(f"{what}: the classes {named} are kept apart; if they are one, write its name in one way")
    if labels and (doubt := doubtful_names(source.class_names or ())):
        say(f"{what}: of the classes, {doubt}")
    return source


def open_with_labels_if_any(spec: str, *, key: str) -> tuple[Source, str]:
    """The same with labels, or where they cannot be had without, and then why. Raises DataError as `open_source`."""
    try:
        return open_source(spec, key=key, labels=True), ""
    except StorageError:
        raise
    except DataError as error:
        return open_source(spec, key=key, labels=False), str(error)


def _opened(path: str, options: dict[str, str], *, what: str, labels: bool) -> Source:
    kind = path.lower().rstrip("/")
    if kind.endswith(_COMPRESSED):
        raise DataError(f"{what} is compressed and cannot be read at random; unpack it into a folder or a plain .tar")
    if kind.endswith(".tar"):
        return _open_tars(files.expand(path, what), options, what=what, labels=labels)
    if kind.endswith(_COLUMNAR):
        return _open_columnar(files.expand(path, what), options, what=what, labels=labels)
    if kind.endswith(arrays.SUFFIXES):
        _check(options, "arrays", what)
        return arrays.open_arrays(
            path, what=what, labels=labels, image=options.get("image"), label=options.get("label")
        )
    if kind.endswith(list_file.SUFFIXES):
        _check(options, "a list", what)
        return list_file.ListFileSource.open(path, options, what=what, labels=labels)
    if (manifest := read_manifest(path)) is not None:
        _check(options, "a pack", what)
        return PackSource.open(path, manifest, what=what, labels=labels)
    if (links := options.get("links")) not in (None, "follow"):
        raise DataError(f"{what}: links={links} is unknown; there is links=follow")
    try:
        source = FolderSource.open(path, what=what, labels=labels, follow=links is not None, image=options.get("image"))
    except NoImagesError:
        if is_unfinished_pack(path):
            raise DataError(f"{what} is a pack that was not finished; run its `unmask pack` again") from None
        if paths := _tars(files.absolute(path)):
            return _open_tars(paths, options, what=what, labels=labels)
        if paths := _columnar_files(files.absolute(path)):
            return _open_columnar(paths, options, what=what, labels=labels)
        raise
    _check(options, "a folder", what)
    return source


def _open_tars(paths: list[str], options: dict[str, str], *, what: str, labels: bool) -> Source:
    _check(options, "a tar", what)
    labels_file = options.get("labels") or (imagenet.ground_truth(paths[0]) if labels else None)
    return TarSource.open(paths, what=what, labels=labels, labels_file=labels_file, image=options.get("image"))


def _open_columnar(paths: list[str], options: dict[str, str], *, what: str, labels: bool) -> Source:
    from unmask.data.sources.parquet import ParquetSource  # Arrow takes half a second to import

    _check(options, "Parquet or Arrow", what)
    return ParquetSource(paths, options, what=what, labels=labels)


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """`spec` up to `#`, and the options that follow it. A file may have such a name, too."""
    path, mark, tail = spec.rpartition("#")
    pairs = [pair.partition("=") for pair in tail.split("&")]
    if not mark or not all(name and equals for name, equals, _ in pairs) or files.is_here(spec):
        return spec, {}
    return path, {name: value for name, _, value in pairs}


def _check(options: dict[str, str], kind: str, what: str) -> None:
    if unknown := [name for name in options if name not in _OPTIONS[kind]]:
        known = ", ".join(_OPTIONS[kind]) or "none"
        raise DataError(f"{what}: {kind} has no option {unknown[0]}; its options are: {known}")


def _share(text: str | None, what: str) -> float | None:
    try:
        share = None if text is None else float(text)
    except ValueError:
        share = -1.0
    if share is not None and not 0 <= share <= 1:
        raise DataError(f"{what}: left_out={text} is not a share of the images; give a number from 0 to 1")
    return share


def _tars(path: str) -> list[str]:
    """The tars directly in a folder that holds no images, whatever lies beside: img2dataset adds Parquet of URLs."""
    names = sorted(os.fsencode(name) for name, _, is_folder in files.listing(path) if not is_folder)
    found = [f"{path}/{os.fsdecode(name)}" for name in names if name.lower().endswith(b".tar")]
    files.check_one_part(found, path)
    return found


def _columnar_files(path: str) -> list[str]:
    """The Parquet or Arrow files directly in a folder, or in its only subfolder that has any."""
    names, folders = _columnar(path)
    if not names:
        below = [f"{path}/{folder}" for folder in folders if _columnar(f"{path}/{folder}")[0]]
        if len(below) > 1:
            held = ", ".join(folder.rpartition("/")[2] for folder in below)
            raise DataError(
                f"{path} has Parquet or Arrow files in {held}; name one of these folders, such as {below[0]}"
            )
        return _columnar_files(below[0]) if below else []
    found = [f"{path}/{name}" for name in names]
    files.check_one_part(found, path)
    return found


def _columnar(path: str) -> tuple[list[str], list[str]]:
    """Names of the Parquet or Arrow files directly in a folder, and of its subfolders."""
    entries = sorted(files.listing(path))
    names = [name for name, _, is_folder in entries if name.lower().endswith(_COLUMNAR) and not is_folder]
    folders = [name for name, _, is_folder in entries if is_folder]
    return [name for name in names if not name.startswith("cache-")], folders  # intermediate results of `datasets`
