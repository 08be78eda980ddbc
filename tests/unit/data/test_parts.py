"""Work in shares: told or from a launcher's environment, in parts that do not depend on their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.data.parts import MOST_PARTS, Parts, Share, ends_of
from unmask.errors import ConfigError, DataError

JOB = {"settings": {"size": 1}}


def parts_in(folder: Path, share: Share = Share()) -> Parts:  # noqa: B008
    return Parts(str(folder / "parts"), JOB, share, place=str(folder))


@pytest.mark.parametrize("told", ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", "1/9999999999"])
def test_what_is_no_share(told: str) -> None:
    with pytest.raises(ConfigError, match="from 1/100 to 100/100"):
        Share.of(told)


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("RANK_ID", "RANK_SIZE")])
def test_processes_of_a_launcher_divide_the_share_that_is_told(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of 3 tasks, each of which starts 4 processes, is 12 shares."""
    assert Share.of() == Share(0, 1)
    assert Share.of("2/3") == Share(1, 3)
    monkeypatch.setenv(names[1], "4")
    found = []
    for rank in range(4):
        monkeypatch.setenv(names[0], str(rank))
        assert Share.of() == Share(rank, 4)
        found += [Share.of(f"{task}/3") for task in (1, 2, 3)]
    assert sorted(share.index for share in found) == list(range(12))
    assert {share.count for share in found} == {12}


@pytest.mark.parametrize("out", ["s3://", "s3:", "obs:///"])
def test_a_store_without_a_folder_is_refused(out: str) -> None:
    """It would be a folder here that is called `s3:`."""
    with pytest.raises(ConfigError, match="such as s3://BUCKET/FOLDER"):
        Parts(f"{out}/.parts", JOB, Share(), place=out)


@pytest.mark.parametrize("total", [1, 63, 1024, 1025, 10**6, 10**8, 10**10 + 1])
def test_parts_are_whole_batches_and_never_too_many(total: int) -> None:
    ends = ends_of(total, 64)
    assert ends[-1] == total
    assert len(ends) <= MOST_PARTS
    assert all(end % 64 == 0 for end in ends[:-1])
    assert ends == sorted(set(ends))
    assert total > 16 * 64 * MOST_PARTS or ends[0] == min(16 * 64, total)


def test_each_part_is_in_one_share(tmp_path: Path) -> None:
    for count in (1, 2, 3, 30):
        shares = [parts_in(tmp_path, Share(index, count)) for index in range(count)]
        found = []
        for parts in shares:
            with parts.begun(lambda: ends_of(20_000, 64)):
                found += parts.todo()
        assert sorted(found) == list(range(20))


def test_the_plan_is_that_of_who_came_first(tmp_path: Path) -> None:
    """Where it depends on more than the images, as sizes after another version's JPEG encoder do."""
    with parts_in(tmp_path, Share(0, 2)).begun(lambda: [3, 5]):
        pass
    second = parts_in(tmp_path, Share(1, 2))
    with second.begun(lambda: [4, 5]):
        assert second.ends == [3, 5]
    assert json.loads((tmp_path / "parts" / "job.json").read_text())["ends"] == [3, 5]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"start": 0, "stop": 2}', '{"start": 0}', "null"])
def test_a_part_whose_record_is_damaged_is_done_again(damage: str, tmp_path: Path) -> None:
    parts = parts_in(tmp_path)
    with parts.begun(lambda: [1, 2]):
        parts.record(0, {})
        parts.record(1, {})
        assert parts.todo() == []
        (tmp_path / "parts" / "000000.json").write_text(damage)
        assert parts.todo() == [0]
        with pytest.raises(DataError, match="part 0 is gone or damaged"):
            list(parts.records())


@pytest.mark.parametrize("damage", ["", "{", "null", '{"settings": {"size": 1}}', '{"settings": 1}'])
def test_a_damaged_plan_is_one_line(damage: str, tmp_path: Path) -> None:
    with parts_in(tmp_path).begun(lambda: [1, 2]):
        pass
    (tmp_path / "parts" / "job.json").write_text(damage)
    with (
        pytest.raises((ConfigError, DataError), match=r"holds another result|job\.json is damaged; remove"),
        parts_in(tmp_path).begun(lambda: [1, 2]),
    ):
        pass


def test_leftovers_of_a_killed_share_are_overwritten_and_go_in_the_end(tmp_path: Path) -> None:
    parts = parts_in(tmp_path)
    with parts.begun(lambda: [1, 2]):
        with parts.part(0, "a") as (aside, _):
            aside.write_bytes(b"1")
            left = aside.with_name("left")
            left.write_bytes(aside.read_bytes())
        assert (tmp_path / "a").read_bytes() == b"1"
        left.replace(aside)  # as SIGKILL leaves it
        with parts.part(0, "a") as (again, _):
            assert again == aside
            again.write_bytes(b"2")
        assert (tmp_path / "a").read_bytes() == b"2"
        left.write_bytes(b"")
        parts.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
