"""Names in any script: a font that has them is found, or it is said once that there is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from unmask.report import fonts
from unmask.report.charts import confusion_chart
from unmask.report.fonts import pillow_fonts
from unmask.report.pictures import contact_sheet


def font_with(characters: str, path: Path) -> Path:
    """A font whose glyphs are all a wide black box."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 700), (900, 700), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord(c): "box" for c in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "box": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts._fonts_for.cache_clear()
    monkeypatch.setattr(fonts, "_told", set())


def draw(folder: Path, names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_chart(np.eye(len(names), dtype=np.int64), names, folder / "confusion.png", title=names[0])
        contact_sheet(np.zeros((1, 8, 8, 1), np.uint8), folder / "sheet.png", captions=["\n".join(names)])


def test_a_font_that_has_the_characters_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(font_with("猫狗고", tmp_path / "UnmaskCJK.ttf")), str(font_with("猫", tmp_path / "UnmaskBold.ttf"))]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files[::-1])
    draw(tmp_path, ["猫 cat", "狗", "고", "Käfer łódź", "plain"])
    assert capsys.readouterr().out == ""
    font_of = pillow_fonts(13, ["猫", "łódź", "plain"])
    assert [font_of(text).getname()[0] for text in ("猫", "łódź")] == ["UnmaskCJK", "DejaVu Sans"]
    assert font_of("猫").getlength("猫") == 13


def test_without_one_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf")])
    for _ in range(2):
        draw(tmp_path, ["猫", "狗"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "no font here has 狗猫" in line
    assert "Noto Sans CJK" in line
