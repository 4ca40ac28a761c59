"""The parameters of one DECOLLE layer, its constants, and the same as whole numbers for exact arithmetic.

An input element with time constants tau_s, tau_m (in steps) has beta = 1 - 1/tau_s, alpha = 1 - 1/tau_m, drives
kappa_s = 1/(1 - beta), kappa_m = 1/(1 - alpha); gamma = 1 - 1/tau_ref is common. The full scales of the stored states
are the responses to an input that is always on,

    Qs = max kappa_s^2,   Ps = Qs max kappa_m^2,   Rs = 1/(1 - gamma)

All of these are float32 numbers computed as the published code does. Source: 3.3.

C H W input, O outputs, k kernel, K classes, F features of the readout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from hwsim.device.integer import conv_init_scale, quant_w, readout_init_scale, step_of
from hwsim.network.decolle_rule import DecolleRule, LayerPlan

TRACE = 32
"""Fraction bits of the trace arithmetic: decays between 1/2 and 1 are float32 numbers and so exactly representable."""
GAIN = 24
"""Fraction bits of an error that is carried to the membrane."""
SLOPE = 30
"""Fraction bits of the sigmoid's derivative."""
MASK = 16
"""Fraction bits of the factor of a score that is not dropped."""
UNIT = 22
"""Bits of the factor that carries a gradient from codes to its normalized value."""


class Layer(nn.Module):
    """Parameters of a layer. weight [O, C, k, k] and bias [O] are masters in units of weight_mult; nothing is trained
    by autograd. readout, feedback [K, F]: fixed; tau_syn, tau_mem [C, H, W] in steps: fixed.
    """

    weight: Tensor
    bias: Tensor
    readout: Tensor
    feedback: Tensor
    tau_syn: Tensor
    tau_mem: Tensor

    def __init__(self, rule: DecolleRule, plan: LayerPlan, generator: Generator | None = None):
        """Draws weight, bias, readout, feedback, tau_syn, tau_mem in this order, as the published code does.

        generator: on the CPU; without one everything is zero or its lower bound, to be loaded or set.
        """
        super().__init__()
        self.rule, self.plan = rule, plan
        fan_in = math.prod(plan.weight_shape[1:])
        std = 1 / math.sqrt(fan_in)
        self.scale, reach, bias_reach = (
            conv_init_scale(rule.wb, fan_in, rule.beta) if rule.wb is not None else (1.0, std, 100 * std)
        )
        self.readout_scale, readout_reach = 1.0, rule.lc_ampl / math.sqrt(plan.features)
        if rule.sb is not None:
            self.readout_scale = readout_init_scale(rule.sb, plan.features, rule.lc_ampl, rule.beta)
            readout_reach = 1.0

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            if generator is None:
                return torch.full(shape, float(low) if low > 0 else 0.0)
            return low + (high - low) * torch.rand(shape, generator=generator)

        self.register_buffer("weight", self._first(uniform(-reach, reach, *plan.weight_shape)))
        self.register_buffer("bias", self._first(uniform(-bias_reach, bias_reach, plan.out[0])))
        many = (rule.classes, plan.features)
        readout = quant_w(uniform(-readout_reach, readout_reach, *many), rule.sb)
        feedback = quant_w(uniform(-readout_reach, readout_reach, *many), rule.sb)
        discordant = (readout != 0) & (feedback.sign() != readout.sign())
        self.register_buffer("readout", readout)
        self.register_buffer("feedback", torch.where(discordant, -feedback, feedback) + 0.0)
        self.register_buffer("tau_syn", uniform(*rule.tau_syn, *plan.shape))
        self.register_buffer("tau_mem", uniform(*rule.tau_mem, *plan.shape))

    def _first(self, w: Tensor) -> Tensor:
        """First weights in units of wm. With wb the published code rounds W = w wm to wb bits, which gives 0 (B9)."""
        rule = self.rule
        if rule.wb is None or rule.fixed:
            return quant_w(w, rule.wb)
        return quant_w(w * rule.weight_mult, rule.wb) / rule.weight_mult

    def used(self) -> Tensor:
        """Weights of the forward pass in units of weight_mult, [O, C, k, k] float64: masters, clipped and rounded."""
        w, rule = self.weight.double(), self.rule
        if rule.gb is not None:
            limit = 1 - step_of(rule.gb)
            w = w.clamp(-limit, limit)
        return quant_w(w, rule.wb)

    def constants(self) -> "Constants":
        """Decays, drives and full scales of this layer."""
        beta, alpha = 1 - 1 / self.tau_syn, 1 - 1 / self.tau_mem
        kappa_s, kappa_m = 1 / (1 - beta), 1 / (1 - alpha)
        one = self.tau_syn.new_ones(())
        gamma = 1 - 1 / (one * self.rule.tau_ref)
        full_q = (kappa_s / (1 - beta)).max()
        full_p = (kappa_m * full_q / (1 - alpha)).max()
        return Constants(
            alpha, beta, kappa_m, kappa_s, gamma.item(), full_p.item(), full_q.item(), (1 / (1 - gamma)).item()
        )


