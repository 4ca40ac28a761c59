"""The event data sets by name: what they are, in which forms they lie on users' disks, and reading each form.

Facts and readers; `event.py` makes splits of what is read here. Nothing is downloaded: the official places ask for a
form or a click.
"""

import functools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hwsim.config import DataError
from hwsim.data.aedat import AEDAT2, aedat_format
from hwsim.data.download import md5_of
from hwsim.data.event_array import NMNIST, checked_columns, cut_columns, read_npy, read_npz
from hwsim.data.event_stream import Source, source_of
from hwsim.data.recording import Recording, held, index, whole_file
from hwsim.data.trials import LISTS, Trials


@dataclass(frozen=True)
class EventSet:
    """An event data set: facts, and the window that its users take."""

    name: str
    class_names: tuple[str, ...]
    sensor: tuple[int, int]
    """Pixels in x and in y."""
    train: int
    """Official training recordings; 0 where there is no official number."""
    test: int
    steps: int
    test_steps: int
    step_ms: int
    ds: int
    random_start: bool
    """Whether training windows begin anywhere in a recording."""
    source: str


GESTURE = EventSet(
    "gesture",
    ("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter clockwise",
     "left arm clockwise", "left arm counter clockwise", "arm roll", "air drums", "air guitar", "other"),
    (128, 128), 1176, 288, 500, 1800, 1, 4, True,
    "Amir et al., CVPR 2017; https://research.ibm.com/interactive/dvsgesture (CC BY 4.0)",
)  # fmt: skip
SLOW_POKER = EventSet(
    "slow-poker", ("club", "diamond", "heart", "spade"), (128, 128), 0, 0, 500, 500, 1, 4, False,
    "Serrano-Gotarredona and Linares-Barranco, Front. Neurosci. 9:481, 2015",
)  # fmt: skip
N_MNIST = EventSet(
    "nmnist", tuple("0123456789"), (34, 34), 60000, 10000, 60, 60, 5, 1, False,
    "Orchard et al., Front. Neurosci. 9:437, 2015 (CC BY-SA 4.0)",
)  # fmt: skip
POKER_DVS = EventSet(
    "poker-dvs", ("club", "diamond", "heart", "spade"), (35, 35), 0, 0, 60, 60, 5, 1, False,
    "Serrano-Gotarredona and Linares-Barranco, Front. Neurosci. 9:481, 2015",
)  # fmt: skip

ZIP_MD5 = {"Train": "20959b8e626244a1b502305a9e6e2031", "Test": "69ca8762b2fe404d9b9bad1103e97832"}
"""N-MNIST's archives, as SpikingJelly, Tonic and others list them."""
SACCADES_MS, LEAST_MS = 300, 250
"""An N-MNIST recording is three saccades of 100 ms, also where its last event comes a little earlier."""
POKER_MS = 300
"""Recordings of poker_dvs_small.npz: the symbol leaves the field of view, then nothing happens."""
CHUNKS_MS = 121_000
"""How much of each Slow-Poker recording the reference cuts into chunks."""


def find(folder: Path, places: tuple[str, ...], wanted: tuple[str, ...]) -> Path | None:
    """The first of the places inside `folder` that holds everything wanted."""
    return next(
        (folder / p for p in places if (folder / p).is_dir() and all((folder / p / w).exists() for w in wanted)), None
    )


def missing(event_set: EventSet, folder: Path, expected: str) -> DataError:
    """The error for data that are not there."""
    there = "" if folder.is_dir() else " (there is no such folder)"
    return DataError(
        f"{event_set.name}: not found in {folder}{there}; expected there {expected}; name the folder that holds it with"
        f" --data-dir (the data: {event_set.source})"
    )


def find_trials(folder: Path) -> Path:
    """The folder of the official DVS Gesture files. Raises `DataError` when it is not there."""
    if place := find(folder, ("DvsGesture", "."), LISTS):
        return place
    packed = " (unpack DvsGesture.tar.gz there: tar xzf)" if (folder / "DvsGesture.tar.gz").exists() else ""
    expected = f"DvsGesture with {' and '.join(LISTS)} and the trials' .aedat and _labels.csv files{packed}"
    raise missing(GESTURE, folder, expected)


