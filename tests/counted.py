"""Small networks, their counts, and slow counts by loops, for the tests of accounting."""

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from hwsim.device.pricelist import Prices
from hwsim.device.schema import Card
from hwsim.network.arrivals import arrived, fired, silent
from hwsim.network.vgg_bntt import VggBntt
from hwsim.report.learned import Learned, Readout, Traced
from hwsim.report.trace import Counts, Held, LayerCounts


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(coding: str = "poisson", plan=(2, 3, "A", 4, "A"), steps: int = 3) -> VggBntt:
    """A small network in evaluation mode with statistics of some images."""
    net = VggBntt(plan, 5, channels=2, size=(7, 6), classes=3, steps=steps, coding=coding, generator=seeded(1))
    for seed in range(12):
        net(picture(6, seed), seeded(seed))
    return net.eval()


def picture(n: int, seed: int = 50) -> torch.Tensor:
    return 1.5 * torch.randn(n, 2, 7, 6, generator=seeded(seed))


def array(weight_shape: tuple[int, ...], *, zeros=(), bits: int = 4, component: str = "synapse", cells: bool = False):
    """What holds the weights of a layer; `zeros` are the places (output, input, row, column) of weights that are 0."""
    weight = np.ones(weight_shape, dtype=np.int64)
    for place in zeros:
        weight[place] = 0
    levels, at = np.unique(weight, return_counts=True)
    return Held(component, bits, cells, weight.sum(0), levels.astype(float), at, weight_shape[0], len(levels))


def counted(net: VggBntt, x: torch.Tensor, seed: int = 9, rows=(4, 64, 128, 256)) -> Counts:
    """What a network does on images, its weights held in one place by 4 bits, the first of every layer 0."""
    counts = Counts(net.steps)
    with torch.no_grad():
        counts.add(net(x, seeded(seed), account=rows)[1], len(x))
    for layer in counts.layers.values():
        layer.held = [array(layer.weight_shape, zeros=[(0,) * len(layer.weight_shape)])]
    return counts


def one_layer(layer: nn.Module, x_TB, *, parts: int = 1, spikes_TB=None, held=(), rows=(4, 64, 128, 256)) -> Counts:
    """Counts of a single layer on what arrives at it, [T, B, ...]; spikes_TB are those of its neurons."""
    x_TB = torch.as_tensor(x_TB, dtype=torch.float32)
    trace = arrived(layer, x_TB, parts, signed=bool((x_TB < 0).any()), rows=rows)
    trace |= silent(len(x_TB)) if spikes_TB is None else fired(torch.as_tensor(spikes_TB, dtype=torch.float32))
    counts = Counts(len(x_TB) if spikes_TB is None else len(spikes_TB))
    counts.add({"layer": trace}, x_TB.shape[1])
    counts.layers["layer"].held = list(held) or [array(tuple(layer.weight.shape))]
    return counts


def repeated(counts: Counts) -> Counts:
    """The same network on the same constant input for twice as many steps: every step happens twice."""
    out = Counts(2 * counts.steps, counts.images, raster={k: np.tile(v, (2, 1)) for k, v in counts.raster.items()})
    for name, layer in counts.layers.items():
        sums = {k: 2 * getattr(layer, k) for k in ("unit", "fractional", "spikes_N")}
        sums |= {k: np.tile(getattr(layer, k), 2) for k in ("unit_T", "fractional_T", "spikes_T")}
        windows = {r: 2 * w for r, w in layer.windows.items()}
        out.layers[name] = LayerCounts(**{**vars(layer), **sums, "windows": windows})
    return out


def silenced(counts: Counts) -> Counts:
    """The same network when nothing arrives and nothing fires."""
    out = Counts(counts.steps, counts.images, raster={k: np.zeros_like(v) for k, v in counts.raster.items()})
    for name, layer in counts.layers.items():
        sums = ("unit", "fractional", "unit_T", "fractional_T", "spikes_T", "spikes_N")
        none = {k: np.zeros_like(getattr(layer, k)) for k in sums}
        windows = {r: np.zeros_like(w) for r, w in layer.windows.items()}
        out.layers[name] = LayerCounts(**{**vars(layer), **none, "windows": windows})
    return out


