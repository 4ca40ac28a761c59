"""What forward passes left for accounting, summed over a test set: spikes per layer and step, and what arrived where.

T steps, H W image.
"""

from dataclasses import dataclass, field
from math import prod

import numpy as np


@dataclass
class LayerCounts:
    """Sums over all images of one layer.

    neurons: spiking neurons an image (0 for a layer without neurons). spikes_T: their spikes at each step.
    parts: inputs are multiples of 1/parts, 0 for analog ones. unit, fractional: inputs of size 1 and other nonzero
    inputs, [T, H, W] (summed over channels) for a convolution, [T] for a linear layer; T is 1 where the layer is
    computed once an image (direct coding).
    """

    weight_shape: tuple[int, ...]
    padding: tuple[int, int] | None
    image: tuple[int, ...]
    neurons: int
    spikes_T: np.ndarray
    unit: np.ndarray
    fractional: np.ndarray
    parts: int = 1
    networks: int = 1
    """Networks of an ensemble that have this layer; `neurons` and `inputs` are those of all."""

    @property
    def inputs(self) -> int:
        """Inputs of the layer, an image and step."""
        return self.weight_shape[1] * prod(self.image) * self.networks

    def fan_out(self, synapses: str) -> np.ndarray:
        """Synapses that one input event reaches, by place [H, W] (a number for a linear layer).

        inbounds: outputs that exist; an input h of H reaches outputs max(0, h+p-k+1) .. min(H+2p-k, h+p) along each
        axis. fanout: k x k everywhere, as the published energy formulas count.
        """
        outputs, _, *kernel = self.weight_shape
        if not kernel:
            return np.array(outputs)
        if synapses == "fanout":
            return np.full(self.image, outputs * prod(kernel))
        reach = []
        for size, k, p in zip(self.image, kernel, self.padding, strict=True):
            place = np.arange(size)
            reach.append(np.minimum(size + 2 * p - k, place + p) - np.maximum(0, place + p - k + 1) + 1)
        return outputs * np.multiply.outer(*reach)

    def operations(self, events: np.ndarray, synapses: str) -> int:
        """Synaptic operations that events (`unit` or `fractional`) cause."""
        return int((events * self.fan_out(synapses)).sum())

    def dense(self, synapses: str) -> int:
        """Multiplications of the same layer in an ordinary network, an image."""
        by_place = np.broadcast_to(self.fan_out(synapses), self.image)
        return int(by_place.sum()) * self.weight_shape[1]


@dataclass
class Counts:
    """The traces of many batches, added up."""

    steps: int
    images: int = 0
    layers: dict[str, LayerCounts] = field(default_factory=dict)

    def add(self, trace: dict, images: int) -> None:
        """Add one batch's trace (`VggBntt.run` says what is in it)."""
        self.images += images
        for name, here in trace.items():
            sums = {k: here[k].cpu().numpy().astype(np.int64) for k in ("unit", "fractional")}
            spikes = here["spikes"].cpu().numpy() if "spikes" in here else np.zeros(self.steps, np.int64)
            if name not in self.layers:
                shape = (here["weight_shape"], here["padding"], here["image"], here.get("neurons", 0))
                self.layers[name] = LayerCounts(*shape, spikes, **sums, parts=here["parts"])
                continue
            layer = self.layers[name]
            layer.spikes_T = layer.spikes_T + spikes
            layer.unit, layer.fractional = layer.unit + sums["unit"], layer.fractional + sums["fractional"]

    def beside(self, other: "Counts") -> None:
        """Add those of another network of an ensemble, which saw the same images."""
        for name, layer in self.layers.items():
            more = other.layers[name]
            layer.spikes_T = layer.spikes_T + more.spikes_T
            layer.unit, layer.fractional = layer.unit + more.unit, layer.fractional + more.fractional
            layer.neurons, layer.networks = layer.neurons + more.neurons, layer.networks + more.networks
