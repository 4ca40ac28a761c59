"""Pruning of the SRAM part of hybrid layers: the group lasso that drives groups to zero, the masks, and a report.

    loss   += group_lasso(...)                     every batch, on the master weights
    used    = quantized weight · mask              refresh_masks every batch, fix_masks once at the end

A group is one output channel, a run of g consecutive input channels, and all kernel places. The first hybrid layer has
no groups: the penalty and the report leave it out, and it is masked by element, if at all (trap B14). Nothing that runs
every batch waits for the GPU.

O output channels, I input channels, g channels a group, k kernel width.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hwsim.config import ConfigError


def hybrid_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Layers that hold a frozen RRAM part beside the trained SRAM part, by name, in the order of the modules."""
    return {name: layer for name, layer in net.named_modules() if getattr(layer, "rram", None) is not None}


def weight_groups(weight: Tensor, group: int) -> Tensor:
    """A weight (O, I, k, k) or (O, I) as groups [O, I/g, g·k·k]: output channel, run of input channels, weights in it.

    Raises `ConfigError` if `group` does not divide I; `misfits` finds that for a whole network.

    >>> weight_groups(torch.arange(6).reshape(1, 6), 3)
    tensor([[[0, 1, 2],
             [3, 4, 5]]])
    """
    if not _fits(weight.shape[1], group):
        problem = f"groups of {group} do not divide {weight.shape[1]} input channels"
        raise ConfigError([f"weight_groups: weight of shape {tuple(weight.shape)}: {problem}"])
    return weight.unflatten(1, (-1, group)).flatten(2)


def misfits(shapes: dict[str, tuple[int, ...]], group: int) -> list[str]:
    """One message for every layer, after the first, whose input channels `group` does not divide.

    shapes: {layer: shape of its weight}, in order, with the first layer, which is never grouped.

    >>> misfits({"conv1": (8, 3, 3, 3), "conv2": (12, 8, 3, 3), "conv3": (8, 12, 3, 3)}, 8)
    ['conv3: groups of 8 do not divide its 12 input channels; groups of 1, 2, 4 fit every layer after the first']
    """
    inputs = {name: shape[1] for name, shape in list(shapes.items())[1:]}
    common = math.gcd(*inputs.values())
    fitting = ", ".join(str(g) for g in range(1, common + 1) if _fits(common, g))
    return [
        f"{name}: groups of {group} do not divide its {channels} input channels; "
        f"groups of {fitting} fit every layer after the first"
        for name, channels in inputs.items()
        if not _fits(channels, group)
    ]


def group_lasso(weights: Sequence[Tensor], *, group: int, ratio: float, lamda: float) -> Tensor:
    """The penalty on the norms of the groups, capped relative to each layer's mean norm.

        a_j     = ‖group j‖₂                            abar = mean of a_j over the layer
        penalty = lamda · Σ_layers Σ_j min(a_j, ratio · abar)
        d/dw    = lamda · ([a_j < ratio·abar] + ratio·K/G) · w/a_j         K of the layer's G groups are capped

    The mean is not detached, so a capped group still feels its share of the mean; a tie counts half on both sides. For
    a group of zeros w/a_j is 0, where the reference divides 0 by 0 (trap B7).

    weights: master weights without the first layer, (O, I, k, k) or (O, I); without any the penalty is 0.
    Source: Yuan & Lin 2006 (group lasso); the cap: the reference's pruning loss.

    >>> w = torch.tensor([[3.0, 4.0, 0.0, 0.0]], requires_grad=True)
    >>> group_lasso([w], group=2, ratio=1.0, lamda=1.0)  # norms 5 and 0, capped at 2.5
    tensor(2.5000, grad_fn=<MulBackward0>)
    """
    penalties = []
    for weight in weights:
        norm = torch.linalg.vector_norm(weight_groups(weight, group), dim=2)  # its gradient at 0 is 0
        penalties.append(torch.minimum(norm, ratio * norm.mean()).sum())
    return lamda * sum(penalties, torch.zeros(()))


