"""Integer formats in float emulation: the value of every stored number lies on a grid, the arithmetic is float.

`integer_codes.py` has the same functions on the integers themselves; tests hold the two together. Here live the
quantizers that integer networks share, here they take and return *values* (float32 or float64 tensors on any device).
Every width is optional: None switches that quantizer off. rne is round half to even, d = 2^(bits - 1).

A signed number of b bits has the values k/d with |k| <= d - 1: 2^b - 1 levels, symmetric, zero among them; the most
negative code of two's complement is never used. At one bit the values are -1, 0 and +1 by the sign.

Source: Schaefer, Faley, Neftci, Joshi, ISCAS 2020, arXiv 2003.11639; Schaefer, Joshi, ICONS 2020,
doi 10.1145/3407197.3407203, as in their published code; "trap" tags are those of the specification of that code.
"""

import math

import torch
from torch import Generator, Tensor

LOWEST_EXPONENT, HIGHEST_EXPONENT = -96, 126
"""Bounds of the exponent of `shift`, so that neither 2^e nor its inverse leaves the normal numbers of float32."""
_SQRT_HALF = math.sqrt(0.5)


def step_of(bits: int) -> float:
    """The distance of two neighboring values of a signed number, 1/d = 2^(1 - bits).

    >>> step_of(8)
    0.0078125
    """
    return 2.0 ** (1 - bits)


def clip(x: Tensor, bits: int | None) -> Tensor:
    """clamp(x, -(1 - 1/d), 1 - 1/d); at one bit clamp(x, -1, 1). Source: quantizer 2.2.

    >>> clip(torch.tensor([-2.0, 0.3, 2.0]), 2)
    tensor([-0.5000,  0.3000,  0.5000])
    """
    if bits is None:
        return x
    limit = 1.0 if bits == 1 else 1.0 - step_of(bits)
    return x.clamp(-limit, limit)


def quant(x: Tensor, bits: int | None) -> Tensor:
    """rne(x d)/d; at one bit sign(x), sign(0) = 0. It does not clip. Source: quantizer 2.3.

    >>> quant(torch.tensor([0.25, 0.75, 1.3]), 2), quant(torch.tensor([-0.1, 0.0]), 1)
    (tensor([0.0000, 1.0000, 1.5000]), tensor([-1.,  0.]))
    """
    if bits is None:
        return x
    if bits == 1:
        return torch.sign(x)
    return torch.round(x * 2.0 ** (bits - 1)) * step_of(bits) + 0.0  # + 0 makes 0 of -0


def quant_w(x: Tensor, bits: int | None, scale: float = 1.0) -> Tensor:
    """Weights: quant(clip(x, bits), bits)/scale; without a width x as it is, not divided. Source: quantizer 2.4, B8.

    scale: a power of two. With two bits and scale 16 the weights are -1/32, 0, 1/32. The fixed readout weights of the
    ICONS network (sb) are the same function.

    >>> quant_w(torch.tensor([-0.9, 0.1, 0.3]), 2, 16.0)
    tensor([-0.0312,  0.0000,  0.0312])
    """
    return x if bits is None else quant(clip(x, bits), bits) / scale


def quant_act(x: Tensor, bits: int | None) -> tuple[Tensor, Tensor]:
    """States: (quant(y, bits), [y == x]) with y = clip(x, bits). The mask says where a gradient passes. Source: 2.5.

    >>> quant_act(torch.tensor([-0.8, 0.3]), 3)
    (tensor([-0.7500,  0.2500]), tensor([False,  True]))
    """
    y = clip(x, bits)
    return quant(y, bits), y == x


def quant_generic(x: Tensor, clip_bits: int | None, round_bits: int | None) -> tuple[Tensor, Tensor]:
    """(quant(y, round_bits), [y == x]) with y = clip(x, clip_bits).

    The published code rounds to its activation width whatever width it is asked for, and begins with weights on that
    grid (trap B2): there round_bits is ab. Corrected, both are the same width. Source: quantizer 2.5.
    """
    y = clip(x, clip_bits)
    return quant(y, round_bits), y == x


def quant01(x: Tensor, bits: int | None) -> Tensor:
    """rne(x 2^bits)/2^bits, not clipped. From 0 to 1 these are 2^bits + 1 levels, one bit more (trap B13). Source: 2.6.

    >>> quant01(torch.tensor([0.125, 0.3, 1.0]), 2)
    tensor([0.0000, 0.2500, 1.0000])
    """
    return x if bits is None else torch.round(x * 2.0**bits) * 2.0**-bits + 0.0


