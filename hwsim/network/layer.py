"""Layers of folded networks: convolution and linear with a weight store, and BNTT with the neuron that it feeds.

A layer runs all T steps at once: time is folded into the batch for the weights and unfolded for the neuron. `weight` is
the full-precision master for ever; what the hardware holds is computed by the layer's store when it is used.

T steps, B batch, C channels, N features, H W image.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.device.store import Ideal, add_cells
from hwsim.network.lif import choose, lif, lif_bntt

_CHUNK = 32
"""Images whose bytes become floats again at a time, for the weight gradient: they stay in the cache."""


class _EventConvolution(torch.autograd.Function):
    """A convolution whose input is a multiple of 1/parts: a byte an element is kept for the backward pass, or a bit.

    On the CPU spikes go through `events_cpu` where they are sparse; it and the gradient of the input else through
    `conv_cpu` where that is faster.
    """

    @staticmethod
    def forward(ctx, x, weight, padding, parts):
        y, bits = _forward(x, weight, padding, parts)
        kept = (x if parts == 1 else x * parts).to(torch.int8) if bits is None else bits
        ctx.save_for_backward(kept, weight)
        ctx.rest = (padding, parts, bits is not None, x.shape)
        return y

    @staticmethod
    def backward(ctx, grad_out):
        kept, weight = ctx.saved_tensors
        padding, parts, is_packed, shape = ctx.rest
        grad_x = grad_weight = None
        grad_out = grad_out.to(weight.dtype)  # under autocast the output is shorter

        def gradients(x, grad, need_x, need_weight):
            need = [need_x, need_weight, False]
            settings = ([1, 1], list(padding), [1, 1], False, [0, 0], 1)
            return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, need)[:2]

        if ctx.needs_input_grad[0]:
            fast = _fast(grad_out, weight.transpose(0, 1), padding)
            if fast is None:
                # The gradient of x does not depend on x; torch asks for its shape and memory format only.
                like = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
                grad_x = gradients(like, grad_out, True, False)[0]
            else:
                grad_x = fast.input_gradient(grad_out, weight)
        if ctx.needs_input_grad[1] and is_packed:
            from hwsim.network import events_cpu

            grad_weight = events_cpu.weight_gradient(kept, grad_out, shape[1])
        elif ctx.needs_input_grad[1] and (fast := _fast(kept, weight, padding)) is not None:
            grad_weight = fast.weight_gradient(kept, grad_out) / parts
        elif ctx.needs_input_grad[1]:
            chunk = _CHUNK if kept.device.type == "cpu" else len(kept)
            for start in range(0, len(kept), chunk):
                x = kept[start : start + chunk].to(weight.dtype)
                part = gradients(x, grad_out[start : start + chunk], False, True)[1]
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
            grad_weight = grad_weight if parts == 1 else grad_weight / parts
        return grad_x, grad_weight, None, None


def _forward(x, weight, padding, parts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(convolution, the packed spikes if it went event by event)."""
    fast = _fast(x, weight, padding)
    if parts == 1 and x.device.type == "cpu" and choose(x.device).name == "cpu":
        from hwsim.network import events_cpu

        if events_cpu.fits(x, weight, padding):
            densest = events_cpu.DENSEST_DIRECT if fast is None else events_cpu.DENSEST
            bits = events_cpu.packed(x, densest)
            if bits is not None:
                return events_cpu.convolution(bits, weight), bits
    return F.conv2d(x, weight, padding=padding) if fast is None else fast.convolution(x, weight), None


def _fast(x, weight, padding) -> ModuleType | None:
    """The CPU's fast convolution, or None where torch's own is to be used (other devices, shapes, float64)."""
    if x.device.type != "cpu" or choose(x.device).name != "cpu":
        return None
    from hwsim.network import conv_cpu

    return conv_cpu if conv_cpu.fits(x, weight, padding) else None


