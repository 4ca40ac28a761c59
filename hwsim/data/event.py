"""Event data sets by name: splits that do not leak, windows by profile, and the checksum that a run's key needs.

`shapes` is made from a seed and is the offline default; `gesture`, `slow-poker`, `nmnist` and `poker-dvs` are read
from the files that users have (`event_sets.py`). `windows.batches` makes tensors of a split.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hwsim.config import DataError, nearest
from hwsim.data.event_sets import (
    CHUNKS_MS,
    GESTURE,
    N_MNIST,
    POKER_DVS,
    SLOW_POKER,
    EventSet,
    find_trials,
    read_nmnist,
    read_poker_dvs,
    read_slow_poker,
)
from hwsim.data.event_stream import source_in_memory
from hwsim.data.image import data_folder, stratified
from hwsim.data.recording import Recording
from hwsim.data.shapes import CLASSES, SENSOR, Scene, shapes_files
from hwsim.data.trials import Trials, files_of, read_trials
from hwsim.data.windows import Mode, Window, check_windows

SHAPES = EventSet(
    "shapes", CLASSES, (SENSOR, SENSOR), 360, 120, 60, 60, 5, 4, True, "synthetic, see hwsim/data/shapes.py"
)
SETS = {s.name: s for s in (SHAPES, N_MNIST, POKER_DVS, SLOW_POKER, GESTURE)}
NAMES = tuple(SETS)

Profile = Literal["release", "paper", "fixed"]
SplitRule = Literal["clean", "seed", "folds"]
Split = tuple[Recording, ...]


@dataclass(frozen=True, eq=False)
class EventData:
    """A data set's three splits, and what a run needs to know of it."""

    facts: EventSet
    train: Split
    validation: Split
    test: Split
    checksum: str
    """sha256 over name, label, place and content of every recording of the three splits."""
    notes: tuple[str, ...]
    """What is unusual in the files, one sentence each: to be told before training starts."""

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def sensor(self) -> tuple[int, int]:
        """Pixels in x and in y."""
        return self.facts.sensor

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.facts.class_names

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.facts.class_names)


def labels_of(split: Sequence[Recording]) -> torch.Tensor:
    """Labels int64 [N] of a split."""
    return torch.tensor([r.label for r in split], dtype=torch.int64)


def windows_for(
    data: EventData,
    profile: Profile = "fixed",
    *,
    steps: int | None = None,
    test_steps: int | None = None,
    step_ms: int | None = None,
    ds: int | None = None,
    mode: Mode = 0,
    short: Literal["refuse", "pad"] = "refuse",
) -> tuple[Window, Window]:
    """The windows for training, and for validation and test; what is None is the data set's own.

    Training windows are jittered, and begin at random where the data set says so. Windows for validation and test
    begin at 0; `release` and `paper` jitter them as well, as the reference does (trap B12), `fixed` does not.
    test_steps: without it as many as `steps` where that is given.
    Raises `DataError`: a window longer than a recording of any split, an unknown mode or profile.
    """
    if profile not in ("release", "paper", "fixed"):
        raise DataError(f"there is no profile '{profile}'; there is release, paper, fixed")
    facts = data.facts
    train_steps = facts.steps if steps is None else steps
    tested = (facts.test_steps if steps is None else steps) if test_steps is None else test_steps
    step = facts.step_ms if step_ms is None else step_ms
    pixels = facts.ds if ds is None else ds
    begin = "random" if facts.random_start else "first"
    training = Window(train_steps, step, pixels, mode, begin, True, short)
    testing = Window(tested, step, pixels, mode, "first", profile != "fixed", short)
    check_windows(data.train, training, f"training recordings of {data.name}")
    check_windows(data.validation, testing, f"validation recordings of {data.name}")
    check_windows(data.test, testing, f"test recordings of {data.name}")
    return training, testing


