"""Records on disk: computed part by part, and refused to another job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from unmask.data.parts import Share
from unmask.errors import CheckpointError, ConfigError, UnmaskError
from unmask.evaluate.resumable import collect

DTYPE = np.dtype([("valid", "?"), ("value", "<f4", (3,))])
JOB = {"settings": {"model": "a"}}
IMAGES = 300
"""Five parts of 16 batches of 4; the last is shorter."""


class Numbers:
    """Computes records in batches of 4, and may break off."""

    def __init__(self, fails_at: int = IMAGES) -> None:
        self.fails_at = fails_at
        self.computed: list[int] = []

    def __call__(self, spans: Sequence[range]) -> Iterator[np.ndarray]:
        for span in spans:
            for first in range(span.start, span.stop, 4):
                if first >= self.fails_at:
                    raise RuntimeError("broken off")
                self.computed.append(first)
                numbers = np.arange(first, min(first + 4, span.stop))
                records = np.empty(len(numbers), DTYPE)
                records["valid"], records["value"] = numbers % 5 != 0, numbers[:, None] + [0, 0.25, 0.5]
                yield records


def gather(
    folder: Path, compute: Numbers, job: dict[str, dict[str, str]] = JOB, share: Share | None = None
) -> np.ndarray | None:
    kind = {} if share is None else {"share": share}
    found = collect(folder, job, DTYPE, IMAGES, compute, batch_size=4, title="count", **kind)
    return None if found is None else np.array(found)


def test_what_was_broken_off_goes_on_after_the_last_whole_part(tmp_path: Path) -> None:
    expected = gather(tmp_path / "whole", Numbers())
    assert expected is not None
    assert expected["value"][:, 0].tolist() == list(range(IMAGES))
    with pytest.raises(RuntimeError):
        gather(tmp_path / "part", Numbers(fails_at=150))
    again = Numbers()
    np.testing.assert_array_equal(gather(tmp_path / "part", again), expected)
    assert again.computed == list(range(128, IMAGES, 4))
    assert not list((tmp_path / "part").glob("0*.bin"))


@pytest.mark.parametrize("torn", ["cut", "gone"])
def test_a_part_whose_file_is_not_as_recorded_is_computed_again(torn: str, tmp_path: Path) -> None:
    expected = gather(tmp_path / "whole", Numbers())
    with pytest.raises(RuntimeError):
        gather(tmp_path / "part", Numbers(fails_at=200))
    file = tmp_path / "part" / "000001.bin"
    file.write_bytes(file.read_bytes()[:-1]) if torn == "cut" else file.unlink()
    again = Numbers()
    np.testing.assert_array_equal(gather(tmp_path / "part", again), expected)
    assert again.computed == [*range(64, 128, 4), *range(192, IMAGES, 4)]


def test_finished_records_are_not_computed_again(tmp_path: Path) -> None:
    expected = gather(tmp_path, Numbers())
    again = Numbers()
    np.testing.assert_array_equal(gather(tmp_path, again), expected)
    assert again.computed == []


def test_another_job_is_refused(tmp_path: Path) -> None:
    gather(tmp_path, Numbers())
    with pytest.raises(ConfigError, match=r"holds another result \(model a, not b\)"):
        gather(tmp_path, Numbers(), {"settings": {"model": "b"}})


def test_two_processes_cannot_have_the_same_share(tmp_path: Path) -> None:
    class Second(Numbers):
        def __call__(self, spans: Sequence[range]) -> Iterator[np.ndarray]:
            gather(tmp_path, Numbers())
            return super().__call__(spans)

    with pytest.raises(CheckpointError, match="in use"):
        gather(tmp_path, Second())


@pytest.mark.parametrize(("before", "after"), [((1, 150), 3), ((3, 150), 1), ((2, 100), 5), ((7, 70), 2)])
def test_shares_of_any_number_make_the_same_whole(tmp_path: Path, before: tuple[int, int], after: int) -> None:
    """One number of shares breaks off at an image; another number, in any order, goes on, and the last completes it."""
    expected = gather(tmp_path / "whole", Numbers())
    count, fails_at = before
    for index in range(count):
        try:
            gather(tmp_path / "shared", Numbers(fails_at), share=Share(index, count))
        except RuntimeError as error:
            assert str(error) == "broken off"  # noqa: PT017
    found = [gather(tmp_path / "shared", Numbers(), share=Share(index, after)) for index in reversed(range(after))]
    assert found[0] is None or after < 3  # the others' parts
    np.testing.assert_array_equal(found[-1], expected)
    assert sorted(path.name for path in (tmp_path / "shared").glob("*.bin")) == ["rows.bin"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((UnmaskError, CheckpointError), match="cannot"):
        gather(tmp_path / "file" / "part", Numbers())
