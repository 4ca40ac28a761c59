"""Event data sets by name: splits that do not leak, lists and labels that disagree, the synthetic set, real parts."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hwsim.data.event as event
import hwsim.data.event_sets as event_sets
from hwsim.config import DataError
from hwsim.data.aedat_write import aedat2_bytes, aedat31_bytes
from hwsim.data.event import NAMES, labels_of, load_events, windows_for
from hwsim.data.event_stream import Events, source_in_memory
from hwsim.data.shapes import AXES, CLASSES, Scene, extent, moving, shapes_files, write_shapes
from hwsim.data.trials import read_trials
from hwsim.data.windows import Window, batches, bin_events, cut

REAL = Path(os.environ.get("HWSIM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
SMALL = Scene(train_trials=4, test_trials=2, length_ms=60, pause_ms=5)
HEAD = "class,startTime_usec,endTime_usec\n"


@pytest.fixture(scope="module")
def shapes():
    return load_events("shapes", scene=SMALL)


def names(split):
    return {r.name for r in split}


# --- gesture ------------------------------------------------------------------------------------------------------


def trial_files(labels=HEAD + "3,1000,5000\n1,6000,9000\n", t=(100, 1500, 2600, 3700, 6000, 9000), **more):
    """A folder with two trials, the second of which can be changed."""
    n = len(t)
    payload = aedat31_bytes(Events(t, np.arange(n) % 128, np.arange(n) % 128, [1] * n), 2)
    files = {
        "trials_to_train.txt": b"user01_led.aedat\n",
        "trials_to_test.txt": b"user02_led.aedat\r\n\r\n",
        "user01_led.aedat": aedat31_bytes(Events([1, 9], [0, 0], [0, 0], [0, 1])),
        "user01_led_labels.csv": (HEAD + "2,1,9\n").encode(),
        "user02_led.aedat": payload,
        "user02_led_labels.csv": labels.encode(),
    } | more
    return {name: source_in_memory(name, content) for name, content in files.items() if content is not None}


def read(files, classes=3, **options):
    return read_trials(files, "folder", classes, (128, 128), **{"cut_overlaps": True} | options)


def test_a_gesture_holds_both_ends_of_its_label_and_starts_at_its_first_events_millisecond():
    first, second = read(trial_files()).test
    assert (first.label, first.count, first.zero_us, first.length_ms, first.group) == (2, 3, 1000, 3, "user02")
    assert first.between_ms(0, 99).t_us.tolist() == [500, 1600, 2700]
    assert (second.label, second.count, second.zero_us) == (0, 2, 6000)
    assert second.between_ms(0, 99).t_us.tolist() == [0, 3000]


def test_the_golden_slice_of_a_gesture():
    import json

    golden = json.loads((Path(__file__).parent / "golden" / "event.json").read_text())["gesture_aedat31"]
    row = ",".join(map(str, golden["slice"]["label_row"]))
    more = {"user02_led.aedat": bytes.fromhex(golden["hex"])}
    (gesture,) = read(trial_files(f"{HEAD}{row}\n", **more)).test
    events = gesture.between_ms(0, 500)
    found = np.stack([events.t_us // 1000, events.x, events.y, events.p], 1).tolist()
    assert found == golden["slice"]["expected_train"] and gesture.label == golden["slice"]["label_row"][0] - 1


def test_the_sum_of_all_events_lies_in_exactly_one_gesture_where_labels_touch():
    t = np.arange(0, 40_000, 37)
    labels = HEAD + "".join(f"{1 + i % 3},{i * 4000},{i * 4000 + 3999}\n" for i in range(10))
    assert sum(r.count for r in read(trial_files(labels, t)).test) == len(t)


def test_twelve_rows_with_one_class_twice_are_normal_and_a_lacking_class_is_noted():
    rows = [f"{1 + i % 11},{i * 1000},{i * 1000 + 999}\n" for i in range(12)]
    t = np.arange(0, 12_000, 100)
    for lines, expected in ((rows, []), (rows[:10] + rows[11:], ["none of class 11"])):
        train = {
            "user01_led.aedat": aedat31_bytes(Events(t, t % 9, t % 9, t % 2)),
            "user01_led_labels.csv": (HEAD + "".join(rows)).encode(),
        }
        found = read(trial_files(HEAD + "".join(lines), t, **train), 11)
        assert len(found.test) == len(lines)
        assert len(found.notes) == len(expected) and all(a in b for a, b in zip(expected, found.notes, strict=True))


def test_a_label_that_reaches_into_the_next_one_is_cut_and_noted():
    labels = HEAD + "3,1000,6500\n1,6000,9000\n"
    fixed, release = (read(trial_files(labels), cut_overlaps=cut) for cut in (True, False))
    assert [r.count for r in fixed.test] == [3, 2] and [r.count for r in release.test] == [4, 2]
    assert "user02_led_labels.csv:2: the label ends after line 3's start; it is cut there" in fixed.notes
    assert any("it is kept, as the reference does" in n for n in release.notes)


def test_rows_may_stand_in_any_order():
    swapped = read(trial_files(HEAD + "1,6000,9000\n3,1000,5000\n")).test
    assert [r.label for r in swapped] == [2, 0]


@pytest.mark.parametrize(
    "labels, message",
    [
        ("", ":1: found '', expected 'class,startTime_usec,endTime_usec'"),
        ("class,start,end\n", ":1: found 'class,start,end', expected"),
        (HEAD, ": there is no label in it"),
        (HEAD + "1,2\n", ":2: found '1,2', expected three whole numbers"),
        (HEAD + "1,1000,x\n", ":2: found '1,1000,x'"),
        (HEAD + "1,-5,1000\n", ":2: found '1,-5,1000'"),
        (HEAD + "4,1000,5000\n", r":2: found class 4, allowed are 1\.\.3"),
        (HEAD + "0,1000,5000\n", r":2: found class 0, allowed are 1\.\.3"),
        (HEAD + "\n1,5000,5000\n", ":3: the end, 5000, is not after the start, 5000"),
        (HEAD + "1,1000,2000\n2,1000,3000\n", ":3: starts at 1000 as line 2 does"),
        (HEAD + "1,9001,9900\n", ":2: class 1 from 9001 to 9900 us: the events of user02_led.aedat end at 9000 us"),
        (HEAD + "1,6000,1009001\n", "end at 9000 us; the recording is truncated"),
        (HEAD + "1,7000,8000\n", ":2: .*no event of user02_led.aedat lies there .*from 100 to 9000 us"),
    ],
)
def test_labels_that_are_malformed_or_disagree_with_the_events_are_explained(labels, message):
    with pytest.raises(DataError, match=f"^user02_led_labels.csv.*{message}"):
        read(trial_files(labels))


def test_a_label_that_ends_a_little_after_the_last_event_is_noted():
    for end, noted in ((1_008_999, True), (19_000, False)):
        found = read(trial_files(f"{HEAD}1,6000,{end}\n"))
        assert any(f"ends {end - 9000} us after the last event" in note for note in found.notes) == noted


def test_a_recording_cut_between_two_packets_is_found_by_its_labels():
    payload = aedat31_bytes(Events([100, 1500, 2_000_000, 3_000_000], [0] * 4, [0] * 4, [0] * 4), 2)
    more = {"user02_led.aedat": payload[:-44]}
    with pytest.raises(DataError, match="the events of user02_led.aedat end at 1500 us; the recording is truncated"):
        read(trial_files(HEAD + "1,1000,3000000\n", **more))


@pytest.mark.parametrize(
    "more, message",
    [
        ({"trials_to_test.txt": None}, "folder: there is no trials_to_test.txt"),
        ({"trials_to_test.txt": b"user02_led\n"}, "trials_to_test.txt:1: found 'user02_led', expected the name"),
        ({"trials_to_test.txt": b"../user02_led.aedat\n"}, "trials_to_test.txt:1: found"),
        (
            {"trials_to_test.txt": b"\nuser01_led.aedat\n"},
            r"test.txt:2: user01_led.aedat is named a second time \(first at trials_to_train.txt:1\)",
        ),
        ({"trials_to_test.txt": b"\n"}, "no trial of trials_to_test.txt can be used"),
        ({"trials_to_test.txt": b"\xff\xfe"}, "trials_to_test.txt: byte 0: this is no text"),
        ({"user02_led_labels.csv": None}, "the lists name 1 files that are not there: user02_led_labels.csv; get them"),
        ({"user01_led.aedat": None, "user02_led.aedat": None}, "2 files .*: user01_led.aedat, user02_led.aedat"),
    ],
)  # fmt: skip
def test_lists_that_disagree_with_the_folder_are_explained(more, message):
    with pytest.raises(DataError, match=message):
        read(trial_files(**more))


def test_missing_trials_may_be_left_out_with_a_note():
    more = {"trials_to_test.txt": b"user02_led.aedat\nuser03_led.aedat\n"}
    found = read(trial_files(**more), allow_missing=True)
    assert len(found.test) == 2 and "2 files that are not there: user03_led.aedat" in found.notes[0]
    with pytest.raises(DataError, match="user03_led.aedat"):
        read(trial_files(**more))


def test_a_damaged_trial_is_named_and_never_passed_over():
    payload = trial_files()["user02_led.aedat"].open().read()
    for allow in (False, True):
        with pytest.raises(DataError, match=rf"^user02_led.aedat: the file ends at byte {len(payload) - 1}"):
            read(trial_files(**{"user02_led.aedat": payload[:-1]}), allow_missing=allow)


def test_gesture_is_read_from_a_folder_of_the_official_layout(tmp_path, monkeypatch):
    write_shapes(tmp_path / "DvsGesture", scene=SMALL)
    small = replace(event.SETS["gesture"], class_names=CLASSES, train=48, test=24)
    monkeypatch.setitem(event.SETS, "gesture", small)
    d = load_events("gesture", data_dir=tmp_path)
    made = load_events("shapes", scene=SMALL)
    for a, b in ((d.train, made.train), (d.validation, made.validation), (d.test, made.test)):
        assert names(a) == names(b) and [r.count for r in a] == [r.count for r in b]
    assert d.checksum == made.checksum, "the same events have the same checksum, in memory and on disk"
    assert d.notes == () and load_events("gesture", data_dir=tmp_path / "DvsGesture").checksum == d.checksum
    (tmp_path / "DvsGesture" / "user01_made.aedat").unlink()
    partial = load_events("gesture", data_dir=tmp_path, allow_missing=True)
    assert any("36 training recordings; the official data set has 48" in n for n in partial.notes)


def test_the_seeds_split_of_gesture_is_80_to_20_by_chance_and_mixes_persons(tmp_path, monkeypatch):
    write_shapes(tmp_path, scene=SMALL)
    monkeypatch.setitem(event.SETS, "gesture", replace(event.SETS["gesture"], class_names=CLASSES))
    a, b, again = (load_events("gesture", data_dir=tmp_path, split="seed", seed=s) for s in (0, 1, 0))
    assert (len(a.train), len(a.validation), len(a.test)) == (38, 10, 24)
    assert names(a.train) == names(again.train) != names(b.train) and names(a.test) == names(b.test)
    assert {r.group for r in a.train} & {r.group for r in a.validation}


@pytest.mark.parametrize("profile", ["release", "paper", "fixed"])
def test_only_the_fixed_profile_cuts_a_label_that_reaches_into_the_next(tmp_path, monkeypatch, profile):
    write_shapes(tmp_path, scene=SMALL)
    monkeypatch.setitem(event.SETS, "gesture", replace(event.SETS["gesture"], class_names=CLASSES))
    path = tmp_path / "user05_made_labels.csv"
    lines = path.read_text().splitlines()
    number, start, end = lines[1].split(",")
    path.write_text("\n".join([lines[0], f"{number},{start},{int(end) + 30_000}", *lines[2:]]))
    (r,) = [r for r in load_events("gesture", data_dir=tmp_path, profile=profile).test if r.name == "user05_made row 1"]
    assert (r.stop_us == int(lines[2].split(",")[1])) == (profile == "fixed")
    assert (r.stop_us == int(end) + 30_001) == (profile != "fixed")


def test_missing_gesture_data_say_what_is_expected(tmp_path):
    with pytest.raises(DataError) as e:
        load_events("gesture", data_dir=tmp_path / "none")
    for part in ("gesture: not found in", "no such folder", "DvsGesture with trials_to_train.txt", "--data-dir"):
        assert part in str(e.value)
    (tmp_path / "DvsGesture.tar.gz").touch()
    with pytest.raises(DataError, match=r"unpack DvsGesture\.tar\.gz there"):
        load_events("gesture", data_dir=tmp_path)


# --- slow-poker ---------------------------------------------------------------------------------------------------


def write_slow_poker(folder, lasts_ms=10_000, first_us=2**32 - 3_000_000):
    """Four recordings with one event a millisecond; their times overflow after three seconds."""
    folder.mkdir(exist_ok=True)
    for label, name in enumerate(("club", "diamond", "heart", "spade")):
        i = np.arange(lasts_ms)
        t = first_us + 1000 * i + np.where(i % 500 == 499, 999, i % 7)  # also in a chunk's very last microsecond
        events = Events(t, np.full(lasts_ms, label), np.arange(lasts_ms) % 128, np.arange(lasts_ms) % 2)
        (folder / f"RetinaTeresa2-{name}_long.aedat").write_bytes(aedat2_bytes(events))


def start_ms(r):
    return int(r.name.split()[1])


def test_slow_poker_is_cut_into_chunks_from_its_first_event_on(tmp_path):
    write_slow_poker(tmp_path)
    d = load_events("slow-poker", data_dir=tmp_path, chunk_ms=500, span_ms=10_000, split="seed")
    chunks = sorted(d.train + d.validation + d.test, key=lambda r: (r.label, start_ms(r)))
    assert len(chunks) == 80 and [start_ms(r) for r in chunks] == 4 * list(range(0, 10_000, 500))
    for r in chunks:
        events = r.between_ms(0, 500)
        assert r.length_ms == 500 and r.count == len(events) == 500 and set(events.x.tolist()) == {r.label}
        assert (events.t_us // 1000).tolist() == list(range(500)) and events.y[0] == start_ms(r) % 128


def test_the_seeds_split_of_slow_poker_has_the_references_sizes(tmp_path):
    write_slow_poker(tmp_path, lasts_ms=121_00)
    d = load_events("slow-poker", data_dir=tmp_path, chunk_ms=50, span_ms=12_100, split="seed", seed=3)
    assert (len(d.train), len(d.validation), len(d.test)) == (619, 155, 194), "of 968, as in the paper's code"
    other = load_events("slow-poker", data_dir=tmp_path, chunk_ms=50, span_ms=12_100, split="seed", seed=4)
    assert names(d.test) != names(other.test)


def test_the_clean_split_of_slow_poker_leaves_a_chunk_between_its_parts(tmp_path):
    write_slow_poker(tmp_path)
    d = load_events("slow-poker", data_dir=tmp_path, chunk_ms=100, span_ms=10_000)
    for label in range(4):
        train, validation, test = (
            [start_ms(r) for r in s if r.label == label] for s in (d.train, d.validation, d.test)
        )
        assert len(test) == 20 and len(validation) == 16 and len(train) == 62
        assert min(test) - max(validation) == 200 and min(validation) - max(train) == 200
        assert max(train) < min(validation) and max(validation) < min(test)


def test_the_leaking_split_has_neighbors_on_both_sides_and_the_clean_one_has_none(tmp_path):
    write_slow_poker(tmp_path)
    touching = {}
    for split in ("clean", "seed"):
        d = load_events("slow-poker", data_dir=tmp_path, chunk_ms=100, span_ms=10_000, split=split)
        at = {(r.label, start_ms(r)) for r in d.train + d.validation}
        touching[split] = sum((r.label, start_ms(r) + s) in at for r in d.test for s in (-100, 100))
    assert touching["clean"] == 0 and touching["seed"] > 50


def test_slow_poker_that_is_missing_short_or_silent_is_explained(tmp_path):
    with pytest.raises(DataError, match="slow-poker: not found in .* RetinaTeresa2-club_long.aedat"):
        load_events("slow-poker", data_dir=tmp_path)
    write_slow_poker(tmp_path)
    with pytest.raises(DataError, match="RetinaTeresa2-club_long.aedat: lasts 10000 ms, chunks are taken from 121000"):
        load_events("slow-poker", data_dir=tmp_path)
    with pytest.raises(DataError, match="chunks of 6000 ms in 10000 ms; there must be at least 3"):
        load_events("slow-poker", data_dir=tmp_path, chunk_ms=6000, span_ms=10_000)
    heart = tmp_path / "RetinaTeresa2-heart_long.aedat"
    heart.write_bytes(aedat2_bytes(Events([0, 5_000_000, 10_000_000], [0] * 3, [0] * 3, [0] * 3)))
    with pytest.raises(DataError, match=r"heart_long.aedat: no event from 500 to 1000 ms \(18 such chunks\)"):
        load_events("slow-poker", data_dir=tmp_path, span_ms=10_000)
    heart.write_bytes(heart.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"heart_long.aedat: the file ends at byte \d+, inside an event"):
        load_events("slow-poker", data_dir=tmp_path, span_ms=10_000)


def test_special_records_of_slow_poker_are_noted(tmp_path):
    write_slow_poker(tmp_path)
    path = tmp_path / "RetinaTeresa2-spade_long.aedat"
    payload = bytearray(path.read_bytes())
    payload[-6] |= 0x80
    path.write_bytes(payload)
    d = load_events("slow-poker", data_dir=tmp_path, span_ms=10_000)
    assert len(d.notes) == 1 and "spade_long.aedat: 1 records" in d.notes[0]


def test_a_window_longer_than_a_chunk_is_refused_before_training(tmp_path):
    write_slow_poker(tmp_path)
    d = load_events("slow-poker", data_dir=tmp_path, chunk_ms=400, span_ms=10_000)
    with pytest.raises(DataError, match="500 steps of 1 ms is longer than .* training recordings of slow-poker"):
        windows_for(d)
    with pytest.raises(DataError, match="longer than .* validation recordings of slow-poker"):
        windows_for(d, steps=400, test_steps=401)
    assert [w.steps for w in windows_for(d, steps=400)] == [400, 400]


# --- N-MNIST and Poker-DVS ----------------------------------------------------------------------------------------


def nmnist_bytes(t, x, y, p):
    t = np.asarray(t)
    columns = [x, y, np.asarray(p) << 7 | t >> 16, t >> 8 & 255, t & 255]
    return np.stack(np.broadcast_arrays(*columns), 1).astype(np.uint8).tobytes()


def write_nmnist(folder):
    for part, n in (("Train", 4), ("Test", 2)):
        for digit in range(10):
            (folder / part / str(digit)).mkdir(parents=True)
            for i in range(n):
                payload = nmnist_bytes(np.arange(0, 305_000, 5000) + i, digit, i, 1)
                (folder / part / str(digit) / f"{10 * i + digit:05d}.bin").write_bytes(payload)


def test_nmnist_is_read_from_the_official_folders(tmp_path):
    write_nmnist(tmp_path / "NMNIST")
    d = load_events("nmnist", data_dir=tmp_path)
    assert (len(d.train), len(d.validation), len(d.test)) == (30, 10, 20)
    assert labels_of(d.validation).bincount().tolist() == [1] * 10
    assert all(set(r.between_ms(0, 305).x.tolist()) == {r.label} for r in d.train + d.test)
    assert "40 training recordings; the official data set has 60000" in d.notes[0]
    assert [w.shape_CXY(d.sensor) for w in windows_for(d)] == [(2, 34, 34)] * 2


def test_nmnist_is_read_from_the_official_archives(tmp_path, monkeypatch):
    import shutil

    write_nmnist(tmp_path / "NMNIST")
    want = load_events("nmnist", data_dir=tmp_path)
    for part in ("Train", "Test"):
        path = shutil.make_archive(str(tmp_path / "zips" / part), "zip", tmp_path / "NMNIST", part)
        monkeypatch.setitem(event_sets.ZIP_MD5, part, hashlib.md5(Path(path).read_bytes()).hexdigest())
    d = load_events("nmnist", data_dir=tmp_path / "zips")
    assert d.checksum == want.checksum
    assert cut(d.test[3], Window(300)).t_us.tolist() == cut(want.test[3], Window(300)).t_us.tolist()
    monkeypatch.setitem(event_sets.ZIP_MD5, "Test", "0" * 32)
    with pytest.raises(DataError, match=r"Test\.zip: found md5 \w+, expected 0000"):
        load_events("nmnist", data_dir=tmp_path / "zips")


def test_an_nmnist_recording_lasts_three_saccades_unless_it_is_much_shorter(tmp_path):
    write_nmnist(tmp_path)
    path = tmp_path / "Test" / "3" / "00003.bin"
    path.write_bytes(nmnist_bytes([0, 260_000], 1, 1, 1))
    assert {r.length_ms for r in load_events("nmnist", data_dir=tmp_path).test} == {300, 301}
    path.write_bytes(nmnist_bytes([0, 140_000], 1, 1, 1))
    with pytest.raises(DataError, match=r"longer than 1 of 20 test recordings of nmnist; .*00003\.bin, lasts 141 ms"):
        windows_for(load_events("nmnist", data_dir=tmp_path))


def test_damaged_or_missing_nmnist_files_are_named(tmp_path):
    with pytest.raises(DataError, match="nmnist: not found in .*NMNIST/Train with 0/.*or Train.zip"):
        load_events("nmnist", data_dir=tmp_path)
    write_nmnist(tmp_path)
    path = tmp_path / "Test" / "3" / "00003.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"00003\.bin: the file ends at byte 303, inside an event"):
        load_events("nmnist", data_dir=tmp_path)


def write_poker(folder, kinds=("cl", "di", "he", "sp")):
    for part in ("pips_train", "pips_test"):
        for label, kind in enumerate(kinds):
            place = folder / part / kind
            place.mkdir(parents=True)
            for i in range(3):
                t = np.arange(0, 20_000, 500)
                rows = np.stack([t, np.full(40, label), np.full(40, i), np.arange(40) % 2], 1)
                np.save(place / f"{i}.npy", rows)
                if i == 0:
                    (place / "9.aedat").write_bytes(aedat2_bytes(Events(t + 77, rows[:, 1], rows[:, 2], rows[:, 3])))


@pytest.mark.parametrize("kinds", [("cl", "di", "he", "sp"), ("Clubs", "Diamonds", "Hearts", "Spades")])
def test_poker_dvs_is_read_from_class_folders(tmp_path, kinds):
    write_poker(tmp_path, kinds)
    d = load_events("poker-dvs", data_dir=tmp_path)
    assert (len(d.train), len(d.validation), len(d.test)) == (12, 4, 16)
    for r in d.train + d.validation + d.test:
        events = r.between_ms(0, 20)
        assert set(events.x.tolist()) == {r.label} and len(events) == 40 and events.t_us[0] == 0
    with pytest.raises(DataError, match="lasts 20 ms: use at most 4 steps"):
        windows_for(d)
    assert windows_for(d, steps=20, step_ms=1)[0].length_ms == 20


def test_poker_dvs_is_read_from_columns_with_times_in_milliseconds(tmp_path):
    arrays = {}
    for name, n in (("on_train", 8), ("on_test", 4)):
        arrays[f"{name}_x"] = arrays[f"{name}_y"] = np.arange(2 * n, dtype=np.uint8)
        arrays[f"{name}_t"] = np.tile(np.array([0.0, 299.6], np.float32), n)
        arrays[f"{name}_offset"], arrays[f"{name}_label"] = np.arange(0, 2 * n + 1, 2), np.arange(n) % 4
    np.savez(tmp_path / "poker_dvs_small.npz", **arrays)
    d = load_events("poker-dvs", data_dir=tmp_path)
    assert (len(d.train), len(d.validation), len(d.test)) == (4, 4, 4)
    assert all(r.between_ms(0, 300).t_us.tolist() == [0, 299_600] and r.length_ms == 300 for r in d.train + d.test)
    arrays["on_test_label"][2] = 4
    np.savez(tmp_path / "poker_dvs_small.npz", **arrays)
    with pytest.raises(DataError, match=r"on_test_recording 2: found label 4, allowed are 0\.\.3"):
        load_events("poker-dvs", data_dir=tmp_path)


@pytest.mark.parametrize("kind", ["joker", "stones"])
def test_poker_dvs_that_is_missing_or_of_no_class_is_explained(tmp_path, kind):
    with pytest.raises(DataError, match="poker-dvs: not found in .*poker_dvs_small.npz, or pips_train or train"):
        load_events("poker-dvs", data_dir=tmp_path)
    write_poker(tmp_path, ("cl", "di", "he", kind))
    with pytest.raises(DataError, match=f"{kind}: the folder's name is no class; there is club, diamond, heart, spade"):
        load_events("poker-dvs", data_dir=tmp_path)
    with pytest.raises(DataError, match="there is no variant 'wide'; there is on, all"):
        load_events("poker-dvs", data_dir=tmp_path, variant="wide")


def test_the_folds_test_every_recording_once(tmp_path):
    write_poker(tmp_path)
    seen, sizes = [], []
    for fold in range(4):
        d = load_events("poker-dvs", data_dir=tmp_path, split="folds", fold=fold, folds=4)
        assert not names(d.test) & (names(d.train) | names(d.validation))
        assert labels_of(d.test).bincount().tolist() == [2] * 4
        seen += sorted(names(d.test))
        sizes.append(len(d.train) + len(d.validation))
    assert len(seen) == len(set(seen)) == 32 and sizes == [24] * 4
    with pytest.raises(DataError, match="fold 4 of 4"):
        load_events("poker-dvs", data_dir=tmp_path, split="folds", fold=4, folds=4)


# --- every set ----------------------------------------------------------------------------------------------------


def test_unknown_names_splits_and_shares_are_refused():
    with pytest.raises(DataError, match="no event data set 'n-mnist'; did you mean 'nmnist'"):
        load_events("n-mnist")
    for more, message in (
        ({"split": "random"}, "no split 'random'; there is clean"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"limit": 5}, "limit is 5; shapes needs at least 6"),
    ):
        with pytest.raises(DataError, match=message):
            load_events("shapes", scene=SMALL, **more)
    assert NAMES == ("shapes", "nmnist", "poker-dvs", "slow-poker", "gesture")


def test_no_person_of_a_clean_split_is_on_two_sides(shapes):
    groups = [{r.group for r in s} for s in (shapes.train, shapes.validation, shapes.test)]
    assert [len(g) for g in groups] == [3, 1, 2] and len(set.union(*groups)) == 6


def test_a_limit_keeps_the_classes_balanced_and_the_shares(shapes):
    d = load_events("shapes", scene=SMALL, limit=18)
    assert [labels_of(s).bincount().tolist() for s in (d.train, d.validation, d.test)] == [[3] * 6, [1] * 6, [2] * 6]
    assert names(d.train) < names(shapes.train) and d.checksum != shapes.checksum


def test_the_checksum_names_what_is_used(shapes):
    assert load_events("shapes", scene=SMALL).checksum == shapes.checksum
    for other in ({"seed": 1}, {"validation_fraction": 0.5}):
        assert load_events("shapes", scene=SMALL, **other).checksum != shapes.checksum


def test_profiles_differ_in_jitter_at_test_time_only(shapes):
    for profile, jitter in (("release", True), ("paper", True), ("fixed", False)):
        train, test = windows_for(shapes, profile, steps=10)
        assert train.jitter and test.jitter == jitter
        assert (train.start, test.start) == ("random", "first")
        assert replace(train, start="first", jitter=False) == replace(test, jitter=False)
    with pytest.raises(DataError, match="no profile 'faithful'"):
        windows_for(shapes, "faithful", steps=10)


def test_the_windows_of_every_set_are_the_specified_ones(shapes):
    facts = event.SETS["gesture"]
    gesture = replace(shapes, facts=facts, train=(), validation=(), test=())
    train, test = windows_for(gesture, "release")
    assert (train.steps, test.steps, train.step_ms, train.ds, train.start) == (500, 1800, 1, 4, "random")
    assert train.shape_CXY(facts.sensor) == (2, 32, 32) and gesture.classes == 11
    poker = replace(gesture, facts=event.SETS["slow-poker"])
    train, test = windows_for(poker, "release")
    assert (train.steps, test.steps, train.start, poker.classes) == (500, 500, "first", 4)


# --- shapes -------------------------------------------------------------------------------------------------------


def test_shapes_are_the_same_bytes_for_the_same_seed_and_others_for_another():
    a, b, c = (shapes_files(seed, SMALL) for seed in (0, 0, 1))
    assert a == b and all(a[name] != c[name] for name in a if name.endswith(".aedat"))


def test_shapes_have_the_promised_splits_and_last_long_enough(shapes):
    assert [len(s) for s in (shapes.train, shapes.validation, shapes.test)] == [36, 12, 24]
    assert shapes.class_names == CLASSES and shapes.notes == ()
    assert labels_of(shapes.test).bincount().tolist() == [4] * 6
    assert min(r.length_ms for r in shapes.train + shapes.validation + shapes.test) >= SMALL.length_ms - 2


def test_shapes_written_to_a_folder_are_those_in_memory(tmp_path):
    write_shapes(tmp_path / "x", 5, SMALL)
    assert {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir()} == shapes_files(5, SMALL)


@pytest.mark.parametrize("label", range(6))
def test_a_shape_moves_along_the_axis_of_its_class_to_and_fro_with_light_in_front(label):
    """A disc far from both ends of its way: ON lies ahead of OFF by about its width, up and back at the drawn speed."""
    axis = CLASSES[label].split()[1]
    quiet = Scene(late_ms=0.001, seen=1.0)
    for seed in range(4):
        random = np.random.default_rng(seed)
        radius, speed = random.uniform(*quiet.radius), random.uniform(*quiet.speed)  # as `moving` draws them
        middle, center = 64 + random.uniform(-quiet.place, quiet.place, 2)
        start = random.uniform(0, 4 * quiet.reach)
        events = moving(label, quiet, np.random.default_rng(seed))
        along, across = (events.x, events.y) if axis == "sideways" else (events.y, events.x)
        assert np.abs(across - center).max() <= radius
        assert np.abs(along - middle).max() <= radius + quiet.reach
        way = (events.t_us / 1000 * speed + start) % (4 * quiet.reach)
        position = middle + np.where(way < 2 * quiet.reach, way - quiet.reach, 3 * quiet.reach - way)
        up = way < 2 * quiet.reach
        inner = np.abs(np.abs(way - 2 * quiet.reach) - quiet.reach) < quiet.reach - 1  # not at a turn
        middle_line = inner & (np.abs(across - center) < 1)
        ahead = (along - position)[middle_line] * np.where(up, 1, -1)[middle_line]
        on = events.p[middle_line] == 1
        assert ahead[on].mean() > ahead[~on].mean() + radius * 0.5
        assert np.abs(along - position)[inner].max() <= radius + 0.05


def test_a_pixel_is_covered_and_left_in_turns():
    quiet = Scene(late_ms=1e-6, seen=1.0)
    for label in range(6):
        events = moving(label, quiet, np.random.default_rng(label))
        place = events.x * 128 + events.y
        order = np.lexsort((events.t_us, place))
        p, place, t = events.p[order], place[order], events.t_us[order]
        same = (np.diff(place) == 0) & (np.diff(t) > 1)
        assert same.sum() > 500 and (np.diff(p)[same] != 0).mean() > 0.999


@pytest.mark.parametrize("outline, area", [("disc", np.pi), ("cross", 4 * (1 / 3 + 1 / 3 - 1 / 9)), ("triangle", 2.0)])
def test_outlines_have_the_same_area_on_both_axes(outline, area):
    r, across = 300.0, np.arange(-400, 401)
    for axis in AXES:
        back, front, hit = extent(outline, axis, across.astype(float), r)
        assert ((front - back) * hit).sum() / r**2 == pytest.approx(area, rel=0.01)
        assert not (front - back)[~hit].any()


def test_a_transposed_batch_shows_the_other_axis():
    """Sideways is along the tensor's X axis, upright along Y; read as an image [rows, columns] they are swapped."""
    quiet = Scene(late_ms=0.001, seen=1.0)
    for label, axis in ((0, 0), (1, 1)):
        events = moving(label, quiet, np.random.default_rng(0))
        x_TBCXY = bin_events([events], Window(500, ds=4, mode="counts"), (128, 128))
        touched = x_TBCXY[:, 0].sum((0, 1)) > 0
        across, along = touched.any(axis).sum(), touched.any(1 - axis).sum()
        assert along >= across + 5


