"""A chip apart from the network that it was drawn for, so that several take turns on one network.

What a chip's cells hold is read once and kept as the stores of the layers that vary; putting a chip under a network and
taking it away moves pointers and copies nothing. A part of a chip is (module, name of an attribute, value): a layer's
store, or a statistic that was adapted to the chip.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Part = tuple[nn.Module, str, object]


@dataclass(frozen=True, eq=False)
class Held:
    """Cells of one chip: the weight that another store read there, once. They have no spread of their own."""

    weight: Tensor
    """What the layer computes with."""

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """What was read."""
        return self.weight

    def read(self, layer: nn.Module) -> Tensor:
        """What was read; no gradient passes."""
        return self.weight

    def noise_shape(self, weight_shape: tuple[int, ...]) -> None:
        """None: the chip is drawn already."""
        return None


def varies(module: nn.Module) -> bool:
    """Whether a module's weights differ from chip to chip."""
    store = getattr(module, "store", None)
    return store is not None and store.noise_shape(tuple(module.weight.shape)) is not None


def chip_bytes(net: nn.Module) -> int:
    """Bytes of what `held` keeps of one chip."""
    return sum(m.weight.numel() * m.weight.element_size() for m in net.modules() if varies(m))


@torch.no_grad()
def held(net: nn.Module) -> list[Part]:
    """What the cells of the chip that is drawn hold, as parts of it."""
    return [(m, "store", Held(m.store.read(m))) for m in net.modules() if varies(m)]


@contextmanager
def put(parts: list[Part]) -> Iterator[None]:
    """Within the block these parts are in place; afterwards what was there before."""
    before = [(module, name, getattr(module, name)) for module, name, _ in parts]
    try:
        for module, name, value in parts:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
