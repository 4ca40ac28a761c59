"""From recordings to the tensors that a network sees: windows, jitter, down-sampling, input modes, batches.

A batch is x_TBCXY [T, B, C, X, Y], time first as everywhere in hwsim. The last two axes are the camera's x, then y, as
in the reference: as an image (rows, columns) it is **transposed**. A kernel that is not symmetric sees the difference;
show one with `x.mT`. The reference's own order is [B, C, X, Y, T].

T steps, B batch, C channels, X Y pixels after down-sampling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hwsim.config import DataError
from hwsim.data.event_stream import Events
from hwsim.data.recording import Recording

Mode = Literal[0, 1, 2, 3, "counts"]
MODES: tuple[Mode, ...] = (0, 1, 2, 3, "counts")
JITTER_MS = 0.5


@dataclass(frozen=True)
class Window:
    """What of a recording enters the network, and how."""

    steps: int
    """Time steps T."""
    step_ms: int = 1
    """Milliseconds a step; the papers use 1."""
    ds: int = 4
    """Pixels that become one, in x and in y; the papers make 32 of 128 with 4."""
    mode: Mode = 0
    """0: any event makes a 1, two channels (OFF, ON). 1: the same, as "not zero". 2: the sign of ON minus OFF, one
    channel. 3: that sign in both channels. counts: the number of events, two channels."""
    start: Literal["first", "random"] = "first"
    """Where a window begins: at the recording's millisecond 0, or anywhere where it fits."""
    jitter: bool = False
    """Move each event by a normal number of milliseconds of spread 0.5, cut towards 0: about 4.6 % of them move."""
    short: Literal["refuse", "pad"] = "refuse"
    """A recording shorter than the window is an error, or is followed by silence."""

    def __post_init__(self) -> None:
        for what in ("steps", "step_ms", "ds"):
            if getattr(self, what) < 1:
                raise DataError(f"window: {what} is {getattr(self, what)}; it must be at least 1")
        if self.mode not in MODES:
            allowed = ", ".join(map(str, MODES))
            raise DataError(f"window: found input mode {self.mode!r}; allowed: {allowed}")

    @property
    def length_ms(self) -> int:
        """Milliseconds of the whole window."""
        return self.steps * self.step_ms

    @property
    def channels(self) -> int:
        """Channels of the tensor."""
        return 1 if self.mode == 2 else 2

    def shape_CXY(self, sensor: tuple[int, int]) -> tuple[int, int, int]:
        """Shape of a step's input: a remainder of pixels at the sensor's end makes a smaller last one.

        >>> Window(500).shape_CXY((128, 128)), Window(300, ds=1).shape_CXY((34, 34))
        ((2, 32, 32), (2, 34, 34))
        """
        return self.channels, -(-sensor[0] // self.ds), -(-sensor[1] // self.ds)


def check_windows(recordings: Sequence[Recording], window: Window, what: str = "recordings") -> None:
    """Refuse a window that is longer than a recording, before anything is trained.

    Raises `DataError` naming the shortest recording and what would fit.
    """
    if window.short == "pad" or not recordings:
        return
    short = [r for r in recordings if r.length_ms < window.length_ms]
    if short:
        shortest = min(short, key=lambda r: r.length_ms)
        fits = shortest.length_ms // window.step_ms
        raise DataError(
            f"a window of {window.steps} steps of {window.step_ms} ms is longer than {len(short)} of {len(recordings)}"
            f" {what}; the shortest, {shortest.name}, lasts {shortest.length_ms} ms: use at most {fits} steps, or"
            " short: pad for silence behind it"
        )


def jitter_ms(normals: torch.Tensor) -> torch.Tensor:
    """Milliseconds to move events by: 0.5 z cut towards zero.

    >>> jitter_ms(torch.tensor([-4.2, -1.99, 0.0, 1.99, 2.0, 4.0])).tolist()
    [-2, 0, 0, 0, 1, 2]
    """
    return (JITTER_MS * normals).trunc().long()


def bin_events(
    samples: Sequence[Events],
    window: Window,
    sensor: tuple[int, int],
    jitter: Sequence[torch.Tensor] | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Events of B samples, their times counted from the window's begin, as one tensor x_TBCXY.

        step = clamp(floor(t_us / 1000) + jitter, 0, T step_ms - 1) // step_ms,   pixel = (x // ds, y // ds)

    jitter: for each sample, whole milliseconds for each of its events; see `jitter_ms`.
    Returns int16 for counts, uint8 for modes 0 and 1, int8 for 2 and 3, on `device`. Unlike the reference no mode
    changes another tensor in place.
    Raises `DataError` for an event outside the window or off the sensor.
    Source: Schaefer and Joshi, ICONS 2020, input pipeline of DECOLLE.
    """
    C, X, Y = window.shape_CXY(sensor)
    B, places, values = len(samples), [], []
    for b, events in enumerate(samples):
        t, x, y = events.t_us // 1000, events.x.astype(np.int64), events.y.astype(np.int64)
        for name, found, limit in (("millisecond", t, window.length_ms), ("x", x, sensor[0]), ("y", y, sensor[1])):
            if len(found) and not (found.min() >= 0 and found.max() < limit):
                bad = int(found.min() if found.min() < 0 else found.max())
                raise DataError(f"bin_events: sample {b} has an event at {name} {bad}, allowed are 0..{limit - 1}")
        if jitter is not None:
            t = np.clip(t + jitter[b].numpy(), 0, window.length_ms - 1)
        channel = 0 if window.mode in (2, 3) else events.p.astype(np.int64)
        step = t // window.step_ms
        places.append((((step * B + b) * 2 + channel) * X + x // window.ds) * Y + y // window.ds)
        values.append(2 * events.p.astype(np.int16) - 1 if window.mode in (2, 3) else np.ones(len(events), np.int16))
    place = torch.from_numpy(np.concatenate([*places, np.empty(0, np.int64)])).to(device)
    if window.mode in (0, 1):
        x_TBCXY = torch.zeros(window.steps, B, C, X, Y, dtype=torch.uint8, device=device)
        x_TBCXY.view(-1)[place] = 1
        return x_TBCXY
    value = torch.from_numpy(np.concatenate([*values, np.empty(0, np.int16)])).to(device)
    counts = torch.zeros(window.steps, B, 2, X, Y, dtype=torch.int16, device=device)
    counts.view(-1).index_add_(0, place, value)
    if window.mode == "counts":
        return counts
    sign = counts[:, :, :1].sign().to(torch.int8)
    return sign if window.mode == 2 else sign.expand(-1, -1, 2, -1, -1).contiguous()


def start_of(recording: Recording, window: Window, generator: torch.Generator | None) -> int:
    """The millisecond where a window begins: a whole number from 0 to (last millisecond - window), both included.

    The reference fails where that is negative; here a window that just fits begins at 0.
    """
    if window.start == "first":
        return 0
    assert generator is not None, "a random start needs a generator"
    last = max(0, recording.length_ms - 1 - window.length_ms)
    return int(torch.randint(0, last + 1, (), generator=generator))


def cut(recording: Recording, window: Window, generator: torch.Generator | None = None) -> Events:
    """One window of a recording, its times counted from the window's begin."""
    start = start_of(recording, window, generator)
    events = recording.between_ms(start, window.length_ms)
    return Events(events.t_us - 1000 * start, events.x, events.y, events.p)


def batches(
    recordings: Sequence[Recording],
    window: Window,
    sensor: tuple[int, int],
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (x_TBCXY, labels_B int64), read from the recordings only when they are asked for.

    generator: a CPU generator. It draws the order (when this is called), then for each batch the starts and jitters of
    its recordings in turn. Needed for `shuffle`, a random start, or jitter.
    The last batch may be smaller, unless `drop_last`.
    Raises `DataError` as `check_windows` does, for a batch size below 1, and where `drop_last` leaves nothing.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    if drop_last and len(recordings) < batch_size:
        raise DataError(f"{len(recordings)} recordings do not fill one batch of {batch_size}, and drop_last is set")
    if generator is None and (shuffle or window.jitter or window.start == "random"):
        raise DataError("a random order, start or jitter needs a generator")
    check_windows(recordings, window)
    n = len(recordings)
    order = torch.randperm(n, generator=generator).tolist() if shuffle else list(range(n))
    end = n - n % batch_size if drop_last else n

    def each() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for begin in range(0, end, batch_size):
            chosen = [recordings[i] for i in order[begin : min(begin + batch_size, end)]]
            samples, jitter = [], [] if window.jitter else None
            for recording in chosen:
                samples.append(cut(recording, window, generator))
                if jitter is not None:
                    jitter.append(jitter_ms(torch.randn(len(samples[-1]), generator=generator)))
            labels = torch.tensor([r.label for r in chosen])
            yield bin_events(samples, window, sensor, jitter, device), labels.to(device)

    return each()
