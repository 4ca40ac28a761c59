"""A layer and its neuron as one step that keeps the layer's input alone, and computes its currents again for gradients.

The ordinary path keeps every layer's currents: four bytes a neuron, time step and image. Here, behind the forward pass
of a layer, there are left

    the input       a bit an element where it is spikes, a byte where it is averages of them, itself where it is real
    the weight      as it was read from its store, and for each step and channel the mean, the variance and the gain

The backward pass runs the same kernel on the same input, so the currents are the same bits and with them all gradients;
then it goes through the neuron and through the layer. Statistics are taken once, in the forward pass. What is alive at
any time is the packed inputs of all layers and the currents, and their gradients, of one.

T steps, B batch, C channels, H W image, N images (time folded in).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hwsim.network import convolution
from hwsim.network.lif import Backend, choose, lif_bntt
from hwsim.network.popcount import pack, unpack

_MOST_PARTS = 127
"""Largest multiple that a byte holds."""


class _Kept(NamedTuple):
    """An input as it is kept. form: whole, byte (parts times it), bit, word (of `events_cpu`), or how the neurons that
    fired it wrote it in short (a `spikes_cuda.Kept` without its values).
    """

    values: torch.Tensor
    form: Any


@dataclass(frozen=True)
class _Layer:
    """How a layer computes: padding None is a linear layer. parts, signed: what its input is, see `recomputed`."""

    padding: tuple[int, int] | None
    parts: int
    signed: bool
    precision: str
    shape: torch.Size
    """Of the input, [T or 1, B, ...]; dtype: its type."""
    dtype: torch.dtype
    on_cuda: bool
    """Whether `conv_cuda` computes; it takes and keeps inputs in its own way."""

    def currents(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(currents [T or 1, B, C', H', W'], the input as words where the kernel packed it)."""
        if self.parts and self.padding is not None and not self.on_cuda:
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x.flatten(0, 1), weight))
            y, words = convolution.forward(x, weight, self.padding, self.parts, self.precision)
            return y.unflatten(0, self.shape[:2]), words
        with torch.enable_grad():  # kernels of training, also where nothing is to be differentiated
            if self.padding is None:
                return convolution.product(x, weight, None, self.parts, self.precision)[..., None, None], None
            return convolution.convolve(x, weight, None, self.padding, self.parts, self.precision), None

    def keep(self, x: torch.Tensor, words: torch.Tensor | None) -> _Kept:
        """The input in as little memory as it fits."""
        if words is not None:
            return _Kept(words, "word")
        if not 0 < self.parts <= _MOST_PARTS or self.parts & (self.parts - 1):
            return _Kept(x, "whole")  # a third of a whole number is rounded
        if self.on_cuda:
            from hwsim.network.spikes_cuda import recall

            if (short := recall(x, self.parts)) is not None:
                return _Kept(short.values, short._replace(values=None))
        memory = x if self.padding is None else x.permute(0, 1, 3, 4, 2)  # channels last, as it lies in memory
        if self.parts == 1 and not self.signed:
            return _Kept(pack(memory.reshape(-1) != 0), "bit")
        return _Kept(convolution.short(memory, self.parts), "byte")

    def again(
        self, kept: _Kept, weight: torch.Tensor, need: tuple[bool, bool]
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], list[torch.Tensor | None]]]:
        """(the same currents, what makes the gradients of the input and of the weight from theirs)."""
        if kept.form == "word":
            y = convolution.again(kept.values, weight).unflatten(0, self.shape[:2])
            return y, lambda grad: self._gradients(kept.values, weight, grad, need, True)
        if self.parts and self.padding is not None and not self.on_cuda:
            y, _ = self.currents(self._given(kept), weight)
            return y, lambda grad: self._gradients(
                self._whole_numbers(kept).flatten(0, 1), weight, grad, need, False
            )  # fmt: skip
        given = (self._given(kept), weight)
        x, w = (t.detach().requires_grad_(n) for t, n in zip(given, need, strict=True))
        if self.on_cuda and not isinstance(kept.form, str):
            from hwsim.network.spikes_cuda import remember

            remember(x, kept.form._replace(values=kept.values))
        y, _ = self.currents(x, w)
        if not any(need):
            return y, lambda grad: [None, None]
        edge = torch.autograd.graph.get_gradient_edge(y)  # y itself may die before it is used

        def back(grad: torch.Tensor) -> list[torch.Tensor | None]:
            found = iter(torch.autograd.grad(edge, [t for t in (x, w) if t.requires_grad], grad))
            return [next(found) if n else None for n in need]

        return y.detach(), back

    def _gradients(self, values, weight, grad, need, is_packed: bool) -> list[torch.Tensor | None]:
        """Of the convolution's input, of which `values` were kept, and of its weight."""
        shape = torch.Size((self.shape[0] * self.shape[1], *self.shape[2:]))
        w = weight.contiguous(memory_format=torch.channels_last)
        how = (self.padding, self.parts, self.precision, is_packed, shape)
        grad_x, grad_w = convolution.gradients(values, w, grad.flatten(0, 1), *how, need=need)
        return [grad_x if grad_x is None else grad_x.unflatten(0, self.shape[:2]), grad_w]

    def _given(self, kept: _Kept) -> torch.Tensor:
        """The input again."""
        if kept.form == "whole":
            return kept.values
        x = self._whole_numbers(kept).to(self.dtype)
        return x if self.parts == 1 else x / self.parts

    def _whole_numbers(self, kept: _Kept) -> torch.Tensor:
        """`parts` times the input."""
        T, B, C, *image = self.shape
        x = kept.values
        if not isinstance(kept.form, str):
            return kept.form._replace(values=x).again(self.dtype).unflatten(0, (T, B))
        if kept.form == "bit":
            x = unpack(x, self.shape.numel()).to(torch.int8).view(T, B, *image, C)
        return x if self.padding is None else x.permute(0, 1, 4, 2, 3)


