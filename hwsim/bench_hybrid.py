"""Layers on devices for `hwsim bench --hybrid`: RRAM alone, RRAM and SRAM as one weight, and as two convolutions."""

from dataclasses import dataclass

import torch
from torch import nn

from hwsim.device.hybrid import Hybrid, Sram
from hwsim.device.store import Rram, place
from hwsim.network.layer import Conv2d

HYBRID_WAYS = ("rram", "hybrid", "two-convolutions")
"""rram: convolutions on RRAM. hybrid: on RRAM and SRAM, a summed weight. two-convolutions: one for each, and a sum."""
RRAM, SRAM = Rram(bits=4, sigma=0.35), Sram(bits=4)


@dataclass(frozen=True)
class _Words:
    """The SRAM part of a hybrid layer, alone on a layer."""

    full_scale: torch.Tensor

    def read(self, layer: nn.Module) -> torch.Tensor:
        return SRAM.read(layer, full_scale=self.full_scale)

    def noise_shape(self, weight_shape: tuple[int, ...]) -> None:
        return None


class TwoConvolutions(nn.Module):
    """A hybrid layer as the reference computes it: a convolution for each part, and their sum (trap E6)."""

    def __init__(self, layer: Conv2d):
        super().__init__()
        self.rram, self.sram = (Conv2d(layer.in_channels, layer.out_channels) for _ in range(2))
        self.rram.weight = nn.Parameter(layer.rram, requires_grad=False)
        self.rram.store = RRAM
        self.sram.weight = layer.weight
        self.sram.store = _Words(RRAM.full_scale(layer.rram))

    def forward(self, x_TBCHW: torch.Tensor, parts: int = 0) -> torch.Tensor:
        return self.rram(x_TBCHW, parts) + self.sram(x_TBCHW, parts)


def on_device(model: nn.Module, how: str) -> None:
    """Put a network's convolutions on the device of one of the `HYBRID_WAYS`; their weights are in RRAM and in SRAM."""
    place(model, {"conv*": RRAM if how == "rram" else Hybrid(RRAM, SRAM)})
    if how == "rram":
        return
    for name, _, _ in model.blocks:
        layer = model.get_submodule(name)
        layer.rram = layer.weight.detach().clone()
        if how == "two-convolutions":
            setattr(model, name, TwoConvolutions(layer))
