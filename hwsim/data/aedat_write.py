"""Writing AEDAT 2.0 and 3.1: what `aedat.py` reads. Used by the synthetic data set and by tests.

N events, times in microseconds.
"""

from collections.abc import Iterable

import numpy as np

from hwsim.config import DataError
from hwsim.data.aedat import PACKET, POLARITY
from hwsim.data.event_stream import Events


def aedat2_bytes(events: Events) -> bytes:
    """An AEDAT 2.0 file of a 128 x 128 sensor; times are stored modulo 2^32.

    >>> aedat2_bytes(Events([5], [3], [2], [1]))[-8:].hex()
    '0000020600000005'
    """
    if len(events) and max(int(events.x.max()), int(events.y.max())) > 127:
        raise DataError("aedat2_bytes: the address of an AEDAT 2.0 event has 7 bits for x and 7 for y")
    rows = np.empty((len(events), 2), ">u4")
    rows[:, 0] = events.y.astype(np.uint32) << 8 | events.x.astype(np.uint32) << 1 | (events.p == 0)
    rows[:, 1] = events.t_us % (1 << 32)
    return b"#!AER-DAT2.0\r\n# written by hwsim\r\n" + rows.tobytes()


def aedat31_bytes(events: Events, packets: Iterable[int] | int = 4096) -> bytes:
    """An AEDAT 3.1 file with polarity packets.

    packets: events a packet, or the sizes of the first packets (the last one takes what is left). A packet also ends
    where the time passes a multiple of 2^31, because the overflow count stands in its header.
    """
    if len(events) and max(int(events.x.max()), int(events.y.max())) > 0x1FFF:
        raise DataError("aedat31_bytes: a coordinate of an AEDAT 3.1 event has 13 bits")
    rows = np.empty((len(events), 2), "<u4")
    x, y, p = (column.astype(np.uint32) for column in (events.x, events.y, events.p))
    rows[:, 0] = x << 17 | y << 2 | p << 1 | 1
    rows[:, 1] = events.t_us % (1 << 31)
    overflow = events.t_us >> 31
    sizes = range(packets, len(events), packets) if isinstance(packets, int) else np.cumsum(list(packets))
    turns = np.flatnonzero(np.diff(overflow)) + 1
    cuts = sorted({0, len(events), *(int(c) for c in sizes if c < len(events)), *turns.tolist()})
    out = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        n = int(end - begin)
        out.append(np.array([(POLARITY, 1, 8, 4, int(overflow[begin]), n, n, n)], PACKET).tobytes())
        out.append(rows[begin:end].tobytes())
    return b"".join(out)
