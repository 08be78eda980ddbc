"""The site is built with broken links as errors; what its pages quote is what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from browser import Watched, browser, until
from unmask.config.load import recipe_names
from unmask.config.reference import every_key

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    # Without -q: it drops the warnings, which are what a strict build counts.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-d", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_all_keys_and_recipes_in_both_languages(site: Path) -> None:
    keys = (site / "reference" / "keys.html").read_text(encoding="utf-8")
    assert [key.name for section in every_key() for key in section.keys if f"<code>{key.name}</code>" not in keys] == []
    assert "runs/&lt;recipe&gt;-&lt;n&gt;" in keys
    recipes = (site / "zh" / "reference" / "recipes.html").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"<code>{name}</code>" not in recipes] == []
    assert "问题排查" in (site / "zh" / "troubleshooting.html").read_text(encoding="utf-8")


def test_the_search_works_in_a_folder_without_a_server(site: Path) -> None:
    """Chinese words stand within a sentence, where no space tells them apart."""
    with browser() as opened:
        watched = Watched(opened, viewport={"width": 1300, "height": 800})
        for start, typed, found in (
            ("index.html", "max_bad_share", "reference/keys.html"),
            ("zh/index.html", "归一化", "zh/export.html"),
            ("zh/index.html", "卷积", "zh/few-labels.html"),
            ("zh/index.html", "掩码", "zh/comparison.html"),
        ):
            page = watched.open((site / start).as_uri())
            page.click("[data-md-component=search-query]")
            page.keyboard.type(typed)
            links = "[...document.querySelectorAll('.md-search-result__link')]"
            until(page, f"{links}.some(a => a.href.startsWith('{(site / found).as_uri()}'))")
    assert [url for url in watched.requests if not url.startswith((site.as_uri(), "about:", "blob:", "data:"))] == []


def test_messages_of_the_page_are_those_of_the_code() -> None:
    source = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "unmask").rglob("*.py"))
    pages = [ROOT / "docs" / name for name in ("troubleshooting.md", "troubleshooting.zh-CN.md")]
    english, chinese = (re.findall(r"^\| `(.*?)` \|", page.read_text(encoding="utf-8"), re.M) for page in pages)
    assert english == chinese != []
    for message in english:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert part in source, part


@pytest.mark.parametrize("page", [*ROOT.glob("*.zh-CN.md"), *ROOT.glob("docs/*.zh-CN.md")], ids=lambda page: page.name)
def test_no_line_ends_between_chinese_characters(page: Path) -> None:
    """Where it would be shown as a space."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert re.findall(r".{5}[\u2e80-\u9fff\uff00-\uffef]\n *[\u2e80-\u9fff\uff00-\uffef].{5}", text) == []
