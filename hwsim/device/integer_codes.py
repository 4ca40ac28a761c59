"""Integer formats exactly: whole numbers in, whole numbers out; shifts, comparisons and round half to even.

The same quantizers as in `integer.py`, where their equations and sources stand, on integer tensors of any device. A
fixed-point number is n/2^frac with an integer n. Its *code* on a signed grid of b bits is k of k/2^(b - 1). No float
enters except where a float is the input (uniforms, a learning rate). int64 throughout unless said otherwise; sums of
products must stay below 2^62.
"""

import math

import torch
from torch import Generator, Tensor

from hwsim.device.integer import shift_exponent, uniform_like


def fixed_point(x: Tensor, frac: int) -> Tensor:
    """n = x 2^frac as int64.

    Raises `ValueError` if a number is not a multiple of 2^-frac, or too large.

    >>> fixed_point(torch.tensor([0.75, -2.0]), 2)
    tensor([ 3, -8])
    """
    n = x.double() * 2.0**frac
    if bool((n != torch.round(n)).any()) or bool((n.abs() >= 2.0**62).any()):
        raise ValueError(f"not all numbers are multiples of 2^-{frac} below 2^{62 - frac}")
    return n.long()


def rne_shift(n: Tensor, k: int | Tensor) -> Tensor:
    """rne(n/2^k), for negative k n 2^-k. k: a number, or a tensor that broadcasts.

    k >= 1: (n + 2^(k-1) - 1 + ((n >> k) & 1)) >> k with arithmetic shifts. Source: section 1.5.

    >>> rne_shift(torch.tensor([-6, -2, 2, 3, 6]), 2)
    tensor([-2,  0,  0,  1,  2])
    """
    if isinstance(k, int):
        return n << -k if k <= 0 else (n + ((1 << (k - 1)) - 1) + ((n >> k) & 1)) >> k
    down = k.clamp(min=1)
    half = torch.ones_like(down) << (down - 1)
    return torch.where(k > 0, (n + half - 1 + ((n >> down) & 1)) >> down, n << (-k).clamp(min=0))


def largest_code(bits: int) -> int:
    """The largest code of a signed number, 2^(bits - 1) - 1; at one bit 1.

    >>> largest_code(8), largest_code(1)
    (127, 1)
    """
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def quant_code(n: Tensor, frac: int, bits: int) -> Tensor:
    """The code of quant(n/2^frac, bits), not clipped; at one bit the sign.

    >>> quant_code(torch.tensor([1, 3, 5]), 2, 2)
    tensor([0, 2, 2])
    """
    return torch.sign(n) if bits == 1 else rne_shift(n, frac - (bits - 1))


def generic_code(n: Tensor, frac: int, clip_bits: int, round_bits: int) -> tuple[Tensor, Tensor]:
    """(code with round_bits, mask) of quant_generic(n/2^frac, clip_bits, round_bits)."""
    if frac < clip_bits - 1:
        n, frac = n << (clip_bits - 1 - frac), clip_bits - 1
    limit = largest_code(clip_bits) << (frac - (clip_bits - 1))
    return quant_code(n.clamp(-limit, limit), frac, round_bits), n.abs() <= limit


def act_code(n: Tensor, frac: int, bits: int) -> tuple[Tensor, Tensor]:
    """(code, mask) of quant_act(n/2^frac, bits): rounded, saturated, and where nothing was clipped.

    >>> act_code(torch.tensor([-90, 6, 127]), 6, 6)
    (tensor([-31,   3,  31]), tensor([False,  True, False]))
    """
    return generic_code(n, frac, bits, bits)


def weight_code(n: Tensor, frac: int, bits: int) -> Tensor:
    """The code of quant_w(n/2^frac, bits); the divisor `scale` belongs to whoever uses it."""
    return act_code(n, frac, bits)[0]


def code01(n: Tensor, frac: int, bits: int) -> Tensor:
    """The code of quant01(n/2^frac, bits), in steps of 2^-bits; also that of quant_sig."""
    return rne_shift(n, frac - bits)


