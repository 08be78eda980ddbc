from pathlib import Path

import pytest

from unmask.files import aside, sha256, written_aside


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("before")
    for cache in (False, True):
        with pytest.raises(KeyboardInterrupt), written_aside(path, cache=cache) as there:  # noqa: PT012
            there.write_text("ha")
            raise KeyboardInterrupt
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.json", "before")]
        with written_aside(path, cache=cache) as there:
            assert there.name.startswith(".tmp-")
            there.write_text("after")
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.json", "after")]
        path.write_text("before")


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    aside(tmp_path / "x").write_text("half of something longer")
    with written_aside(tmp_path / "x") as there:
        there.write_text("whole")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "whole")]


def test_two_writers_of_a_cache_file_do_not_meet(tmp_path: Path) -> None:
    with written_aside(tmp_path / "x", cache=True) as first, written_aside(tmp_path / "x", cache=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "first")]


def test_the_checksum_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
