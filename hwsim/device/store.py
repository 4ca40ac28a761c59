"""Stores: what physically holds a layer's weights, and the chip that was drawn for it.

A layer is any module with `weight` (the full-precision master, for ever), `store` and what `add_cells` gives it: `z`
(the normals of the present chip, None until drawn), `rram` and `mask` (None unless `hybrid.py` needs them). `read`
computes what the cells hold each time the layer is used; the master is never overwritten, so names and values in a
state_dict do not depend on the store, and the gradient goes straight through.

    level, scale = quantizer(weight)            what the cells are asked to hold
    held         = spread(level, z) * scale     what they hold, times the digital scale

`place` puts stores under a network's layers, `draw` takes one chip, `clear` goes back to cells without spread. A
forward pass never draws device noise.
"""

import fnmatch
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hwsim.config import ConfigError, PlaceError, RunError
from hwsim.device.quantize import QUANTIZERS, levels, straight_through, ternary
from hwsim.device.variation import CLAMPS, Row, lognormal, lognormal_by_level, rows_holding


class Store(Protocol):
    """What a layer needs of the thing that holds its weights."""

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """What the cells hold for a master weight and drawn normals, times the digital scale. Pure."""

    def read(self, layer: nn.Module) -> Tensor:
        """The weight that the layer computes with; its gradient reaches `layer.weight`."""

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of the standard normals that one chip needs, or None when there is no spread."""


def add_cells(layer: nn.Module) -> None:
    """Give a layer the buffers that stores use beside `weight`; those that are None are not in its state_dict.

    z: normals of the present chip, never saved. rram: master weight of the frozen RRAM part of a hybrid layer, saved.
    mask: where a pruned layer keeps weights, bool, saved. All have the weight's shape (z may have one more axis).
    """
    layer.register_buffer("z", None, persistent=False)
    layer.register_buffer("rram", None)
    layer.register_buffer("mask", None)


@dataclass(frozen=True)
class Ideal:
    """The weight itself: no quantization, no spread."""

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """The weight."""
        return weight

    def read(self, layer: nn.Module) -> Tensor:
        """The layer's own weight."""
        return layer.weight

    def noise_shape(self, weight_shape: tuple[int, ...]) -> None:
        """None: there is no spread."""
        return None

    def full_scale(self, weight: Tensor) -> Tensor:
        """The largest weight that is held."""
        return weight.abs().amax()


