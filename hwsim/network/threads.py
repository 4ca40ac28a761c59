"""How the CPU kernels are compiled, and their threads: numba's own pool, as large as torch's."""

import threading

import numba
import torch

PARALLEL = {"parallel": True, "cache": True, "nogil": True, "error_model": "numpy"}
"""Settings of numba.njit for every kernel: prange on threads, compiled code kept on disk, no checks of divisors."""


_known = threading.local()
"""`torch`: how many threads torch had when this thread last gave numba as many."""


def share_threads() -> None:
    """Let numba use as many threads as torch. Its first use would otherwise set torch's own number to all cores."""
    threads = torch.get_num_threads()
    if getattr(_known, "torch", None) == threads:
        return
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    _known.torch = threads
