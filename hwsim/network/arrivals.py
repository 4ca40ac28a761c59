"""What a layer leaves for accounting: the inputs that arrive at it, by place and step, and the spikes of its neurons.

Whole numbers, summed over a batch. T steps, B batch, C channels, H W image, N neurons.
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import nn


def arrived(layer: nn.Module, x_TB: torch.Tensor, parts: int, *, signed: bool, rows: Sequence[int]) -> dict:
    """What arrives at a convolution [T, B, C, H, W] or a linear layer [T, B, C], and the shape that it meets.

    parts: inputs are multiples of 1/parts; 0 is an analog input, which has no spikes even where |x| is 1. signed:
    inputs may be negative. rows: heights of crossbars, for `active_windows`. The keys are those of
    `hwsim.report.trace.LayerCounts`.
    """
    x = x_TB.detach()
    other = x != 0
    unit = x.abs() == 1 if parts else torch.zeros_like(other)
    fractional = other & ~unit
    is_conv = isinstance(layer, nn.Conv2d)
    everywhere = tuple(range(2, x.dim()))
    out = {
        "weight_shape": tuple(layer.weight.shape), "image": tuple(x.shape[3:]),
        "padding": tuple(layer.padding) if is_conv else (), "stride": tuple(layer.stride) if is_conv else (),
        "parts": parts, "signed": signed, "windows": active_windows(layer, other, rows),
    }  # fmt: skip
    for name, events in (("unit", unit), ("fractional", fractional)):
        events_TB = events.sum(everywhere)
        out |= {name: events.sum((0, 1)).cpu(), f"{name}_T": events_TB.sum(1).cpu(), f"{name}_TB": events_TB.cpu()}
    return out


def active_windows(layer: nn.Module, active_TB: torch.Tensor, rows: Sequence[int]) -> dict[int, torch.Tensor]:
    """For each height of a crossbar, [row tiles]: windows with at least one active input in the tile.

    A window is what meets the kernel at one output place and step. Its C k k inputs, in the order of the weight
    (channel, kernel row, kernel column), lie on the rows of tiles of that height.
    """
    fan_in = prod(layer.weight.shape[1:])
    active = active_TB.flatten(0, 1).to(layer.weight.dtype)
    out = {}
    for height in rows:
        tiles = -(-fan_in // height)
        tile = torch.arange(fan_in, device=active.device) // height
        on_TR = F.one_hot(tile, tiles).to(active.dtype).T.contiguous()
        if isinstance(layer, nn.Conv2d):
            kernel = on_TR.view(tiles, *layer.weight.shape[1:])
            met = F.conv2d(active, kernel, padding=layer.padding, stride=layer.stride)
            out[height] = (met > 0.5).sum((0, 2, 3)).cpu()  # whole numbers, but for a fast convolution's rounding
        else:
            out[height] = (active @ on_TR.T > 0.5).sum(0).cpu()
    return out


def fired(spikes_TB: torch.Tensor) -> dict:
    """Of spikes [T, B, ...]: neurons N; spikes of each [N], by step [T] and by image too; the first image's [T, N]."""
    spikes = spikes_TB.detach().flatten(2)
    by_neuron = spikes.sum((0, 1), dtype=torch.float64).to(torch.int64)
    by_image = spikes.sum(2, dtype=torch.float64).to(torch.int64)
    return {
        "neurons": spikes.shape[2], "spikes_N": by_neuron.cpu(), "spikes": by_image.sum(1).cpu(),
        "spikes_TB": by_image.cpu(), "raster": (spikes[:, 0] != 0).cpu(),
    }  # fmt: skip


def silent(steps: int) -> dict:
    """The same of a layer without neurons."""
    return fired(torch.zeros(steps, 1, 0))


BY_STEP = ("spikes", "_T", "_TB", "raster")
"""How the keys of counts end that have a row for each step."""


def joined(parts: list[dict]) -> dict:
    """The counts of consecutive runs of steps as those of all their steps.

    What is by step (`BY_STEP`) is put one behind the other, other tensors
    (and those of "windows") are added up, everything else is the first part's. A part may lack what only the first
    steps have.
    """
    out: dict = {}
    for part in parts:
        for key, value in part.items():
            if key not in out:
                out[key] = dict(value) if isinstance(value, dict) else value
            elif key == "windows":
                out[key] = {height: out[key][height] + windows for height, windows in value.items()}
            elif isinstance(value, torch.Tensor):
                out[key] = torch.cat([out[key], value]) if key.endswith(BY_STEP) else out[key] + value
    return out
