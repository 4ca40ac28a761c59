"""What forward passes left for accounting, summed over images: spikes, what arrived where, and the weights met there.

Everything here is a whole number that was counted, so that every definition of an operation can be applied afterwards,
without the network. T steps, C channels, H W image, O outputs, k kernel.
"""

from dataclasses import dataclass, field, fields
from math import prod

import numpy as np

from hwsim.report.learned import KINDS, Learned, Readout, Traced, as_plain, of_plain


@dataclass
class Held:
    """One array that holds a layer's weights; a hybrid layer has two, and an input event reads both.

    component: what the array is: synapse (all weights in one place), rram or sram. cells: whether it is a crossbar of
    resistive cells. nonzero_CKK: weights that are not zero, [C, kh, kw], [C] for a linear layer (summed over outputs).
    levels, weights_at: the values that it holds (of very many, the middles of bins), and how many weights hold each;
    distinct: how many different values there are.
    """

    component: str
    bits: int
    cells: bool
    nonzero_CKK: np.ndarray
    levels: np.ndarray
    weights_at: np.ndarray
    outputs: int
    distinct: int

    @property
    def density(self) -> float:
        """Fraction of the weights that are not zero."""
        return float(self.nonzero_CKK.sum()) / (self.nonzero_CKK.size * self.outputs)


@dataclass
class LayerCounts:
    """Sums over all images of one layer.

    steps: T, or 1 where the layer is computed once an image (direct coding). parts: inputs are multiples of 1/parts, 0
    for analog ones. signed: inputs may be negative. unit, fractional: inputs of size 1 and other nonzero inputs, by
    place, [C, H, W] for a convolution, [C] for a linear layer, summed over steps; unit_T, fractional_T: by step, summed
    over places. neurons: spiking neurons an image (0 for a layer without). spikes_T: their spikes at each step.
    spikes_N: spikes of each neuron, over all steps. windows: rows of a crossbar → [row tiles], windows (an output
    place and step) in which at least one input of the tile was not zero.

    widths: bits of what the network stores in formats of its own, by name of the variable (`footprint.py`, `local.py`).
    normalized: whether BNTT stands between synapses and neurons. update: multiplications and additions of a neuron's
    update, a step, without a spike. learned: what training left. traced, readout: what a
    layer that learns locally has, and its readout.
    """

    weight_shape: tuple[int, ...]
    image: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    neurons: int
    parts: int
    signed: bool
    unit: np.ndarray
    fractional: np.ndarray
    unit_T: np.ndarray
    fractional_T: np.ndarray
    spikes_T: np.ndarray
    spikes_N: np.ndarray
    windows: dict[int, np.ndarray] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    normalized: bool = True
    update: tuple[int, int] = (2, 3)
    learned: Learned | None = None
    traced: Traced | None = None
    readout: Readout | None = None

    @property
    def steps(self) -> int:
        """Steps at which inputs arrive."""
        return len(self.unit_T)

    @property
    def inputs(self) -> int:
        """Inputs of the layer, an image and step."""
        return self.weight_shape[1] * prod(self.image)

    @property
    def places(self) -> int:
        """Places of a convolution's output, Ho Wo; 1 for a linear layer."""
        sizes = zip(self.image, self.weight_shape[2:], self.padding, self.stride, strict=True)
        return prod((size + 2 * p - k) // s + 1 for size, k, p, s in sizes)

    @property
    def outputs(self) -> int:
        """Outputs of the layer, an image and step."""
        return self.weight_shape[0] * self.places

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.weight_shape)

    def reach(self) -> list[np.ndarray]:
        """By axis, [k, size]: whether an input at a place meets kernel element k, that is, whether that output exists.

        Output o meets input h through kernel element k where h = o stride - padding + k.
        """
        out = []
        for size, k, p, s in zip(self.image, self.weight_shape[2:], self.padding, self.stride, strict=True):
            last = (size + 2 * p - k) // s
            shifted = np.arange(size)[None, :] + p - np.arange(k)[:, None]
            out.append((shifted % s == 0) & (shifted >= 0) & (shifted <= last * s))
        return out

    def fan_out(self, synapses: str, held: Held | None = None) -> np.ndarray:
        """Synapses that one input event reaches, by place: [C, H, W] or what broadcasts to it ([C] for a linear layer).

        inbounds: outputs that exist. effective: of these, the ones over a weight of `held` that is not zero. fanout: as
        the published energy formulas count, O k k Ho Wo / (H W), zero weights and padding included.
        """
        outputs, _, *kernel = self.weight_shape
        if synapses == "fanout":
            value = outputs * prod(kernel) * self.places / prod(self.image)
            return np.full((1,) * (1 + len(kernel)), int(value) if value == int(value) else value)
        if synapses == "effective":
            if held is None:
                raise ValueError("effective operations are counted on the weights that an array holds")
            by_kernel = held.nonzero_CKK
        else:
            by_kernel = np.full((1, *kernel), outputs, dtype=np.int64)
        if not kernel:
            return by_kernel
        rows, columns = (r.astype(np.int64) for r in self.reach())
        return np.einsum("ckl,kh,lw->chw", by_kernel, rows, columns)

    def operations(self, events: np.ndarray, synapses: str, held: Held | None = None) -> float:
        """Synaptic operations that events (`unit` or `fractional`) cause, summed over images."""
        return (events * self.fan_out(synapses, held)).sum().item()

    def row_events(self, events: np.ndarray) -> int:
        """Window rows that events make active: each input counts once in every window that it lies in."""
        return int(self.operations(events, "inbounds")) // self.weight_shape[0]

    def dense(self, synapses: str, held: Held | None = None) -> float:
        """Multiplications of the same layer in an ordinary network, an image."""
        everywhere = np.ones((self.weight_shape[1], *self.image), dtype=np.int64)
        return self.operations(everywhere, synapses, held)


