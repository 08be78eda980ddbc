from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from unmask.report.atlas import Atlas
from unmask.report.page import Blobs, page


def decoded(html: str, name: str) -> bytes:
    found = re.search(rf'id="{name}" data-kind="[^"]+">([^<]*)<', html)
    assert found is not None
    return base64.b64decode(found[1])


def test_data_cannot_leave_its_element() -> None:
    hostile = "</script><script>alert(1)</script> @@SCRIPT@@ 猫"
    text = page("report", ("report.js",), {"name": hostile}, Blobs())
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert found is not None
    assert json.loads(found[1]) == {"name": hostile}
    assert "猫" in text
    assert text.count("</script>") == 2


def test_a_page_asks_for_nothing_outside() -> None:
    text = page("report", ("charts.js", "classes.js", "map.js", "report.js"), {}, Blobs())
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("count", [1, 5, 450])
def test_each_thumbnail_is_in_its_place(count: int) -> None:
    blobs = Blobs()
    atlas = Atlas(count, blobs)
    greys = np.linspace(0, 255, count).astype(np.uint8)
    for some in np.array_split(greys, 3):
        atlas.add(np.broadcast_to(some[:, None, None, None], (len(some), 100, 50, 1)))
    facts, html = atlas.finished(), blobs.html()
    side, columns = facts["side"], facts["columns"]
    sheets = [np.asarray(Image.open(io.BytesIO(decoded(html, name))).convert("L")) for name in facts["sheets"]]
    assert len(sheets) == -(-count // columns**2)
    for number, grey in enumerate(greys):
        row, column = divmod(number % columns**2, columns)
        middle = sheets[number // columns**2][row * side + side // 2, column * side + side // 2]
        assert abs(int(middle) - int(grey)) < 6
