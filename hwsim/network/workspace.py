"""Large tensors of the CPU kernels, taken from buffers that are used again.

A fresh page of memory costs a fault and its zeroing, which for tensors that hold all T steps of a layer is as dear as
working on them. A buffer goes back to the workspace when the last tensor on it has died, so two live tensors never
share one; a tensor takes the smallest free buffer that holds it, so that layers of all sizes share the same few. What a
process once needed stays with it until `trim` or `release`.
"""

import bisect
import math
import weakref

import numpy as np
import torch

SMALLEST = 2**20
"""Bytes from which on a tensor comes from the workspace; smaller ones are cheap to allocate."""
LITTLE = 2**26
"""Bytes of unused buffers that may wait for ever."""


class _Waiting(list[np.ndarray]):
    """Free buffers, the smallest first."""

    def add(self, buffer: np.ndarray) -> None:
        bisect.insort(self, buffer, key=len)

    def take(self, size: int) -> np.ndarray | None:
        """The smallest that holds `size` bytes."""
        at = bisect.bisect_left(self, size, key=len)
        return self.pop(at) if at < len(self) else None


_free = _Waiting()


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized CPU tensor, like torch.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype)
    waiting = _free
    buffer = waiting.take(size)
    if buffer is None:
        buffer = np.empty(size, np.uint8)
    array = buffer[:size].view(str(dtype).removeprefix("torch.")).reshape(shape)
    # torch keeps `array` as long as any tensor on its memory lives; its end hands the buffer back.
    weakref.finalize(array, waiting.add, buffer).atexit = False
    return torch.from_numpy(array)


def trim(above: int = LITTLE) -> None:
    """Give the unused buffers back if they are more than a few: what comes next has tensors of other sizes."""
    if sum(map(len, _free)) > above:
        _free.clear()


def release() -> None:
    """Give the buffers back to the system: the unused ones now, each of the others when its tensor dies."""
    global _free
    _free = _Waiting()
