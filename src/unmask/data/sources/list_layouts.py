"""JSON of annotation tools: what is read of it, and what is refused by name.

- COCO (`images`, `annotations`, `categories`): an image's classes are the categories of its annotations.
- mmpretrain (`metainfo`, `data_list`): `img_path` and `gt_label`, a number of `metainfo.classes`.
- Label Studio, VIA, LabelMe and COCO-like files without images are refused: they tell where objects are, or tasks, and
  what class an image is of is for a person to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unmask.data.sources.base import printable
from unmask.data.sources.image_names import EXTENSIONS
from unmask.errors import DataError

_FIELDS = {
    *("path", "file", "filename", "file_name", "image", "images", "label", "labels", "class", "classes", "names", "nc"),
    *("categories", "annotations", "train", "val", "test", "info", "version", "license", "licenses", "data", "meta"),
    *("metainfo", "description"),
}
"""What describes images or a set of them, where a path is looked for."""
_EXTENSIONS = tuple(extension.decode() for extension in EXTENSIONS)
Row = tuple[str, str]
"""As in `list_file`."""


def recognised(content: Any, what: str) -> Iterator[Row] | None:
    """The rows of a known layout; None for any other. Raises DataError for one that is known and not read."""
    if isinstance(content, dict):
        keys = content.keys()
        if isinstance(content.get("images"), list) and {"annotations", "categories"} <= keys:
            return _coco(content, what)
        if isinstance(content.get("data_list"), list):
            return _mmpretrain(content, what)
        tools = {"_via_img_metadata": "VIA", "shapes": "LabelMe", "assets": "VoTT"}
        if tool := next((tool for key, tool in tools.items() if key in keys), None):
            raise _refused(what, tool)
        if "annotations" in keys and isinstance(content["annotations"], list):
            missing = "images" if "images" not in keys else "categories"
            raise DataError(f"{what} has COCO's annotations without its {missing}; name a file that has both")
        if any(isinstance(value, dict) and {"regions", "filename"} <= value.keys() for value in content.values()):
            raise _refused(what, "VIA")
        if any(map(_names_images, content.values())):
            raise DataError(
                f"{what} lists images by {', '.join(list(content)[:3])}; write an entry for each image, "
                '{"PATH": label, …}, or a CSV with the columns path and label'
            )
        fields = [key for key in keys if key.lower() in _FIELDS]
        entry = {"label", "labels", "class"} & keys and {"path", "file", "filename", "file_name", "image"} & keys
        if fields and not entry:
            raise DataError(
                f"{what} has the fields {', '.join(map(printable, list(keys)[:3]))}, not a map from paths to labels; "
                'write {"PATH": label, …}, a list of {"path": …, "label": …}, or name what it describes'
            )
        if keys and not any(map(_is_name, keys)) and all(map(_is_name, content.values())):
            raise DataError(
                f'{what} maps {printable(next(iter(keys)))} and others to images; write {{"PATH": label, …}}'
            )
    elif content and isinstance(content[0], dict) and isinstance(content[0].get("data"), dict):
        raise _refused(what, "Label Studio")
    return None


def _refused(what: str, tool: str) -> DataError:
    return DataError(f"{what} is {tool}'s; export it as CSV with the columns path and label, or as COCO")


def _names_images(value: Any) -> bool:
    names: list[Any] = value if isinstance(value, list) else []
    return bool(names) and _is_name(names[0])


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(_EXTENSIONS)


def _coco(content: Any, what: str) -> Iterator[Row]:
    try:
        names = {entry["id"]: _plain(str(entry["name"]), what) for entry in content["categories"]}
        images = [(entry["id"], str(entry["file_name"])) for entry in content["images"]]
        classes: dict[Any, list[str]] = {identity: [] for identity, _ in images}
        if len(classes) < len(images) or len(names) < len(content["categories"]):
            twice = "images" if len(classes) < len(images) else "categories"
            raise DataError(f"{what} looks like COCO, but several of its {twice} have one id; number them anew")
        for entry in content["annotations"]:
            classes[entry["image_id"]].append(names[entry["category_id"]])
    except (LookupError, TypeError) as error:
        raise DataError(f"{what} looks like COCO, but {_missing(error)}") from None
    return iter([(name, ";".join(dict.fromkeys(classes[identity]))) for identity, name in images])


def _mmpretrain(content: Any, what: str) -> Iterator[Row]:
    try:
        classes = [_plain(str(name), what) for name in (content.get("metainfo") or {}).get("classes", [])]
        rows: list[Row] = []
        for entry in content["data_list"]:
            labels: Any = entry.get("gt_label", [])
            numbers = labels if isinstance(labels, list) else [labels]
            if wrong := [n for n in numbers if classes and (n not in range(len(classes)) or isinstance(n, bool))]:
                raise DataError(f"{what}: gt_label {wrong[0]} of {entry['img_path']} is none of {len(classes)} classes")
            rows.append((str(entry["img_path"]), ";".join(classes[n] if classes else str(n) for n in numbers)))
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{what} looks like mmpretrain's, but {_missing(error)}") from None
    return iter(rows)


def _plain(name: str, what: str) -> str:
    if ";" in name:
        raise DataError(f"{what}: the class {name!r} has a semicolon, which stands between classes; rename it")
    return name


def _missing(error: Exception) -> str:
    return f"{error} is not where it should be" if isinstance(error, KeyError) else f"an entry is odd: {error}"
