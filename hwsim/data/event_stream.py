"""Events, and how a file of them is read: once from beginning to end to check it, then any span of it again.

N events. Every format (`aedat.py`, `event_array.py`) is a pair of functions: `scan` reads a file in blocks of bounded
size and checks every byte of it, `decode` turns one block's bytes into events again. Neither needs more memory than
one block, however long the file is or claims to be.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hwsim.config import DataError

BLOCK_EVENTS = 8192
"""A scan holds at most this many events at once."""


@dataclass(frozen=True, eq=False)
class Events:
    """N events of a camera: `t_us` int64 [N] microseconds, `x` and `y` uint16 [N], `p` uint8 [N].

    p is 1 where the pixel got brighter (ON) and 0 where it got darker (OFF).
    """

    t_us: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("t_us", np.int64), ("x", np.uint16), ("y", np.uint16), ("p", np.uint8)):
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype(kind, copy=False))
        lengths = {len(self.t_us), len(self.x), len(self.y), len(self.p)}
        assert len(lengths) == 1, f"columns of {sorted(lengths)} events"

    def __len__(self) -> int:
        return len(self.t_us)

    def take(self, chosen: np.ndarray | slice) -> "Events":
        """The events at these positions, or where a mask is true."""
        return Events(self.t_us[chosen], self.x[chosen], self.y[chosen], self.p[chosen])

    def between(self, start_us: int, stop_us: int) -> "Events":
        """The events with start_us <= t < stop_us, in their order."""
        return self.take((self.t_us >= start_us) & (self.t_us < stop_us))

    @staticmethod
    def join(parts: list["Events"]) -> "Events":
        """Parts one after the other; no part at all is no event."""
        columns = ("t_us", "x", "y", "p")
        return Events(*(np.concatenate([getattr(e, c) for e in parts] or [np.empty(0)]) for c in columns))


class Block(NamedTuple):
    """Where a run of events lies in a file, and what its bytes alone do not say."""

    offset: int
    """Byte of the first event."""
    size: int
    """Bytes."""
    base_us: int
    """What the format's `decode` needs to know of the time before: see there."""
    left_out: int
    """Records that are no events of the camera (marked invalid, special, overflow marks)."""


class Source(NamedTuple):
    """Bytes with a name for messages: a file on disk or something in memory."""

    where: str
    open: Callable[[], BinaryIO]


def source_of(path: Path) -> Source:
    """A file on disk; it is opened at each reading and closed after it."""
    return Source(str(path), lambda: open(path, "rb"))


def source_in_memory(where: str, payload: bytes) -> Source:
    """Bytes that never were on disk."""
    return Source(where, lambda: io.BytesIO(payload))


@dataclass(frozen=True)
class Format:
    """A file format of events."""

    name: str
    scan: Callable[[BinaryIO, str, tuple[int, int]], Iterator[tuple[Block, Events]]]
    """scan(file, where, sensor (X, Y)): every block from the beginning, with its events; raises `DataError` with the
    byte offset of the first thing that is wrong. The events are those that `decode` gives for the block's bytes."""
    decode: Callable[[bytes, int], Events]
    """decode(payload, base_us): the events of one block."""


def read_up_to(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, or fewer only where the file ends."""
    payload = file.read(size)
    while len(payload) < size and (more := file.read(size - len(payload))):
        payload += more
    return payload


def truncated(where: str, end: int, what: str, begins: int, size: int) -> DataError:
    """The error for a file that ends inside something; `end`, `begins` are byte offsets."""
    return DataError(
        f"{where}: the file ends at byte {end}, inside {what} that begins at byte {begins} and has {size} bytes; it is"
        " truncated; get it again"
    )


def on_sensor(x: np.ndarray, y: np.ndarray, sensor: tuple[int, int], offset: int, stride: int, where: str) -> None:
    """Check that every record's pixel lies on a sensor of X x Y pixels; record i begins at byte offset + i stride."""
    outside = np.flatnonzero((x >= sensor[0]) | (y >= sensor[1]))
    if len(outside):
        i = int(outside[0])
        raise DataError(
            f"{where}: byte {offset + i * stride}: found an event at pixel ({int(x[i])}, {int(y[i])}), the sensor has"
            f" {sensor[0]} x {sensor[1]}; the file is damaged or of another sensor"
        )


def no_events(where: str, offset: int) -> DataError:
    """The error for a file that ends without an event."""
    return DataError(f"{where}: the file ends at byte {offset} without any event; it is empty or truncated")