@torch.no_grad()
def magnitude_mask(weight: Tensor, threshold: float, by: str = "element", group: int = 16) -> Tensor:
    """Which weights stay: a bool tensor of the weight's shape.

        element:  |w| > threshold · max|w|
        group:    a_j > threshold · max a,  for all weights of group j, a_j = ‖group j‖₂

    A weight that is zero everywhere keeps nothing. Raises `ConfigError` on another `by`.
    Source: the reference's mask is "element", although its penalty works on groups.

    >>> magnitude_mask(torch.tensor([[0.5, -1.0, 0.05, 0.2]]), 0.25)
    tensor([[ True,  True, False, False]])
    >>> magnitude_mask(torch.tensor([[0.5, -1.0, 0.05, 0.2]]), 0.25, "group", 2)
    tensor([[ True,  True, False, False]])
    """
    if by == "element":
        size = weight.abs()
        return size > threshold * size.amax()
    if by == "group":
        groups = weight_groups(weight, group)
        norm = torch.linalg.vector_norm(groups, dim=2, keepdim=True)
        return (norm > threshold * norm.amax()).expand_as(groups).reshape(weight.shape)
    raise ConfigError([f"magnitude_mask: by: {by!r} is not one of element, group"])


def refresh_masks(net: nn.Module, threshold: float, *, by: str, group: int, first: bool) -> None:
    """Set the mask of every hybrid layer from its present master weight.

    The first hybrid layer keeps every weight, or with `first` it is masked too, always by element. Layers without an
    RRAM part keep mask None. Source: the reference's `noprune1` says the opposite of its name (trap B14).
    """
    for i, layer in enumerate(hybrid_layers(net).values()):
        if i:
            layer.mask = magnitude_mask(layer.weight, threshold, by, group)
        elif first:
            layer.mask = magnitude_mask(layer.weight, threshold)
        else:
            layer.mask = torch.ones_like(layer.weight, dtype=torch.bool)


@torch.no_grad()
def fix_masks(net: nn.Module) -> None:
    """Make the masks permanent: every master weight that is masked becomes zero, in place.

    The reference never does this: its masked weights go on learning and may come back (trap B19). A zero weight alone
    is not enough, since a grid without a zero level holds it as its smallest level (trap B5); keep the mask with it.
    """
    for layer in hybrid_layers(net).values():
        if layer.mask is not None:
            layer.weight.masked_fill_(~layer.mask, 0)


class Sparsity(NamedTuple):
    """How much of a weight tensor, or of several, is exactly zero. Without any weights both fractions are 0."""

    weights: int
    """Number of weights."""
    zeros: int
    """Weights that are zero."""
    groups: int
    """Number of groups."""
    zero_groups: int
    """Groups with no other weight than zero."""

    @property
    def element(self) -> float:
        """Fraction of the weights that are zero."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def group(self) -> float:
        """Fraction of the groups that are zero."""
        return self.zero_groups / self.groups if self.groups else 0.0


def sparsity(weight: Tensor, group: int) -> Sparsity:
    """Count the zeros of a weight (O, I, k, k) or (O, I) that was masked. Waits for the GPU.

    >>> sparsity(torch.tensor([[0.0, 0.0, 0.0, 2.0]]), 2)
    Sparsity(weights=4, zeros=3, groups=2, zero_groups=1)
    """
    zero = weight_groups(weight == 0, group)
    zeros, zero_groups = torch.stack([zero.sum(), zero.all(2).sum()]).tolist()
    return Sparsity(weight.numel(), zeros, zero.shape[0] * zero.shape[1], zero_groups)


def total(sparsities: Iterable[Sparsity]) -> Sparsity:
    """The sum over layers. The reference's report leaves the first layer out, and so does the caller (trap B14).

    >>> total([Sparsity(4, 3, 2, 1), Sparsity(4, 0, 2, 0)])
    Sparsity(weights=8, zeros=3, groups=4, zero_groups=1)
    """
    return Sparsity(*(sum(counts) for counts in zip(Sparsity(0, 0, 0, 0), *sparsities, strict=True)))


def _fits(channels: int, group: int) -> bool:
    return group >= 1 and channels % group == 0
