"""XNOR-Net's training of weights on the device: master weights are centered before a batch, gradients rewritten after.

The published training code does both; its gradient has a scale of its own, to which Adam is indifferent but for its
weight decay: beside gradients of 1e9 (ImageNet) it is nothing.
"""

import torch
from torch import nn

from hwsim.device.hybrid import Hybrid
from hwsim.device.quantize import centered, xnor_gradient
from hwsim.device.store import Ideal
from hwsim.recipe.recover import sram_words

IMAGENET_SCALE = 1e9
"""What the published ImageNet code multiplies the rewritten gradient by; its CIFAR-10 code has 1."""


@torch.no_grad()
def center_weights(net: nn.Module) -> None:
    """`centered` on every weight that lies on the device, for good."""
    for layer in _on_device(net):
        layer.weight.copy_(centered(layer.weight))


@torch.no_grad()
def rewrite_gradients(net: nn.Module, scale: float = 1.0) -> None:
    """XNOR-Net's gradient, times `scale`, on every weight on the device, from what its cells hold (as programmed).

    Of a hybrid layer that is the SRAM part, as in the reference; of binary weights the master, whose mean magnitude is
    the filter's scale even where a weight is 0.
    """
    for layer in _on_device(net):
        store = layer.store
        if layer.weight.grad is None:
            continue
        if getattr(store, "quantizer", None) == "binary":
            held = layer.weight
        else:
            held = sram_words(layer) if isinstance(store, Hybrid) else store.held(layer.weight)
        layer.weight.grad = xnor_gradient(held, layer.weight.grad).mul_(scale)


def _on_device(net: nn.Module) -> list[nn.Module]:
    """The layers whose weights lie on the device."""
    return [m for m in net.modules() if hasattr(m, "store") and not isinstance(m.store, Ideal)]
