"""The constrained VGG that becomes a spiking network: no bias, no normalization, averages before the ReLU.

A plan lists the convolutions (3x3, padding 1) by their channels, and "A" where their currents are averaged over 2x2.
The average stands between convolution and ReLU: in the spiking network it feeds the neuron, so that every later layer
receives plain spikes; behind the ReLU it would hand on quarters.

    block:       convolution, ReLU, dropout        or        convolution, average, ReLU
    classifier:  dropout, fc1, ReLU, dropout, fc2

Layers are named conv1 … convN, fc1, fc2. An odd side loses its last row: averages are never taken over fewer pixels.
Source: the published code of arXiv 2002.10064, which calls it vgg15ab.

B batch, C channels, H W image, K classes.
"""

import math
import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import ConfigError, RunError
from hwsim.network.arrivals import arrived, silent
from hwsim.network.layer import Conv2d, Linear
from hwsim.network.share import Share

PLANS: dict[str, tuple[tuple[int | str, ...], int]] = {
    "vgg6-abr": ((32, 32, "A", 64, 64, "A"), 256),
    "vgg9-abr": ((64, 64, "A", 128, 128, "A", 256, 256, 256, "A"), 1024),
    "vgg15": ((64, 64, "A", 128, 128, "A", *[256] * 3, "A", *[512] * 3, "A", *[512] * 3, "A"), 4096),
}
"""Name → (plan, width of fc1); vgg15 is the published one, the others are ours. `width` multiplies every number."""
DROPOUT = 0.1


