"""Adaptation of BNTT to one chip: its statistics are estimated anew there, weights and scales stay.

Fabricated cells shift every layer's currents, and the running statistics are those of training. N training batches run
through the fixed, noisy network with batch statistics, and every time step's mean and unbiased variance become the
average over these N batches (each counts the same: momentum 1/k at the k-th).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hwsim.data.image import ImageData, batches, normalize
from hwsim.network.layer import BNTT


@contextmanager
@torch.no_grad()
def adapted(
    net, data: ImageData, number: int, *, batch_size: int, order: torch.Generator, coding: torch.Generator
) -> Iterator[None]:
    """Within the block the network, on the chip that is drawn, has statistics of `number` training batches.

    number 0 changes nothing. Labels are not used. Afterwards the statistics are the old ones.
    """
    layers = [m for m in net.modules() if isinstance(m, BNTT)]
    before = [{k: v.clone() for k, v in m.named_buffers()} for m in layers]
    try:
        net.train()
        for k, (images, _) in zip(range(1, number + 1), batches(data.train, batch_size, order, True), strict=False):
            for layer in layers:
                layer.momentum = 1 / k
            net(normalize(images, data.mean, data.std, next(net.parameters()).device), coding)
        net.eval()
        yield
    finally:
        for layer, saved in zip(layers, before, strict=True):
            layer.__dict__.pop("momentum", None)
            for name, value in saved.items():
                layer.get_buffer(name).copy_(value)