quant_sig = quant01
"""Pooled sigmoids entering the ICONS readout: `quant01` with the width sig."""


def quant11(x: Tensor, bits: int | None) -> Tensor:
    """rne(x s)/s with s = 2^(bits - 1) - 1, not clipped: the ends are exactly -1 and 1. Source: quantizer 2.6.

    >>> quant11(torch.tensor([-1.0, 0.5, 0.51]), 2)
    tensor([-1.,  0.,  1.])
    """
    if bits is None:
        return x
    s = 2.0 ** (bits - 1) - 1
    # s as a tensor: CUDA turns a division by a number into a product with its reciprocal.
    return torch.round(x * s) / torch.full((), s, dtype=x.dtype, device=x.device) + 0.0


def quant_u(x: Tensor, bits: int | None) -> Tensor:
    """The ICONS membrane: 8 quant11(clamp(x/8, -8, 8), bits). Its gradient is the identity everywhere.

    It saturates at 64, not at 8, so that "6 bits" are steps of 8/31 in a range that needs 9 (trap B13). Source: 2.6.
    """
    return x if bits is None else 8 * quant11((x / 8).clamp(-8, 8), bits)


def shift_exponent(x: Tensor) -> Tensor:
    """e = rne(log2 x) as int32 of a tensor of numbers >= 0; 0 where x is 0.

    2^e changes at sqrt(2) times a power of two. This is decided on the bits of x, so that no logarithm rounds; it is
    exact for float32, float64 and integers below 2^53. Bounded by `LOWEST_EXPONENT` and `HIGHEST_EXPONENT`.
    """
    mantissa, exponent = torch.frexp(x.double())
    e = exponent - (mantissa < _SQRT_HALF).to(exponent.dtype)
    return torch.where(x == 0, 0, e).clamp(LOWEST_EXPONENT, HIGHEST_EXPONENT)


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent, exact on every device. Exponents from -126 to 127."""
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(torch.float64)
    return ((exponent.int() + 127) << 23).view(torch.float32).to(dtype)


def shift(x: Tensor) -> Tensor:
    """2^rne(log2 x), and 1 where x is 0: the power of two by which errors and gradients are divided. Source: 2.6b.

    >>> shift(torch.tensor([0.0, 1.41, 1.42, 3.0]))
    tensor([1., 1., 2., 4.])
    """
    return power_of_two(shift_exponent(x), x.dtype)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax() if x.numel() else x.new_zeros(())


def quant_err(x: Tensor, bits: int | None) -> Tensor:
    """Errors: quant(clip(x/a, bits), bits) with one a = shift(max|x|) for the whole tensor.

    The factor a is thrown away: every call brings the error back to about 1 (trap B5), values between 1 and sqrt(2)
    saturate, zeros stay zeros. Source: quantizer 2.8.

    >>> quant_err(torch.tensor([0.03, -0.4, 0.0]), 6)
    tensor([ 0.0625, -0.8125,  0.0000])
    """
    if bits is None:
        return x
    return quant(clip(x * power_of_two(-shift_exponent(_largest(x)), x.dtype), bits), bits)


def uniform_like(x: Tensor, uniform: Tensor | None, generator: Generator | None) -> Tensor:
    """The uniforms of a stochastic operation: the ones given, else float32 draws in [0, 1) on the generator's device.

    Raises `ValueError` unless exactly one of the two is given, or if shapes differ.
    """
    if (uniform is None) == (generator is None):
        raise ValueError("a stochastic rounding takes either `uniform` or `generator`")
    if uniform is None:
        return torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
    if uniform.shape != x.shape:
        raise ValueError(f"uniforms of shape {tuple(uniform.shape)} for a tensor of shape {tuple(x.shape)}")
    return uniform.to(x.device)


def stochastic_round(
    n: Tensor,
    random_bits: int | None,
    *,
    uniform: Tensor | None = None,
    generator: Generator | None = None,
    unbiased: bool = False,
) -> Tensor:
    """A whole number next to n, up with about the probability of its fraction; arithmetic in float64.

        i = floor|n|,  f = rne((|n| - i) m)/m,  r = rne(u m)/m,  m = 2^(random_bits - 1)
        result = sign(n) (i + [f >= r])

    P(up) = f + 2^-random_bits, a bias, and without it nothing but n = 0 would surely stay (trap B7). unbiased:
    r = floor(u m)/m and [f > r], so that P(up) = f. random_bits None: f and u as they are. Source: quantizer 2.7.

    >>> stochastic_round(torch.tensor([0.5, -1.3]), 16, uniform=torch.tensor([0.4, 0.9]))
    tensor([ 1., -1.])
    """
    u = uniform_like(n, uniform, generator).double()
    size = n.double().abs()
    whole = torch.floor(size)
    part = size - whole
    if random_bits is not None:
        m = 2.0 ** (random_bits - 1)
        part, u = torch.round(part * m), (torch.floor(u * m) if unbiased else torch.round(u * m))
    up = part > u if unbiased else part >= u
    return (torch.sign(n.double()) * (whole + up) + 0.0).to(n.dtype)


def quant_grad(
    x: Tensor,
    bits: int | None,
    *,
    random_bits: int | None = 16,
    rate: float = 1.0,
    weight_mult: float = 1.0,
    uniform: Tensor | None = None,
    generator: Generator | None = None,
    unbiased: bool = False,
) -> Tensor:
    """Weight gradients: whole steps of the master weight, by stochastic rounding.

        n      = rate x / shift(max|x|)
        result = stochastic_round(n) · 2^(1 - bits) · weight_mult

    |n| <= rate sqrt(2), so the result has few levels whatever `bits` is: the width sets the step, the rate the
    probability of a step (trap B6). rate enters as the float32 number that the published code multiplies with, and is
    multiplied exactly. Without a width x is returned as it is. Source: quantizer 2.7.

    >>> u = torch.tensor([0.7, 0.5])
    >>> quant_grad(torch.tensor([0.8, -0.4]), 8, uniform=u)
    tensor([0.0078, 0.0000])
    """
    if bits is None:
        return x
    a = power_of_two(-shift_exponent(_largest(x)), torch.float64)
    n = torch.tensor(rate, dtype=torch.float32).double().item() * (x.double() * a)
    steps = stochastic_round(n, random_bits, uniform=uniform, generator=generator, unbiased=unbiased)
    return steps.to(x.dtype) * (step_of(bits) * weight_mult)


def init_scale(bits: int, fan_in: int) -> tuple[float, float]:
    """(scale, range) of the first weights of the ISCAS network: W ~ U(-range, range), used as quant_w(W, bits, scale).

        Wm = 1 - 2^-bits,  limit = sqrt(3/fan_in),  scale = max(1, 2^round(log2(Wm/limit))),  range = max(Wm, limit)

    The published code takes fan_in 784 for every layer; the runs of the paper took 700 and 400 (trap B1). Source: 1.6.

    >>> init_scale(2, 784), init_scale(2, 400)
    ((16.0, 0.75), (8.0, 0.75))
    """
    largest, limit = 1.0 - 2.0**-bits, math.sqrt(3 / fan_in)
    return _whole_scale(largest / limit), max(largest, limit)


def conv_init_scale(bits: int, fan_in: int, beta: float = 1.5) -> tuple[float, float, float]:
    """(scale, range of W, range of b) of a convolution of the ICONS network, in units of the weight multiplier.

        std = 1/sqrt(fan_in),  L_min = beta/d,  scale = max(1, 2^round(log2(L_min/std)))
        W ~ U(± max(std, L_min)),  b ~ U(± max(100 std, L_min))

    fan_in: kernel area times input channels. Source: 3.3.

    >>> [conv_init_scale(4, 49 * c)[0] for c in (2, 64, 128)]
    [2.0, 8.0, 16.0]
    """
    std, smallest = 1 / math.sqrt(fan_in), beta * step_of(bits)
    return _whole_scale(smallest / std), max(std, smallest), max(100 * std, smallest)


def readout_init_scale(bits: int, features: int, amplitude: float = 0.5, beta: float = 1.5) -> float:
    """The divisor of the fixed random readout of the ICONS network, whose weights are U(-1, 1) through `quant_w`.

    max(1, 2^round(log2((1 - beta/d) sqrt(features)/amplitude))). Source: 3.3.

    >>> [readout_init_scale(6, n) for n in (14400, 21632, 3200)]
    [256.0, 256.0, 128.0]
    """
    return _whole_scale((1 - beta * step_of(bits)) * math.sqrt(features) / amplitude)


def _whole_scale(ratio: float) -> float:
    return max(1.0, 2.0 ** round(math.log2(ratio)))
