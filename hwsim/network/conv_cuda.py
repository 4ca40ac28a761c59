"""Convolutions and matrix products on CUDA: what is multiplied, in which numbers, and what the backward pass keeps.

    precision   factors    sums      currents in memory     kept of spikes     flags, within the call only
    float32     float32    float32   float32                a bit or a byte    allow_tf32 off (cuDNN has it on)
    tf32        tf32       float32   float32                a bit or a byte    allow_tf32 on
    bf16        bfloat16   float32   bfloat16               a bit or a byte    no sums of partial sums in bfloat16

Spikes come from the neuron's kernel in the type that is multiplied here, their short copy with them (`spikes_cuda`):
nothing is cast and nothing is packed in a pass of its own. Where there is no such copy a byte is made of what is a
multiple of 1/parts; other inputs are kept in the type that is multiplied. Weights are rounded on each use: they are
small. Gradients of spikes have the spikes' type, gradients of weights the weights'.

Algorithms are deterministic ones, chosen by shape, not by timing: two runs agree bit for bit.

T steps, B batch, C channels, N features, H W image.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from hwsim.network.spikes_cuda import Kept, recall


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Flags of cuDNN and cuBLAS for a precision; what they were before comes back.

    Nothing waits for the GPU, and the flags act when a kernel is launched, so also while a CUDA graph is captured.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    tf32 = precision == "tf32"
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=tf32):
        try:
            matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = tf32, False
            yield
        finally:
            matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before


def factors(x: torch.Tensor, weight: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight in the type that is multiplied; without a copy where they have it."""
    dtype = torch.bfloat16 if precision == "bf16" and weight.dtype == torch.float32 else weight.dtype
    return x.to(dtype), weight.to(dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NCHW, weight, kept: Kept | None, padding, parts: int, precision: str):
        x, w = factors(x_NCHW, weight, precision)
        with multiplying(precision):
            y = F.conv2d(x, w, padding=padding)
        ctx.rest = (x_NCHW.shape, x_NCHW.dtype, weight.dtype, padding, parts, precision)
        if not ctx.needs_input_grad[1]:
            ctx.kept, short = "nothing", None
        elif kept is not None:
            ctx.kept, short = kept._replace(values=None), kept.values
        elif parts:
            ctx.kept, short = "bytes", (x_NCHW if parts == 1 else (x_NCHW * parts).round()).to(torch.int8)
        else:
            ctx.kept, short = "itself", x
        ctx.save_for_backward(w, short)
        return y

    @staticmethod
    def backward(ctx, grad_out):
        w, short = ctx.saved_tensors
        shape, x_dtype, w_dtype, padding, parts, precision = ctx.rest
        need = [*ctx.needs_input_grad[:2], False]
        if isinstance(ctx.kept, Kept):
            x = ctx.kept._replace(values=short).again(w.dtype)
        elif ctx.kept == "nothing":  # the gradient of x asks for its shape and memory format only
            x = torch.empty(shape, dtype=w.dtype, device=w.device, memory_format=torch.channels_last)
        else:
            x = short.to(w.dtype)
        settings = ([1, 1], list(padding), [1, 1], False, [0, 0], 1)
        grad = grad_out.to(w.dtype).contiguous(memory_format=torch.channels_last)
        with multiplying(precision):
            grad_x, grad_w, _ = torch.ops.aten.convolution_backward(grad, x, w, None, *settings, need)
        if grad_w is not None:
            grad_w = grad_w.to(w_dtype)
            grad_w = grad_w / parts if parts > 1 else grad_w
        return None if grad_x is None else grad_x.to(x_dtype), grad_w, None, None, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BN, weight, precision: str):
        x, w = factors(x_BN, weight, precision)
        ctx.save_for_backward(x, w)
        ctx.rest = (x_BN.dtype, weight.dtype, precision)
        with multiplying(precision):
            return x @ w.T

    @staticmethod
    def backward(ctx, grad_out):
        x, w = ctx.saved_tensors
        x_dtype, w_dtype, precision = ctx.rest
        grad = grad_out.to(w.dtype)
        with multiplying(precision):
            grad_x = (grad @ w).to(x_dtype) if ctx.needs_input_grad[0] else None
            grad_w = (grad.T @ x).to(w_dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_w, None


def convolve(x_TBCHW, weight, bias, padding: tuple[int, int], parts: int, precision: str) -> torch.Tensor:
    """As `convolution.convolve`; currents are bfloat16 where the precision is bf16 and there is no bias."""
    kept = recall(x_TBCHW, parts)
    x = x_TBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    y = _Convolution.apply(x, weight, kept, padding, parts, precision)
    y = y if bias is None else y + bias[:, None, None]
    return y.unflatten(0, x_TBCHW.shape[:2])


def product(x_TBN, weight, bias, precision: str) -> torch.Tensor:
    """As `convolution.product`; bfloat16 where the precision is bf16 and there is no bias."""
    y = _Product.apply(x_TBN.flatten(0, -2), weight, precision).unflatten(0, x_TBN.shape[:-1])
    return y if bias is None else y + bias