class _Neuron(NamedTuple):
    """A neuron's settings and what computes it."""

    steps: int
    settings: dict
    backend: Backend

    def gradients(self, grad_out, current, gain, mean, var, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the currents and the gains, of that of the spikes."""
        if self.backend.module is None:
            with torch.enable_grad():
                x, g = (t.detach().requires_grad_() for t in (current, gain))
                given = (None, None) if training else (mean, var)
                spikes = lif_bntt(self.over_time(x), g, *given, **self.settings)[0]
            return torch.autograd.grad(spikes, (x, g), grad_out)
        eps, leak, threshold, pool = (self.settings[k] for k in ("eps", "leak", "threshold", "pool"))
        share = self.settings["share"] if training else None
        invstd = 1 / torch.sqrt(var + eps)
        scale = gain * invstd
        x = self.over_time(current)
        grad_x, grad_gain = self.backend.module.backward(
            grad_out, x, mean, invstd, scale, -mean * scale, leak, threshold, pool, training, share
        )
        return grad_x.sum_to_size(current.shape), grad_gain

    def over_time(self, current: torch.Tensor) -> torch.Tensor:
        """Direct coding has one current for all steps."""
        return current.expand(self.steps, *current.shape[1:])


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, gain, mean, var, layer: _Layer, neuron: _Neuron):
        ctx.training = mean is None
        current, words = layer.currents(x.detach(), weight.detach())
        out, count, mean, var = lif_bntt(neuron.over_time(current), gain, mean, var, **neuron.settings)
        del current
        kept = layer.keep(x, words)
        ctx.save_for_backward(kept.values, weight, gain, mean, var)
        ctx.rest = (kept.form, layer, neuron)
        ctx.mark_non_differentiable(count, mean, var)
        return out, count, mean, var

    @staticmethod
    def backward(ctx, grad_out, *_):
        values, weight, gain, mean, var = ctx.saved_tensors
        form, layer, neuron = ctx.rest
        kept = _Kept(values, form)
        current, back = layer.again(kept, weight, ctx.needs_input_grad[:2])
        grad, grad_gain = neuron.gradients(grad_out, current, gain, mean, var, ctx.training)
        del current
        return *back(grad), grad_gain, None, None, None, None


def recomputed(
    layer: nn.Module, neuron: nn.Module, x_TB: torch.Tensor, parts: int, *, steps: int, signed: bool, leak: float,
    threshold: float, pool: int = 1, drive: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`neuron(layer(x))` of a `Conv2d` or `Linear` without bias and a `BNTT` or `Lif`: bit for bit the same results,
    gradients and running statistics, for less memory and the time of another forward pass.

    x_TB: [T, B, C, H, W] or [T, B, N]; T may be 1 for `steps` equal ones. parts: as of `Conv2d`. signed: of spikes,
    whether there may be -1. Returns (spikes [T, B, C', h, w], number of spikes per step before pooling [T]).
    Raises `ValueError` for a layer with a bias.
    """
    if layer.bias is not None:
        raise ValueError("recomputed: found a layer with a bias; it computes layers without")
    weight, backend = layer.store.read(layer), choose(x_TB.device)
    padding = layer.padding if isinstance(layer, nn.Conv2d) else None
    how = _Layer(padding, parts, signed, layer.precision, x_TB.shape, x_TB.dtype, backend.name == "cuda")
    gain, mean, var = neuron.normalization(steps, weight, drive)
    settings = {"eps": neuron.eps, "leak": leak, "threshold": threshold, "pool": pool, "share": neuron.share}
    given = (how, _Neuron(steps, settings, backend))
    out, count, mean, var = _Recomputed.apply(x_TB, weight, gain, mean, var, *given)
    neuron.seen(mean, var, x_TB.shape[1] * _places(layer, x_TB))
    return out, count


def _places(layer: nn.Module, x_TB: torch.Tensor) -> int:
    """Positions of a layer's currents in an image."""
    if not isinstance(layer, nn.Conv2d):
        return 1
    sides = zip(x_TB.shape[3:], layer.kernel_size, layer.padding, strict=True)
    return torch.Size(n + 2 * p - k + 1 for n, k, p in sides).numel()
