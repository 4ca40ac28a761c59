"""BITnet6 and its v101: six layers of clamped integrate-and-fire neurons without normalization, direct coded.

begin, layer1 … layer4 are convolutions (3x3, padding 1, with bias) of 64, 64, 128, 256, 512 channels times the feature
scale fs (int(64 fs), so that fractions work), mlp1 is linear; every one of them, mlp1 too, ends in the neuron of
`bitnet_neuron.py`. Spikes are pooled after the neuron by 2x2 maximum, a logical or: after layer1, layer2 and layer4 in
bitnet6, after layer1, layer3 and layer4 in bitnet6-v101, and of images of 64 pixels or more also after begin. mlp1
takes what is left: 4x4 places for 32 and 64 pixels as in the publication, 3x3 for 28 (an odd row is dropped), one for
8. The two networks have the same parameters, of the same shapes.

The analog image is the same at every step; begin's convolution is computed once. The output is the rate of mlp1's
spikes. Rates are multiples of 1/T, so ties are common: the lowest class wins.

Source: BITnet (preddy5/Buddhi) as published, forward pass; its gradient and training are unpublished, and the gradients
offered here are ours (`bitnet_neuron.py`).

T steps, B batch, C channels, H W image, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import ConfigError
from hwsim.network.arrivals import arrived, fired, joined
from hwsim.network.bitnet_memory import MEMORY, Membranes, Way, counts, layers, segment_length
from hwsim.network.bitnet_neuron import SURROGATES
from hwsim.network.layer import Conv2d, Linear
from hwsim.network.share import Share

CHANNELS = (64, 64, 128, 256, 512)
"""Channels of begin, layer1 … layer4 at fs = 1."""
PLANS = {"bitnet6": (1, 2, 4), "bitnet6-v101": (1, 3, 4)}
"""Name → numbers of the layers whose spikes are pooled."""
LAYERS = ("begin", "layer1", "layer2", "layer3", "layer4", "mlp1")
AT_ONCE = 4
"""Steps that run together where no gradient is wanted."""
LARGE = 64
"""Pixels from which begin's spikes are pooled as well."""