@dataclass(frozen=True)
class Rram:
    """Multi-bit RRAM cells: quantized levels, each with its own lognormal factor.

        held = lognormal(level, z) · scale      or, with `rows`,      lognormal_by_level(level, z) · scale

    The spread acts on the level and the scale follows. With "xnor" the scale is 1, so with "xnor" and "signed" this is
    exactly the reference's spread of the quantized weight.

    Raises `ConfigError` on values that contradict each other, all at once.

    >>> Rram(bits=1, sigma=0.1).held(torch.tensor([0.3, -0.3]), torch.tensor([0.0, 1.0]))
    tensor([ 0.3000, -0.3316])
    """

    bits: int
    """Bits held by one weight."""
    quantizer: str = "dorefa"
    """Rounding of the master weight: dorefa, xnor, or at one bit binary."""
    sigma: float = 0.0
    """Effective spread of ln(factor): the card's sigma times variation_scale. 0 is no spread and no clamp."""
    clamp: str = "none"
    """Limit of the spread: none, magnitude or signed (see `variation.lognormal`)."""
    on_off_ratio: float = 350.0
    """Largest over smallest conductance; used by the clamp "magnitude"."""
    rows: tuple[Row, ...] | None = None
    """Spread by level, (low, high, effective sigma) each, in place of `sigma`."""

    def __post_init__(self):
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(tuple(r) for r in self.rows))
        problems = _spread_problems(self)
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 1 <= self.bits <= 16:
            problems.append(f"Rram.bits: {self.bits!r} is not a whole number from 1 to 16")
        if self.quantizer not in ("dorefa", "xnor", "binary"):
            problems.append(f"Rram.quantizer: {self.quantizer!r} is not one of dorefa, xnor, binary")
        if self.quantizer == "binary" and self.bits != 1:
            problems.append(f"Rram.quantizer: binary weights have 1 bit, found {self.bits!r}")
        if self.rows is not None:
            if self.sigma or self.clamp != "none":
                problems.append("Rram.rows: rows replace sigma and know no clamp; leave sigma 0 and clamp none")
            if not all(_is_spread(r[2]) for r in self.rows):
                problems.append("Rram.rows: every sigma must be a number of at least 0")
        if problems:
            raise ConfigError(problems)

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """What the cells hold, times the digital scale. z None is programmed without spread."""
        level, scale = QUANTIZERS[self.quantizer](weight, self.bits)
        if z is not None and self.rows is None:
            level = lognormal(level, z, self.sigma, self.clamp, self.on_off_ratio)
        elif z is not None and self._spreads:
            level = lognormal_by_level(level, z, self.rows)
        return level if isinstance(scale, float) else level * scale

    def read(self, layer: nn.Module) -> Tensor:
        """What the layer's cells hold; the gradient passes to the master weight unchanged."""
        return straight_through(layer.weight, self.held(layer.weight.detach(), layer.z))

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """One normal a weight; one a row and weight where rows overlap on a level (they are independent); or None."""
        if not self._spreads:
            return None
        shape = tuple(weight_shape)
        if self.rows and any(len(rows_holding(v, self.rows)) > 1 for v in levels(self.quantizer, self.bits)):
            return (len(self.rows), *shape)
        return shape

    def full_scale(self, weight: Tensor) -> Tensor | float:
        """The weight that a cell at full conductance holds: the quantizer's scale."""
        return QUANTIZERS[self.quantizer](weight, self.bits)[1]

    @property
    def _spreads(self) -> bool:
        return self.sigma > 0 if self.rows is None else any(r[2] > 0 for r in self.rows)


@dataclass(frozen=True)
class Ternary:
    """Ternary cells: levels -1, 0, +1 times the layer's mean magnitude; a level 0 has no spread (w · factor is 0).

        held = lognormal(level, z) · scale;        the gradient stops where |w| >= 1

    >>> Ternary().held(torch.tensor([-1.0, 0.01, 0.5]))
    tensor([-0.7500,  0.0000,  0.7500])
    """

    sigma: float = 0.0
    """Effective spread of ln(factor): the card's sigma times variation_scale. 0 is no spread and no clamp."""
    clamp: str = "none"
    """Limit of the spread: none, magnitude or signed (see `variation.lognormal`)."""
    on_off_ratio: float = 350.0
    """Largest over smallest conductance; used by the clamp "magnitude"."""

    def __post_init__(self):
        if problems := _spread_problems(self):
            raise ConfigError(problems)

    def held(self, weight: Tensor, z: Tensor | None = None) -> Tensor:
        """What the cells hold, times the digital scale. z None is programmed without spread."""
        level, scale = ternary(weight)
        if z is not None:
            level = lognormal(level, z, self.sigma, self.clamp, self.on_off_ratio)
        return level * scale

    def read(self, layer: nn.Module) -> Tensor:
        """What the layer's cells hold; the gradient passes to the master weight where |w| < 1."""
        return straight_through(layer.weight, self.held(layer.weight.detach(), layer.z), pass_within=1.0)

    def noise_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """One normal a weight, or None without spread."""
        return tuple(weight_shape) if self.sigma > 0 else None

    def full_scale(self, weight: Tensor) -> Tensor:
        """The weight that a cell at full conductance holds: the quantizer's scale."""
        return ternary(weight)[1]


