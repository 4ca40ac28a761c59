"""Recordings: a label and the events that belong to it, in memory or in a file that is read again at every use.

A file is read through once (`index`): every byte is checked, its checksum taken, and the place and time span of each
block remembered. After that a stretch of time costs one read of the blocks that it touches. A data set of any size
needs the memory of one window of one recording, and a table of 32 bytes for 8192 events or one packet.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hwsim.config import DataError
from hwsim.data.event_stream import Events, Format, Source


class Store(Protocol):
    """Where events lie."""

    def between(self, start_us: int, stop_us: int) -> Events:
        """The events with start_us <= t < stop_us, in their order."""
        ...


@dataclass(frozen=True, eq=False)
class InFile:
    """The events of a file, by the table that `index` made of it."""

    source: Source
    format: Format
    blocks: np.ndarray
    """int64 [blocks, 5]: offset, size in bytes, base time, first and last time in microseconds."""

    def between(self, start_us: int, stop_us: int) -> Events:
        """The events with start_us <= t < stop_us, in the file's order.

        Raises `DataError` when the file is no longer what it was when it was indexed.
        """
        chosen = self.blocks[(self.blocks[:, 4] >= start_us) & (self.blocks[:, 3] < stop_us)]
        parts = []
        try:
            with self.source.open() as file:
                for offset, size, base_us, _, _ in chosen.tolist():
                    file.seek(offset)
                    if len(payload := file.read(size)) != size:
                        raise DataError(f"{self.source.where}: the file got shorter while it was in use")
                    parts.append(self.format.decode(payload, base_us).between(start_us, stop_us))
        except OSError as e:
            raise DataError(f"{self.source.where}: cannot be read: {e.strerror or e}") from None
        return Events.join(parts)


@dataclass
class Span:
    """A stretch of time of a file, and what was found in it: start_us <= t < stop_us."""

    start_us: int
    stop_us: int
    count: int = 0
    first_us: int = 0
    last_us: int = 0

    def see(self, t_us: np.ndarray) -> None:
        """Take note of a block's times."""
        inside = t_us[(t_us >= self.start_us) & (t_us < self.stop_us)]
        if len(inside):
            first, last = int(inside.min()), int(inside.max())
            self.first_us = min(self.first_us, first) if self.count else first
            self.last_us = max(self.last_us, last) if self.count else last
            self.count += len(inside)


@dataclass
class Index:
    """What one reading of a file found."""

    store: InFile
    whole: Span
    spans: list[Span]
    left_out: int
    """Records that are no events of the camera."""
    sha256: str = field(repr=False)


def _packed(events: Events) -> bytes:
    """Event after event, so that a checksum does not depend on how a file was cut into blocks."""
    rows = np.empty(len(events), [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
    rows["t"], rows["x"], rows["y"], rows["p"] = events.t_us, events.x, events.y, events.p
    return rows.tobytes()


def index(
    source: Source,
    form: Format,
    sensor: tuple[int, int],
    spans: Callable[[int], Sequence[tuple[int, int]]] = lambda first_us: (),
) -> Index:
    """Read a file through once, in constant memory.

    spans: called with the time of the file's first event; the stretches (start_us, stop_us) to measure.
    Raises `DataError` with the byte offset of the first thing that is wrong.
    """
    rows, left_out, digest = [], 0, hashlib.sha256()
    whole, parts = Span(-(2**62), 2**62), None
    try:
        with source.open() as file:
            for block, events in form.scan(file, source.where, sensor):
                left_out += block.left_out
                digest.update(_packed(events))
                if not len(events):
                    continue
                if parts is None:
                    parts = [Span(start, stop) for start, stop in spans(int(events.t_us[0]))]
                low, high = int(events.t_us.min()), int(events.t_us.max())
                rows.append((block.offset, block.size, block.base_us, low, high))
                whole.see(events.t_us)
                for part in parts:
                    if part.start_us <= high and part.stop_us > low:
                        part.see(events.t_us)
    except OSError as e:
        raise DataError(f"{source.where}: cannot be read: {e.strerror or e}") from None
    blocks = np.array(rows, np.int64).reshape(-1, 5)
    return Index(InFile(source, form, blocks), whole, parts or [], left_out, digest.hexdigest())


@dataclass(frozen=True, eq=False)
class Recording:
    """One labelled stretch of events. Its millisecond 0 begins at `zero_us` of its store's clock."""

    name: str
    label: int
    store: Store
    zero_us: int
    start_us: int
    """No event before this time belongs to it."""
    stop_us: int
    """No event at or after this time belongs to it."""
    length_ms: int
    """Windows fit into this many milliseconds."""
    count: int
    """Events."""
    checksum: str = field(repr=False)
    """Of the file or arrays that hold it."""
    group: str = ""
    """Recordings of one group (a person, a file) must not be on both sides of a split."""

    def between_ms(self, start_ms: int, length_ms: int) -> Events:
        """The events of milliseconds start_ms .. start_ms + length_ms - 1, with `t_us` counted from `zero_us`.

        The millisecond of an event is floor(t / 1000) on that clock.
        """
        low, high = (self.zero_us + 1000 * t for t in (start_ms, start_ms + length_ms))
        events = self.store.between(max(low, self.start_us), min(high, self.stop_us))
        return Events(events.t_us - self.zero_us, events.x, events.y, events.p)


def held(name: str, label: int, events: Events, length_ms: int | None = None, group: str = "") -> Recording:
    """A recording of events in memory; its clock starts at 0.

    length_ms: without it, up to the last event.
    """
    stop = int(events.t_us.max()) + 1
    length = -(-stop // 1000) if length_ms is None else length_ms
    return Recording(
        name, label, events, 0, 0, stop, length, len(events), hashlib.sha256(_packed(events)).hexdigest(), group
    )


def whole_file(name: str, label: int, source: Source, form: Format, sensor: tuple[int, int]) -> Recording:
    """A file that is one recording, with the file's own clock from 0 or, in AEDAT files, from the first event."""
    found = index(source, form, sensor)
    zero = 0 if form.name == "N-MNIST" else found.whole.first_us
    first, stop = found.whole.first_us, found.whole.last_us + 1
    length = (found.whole.last_us - zero) // 1000 + 1
    return Recording(name, label, found.store, zero, first, stop, length, found.whole.count, found.sha256)
