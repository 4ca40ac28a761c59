"""`shapes`, a synthetic data set of an event camera: a disc, cross or triangle moves to and fro, sideways or upright.

Made from a seed, without files or network, and yet through the whole path of real data: the generator writes the files
of a DVS Gesture folder (AEDAT 3.1, label files, lists), which `trials.py` reads. A recording lasts 500 ms on a
128 x 128 sensor. Every pixel that the shape's bright body reaches gets an ON event, every one that it leaves an OFF
event; some events are missing, all are late by a random time, and every pixel fires at random now and then.

Position, size, speed and phase are random. The outline says the shape, the edges that fire say the axis of its motion.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsim.data.aedat_write import aedat31_bytes
from hwsim.data.event_stream import Events
from hwsim.data.trials import COLUMNS, LISTS

OUTLINES, AXES = ("disc", "cross", "triangle"), ("sideways", "upright")
CLASSES = tuple(f"{outline} {axis}" for outline in OUTLINES for axis in AXES)
SENSOR = 128


@dataclass(frozen=True)
class Scene:
    """What the synthetic recordings look like."""

    train_trials: int = 30
    """Files to train with, each of another pretended person, with each class twice."""
    test_trials: int = 10
    """Files to test with."""
    length_ms: int = 500
    """Milliseconds of a recording."""
    pause_ms: int = 50
    """Milliseconds of noise alone between recordings."""
    radius: tuple[float, float] = (29.0, 36.0)
    """Half the size of a shape, in pixels: drawn between these."""
    place: float = 7.0
    """How far from the sensor's center the motion is centered, at most, in pixels, in x and in y."""
    reach: float = 14.0
    """Pixels from the middle of the motion to its ends."""
    speed: tuple[float, float] = (0.4, 0.6)
    """Pixels a millisecond: drawn between these."""
    seen: float = 0.9
    """Probability that a pixel fires when an edge passes it."""
    late_ms: float = 2.0
    """Mean of the exponential delay of an event."""
    noise_hz: float = 0.5
    """Background events of a pixel a second."""


def extent(outline: str, axis: str, across: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far a shape reaches back and forth along its motion, on lines beside its center.

    across: distances [L] of the lines from the center, across the motion.   Returns (back, front, hit): the shape
    covers back..front on the lines where hit is true. The triangle points up, against y.

    >>> back, front, hit = extent("disc", "sideways", np.array([0.0, 3.0, 9.0]), 5.0)
    >>> (front - back).tolist(), front.tolist(), hit.tolist()
    ([10.0, 8.0, 0.0], [5.0, 4.0, 0.0], [True, True, False])
    """
    hit = np.abs(across) <= radius
    c = np.where(hit, across, radius)
    if outline == "disc":
        front = np.sqrt(radius**2 - c**2)
        back = -front
    elif outline == "cross":
        front = np.where(np.abs(c) <= radius / 3, radius, radius / 3) * hit
        back = -front
    elif axis == "sideways":  # A line is a row of the triangle: broad at the bottom.
        front = (c + radius) / 2 * hit
        back = -front
    else:  # A line is a column: from the slope above down to the base.
        front, back = radius * hit, (2 * np.abs(c) - radius) * hit
    return back, front, hit


def moving(label: int, scene: Scene, random: np.random.Generator) -> Events:
    """One recording of a class without noise, its times from 0 to length_ms.

    The shape goes from one end of its way to the other and back at constant speed, again and again, and begins
    somewhere in this. On the way up an edge at distance e from the shape's center passes pixel u, both counted from the
    middle of the way, at u - e + reach pixels of way; on the way back at 3 reach - (u - e). The front edge covers
    pixels on the way up and leaves them on the way back, the back edge the other way round.
    """
    outline, axis = CLASSES[label].split()
    radius, speed = random.uniform(*scene.radius), random.uniform(*scene.speed)
    middle, center = SENSOR / 2 + random.uniform(-scene.place, scene.place, 2)
    round_px = 4 * scene.reach
    start = random.uniform(0, round_px)
    back, front, hit = extent(outline, axis, np.arange(SENSOR) - center, radius)
    line, along = np.meshgrid(np.flatnonzero(hit), np.arange(SENSOR), indexing="ij")
    rounds = int(scene.length_ms * scene.speed[1] // round_px) + 2
    parts = []
    for edge, covers_up in ((front, 1), (back, 0)):
        place = along - middle - edge[hit, None]
        passes = np.abs(place) < scene.reach
        for way, p in ((place + scene.reach, covers_up), (3 * scene.reach - place, 1 - covers_up)):
            for lap in range(rounds):
                t_ms = (way + lap * round_px - start) / speed + random.exponential(scene.late_ms, way.shape)
                fires = passes & (t_ms >= 0) & (t_ms < scene.length_ms) & (random.random(way.shape) < scene.seen)
                x, y = (along, line) if axis == "sideways" else (line, along)
                parts.append(Events(t_ms[fires] * 1000, x[fires], y[fires], np.full(fires.sum(), p)))
    return Events.join(parts)


def noise(length_ms: int, scene: Scene, random: np.random.Generator) -> Events:
    """Background events: each pixel fires by itself, as a Poisson process, ON or OFF."""
    n = int(random.poisson(scene.noise_hz * SENSOR**2 * length_ms / 1000))
    return Events(random.uniform(0, 1000 * length_ms, n), *random.integers(0, SENSOR, (2, n)), random.integers(0, 2, n))


def trial(number: int, seed: int, scene: Scene) -> tuple[bytes, str]:
    """The AEDAT 3.1 file and the label file of one trial: each class twice, in random order."""
    random = np.random.default_rng([seed, number])
    labels = random.permutation(np.repeat(np.arange(len(CLASSES)), 2))
    slot = scene.length_ms + scene.pause_ms
    parts, lines = [noise(slot * len(labels) + scene.pause_ms, scene, random)], [COLUMNS]
    for i, label in enumerate(labels.tolist()):
        begin = 1000 * (scene.pause_ms + i * slot)
        events = moving(label, scene, random)
        parts.append(Events(events.t_us + begin, events.x, events.y, events.p))
        lines.append(f"{label + 1},{begin},{begin + 1000 * scene.length_ms - 1}")
    events = Events.join(parts)
    events = events.take(np.argsort(events.t_us, kind="stable"))
    return aedat31_bytes(events), "\n".join(lines) + "\n"


def shapes_files(seed: int = 0, scene: Scene | None = None) -> dict[str, bytes]:
    """All files of a `shapes` folder by name. The same seed and scene give the same bytes."""
    scene, files = scene or Scene(), {}
    numbers = range(1, scene.train_trials + scene.test_trials + 1)
    stems = [f"user{number:02d}_made" for number in numbers]
    for number, stem in zip(numbers, stems, strict=True):
        events, labels = trial(number, seed, scene)
        files[f"{stem}.aedat"], files[f"{stem}_labels.csv"] = events, labels.encode()
    for name, part in zip(LISTS, (stems[: scene.train_trials], stems[scene.train_trials :]), strict=True):
        files[name] = "".join(f"{stem}.aedat\n" for stem in part).encode()
    return files


def write_shapes(folder: Path, seed: int = 0, scene: Scene | None = None) -> None:
    """Write the files of a `shapes` folder, to look at them or to read them with other programs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in shapes_files(seed, scene).items():
        (folder / name).write_bytes(payload)