def load_events(
    name: str = "shapes",
    *,
    data_dir: Path | None = None,
    split: SplitRule = "clean",
    seed: int = 0,
    fold: int = 0,
    folds: int = 5,
    validation_fraction: float = 0.2,
    limit: int | None = None,
    profile: Profile = "fixed",
    chunk_ms: int = 500,
    span_ms: int = CHUNKS_MS,
    variant: str = "on",
    allow_missing: bool = False,
    scene: Scene | None = None,
) -> EventData:
    """An event data set by name: shapes, nmnist, poker-dvs, slow-poker, gesture.

    split: `clean` never has related recordings on two sides. gesture and shapes: the official test persons, and some
    of the training persons for validation. slow-poker: every class's recording is cut by time into training,
    validation and test, with one chunk left out between them. nmnist and poker-dvs: the given test part, and a
    stratified share of the training part. It depends on no seed.
    `seed` is the reference's: everything shuffled (by `seed`), the first 80 % train; slow-poker so twice, which puts
    neighboring chunks of a recording into training and test (trap B21).
    `folds`, for poker-dvs with its few recordings: fold `fold` of `folds` is the test set, all stratified.
    validation_fraction: share of the training recordings set aside for validation; 0.2 in the reference.
    limit: at most this many training recordings and the same share of the others, stratified.
    profile: `fixed` cuts labels of gesture that reach into the next gesture, `release` and `paper` keep them.
    chunk_ms, span_ms: of slow-poker, see `read_slow_poker`.   variant: of poker-dvs.   allow_missing: of gesture.
    seed, scene: of shapes, what is made. (Its splits are always those of its pretended persons.)
    Raises `DataError`: unknown name, data missing, damaged or contradictory, a choice that leaves a split empty.
    """
    if name not in SETS:
        raise DataError(f"there is no event data set '{name}'{nearest(name, NAMES)} (allowed: {', '.join(NAMES)})")
    facts = SETS[name]
    allowed = {"poker-dvs": ("clean", "seed", "folds"), "shapes": ("clean",)}.get(name, ("clean", "seed"))
    if split not in allowed:
        raise DataError(f"{name}: there is no split '{split}'; there is {', '.join(allowed)}")
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction is {validation_fraction}; it must be above 0 and below 1")
    if limit is not None and limit < len(facts.class_names):
        raise DataError(f"limit is {limit}; {name} needs at least {len(facts.class_names)}, one for each class")
    folder = data_folder(data_dir)
    if name == "slow-poker":
        chunks, notes = read_slow_poker(folder, chunk_ms, span_ms)
        parts = _by_time(chunks, split, seed, validation_fraction)
    else:
        found = _read(name, folder, facts, profile, variant, allow_missing, seed, scene)
        notes = found.notes
        parts = _parts(found, name, split, seed, fold, folds, validation_fraction)
        for what, have, official in (("training", found.train, facts.train), ("test", found.test, facts.test)):
            if official and len(have) != official and not scene:
                notes.append(f"{name}: {len(have)} {what} recordings; the official data set has {official}")
    if limit is not None and limit < len(parts[0]):
        share = limit / len(parts[0])
        parts = [_limited(part, max(len(facts.class_names), round(share * len(part)))) for part in parts]
    for what, part in zip(("training", "validation", "test"), parts, strict=True):
        if not part:
            raise DataError(f"{name}: there is no {what} recording; choose another validation_fraction or limit")
    train, validation, test = (tuple(part) for part in parts)
    return EventData(facts, train, validation, test, _checksum(train, validation, test), tuple(notes))


def _read(name, folder, facts, profile, variant, allow_missing, seed, scene) -> Trials:
    if name == "nmnist":
        return read_nmnist(folder)
    if name == "poker-dvs":
        return read_poker_dvs(folder, variant)
    if name == "shapes":
        files = {n: source_in_memory(f"shapes/{n}", payload) for n, payload in shapes_files(seed, scene).items()}
        where = "shapes"
    else:
        place = find_trials(folder)
        files, where = files_of(place), str(place)
    return read_trials(
        files, where, len(facts.class_names), facts.sensor, cut_overlaps=profile == "fixed", allow_missing=allow_missing
    )


