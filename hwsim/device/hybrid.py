"""Hybrid weights: a frozen RRAM part and an SRAM part that goes on learning, added before one convolution.

    weight that the layer computes with = held_rram(rram, z) + 2^shift_bit · level_sram · unit       (halved: times 1/2)

`layer.rram` is the master weight of the RRAM part, a saved buffer that never changes; `layer.weight` is the master of
the SRAM part. SRAM does not vary. The sum is linear, so one convolution of the summed weight gives what two arrays and
an adder would; accounting still counts two arrays.

Source: the reference's `Conv2d_sram`; Krishnan et al. 2022, doi 10.1109/TCAD.2022.3197516 (hybrid macro with shifter).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hwsim.config import ConfigError, RunError
from hwsim.device.quantize import straight_through, twos_complement, xnor
from hwsim.device.store import Ideal, Rram, Ternary

GRIDS = ("twos-complement", "xnor", "none")
MOST_BITS = 8
MOST_SHIFT = 8
"""With these the sum of an 8-bit RRAM level of the grid xnor and a shifted SRAM word is exact in float32."""


@dataclass(frozen=True)
class Sram:
    """SRAM words: quantized, without spread.

        twos-complement   held = F · twos_complement(w),   F = 2^shift_bit · full_scale
        xnor              held = 2^shift_bit · xnor(w)     the reference's grid, which has no zero (trap B5)
        none              held = 2^shift_bit · w

    full_scale: the weight of an RRAM cell at full conductance; a lone SRAM takes its own max|w|. With twos-complement
    the shift moves range and resolution and leaves the gradient alone; with the others the gradient is times
    2^shift_bit, as in the reference. Raises `ConfigError` on bits or a quantizer that it does not know.

    >>> import torch
    >>> Sram(bits=2).held(torch.tensor([-1.0, -0.4, 0.1, 0.6]))
    tensor([-1.0000, -0.5000,  0.0000,  0.5000])
    """

    bits: int
    """Bits of one word."""
    quantizer: str = "twos-complement"
    """Grid of the words: twos-complement (has a zero), xnor (the reference's) or none."""

    def __post_init__(self):
        problems = []
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 1 <= self.bits <= MOST_BITS:
            problems.append(f"Sram.bits: {self.bits!r} is not a whole number from 1 to {MOST_BITS}")
        if self.quantizer not in GRIDS:
            problems.append(f"Sram.quantizer: {self.quantizer!r} is not one of {', '.join(GRIDS)}")
        if problems:
            raise ConfigError(problems)

    def held(
        self, weight: Tensor, z: Tensor | None = None, *, full_scale: Tensor | float | None = None, shift_bit: int = 0
    ) -> Tensor:
        """What the words hold. z is not used: SRAM does not vary."""
        if self.quantizer == "twos-complement":
            unit = (weight.abs().amax() if full_scale is None else full_scale) * 2.0**shift_bit
            return twos_complement(weight, self.bits, unit) * unit
        level = xnor(weight, self.bits)[0] if self.quantizer == "xnor" else weight
        return level * 2.0**shift_bit

    def read(self, layer: nn.Module, *, full_scale: Tensor | float | None = None, shift_bit: int = 0) -> Tensor:
        """What the layer's words hold; the gradient passes to the master weight."""
        if self.quantizer == "twos-complement":
            held = self.held(layer.weight.detach(), full_scale=full_scale, shift_bit=shift_bit)
            return straight_through(layer.weight, held)
        return straight_through(layer.weight, self.held(layer.weight.detach())) * 2.0**shift_bit

    def noise_shape(self, weight_shape: tuple[int, ...]) -> None:
        """None: there is no spread."""
        return None


@dataclass(frozen=True)
class Masked:
    """Another store whose weights are zero where `layer.mask` is False.

        held = inner.held(w) · mask

    The gradient is masked too, or, where the weights may still come back (`revivable`, while a network is being
    pruned), passes as if there were no mask (the reference, trap B19). Raises `RunError` for a layer without mask.
    """

    inner: "Sram | Rram | Ternary | Ideal"
    """What holds the weights that are kept."""
    revivable: bool = False
    """Let masked weights learn."""

    def held(self, weight: Tensor, z: Tensor | None = None, *, mask: Tensor, **more) -> Tensor:
        """What is held where the mask is True; zero elsewhere."""
        return self.inner.held(weight, z, **more) * mask

    def read(self, layer: nn.Module, **more) -> Tensor:
        """What the layer computes with."""
        if layer.mask is None:
            raise RunError("a masked store needs a mask: load a pruned network, or set layer.mask")
        part = self.inner.read(layer, **more)
        return straight_through(part, part.detach() * layer.mask) if self.revivable else part * layer.mask

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """As the inner store."""
        return self.inner.noise_shape(weight_shape)


@dataclass(frozen=True)
class Hybrid:
    """A frozen RRAM part and a trainable SRAM part: one weight, one convolution.

        total = rram.held(layer.rram, z) + sram.held(layer.weight)          halved: total/2

    shift_bit: the SRAM part times 2^shift_bit, left (+) or right (-) in the adder; -8 to 8.
    halved: the reference's division by two, there to keep the sum's size; BNTT makes it nearly invisible.

    Raises `ConfigError` for parts of another kind, a shift beyond the adder, or the grid "xnor" of full scale 1 on RRAM
    that has another; `RunError` for a layer without a frozen part (trap B6).
    """

    rram: "Rram | Ternary | Ideal"
    """What holds the frozen part."""
    sram: Sram | Masked
    """What holds the part that learns."""
    shift_bit: int = 0
    """Shift of the SRAM word before it is added: left +, right -."""
    halved: bool = False
    """Divide the sum by two."""

    def __post_init__(self):
        problems = []
        whole = isinstance(self.shift_bit, int) and not isinstance(self.shift_bit, bool)
        if not whole or abs(self.shift_bit) > MOST_SHIFT:
            problems.append(
                f"Hybrid.shift_bit: {self.shift_bit!r} is not a whole number from -{MOST_SHIFT} to {MOST_SHIFT}"
            )
        if not isinstance(self.rram, Rram | Ternary | Ideal):
            problems.append(f"Hybrid.rram: {self.rram!r} is not an Rram, Ternary or Ideal")
        words = self.sram.inner if isinstance(self.sram, Masked) else self.sram
        if not isinstance(words, Sram):
            problems.append(f"Hybrid.sram: {self.sram!r} is neither an Sram nor a Masked one")
        elif words.quantizer == "xnor" and getattr(self.rram, "quantizer", None) != "xnor":
            problems.append(
                "Hybrid.sram: its grid xnor has full scale 1, the RRAM has the layer's own; take twos-complement, or "
                "quantizer xnor for both"
            )
        if problems:
            raise ConfigError(problems)

    def held(self, weight: Tensor, z: Tensor | None = None, *, rram: Tensor, mask: Tensor | None = None) -> Tensor:
        """The summed weight. weight: master of the SRAM part; rram: of the RRAM part; all of one shape."""
        more = {} if mask is None else {"mask": mask}
        part = self.sram.held(weight, full_scale=self.rram.full_scale(rram), shift_bit=self.shift_bit, **more)
        total = self.rram.held(rram, z) + part
        return total / 2 if self.halved else total

    def read(self, layer: nn.Module) -> Tensor:
        """The weight that the layer computes with; its gradient reaches the SRAM part alone."""
        if layer.rram is None:
            raise RunError("Hybrid needs a trained RRAM parent: this layer has no RRAM part; load one into layer.rram")
        part = self.sram.read(layer, full_scale=self.rram.full_scale(layer.rram), shift_bit=self.shift_bit)
        total = self.rram.held(layer.rram, layer.z) + part
        return total / 2 if self.halved else total

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """As the RRAM part: SRAM has no spread."""
        return self.rram.noise_shape(weight_shape)
