"""Each test that docs/reliability.md names is there, and the Chinese page names the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def named(page: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py::\w+)`", (ROOT / "docs" / page).read_text("utf-8"))


@pytest.mark.parametrize("test", named("reliability.md"))
def test_a_named_test_is_there(test: str):
    file, _, function = test.partition("::")
    assert re.search(rf"^def {function}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE)


def test_both_languages_name_the_same():
    assert named("reliability.zh-CN.md") == named("reliability.md")
    assert len(named("reliability.md")) > 30