@dataclass
class Counts:
    """The traces of many batches, added up. A member of an ensemble is counted by itself.

    raster: layer → [T, neurons], the spikes of the first image.
    """

    steps: int
    images: int = 0
    layers: dict[str, LayerCounts] = field(default_factory=dict)
    raster: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, trace: dict[str, dict], images: int) -> None:
        """Add one batch's trace (`VggBntt.run` says what is in it)."""
        self.images += images
        for name, here in trace.items():
            spikes = here["spikes"] if here["neurons"] else np.zeros(self.steps, np.int64)
            sums = {k: here[k] for k in ("unit", "fractional", "unit_T", "fractional_T")}
            sums |= {"spikes_T": spikes, "spikes_N": here["spikes_N"]}
            sums = {k: np.asarray(v, dtype=np.int64) for k, v in sums.items()}
            windows = {rows: np.asarray(v, dtype=np.int64) for rows, v in here["windows"].items()}
            if name not in self.layers:
                shape = {k: here[k] for k in _ONCE}
                self.layers[name] = LayerCounts(**shape, **sums, windows=windows)
                self.raster[name] = np.asarray(here["raster"], dtype=bool)
                continue
            layer = self.layers[name]
            for k, v in sums.items():
                setattr(layer, k, getattr(layer, k) + v)
            layer.windows = {rows: layer.windows[rows] + v for rows, v in windows.items()}

    def beside(self, other: "Counts", name: str) -> None:
        """Add a member of an ensemble, which saw the same images; its layers are called LAYER@name."""
        self.layers |= {f"{layer}@{name}": v for layer, v in other.layers.items()}
        self.raster |= {f"{layer}@{name}": v for layer, v in other.raster.items()}

    @property
    def one_member(self) -> list[str]:
        """The layers of an ensemble's first member; of a single network, all."""
        member = next(iter(self.layers)).partition("@")[2]
        return [n for n in self.layers if n.partition("@")[2] == member]

    @property
    def first(self) -> set[str]:
        """The first layer of each member."""
        name = next(iter(self.layers)).partition("@")[0]
        return {n for n in self.layers if n.partition("@")[0] == name}

    @property
    def classes(self) -> int:
        """Outputs of the last layer."""
        return list(self.layers.values())[-1].outputs

    def arrays(self) -> tuple[dict[str, np.ndarray], dict]:
        """(arrays, everything else) as plain data, for a file; `from_arrays` is the way back."""
        arrays, about = {}, {"steps": self.steps, "images": self.images, "layers": {}}
        for name, layer in self.layers.items():
            about["layers"][name] = {k: getattr(layer, k) for k in _ONCE}
            about["layers"][name]["held"] = [
                {k: getattr(h, k) for k in ("component", "bits", "cells", "outputs", "distinct")} for h in layer.held
            ]
            about["layers"][name]["windows"] = list(layer.windows)
            about["layers"][name] |= {"widths": layer.widths, "normalized": layer.normalized, "update": layer.update}
            about["layers"][name] |= {kind: as_plain(getattr(layer, kind)) for kind in KINDS}
            arrays |= {f"{name}/{f.name}": getattr(layer, f.name) for f in fields(layer) if f.name in _SUMS}
            arrays |= {f"{name}/windows{rows}": v for rows, v in layer.windows.items()}
            for i, h in enumerate(layer.held):
                arrays |= {f"{name}/held{i}/{k}": getattr(h, k) for k in ("nonzero_CKK", "levels", "weights_at")}
            arrays[f"{name}/raster"] = np.packbits(self.raster[name], axis=1)
        return arrays, about

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], about: dict) -> "Counts":
        """The counts that `arrays` was made from."""
        counts = cls(about["steps"], about["images"])
        for name, here in about["layers"].items():
            once = {k: tuple(here[k]) if isinstance(here[k], list) else here[k] for k in _ONCE}
            held = [
                Held(**h, **{k: arrays[f"{name}/held{i}/{k}"] for k in ("nonzero_CKK", "levels", "weights_at")})
                for i, h in enumerate(here["held"])
            ]
            windows = {rows: arrays[f"{name}/windows{rows}"] for rows in here["windows"]}
            sums = {k: arrays[f"{name}/{k}"] for k in _SUMS}
            # Files older than these lack them; their networks had BNTT and no formats of their own.
            since = {"widths": here.get("widths", {}), "normalized": here.get("normalized", True)}
            since["update"] = tuple(here.get("update", LayerCounts.update))
            since |= {kind: of_plain(kind, here.get(kind)) for kind in KINDS}
            counts.layers[name] = LayerCounts(**once, **sums, windows=windows, held=held, **since)
            raster = np.unpackbits(arrays[f"{name}/raster"], axis=1, count=once["neurons"])
            counts.raster[name] = raster.astype(bool)
        return counts


_SUMS = ("unit", "fractional", "unit_T", "fractional_T", "spikes_T", "spikes_N")
_ONCE = ("weight_shape", "image", "padding", "stride", "neurons", "parts", "signed")
