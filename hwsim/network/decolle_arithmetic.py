"""The arithmetic of a DECOLLE layer: `Whole` on int64 codes, `Real` on floats that hold the codes or have none.

Both have the same methods; `decolle_step.py` is written with them. A number n of `frac` fraction bits is n/2^frac.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsim.device import integer, integer_codes

EXACT_SUM = 2.0**24
"""Sums of whole numbers below this are exact in float32, in any order."""


class Whole:
    """int64 codes, shifts, round half to even. Products are summed in float64, exact below 2^53."""

    dtype = torch.int64

    def number(self, x):
        return x.long() if isinstance(x, Tensor) else x

    def rounded(self, n: Tensor, frac: int, on: bool) -> Tensor:
        return integer_codes.rne_shift(n, frac)

    def down(self, n: Tensor, frac: int) -> Tensor:
        return n >> frac

    def weight(self, master: Tensor, frac: int, bits: int | None) -> Tensor:
        assert bits is not None
        return integer_codes.weight_code(master, frac, bits)

    def error(self, n: Tensor, bits: int | None, frac: int) -> Tensor:
        assert bits is not None
        return integer_codes.error_code(n, bits)

    def steps(self, n: Tensor, gain: tuple[int, int, int], rb: int | None, u: Tensor, unbiased: bool) -> Tensor:
        """`integer_codes.gradient_steps`, with a unit that is no power of two."""
        assert rb is not None
        unit, factor, k = gain
        e = (integer.shift_exponent(n.abs().amax() * unit).long() + k).clamp(min=rb)
        product = n.abs() * factor
        whole = product >> e
        part = integer_codes.rne_shift(product - (whole << e), e - (rb - 1))
        drawn = u.double() * 2 ** (rb - 1)
        drawn = (torch.floor(drawn) if unbiased else torch.round(drawn)).long()
        return torch.sign(n) * (whole + (part > drawn if unbiased else part >= drawn).long())

    def conv(self, x: Tensor, w: Tensor, padding: int) -> Tensor:
        return F.conv2d(x.double(), w.double(), padding=padding).long()

    def conv_gradient(self, x: Tensor, w: Tensor, e: Tensor, padding: int) -> Tensor:
        return _conv_gradient(x.double(), w.double(), e.double(), padding).long()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double()).long()


class Real:
    """Floats that hold the codes (`exact`: every width is set), or plain values where widths are None."""

    def __init__(self, exact: bool, dtype: torch.dtype | None = None):
        self.exact, self.dtype = exact, dtype or (torch.float64 if exact else torch.float32)

    def number(self, x):
        return x.to(self.dtype) if isinstance(x, Tensor) else x

    def rounded(self, n: Tensor, frac: int, on: bool) -> Tensor:
        x = n * 2.0**-frac
        return torch.round(x) if on else x

    def down(self, n: Tensor, frac: int) -> Tensor:
        return torch.floor(n * 2.0**-frac)

    def weight(self, master: Tensor, frac: int, bits: int | None) -> Tensor:
        x = master * 2.0**-frac
        return x if bits is None else integer.quant_w(x, bits) * 2.0 ** (bits - 1)

    def error(self, n: Tensor, bits: int | None, frac: int) -> Tensor:
        return n * 2.0**-frac if bits is None else integer.quant_err(n, bits) * 2.0 ** (bits - 1)

    def steps(self, n: Tensor, gain: tuple[int, int, int], rb: int | None, u: Tensor, unbiased: bool) -> Tensor:
        unit, factor, k = gain
        x = n.double()
        e = integer.shift_exponent(x.abs().amax() * unit) + k
        x = x * factor * integer.power_of_two(-e, torch.float64)
        return integer.stochastic_round(x, rb, uniform=u, unbiased=unbiased).to(self.dtype)

    def conv(self, x: Tensor, w: Tensor, padding: int) -> Tensor:
        kind = self._kind(x, w.abs().sum((1, 2, 3)))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            # Channels last: many times as fast where there are few input channels.
            return F.conv2d(_last(x, kind), _last(w, kind), padding=padding).to(self.dtype)

    def conv_gradient(self, x: Tensor, w: Tensor, e: Tensor, padding: int) -> Tensor:
        kind = self._kind(x, e.abs().sum((0, 2, 3)))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return _conv_gradient(_last(x, kind), _last(w, kind), _last(e, kind), padding).to(self.dtype)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def _kind(self, x: Tensor, size: Tensor) -> torch.dtype:
        """float32 unless codes might add up to more than it holds; on CUDA its algorithms may not be plain sums."""
        if not self.exact:
            return self.dtype
        small = x.device.type == "cpu" and float(x.abs().amax() * size.amax()) < EXACT_SUM
        return torch.float32 if small else torch.float64


def _last(x: Tensor, kind: torch.dtype) -> Tensor:
    return x.to(kind, memory_format=torch.channels_last)


def _conv_gradient(x: Tensor, w: Tensor, e: Tensor, padding: int) -> Tensor:
    pair, two = [padding, padding], [False, True, False]
    return torch.ops.aten.convolution_backward(e, x, w, None, [1, 1], pair, [1, 1], False, [0, 0], 1, two)[1]
