"""The convolution of all time steps at once, and which kernel computes it.

A rule, layer by layer and pass by pass, chooses (CPU): spikes and averages of them meet weights of one size a filter by
population counts (`binary_cpu`); else spikes that are sparse go event by event (`events_cpu`), other inputs and the
gradients of inputs through Winograd's transforms (`conv_cpu`), everything that these do not fit through torch. What the
backward pass keeps of an input is a byte an element, or a bit.

T steps, B batch, C channels, H W image.
"""

from types import ModuleType

import torch
import torch.nn.functional as F

from hwsim.network.lif import choose

PRECISIONS = ("float32", "tf32", "bf16")
"""What a convolution multiplies. Sums, currents, membranes, statistics and weights are float32 in all of them.

float32: as given (and float64 as given). tf32: on CUDA, factors rounded to 10 bits behind the point. bf16: to 7 bits;
spikes and averages of spikes are exact in it, so the forward pass rounds the weights alone. On CUDA (`conv_cuda`) it
holds for linear layers too, and currents lie in memory as bfloat16. On the CPU the fast forward passes, which bf16
would not make faster, round nothing, and gradients are rounded behind Winograd's transforms: an error of 1 to 3 % of
their rms, ten times that of rounding them themselves, evenly spread and without bias.
"""
_CHUNK = 32
"""Images whose bytes become floats again at a time, for the weight gradient: they stay in the cache."""


class _EventConvolution(torch.autograd.Function):
    """A convolution whose input is a multiple of 1/parts: a byte an element is kept for the backward pass, or a bit.

    On the CPU the rule above holds for it, and for its gradients: those of weights event by event where the spikes are
    sparse, all others through `conv_cpu` where that is faster.
    """

    @staticmethod
    def forward(ctx, x, weight, padding, parts, precision):
        y, bits = forward(x, weight, padding, parts, precision)
        ctx.save_for_backward(short(x, parts) if bits is None else bits, weight)
        ctx.rest = (padding, parts, precision, bits is not None, x.shape)
        return y

    @staticmethod
    def backward(ctx, grad_out):
        kept, weight = ctx.saved_tensors
        return *gradients(kept, weight, grad_out, *ctx.rest, need=ctx.needs_input_grad[:2]), None, None, None


