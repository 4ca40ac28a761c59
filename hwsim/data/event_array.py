"""Event files that are no AEDAT: N-MNIST's five-byte records and NumPy arrays.

N events.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hwsim.config import DataError
from hwsim.data.event_stream import BLOCK_EVENTS, Block, Events, Format, no_events, on_sensor, read_up_to, truncated

OVERFLOW_ROW, OVERFLOW_US = 240, 1 << 13
"""A record with y = 240 is no pixel: it says that all later times are this many microseconds further on."""


def _records(payload: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The records as int64 [N, 5], and which of them are overflow marks."""
    raw = np.frombuffer(payload, np.uint8).reshape(-1, 5).astype(np.int64)
    return raw, raw[:, 1] == OVERFLOW_ROW


def _decode5(payload: bytes, base_us: int) -> Events:
    """Bytes x, y, then 1 bit polarity and 23 bits time, big-endian. base_us: overflows so far x 2^13."""
    raw, mark = _records(payload)
    t = (raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]
    return Events(base_us + OVERFLOW_US * mark.cumsum() + t, raw[:, 0], raw[:, 1], raw[:, 2] >> 7).take(~mark)


def _scan5(file: BinaryIO, where: str, sensor: tuple[int, int]) -> Iterator[tuple[Block, Events]]:
    offset, base, found = 0, 0, False
    while payload := read_up_to(file, 5 * BLOCK_EVENTS):
        whole = len(payload) - len(payload) % 5
        if whole < len(payload):
            raise truncated(where, offset + len(payload), "an event", offset + whole, 5)
        raw, mark = _records(payload)
        on_sensor(np.where(mark, 0, raw[:, 0]), np.where(mark, 0, raw[:, 1]), sensor, offset, 5, where)
        yield Block(offset, whole, base, int(mark.sum())), _decode5(payload, base)
        base, offset, found = base + OVERFLOW_US * int(mark.sum()), offset + whole, found or not mark.all()
    if not found:
        raise no_events(where, offset)


NMNIST = Format("N-MNIST", _scan5, _decode5)
"""Source: Orchard et al., Front. Neurosci. 9:437, 2015, and the data set's page (overflow marks)."""

NAMES = {"t": ("t", "ts", "t_us", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity")}


def read_npy(path: Path, sensor: tuple[int, int], order: str = "txyp", unit_us: float = 1.0) -> Events:
    """A .npy file of events: a structured array with fields t, x, y and p, or whole numbers [N, columns].

    order: what the columns of a plain array are; without a p all events are ON.   unit_us: one unit of t.
    A polarity may be 0 and 1 or -1 and 1. Pickled arrays are refused.
    Raises `DataError`: a file that is no such array, is truncated, or has events off the sensor.
    """
    where = str(path)
    try:
        payload = path.read_bytes()
        array = np.load(io.BytesIO(payload), allow_pickle=False)
    except OSError as e:
        raise DataError(f"{where}: cannot be read: {e.strerror or e}") from None
    except (ValueError, EOFError) as e:
        raise DataError(f"{where}: not a readable array of events, or truncated at byte {len(payload)}: {e}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where}: found an archive of arrays (.npz), expected one array (.npy)")
    if array.dtype.names:
        found = {c: next((n for n in names if n in array.dtype.names), None) for c, names in NAMES.items()}
        if lacking := [c for c in "txy" if found[c] is None]:
            raise DataError(f"{where}: found the fields {', '.join(array.dtype.names)}; there is no {lacking[0]}")
        columns = {c: array[n] for c, n in found.items() if n}
    else:
        if array.ndim != 2 or array.shape[1] != len(order) or array.dtype.kind not in "iuf":
            raise DataError(f"{where}: found {array.dtype} {list(array.shape)}, expected numbers [N, {len(order)}]"
                            f" with the columns {', '.join(order)}")  # fmt: skip
        columns = dict(zip(order, array.T, strict=True))
    return checked_columns(columns, sensor, where, unit_us)


def checked_columns(
    columns: dict[str, np.ndarray], sensor: tuple[int, int], where: str, unit_us: float = 1.0
) -> Events:
    """Columns t, x, y (and p) of any number type as events.

    Raises `DataError` naming the first event with a pixel off the sensor, a time below 0 or an unknown polarity.
    """
    t, x, y = (np.asarray(columns[c]) for c in "txy")
    p = np.asarray(columns.get("p", np.ones(len(t), np.uint8)))
    if len({len(t), len(x), len(y), len(p)}) > 1:
        found = f"{len(t)} times, {len(x)} x, {len(y)} y and {len(p)} polarities"
        raise DataError(f"{where}: found {found}; every event needs one of each")
    if not len(t):
        raise DataError(f"{where}: there is no event in it")
    checks = (
        (~((t >= 0) & (t * unit_us < 2**62)), t, "time"),
        (~((x >= 0) & (x < sensor[0]) & (x == np.floor(x))), x, f"x (0..{sensor[0] - 1})"),
        (~((y >= 0) & (y < sensor[1]) & (y == np.floor(y))), y, f"y (0..{sensor[1] - 1})"),
        (~np.isin(p, (-1, 0, 1)), p, "polarity (0 or 1; or -1 and 1)"),
    )
    for wrong, values, what in checks:
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise DataError(f"{where}: event {i} of {len(t)}: found {values[i]} as {what}")
    return Events(np.rint(t * unit_us) if unit_us != 1 else t, x, y, p > 0)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; pickled ones are refused, every member's checksum is verified."""
    try:
        payload = path.read_bytes()
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from None
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path}: not a readable .npz file ({len(payload)} bytes): {e}") from None


def cut_columns(arrays: dict[str, np.ndarray], prefix: str, where: str) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The recordings of arrays that hold many one after the other, each as (columns t, x, y and p, label).

    arrays: `x`, `y`, `t` (or `dt`, differences of times), perhaps `p`; `offset` [N + 1], where each recording begins;
    `label` [N]; every name with `prefix` before it.
    """
    a = {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}
    if lacking := [n for n in ("x", "y", "offset", "label") if n not in a] + ["t"] * (not {"t", "dt"} & set(a)):
        raise DataError(f"{where}: there is no array '{prefix}{lacking[0]}'; there is {', '.join(sorted(arrays))}")
    offset, n = a["offset"].astype(np.int64), len(a["x"])
    if len(offset) != len(a["label"]) + 1 or offset[0] != 0 or offset[-1] != n or (np.diff(offset) <= 0).any():
        raise DataError(f"{where}: '{prefix}offset' does not cut {n} events into {len(a['label'])} recordings")
    for i, label in enumerate(a["label"]):
        piece = slice(offset[i], offset[i + 1])
        columns = {c: a[c][piece] for c in "xyp" if c in a}
        columns["t"] = a["t"][piece] if "t" in a else a["dt"][piece].cumsum(dtype=np.int64)
        yield columns, int(label)