def convolve(
    x_TBCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int], parts: int = 0
) -> torch.Tensor:
    """The convolution of all steps at once with a weight that was read from its store; `Conv2d` says what parts is."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    x = x_TBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if parts and torch.is_grad_enabled():
        y = _EventConvolution.apply(x, weight, padding, parts)
    elif parts:
        y, _ = _forward(x, weight, padding, parts)
    else:
        y = F.conv2d(x, weight, padding=padding)
    if bias is not None:
        y = y + bias[:, None, None]
    return y.unflatten(0, x_TBCHW.shape[:2])


class Conv2d(nn.Conv2d):
    """3x3-style convolution whose weights lie in a store. Its state_dict is exactly torch.nn.Conv2d's.

    x_TBCHW: [T, B, C, H, W]; returns [T, B, C', H', W'].
    parts: the input is a whole multiple of 1/parts within +-127/parts (1 for spikes, 4 after 2x2 pooling), so that the
    backward pass can keep it in one byte; 0 for any real input. bias: a number for each output channel; it lies in no
    store.
    """

    store = Ideal()

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, padding: int = 1, bias: bool = False):
        super().__init__(inputs, outputs, kernel, padding=padding, bias=bias)
        add_cells(self)

    def forward(self, x_TBCHW: torch.Tensor, parts: int = 0) -> torch.Tensor:
        return convolve(x_TBCHW, self.store.read(self), self.bias, self.padding, parts)


class Linear(nn.Linear):
    """Linear layer whose weights lie in a store. Its state_dict is exactly torch.nn.Linear's.

    x_TBN: [T, B, N]; returns [T, B, N']. bias: a number for each output; it lies in no store.
    """

    store = Ideal()

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)
        add_cells(self)

    def forward(self, x_TBN: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TBN, self.store.read(self), self.bias)


class BNTT(nn.Module):
    """Batch normalization through time and the LIF neuron that it feeds (the equation stands in `lif.py`).

    `weight`, `running_mean`, `running_var`: [T, C], one row a time step; there is no offset. A network that was trained
    with T steps has statistics for those T only. Running statistics move by `momentum` towards the batch's mean and
    *unbiased* variance, as in torch.nn.BatchNorm2d. Source: arXiv 2010.01729 (eps 1e-4, momentum 0.1).
    """

    eps = 1e-4
    momentum = 0.1

    def __init__(self, steps: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.register_buffer("running_mean", torch.zeros(steps, channels))
        self.register_buffer("running_var", torch.ones(steps, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(steps, dtype=torch.int64))

    def forward(self, x_TBCHW: torch.Tensor, *, leak: float, threshold: float, pool: int = 1, drive: float = 1.0):
        """Currents to spikes: (spikes [T, B, C, h, w], number of spikes per step before pooling [T]).

        drive: factor of the normalized currents (`lif.convention`).
        """
        settings = {"eps": self.eps, "leak": leak, "threshold": threshold, "pool": pool}
        gain = self.weight if drive == 1.0 else self.weight * drive
        if not self.training:
            out, count, _, _ = lif_bntt(x_TBCHW, gain, self.running_mean, self.running_var, **settings)
            return out, count
        out, count, mean, var = lif_bntt(x_TBCHW, gain, **settings)
        with torch.no_grad():
            n = x_TBCHW.shape[1] * x_TBCHW.shape[3] * x_TBCHW.shape[4]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / (n - 1)) if n > 1 else var, self.momentum)
            self.num_batches_tracked += 1
        return out, count


class Lif(nn.Module):
    """The neuron alone, in the place of `BNTT`: no normalization, no parameters, any number of steps."""

    def forward(self, x_TBCHW: torch.Tensor, *, leak: float, threshold: float, pool: int = 1, drive: float = 1.0):
        """Currents to spikes: (spikes [T, B, C, h, w], number of spikes per step before pooling [T])."""
        return lif(x_TBCHW, leak=leak, drive=drive, threshold=threshold, pool=pool)