def read_slow_poker(folder: Path, chunk_ms: int, span_ms: int = CHUNKS_MS) -> tuple[list[list[Recording]], list[str]]:
    """The four long recordings, each cut into chunks of chunk_ms from its first event on, for span_ms in all.

    Returns for each class its chunks in the order of time, and notes; a last chunk that would not be whole is left out.
    Raises `DataError`: files missing or damaged, a recording shorter than the span, a chunk without events.
    """
    if chunk_ms < 1 or span_ms < 3 * chunk_ms:
        raise DataError(
            f"slow-poker: chunks of {chunk_ms} ms in {span_ms} ms; there must be at least 3 of 1 ms or more"
        )
    names = tuple(f"RetinaTeresa2-{c}_long.aedat" for c in SLOW_POKER.class_names)
    place = find(folder, ("SLOW-POKER-DVS", "slow_poker", "."), names)
    if place is None:
        raise missing(SLOW_POKER, folder, f"{', '.join(names)} (perhaps in SLOW-POKER-DVS)")
    starts = range(0, span_ms - chunk_ms + 1, chunk_ms)
    out, notes = [], []
    for label, (kind, name) in enumerate(zip(SLOW_POKER.class_names, names, strict=True)):
        found = index(
            source_of(place / name), AEDAT2, SLOW_POKER.sensor,
            lambda first: [(first + 1000 * s, first + 1000 * (s + chunk_ms)) for s in starts],
        )  # fmt: skip
        lasts_ms = (found.whole.last_us - found.spans[0].start_us) // 1000 + 1
        if lasts_ms < starts[-1] + chunk_ms - 1000:
            raise DataError(
                f"{place / name}: lasts {lasts_ms} ms, chunks are taken from {starts[-1] + chunk_ms} ms; it is"
                " truncated, or not the official file"
            )
        if found.left_out:
            notes.append(f"{place / name}: {found.left_out} records that are no pixel's (special bit) are left out")
        if empty := [i for i, span in enumerate(found.spans) if not span.count]:
            at = starts[empty[0]]
            raise DataError(f"{place / name}: no event from {at} to {at + chunk_ms} ms ({len(empty)} such chunks)")
        out.append(
            [
                Recording(f"{kind} {start} ms", label, found.store, s.start_us, s.start_us, s.stop_us, chunk_ms,
                          s.count, found.sha256, kind)
                for start, s in zip(starts, found.spans, strict=True)
            ]
        )  # fmt: skip
    return out, notes


def read_nmnist(folder: Path) -> Trials:
    """N-MNIST: folders Train and Test with a folder of .bin files a digit, the two archives, or .npz columns.

    Raises `DataError`: nothing there, an archive with another md5, a damaged file.
    """
    out = Trials()
    for name, part in (("Train", out.train), ("Test", out.test)):
        if place := find(folder, ("NMNIST", "N-MNIST", "nmnist", "."), (name,)):
            found = ((f"{name}/{p.parent.name}/{p.name}", p.parent.name, source_of(p))
                     for p in sorted((place / name).glob("[0-9]/*.bin")))  # fmt: skip
        elif place := find(folder, ("NMNIST", "N-MNIST", "nmnist", "."), (f"{name}.zip",)):
            found = _zipped(place / f"{name}.zip", name)
        elif place := find(folder, ("events", "."), ("nmnist_train1000.npz", "nmnist_test100.npz")):
            read = _npz(place / {"Train": "nmnist_train1000.npz", "Test": "nmnist_test100.npz"}[name], "", N_MNIST, 1)
            part += [_three_saccades(r) for r in read]
            continue
        else:
            forms = f"NMNIST/{name} with 0/*.bin ... 9/*.bin, or {name}.zip, or nmnist_train1000.npz and _test100.npz"
            raise missing(N_MNIST, folder, forms)
        part += [_three_saccades(whole_file(n, int(d), source, NMNIST, N_MNIST.sensor)) for n, d, source in found]
        if not part:
            raise DataError(f"{place}: there is no .bin file in {name}/0 ... {name}/9")
    return out


