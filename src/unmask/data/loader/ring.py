"""Shared memory that loader processes write images into, used over and over.

Making shared memory anew for every part costs more than filling it: the kernel clears each page and maps it, in the
process that writes and again in the one that reads.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.loader.left_over import prefix

_PAGE = 4096
_POLL = 0.002
"""Seconds between two looks at whether a slot is free."""


@dataclass(frozen=True, eq=False)
class Ring:
    """Slots for the images of parts: part i goes into slot i % slots, once the part that was there has been taken.

    Before them stands how many parts were taken, and of each slot the process that writes to it.

    One process makes the ring, takes the parts in order and closes it. Any number of others, which receive it pickled,
    each write one part at a time.
    """

    memory: SharedMemory
    slots: int
    shape: tuple[int, ...]
    """Shape of a slot: (rows, H, W, C)."""
    dtype: str

    @classmethod
    def make(cls, slots: int, shape: tuple[int, ...], dtype: str) -> Ring:
        """Raises OSError where there is not as much shared memory."""
        size = _head(slots) + slots * math.prod(shape) * np.dtype(dtype).itemsize
        token = prefix()
        name = token and f"{token}-{secrets.token_hex(4)}"
        memory = SharedMemory(name, create=True, size=size)
        try:
            if hasattr(os, "posix_fallocate"):  # else whoever writes where there is no room dies by SIGBUS
                os.posix_fallocate(getattr(memory, "_fd"), 0, size)  # noqa: B009 (not public)
        except OSError:
            memory.unlink()
            memory.close()
            raise
        return cls(memory, slots, shape, dtype)

    def slot(self, part: int) -> NDArray[Any]:
        """Waits until the slot of a part is free; the array to write the part's images to: (rows, H, W, C)."""
        self._counts[1 + part % self.slots] = os.getpid()
        while part >= self._counts[0] + self.slots:
            time.sleep(_POLL)
        return self._images(part)

    def take(self, part: int, out: NDArray[Any]) -> None:
        """Copy the images of a part to `out` (n <= rows, H, W, C), and free its slot."""
        out[:] = self._images(part)[: len(out)]
        self._counts[0] = part + 1

    def writer(self, part: int) -> int:
        """The process that wrote last to the slot of a part, or waits for it; 0 where there was none."""
        return int(self._counts[1 + part % self.slots])

    def close(self) -> None:
        """Give the memory back, once no other process writes."""
        self.memory.unlink()
        self.memory.close()

    def release(self) -> None:
        """Let no process wait any longer: what is written from now on is not read."""
        self._counts[0] = np.iinfo(np.int64).max - self.slots

    # Arrays are made anew each time, for memory cannot be closed while there are any; and by frombuffer, for ndarray()
    # would not tell the memory of them.

    @property
    def _counts(self) -> NDArray[np.int64]:
        """(1 + slots,) How many parts were taken; the writer of each slot."""
        return self._array(np.dtype(np.int64), 1 + self.slots, 0)

    def _images(self, part: int) -> NDArray[Any]:
        dtype, values = np.dtype(self.dtype), math.prod(self.shape)
        start = _head(self.slots) + part % self.slots * values * dtype.itemsize
        return self._array(dtype, values, start).reshape(self.shape)

    def _array(self, dtype: np.dtype[Any], values: int, start: int) -> NDArray[Any]:
        assert self.memory.buf is not None  # not closed
        return np.frombuffer(self.memory.buf, dtype, values, start)


def _head(slots: int) -> int:
    """Bytes before the first slot: whole pages, so that slots of whole pages share none."""
    return -(-8 * (1 + slots) // _PAGE) * _PAGE
