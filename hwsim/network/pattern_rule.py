"""What the pattern network computes with: widths, sizes, profiles, the checks of them, and the first weights.

Two layers of equal neurons, inputs → hidden → outputs, fully connected, no bias. Three profiles differ where the
published code differs from the runs of the paper, and where it is wrong:

    profile    first weights                     van Rossum kernel   optimizer, rate    stochastic rounding
    release    fan-in 784, grid of ab (B2)       alpha (B3)          adamax, 0.1        f >= r (biased, B7)
    paper      own fan-in, grid of ab (B2)       beta                sgd, 1             f >= r (biased, B7)
    fixed      own fan-in, grid of gb            alpha's value       sgd, 1             f > floor(u m)/m (unbiased)

`fixed` also divides weights without a width by the layer's scale (B8). Kernel, optimizer and rate can be set by
themselves. Source: Schaefer et al., ISCAS 2020, arXiv 2003.11639 and its published code; tags such as B2 are traps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from hwsim.config import ConfigError
from hwsim.device.integer import init_scale, quant_generic
from hwsim.device.integer_codes import largest_code, threshold_code

THRESHOLD = 0.9
"""A neuron fires above this; its membrane then loses 1, not the threshold (trap B4)."""
SLOPE = 100.0
"""Steepness of the surrogate derivative 1/(SLOPE |z| + 1)^2."""
FLOAT_STEP = 2.0**-7
"""Step of a gradient without a width: what one step of 8 bits is, so that only the rounding differs."""
_WIDTHS = {"wb": (1, 16), "ab": (5, 16), "gb": (2, 16), "eb": (1, 16), "rb": (2, 24)}


@dataclass(frozen=True)
class PatternRule:
    """Sizes, bit widths and rule of learning. A width None switches that quantizer off. Times are in steps."""

    inputs: int = 700
    hidden: int = 400
    outputs: int = 250
    steps: int = 250
    """Time steps T of the pattern, 1 ms each in the paper."""
    wb: int | None = 2
    """Bits of a weight in the forward pass."""
    ab: int | None = 8
    """Bits of synapse state, membrane and distance to the threshold."""
    gb: int | None = 8
    """Bits of a gradient: a weight changes in steps of 2^(1 - gb)."""
    eb: int | None = 8
    """Bits of an error."""
    rb: int | None = 16
    """Bits of the random number that rounds a gradient."""
    alpha: float = 0.75
    """Share of the synapse state that is left after a step."""
    beta: float = 0.875
    """Share of the membrane that is left after a step."""
    profile: Literal["release", "paper", "fixed"] = "fixed"
    """Which of the three sets of the module's table."""
    kernel: float | None = None
    """Decay of the van Rossum kernel per step; None: the profile's."""
    optimizer: Literal["sgd", "adamax"] | None = None
    """None: the profile's."""
    rate: float | None = None
    """Scales the probability of a step of 2^(1 - gb); not its size (trap B6). None: the profile's."""
    tau_s: float = 5e-3
    """Time constant that divides the loss, in seconds; it does not change what is learned with errors quantized."""

    def __post_init__(self):
        problems = list(_problems(self))
        if problems:
            raise ConfigError(problems)

    @property
    def vr_kernel(self) -> float:
        """Decay of the van Rossum kernel that is used."""
        if self.kernel is not None:
            return self.kernel
        return self.beta if self.profile == "paper" else 0.75 if self.profile == "fixed" else self.alpha

    @property
    def update(self) -> str:
        """The optimizer that is used."""
        return self.optimizer or ("adamax" if self.profile == "release" else "sgd")

    @property
    def step_rate(self) -> float:
        """The rate that is used."""
        return self.rate if self.rate is not None else 0.1 if self.profile == "release" else 1.0

    @property
    def unbiased(self) -> bool:
        """Whether P(up) of a gradient's rounding is its fraction."""
        return self.profile == "fixed"

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """[I, O] of both weights."""
        return (self.inputs, self.hidden), (self.hidden, self.outputs)

    @property
    def is_integer(self) -> bool:
        """Whether all five widths are set, so that everything stored is an integer."""
        return None not in (self.wb, self.ab, self.gb, self.eb, self.rb)

    @property
    def master_bits(self) -> int:
        """Bits of the grid that first weights, steps and clipped weights lie on; for whole widths and sgd."""
        first = self.gb if self.profile == "fixed" else self.ab
        return max(first, self.gb, self.wb)

    def scale(self, layer: int) -> int:
        """log2 of the power of two that divides the weights of a layer."""
        return round(math.log2(self._first(layer)[0]))

    def divides(self) -> bool:
        """Whether weights are divided by the scale: always with a width, without one only in `fixed` (trap B8)."""
        return self.wb is not None or self.profile == "fixed"

    def first_weights(self, layer: int, generator: torch.Generator) -> torch.Tensor:
        """The first master weights [I, O] of a layer, float32 values; drawn on the generator's device.

        U(-range, range), then quant_generic with gb. Source: section 1.6.
        """
        reach = self._first(layer)[1]
        w = torch.rand(self.shapes[layer], generator=generator, device=generator.device) * (2 * reach) - reach
        return quant_generic(w, self.gb, self.gb if self.profile == "fixed" else self.ab)[0]

    def _first(self, layer: int) -> tuple[float, float]:
        fan_in = 784 if self.profile == "release" else self.shapes[layer][0]
        # Without a width: what very many bits would give.
        return init_scale(self.wb or 52, fan_in)