def test_the_path_of_real_data_gives_what_was_made(shapes):
    """One batch through the AEDAT bytes equals the events that the generator wrote."""
    ((x, y),) = batches(shapes.test[:3], Window(10, ds=4, mode="counts"), shapes.sensor, 3)
    for i, r in enumerate(shapes.test[:3]):
        assert y[i] == r.label and x[:, i].sum() == len(r.between_ms(0, 10)) > 10
        assert re.fullmatch(r"user0\d_made row \d+", r.name)


# --- real data ----------------------------------------------------------------------------------------------------


def real(name):
    if not (REAL / "events" / name).is_file():
        pytest.skip(f"no {name} in {REAL}; name a folder that has it with HWSIM_TEST_DATA")
    return REAL / "events" / name


def test_real_nmnist_has_the_labels_of_its_images():
    real("nmnist_train1000.npz"), real("nmnist_test100.npz")
    d = load_events("nmnist", data_dir=REAL)
    assert (len(d.train), len(d.validation), len(d.test)) == (800, 200, 100)
    # MNIST's first 100 test labels, and how often each digit is among the first 1,000 training images.
    assert labels_of(d.test).bincount().tolist() == [8, 14, 8, 11, 14, 7, 10, 15, 2, 11]
    assert (labels_of(d.train + d.validation)).bincount().tolist() == [97, 116, 99, 93, 105, 92, 94, 117, 87, 100]
    assert sum(r.count for r in d.train + d.validation) == 4_133_231 and sum(r.count for r in d.test) == 385_596
    train, test = windows_for(d)
    x, _ = next(batches(d.test, test, d.sensor, 100))
    assert x.shape == (60, 100, 2, 34, 34) and 0.01 < x.float().mean() < 0.2