def _shuffled(recordings: list[Recording], share: float, random: np.random.RandomState) -> tuple[list, list]:
    """A random `share` of the recordings, and the others."""
    order = random.permutation(len(recordings))
    count = int(share * len(recordings) + 1e-9)
    return [recordings[i] for i in order[:count]], [recordings[i] for i in order[count:]]


def _by_time(
    classes: list[list[Recording]], split: str, seed: int, validation_fraction: float
) -> list[list[Recording]]:
    """Slow-poker: the end of every recording is the test set, what comes before that validation, one chunk between."""
    if split == "seed":
        random = np.random.RandomState(seed)
        pool, test = _shuffled([chunk for chunks in classes for chunk in chunks], 0.8, random)
        train, validation = _shuffled(pool, 1 - validation_fraction, random)
        return [train, validation, test]
    parts: list[list[Recording]] = [[], [], []]
    for chunks in classes:
        test = max(1, round(0.2 * len(chunks)))
        validation = max(1, round(validation_fraction * (len(chunks) - test)))
        begin = len(chunks) - test
        parts[2] += chunks[begin:]
        parts[1] += chunks[max(0, begin - 1 - validation) : max(0, begin - 1)]
        parts[0] += chunks[: max(0, begin - 2 - validation)]
    return parts


def _parts(
    found: Trials, name: str, split: str, seed: int, fold: int, folds: int, validation_fraction: float
) -> list[list[Recording]]:
    pool, test = found.train, found.test
    if split == "folds":
        if not (folds >= 2 and 0 <= fold < folds):
            raise DataError(f"fold {fold} of {folds}; there must be at least 2, and fold counts from 0")
        everything, random = pool + test, np.random.RandomState(seed)
        place = np.empty(len(everything), np.int64)
        labels = labels_of(everything).numpy()
        for label in np.unique(labels):
            of_class = random.permutation(np.flatnonzero(labels == label))
            place[of_class] = (np.arange(len(of_class)) + label) % folds
        pool = [r for r, p in zip(everything, place, strict=True) if p != fold]
        test = [r for r, p in zip(everything, place, strict=True) if p == fold]
    if split == "seed":
        train, validation = _shuffled(pool, 1 - validation_fraction, np.random.RandomState(seed))
    elif name in ("gesture", "shapes"):
        train, validation = _by_group(pool, validation_fraction)
    else:
        count = max(len({r.label for r in pool}), round(validation_fraction * len(pool)))
        aside, kept = stratified(labels_of(pool).numpy(), min(count, len(pool)))
        train, validation = [pool[i] for i in kept], [pool[i] for i in aside]
    return [train, validation, test]


def _by_group(pool: list[Recording], share: float) -> tuple[list[Recording], list[Recording]]:
    """Whole groups (persons), in a fixed random order, go into validation until the share is reached most nearly."""
    groups = sorted({r.group for r in pool})
    chosen: set[str] = set()
    for i in np.random.RandomState(20).permutation(len(groups))[: len(groups) - 1]:
        wider = chosen | {groups[i]}
        before, after = (abs(sum(r.group in c for r in pool) - share * len(pool)) for c in (chosen, wider))
        if chosen and after > before:
            break
        chosen = wider
    return [r for r in pool if r.group not in chosen], [r for r in pool if r.group in chosen]


def _limited(part: list[Recording], count: int) -> list[Recording]:
    return [part[i] for i in stratified(labels_of(part).numpy(), count)[0]] if count < len(part) else part


def _checksum(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(b"split")
        for r in split:
            digest.update(repr((r.name, r.label, r.zero_us, r.start_us, r.stop_us, r.count, r.checksum)).encode())
    return digest.hexdigest()
