"""Classes of images and of a head: the same, mapped, shifted, or refused with the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.errors import ConfigError, DataError, UnmaskError
from unmask.evaluate.class_names import check_same_classes, head_classes, read_class_map

THREE = ("ant", "bee", "cat")


def test_the_same_names_or_as_many_without_names() -> None:
    assert head_classes(THREE, head=3, head_names=THREE).tolist() == [0, 1, 2]
    assert head_classes(THREE, head=3, head_names=None).tolist() == [0, 1, 2]
    assert head_classes(THREE, head=5, head_names=THREE).tolist() == [0, 1, 2], "unused classes at the end of the head"


def test_an_offset_skips_the_background() -> None:
    assert head_classes(THREE, head=4, head_names=None, label_offset=1).tolist() == [1, 2, 3]
    assert head_classes(THREE, head=4, head_names=None, label_offset=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"ant": 7, "cat": "zebra", "bee": 7, "dog": 1}'),
        ("map.csv", "folder,class\nant,7\nbee,7\ncat,zebra\n"),
        ("map.csv", '\ufefffolder,class\r\n"ant",7\r\nbee,7\r\ncat,"zebra"\r\n"two\nlines, ""x""",1\r\n'),
    ],
)
def test_a_map_by_number_and_by_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    names = [*"abcdefgh", "zebra"]
    assert head_classes(THREE, head=9, head_names=names, class_map=tmp_path / name).tolist() == [7, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_names": ("ant", "bee", "dog")}, r"only the images \['cat'\], only the model \['dog'\]"),
        ({"head_names": ("cat", "bee", "ant")}, "another order"),
        ({"head_names": None, "head": 4}, "3 classes and the model's head has 4"),
        ({"head_names": None, "label_offset": 1}, "do not fit the 3"),
        ({"head_names": None, "label_offset": -1}, "do not fit the 3"),
        ({"class_map": '{"ant": 0}'}, r"does not name these classes of the images: \['bee', 'cat'\]"),
        ({"class_map": '{"ant": 0, "bee": 1, "cat": 3}'}, r"has no class \['3'\]"),
        ({"class_map": '{"ant": 0, "bee": 1, "cat": "cow"}'}, r"has no class \['cow'\]"),
        ({"class_map": '{"ant": 0, "ant": 1}'}, "'ant' twice"),
        ({"class_map": '{"ant": 0.5}'}, "not an object of the form"),
        ({"class_map": "[0, 1]"}, "not an object of the form"),
        ({"class_map": "{"}, "cannot be read"),
        ({"class_map": '{"ant": 0}', "label_offset": 1}, "not both"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    if "class_map" in arguments:
        path = tmp_path / "map.json"
        path.write_text(str(arguments["class_map"]))
        arguments = {**arguments, "class_map": path}
    with pytest.raises(UnmaskError, match=message):
        head_classes(THREE, **{"head": 3, "head_names": None, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["ant,0\n", "folder,class\nant\n", ""])
def test_a_csv_map_has_a_header_and_two_columns(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(ConfigError, match="folder,class"):
        read_class_map(tmp_path / "map.csv")


def test_a_csv_map_that_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text('folder,class\nant,"' + "x" * 200_000 + "\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        head_classes(THREE, head=9, head_names=None, class_map=tmp_path / "map.csv")


def test_of_a_thousand_names_ten_are_shown() -> None:
    names = [f"class {number}" for number in range(1000)]
    with pytest.raises(DataError) as error:
        check_same_classes(names, [], "train", "val")
    assert "and 990 more" in str(error.value)
    assert len(str(error.value)) < 300
