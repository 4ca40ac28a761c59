"""Counts of small layers, made by hand from their inputs and weights."""

import numpy as np

from hwsim.report.trace import Held, LayerCounts


def held(weight: np.ndarray, bits: int, component: str = "synapse", cells: bool = False) -> Held:
    values, at = np.unique(weight, return_counts=True)
    return Held(component, bits, cells, (weight != 0).sum(0), values, at, len(weight), len(values))


def layer(
    x: np.ndarray, *arrays: Held, outputs: int, kernel=(), padding=(), stride=(), steps: int | None = None,
    neurons: int | None = None, parts: int = 1, signed: bool = False,
) -> LayerCounts:  # fmt: skip
    """Counts of one image's inputs x [S, C, H, W] or [S, C]; steps: T, where it is not S."""
    unit = (np.abs(x) == 1) & bool(parts)
    fractional = (x != 0) & ~unit
    everywhere = tuple(range(1, x.ndim))
    out = LayerCounts(
        weight_shape=(outputs, x.shape[1], *kernel), image=x.shape[2:], padding=padding, stride=stride,
        neurons=0, parts=parts, signed=signed, unit=unit.sum(0), fractional=fractional.sum(0),
        unit_T=unit.sum(everywhere), fractional_T=fractional.sum(everywhere),
        spikes_T=np.zeros(steps or len(x), np.int64), spikes_N=np.zeros(0, np.int64), held=list(arrays),
    )  # fmt: skip
    out.neurons = out.outputs if neurons is None else neurons
    return out
