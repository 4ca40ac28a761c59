"""Conversion of a trained network into spikes: percentiles of its activations become thresholds.

Only what has a spiking counterpart can be converted: convolutions and linear layers without bias, ReLU, averages,
dropout. All percentiles are those of the network as it is, so that their order does not matter.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from hwsim.config import ConfigError, RunError
from hwsim.device.store import Ideal
from hwsim.network.percentile import Percentile
from hwsim.network.spiking import Spiking
from hwsim.network.vgg15 import PLANS, Vgg15

_KNOWN = (nn.Conv2d, nn.Linear, nn.ReLU, nn.AvgPool2d, nn.Dropout)


def unsupported(net: nn.Module) -> list[str]:
    """What of a network has no spiking counterpart, as "name (kind)"; [] if all has one."""
    leaves = [(n, m) for n, m in net.named_modules() if not list(m.children()) and n]
    out = [f"{n} ({type(m).__name__})" for n, m in leaves if not isinstance(m, _KNOWN)]
    return out + [f"{n} (has a bias)" for n, m in leaves if getattr(m, "bias", None) is not None]


def percentiles(
    net: Vgg15,
    q: float,
    show: Callable[[], Iterable[torch.Tensor]],
    dropout: Callable[[], torch.Generator] | None = None,
) -> dict[str, float]:
    """lambda of every ReLU: the q-th percentile of all that leaves it, zeros, images and places together.

    show: gives the calibration images [B, C, H, W], batch by batch, the same each time; they are shown twice, and one
    batch's activations are held at a time, however many images there are.
    dropout: None is off. Else gives the generator of each pass, and dropout is on as in the published code, whose
    lambdas come out too large (trap 1 of the conversion).

    Raises `ConfigError` for a network that cannot be converted, or a q outside (0, 100].
    """
    if not 0 < q <= 100:
        raise ConfigError([f"percentile: found {q:g}; it must be above 0 and at most 100"])
    if wrong := unsupported(net):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        what = f"{', '.join(wrong[:3])}{more}"
        raise ConfigError([f"convert: no spiking counterpart for {what}; take {', '.join(PLANS)}"])
    of = {name: Percentile(q) for name in net.pooled}
    was_training = net.training
    net.train(dropout is not None)
    try:
        for see in (Percentile.count, Percentile.refine):
            generator = dropout() if dropout is not None else None
            for x in show():
                for name, activation in _activations(net, x, generator):
                    see(of[name], activation)
    except ValueError as e:
        raise RunError(f"convert: {e}; the network has diverged, or its images are damaged") from None
    finally:
        net.train(was_training)
    return {name: p.value for name, p in of.items()}


@torch.no_grad()
def _activations(net: Vgg15, x: torch.Tensor, generator: torch.Generator | None) -> Iterator[tuple[str, torch.Tensor]]:
    yield from net.activations(x, generator)


@torch.no_grad()
def set_thresholds(net: Spiking, lambdas: dict[str, float]) -> None:
    """Give a spiking network, whose stores are placed, its thresholds (`spiking.py` has the law).

    Raises `RunError` for a lambda that is 0 or not finite, or a filter whose scale is 0.
    """
    if dead := [name for name, value in lambdas.items() if not (math.isfinite(value) and value > 0)]:
        raise RunError(
            f"convert: {', '.join(dead)}: the percentile of the activations is {lambdas[dead[0]]:g}, and no threshold "
            "can be made of it. At this percentile the layer is silent: raise --percentile, show more images with "
            "--norm, or train the network further"
        )
    before = 1.0
    for name in net.pooled:
        threshold, layer = net.get_submodule(f"threshold_{name}"), net.get_submodule(name)
        unit = filter_scales(layer)
        if none := (unit == 0).nonzero().flatten().tolist():
            raise RunError(
                f"convert: {name}: the scale of {len(none)} filters is 0 (the first is {none[0]}): all their weights "
                "are 0, and a binary filter has no sign to hold. Train the network further, with a lower learning rate"
            )
        threshold.unit.copy_(unit)
        threshold.weight.copy_(lambdas[name] / before / unit)
        before = lambdas[name]


def filter_scales(layer: nn.Module) -> torch.Tensor:
    """alpha of every filter, [O]: the digital scale of its cells; 1 where weights lie in no cells."""
    outputs = layer.weight.shape[0]
    if isinstance(layer.store, Ideal):
        return torch.ones(outputs, device=layer.weight.device)
    scale = layer.store.full_scale(layer.weight.detach())
    return torch.as_tensor(scale, dtype=layer.weight.dtype, device=layer.weight.device).flatten().expand(outputs)