def place(net: nn.Module, stores: dict[str, Store]) -> dict[str, Store]:
    """Put stores under a network's layers, by patterns over their names; return what lies under each layer named.

    stores: {pattern: store}; shell patterns ("conv*", "conv[12]", "fc1") in order, the first that matches wins. Layers
    that no pattern names keep their store. The chip of every layer placed is cleared.

    Raises `PlaceError`, before anything is changed, when a pattern takes no layer.

    >>> place(nn.Linear(2, 2), {"conv*": Ideal()})
    Traceback (most recent call last):
    hwsim.config.PlaceError: place: no layer is named like 'conv*'; this network has no layer with a store
    """
    layers = _layers(net)
    taken: dict[str, str] = {}
    problems = []
    for pattern in stores:
        named = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        free = [name for name in named if name not in taken]
        if not named:
            problems.append(f"place: no layer is named like '{pattern}'; this network has {_listed(list(layers))}")
        elif not free:
            first = taken[named[0]]
            problems.append(f"place: '{first}' already takes every layer like '{pattern}'; write '{pattern}' before it")
        taken.update(dict.fromkeys(free, pattern))
    if problems:
        raise PlaceError("\n".join(problems))
    placed = {name: stores[taken[name]] for name in layers if name in taken}
    for name, store in placed.items():
        layers[name].store = store
        layers[name].z = None
    return placed


def draw(net: nn.Module, generator: torch.Generator) -> None:
    """Take one chip: new standard normals for every layer whose store spreads, in the order of the network's modules.

    The normals are drawn in float32 on the generator's device and moved to the weight's. So a CPU generator gives the
    same chip to a network on the CPU and on CUDA. A CUDA generator has another stream: the same seed is another chip.
    """
    for layer in _layers(net).values():
        if (shape := layer.store.noise_shape(tuple(layer.weight.shape))) is not None:
            pinned = (generator.device.type, layer.weight.device.type) == ("cpu", "cuda")  # the copy is not waited for
            z = torch.empty(shape, device=generator.device, dtype=torch.float32, pin_memory=pinned)
            layer.z = z.normal_(generator=generator).to(layer.weight.device, non_blocking=pinned)


def clear(net: nn.Module) -> None:
    """No chip: every layer reads what it was programmed to hold, without spread."""
    for layer in _layers(net).values():
        layer.z = None


def load(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a state_dict, strictly, with the RRAM parts and masks that it holds for some layers; the others have none.

    Raises `RunError`, before anything is changed, when tensors are missing, left over or of another shape.
    """
    layers = _layers(net).items()
    parts = {f"{name}.{part}".removeprefix("."): (layer, part) for name, layer in layers for part in ("rram", "mask")}
    wanted = {key: t.shape for key, t in net.state_dict().items() if key not in parts}
    wanted |= {key: layer.weight.shape for key, (layer, _) in parts.items() if key in tensors}
    wrong = [
        f"{key} ({'absent' if key not in tensors else 'not in the network' if key not in wanted else 'another shape'})"
        for key in sorted(wanted.keys() | tensors.keys())
        if key not in tensors or tensors[key].shape != wanted.get(key)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RunError(f"load: these tensors are of another network: {', '.join(wrong[:3])}{more}")
    for key, (layer, part) in parts.items():
        kind = torch.bool if part == "mask" else layer.weight.dtype
        setattr(layer, part, torch.empty_like(layer.weight, dtype=kind) if key in tensors else None)
    net.load_state_dict(tensors)


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if hasattr(module, "store")}


def _listed(names: list[str]) -> str:
    """conv1, conv2, conv3, fc1 as "conv1 … conv3, fc1"."""
    if not names:
        return "no layer with a store"
    runs: list[list[str]] = []
    for name in names:
        stem = name.rstrip("0123456789")
        last = runs[-1][-1] if runs else ""
        number = last[len(stem) :] if last.startswith(stem) else ""
        if number.isdecimal() and name == f"{stem}{int(number) + 1}":
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(f"{r[0]} … {r[-1]}" if len(r) > 2 else ", ".join(r) for r in runs)


def _is_spread(sigma: float) -> bool:
    return isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma >= 0


def _spread_problems(store) -> list[str]:
    kind = type(store).__name__
    problems = []
    if not _is_spread(store.sigma):
        problems.append(f"{kind}.sigma: {store.sigma!r} is not a number of at least 0")
    if store.clamp not in CLAMPS:
        problems.append(f"{kind}.clamp: {store.clamp!r} is not one of {', '.join(CLAMPS)}")
    if not store.on_off_ratio > 1:
        problems.append(f"{kind}.on_off_ratio: {store.on_off_ratio!r} is not above 1")
    return problems
