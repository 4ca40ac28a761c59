"""What lives in memory while a run goes on: a ledger of tensors that are taken and dropped, and its highest state.

On the CPU large tensors of the kernels lie in buffers that are used again (`network/workspace`, whose rule is followed
here), those of middle size in the heap of the C library, which is treated alike; the largest come and go. On CUDA all
come and go: the allocator reuses what is free.
"""

import bisect
from dataclasses import dataclass, field

from hwsim.network.workspace import LITTLE, SMALLEST

IDLE = "buffers that wait"
HEAP = 2**25
"""Bytes up to which the C library keeps freed memory for itself; larger tensors go back to the system at once."""
TOP = 3 * HEAP
"""Bytes that it keeps at the most: glibc twice that size at its end, and by measurement half as much within."""


@dataclass
class Block:
    """A tensor: what it is, its bytes, and those of the buffer that it lies in (0: in none)."""

    what: str
    size: int
    buffer: int = 0
    pool: list[int] = field(default_factory=list)
    """Where that buffer waits when the tensor has died."""


@dataclass
class Peak:
    """The highest state: its bytes, the stage and the work at that time, and the bytes of every part."""

    total: int = 0
    stage: str = ""
    work: str = ""
    parts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Tensors that live now. `at` says where a run is; `peaks` holds the highest state of each (stage, work)."""

    def __init__(self, has_buffers: bool):
        self.has_buffers = has_buffers
        self.at = ("", "")
        self.peaks: dict[tuple[str, str], Peak] = {}
        self._live: dict[str, int] = {}
        self._buffers: list[int] = []
        self._heap: list[int] = []
        self._total = 0

    def take(self, what: str, size: float, *, of_kernels: bool = False) -> Block:
        """A tensor that lives until it is dropped. of_kernels: it comes from `workspace.empty`."""
        size = round(size)
        block = Block(what, size)
        if self.has_buffers and size >= SMALLEST and (of_kernels or size < HEAP):
            block.pool = self._buffers if of_kernels else self._heap
            i = bisect.bisect_left(block.pool, size)
            if i < len(block.pool):
                block.buffer = block.pool.pop(i)
            else:
                block.buffer = size
                self._total += size
        else:
            self._total += size
        self._live[what] = self._live.get(what, 0) + size
        self._note()
        return block

    def drop(self, *blocks: Block) -> None:
        """These tensors die."""
        for block in blocks:
            self._live[block.what] -= block.size
            if block.buffer:
                bisect.insort(block.pool, block.buffer)
                while block.pool is self._heap and sum(self._heap) > TOP:
                    self._total -= self._heap.pop()
            else:
                self._total -= block.size

    def touch(self, what: str, size: float, *, of_kernels: bool = False) -> None:
        """A tensor that lives for a moment."""
        self.drop(self.take(what, size, of_kernels=of_kernels))

    def trim(self) -> None:
        """The buffers that wait are given back, as `workspace.trim` does between phases of a run."""
        if sum(self._buffers) > LITTLE:
            self._total -= sum(self._buffers)
            self._buffers.clear()

    @property
    def highest(self) -> Peak:
        """The highest state of all."""
        return max(self.peaks.values(), key=lambda p: p.total, default=Peak())

    def _note(self) -> None:
        if self._total > self.peaks.get(self.at, Peak()).total:
            parts = {k: v for k, v in self._live.items() if v}
            if idle := self._total - sum(parts.values()):
                parts[IDLE] = idle
            self.peaks[self.at] = Peak(self._total, *self.at, parts)
