"""The integer form of a converted network: binary weights packed 8 to a byte, AND, population count, whole thresholds.

A binary filter holds s in {-1, 0, +1}. With spikes x in {0, 1} its current, in units of its scale, is a whole number,

    sum s x = 2 pop(x AND plus) - pop(x AND mask)        plus: where s > 0;  mask: where s is not 0

and behind a 2x2 average four times that average. A neuron counts it in units of 1/2^F and fires at a whole threshold,

    Theta_o = rne(p theta_o 2^F)        p = 4 behind an average, else 1

so that nothing is ever rounded again. Weights that are exactly 0 (sign(0)) are the only ones that need `mask`: a layer
without them has no mask plane, a weight is one bit, and pop(x AND mask) is pop(x). It is AND and not XNOR because the
inputs are spikes, not signs. The first layer's currents and the output stay numbers: their weights are full precision.

T steps, B batch, C channels, H W image, O outputs, P places, k kernel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hwsim.config import RunError
from hwsim.network.spiking import Spiking

FRACTION_BITS = 16
"""F: bits of a threshold behind the binary point."""
_CHUNK = 2**22
"""Bytes that a product of packed inputs and filters may take at a time."""


def pack(bits: torch.Tensor) -> torch.Tensor:
    """Booleans [..., n] as bytes [..., ceil(n / 8)]; the first of eight is the lowest bit, missing ones are 0.

    >>> pack(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist()
    [5, 1]
    """
    eights = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (eights << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, n: int) -> torch.Tensor:
    """The n booleans that `pack` packed."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(-2)[..., :n].bool()


def popcount(x: torch.Tensor) -> torch.Tensor:
    """Ones in each row of bytes [..., n]: int32 [...].

    >>> popcount(torch.tensor([[255, 1], [0, 170]], dtype=torch.uint8)).tolist()
    [9, 4]
    """
    x = x - (x >> 1 & 0x55)
    x = (x & 0x33) + (x >> 2 & 0x33)
    return (x + (x >> 4) & 0x0F).sum(-1, dtype=torch.int32)


@dataclass(frozen=True, eq=False)
class Packed:
    """A binary layer: `plus` [O, bytes], `mask` the same or None where no weight is 0, `threshold` [O] int64.

    shape: of the weight. pools: whether its currents are summed over 2x2 places. fraction_bits: F.
    """

    plus: torch.Tensor
    mask: torch.Tensor | None
    threshold: torch.Tensor
    shape: tuple[int, ...]
    pools: bool
    fraction_bits: int = FRACTION_BITS

    @classmethod
    def of(
        cls, weight: torch.Tensor, theta: torch.Tensor, *, pools: bool, fraction_bits: int = FRACTION_BITS
    ) -> "Packed":
        """From any weight whose sign counts, [O, ...], and thresholds in units of its scale, [O].

        Raises `RunError` where a threshold rounds to 0 or does not fit.
        """
        sign = weight.detach().flatten(1)
        threshold = torch.round(theta.double() * (4 if pools else 1) * 2**fraction_bits)
        if not bool(((threshold >= 1) & (threshold < 2**62)).all()):
            worst = float(theta.amin()), float(theta.amax())
            raise RunError(f"thresholds from {worst[0]:g} to {worst[1]:g} do not fit {fraction_bits} fractional bits")
        mask = None if bool((sign != 0).all()) else pack(sign != 0)
        return cls(pack(sign > 0), mask, threshold.long(), tuple(weight.shape), pools, fraction_bits)

    @property
    def bits(self) -> int:
        """Bits of its weights in memory: one each, two where there is a mask plane."""
        weights = torch.Size(self.shape).numel()
        return weights if self.mask is None else 2 * weights

    def currents(self, spikes: torch.Tensor) -> torch.Tensor:
        """Whole currents of one step, summed over 2x2 where it pools: int64 [B, O, ...] of spikes [B, C, ...]."""
        out = self._counted(spikes)
        if self.pools:
            H, W = (n // 2 for n in out.shape[2:])
            out = out[..., : 2 * H, : 2 * W].unflatten(3, (W, 2)).unflatten(2, (H, 2)).sum((3, 5))
        return out

    def _counted(self, spikes: torch.Tensor) -> torch.Tensor:
        outputs, _, *kernel = self.shape
        x = spikes.float()
        is_conv = bool(kernel)
        patches = F.unfold(x, kernel, padding=[k // 2 for k in kernel]).transpose(1, 2) if is_conv else x[:, None]
        x_BPn = pack(patches > 0.5)
        out = torch.empty(*x_BPn.shape[:2], outputs, dtype=torch.int64, device=x.device)
        each = max(1, _CHUNK // max(1, x_BPn.numel()))
        for start in range(0, outputs, each):
            part = slice(start, start + each)
            positive = popcount(x_BPn[:, :, None] & self.plus[part])
            held = popcount(x_BPn)[..., None] if self.mask is None else popcount(x_BPn[:, :, None] & self.mask[part])
            out[..., part] = 2 * positive - held
        return out.transpose(1, 2).unflatten(2, spikes.shape[2:]) if is_conv else out[:, 0]

    def step(self, spikes: torch.Tensor, v: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(spikes, membrane) after one step, all whole numbers; v None is 0."""
        current = self.currents(spikes) << self.fraction_bits
        v = current if v is None else v + current
        theta = self.threshold.reshape(-1, *[1] * (v.dim() - 2))
        fires = v >= theta
        return fires, v - fires * theta


def packed_layers(net: Spiking, fraction_bits: int = FRACTION_BITS) -> dict[str, Packed]:
    """The layers of a spiking network that have an integer form: those on binary cells, without spread."""
    out = {}
    for name, pools in net.pooled.items():
        layer, threshold = net.get_submodule(name), net.get_submodule(f"threshold_{name}")
        if name != "conv1" and getattr(layer.store, "quantizer", None) == "binary":
            theta = threshold.store.read(threshold).detach()
            out[name] = Packed.of(layer.weight, theta, pools=pools, fraction_bits=fraction_bits)
    return out


@torch.no_grad()
def integer_outputs(net: Spiking, packed: dict[str, Packed], x_BCHW: torch.Tensor) -> torch.Tensor:
    """Summed output currents after the last step [B, K], with the packed layers in whole numbers.

    The others are computed as ever. Signals pass all layers within a step; a pipeline is the same, later.
    """
    first = net.conv1(x_BCHW[None])
    first = F.avg_pool2d(first[0], 2)[None] if net.pooled["conv1"] else first
    v: dict[str, torch.Tensor] = {}
    total = torch.zeros(len(x_BCHW), net.fc2.weight.shape[0], dtype=x_BCHW.dtype, device=x_BCHW.device)
    for _ in range(net.effective_steps):
        spikes = None
        for name, pools in net.pooled.items():
            spikes = spikes.flatten(1) if name == "fc1" else spikes
            if name in packed:
                spikes, v[name] = packed[name].step(spikes, v.get(name))
                continue
            current = first[0] if spikes is None else net.get_submodule(name)(spikes[None].to(x_BCHW.dtype))[0]
            current = F.avg_pool2d(current, 2) if pools and spikes is not None else current
            theta = net.get_submodule(f"threshold_{name}")().reshape(-1, *[1] * (current.dim() - 2))
            v[name] = v[name] + current if name in v else current
            spikes = v[name] >= theta
            v[name] = v[name] - spikes * theta
        total += net.fc2(spikes[None].to(x_BCHW.dtype))[0]
    return total