class Bitnet(nn.Module):
    """BITnet6 or v101.

    pooled: numbers of the layers behind which spikes are pooled. fs: feature scale. channels, size: the input image.
    steps: T. surrogate: S1, S2 or S3, ours, never the author's (`bitnet_neuron.py`). memory, segment: how training runs
    its steps again (`bitnet_memory.py`); they change what it costs, not what it learns; None is chosen.

    Initial weights and biases: uniform within 1 / sqrt(fan_in), torch's default, from `generator`.
    Raises `ConfigError` if the image cannot be pooled, fs leaves a layer without channels, or memory does not go with
    the surrogate.
    """

    coding = "direct"
    update = (0, 4)
    """Multiplications and additions of a neuron's update: two comparisons clamp its drive, it is added, compared."""

    def __init__(
        self,
        pooled: Sequence[int],
        *,
        fs: float,
        channels: int,
        size: tuple[int, int],
        classes: int,
        steps: int,
        surrogate: str = "S2",
        memory: str | None = None,
        segment: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        memory = memory or default_memory(surrogate)
        if surrogate not in SURROGATES or memory not in MEMORY or (memory == "two-pass" and surrogate != "S2"):
            raise ConfigError([
                f"net: surrogate {surrogate} with memory {memory}: surrogates are {', '.join(SURROGATES)}, memory is "
                f"one of {', '.join(MEMORY)}, and two-pass goes with S2 alone"
            ])  # fmt: skip
        self.steps = steps
        self.surrogate, self.memory, self.segment = surrogate, memory, segment or segment_length(steps, memory)
        large = min(size) >= LARGE
        self.pools = tuple((i in pooled) or (i == 0 and large) for i in range(len(CHANNELS)))
        height, width = size
        places = []
        for pool in self.pools:
            places.append(height * width)
            height, width = (height // 2, width // 2) if pool else (height, width)
        if min(height, width) < 1:
            least = 2 ** sum(self.pools)
            raise ConfigError([
                f"net: this plan halves the image {sum(self.pools)} times; it needs {least}x{least} pixels, the data "
                f"have {size[0]}x{size[1]}. Take other data"
            ])  # fmt: skip
        widths = [int(n * fs) for n in CHANNELS]
        if min(widths) < 1:
            raise ConfigError([
                f"net.width: {fs:g} leaves no channel of {CHANNELS[0]}; take at least 1/{CHANNELS[0]} = "
                f"{1 / CHANNELS[0]}"
            ])  # fmt: skip
        for name, inputs, outputs in zip(LAYERS, (channels, *widths), widths, strict=False):
            self.add_module(name, Conv2d(inputs, outputs, bias=True))
        self.mlp1 = Linear(widths[-1] * height * width, classes, bias=True)
        self.neurons = [*(n * hw for n, hw in zip(widths, places, strict=True)), classes]
        self._initialize(generator)

    def _initialize(self, generator: torch.Generator | None) -> None:
        for name in LAYERS:
            layer = self.get_submodule(name)
            bound = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def encode(self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The image once, [1, B, C, H, W]."""
        return x_BCHW.unsqueeze(0)

    def forward(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None, account: Sequence[int] | None = None
    ):
        """(rates [B, K], trace) of normalized images, without gradient; nothing is random."""
        return self.run(self.encode(x_BCHW), account)

    def run(self, x_1BCHW: torch.Tensor, account: Sequence[int] | None = None):
        """(rates [B, K], trace) of encoded images. account: heights of crossbars, for `arrivals.py`'s counts."""
        spikes, trace, _ = self.over_time(x_1BCHW, account=account)
        return rates(spikes), trace

    def lead(self, x_1BCHW: torch.Tensor, is_fixed: Callable[[nn.Module], bool]) -> tuple:
        """The beginning of a pass, which `follow` ends: (image, currents of begin, or None where they move)."""
        return x_1BCHW, self.begin(x_1BCHW) if is_fixed(self.begin) else None

    def follow(self, at: tuple) -> torch.Tensor:
        """Rates [B, K] of a pass that `lead` began: `run`, bit for bit."""
        x_1BCHW, drive = at
        return rates(self.over_time(x_1BCHW, drive=drive)[0])

    @torch.no_grad()
    def over_time(
        self,
        x_1BCHW: torch.Tensor,
        steps: int | None = None,
        state: Sequence[torch.Tensor] = (),
        account: Sequence[int] | None = None,
        drive: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, dict], list[torch.Tensor]]:
        """(mlp1's spikes [steps, B, K], trace, membranes after) of encoded images, in segments, without gradient.

        steps: more or fewer than T if wanted. state: membranes that an earlier call left, to go on from there. drive:
        currents of begin, where they are known.
        trace: layer → `neurons` an image and `spikes` [steps]; `pooled_neurons` and `pooled_spikes`, the same behind
        the pool; with `account` also all of `arrivals.py`. Raises `ValueError` for a state of another batch size.
        """
        if any(len(m) != x_1BCHW.shape[1] for m in state):
            raise ValueError(f"over_time: a state of {len(state[0])} images for {x_1BCHW.shape[1]} images")
        weights = self._weights()
        drive = self.begin(x_1BCHW) if drive is None else drive
        neurons, out, parts = Membranes(self.surrogate, state), [], {name: [] for name in LAYERS}
        for number, length in enumerate(Way(self.pools, steps or self.steps, segment=AT_ONCE).lengths):
            run = layers(self.pools, drive, weights, neurons.fire(length))
            for name, (x, spikes, pooled) in zip(LAYERS, run, strict=True):
                here = _counted(spikes) | {f"pooled_{k}": v for k, v in _counted(pooled).items()}
                if account is not None:
                    layer = self.get_submodule(name)
                    x = x_1BCHW if x is None and number == 0 else x
                    if x is not None:
                        here |= arrived(layer, x, int(name != "begin"), signed=name == "begin", rows=account)
                    here |= fired(spikes)
                parts[name].append(here)
            out.append(spikes)
        return torch.cat(out), {name: joined(p) for name, p in parts.items()}, neurons.now

    def _weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What the stores hold for every layer behind begin, with its bias."""
        behind = [self.get_submodule(name) for name in LAYERS[1:]]
        return [(layer.store.read(layer), layer.bias) for layer in behind]

    def counts(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Spikes of mlp1 over T steps, [B, K], with the surrogate's gradient to all weights and to the image."""
        way = Way(self.pools, self.steps, self.surrogate, self.memory, self.segment)
        return counts(way, self.begin(self.encode(x_BCHW)), self._weights())

    def criterion(self, rates_BK: torch.Tensor, y_B: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Mean over the classes of the squared difference to one-hot; mean or sum over the batch."""
        # Not F.one_hot, which looks at the labels and so waits for them.
        wanted = (y_B[:, None] == torch.arange(rates_BK.shape[1], device=y_B.device)).to(rates_BK.dtype)
        loss = F.mse_loss(rates_BK, wanted, reduction=reduction)
        return loss / rates_BK.shape[1] if reduction == "sum" else loss

    def losses(
        self, x_BCHW: torch.Tensor, y_B: torch.Tensor, generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Iterator:  # fmt: skip
        """One loss a batch: `criterion` of the rates counts / T. Its backward runs the steps again where need be.

        share: this process runs its share of the batch; nothing is random.
        """
        if share is not None:
            x_BCHW, y_B = share.of(x_BCHW), share.of(y_B)
        yield self.criterion(self.counts(x_BCHW) / self.steps, y_B)


def _counted(spikes_TB: torch.Tensor) -> dict:
    """Neurons an image, and spikes by step, summed over the batch."""
    spikes = spikes_TB.flatten(1).sum(1, dtype=torch.float64).to(torch.int64)
    return {"neurons": math.prod(spikes_TB.shape[2:]), "spikes": spikes}


def rates(spikes_TBK: torch.Tensor, *, select_first: bool = True) -> torch.Tensor:
    """Mean over the steps of the last layer's spikes; select_first False leaves the first step out, as the reference
    can (from the output, not from the membranes)."""
    return spikes_TBK[0 if select_first else 1 :].mean(0)


def default_memory(surrogate: str) -> str:
    """two-pass for S2, bits for the others: what needs the least memory."""
    return "two-pass" if surrogate == "S2" else "bits"


def build(name: str, *, width: float, **settings) -> Bitnet:
    """The network of a name in `PLANS`; width is the feature scale fs."""
    return Bitnet(PLANS[name], fs=width, **settings)
