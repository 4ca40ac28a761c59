"""VGG5, VGG9, VGG11, VGG19 and an MLP, with BNTT or without: rate or direct coded, layer by layer over all time steps.

A plan lists the convolutions (3x3, padding 1, no bias) by their channels, "A" where the spikes are averaged over 2x2,
and "G" where they are averaged over the whole image. After the convolutions: fc1 with BNTT and neuron, and fc2, whose
outputs are averaged over time. Layers are named conv1 … convN, fc1, fc2; their normalization and neuron bntt1 … bnttN,
bntt_fc, or lif1 … lif_fc without normalization.

Sources: BNTT, arXiv 2010.01729, and its hybrid RRAM/SRAM descendant; without normalization: rate versus direct, Kim et
al., ICASSP 2022 (their MLP, VGG5, VGG9; sizes follow from the image here, traps 3 and 4).

T steps, B batch, C channels, H W image, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import ConfigError
from hwsim.network.arrivals import arrived, fired, silent
from hwsim.network.convolution import flat, wide
from hwsim.network.encode import encode
from hwsim.network.layer import BNTT, Conv2d, Lif, Linear
from hwsim.network.lif import convention
from hwsim.network.recompute import recomputed
from hwsim.network.share import Share

PLANS: dict[str, tuple[tuple[int | str, ...], int]] = {
    "mlp": ((), 800),
    "vgg5": ((64, "A", 128, 128, "A"), 1024),
    "vgg9": ((64, 64, "A", 128, 128, "A", 256, 256, 256, "A"), 1024),
    "vgg11": ((64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "G"), 4096),
    "vgg19": ((64, 64, "A", 128, 128, "A", *[256] * 4, "A", *[512] * 4, "A", *[512] * 4, "A"), 1024),
}
"""Name → (plan, width of fc1), for 3x32x32 images (mlp: 28x28); `width` multiplies every number."""
NORMS = ("bntt", "none")


class Partway(NamedTuple):
    """How far a pass has come: the input of convolution number `block` (from 0), and its currents where they are known.

    parts, signed: what the input is, as for `arrivals.arrived`.
    """

    x_TBCHW: torch.Tensor
    block: int
    parts: int
    signed: bool
    current: torch.Tensor | None = None


class VggBntt(nn.Module):
    """A VGG of spiking neurons, with batch normalization through time (norm bntt) or none.

    plan, hidden: as in `PLANS`; hidden is the width of fc1. channels, size: the input image. steps: T. coding: poisson,
    direct or repeat (`encode.py`). leak, leak_rule: what a membrane keeps, as `lif.convention` understands it.
    threshold: firing threshold. precision: what the convolutions multiply, see `convolution.PRECISIONS`.
    checkpoint_layers: keep each layer's spikes alone for the backward pass, and compute its currents again.

    Initial weights: Xavier uniform, a = gain sqrt(6 / (fan_in + fan_out)), drawn from `generator`.
    Raises `ConfigError` if the plan pools more often than the image allows, `ValueError` for an unknown word.
    """

    def __init__(
        self,
        plan: tuple[int | str, ...],
        hidden: int,
        *,
        channels: int,
        size: tuple[int, int],
        classes: int,
        steps: int,
        coding: str = "poisson",
        leak: float = 0.95,
        threshold: float = 1.0,
        norm: str = "bntt",
        leak_rule: str = "plain",
        gain: float = 2.0,
        precision: str = "float32",
        checkpoint_layers: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: found '{norm}'; it can be {', '.join(NORMS)}")
        self.steps, self.coding, self.norm, self.threshold = steps, coding, norm, threshold
        self.leak, self.drive = convention(leak_rule, leak)
        self.checkpoint_layers = checkpoint_layers
        self.blocks: list[tuple[str, str, str]] = []
        height, width, fan_in = *size, channels
        for item in plan:
            if isinstance(item, int):
                name = str(len(self.blocks) + 1)
                self.add_module(f"conv{name}", Conv2d(fan_in, item, precision=precision))
                self.blocks.append((f"conv{name}", self._add_neuron(name, item), ""))
                fan_in = item
                continue
            conv, neuron, _ = self.blocks[-1]
            self.blocks[-1] = (conv, neuron, item)
            height, width = (1, 1) if item == "G" else (height // 2, width // 2)
            if min(height, width) < 1:
                pools = sum(i == "A" for i in plan)
                raise ConfigError(
                    [
                        f"net: this plan halves the image {pools} times; it needs {2**pools}x{2**pools} pixels, "
                        f"the data have {size[0]}x{size[1]}. Take a network with fewer pools"
                    ]
                )
        self.fc1 = Linear(fan_in * height * width, hidden, precision=precision)
        self.last_neuron = self._add_neuron("_fc", hidden)
        self.fc2 = Linear(hidden, classes)
        self._initialize(gain, generator)

    @property
    def update(self) -> tuple[int, int]:
        """Multiplications (leak, drive) and additions (current, threshold) of a neuron's update, a step, unfired."""
        return (2, 3) if self.norm == "bntt" else (1 if self.drive == 1.0 else 2, 2)

    def _add_neuron(self, name: str, channels: int) -> str:
        name = f"{'bntt' if self.norm == 'bntt' else 'lif'}{name}"
        self.add_module(name, BNTT(self.steps, channels) if self.norm == "bntt" else Lif())
        return name

    def _initialize(self, gain: float, generator: torch.Generator | None) -> None:
        for layer in self.modules():
            if isinstance(layer, Conv2d | Linear):
                field = math.prod(layer.weight.shape[2:])
                bound = gain * math.sqrt(6.0 / (field * (layer.weight.shape[0] + layer.weight.shape[1])))
                with torch.no_grad():
                    layer.weight.uniform_(-bound, bound, generator=generator)

    def encode(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None, *, expected: bool = False
    ) -> torch.Tensor:
        """Input over time, [T, B, C, H, W] or, for direct coding, [1, B, C, H, W]. expected: as in `encode.encode`."""
        return encode(x_BCHW, self.steps, self.coding, generator, expected=expected)

    def forward(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None, account: Sequence[int] | None = None
    ):
        """(logits [B, K], trace) of normalized images; `generator` draws the spike coding (on x's device)."""
        return self.run(self.encode(x_BCHW, generator), account)

    def run(self, x_TBCHW: torch.Tensor, account: Sequence[int] | None = None):
        """(logits [B, K], trace) of an encoded input.

        trace: layer → what accounting needs, summed over the batch: `spikes` [T] and `neurons` (an image) of every
        spiking layer; with `account`, the heights of crossbars (may be empty), all of `arrivals.py`. Logits are the
        mean over T of fc2's outputs.
        """
        x_TBN, trace = self._hidden(x_TBCHW, account)
        # fc2 is linear, so its mean over time is fc2 of the mean.
        return self.fc2(x_TBN.mean(0)), trace

    def over_time(self, x_TBCHW: torch.Tensor, account: Sequence[int] | None = None):
        """(outputs of fc2 at every step [T, B, K], trace) of an encoded input; their mean over T is the logits."""
        x_TBN, trace = self._hidden(x_TBCHW, account)
        return self.fc2(x_TBN), trace

    def lead(self, x_TBCHW: torch.Tensor, is_fixed: Callable[[nn.Module], bool]) -> Partway:
        """The beginning of a pass: the leading convolutions and neurons for which is_fixed says that they stay.

        `follow` ends the pass; what follows may be another chip each time. Together they are `run`, bit for bit.
        """
        at = self._begin(x_TBCHW)
        while at.block < len(self.blocks):
            conv, neuron = (self.get_submodule(name) for name in self.blocks[at.block][:2])
            if not is_fixed(conv):
                break
            if not is_fixed(neuron):
                return at._replace(current=conv(at.x_TBCHW, at.parts))
            at = self._block(at, {}, None)
        return at

    def follow(self, at: Partway) -> torch.Tensor:
        """Logits [B, K] of a pass that `lead` began."""
        return self.fc2(self._hidden(at, None)[0].mean(0))

    def _begin(self, x_TBCHW: torch.Tensor) -> Partway:
        return Partway(x_TBCHW, 0, 1 if self.coding == "poisson" else 0, True)

    def _block(self, at: Partway, trace: dict[str, dict], account: Sequence[int] | None) -> Partway:
        """Through one convolution, its neurons and its pool."""
        conv_name, neuron_name, pool = self.blocks[at.block]
        x_TBCHW, parts, signed = at.x_TBCHW, at.parts, at.signed
        conv = self.get_submodule(conv_name)
        here = trace[conv_name] = _arrived(conv, x_TBCHW, parts, signed, account)
        if at.current is not None:
            x_TBCHW = self._fire(neuron_name, at.current, here, None, pool=2 if pool == "A" else 1)
        elif account is None:
            x_TBCHW = self._spikes(conv, neuron_name, x_TBCHW, here, parts, signed, pool=2 if pool == "A" else 1)
        else:
            x_TBCHW = self._fire(neuron_name, conv(x_TBCHW, parts), here, account)
            if pool == "A":
                x_TBCHW = F.avg_pool2d(x_TBCHW.flatten(0, 1), 2).unflatten(0, x_TBCHW.shape[:2])
        parts = {"": 1, "A": 4, "G": math.prod(x_TBCHW.shape[3:])}[pool]
        if pool == "G":
            x_TBCHW = wide(x_TBCHW).mean((3, 4), keepdim=True)
        return Partway(x_TBCHW, at.block + 1, parts, False)

    def _hidden(
        self, at: torch.Tensor | Partway, account: Sequence[int] | None
    ) -> tuple[torch.Tensor, dict[str, dict]]:
        """(spikes of fc1 [T, B, N], trace) of an encoded input, or of a pass that has come some way."""
        trace: dict[str, dict] = {}
        if not isinstance(at, Partway):
            at = self._begin(at)
        while at.block < len(self.blocks):
            at = self._block(at, trace, account)
        parts, signed = at.parts, at.signed
        # fc1 counts its inputs in the order channel, row, column: the reference's order, so that checkpoints fit.
        x_TBN = flat(at.x_TBCHW)
        here = trace["fc1"] = _arrived(self.fc1, x_TBN, parts, signed, account)
        if account is None:
            x_TBN = self._spikes(self.fc1, self.last_neuron, x_TBN, here, parts, signed).flatten(2)
        else:
            x_TBN = self._fire(self.last_neuron, self.fc1(x_TBN)[..., None, None], here, account).flatten(2)
        trace["fc2"] = _arrived(self.fc2, x_TBN, 1, False, account)
        if account is not None:
            trace["fc2"] |= silent(self.steps)
        return wide(x_TBN), trace

    def _spikes(
        self, layer: nn.Module, neuron: str, x_TB: torch.Tensor, here: dict, parts: int, signed: bool, pool: int = 1
    ) -> torch.Tensor:
        """Spikes of a layer, whose currents are kept for the backward pass or computed again there."""
        if not (self.checkpoint_layers and torch.is_grad_enabled()):
            current = layer(x_TB, parts)
            current = current[..., None, None] if layer is self.fc1 else current
            return self._fire(neuron, current, here, None, pool)
        settings = {"leak": self.leak, "drive": self.drive, "threshold": self.threshold, "signed": signed}
        neurons = self.get_submodule(neuron)
        out, here["spikes"] = recomputed(layer, neurons, x_TB, parts, steps=self.steps, pool=pool, **settings)
        here["neurons"] = len(layer.weight) * math.prod(x_TB.shape[3:])
        return out

    def _fire(
        self, neuron: str, current: torch.Tensor, here: dict, account: Sequence[int] | None, pool: int = 1
    ) -> torch.Tensor:
        """Spikes of a layer's currents, what accounting needs of them left in `here`."""
        here["neurons"] = math.prod(current.shape[2:])
        current = current.expand(self.steps, *current.shape[1:])  # direct coding: one current for all steps
        settings = {"leak": self.leak, "drive": self.drive, "threshold": self.threshold}
        spikes, here["spikes"] = self.get_submodule(neuron)(current, **settings, pool=pool)
        if account is not None:
            here |= fired(spikes)
        return spikes

    def losses(
        self, x_BCHW: torch.Tensor, y_B: torch.Tensor, generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Iterator:  # fmt: skip
        """One loss a batch (backpropagation through time): mean cross-entropy of the logits.

        share: this process runs its share of the batch, coded as in one process: all of it is.
        """
        x_TBCHW = self.encode(x_BCHW, generator)
        if share is not None:
            x_TBCHW, y_B = share.of(x_TBCHW, 1), share.of(y_B)
        logits, _ = self.run(x_TBCHW)
        yield F.cross_entropy(logits, y_B)


def _arrived(layer, x_TB: torch.Tensor, parts: int, signed: bool, account: Sequence[int] | None) -> dict:
    return {} if account is None else arrived(layer, x_TB, parts, signed=signed, rows=account)


def build(name: str, *, width: float = 1.0, **settings) -> VggBntt:
    """The network of a name in `PLANS` with every width multiplied by `width` (at least one channel)."""
    plan, hidden = PLANS[name]

    def scaled(n: int) -> int:
        return max(1, round(n * width))

    return VggBntt(tuple(i if isinstance(i, str) else scaled(i) for i in plan), scaled(hidden), **settings)
