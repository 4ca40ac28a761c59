"""What actions cost: the prices on a device card, each one number or a law, with unit, source and evidence."""

import math
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from hwsim.config import Settings
from hwsim.device.cited import Cited

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Energy = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scaling = Literal["linear", "quadratic", "cubic"]
"""How dynamic energy falls with the node s: linear, C ~ s at one voltage; cubic, V ~ s too (Dennard); or between."""
_EXPONENT = {"linear": 1, "quadratic": 2, "cubic": 3}


class ByCapacity(Settings):
    """A memory macro: energy of one access by its capacity, between the given capacities on straight log-log lines."""

    word_bits: Annotated[int, Field(ge=1)]
    """Bits of one access; a longer transfer takes several."""
    pJ_by_kib: dict[Positive, Energy] = Field(min_length=1)
    """Energy of one access in picojoule, by capacity in KiB."""

    def at(self, bits: int, kib: float) -> float:
        """pJ of moving `bits` that lie one after the other, from or to a memory of `kib` KiB.

        A smaller memory takes the smallest macro; a larger one is made of several of the largest (wires between them
        are not counted).
        """
        return math.ceil(bits / self.word_bits) * interpolated(self.pJ_by_kib, kib)


class AdcSurvey(Settings):
    """The best converters of a survey: E = 1/(2 10^((FOM - SNDR)/10)) J, SNDR = 6.02 N + 1.76 dB,
    FOM = min(intercept - slope ln f, cap) dB at f samples a second (Schreier's figure of merit).
    """

    samples_per_s: Positive
    """Rate f of one converter."""
    fom_intercept_dB: float
    """Figure of merit extrapolated to ln f = 0."""
    fom_slope_dB: float
    """How much it falls when ln f grows by 1."""
    fom_cap_dB: float
    """Its bound at low rates."""

    def at(self, bits: int) -> float:
        """pJ of one conversion at a resolution of `bits`."""
        fom = min(self.fom_intercept_dB - self.fom_slope_dB * math.log(self.samples_per_s), self.fom_cap_dB)
        return 1e12 / (2 * 10 ** ((fom - (6.02 * bits + 1.76)) / 10))


class Price(Cited):
    """What one action costs: exactly one of pJ, pJ_per_bit, pJ_by_bits, pJ_by_width, by_capacity and adc_survey."""

    pJ: Energy | None = None
    """Energy of one action in picojoule."""
    pJ_per_bit: Energy | None = None
    """Energy of one bit that an action moves, in picojoule."""
    burst_bits: Annotated[int, Field(ge=1)] | None = None
    """Bits that move together at least, beside pJ_per_bit: a transfer is rounded up to whole bursts."""
    pJ_by_bits: dict[Annotated[int, Field(ge=1, le=64)], Energy] | None = Field(default=None, min_length=1)
    """Energy of one action in picojoule, by the bits of a weight; other bits are refused."""
    pJ_by_width: dict[Annotated[int, Field(ge=1)], Energy] | None = Field(default=None, min_length=1)
    """Energy of one operation in picojoule, by the bits that it is as wide as (a multiplication: those of its operands,
    multiplied): a straight line between the given ones, in proportion below the first and above the last."""
    by_capacity: ByCapacity | None = None
    """Energy of a memory's access by its capacity."""
    adc_survey: AdcSurvey | None = None
    """Energy of a conversion by its resolution."""
    node_nm: Positive | None = None
    """Technology node in nanometer; null is the card's."""

    @pydantic.model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = ("pJ", "pJ_per_bit", "pJ_by_bits", "pJ_by_width", "by_capacity", "adc_survey")
        given = [f for f in forms if getattr(self, f) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(forms)}; found {', '.join(given) or 'none of these'}")
        if self.burst_bits is not None and self.pJ_per_bit is None:
            raise ValueError("burst_bits goes with pJ_per_bit")
        return self

    @property
    def is_of_any_node(self) -> bool:
        """Whether the price belongs to no technology node and is never scaled: the survey's bound."""
        return self.adc_survey is not None

    def at(self, bits: int = 0, kib: float = 0.0) -> float:
        """pJ of one action that moves, resolves or is done on `bits` bits, in a memory of `kib` KiB.

        Raises `KeyError` if the law says nothing for these bits.
        """
        if self.pJ is not None:
            return self.pJ
        if self.pJ_per_bit is not None:
            burst = self.burst_bits or 1
            return self.pJ_per_bit * math.ceil(bits / burst) * burst
        if self.pJ_by_bits is not None:
            return self.pJ_by_bits[bits]
        if self.pJ_by_width is not None:
            return proportional(self.pJ_by_width, bits)
        return self.by_capacity.at(bits, kib) if self.by_capacity is not None else self.adc_survey.at(bits)


class StaticPower(Cited):
    """Power that flows whether or not anything happens: exactly one of mW, nW_per_bit and mW_by_kib."""

    mW: Energy | None = None
    """Power of the whole device in milliwatt."""
    nW_per_bit: Energy | None = None
    """Power of one stored bit in nanowatt."""
    mW_by_kib: dict[Positive, Energy] | None = Field(default=None, min_length=1)
    """Power of one memory macro in milliwatt, by its capacity in KiB."""
    node_nm: Positive | None = None
    """Technology node in nanometer; null is the card's."""

    @pydantic.model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = ("mW", "nW_per_bit", "mW_by_kib")
        given = [f for f in forms if getattr(self, f) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(forms)}; found {', '.join(given) or 'none of these'}")
        return self

    def milliwatt(self, kib: float) -> float:
        """mW of a memory of `kib` KiB (of the device, if the power is one number for all).

        A memory above the largest macro is made of as many of these as hold it.
        """
        if self.mW is not None:
            return self.mW
        if self.nW_per_bit is not None:
            return self.nW_per_bit * kib * 8192 / 1e6
        return max(1, math.ceil(kib / max(self.mW_by_kib))) * interpolated(self.mW_by_kib, kib)


def interpolated(table: dict[float, float], x: float) -> float:
    """y at x on straight lines in log x and log y between a table's points; beyond its ends, the end's y."""
    points = sorted(table.items())
    x = min(max(x, points[0][0]), points[-1][0])
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x <= x1:
            part = math.log(x / x0) / math.log(x1 / x0)
            return y0 ** (1 - part) * y1**part
    return points[-1][1]


def proportional(table: dict[int, float], x: float) -> float:
    """y at x on straight lines between a table's points; below the first and above the last y is in proportion to x.

    >>> [round(proportional({8: 0.03, 32: 0.1}, x), 6) for x in (4, 8, 20, 64)]
    [0.015, 0.03, 0.065, 0.2]
    """
    points = sorted(table.items())
    (first, low), (last, high) = points[0], points[-1]
    if x <= first or x >= last:
        return low * x / first if x <= first else high * x / last
    (x0, y0), (x1, y1) = next(p for p in zip(points, points[1:], strict=False) if x <= p[1][0])
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def scaled(node_nm: float, to_nm: float, scaling: Scaling) -> float:
    """Factor of dynamic energy from one node to another: (to/from)^1, 2 or 3."""
    return (to_nm / node_nm) ** _EXPONENT[scaling]