def _three_saccades(recording: Recording) -> Recording:
    length = recording.length_ms
    return replace(recording, length_ms=max(SACCADES_MS, length)) if length >= LEAST_MS else recording


def _zipped(path: Path, name: str) -> Iterator[tuple[str, str, Source]]:
    """The .bin members of one of the official archives, which stays open; nothing is unpacked to disk."""
    if (md5 := md5_of(path)) != ZIP_MD5[name]:
        raise DataError(f"{path}: found md5 {md5}, expected {ZIP_MD5[name]}; damaged, or not the official file")
    archive = zipfile.ZipFile(path)
    for member in sorted(archive.namelist()):
        parts = member.split("/")
        if len(parts) == 3 and parts[1] in N_MNIST.class_names and parts[2].endswith(".bin"):
            yield member, parts[1], Source(f"{path}: {member}", functools.partial(archive.open, member))


def _npz(path: Path, prefix: str, event_set: EventSet, unit_us: float) -> list[Recording]:
    out = []
    for i, (columns, label) in enumerate(cut_columns(read_npz(path), prefix, str(path))):
        where = f"{path}: {prefix}recording {i}"
        if not 0 <= label < len(event_set.class_names):
            raise DataError(f"{where}: found label {label}, allowed are 0..{len(event_set.class_names) - 1}")
        events = checked_columns(columns, event_set.sensor, where, unit_us)
        out.append(held(f"{path.stem} {prefix}{i}", label, events))
    return out


def read_poker_dvs(folder: Path, variant: str = "on") -> Trials:
    """Poker-DVS: .npz columns, or folders train and test with a folder of .npy or .aedat files a class.

    variant: of the .npz, `on` (32 + 6 recordings, ON events only) or `all` (22 + 8, ON and OFF merged); neither has a
    polarity, so that all events are in the ON channel. Its times are milliseconds.
    A class folder is called club, diamond, heart or spade, or begins as one of them does (cl, di, he, sp); .npy files
    hold columns t, x, y, p in microseconds.
    Raises `DataError`: nothing there, a folder of no class, a damaged file.
    """
    if variant not in ("on", "all"):
        raise DataError(f"poker-dvs: there is no variant '{variant}'; there is on, all")
    out = Trials()
    if place := find(folder, ("events", "."), ("poker_dvs_small.npz",)):
        for name, part in (("train", out.train), ("test", out.test)):
            read = _npz(place / "poker_dvs_small.npz", f"{variant}_{name}_", POKER_DVS, 1000)
            part += [replace(r, length_ms=max(POKER_MS, r.length_ms)) for r in read]
        return out
    for name, part in (("train", out.train), ("test", out.test)):
        names = (f"pips_{name}", name)
        place = next((p for n in names if (p := find(folder, (f"POKERDVS/{n}", n), ()))), None)
        if place is None:
            raise missing(POKER_DVS, folder, f"poker_dvs_small.npz, or {' or '.join(names)} with a folder a class")
        for path in sorted(p for p in place.glob("*/*") if p.suffix in (".npy", ".aedat")):
            short = path.parent.name.lower()
            label = [i for i, c in enumerate(POKER_DVS.class_names) if short.startswith(c[:2])]
            if not label:
                allowed = ", ".join(POKER_DVS.class_names)
                raise DataError(f"{path.parent}: the folder's name is no class; there is {allowed}")
            part.append(_poker_file(path, f"{name}/{short}/{path.name}", label[0]))
        if not part:
            raise DataError(f"{place}: there is no .npy or .aedat file in a folder of it")
    return out


def _poker_file(path: Path, name: str, label: int) -> Recording:
    if path.suffix == ".npy":
        return held(name, label, read_npy(path, POKER_DVS.sensor))
    source = source_of(path)
    with source.open() as file:
        form = aedat_format(file, source.where)
    return whole_file(name, label, source, form, POKER_DVS.sensor)
