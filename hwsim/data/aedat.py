"""AEDAT, the event files of jAER and cAER: version 2.0 (Slow-Poker-DVS, Poker-DVS) and 3.1 (DVS Gesture).

Both begin with text lines that start with `#`. 2.0 goes on with pairs of big-endian words (address, time), 3.1 with
packets of little-endian ones. Times are microseconds. `aedat_write.py` writes what is read here.

A file that was cut exactly between two events (2.0) or packets (3.1) is a shorter, valid file; what asks for events
behind the cut (a label file) finds that out.

Source: the formats' specification (https://docs.inivation.com, "AEDAT file formats"); addresses of the DVS128 as in
the preparation of both data sets by Schaefer and Joshi, ICONS 2020.
"""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from hwsim.config import DataError
from hwsim.data.event_stream import BLOCK_EVENTS, Block, Events, Format, no_events, on_sensor, read_up_to, truncated

PACKET = np.dtype(
    [("type", "<u2"), ("source", "<u2"), ("size", "<u4"), ("ts_offset", "<u4"), ("ts_overflow", "<u4")]
    + [("capacity", "<u4"), ("number", "<u4"), ("valid", "<u4")]
)
"""The header of a 3.1 packet, 28 bytes."""
POLARITY = 1
LARGEST_TYPE = 15
LONGEST_LINE = 4096
SPECIAL, BEYOND_DVS128 = 0x8000, 0xFFFF0000


def _header(file: BinaryIO, where: str, version: str) -> tuple[int, bytes]:
    """Read the text lines; returns the offset behind them and what was read of that already (2.0: one byte)."""
    offset, last_line = 0, "#!END-HEADER" if version == "3.1" else None
    while (start := file.read(1)) == b"#":
        line = start + file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise DataError(f"{where}: byte {offset}: a header line without an end; truncated, or no AEDAT file")
        text = line.decode("latin-1").strip()
        if offset == 0 and text != f"#!AER-DAT{version}":
            raise DataError(f"{where}: byte 0: found '{text[:40]}', expected '#!AER-DAT{version}'")
        if text.lower().startswith("#format:") and text[8:].strip().upper() != "RAW":
            raise DataError(f"{where}: byte {offset}: found '{text[:40]}'; only RAW is read; save it uncompressed")
        offset += len(line)
        if text == last_line:
            return offset, b""
    if offset == 0:
        raise DataError(f"{where}: byte 0: found {start.hex() or 'an empty file'}, expected '#!AER-DAT{version}'")
    if last_line:
        raise DataError(f"{where}: byte {offset}: the text header has no {last_line} line; truncated, or damaged")
    return offset, start


def _wrapped(difference: np.ndarray) -> np.ndarray:
    """Differences of 32-bit times, nearest to 0: what they were before the counter overflowed."""
    return (difference.astype(np.int64) + (1 << 31)) % (1 << 32) - (1 << 31)


def _decode2(payload: bytes, base_us: int) -> Events:
    """x = bits 1-7, y = bits 8-14, ON where bit 0 is clear; bit 15 marks a special record. base_us: the first time."""
    raw = np.frombuffer(payload, ">u4").reshape(-1, 2).astype(np.int64)
    address = raw[:, 0]
    t = base_us + np.concatenate([[0], _wrapped(np.diff(raw[:, 1])).cumsum()])
    camera = (address & SPECIAL) == 0
    return Events(t, (address & 0xFE) >> 1, (address & 0x7F00) >> 8, 1 - (address & 1)).take(camera)


def _scan2(file: BinaryIO, where: str, sensor: tuple[int, int]) -> Iterator[tuple[Block, Events]]:
    """Times that pass 2^32 us (71.6 minutes) go on growing; one that falls back a little stays as it is."""
    offset, ahead = _header(file, where, "2.0")
    word, t, found = None, 0, False  # The time of the record before: as stored, and unwrapped.
    while payload := ahead + read_up_to(file, 8 * BLOCK_EVENTS - len(ahead)):
        ahead, whole = b"", len(payload) - len(payload) % 8
        if whole < len(payload):
            raise truncated(where, offset + len(payload), "an event", offset + whole, 8)
        raw = np.frombuffer(payload, ">u4").reshape(-1, 2)
        if (beyond := np.flatnonzero(raw[:, 0] & BEYOND_DVS128)).size:
            i = int(beyond[0])
            raise DataError(
                f"{where}: byte {offset + 8 * i}: found address {int(raw[i, 0]):#010x}; a 128 x 128 sensor's has 16"
                " bits; the file is damaged or of another sensor"
            )
        camera = (raw[:, 0] & SPECIAL) == 0
        pixels = np.where(camera, raw[:, 0], 0)
        on_sensor((pixels & 0xFE) >> 1, (pixels & 0x7F00) >> 8, sensor, offset, 8, where)
        stamp = raw[:, 1].astype(np.int64)
        if word is None:
            word = t = int(stamp[0])
        since = _wrapped(np.diff(stamp, prepend=word))
        base, t = t + int(since[0]), t + int(since.sum())
        word, found = int(stamp[-1]), found or bool(camera.any())
        yield Block(offset, whole, base, int((~camera).sum())), _decode2(payload, base)
        offset += whole
    if not found:
        raise no_events(where, offset)


