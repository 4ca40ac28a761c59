"""The layout of DVS Gesture: lists of trials, an AEDAT 3.1 file for each, and a label file with a row for each gesture.

`trials_to_train.txt` and `trials_to_test.txt` name one .aedat file a line. Beside `user01_led.aedat` lies
`user01_led_labels.csv`: class 1..K, first and last microsecond. Twelve rows of eleven classes are normal: one class
comes twice. What disagrees is said before anything is trained; the reference skips such a trial without a word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hwsim.config import DataError
from hwsim.data.aedat import AEDAT31
from hwsim.data.event_stream import Source, source_of
from hwsim.data.recording import Recording, index

LISTS = ("trials_to_train.txt", "trials_to_test.txt")
COLUMNS = "class,startTime_usec,endTime_usec"
BEYOND_US, NOTED_US = 1_000_000, 10_000
"""How far a label may reach behind the last event (the scene may come to rest before it ends); from when that is noted.
"""

Files = Mapping[str, Source]
"""A folder's files by name."""


class Row(NamedTuple):
    """A line of a label file: class 1..K, first and last microsecond (both included)."""

    line: int
    number: int
    start_us: int
    end_us: int


@dataclass
class Trials:
    """The recordings of both lists, and what a user should know of them."""

    train: list[Recording] = field(default_factory=list)
    test: list[Recording] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def files_of(folder: Path) -> dict[str, Source]:
    """The files that lie in a folder."""
    return {path.name: source_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def read_trials(
    files: Files, where: str, classes: int, sensor: tuple[int, int], *, cut_overlaps: bool, allow_missing: bool = False
) -> Trials:
    """All gestures of both lists; recording k of a trial is its k-th label row by time.

    As the reference has it, a gesture's millisecond 0 is that of its first event, and both ends of its label belong to
    it. (Test gestures are cut at 1800 ms there, which no window of 1800 steps sees.)
    where: names the folder in messages.   cut_overlaps: a label that reaches into the next one ends before it (in
    the official files: user22_led, class 9). The reference keeps it, so that a window may show the next gesture.
    allow_missing: pass over trials whose files are not there, with a note.
    Raises `DataError`: lists, files or labels that are missing, malformed, or disagree with the events.
    """
    out, named = Trials(), {}
    stems = {name: _stems(files, where, name, named) for name in LISTS}
    gone = [f"{s}{end}" for found in stems.values() for s in found for end in (".aedat", "_labels.csv")]
    gone = [name for name in gone if name not in files]
    if gone:
        listed = f"{', '.join(gone[:5])}{f' and {len(gone) - 5} more' if len(gone) > 5 else ''}"
        message = f"{where}: the lists name {len(gone)} files that are not there: {listed}"
        if not allow_missing:
            raise DataError(f"{message}; get them, or allow missing files to go on without these trials")
        out.notes.append(f"{message}; these trials are left out")
    for name, part in zip(LISTS, (out.train, out.test), strict=True):
        for stem in stems[name]:
            if f"{stem}.aedat" in files and f"{stem}_labels.csv" in files:
                part += _gestures(files, stem, classes, sensor, cut_overlaps, out.notes)
        if not part:
            raise DataError(f"{where}: no trial of {name} can be used")
    return out


def _text(source: Source) -> str:
    try:
        with source.open() as file:
            return file.read().decode("utf-8-sig")
    except OSError as e:
        raise DataError(f"{source.where}: cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{source.where}: byte {e.start}: this is no text") from None


def _stems(files: Files, where: str, name: str, named: dict[str, str]) -> list[str]:
    if name not in files:
        raise DataError(f"{where}: there is no {name}, which lists the trials")
    stems = []
    for number, line in enumerate(_text(files[name]).splitlines(), 1):
        if not (line := line.strip()):
            continue
        at = f"{files[name].where}:{number}"
        if not line.endswith(".aedat") or "/" in line or "\\" in line:
            raise DataError(f"{at}: found '{line[:60]}', expected the name of an .aedat file beside this list")
        if line in named:
            raise DataError(f"{at}: {line} is named a second time (first at {named[line]}); test data would leak")
        named[line] = at
        stems.append(line.removesuffix(".aedat"))
    return stems


def read_labels(text: str, where: str, classes: int) -> list[Row]:
    """The rows of a label file, by time.

    Raises `DataError` with file and line: another header, fields that are no whole numbers, a class outside
    1..classes, an end that is not after the start, two rows with one start, no row at all.

    >>> read_labels("class,startTime_usec,endTime_usec\\n3,1000,5000\\n", "labels", 11)
    [Row(line=2, number=3, start_us=1000, end_us=5000)]
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != COLUMNS:
        raise DataError(f"{where}:1: found '{(lines or [''])[0][:60]}', expected '{COLUMNS}'")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = [f.strip() for f in line.split(",")]
        if len(fields) != 3 or not all(re.fullmatch(r"\d{1,18}", f, re.ASCII) for f in fields):
            raise DataError(f"{where}:{number}: found '{line[:60]}', expected three whole numbers: {COLUMNS}")
        row = Row(number, *map(int, fields))
        if not 1 <= row.number <= classes:
            raise DataError(f"{where}:{number}: found class {row.number}, allowed are 1..{classes}")
        if row.end_us <= row.start_us:
            raise DataError(f"{where}:{number}: the end, {row.end_us}, is not after the start, {row.start_us}")
        rows.append(row)
    if not rows:
        raise DataError(f"{where}: there is no label in it")
    rows.sort(key=lambda r: r.start_us)
    for a, b in zip(rows, rows[1:], strict=False):
        if a.start_us == b.start_us:
            raise DataError(f"{where}:{b.line}: starts at {b.start_us} as line {a.line} does")
    return rows


def _gestures(
    files: Files, stem: str, classes: int, sensor: tuple[int, int], cut_overlaps: bool, notes: list[str]
) -> list[Recording]:
    labels, source = files[f"{stem}_labels.csv"], files[f"{stem}.aedat"]
    rows = read_labels(_text(labels), labels.where, classes)
    stops = [row.end_us + 1 for row in rows]
    for i, (a, b) in enumerate(zip(rows, rows[1:], strict=False)):
        if a.end_us >= b.start_us:
            what = "it is cut there" if cut_overlaps else "it is kept, as the reference does"
            notes.append(f"{labels.where}:{a.line}: the label ends after line {b.line}'s start; {what}")
            stops[i] = b.start_us if cut_overlaps else stops[i]
    if lacking := sorted(set(range(1, classes + 1)) - {r.number for r in rows}):
        notes.append(f"{labels.where}: {len(rows)} rows, none of class {', '.join(map(str, lacking))}")

    found = index(source, AEDAT31, sensor, lambda _: [(r.start_us, s) for r, s in zip(rows, stops, strict=True)])
    first, last = found.whole.first_us, found.whole.last_us
    if found.left_out:
        notes.append(f"{source.where}: {found.left_out} events that the camera marked invalid are left out")
    out = []
    for i, (row, span) in enumerate(zip(rows, found.spans, strict=True)):
        at = f"{labels.where}:{row.line}: class {row.number} from {row.start_us} to {row.end_us} us"
        if row.end_us > last + BEYOND_US or row.start_us > last:
            raise DataError(
                f"{at}: the events of {source.where} end at {last} us; the recording is truncated, or the labels are"
                " of another one"
            )
        if not span.count:
            raise DataError(
                f"{at}: no event of {source.where} lies there (its events go from {first} to {last} us); the labels"
                " are of another recording"
            )
        if row.end_us > last + NOTED_US:
            notes.append(f"{at}: ends {row.end_us - last} us after the last event")
        zero = span.first_us // 1000 * 1000
        user = re.match(r"user\d+(?=_)", stem)
        out.append(
            Recording(
                f"{stem} row {i + 1}",
                row.number - 1,
                found.store,
                zero,
                span.start_us,
                span.stop_us,
                (span.last_us - zero) // 1000 + 1,
                span.count,
                found.sha256,
                user[0] if user else stem,
            )  # fmt: skip
        )
    return out