@dataclass(frozen=True)
class Constants:
    """alpha, beta, kappa_m, kappa_s: float32 [C, H, W]; gamma and the full scales of P, Q, R: numbers."""

    alpha: Tensor
    beta: Tensor
    kappa_m: Tensor
    kappa_s: Tensor
    gamma: float
    full_p: float
    full_q: float
    full_r: float


class Numbers:
    """A layer's constants as whole numbers (float64 tensors and Python ints that hold them), in units of the codes.

    The unit of a state without a width is 1, that of one with a width the distance of two codes. With u_P, u_Q, u_R,
    u_U these units, and n the number of time step,

        P' = (alpha P + drive_p Q)/2^32     alpha = alpha 2^32,  drive_p = kappa_m u_Q/u_P 2^32
        Q' = (beta Q + drive_q s)/2^32      beta = beta 2^32,    drive_q = kappa_s/u_Q 2^32
        R' = (gamma R + spike S)/2^32       gamma = gamma 2^32,  spike = 1/u_R 2^32
        U  = (gain sum(w P) + gain_b b - refract R)/2^frac_u

    Source: 3.4, "integer form".
    """

    def __init__(self, layer: Layer):
        r, c = layer.rule, layer.constants()
        self.unit_p = r.cap * c.full_p / 2**r.pb if r.pb is not None else 1.0
        self.unit_q = r.cap * c.full_q / 2**r.qb if r.qb is not None else 1.0
        self.unit_r = c.full_r / 2**r.rfb if r.rfb is not None else 1.0
        self.unit_u = 8 / (2 ** (r.ub - 1) - 1) if r.ub is not None else 1.0
        one = 2.0**TRACE
        self.alpha = torch.round(c.alpha.double() * one)
        self.beta = torch.round(c.beta.double() * one)
        self.drive_p = torch.round(c.kappa_m.double() * (self.unit_q / self.unit_p) * one)
        self.drive_q = torch.round(c.kappa_s.double() / self.unit_q * one)
        self.gamma, self.spike = round(c.gamma * one), round(one / self.unit_r)
        self.top_p = _top(r.pb, r.cap, c.full_p)
        self.top_q = _top(r.qb, r.cap, c.full_q)
        # U keeps 52 bits: sign and code, 4 bits above it, the rest behind the point.
        self.frac_u = 48 - r.ub if r.ub is not None else 40
        weight_unit = r.weight_mult / ((2 ** (r.wb - 1) * layer.scale) if r.wb is not None else 1.0)
        one_u = 2.0**self.frac_u / self.unit_u
        self.gain = round(self.unit_p * weight_unit * one_u)
        self.gain_b = round(weight_unit * one_u)
        self.refract = round(c.gamma * self.unit_r * one_u)
        self.top_u = 8 * (2 ** (r.ub - 1) - 1) if r.ub is not None else None
        # A sum beyond this saturates U whatever bias and refractoriness do.
        self.top_sum = (2 * self.top_u << self.frac_u) // max(1, self.gain) + 1 if self.top_u is not None else None
        self.frac_o = (r.sig or 0) + (r.sb - 1 + round(math.log2(layer.readout_scale)) if r.sb is not None else 0)
        self.mask = round(r.mask_scale * 2**MASK)
        codes = None if self.top_u is None else torch.arange(-self.top_u, self.top_u + 1).double() * self.unit_u
        self.sigmoid = None if codes is None else torch.sigmoid(codes)
        """Of every code of U; the first is that of -top_u."""
        self.pooled_sigmoid = None if self.sigmoid is None or r.sig is None else torch.round(self.sigmoid * 2**r.sig)
        self.slope = None if codes is None else torch.round(torch.sigmoid(codes) * torch.sigmoid(-codes) * 2**SLOPE)


def gradient_gain(unit: float, rate: float) -> tuple[int, int, int]:
    """(u, g, k) for a gradient of whole numbers n in units of `unit`: with e = rne(log2 max|n u|), rate times the
    normalized gradient is n g/2^(e + k).

    The exponent of the largest gradient depends on its unit, which for P is no power of two; u is `unit` and g is
    rate `unit`, each as a number of 22 bits.

    >>> gradient_gain(1.0, 0.5)
    (2097152, 2097152, 1)
    """
    mantissa, _ = math.frexp(unit)
    u = round(mantissa * 2**UNIT)
    g, exponent = math.frexp(rate * u)
    return u, round(g * 2**UNIT), UNIT - exponent


def _top(bits: int | None, cap: float, full: float) -> int | None:
    """Where a trace is clamped, in units of its code over 2^32; a trace without a width only with a cap below 1."""
    if bits is not None:
        return 2 ** (bits + TRACE)
    return None if cap == 1 else round(cap * full * 2**TRACE)


def master_codes(x: Tensor, rule: DecolleRule) -> Tensor:
    """Master weights in units of wm → whole numbers on their grid, float64. Exact where they lie on it."""
    return torch.round(x.double() * 2.0**rule.master_frac)


def master_limit(rule: DecolleRule) -> int:
    """The largest master code, 1 - 2^(1 - gb) on the grid."""
    assert rule.gb is not None
    return round((1 - step_of(rule.gb)) * 2**rule.master_frac)