def _decode31(payload: bytes, base_us: int) -> Events:
    """x = bits 17-29, y = bits 2-14, ON where bit 1 is set, valid where bit 0 is. base_us: overflows x 2^31."""
    raw = np.frombuffer(payload, "<u4").reshape(-1, 2)
    data = raw[:, 0]
    events = Events(base_us + raw[:, 1].astype(np.int64), data >> 17 & 0x1FFF, data >> 2 & 0x1FFF, data >> 1 & 1)
    return events.take((data & 1) == 1)


def _scan31(file: BinaryIO, where: str, sensor: tuple[int, int]) -> Iterator[tuple[Block, Events]]:
    """Packets of other types than polarity are passed over (the reference would read them as pixels)."""
    offset, found = _header(file, where, "3.1")[0], False
    while head := read_up_to(file, PACKET.itemsize):
        if len(head) < PACKET.itemsize:
            raise truncated(where, offset + len(head), "a packet header", offset, PACKET.itemsize)
        packet = {name: int(value) for name, value in zip(PACKET.names, np.frombuffer(head, PACKET)[0], strict=True)}
        _check_packet(packet, offset, where)
        begin = offset
        offset += PACKET.itemsize
        end = offset + packet["number"] * packet["size"]
        while offset < end:
            payload = read_up_to(file, min(end - offset, 8 * BLOCK_EVENTS))
            if offset + len(payload) < min(end, offset + 8 * BLOCK_EVENTS):
                raise truncated(where, offset + len(payload), "a packet", begin, end - begin)
            if packet["type"] == POLARITY:
                raw = np.frombuffer(payload, "<u4").reshape(-1, 2)
                if (negative := np.flatnonzero(raw[:, 1] >> 31)).size:
                    i = int(negative[0])
                    raise DataError(
                        f"{where}: byte {offset + 8 * i + 4}: found time {int(raw[i, 1])}, the largest is 2147483647"
                        " (overflows are counted in the packet header); the file is damaged"
                    )
                camera = (raw[:, 0] & 1) == 1
                pixels = np.where(camera, raw[:, 0], 0)
                on_sensor(pixels >> 17 & 0x1FFF, pixels >> 2 & 0x1FFF, sensor, offset, 8, where)
                base, found = packet["ts_overflow"] << 31, found or bool(camera.any())
                yield Block(offset, len(payload), base, int((~camera).sum())), _decode31(payload, base)
            offset += len(payload)
    if not found:
        raise no_events(where, offset)


def _check_packet(packet: dict[str, int], offset: int, where: str) -> None:
    """Refuse what cannot be a packet header, so that a damaged file is not read as noise."""
    number, capacity, valid = packet["number"], packet["capacity"], packet["valid"]
    wrong = ""
    if packet["type"] > LARGEST_TYPE:
        wrong = f"event type {packet['type']}, the largest known is {LARGEST_TYPE}"
    elif packet["type"] == POLARITY and (packet["size"], packet["ts_offset"]) != (8, 4):
        wrong = f"polarity events of {packet['size']} bytes with the time at {packet['ts_offset']}, expected 8 and 4"
    elif not valid <= number <= capacity:
        wrong = f"{valid} valid of {number} events in room for {capacity}"
    elif number and packet["size"] == 0:
        wrong = f"{number} events of 0 bytes"
    if wrong:
        raise DataError(f"{where}: byte {offset}: not a packet header: found {wrong}; the file is damaged")


AEDAT2 = Format("AEDAT 2.0", _scan2, _decode2)
AEDAT31 = Format("AEDAT 3.1", _scan31, _decode31)


def aedat_format(file: BinaryIO, where: str) -> Format:
    """AEDAT 2.0 or 3.1, by the first line; the file is read from its present position.

    Raises `DataError` for another version or no AEDAT file.
    """
    line = file.readline(LONGEST_LINE).decode("latin-1").strip()
    for version, form in (("2.0", AEDAT2), ("3.1", AEDAT31)):
        if line == f"#!AER-DAT{version}":
            return form
    raise DataError(f"{where}: byte 0: found '{line[:40]}'; AEDAT files of version 2.0 and 3.1 are read")
