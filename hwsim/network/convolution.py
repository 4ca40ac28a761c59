"""The convolution of all time steps at once, and which kernel computes it.

A rule, layer by layer and pass by pass, chooses (CPU): spikes that are sparse go event by event (`events_cpu`), other
inputs and the gradients of inputs through Winograd's transforms (`conv_cpu`), everything that these do not fit through
torch. What the backward pass keeps of an input is a byte an element, or a bit.

T steps, B batch, C channels, H W image.
"""

from types import ModuleType

import torch
import torch.nn.functional as F

from hwsim.network.lif import choose

PRECISIONS = ("float32", "tf32", "bf16")
"""What a convolution multiplies. Sums, currents, membranes, statistics and weights are float32 in all of them.

float32: as given (and float64 as given). tf32: on CUDA, factors rounded to 10 bits behind the point. bf16: to 7 bits;
spikes and averages of spikes are exact in it, so the forward pass rounds the weights alone.
"""
_CHUNK = 32
"""Images whose bytes become floats again at a time, for the weight gradient: they stay in the cache."""


class _EventConvolution(torch.autograd.Function):
    """A convolution whose input is a multiple of 1/parts: a byte an element is kept for the backward pass, or a bit.

    On the CPU spikes go through `events_cpu` where they are sparse; it and the gradient of the input else through
    `conv_cpu` where that is faster.
    """

    @staticmethod
    def forward(ctx, x, weight, padding, parts, precision):
        y, bits = _forward(x, weight, padding, parts, precision)
        kept = (x if parts == 1 else x * parts).to(torch.int8) if bits is None else bits
        ctx.save_for_backward(kept, weight)
        ctx.rest = (padding, parts, precision, bits is not None, x.shape)
        return y

    @staticmethod
    def backward(ctx, grad_out):
        kept, weight = ctx.saved_tensors
        padding, parts, precision, is_packed, shape = ctx.rest
        grad_x = grad_weight = None
        grad_out = grad_out.to(weight.dtype)  # under autocast the output is shorter

        def gradients(x, grad, need_x, need_weight):
            need = [need_x, need_weight, False]
            settings = ([1, 1], list(padding), [1, 1], False, [0, 0], 1)
            grad, x, w = (_rounded(a, precision) for a in (grad, x, weight))
            with _multiplying(precision):
                both = torch.ops.aten.convolution_backward(grad, x, w, None, *settings, need)[:2]
            return [g if g is None else g.to(weight.dtype) for g in both]

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
        return grad_x, grad_weight, None, None, None


def _rounded(x: torch.Tensor, precision: str) -> torch.Tensor:
    """The factors of a convolution in the numbers that are multiplied; float64 stays what it is."""
    return x.bfloat16() if precision == "bf16" and x.dtype == torch.float32 else x


def _multiplying(precision: str):
    """A context in which cuDNN multiplies float32 in full, or with tf32 rounded."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=precision == "tf32",
    )


def _torch(x, weight, padding, precision) -> torch.Tensor:
    with _multiplying(precision):
        return F.conv2d(_rounded(x, precision), _rounded(weight, precision), padding=padding).to(weight.dtype)


def _forward(x, weight, padding, parts, precision) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(convolution, the packed spikes if it went event by event)."""
    fast = _fast(x, weight, padding)
    if parts == 1 and x.device.type == "cpu" and choose(x.device).name == "cpu":
        from hwsim.network import events_cpu

        if events_cpu.fits(x, weight, padding):
            densest = events_cpu.DENSEST_DIRECT if fast is None else events_cpu.DENSEST
            bits = events_cpu.packed(x, densest)
            if bits is not None:
                return events_cpu.convolution(bits, weight), bits
    return _torch(x, weight, padding, precision) if fast is None else fast.convolution(x, weight), None


def _fast(x, weight, padding) -> ModuleType | None:
    """The CPU's fast convolution, or None where torch's own is to be used (other devices, shapes, float64)."""
    if x.device.type != "cpu" or choose(x.device).name != "cpu":
        return None
    from hwsim.network import conv_cpu

    return conv_cpu if conv_cpu.fits(x, weight, padding) else None


def convolve(
    x_TBCHW: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: tuple[int, int],
    parts: int = 0,
    precision: str = "float32",
) -> torch.Tensor:
    """The convolution of all steps at once with a weight that was read from its store; `Conv2d` says what parts is."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    x = x_TBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if parts and torch.is_grad_enabled():
        y = _EventConvolution.apply(x, weight, padding, parts, precision)
    elif parts:
        y, _ = _forward(x, weight, padding, parts, precision)
    else:
        y = _torch(x, weight, padding, precision)
    if bias is not None:
        y = y + bias[:, None, None]
    return y.unflatten(0, x_TBCHW.shape[:2])
