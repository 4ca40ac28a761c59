"""Event files: AEDAT 2.0 and 3.1, N-MNIST records, NumPy arrays. What is written is read; what is damaged is named."""

import io
import json
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hwsim.data.aedat as aedat
import hwsim.data.event_array as event_array
from hwsim.config import DataError
from hwsim.data.aedat import AEDAT2, AEDAT31, PACKET, aedat_format
from hwsim.data.aedat_write import aedat2_bytes, aedat31_bytes
from hwsim.data.event_array import NMNIST, cut_columns, read_npy, read_npz
from hwsim.data.event_stream import Events, source_in_memory
from hwsim.data.recording import index

GOLDEN = json.loads((Path(__file__).parent / "golden" / "event.json").read_text())
SENSOR = (128, 128)
HEADER31 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
HEADER2 = b"#!AER-DAT2.0\r\n# made by hand\r\n"


H = len(HEADER31)


def peak_of(work):
    """The most bytes that Python and NumPy held at once while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read(form, payload, sensor=SENSOR):
    return Events.join([events for _, events in form.scan(io.BytesIO(payload), "file", sensor)])


def rows(events):
    return np.stack([events.t_us, events.x, events.y, events.p], 1).tolist()


def packet(events, overflow=0, kind=1, **changed):
    """A 3.1 packet of (data, time) words."""
    fields = dict(type=kind, source=1, size=8, ts_offset=4, ts_overflow=overflow, capacity=len(events),
                  number=len(events), valid=len(events)) | changed  # fmt: skip
    head = np.array([tuple(fields[name] for name in PACKET.names)], PACKET).tobytes()
    return head + b"".join(struct.pack("<II", *e) for e in events)


def word(x, y, p, valid=1):
    return x << 17 | y << 2 | p << 1 | valid


def events_of(n, seed=0, last=10**6, sensor=128):
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, last, n))
    return Events(t, random.integers(0, sensor, n), random.integers(0, sensor, n), random.integers(0, 2, n))


def nmnist_bytes(events):
    t = events.t_us
    columns = [events.x, events.y, events.p.astype(int) << 7 | t >> 16, t >> 8 & 255, t & 255]
    return np.stack(columns, 1).astype(np.uint8).tobytes()


@st.composite
def any_events(draw, last=2**33, pixels=128, ordered=False):
    n = draw(st.integers(1, 40))
    t = sorted(draw(st.lists(st.integers(0, last), min_size=n, max_size=n)))
    xy = st.lists(st.integers(0, pixels - 1), min_size=n, max_size=n)
    return Events(t, draw(xy), draw(xy), draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))


# --- AEDAT 3.1 ----------------------------------------------------------------------------------------------------


def test_aedat31_matches_the_golden_vector():
    golden = GOLDEN["gesture_aedat31"]
    assert rows(read(AEDAT31, bytes.fromhex(golden["hex"]))) == golden["expected"]


@given(any_events(last=2**34), st.lists(st.integers(1, 9), max_size=6))
def test_aedat31_gives_back_what_was_written_in_any_packets(events, packets):
    assert rows(read(AEDAT31, aedat31_bytes(events, packets))) == rows(events)
    assert rows(read(AEDAT31, aedat31_bytes(events, 3))) == rows(events)


def test_aedat31_packets_have_the_sizes_asked_for():
    payload = aedat31_bytes(events_of(10), [4, 1])
    blocks = [block for block, _ in AEDAT31.scan(io.BytesIO(payload), "file", SENSOR)]
    assert [b.size for b in blocks] == [32, 8, 40]


def test_aedat31_counts_time_overflows_in_the_packet_header():
    payload = HEADER31 + packet([(word(1, 2, 0), 2**31 - 1)]) + packet([(word(1, 2, 1), 3)], overflow=1)
    assert rows(read(AEDAT31, payload)) == [[2**31 - 1, 1, 2, 0], [2**31 + 3, 1, 2, 1]]


def test_aedat31_leaves_out_invalid_events_and_other_packets_and_counts_the_first():
    other = packet([(0xFFFFFFFF, 0xFFFFFFFF)] * 3, kind=2)
    payload = HEADER31 + other + packet([(word(1, 2, 0), 5), (word(4000, 9, 1, valid=0), 6)], valid=1) + other
    found = list(AEDAT31.scan(io.BytesIO(payload), "file", SENSOR))
    assert [rows(events) for _, events in found] == [[[5, 1, 2, 0]]] and found[0][0].left_out == 1


@pytest.mark.parametrize(
    "payload, message",
    [
        (b"", "byte 0: found an empty file"),
        (b"\x00\x01", "byte 0: found 00, expected '#!AER-DAT3.1'"),
        (b"#!AER-DAT2.0\r\n", "byte 0: found '#!AER-DAT2.0', expected '#!AER-DAT3.1'"),
        (b"#!AER-DAT3.1\r\n#Format: SerializedTS\r\n", "byte 14: found '#Format: SerializedTS'; only RAW is read"),
        (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "byte 28: the text header has no #!END-HEADER"),
        (HEADER31, f"ends at byte {H + 0} without any event"),
        (HEADER31 + packet([]), f"ends at byte {H + 28} without any event"),
        (HEADER31 + packet([(word(1, 2, 0, valid=0), 5)], valid=0), f"ends at byte {H + 36} without any event"),
        (HEADER31 + packet([(1, 2)], type=999), f"byte {H + 0}: not a packet header: found event type 999"),
        (HEADER31 + packet([(1, 2)], size=16), f"byte {H + 0}: .* polarity events of 16 bytes with the time at 4"),
        (HEADER31 + packet([(1, 2)], ts_offset=0), f"byte {H + 0}: .* of 8 bytes with the time at 0, expected 8 and 4"),
        (HEADER31 + packet([(1, 2)], valid=2), f"byte {H + 0}: .* 2 valid of 1 events in room for 1"),
        (HEADER31 + packet([(1, 2)], capacity=0), f"byte {H + 0}: .* 1 valid of 1 events in room for 0"),
        (HEADER31 + packet([(1, 2)], kind=3, size=0, number=2, capacity=2), f"byte {H + 0}: .* 2 events of 0 bytes"),
        (HEADER31 + packet([(1, 2), (1, 2**31)]), f"byte {H + 40}: found time 2147483648"),
        (HEADER31 + packet([(1, 2), (word(127, 128, 0), 2)]), rf"byte {H + 36}: found an event at pixel \(127, 128\)"),
        (HEADER31 + packet([(1, 2), (word(128, 127, 0), 2)]), rf"byte {H + 36}: found an event at pixel \(128, 127\)"),
        (b"#!AER-DAT3.1\r\n" + b"#" * 9000, "byte 14: a header line without an end"),
    ],
)
def test_a_damaged_aedat31_file_is_named_with_the_byte(payload, message):
    with pytest.raises(DataError, match=f"^file: .*{message}"):
        read(AEDAT31, payload)


def boundaries31(payload):
    """Where a 3.1 file may be cut so that what is left is a whole file with an event in it."""
    ends, at = set(), payload.index(b"#!END-HEADER\r\n") + 14
    while at < len(payload):
        at += 28 + 8 * int(np.frombuffer(payload, PACKET, 1, at)[0]["number"])
        ends.add(at)
    return ends


def test_aedat31_cut_at_any_byte_is_refused_with_that_byte():
    payload = aedat31_bytes(events_of(7), [3, 2])
    whole = boundaries31(payload)
    assert len(whole) == 3 and len(payload) in whole
    header = payload.index(b"#!END-HEADER\r\n") + 14
    for cut in range(len(payload) + 1):
        if cut in whole:
            assert len(read(AEDAT31, payload[:cut])) in (3, 5, 7)
            continue
        with pytest.raises(DataError, match="^file: ") as e:
            read(AEDAT31, payload[:cut])
        numbers = [int(n) for n in re.findall(r"byte (\d+)", str(e.value))]
        # Inside the text the beginning of the broken line is named, after it the very end.
        assert numbers and (cut in numbers or cut < header and max(numbers) <= cut)


# --- AEDAT 2.0 ----------------------------------------------------------------------------------------------------


def test_aedat2_bits_are_those_of_the_dvs128():
    records = [(5 << 8 | 3 << 1 | 0, 100), (127 << 8 | 127 << 1 | 1, 1500), (0, 2600)]
    payload = HEADER2 + b"".join(struct.pack(">II", *r) for r in records)
    assert rows(read(AEDAT2, payload)) == [[100, 3, 5, 1], [1500, 127, 127, 0], [2600, 0, 0, 1]]


@given(any_events(last=2**31 - 1))
def test_aedat2_gives_back_what_was_written(events):
    assert rows(read(AEDAT2, aedat2_bytes(events))) == rows(events)


@pytest.mark.parametrize("block", [1, 2, 5, 8192])
def test_aedat2_times_go_on_growing_past_32_bits_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(aedat, "BLOCK_EVENTS", block)
    t = np.array([2**32 - 2000, 2**32 - 1, 2**32 + 5, 2**32 + 2**31, 2**33 - 7, 2**33 + 7, 2**33 + 3, 2**33 + 9])
    events = Events(t, t % 128, t % 127, t % 2)
    assert rows(read(AEDAT2, aedat2_bytes(events))) == rows(events)


def test_aedat2_special_records_are_left_out_and_counted():
    payload = HEADER2 + struct.pack(">6I", 2, 10, 0x8000, 11, 4, 12)
    ((block, events),) = AEDAT2.scan(io.BytesIO(payload), "file", SENSOR)
    assert rows(events) == [[10, 1, 0, 1], [12, 2, 0, 1]] and block.left_out == 1


@pytest.mark.parametrize(
    "payload, message",
    [
        (b"", "byte 0: found an empty file"),
        (b"#!AER-DAT3.1\r\n", "byte 0: found '#!AER-DAT3.1', expected '#!AER-DAT2.0'"),
        (HEADER2, "ends at byte 30 without any event"),
        (HEADER2 + struct.pack(">II", 0x8000, 1), "ends at byte 38 without any event"),
        (HEADER2 + struct.pack(">4I", 1, 1, 0x10000, 2), "byte 38: found address 0x00010000"),
    ],
)
def test_a_damaged_aedat2_file_is_named_with_the_byte(payload, message):
    with pytest.raises(DataError, match=f"^file: .*{message}"):
        read(AEDAT2, payload)


def test_aedat2_of_a_smaller_sensor_is_checked_against_it():
    with pytest.raises(DataError, match=r"byte 42: found an event at pixel \(3, 35\), the sensor has 35 x 35"):
        read(AEDAT2, aedat2_bytes(Events([1, 2], [3, 3], [34, 35], [0, 1])), (35, 35))


def test_aedat2_cut_at_any_byte_is_refused_with_that_byte():
    payload = aedat2_bytes(events_of(5))
    begin = len(payload) - 40
    for cut in range(len(payload)):
        if cut > begin and (cut - begin) % 8 == 0:
            assert len(read(AEDAT2, payload[:cut])) == (cut - begin) // 8
            continue
        with pytest.raises(DataError, match="^file: ") as e:
            read(AEDAT2, payload[:cut])
        numbers = [int(n) for n in re.findall(r"byte (\d+)", str(e.value))]
        assert numbers and (cut in numbers or cut < begin and max(numbers) <= cut)


def test_the_version_is_told_from_the_first_line():
    for payload, form in ((aedat2_bytes(events_of(1)), AEDAT2), (aedat31_bytes(events_of(1)), AEDAT31)):
        assert aedat_format(io.BytesIO(payload), "file") is form
    with pytest.raises(DataError, match="^file: byte 0: found '#!AER-DAT4.0'; AEDAT files of version 2.0 and 3.1"):
        aedat_format(io.BytesIO(b"#!AER-DAT4.0\r\n"), "file")


def test_the_writers_refuse_what_a_format_cannot_hold():
    with pytest.raises(DataError, match="7 bits"):
        aedat2_bytes(Events([0], [128], [0], [0]))
    with pytest.raises(DataError, match="13 bits"):
        aedat31_bytes(Events([0], [0], [8192], [0]))


# --- constant memory and random access ----------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """A header, then `repeats` times the same bytes; never as a whole in memory."""

    def __init__(self, header, piece, repeats):
        self.ahead, self.piece, self.left, self.at = header, piece * 2, repeats * len(piece), 0

    def readable(self):
        return True

    def readinto(self, out):
        n = min(len(out), 4096, len(self.ahead) or self.left)
        if self.ahead:
            out[:n], self.ahead = self.ahead[:n], self.ahead[n:]
            return n
        out[:n] = self.piece[self.at : self.at + n]
        self.at, self.left = (self.at + n) % (len(self.piece) // 2), self.left - n
        return n


@pytest.mark.parametrize("form", ["2.0", "3.1", "one huge packet", "N-MNIST"])
def test_a_long_file_is_read_in_constant_memory(form):
    events = events_of(4096, last=2**16, sensor=34)
    piece, header, reader = {
        "2.0": (aedat2_bytes(events)[-8 * 4096 :], HEADER2, AEDAT2),
        "3.1": (aedat31_bytes(events, 4096)[-8 * 4096 - 28 :], HEADER31, AEDAT31),
        "one huge packet": (aedat31_bytes(events, 4096)[-8 * 4096 :], b"", AEDAT31),
        "N-MNIST": (nmnist_bytes(events), b"", NMNIST),
    }[form]  # fmt: skip
    peaks = []
    for repeats in (6, 60):
        if form == "one huge packet":
            header = HEADER31 + packet([], number=4096 * repeats, capacity=4096 * repeats, valid=0)
        file = io.BufferedReader(Endless(header, piece, repeats))
        count = []
        peaks.append(peak_of(lambda: count.append(sum(len(e) for _, e in reader.scan(file, "file", SENSOR)))))  # noqa: B023
        assert count == [4096 * repeats]
    assert peaks[1] < 1.1 * peaks[0] + 50_000 and peaks[1] < 4_000_000


def test_a_header_that_claims_four_billion_events_costs_no_memory():
    payload = HEADER31 + packet([(1, 2)], number=2**32 - 1, capacity=2**32 - 1)

    def refused():
        with pytest.raises(DataError, match=f"ends at byte {H + 36}, inside a packet that begins at byte {H}"):
            read(AEDAT31, payload)

    assert peak_of(refused) < 1_000_000


@pytest.mark.parametrize("form", [AEDAT2, AEDAT31, NMNIST], ids=lambda f: f.name)
@given(data=st.data())
def test_any_stretch_of_an_indexed_file_is_what_a_whole_reading_gives(form, data):
    pixels, last = (34, 2**23 - 1) if form is NMNIST else (128, 2**33)
    events = data.draw(any_events(last=last, pixels=pixels))
    if form is AEDAT2:  # The first time is all that the file says of the time before it.
        events = Events(events.t_us - events.t_us[0] + 2**32 - 50, events.x, events.y, events.p)
        events = events.take(np.append(True, np.diff(events.t_us) < 2**31).cumprod().astype(bool))
    writer = {AEDAT2: aedat2_bytes, AEDAT31: lambda e: aedat31_bytes(e, 3), NMNIST: nmnist_bytes}[form]
    module = event_array if form is NMNIST else aedat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_EVENTS", data.draw(st.integers(1, 7)))
        found = index(source_in_memory("file", writer(events)), form, SENSOR)
    near = np.unique(np.concatenate([events.t_us, events.t_us + 1])).tolist()
    times = st.one_of(st.sampled_from(near), st.integers(0, 2**34))
    start, stop = data.draw(times), data.draw(times)
    assert rows(found.store.between(start, stop)) == [r for r in rows(events) if start <= r[0] < stop]
    assert (found.whole.count, found.whole.first_us, found.whole.last_us) == (len(events), *events.t_us[[0, -1]])


@given(any_events(last=300), st.lists(st.tuples(st.integers(-2, 301), st.integers(0, 60)), min_size=1, max_size=5))
def test_an_index_measures_stretches_of_time_as_a_whole_reading_does(events, stretches):
    events = events.take(np.random.default_rng(len(events)).permutation(len(events)))  # files need not be in order
    spans = [(start, start + length) for start, length in stretches]
    given_first = []

    def asked(first_us):
        given_first.append(first_us)
        return spans

    found = index(source_in_memory("file", aedat31_bytes(events, 2)), AEDAT31, SENSOR, asked)
    assert given_first == [events.t_us[0]]
    for span, (start, stop) in zip(found.spans, spans, strict=True):
        inside = [t for t in events.t_us.tolist() if start <= t < stop]
        assert span.count == len(inside)
        assert not inside or (span.first_us, span.last_us) == (min(inside), max(inside))


def test_a_file_that_gets_shorter_after_it_was_indexed_is_refused():
    payload = [aedat31_bytes(events_of(20), 5)]
    source = source_in_memory("file", b"")._replace(open=lambda: io.BytesIO(payload[0]))
    store = index(source, AEDAT31, SENSOR).store
    payload[0] = payload[0][:-1]
    with pytest.raises(DataError, match="file: the file got shorter while it was in use"):
        store.between(0, 10**6)


def test_the_checksum_of_an_index_sees_every_column():
    events = events_of(20)
    sums = {index(source_in_memory("f", aedat31_bytes(events)), AEDAT31, SENSOR).sha256}
    assert sums == {index(source_in_memory("f", aedat31_bytes(events, 3)), AEDAT31, SENSOR).sha256}
    for column in ("t_us", "x", "y", "p"):
        changed = {c: getattr(events, c).copy() for c in ("t_us", "x", "y", "p")}
        changed[column][7] ^= 1
        sums.add(index(source_in_memory("f", aedat31_bytes(Events(**changed))), AEDAT31, SENSOR).sha256)
    assert len(sums) == 5


# --- N-MNIST and NumPy --------------------------------------------------------------------------------------------


@given(any_events(last=2**23 - 1, pixels=34))
def test_nmnist_gives_back_what_was_written(events):
    assert rows(read(NMNIST, nmnist_bytes(events), (34, 34))) == rows(events)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_nmnist_overflow_marks_move_all_later_times(monkeypatch, block):
    monkeypatch.setattr(event_array, "BLOCK_EVENTS", block)
    payload = bytes([1, 2, 0, 0, 9, 0, 240, 0, 0, 0, 3, 4, 128, 0, 1, 0, 240, 0, 0, 0, 5, 6, 0, 1, 0])
    assert rows(read(NMNIST, payload, (34, 34))) == [[9, 1, 2, 0], [8193, 3, 4, 1], [16384 + 256, 5, 6, 0]]


def test_nmnist_cut_at_any_byte_is_refused_with_that_byte():
    payload = nmnist_bytes(events_of(4, sensor=34))
    for cut in range(len(payload)):
        if cut and cut % 5 == 0:
            continue
        with pytest.raises(DataError, match=rf"^file: the file ends at byte {cut}\b"):
            read(NMNIST, payload[:cut])


def test_nmnist_off_the_sensor_is_named_with_the_byte():
    with pytest.raises(DataError, match=r"byte 5: found an event at pixel \(34, 0\), the sensor has 34 x 34"):
        read(NMNIST, bytes(5) + bytes([34, 0, 0, 0, 0]), (34, 34))


def test_npy_files_of_all_usual_forms_are_read(tmp_path):
    want = [[5, 1, 2, 1], [9, 3, 4, 0]]
    named = np.array([(1, 2, 1, 5), (3, 4, 0, 9)], [("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])
    long = np.array([(5, 1, 2, 1), (9, 3, 4, -1)], [("timestamp", "u4"), ("x", "u1"), ("y", "u1"), ("polarity", "i1")])
    for array, options in (
        (named, {}), (long, {}), (np.array(want), {}), (np.array(want, np.float32), {}),
        (np.array([[1, 2, 5, 1], [3, 4, 9, 0]]), {"order": "xytp"}),
        (np.array([[0.005, 1, 2, 1], [0.009, 3, 4, 0]]), {"unit_us": 1000}),
    ):  # fmt: skip
        np.save(tmp_path / "e.npy", array)
        assert rows(read_npy(tmp_path / "e.npy", (35, 35), **options)) == want
    np.save(tmp_path / "e.npy", np.array([[5, 1, 2]]))
    assert rows(read_npy(tmp_path / "e.npy", (35, 35), order="txy")) == [[5, 1, 2, 1]]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([[5, 1, 2]]), r"int64 \[1, 3\], expected numbers \[N, 4\]"),
        (np.zeros(4), r"float64 \[4\], expected numbers"),
        (np.zeros((0, 4)), "there is no event in it"),
        (np.array([[5, 1, 2, 1], [-1, 1, 2, 1]]), "event 1 of 2: found -1 as time"),
        (np.array([[5, 1, 2, 1], [5, 35, 2, 1]]), r"event 1 of 2: found 35 as x \(0\.\.34\)"),
        (np.array([[5, 1, -2, 1]]), r"event 0 of 1: found -2 as y"),
        (np.array([[5, 1.5, 2, 1]]), r"event 0 of 1: found 1\.5 as x"),
        (np.array([[5, 1, 2, 2]]), "event 0 of 1: found 2 as polarity"),
        (np.array([[np.nan, 1, 2, 1]]), "found nan as time"),
        (np.array([(1, 2)], [("x", "i2"), ("y", "i2")]), "found the fields x, y; there is no t"),
    ],
)
def test_an_array_that_holds_no_events_is_explained(tmp_path, array, message):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(DataError, match=rf"e\.npy: .*{message}"):
        read_npy(tmp_path / "e.npy", (35, 35))


def test_pickled_truncated_or_missing_arrays_are_refused(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"e\.npy: not a readable array of events"):
        read_npy(path, (35, 35))
    np.save(path, np.ones((9, 4), int))
    size = path.stat().st_size
    for cut in (0, 5, 60, size - 1):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DataError, match=rf"e\.npy: not a readable array of events, or truncated at byte {cut}"):
            read_npy(path, (35, 35))
        np.save(path, np.ones((9, 4), int))
    with pytest.raises(DataError, match="none.npy: cannot be read"):
        read_npy(tmp_path / "none.npy", (35, 35))


def test_npz_columns_are_cut_into_recordings(tmp_path):
    columns = dict(x=[1, 2, 3], y=[4, 5, 6], dt=[7, 1, 2], offset=[0, 1, 3], label=[1, 0])
    np.savez(tmp_path / "e.npz", **{f"a_{k}": np.array(v) for k, v in columns.items()}, other=np.zeros(1))
    found = list(cut_columns(read_npz(tmp_path / "e.npz"), "a_", "e.npz"))
    assert [(c["t"].tolist(), c["x"].tolist(), label) for c, label in found] == [([7], [1], 1), ([1, 3], [2, 3], 0)]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"offset": [0, 3]}, "'offset' does not cut 3 events into 2 recordings"),
        ({"offset": [0, 1, 4]}, "'offset' does not cut 3 events into 2"),
        ({"offset": [0, 3, 3]}, "'offset' does not cut"),
        ({"x": None}, "there is no array 'x'; there is label, offset, t, y"),
        ({"t": None}, "there is no array 't'"),
    ],
)
def test_npz_columns_that_disagree_are_explained(changed, message):
    columns = dict(x=[1, 2, 3], y=[4, 5, 6], t=[7, 1, 2], offset=[0, 1, 3], label=[1, 0]) | changed
    with pytest.raises(DataError, match=rf"e\.npz: .*{message}"):
        list(cut_columns({k: np.array(v) for k, v in columns.items() if v is not None}, "", "e.npz"))


def test_a_damaged_npz_file_is_refused(tmp_path):
    path = tmp_path / "e.npz"
    np.savez(path, x=np.arange(1000))
    payload = bytearray(path.read_bytes())
    payload[500] ^= 1
    for bad in (bytes(payload), bytes(payload[:700]), b""):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"e\.npz: not a readable \.npz file"):
            read_npz(path)
