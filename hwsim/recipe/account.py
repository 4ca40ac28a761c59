"""Count what a network does on test images, for the energy and sparsity tables."""

from collections.abc import Iterator

import torch

from hwsim.data.image import ImageData, Split, batches, normalize
from hwsim.device.hybrid import Hybrid
from hwsim.device.store import Ideal, Ternary, clear
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.energy import Held
from hwsim.report.trace import Counts

IDEAL_BITS = 32
"""Bits of a weight that lies in no device: a float32."""
TERNARY_BITS = 2
"""Bits that tell three states apart."""


@torch.no_grad()
def count(
    nets: list, data: ImageData, stage: Account, seed: int
) -> tuple[Counts, dict[str, tuple[Held, ...]], list[dict]]:
    """(counts, how each layer's weights are held, levels in use by layer) of networks as programmed, without spread.

    nets: one, or the members of an ensemble, whose counts add up; densities are their mean, levels those of the first.
    Spike coding is that of chip 0 in `evaluate`. A hybrid layer is held twice, and each input event reads both arrays.
    """
    counts = _counted(nets[0], data, stage, seed)
    for net in nets[1:]:
        counts.beside(_counted(net, data, stage, seed))
    held, levels = {}, []
    for name in counts.layers:
        arrays = [list(_parts(net.get_submodule(name))) for net in nets]
        dense = [[float((w != 0).double().mean()) for _, _, w in parts] for parts in arrays]
        held[name] = tuple(
            Held(bits, sum(each) / len(nets), component)
            for (component, bits, _), *each in zip(arrays[0], *dense, strict=True)
        )
        if not isinstance(nets[0].get_submodule(name).store, Ideal):
            levels += [
                {"layer": name, "part": p, "bits": b, "levels_used": len(w.unique()), "weights": w.numel()}
                for p, b, w in arrays[0]
            ]
    return counts, held, levels


def _counted(net, data: ImageData, stage: Account, seed: int) -> Counts:
    clear(net)
    net.eval()
    device = next(net.parameters()).device
    counts = Counts(net.steps)
    coding = generator(seed, "batches", "test", 0, device=device)
    chosen = Split(data.test.images_NCHW[: stage.samples], data.test.labels_N[: stage.samples])
    for images, _ in batches(chosen, 128):
        x = normalize(images, data.mean, data.std, device)
        _, trace = net(x, coding, account=True)
        counts.add(trace, len(x))
    return counts


def _parts(layer) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(component, bits, what it holds) of each array that holds a layer's weights."""
    store = layer.store
    if not isinstance(store, Hybrid):
        yield "synapse", _bits(store), store.read(layer)
        return
    yield "rram", _bits(store.rram), store.rram.held(layer.rram)
    full_scale = store.rram.full_scale(layer.rram)
    yield "sram", _bits(store.sram), store.sram.read(layer, full_scale=full_scale, shift_bit=store.shift_bit)


def _bits(store) -> int:
    store = getattr(store, "inner", store)
    if isinstance(store, Ternary):
        return TERNARY_BITS
    return IDEAL_BITS if getattr(store, "quantizer", "none") == "none" else store.bits