def local_network(
    *, arrived: int = 2, traces: int = 7, spikes: int = 5, features: int = 3, training: Learned | None = None
) -> Counts:
    """The layer of docs/energy.md that learns locally, and its readout: one test recording, counts made by hand.

    training: of the layer, with errors at scores and features; None for a run that kept nothing of it.
    """
    counts = Counts(4, 1)
    for name, shape, nonzero, neurons in (("layer1", (2, 3), traces, 2), ("readout1", (2, 2), features, 0)):
        at = np.zeros((4, shape[1]), np.int64)
        at.flat[[i for i in reversed(range(at.size))][:nonzero]] = 1
        fires = np.arange(4 * neurons).reshape(4, neurons) < (spikes if neurons else 0)
        none = np.zeros_like(at)
        counts.layers[name] = LayerCounts(
            weight_shape=shape, image=(), padding=(), stride=(), neurons=neurons, parts=0, signed=False,
            unit=none.sum(0), unit_T=none.sum(1), fractional=at.sum(0), fractional_T=at.sum(1),
            spikes_T=fires.sum(1), spikes_N=fires.sum(0), normalized=False, held=[array(shape)],
        )  # fmt: skip
        counts.raster[name] = fires
    layer, readout = counts.layers.values()
    readout.held = [array((2, 2), bits=3)]
    layer.traced, readout.readout = Traced(arrived, features=2, votes=2, biases=2), Readout("layer1", votes=2)
    layer.widths = {
        "input": 6, "membrane_trace": 6, "synaptic_trace": 5, "refractory": 2, "potential": 4, "error": 3,
        "gradient": 12, "master": 5, "spike": 1,
    }  # fmt: skip
    readout.widths = {"input": 3, "score": 3, "error": 3}
    layer.learned = training
    if training is not None:
        readout.learned = replace(training, weights=0, changes=0, drawn=0, errors=0, gradients=0)
    return counts


def prices(card: str | dict, *more: dict, **scale) -> Prices:
    """Prices of a shipped card by name, or of made-up cards: {"covers": [...], "prices": {action: pJ}, ...} each."""
    if isinstance(card, str):
        return Prices.load(card, **scale)
    return Prices([_card(i, c) for i, c in enumerate((card, *more))], **scale)


def _card(i: int, said: dict) -> Card:
    said = {"title": "t", "node_nm": 45.0, "covers": ["synapse"], **said}
    forms = {k: v if isinstance(v, dict) else {"pJ": v} for k, v in said["prices"].items()}
    said["prices"] = {k: {"source": f"source of {k}", "evidence": "assumed", **v} for k, v in forms.items()}
    card = Card(**said)
    card._name = f"card{i}"
    return card


# ------------------------------------------------------------------------------------------------------------- by loops


def arrivals(net: VggBntt, x: torch.Tensor, seed: int = 9) -> dict[str, torch.Tensor]:
    """What arrives at every layer, [T, B, ...]. The network hands fc2 the mean over time; hardware sees the spikes."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [net.bntt_fc.register_forward_hook(lambda layer, given, result: seen.update(fc2=result[0].flatten(2)))]
    for name in [conv for conv, _, _ in net.blocks] + ["fc1"]:
        layer = net.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]})))
    with torch.no_grad():
        net(x, seeded(seed))
    for hook in hooks:
        hook.remove()
    return {name: t.detach() for name, t in seen.items()}


def reached(layer: nn.Module, place: list[int], image: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Indices into the weight of every synapse that an event at (channel, row, column) reaches, output by output."""
    if not isinstance(layer, nn.Conv2d):
        return [(o, place[0]) for o in range(len(layer.weight))]
    out = []
    (H, W), (kh, kw), (ph, pw), (sh, sw) = image, layer.kernel_size, layer.padding, layer.stride
    for row, column in itertools.product(range(0, H + 2 * ph - kh + 1, sh), range(0, W + 2 * pw - kw + 1, sw)):
        dy, dx = place[1] - (row - ph), place[2] - (column - pw)
        if 0 <= dy < kh and 0 <= dx < kw:
            out += [(o, place[0], dy, dx) for o in range(len(layer.weight))]
    return out


def slow_counts(net: VggBntt, x: torch.Tensor) -> dict[tuple[str, str], float]:
    """Synaptic operations an image by a loop over every event and every output that it may reach."""
    operations: dict[tuple[str, str], float] = {}
    for name, there in arrivals(net, x).items():
        operations[name, "ac"] = operations[name, "mac"] = 0
        layer, is_analog = net.get_submodule(name), name == "conv1" and net.coding != "poisson"
        for place, value in zip(there.nonzero().tolist(), there[there != 0].tolist(), strict=True):
            action = "ac" if abs(value) == 1 and not is_analog else "mac"
            operations[name, action] += len(reached(layer, place[2:], tuple(there.shape[3:]))) / len(x)
    return operations