class Vgg15(nn.Module):
    """The ordinary network. `steps` is 1, and `coding` direct: it sees the analog image once.

    plan, hidden: as in `PLANS`; hidden is the width of fc1. channels, size: the input image.
    Initial weights: convolutions normal with s.d. sqrt(2 / (outputs 3 3)), linear layers with 0.01, from `generator`.
    Raises `ConfigError` if the plan pools more often than the image allows.
    """

    steps, coding = 1, "direct"

    def __init__(
        self,
        plan: tuple[int | str, ...],
        hidden: int,
        *,
        channels: int,
        size: tuple[int, int],
        classes: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.pooled: dict[str, bool] = {}
        """Layers with a ReLU, in order, and whether their currents are averaged before it."""
        height, width, fan_in = *size, channels
        for item in plan:
            if isinstance(item, int):
                name = f"conv{len(self.pooled) + 1}"
                self.add_module(name, Conv2d(fan_in, item))
                self.pooled[name] = False
                fan_in = item
                continue
            self.pooled[name] = True
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            side = 2 ** plan.count("A")
            raise ConfigError(
                [
                    f"net: this plan halves the image {plan.count('A')} times; it needs {side}x{side} pixels, "
                    f"the data have {size[0]}x{size[1]}. Take a network with fewer pools"
                ]
            )
        self.fc1, self.fc2 = Linear(fan_in * height * width, hidden), Linear(hidden, classes)
        self.pooled["fc1"] = False
        self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        for layer in self.layers.values():
            is_conv = isinstance(layer, Conv2d)
            std = math.sqrt(2 / (layer.weight.shape[0] * math.prod(layer.kernel_size))) if is_conv else 0.01
            layer.weight.normal_(0, std, generator=generator)

    @property
    def layers(self) -> dict[str, Conv2d | Linear]:
        """The layers with weights, by name, in order."""
        return {name: self.get_submodule(name) for name in (*self.pooled, "fc2")}

    def encode(self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The image as it is, [1, B, C, H, W]."""
        return x_BCHW.unsqueeze(0)

    def forward(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None, account: Sequence[int] | None = None
    ):
        """(logits [B, K], trace) of normalized images. `generator` draws the dropout of training (on x's device)."""
        return self.run(self.encode(x_BCHW), account, generator)

    def run(
        self, x_1BCHW: torch.Tensor, account: Sequence[int] | None = None, generator: torch.Generator | None = None,
        share: Share | None = None,
    ):  # fmt: skip
        """(logits [B, K], trace). trace: with `account`, the heights of crossbars, what arrives at each layer.

        share: the images are a share of a batch, and lose what one process would drop.
        """
        trace: dict[str, dict] = {}
        for name, x, out in self._passed(x_1BCHW, generator, share):  # noqa: B007 (used after the loop)
            if account is not None:
                trace[name] = arrived(self.get_submodule(name), x, 0, signed=name == "conv1", rows=account) | silent(1)
        return out[0], trace

    def activations(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(layer, its output behind the ReLU [B, ...]) of every layer that has one, in order."""
        for name, _, out in self._passed(x_BCHW.unsqueeze(0), generator):
            if name in self.pooled:
                yield name, out[0]

    def _passed(
        self, x: torch.Tensor, generator: torch.Generator | None, share: Share | None = None
    ) -> Iterator[tuple]:
        """(layer, what it receives, what leaves it) one after the other."""
        for name, pools in self.pooled.items():
            if name == "fc1":
                x = self._dropped(x, generator, share).flatten(2)
            out = self.get_submodule(name)(x)
            if pools:
                out = F.avg_pool2d(out[0], 2)[None]
            out = F.relu(out)
            yield name, x, out
            x = out if pools or name == "fc1" else self._dropped(out, generator, share)
        x = self._dropped(x, generator, share)
        yield "fc2", x, self.fc2(x)

    def _dropped(self, x: torch.Tensor, generator: torch.Generator | None, share: Share | None = None) -> torch.Tensor:
        if not self.training:
            return x
        shape = x.shape if share is None else (1, share.ranks * x.shape[1], *x.shape[2:])
        kept = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device) >= DROPOUT
        kept = kept if share is None else share.of(kept, 1)
        return x * kept / (1 - DROPOUT)

    def losses(
        self, x_BCHW: torch.Tensor, y_B: torch.Tensor, generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Iterator:  # fmt: skip
        """One loss a batch: mean cross-entropy of the logits. share: this process runs its share of the batch."""
        if share is not None:
            x_BCHW, y_B = share.of(x_BCHW), share.of(y_B)
        logits, _ = self.run(self.encode(x_BCHW), None, generator, share)
        yield F.cross_entropy(logits, y_B)


def build(name: str, *, width: float = 1.0, **settings) -> Vgg15:
    """The network of a name in `PLANS` with every width multiplied by `width` (at least one channel)."""
    plan, hidden = PLANS[name]

    def scaled(n: int) -> int:
        return max(1, round(n * width))

    return Vgg15(tuple(i if isinstance(i, str) else scaled(i) for i in plan), scaled(hidden), **settings)


def from_reference(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the published code's checkpoint by hwsim's names.

    features.module.I.weight (or features.I.weight) are the convolutions in order of I, classifier.I.weight fc1 and fc2.
    Raises `RunError` for anything else.
    """
    found: dict[str, list[tuple[int, str]]] = {"features": [], "classifier": []}
    for key in tensors:
        match = re.fullmatch(r"(features|classifier)(?:\.module)?\.(\d+)\.weight", key)
        if match is None:
            raise RunError(f"{key}: this network has weights features.module.N.weight and classifier.N.weight alone")
        found[match[1]].append((int(match[2]), key))
    if len(found["classifier"]) != 2 or not found["features"]:
        convolutions, linear = len(found["features"]), len(found["classifier"])
        raise RunError(f"{convolutions} convolutions and {linear} linear layers; this network has 2 linear layers")
    names = [f"conv{i + 1}" for i in range(len(found["features"]))] + ["fc1", "fc2"]
    keys = [key for _, key in sorted(found["features"]) + sorted(found["classifier"])]
    return {f"{name}.weight": tensors[key] for name, key in zip(names, keys, strict=True)}


def to_reference(net: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: weights by hwsim's names under the published code's keys. net: what they belong to."""
    out, place = {}, 0
    for name in net.pooled:
        if name.startswith("conv"):
            out[f"features.module.{place}.weight"] = tensors[f"{name}.weight"]
            place += 3  # convolution, ReLU and dropout, or convolution, average and ReLU
    return {**out, "classifier.1.weight": tensors["fc1.weight"], "classifier.4.weight": tensors["fc2.weight"]}
