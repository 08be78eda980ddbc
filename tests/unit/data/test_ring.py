import multiprocessing
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from unmask.data.loader.ring import Ring

SHAPE = (2, 3, 3, 1)
SLOTS = 3


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.make(SLOTS, SHAPE, "uint16")
    yield ring
    ring.close()


def write(ring: Ring, parts: range) -> None:
    for part in parts:
        ring.slot(part)[:] = part + 1


def taken(ring: Ring, part: int, rows: int = 2) -> np.ndarray:
    out = np.zeros((rows, *SHAPE[1:]), "uint16")
    ring.take(part, out)
    return out


def test_parts_come_as_they_were_written_by_other_processes(ring: Ring):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(ring, range(first, 200, 2))) for first in (0, 1)]
    for writer in writers:
        writer.start()
    for part in range(200):
        while not (ring._images(part) == part + 1).all():  # in real life, something else tells that a part is ready
            assert all(writer.exitcode in (None, 0) for writer in writers)
        assert_array_equal(taken(ring, part), np.full(SHAPE, part + 1))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0


def test_slot_is_written_again_only_when_it_was_taken(ring: Ring):
    write(ring, range(SLOTS))
    writer = threading.Thread(target=write, args=(ring, range(SLOTS, SLOTS + 1)))
    writer.start()
    writer.join(0.1)
    assert writer.is_alive()
    assert_array_equal(taken(ring, 0), np.ones(SHAPE))
    writer.join(10)
    assert not writer.is_alive()
    assert_array_equal(taken(ring, 1), np.full(SHAPE, 2))
    assert_array_equal(taken(ring, SLOTS - 1), np.full(SHAPE, SLOTS))
    assert_array_equal(taken(ring, SLOTS), np.full(SHAPE, SLOTS + 1))


def test_last_part_may_have_fewer_rows(ring: Ring):
    write(ring, range(2))
    assert_array_equal(taken(ring, 1, rows=1), np.full((1, *SHAPE[1:]), 2))


def test_released_writers_wait_no_longer(ring: Ring):
    writer = threading.Thread(target=write, args=(ring, range(10 * SLOTS)))
    writer.start()
    writer.join(0.05)
    assert writer.is_alive()
    ring.release()
    writer.join(10)
    assert not writer.is_alive()


def test_closing_gives_the_memory_back():
    ring = Ring.make(SLOTS, SHAPE, "uint8")
    write(ring, range(2))
    ring.close()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(ring.memory.name)
