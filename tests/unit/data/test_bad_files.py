from pathlib import Path

import numpy as np
import pytest

from unmask.data.batch import Batch
from unmask.data.loader.bad_files import BadFiles
from unmask.data.sources.bundled import ArraySource
from unmask.errors import DataError

SOURCE = ArraySource("n", np.zeros((1000, 1, 1, 1), np.uint8), np.zeros(1000, np.int64), ("a", "b"))

WHY = "it is {}".format


def batch(*bad: int) -> Batch:
    return Batch(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64), bad=np.array(bad, np.int64))


def test_distinct_images_are_listed(tmp_path: Path):
    bad_files = BadFiles(SOURCE, 0.01, tmp_path / "bad_files.txt", WHY)
    for found in (batch(), batch(3, 5, 3), batch(5), batch(7), Batch(batch().images, batch().index)):
        bad_files.add(bad_files.new(found))
    assert len(bad_files) == 3
    assert (tmp_path / "bad_files.txt").read_text() == "n/3\tit is 3\nn/5\tit is 5\nn/7\tit is 7\n"


def test_no_file_without_bad_images(tmp_path: Path):
    BadFiles(SOURCE, 0, tmp_path / "bad_files.txt", WHY).add([])
    assert not list(tmp_path.iterdir())


def test_resumed_run_goes_on_with_the_list(tmp_path: Path):
    BadFiles(SOURCE, 0.002, tmp_path / "bad_files.txt", WHY).add([3, 5])
    resumed = BadFiles(SOURCE, 0.002, tmp_path / "bad_files.txt", WHY)
    resumed.add([3])
    assert len(resumed) == 2
    with pytest.raises(DataError):
        resumed.add([4])


def test_too_many_stop_the_run(tmp_path: Path):
    bad_files = BadFiles(SOURCE, 0.002, tmp_path / "bad_files.txt", WHY)
    bad_files.add([1, 2])
    with pytest.raises(DataError) as caught:
        bad_files.add([3])
    assert str(caught.value) == (
        "3 of 1000 images (0.30%) cannot be decoded, more than data.max_bad_share=0.002; "
        f"they are listed in {tmp_path / 'bad_files.txt'}. Set that higher and the same command goes on"
    )
    assert (tmp_path / "bad_files.txt").read_text() == "n/1\tit is 1\nn/2\tit is 2\nn/3\tit is 3\n"
