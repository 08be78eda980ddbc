"""The page about runs, as a user makes it, opened in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unmask
from browser import Watched, browser
from runs import TINY_MODEL
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.evaluate.knn import nearest

pytest.importorskip("torch", reason="PyTorch is not installed")

SHORT = ["train.batch_size=20", "optimizer.warmup_epochs=0", "train.log_every=5", "train.epochs=3"]
CLASSES = ["零", "一", "二", "三", "四", "五", "六", "七", "八", "九<img src=x onerror=window.bad=1>"]
HOSTILE = "<script>window.bad=1<!--.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in folders with Chinese names, one of which would be markup."""
    root = tmp_path_factory.mktemp("data")
    for part, step in (("train", 40), ("val", 10)):
        source = open_source(f"bundled:mnist5k/{part}", key="data", labels=True)
        assert source.labels is not None
        for index in range(0, len(source), step):
            digit = source.read(index)
            assert isinstance(digit, np.ndarray)
            folder = root / part / CLASSES[source.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digit[:, :, 0]).save(folder / (HOSTILE if index == 0 else f"{index:05}.png"))
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    common = [*TINY_MODEL, *SHORT, f"data.train={data}/train", f"data.val={data}/val"]
    assert main(["pretrain", "mae-vit-tiny", *common, f"output={root}/mae"]) == 0
    mixed = ["augment.mixup=0.8", "model.pool=cls"]
    start = [f"init={root}/mae", "objective.head=drawn"]
    assert main(["finetune", "finetune-vit-tiny", *common, *mixed, *start, f"output={root}/classifier"]) == 0
    return root


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    out = runs / "both.html"
    assert main(["report", f"{runs}/classifier", f"{runs}/mae", "--images", "60", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def chromium() -> Generator[Any]:
    with browser() as opened:
        yield opened


def test_every_part_is_there_and_no_name_is_markup(chromium: Any, report: Path) -> None:
    watched = Watched(chromium, offline=True)
    page = watched.open(report.as_uri())
    shown = page.eval_on_selector_all("section", "parts => parts.map(part => part.id)")
    assert shown == ["summary", "curves", "classes", "mistakes", "map", "batches", "config", "versions"]
    assert page.locator("#curves .card").count() >= 4
    assert page.locator("#curves path").count() > 6
    assert CLASSES[9] in page.inner_text("#classes")
    assert "data.val" in page.inner_text("#classes")
    page.select_option("#run", label="mae")
    assert page.locator("#reconstructions figure").count() == 8
    assert HOSTILE in page.inner_text("#reconstructions")
    assert page.evaluate("window.bad === undefined")
    assert not watched.faults
    assert [url for url in watched.requests if not url.startswith(("file:", "blob:", "data:"))] == []


def test_a_single_evaluation_is_a_whole_point_and_of_three_classes_five_say_nothing(
    chromium: Any, report: Path, data: Path, tmp_path: Path
) -> None:
    assert "among the likeliest 5" in Watched(chromium).open(report.as_uri()).inner_text("#classes .facts")
    for part in ("train", "val"):
        for name in CLASSES[:3]:
            shutil.copytree(data / part / name, tmp_path / part / name)
    few = [*TINY_MODEL, *SHORT, "train.epochs=1", f"data.train={tmp_path}/train", f"data.val={tmp_path}/val"]
    assert main(["finetune", "scratch-vit-tiny", *few, f"output={tmp_path}/run"]) == 0
    assert main(["report", f"{tmp_path}/run", "--out", f"{tmp_path}/one.html"]) == 0
    page = Watched(chromium).open((tmp_path / "one.html").as_uri())
    assert "likeliest" not in page.inner_text("#classes .facts")
    charts = page.locator("#curves .card").filter(has_text="Accuracy").first
    left, right = charts.evaluate(
        "card => { const dot = card.querySelector('svg g circle').getBBox();"
        " const clip = card.querySelector('clipPath rect').getBBox();"
        " return [dot.x - clip.x, clip.x + clip.width - dot.x - dot.width]; }"
    )
    assert left >= 0
    assert right >= 0
    assert charts.locator("svg text[text-anchor=middle]").all_text_contents() == ["2"]  # its step alone


def test_on_paper_it_has_its_pictures(chromium: Any, report: Path) -> None:
    """They come to the screen as one scrolls there, and nobody scrolls before printing."""
    page = Watched(chromium).open(report.as_uri())
    page.pdf()
    page.emulate_media(media="print")
    hidden = "part => part.scrollHeight - part.clientHeight"
    assert page.locator("#config .tall").evaluate(hidden) <= 1
    pictures = page.eval_on_selector_all(".picture img", "all => all.map(one => one.naturalWidth)")
    assert len(pictures) > 8
    assert 0 not in pictures


def test_clicks_and_keys(chromium: Any, report: Path, runs: Path, data: Path) -> None:
    page = Watched(chromium).open(report.as_uri())
    page.locator("#mistakes button.picture").first.click()
    assert page.locator("dialog[open] img").count() == 1
    first = page.inner_text("dialog p")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("dialog p") != first
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0

    # The image under the pointer, and the nearest to it, which the features tell as well.
    page.locator("#map canvas").scroll_into_view_if_needed()
    x, y = page.evaluate("document.getElementById('map').plane.toScreen(7)")
    page.locator("#map canvas").hover(position={"x": x, "y": y})
    source = open_source(f"{data}/val", key="data", labels=True)
    rows = np.unique(np.linspace(0, len(source) - 1, 60).astype(np.int64))
    chosen = page.evaluate(f"document.getElementById('map').plane.nearest({x}, {y})")
    assert source.name(int(rows[chosen])) in page.inner_text(".tip")
    page.locator("#map canvas").click(position={"x": x, "y": y})
    labels = page.eval_on_selector_all("#map .near .thumb", "all => all.map(one => one.getAttribute('aria-label'))")
    with unmask.load(runs / "classifier") as model:
        features = model.embed([source.read(int(row)) for row in rows])
    _, index = nearest(features, features, 13)
    expected = [source.name(int(rows[i])) for i in index[chosen] if i != chosen]
    assert labels == expected[:12]

    page.locator("#classes canvas").focus()
    page.keyboard.press("ArrowDown")
    assert "of" in page.inner_text("#classes [aria-live]")
    before = page.inner_text("#curves .legend >> nth=0")
    page.locator("#curves .chart").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#curves .legend >> nth=0") != before


def test_it_reads_on_a_phone_and_in_the_dark(chromium: Any, report: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    papers: list[str] = []
    for scheme in ("light", "dark"):
        page = Watched(chromium, color_scheme=scheme, **phone).open(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        papers.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_images_that_moved_are_said_and_found_again(
    chromium: Any, runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(data, moved)
    try:
        assert main(["report", f"{runs}/classifier"]) == 0
        said = capsys.readouterr().out
        assert "Missing: images and what the model says of them." in said
        assert "--set data.val=FOLDER" in said
        page = Watched(chromium).open((runs / "classifier" / "report.html").as_uri())
        assert "--set data.train=FOLDER" in page.inner_text("#summary .note >> nth=0")
        assert page.locator("#curves path").count() > 2
        assert page.locator("#map").count() == 0

        there = ["--set", f"data.val={moved}/val", "--set", f"data.train={moved}/train"]
        assert main(["report", f"{runs}/classifier", *there, "--images", "20"]) == 0
        assert "Missing" not in capsys.readouterr().out
    finally:
        shutil.move(moved, data)


def test_mistakes_are_said_in_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.yaml").write_text("config: [", encoding="utf-8")
    for arguments, said in (
        ([str(tmp_path)], "is no run folder"),
        ([str(tmp_path / "torn")], "is damaged"),
        ([f"{runs}/mae", f"{runs}/classifier"], "--out FILE.html"),
        ([f"{runs}/mae", f"{runs}/mae/.", "--out", "x.html"], "named twice"),
        ([f"{runs}/mae", "--out", str(tmp_path)], "is a folder"),
        ([f"{runs}/mae", "--set", "data.vall=x"], "data.vall"),
    ):
        assert main(["report", *arguments]) in (1, 2)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
