"""`data.val=10%`: which part an image belongs to follows from its name and the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.config.load import load_config
from unmask.data.sources.base import Source
from unmask.data.sources.in_memory import InMemorySource
from unmask.data.sources.split import check_groups, split
from unmask.errors import ConfigError, DataError


class Named(InMemorySource):
    """Grey squares under given names; classes by the name's first letter."""

    def __init__(self, names: list[str], *, classes: bool = False) -> None:
        super().__init__([np.zeros((4, 4), np.uint8)] * len(names), key="images", dtype="uint8")
        self.names = names
        self.class_names = tuple(sorted({name[0] for name in names})) if classes else None
        self.labels = np.array([sorted({n[0] for n in names}).index(name[0]) for name in names]) if classes else None

    def name(self, index: int) -> str:
        return self.names[index]


def names_of(source: Source) -> set[str]:
    return {source.name(index) for index in range(len(source))}


NAMES = [f"{'ab'[i % 2]}/patient{i // 10}/{i}.png" for i in range(2000)]


def test_the_parts_are_of_the_names_and_the_seed_whatever_the_order_and_the_other_images() -> None:
    train, val = split(Named(NAMES), 0.1, seed=3)
    assert names_of(train) | names_of(val) == set(NAMES)
    assert not names_of(train) & names_of(val)
    assert 160 <= len(val) <= 240
    shuffled = split(Named(NAMES[::-1]), 0.1, seed=3)[1]
    assert names_of(shuffled) == names_of(val)
    fewer = split(Named(NAMES[::3]), 0.1, seed=3)[1]
    assert names_of(fewer) == names_of(val) & set(NAMES[::3])
    assert names_of(split(Named(NAMES), 0.1, seed=4)[1]) != names_of(val)
    assert names_of(val) < names_of(split(Named(NAMES), 0.2, seed=3)[1])
    assert sorted(names_of(val))[:2] == ["a/patient1/18.png", "a/patient102/1024.png"]  # for good


def test_images_of_a_group_stay_together() -> None:
    train, val = split(Named(NAMES), 0.2, seed=0, group=r"patient(\d+)/")

    def patients(source: Source) -> set[str]:
        return {name.split("/")[1] for name in names_of(source)}

    assert not patients(train) & patients(val)
    assert 20 <= len(patients(val)) <= 60


def test_what_is_in_no_group_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_groups(Named([*NAMES[:100], "odd.png"]), r"patient\d+")
    assert "1 images are in no group, such as odd.png" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"finds nothing in any name of data.train, such as a/patient0/0.png"):
        check_groups(Named(NAMES), "sample")


def test_a_class_that_one_part_would_lack_is_refused() -> None:
    with pytest.raises(DataError, match=r"class 'z' has 1 images, and none of them to (train|validate) on"):
        split(Named([*NAMES, "z/1.png"], classes=True), 0.1, seed=0)
    with pytest.raises(DataError, match="leaves none to validate on"):
        split(Named(["a", "b"]), 0.001, seed=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.val=0%"], "between 0% and 100%"),
        (["data.val=100%"], "between 0% and 100%"),
        (["data.val=10%", "data.val_group=("], "no regular expression"),
    ],
)
def test_impossible_shares_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("mae-vit-tiny", settings)


def test_a_share_is_known_from_a_folder() -> None:
    assert load_config("mae-vit-tiny", ["data.val=12.5%"]).data.val_share == 0.125
    assert load_config("mae-vit-tiny", ["data.val=./10%"]).data.val_share is None