def code11(n: Tensor, frac: int, bits: int) -> Tensor:
    """The code of quant11(n/2^frac, bits), in steps of 1/s, s = 2^(bits - 1) - 1."""
    return rne_shift(n * (2 ** (bits - 1) - 1), frac)


def membrane_code(n: Tensor, frac: int, bits: int) -> Tensor:
    """The code of quant_u(n/2^frac, bits), in steps of 8/(2^(bits - 1) - 1).

    >>> membrane_code(torch.tensor([-100, 0, 8]), 0, 6)
    tensor([-248,    0,   31])
    """
    return code11(n.clamp(-(64 << frac), 64 << frac), frac + 3, bits)


def error_code(n: Tensor, bits: int) -> Tensor:
    """The codes of quant_err of whole numbers in any unit; zeros of zeros.

    code = clamp(rne(n 2^(bits - 1)/2^e), ± largest), e = rne(log2 max|n|). The unit of n does not matter because the
    factor 2^e is thrown away. Source: quantizer 2.8.

    >>> error_code(torch.tensor([3, -40, 0]), 6)
    tensor([  3, -31,   0])
    """
    if bits == 1 or n.numel() == 0:
        return torch.sign(n)
    e = shift_exponent(n.abs().amax()).long()
    limit = largest_code(bits)
    return rne_shift(n, e - (bits - 1)).clamp(-limit, limit)


def rate_code(rate: float) -> tuple[int, int]:
    """(L, k) with L/2^k the float32 number next to `rate`, k >= 0 and as small as can be.

    >>> rate_code(1.0), rate_code(0.5), rate_code(0.1)
    ((1, 0), (1, 1), (13421773, 27))
    """
    mantissa, exponent = math.frexp(torch.tensor(rate, dtype=torch.float32).item())
    number, k = int(mantissa * 2**24), 24 - exponent
    while k > 0 and number % 2 == 0:
        number, k = number // 2, k - 1
    return number << max(0, -k), max(0, k)


def gradient_steps(
    n: Tensor,
    *,
    random_bits: int = 16,
    rate: float = 1.0,
    uniform: Tensor | None = None,
    generator: Generator | None = None,
    unbiased: bool = False,
) -> Tensor:
    """The whole steps k of quant_grad of whole numbers in any unit; the master weight changes by k 2^(1 - bits).

    n: |n| below 2^38, so that its product with the 24 bits of `rate` fits.   Source: quantizer 2.7.

    >>> gradient_steps(torch.tensor([8, -4, 0]), uniform=torch.tensor([0.7, 0.5, 0.0]))
    tensor([ 1, -1,  0])
    """
    u = uniform_like(n, uniform, generator).double()
    number, k = rate_code(rate)
    e = k + shift_exponent(n.abs().amax()).long() if n.numel() else n.new_zeros(())
    product = n.abs() * number
    whole = product >> e
    part = rne_shift(product - (whole << e), e - (random_bits - 1))
    m = 2.0 ** (random_bits - 1)
    drawn = (torch.floor(u * m) if unbiased else torch.round(u * m)).long()
    return torch.sign(n) * (whole + (part > drawn if unbiased else part >= drawn).long())


def threshold_code(threshold: float, bits: int) -> int:
    """rne(threshold 2^(bits - 1)): what is subtracted from a membrane code before it is compared with 0.

    >>> [threshold_code(0.9, b) for b in (5, 8, 12)]
    [14, 115, 1843]
    """
    return round(threshold * 2 ** (bits - 1))


def fire_code(threshold: float, bits: int) -> int | None:
    """The smallest membrane code that fires, or None where even the largest code does not. Source: section 1.5.

    >>> fire_code(0.9, 8), fire_code(0.9, 4)
    (116, None)
    """
    code = threshold_code(threshold, bits) + 1
    return code if code <= largest_code(bits) else None
