"""Cells that hold the thresholds of neurons: positive levels without a sign, each with its own spread."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwsim.config import ConfigError
from hwsim.device.quantize import straight_through
from hwsim.device.variation import CLAMPS, lognormal


@dataclass(frozen=True)
class Unsigned:
    """A positive number in one multi-bit cell, as a fraction of the largest of its layer.

        n     = 2^bits - 1,   F = max w
        level = min(max(rne(w/F n), 1), n)/n            held = lognormal(level, z) F

    There is no level 0: a neuron without a threshold would fire at every step. Raises `ConfigError` on values that
    contradict each other.

    >>> Unsigned(bits=2).held(torch.tensor([3.0, 1.2, 0.1]))
    tensor([3., 1., 1.])
    """

    bits: int
    """Bits of one cell."""
    sigma: float = 0.0
    """Effective spread of ln(factor): the card's sigma at these bits times variation_scale."""
    clamp: str = "none"
    """Limit of the spread: none, magnitude or signed (see `variation.lognormal`)."""
    on_off_ratio: float = 350.0
    """Largest over smallest conductance; used by the clamp "magnitude"."""

    def __post_init__(self):
        problems = []
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 1 <= self.bits <= 16:
            problems.append(f"Unsigned.bits: {self.bits!r} is not a whole number from 1 to 16")
        if not self.sigma >= 0:
            problems.append(f"Unsigned.sigma: {self.sigma!r} is not a number of at least 0")
        if self.clamp not in CLAMPS:
            problems.append(f"Unsigned.clamp: {self.clamp!r} is not one of {', '.join(CLAMPS)}")
        if problems:
            raise ConfigError(problems)

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """What the cells hold. weight: positive, any shape. z None is programmed without spread."""
        n = 2**self.bits - 1
        full_scale = weight.amax()
        level = torch.round(weight / full_scale * n).clamp(1, n) / n
        if z is not None:
            level = lognormal(level, z, self.sigma, self.clamp, self.on_off_ratio)
        return level * full_scale

    def read(self, layer: nn.Module) -> Tensor:
        """What the layer's cells hold; the gradient passes to the master unchanged."""
        return straight_through(layer.weight, self.held(layer.weight.detach(), layer.z))

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """One normal a cell, or None without spread."""
        return tuple(weight_shape) if self.sigma > 0 else None

    def full_scale(self, weight: Tensor) -> Tensor:
        """The number that a cell at full conductance holds."""
        return weight.amax()
