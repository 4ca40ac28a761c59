"""Count what a network does on test images, and keep the counts: they are priced again without the network."""

from collections.abc import Iterator

import numpy as np
import torch

from hwsim.data.image import ImageData, batches, normalize
from hwsim.device.hybrid import Hybrid
from hwsim.device.store import Ideal, Ternary, clear
from hwsim.network.layer import BNTT
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.trace import Counts, Held, LayerCounts

IDEAL_BITS = 32
"""Bits of a weight that lies in no device: a float32."""
TERNARY_BITS = 2
"""Bits that tell three states apart."""
MOST_LEVELS = 4096
"""Distinct weights up to which each is counted by itself; more are counted in as many bins of the same width."""


@torch.no_grad()
def count(nets: dict[str, torch.nn.Module], data: ImageData, stage: Account, seed: int) -> Counts:
    """Counts of networks as programmed, without spread, on the first `stage.samples` test images.

    nets: one, or the members of an ensemble by name. Spike coding is that of chip 0 in `evaluate`. A hybrid layer is
    held twice, and each input event reads both arrays.
    """
    every = {name: _counted(net, data, stage, seed) for name, net in nets.items()}
    if len(every) == 1:
        return next(iter(every.values()))
    together = Counts(next(iter(every.values())).steps, next(iter(every.values())).images)
    for name, counts in every.items():
        together.beside(counts, name)
    return together


def _counted(net: torch.nn.Module, data: ImageData, stage: Account, seed: int) -> Counts:
    clear(net)
    net.eval()
    device = next(net.parameters()).device
    counts = Counts(net.steps)
    coding = generator(seed, "batches", "test", 0, device=device)
    for images, _ in batches(data.test.first(stage.samples), 128):
        x = normalize(images, data.mean, data.std, device)
        _, trace = net(x, coding, account=stage.window_rows)
        counts.add(trace, len(x))
    for name, layer in counts.layers.items():
        layer.held = list(held(net.get_submodule(name)))
        layer.normalized = any(isinstance(module, BNTT) for module in net.modules())
        layer.update = getattr(net, "update", LayerCounts.update)
    return counts


def held(layer: torch.nn.Module) -> Iterator[Held]:
    """The arrays that hold a layer's weights."""
    store = layer.store
    if not isinstance(store, Hybrid):
        yield array("synapse", store.read(layer), _bits(store), cells=not isinstance(store, Ideal))
        return
    yield array("rram", store.rram.held(layer.rram), _bits(store.rram), cells=True)
    full_scale = store.rram.full_scale(layer.rram)
    sram = store.sram.read(layer, full_scale=full_scale, shift_bit=store.shift_bit)
    yield array("sram", sram, _bits(store.sram), cells=False)


def array(component: str, weight: torch.Tensor, bits: int, *, cells: bool) -> Held:
    """What an array holds: `weight` [O, ...] of `bits` bits, in resistive cells or not."""
    nonzero = (weight != 0).sum(0).cpu().numpy()
    values, at = np.unique(weight.detach().double().cpu().numpy(), return_counts=True)
    distinct = len(values)
    if distinct > MOST_LEVELS:
        at, edges = np.histogram(values, bins=MOST_LEVELS, weights=at)
        values = (edges[1:] + edges[:-1]) / 2
    return Held(component, bits, cells, nonzero, values, at.astype(np.int64), len(weight), distinct)


def _bits(store) -> int:
    inner = getattr(store, "inner", store)
    if isinstance(inner, Ternary):
        return TERNARY_BITS
    return IDEAL_BITS if getattr(inner, "quantizer", "none") == "none" else inner.bits
