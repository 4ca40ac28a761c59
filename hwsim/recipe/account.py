"""Count what a network does on test images, for the energy and sparsity tables."""

import torch

from hwsim.data.image import ImageData, Split, batches, normalize
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
def count(net, data: ImageData, stage: Account, seed: int) -> tuple[Counts, dict[str, Held], list[dict]]:
    """(counts, how each layer's weights are held, levels in use by layer) of a network as programmed, without spread.

    Spike coding is that of chip 0 in `evaluate`.
    """
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
    held, levels = {}, []
    for name in counts.layers:
        layer = net.get_submodule(name)
        weight = layer.store.read(layer)
        bits = TERNARY_BITS if isinstance(layer.store, Ternary) else getattr(layer.store, "bits", IDEAL_BITS)
        held[name] = Held(bits, float((weight != 0).double().mean()))
        if not isinstance(layer.store, Ideal):
            levels.append({"layer": name, "bits": bits, "levels_used": len(weight.unique()), "weights": weight.numel()})
    return counts, held, levels
