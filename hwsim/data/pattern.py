"""Spike patterns for the pattern network: an input raster and the target raster that it is to be answered with.

Inputs are drawn by the generator of the published code. Targets are a drawn smiley, any picture (dark pixels are
spikes), or arrays; a file with both an input and a target, such as the Oxford spike pattern, gives both. Nothing is
resized: a raster of another size is refused, with the sizes to ask for.

T steps (rows), N neurons (columns). Rasters are uint8, 0 or 1.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from hwsim.config import DataError

DARK = 500
"""A pixel is a spike where its three 8-bit channels add up to less. Source: section 1.1."""
KEEP = 0.95
"""Probability that a spike of a picture stays. Source: section 1.1, `smile95`."""


@dataclass(frozen=True, eq=False)
class PatternData:
    """The one sample of a pattern task."""

    name: str
    input_TI: Tensor
    target_TO: Tensor
    checksum: str
    """sha256 over both rasters: what the run really uses."""


def poisson_like(steps: int, neurons: int, generator: Generator) -> Tensor:
    """The input raster [T, N]: trains of whole intervals that are Poisson distributed, 0 among them.

    Neuron i has the mean interval 1 + 0.25 (i // 5 + 1) steps; spikes that fall together count once. A step of a
    neuron of mean m is a spike with the probability (1 - e^-m)/m, from 0.571 for the first five neurons to 0.028 for
    neuron 699, on average 0.092. Source: the published generator, section 1.1.
    """
    mean_N = 1.0 + 0.25 * (torch.arange(neurons, dtype=torch.float64) // 5 + 1)
    raster = torch.zeros(steps, neurons, dtype=torch.uint8)
    last_N = torch.zeros(neurons, dtype=torch.float64)
    while bool((last_N < steps).any()):
        intervals = torch.poisson(mean_N.expand(steps, neurons).contiguous(), generator=generator)
        times_KN = last_N + intervals.cumsum(0)
        k, n = (times_KN < steps).nonzero(as_tuple=True)
        raster[times_KN[k, n].long(), n] = 1
        last_N = times_KN[-1]
    return raster


def smiley(steps: int, neurons: int) -> Tensor:
    """A smiling face [T, N], 1 where it is drawn: ring, two eyes, mouth. A fifth of 250x250.

    On 250x250: ring of radius 95 to 110, eyes of radius 14, mouth an arc of radius 55 to 67 over 126 degrees; other
    sizes are stretched to. Source: section 1.1 (the published picture is not available).
    """
    t, n = torch.meshgrid(torch.arange(steps), torch.arange(neurons), indexing="ij")
    y, x = (t + 0.5) * 250 / steps - 125, (n + 0.5) * 250 / neurons - 125
    radius, down = (x * x + y * y).sqrt(), torch.atan2(x, y).abs()  # angle from straight down
    ring = (radius >= 95) & (radius < 110)
    mouth = (radius >= 55) & (radius < 67) & (down < math.radians(63))
    eyes = ((x.abs() - 38) ** 2 + (y + 35) ** 2) < 14**2
    return (ring | mouth | eyes).to(torch.uint8)


def thin(raster: Tensor, keep: float, generator: Generator) -> Tensor:
    """The raster with each spike kept with probability `keep`; nothing is added.

    Raises `DataError` if `keep` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise DataError(f"keep: found {keep:g}; the share of a picture's spikes that stay must be above 0, at most 1")
    return raster * (torch.rand(raster.shape, generator=generator) < keep).to(raster.dtype)


def load_pattern(
    target: str | Path = "smiley",
    *,
    steps: int,
    inputs: int,
    outputs: int,
    input_generator: Generator,
    target_generator: Generator,
    keep: float = KEEP,
) -> PatternData:
    """The sample of a pattern task.

    target: `smiley`, or a file. A picture (PNG and what matplotlib reads) or an array of pixels [T, O, 3 or 4] uint8
    becomes spikes where it is dark and is thinned to `keep`; an array [T, O] of 0 and 1 (.npy) is taken as it is; both
    with a drawn input. An .npz gives both rasters: `input` [T, I] and `target` [T, O], or lists of spikes in
    microseconds (`input_neuron`, `input_t_us`, `output_neuron`, `output_t_us`) that are binned into T equal steps.
    Raises `DataError` for what is missing, unreadable, of another size or not a raster.
    """
    drawn = None
    if str(target) == "smiley":
        raster = thin(smiley(steps, outputs), keep, target_generator)
    else:
        path = Path(target).expanduser()
        if not path.is_file():
            raise DataError(f"target: there is no file {path}; name a picture, .npy or .npz file, or take 'smiley'")
        if path.suffix.lower() == ".npz":
            drawn, raster = _both(path, steps, inputs, outputs)
        else:
            raster, is_picture = _picture(path)
            _fits(path, "target", raster, steps, outputs, "--outputs")
            raster = thin(raster, keep, target_generator) if is_picture else raster
    x = poisson_like(steps, inputs, input_generator) if drawn is None else drawn
    if not bool(x.any()):
        raise DataError(f"{target}: no input spike lies in the {steps} steps, so that nothing could be learned")
    digest = hashlib.sha256()
    for r in (x, raster):
        digest.update(repr(tuple(r.shape)).encode() + r.contiguous().numpy().tobytes())
    return PatternData(str(target), x, raster.contiguous(), digest.hexdigest())


def _fits(path: Path, what: str, raster: Tensor, steps: int, neurons: int, option: str) -> None:
    found = tuple(raster.shape)
    if found != (steps, neurons):
        raise DataError(
            f"{path}: the {what} has {found[0]} rows (steps) and {found[1]} columns (neurons), the network {steps} and "
            f"{neurons}; take --steps {found[0]} {option} {found[1]}, or a file of {steps}x{neurons}"
        )


def _picture(path: Path) -> tuple[Tensor, bool]:
    """(raster, whether it comes from pixels) of a picture or .npy file."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            from matplotlib.image import imread

            array = imread(path)
    except Exception as e:  # Image libraries raise nearly anything on a damaged file.
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise DataError(f"{path}: cannot be read as a picture or .npy array: {first}") from None
    if path.suffix.lower() == ".npy" and array.ndim == 2:
        return _raster(array, str(path)), False
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise DataError(f"{path}: found an array of shape {array.shape}; expected [T, O] of 0 and 1, or pixels")
    if array.dtype.kind == "f":  # matplotlib gives PNG as 0..1
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise DataError(f"{path}: found pixels of type {array.dtype}; expected uint8")
    return torch.from_numpy((_channel_sum(array.astype(np.float64)) < DARK).astype(np.uint8)), True


def _channel_sum(pixels: np.ndarray) -> np.ndarray:
    """Sum of three channels from 0 to 255; gray counts three times, what is transparent lies on white."""
    if pixels.ndim == 2:
        return 3 * pixels
    color = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, 2)
    if pixels.shape[2] in (2, 4):
        opaque = pixels[..., -1:] / 255
        color = np.rint(color * opaque + 255 * (1 - opaque))
    return color.sum(2)


def _raster(array: np.ndarray, where: str) -> Tensor:
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(f"{where}: found {array.dtype} of shape {array.shape}; expected a raster [T, neurons] of 0, 1")
    if not bool(np.isin(array, (0, 1)).all()):
        other = array[~np.isin(array, (0, 1))].flat[0]
        raise DataError(f"{where}: found the value {other:g}; a raster holds only 0 and 1")
    return torch.from_numpy(array.astype(np.uint8))


_LISTS = {"input": ("input_neuron", "input_t_us"), "target": ("output_neuron", "output_t_us")}
_OPTION = {"input": "--inputs", "target": "--outputs"}


def _both(path: Path, steps: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Input and target of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as z:
            arrays = {k: z[k] for k in z.files}
    except Exception as e:
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise DataError(f"{path}: cannot be read as an .npz file: {first}") from None
    sizes = {"input": inputs, "target": outputs}
    if {"input", "target"} <= arrays.keys():
        out = [_raster(arrays[what], f"{path}: {what}") for what in sizes]
    elif all(k in arrays for keys in _LISTS.values() for k in keys):
        last = max([int(arrays[t].max()) for _, t in _LISTS.values() if arrays[t].size], default=0)
        out = [_binned(path, arrays, what, steps, sizes[what], last + 1) for what in sizes]
    else:
        raise DataError(
            f"{path}: found {', '.join(arrays) or 'nothing'}; expected the arrays input and target, or "
            f"{', '.join(k for keys in _LISTS.values() for k in keys)}"
        )
    for what, raster in zip(sizes, out, strict=True):
        _fits(path, what, raster, steps, sizes[what], _OPTION[what])
    return out[0], out[1]


def _binned(path: Path, arrays: dict, what: str, steps: int, neurons: int, span_us: int) -> Tensor:
    """Spike lists as a raster of `steps` equal steps; its width is what the list needs, at least `neurons`."""
    neuron, time = (arrays[k] for k in _LISTS[what])
    if neuron.shape != time.shape or neuron.ndim != 1 or neuron.dtype.kind not in "iu" or time.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {' and '.join(_LISTS[what])} are {neuron.dtype} {neuron.shape} and {time.dtype} {time.shape}; "
            "expected two lists of whole numbers of equal length"
        )
    neuron, time = neuron.astype(np.int64), time.astype(np.int64)
    if neuron.size and min(neuron.min(), time.min()) < 0:
        raise DataError(f"{path}: {' and '.join(_LISTS[what])} must not be negative")
    width = int(neuron.max()) + 1 if neuron.size else neurons
    if width > 65536:
        raise DataError(f"{path}: {_LISTS[what][0]} goes up to {width - 1}; at most 65535 is taken")
    raster = torch.zeros(steps, width if width > neurons else neurons, dtype=torch.uint8)
    raster[torch.from_numpy(time * steps // span_us), torch.from_numpy(neuron)] = 1
    return raster
