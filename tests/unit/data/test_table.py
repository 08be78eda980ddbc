"""Tables of names: sorted, joined and renamed as Python's own bytes are."""

import itertools
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.sources.table import Table, TableBuilder

# Few letters, so that names begin alike, end in zeros and are there twice; some longer than one or two words.
NAMES = st.lists(st.lists(st.sampled_from([b"\0", b"a", b"b/", b"\xff", b"prefix--"]), max_size=6).map(b"".join))


def build(names: list[bytes]) -> TableBuilder:
    rows = TableBuilder("row", "small", narrow=["small"])
    for row, name in enumerate(names):
        rows.add(name, row << 40, -row)
    return rows


def listed(table: Table) -> list[tuple[bytes, int, int]]:
    columns = (table.columns[key].tolist() for key in ("row", "small"))
    return list(zip(map(table.name, range(len(table))), *columns, strict=True))


@given(NAMES)
def test_sorted_is_as_python_sorts(names: list[bytes]):
    table = build(names).sorted(of="the table")
    assert listed(table) == sorted(
        listed(build(names).build()), key=lambda row: row[0]
    )  # stable: of one name, as added
    assert len(table.names) == sum(map(len, names))
    assert table.meta == {"of": "the table"}


@given(NAMES)
def test_repeated_and_taken_rows(names: list[bytes]):
    table = build(names).sorted()
    ordered = sorted(names)
    repeated = [a == b for a, b in itertools.pairwise(ordered)] + [False] * bool(names)
    assert table.repeated().tolist() == repeated
    assert [name for name, _, _ in listed(table.take(~table.repeated()))] == sorted(set(names))
    backwards = np.arange(len(names))[::-1]
    assert listed(table.take(backwards)) == listed(table)[::-1]


@given(NAMES, st.sampled_from([[b"", b"x"], [b"a longer one/", b"\xff/", b""]]))
def test_prefixes_come_and_go(names: list[bytes], prefixes: list[bytes]):
    table = build(names).build()
    which = np.arange(len(names)) % len(prefixes)
    longer = table.with_prefix(prefixes, which)
    assert listed(longer) == [(prefixes[row % len(prefixes)] + name, row << 40, -row) for row, name in enumerate(names)]
    assert listed(table.with_prefix([b"folder/"], which * 0).without_prefix(7)) == listed(table)


@given(st.lists(NAMES, max_size=4))
def test_extended_is_as_added(parts: list[list[bytes]]):
    rows = build([])
    for part in parts:
        rows.extend(build(part))
    whole = rows.build()
    assert [name for name, _, _ in listed(whole)] == [name for part in parts for name in part]
    assert whole.columns["row"].tolist() == [row << 40 for part in parts for row in range(len(part))]


def test_sorting_takes_little_memory():
    """No object for each row, and no second table: what a million images need is a matter of these bytes."""
    count = 50_000
    names = [f"n{i % 100:08}/n{i % 100:08}_{i * 7919 % count:05}.JPEG".encode() for i in range(count)]
    rows = build(names)
    tracemalloc.start()
    try:
        table = rows.sorted()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.name(0) == min(names)
    assert peak < count * (len(names[0]) + 48)