def gradients(
    kept, weight, grad_out, padding, parts, precision, is_packed, shape, *, need: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the input [N, C, H, W] (its `shape`) and of the weight, where `need` says so.

    kept: what the forward pass left of the input: packed spikes of `events_cpu` (is_packed), else `parts` times it, in
    any numbers.
    """
    grad_x = grad_weight = None
    grad_out = grad_out.to(weight.dtype)  # under autocast the output is shorter

    def by_torch(x, grad, need_x, need_weight):
        wanted = [need_x, need_weight, False]
        settings = ([1, 1], list(padding), [1, 1], False, [0, 0], 1)
        grad, x, w = (_rounded(a, precision) for a in (grad, x, weight))
        with _multiplying(precision):
            both = torch.ops.aten.convolution_backward(grad, x, w, None, *settings, wanted)[:2]
        return [g if g is None else g.to(weight.dtype) for g in both]

    fast, pairs = _fast(grad_out, weight.transpose(0, 1), padding), precision == "bf16"
    if need[0]:
        if fast is None:
            # The gradient of x does not depend on x; torch asks for its shape and memory format only.
            like = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
            grad_x = by_torch(like, grad_out, True, False)[0]
        else:
            grad_x = fast.input_gradient(grad_out, weight, pairs)
    if need[1] and is_packed and not (pairs and fast):
        from hwsim.network import events_cpu

        grad_weight = events_cpu.weight_gradient(kept, grad_out, shape[1])
    elif need[1] and fast is not None:
        grad_weight = fast.weight_gradient(kept, grad_out, pairs, shape[1] if is_packed else None)
        grad_weight = grad_weight if parts == 1 else grad_weight / parts
    elif need[1]:
        chunk = _CHUNK if kept.device.type == "cpu" else len(kept)
        for start in range(0, len(kept), chunk):
            x = kept[start : start + chunk].to(weight.dtype)
            part = by_torch(x, grad_out[start : start + chunk], False, True)[1]
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
        grad_weight = grad_weight if parts == 1 else grad_weight / parts
    return grad_x, grad_weight


def short(x: torch.Tensor, parts: int) -> torch.Tensor:
    """A multiple of 1/parts in a byte an element."""
    if choose(x.device).name != "cpu":
        return (x if parts == 1 else x * parts).to(torch.int8)
    from hwsim.network import layout_cpu

    return layout_cpu.in_bytes(x, parts)


class _Product(torch.autograd.Function):
    """x W' on the CPU of an x that is a multiple of 1/parts, parts a power of two: it is kept in bytes.

    In bf16 the factors of both gradients are rounded; those of the forward pass are not.
    """

    @staticmethod
    def forward(ctx, x, weight, parts, precision):
        ctx.save_for_backward(short(x, parts), weight)
        ctx.rest = (parts, precision)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        kept, weight = ctx.saved_tensors
        parts, precision = ctx.rest
        grad, weight = (_rounded(t, precision) for t in (grad, weight))
        grad_x = (grad @ weight).to(torch.float32) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        grad_weight = (grad.t() @ kept.to(grad.dtype)).to(torch.float32)
        return grad_x, grad_weight if parts == 1 else grad_weight / parts, None, None


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


def forward(x, weight, padding, parts, precision) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(convolution, the packed spikes where they serve the backward pass)."""
    fast = _fast(x, weight, padding)
    if parts and x.dtype == torch.float32 and choose(x.device).name == "cpu":
        from hwsim.network import binary_cpu, bits_cpu, events_cpu

        binary = binary_cpu.binary(weight, x.shape, padding, parts, fast is not None)
        events = parts == 1 and events_cpu.fits(x, weight, padding)
        sparse = events_cpu.DENSEST_DIRECT if fast is None else events_cpu.DENSEST
        words = None
        if parts == 1 and (events or binary is not None):
            words = events_cpu.packed(x, sparse if binary is None else 1.0)
        elif binary is not None:
            words = bits_cpu.planes(x, parts)
        if words is not None and events:
            is_kept = binary is None or bits_cpu.density(words, x.shape[1]) <= sparse
            return _of_spikes(words, weight, binary), words if is_kept else None
        if words is not None:
            return binary_cpu.convolution(words if parts > 1 else words[None], binary, padding, parts), None
    return _torch(x, weight, padding, precision) if fast is None else fast.convolution(x, weight), None


def again(words: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution that `forward` returned with these packed spikes, bit for bit."""
    from hwsim.network import binary_cpu

    N, H, W, _ = words.shape
    return _of_spikes(words, weight, binary_cpu.binary(weight, (N, weight.shape[1], H, W), (1, 1)))


def _of_spikes(words, weight, binary) -> torch.Tensor:
    from hwsim.network import binary_cpu, bits_cpu, events_cpu

    if binary is None or bits_cpu.density(words, weight.shape[1]) < binary_cpu.LEAST:
        return events_cpu.convolution(words, weight)
    return binary_cpu.convolution(words[None], binary, (1, 1))


def _fast(x, weight, padding) -> ModuleType | None:
    """The CPU's fast convolution, or None where torch's own is to be used (other devices, shapes, float64)."""
    if x.device.type != "cpu" or choose(x.device).name != "cpu":
        return None
    from hwsim.network import conv_cpu

    return conv_cpu if conv_cpu.fits(x, weight, padding) else None


def wide(x: torch.Tensor) -> torch.Tensor:
    """bfloat16 as float32, for sums and means; other numbers as they are."""
    return x.float() if x.dtype == torch.bfloat16 else x


def convolve(
    x_TBCHW: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: tuple[int, int],
    parts: int = 0,
    precision: str = "float32",
) -> torch.Tensor:
    """The convolution of all steps at once with a weight that was read from its store; `Conv2d` says what parts is."""
    if choose(x_TBCHW.device).name == "cuda":
        from hwsim.network import conv_cuda

        return conv_cuda.convolve(x_TBCHW, weight, bias, padding, parts, precision)
    weight = weight.contiguous(memory_format=torch.channels_last)
    x = x_TBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if parts and torch.is_grad_enabled():
        y = _EventConvolution.apply(x, weight, padding, parts, precision)
    elif parts:
        y, _ = forward(x, weight, padding, parts, precision)
    else:
        y = _torch(x, weight, padding, precision)
    if bias is not None:
        y = y + bias[:, None, None]
    return y.unflatten(0, x_TBCHW.shape[:2])


def product(
    x_TBN: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, parts: int = 0, precision: str = "float32"
) -> torch.Tensor:
    """x W' + bias of all steps at once; parts as of `convolve`: without gradients binary weights are counted.

    precision: what is multiplied (`PRECISIONS`); on the CPU it is for gradients alone.
    """
    if choose(x_TBN.device).name == "cuda":
        from hwsim.network import conv_cuda

        return conv_cuda.product(x_TBN, weight, bias, precision)
    x = x_TBN.flatten(0, 1)
    if parts and not torch.is_grad_enabled() and x.dtype == torch.float32 and choose(x.device).name == "cpu":
        from hwsim.network import binary_cpu, bits_cpu

        x_NC11 = x[..., None, None]
        binary = binary_cpu.binary(weight[..., None, None], x_NC11.shape, (0, 0), parts)
        words = None if binary is None else bits_cpu.planes(x_NC11, parts)
        if words is not None:
            y = binary_cpu.convolution(words, binary, (0, 0), parts).flatten(1).unflatten(0, x_TBN.shape[:2])
            return y if bias is None else y + bias
    is_short = 0 < parts <= 64 and parts & (parts - 1) == 0 and x.dtype == weight.dtype == torch.float32
    if is_short and torch.is_grad_enabled() and choose(x.device).name == "cpu":
        y = _Product.apply(x, weight, parts, precision).unflatten(0, x_TBN.shape[:2])
        return y if bias is None else y + bias
    return F.linear(x_TBN, weight, bias)


def flat(x_TBCHW: torch.Tensor) -> torch.Tensor:
    """Each image as one row, [T, B, C H W], in the order channel, row, column."""
    x = x_TBCHW.flatten(0, 1)
    moves = x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and x.permute(0, 2, 3, 1).is_contiguous()
    if not moves or choose(x.device).name != "cpu":
        return x_TBCHW.flatten(2)
    from hwsim.network import layout_cpu

    return layout_cpu.flat(x).unflatten(0, x_TBCHW.shape[:2])
