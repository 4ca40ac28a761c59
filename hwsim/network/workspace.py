"""Large tensors of the CPU kernels, taken from buffers that are used again.

A fresh page of memory costs a fault and its zeroing, which for tensors that hold all T steps of a layer is as dear as
working on them. A buffer goes back to the workspace when the last tensor on it has died, so two live tensors never
share one; what a process once needed stays with it until `release`.
"""

import math
import weakref

import numpy as np
import torch

SMALLEST = 2**20
"""Bytes from which on a tensor comes from the workspace; smaller ones are cheap to allocate."""

_free: dict[int, list[np.ndarray]] = {}


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized CPU tensor, like torch.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype)
    waiting = _free.setdefault(size, [])
    buffer = waiting.pop() if waiting else np.empty(size, np.uint8)
    array = buffer.view(str(dtype).removeprefix("torch.")).reshape(shape)
    # torch keeps `array` as long as any tensor on its memory lives; its end hands the buffer back.
    weakref.finalize(array, waiting.append, buffer).atexit = False
    return torch.from_numpy(array)


def release() -> None:
    """Give the buffers back to the system: the unused ones now, each of the others when its tensor dies."""
    _free.clear()