def _problems(r: PatternRule):
    for name, (low, high) in _WIDTHS.items():
        bits = getattr(r, name)
        if name == "ab" and bits is not None and 1 < bits < low:
            largest = largest_code(bits)
            yield (
                f"ab: {bits} bits can never fire: the largest membrane code is {largest}, a spike needs "
                f"{threshold_code(THRESHOLD, bits) + 1} (above 0.9 of {2 ** (bits - 1)}); take 5 or more"
            )
        elif bits is not None and not low <= bits <= high:
            yield f"{name}: found {bits}; it must be from {low} to {high}, or none to switch the quantizer off"
    for name, low in (("inputs", 1), ("hidden", 1), ("outputs", 1), ("steps", 5)):
        if getattr(r, name) < low:
            why = ": an output spike needs the first four" if name == "steps" else ""
            yield f"{name}: found {getattr(r, name)}; it must be at least {low}{why}"
    for name in ("alpha", "beta", "kernel"):
        value = getattr(r, name)
        if value is not None and not 0 <= value < 1:
            yield f"{name}: found {value:g}; it must be at least 0 and below 1"
    if r.rate is not None and not 0 < r.rate <= 64:
        yield f"rate: found {r.rate:g}; it must be above 0 and at most 64"
    if not 0 < r.tau_s < math.inf:
        yield f"tau_s: found {r.tau_s:g}; it must be above 0"
    if r.profile not in ("release", "paper", "fixed"):
        yield f"profile: found '{r.profile}'; there is release, paper, fixed"
    if r.optimizer not in (None, "sgd", "adamax"):
        yield f"optimizer: found '{r.optimizer}'; there is sgd, adamax"


def dyadic(value: float, what: str) -> tuple[int, int]:
    """(p, k) with value = p/2^k, k at most 10: a decay as integer arithmetic has it.

    Raises `ConfigError` where there is none.

    >>> dyadic(0.75, "alpha"), dyadic(0.875, "beta")
    ((3, 2), (7, 3))
    """
    for k in range(11):
        if float(value * 2**k).is_integer():
            return int(value * 2**k), k
    near = round(value * 1024) / 1024
    raise ConfigError([f"{what}: {value:g} is no multiple of 1/1024, which integers need; take {near:g}, or float"])