def test_real_nmnist_binaries_and_columns_are_the_same_recordings(tmp_path):
    z = np.load(real("nmnist_test100.npz"))
    for part in ("Train", "Test"):
        for i, label in enumerate(z["label"]):
            a, b = z["offset"][i : i + 2]
            t = z["dt"][a:b].cumsum(dtype=np.int64)
            path = tmp_path / part / str(label) / f"{i:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(nmnist_bytes(t, z["x"][a:b], z["y"][a:b], z["p"][a:b].astype(np.int64)))
    d = load_events("nmnist", data_dir=tmp_path)
    columns = load_events("nmnist", data_dir=REAL).test
    assert len(d.test) == 100
    for r in d.test:
        other = columns[int(r.name[-9:-4])]
        assert (r.label, r.count, r.length_ms, r.checksum) == (
            other.label,
            other.count,
            other.length_ms,
            other.checksum,
        )
    window = Window(300, ds=2, mode="counts")
    order = sorted(range(100), key=lambda i: int(d.test[i].name[-9:-4]))
    ((x, _),) = batches([d.test[i] for i in order[:20]], window, d.sensor, 20)
    ((want, _),) = batches(columns[:20], window, d.sensor, 20)
    assert torch.equal(x, want)


def test_a_real_nmnist_file_in_its_own_format_is_read():
    from hwsim.data.event_array import NMNIST
    from hwsim.data.event_stream import source_of
    from hwsim.data.recording import whole_file

    r = whole_file("sample", 0, source_of(real("tonic_sample_nmnist.bin")), NMNIST, (34, 34))
    assert r.count == 4325 and 290 < r.length_ms < 340
    assert (np.diff(r.between_ms(0, 400).t_us) >= 0).all()


def test_real_poker_dvs_has_its_recordings():
    real("poker_dvs_small.npz")
    for variant, train, test in (("on", 32, 6), ("all", 22, 8)):
        d = load_events("poker-dvs", data_dir=REAL, variant=variant)
        assert len(d.train) + len(d.validation) == train and len(d.test) == test
        assert not {r.checksum for r in d.train + d.validation} & {r.checksum for r in d.test}
        assert {r.length_ms for r in d.train + d.test} == {300}
        last_ms = max(int(r.between_ms(0, 300).t_us.max()) for r in d.train + d.test) / 1000
        assert 299 < last_ms < 300
        windows_for(d)
