"""Training BITnet in memory that does not grow with the number of steps: three ways to run the steps again backwards.

The loss depends on the counts n = sum_t s_t of the last layer's spikes alone, so g = dL/dn is the same at every step.
The steps are cut into segments of K; within one the layers run one after another, time folded into the batch.

    full       one graph over all T steps                                                       kept: T steps
    two-pass   forward without a graph; then each segment again from its start, with its graph  kept: K steps
               (S2 only: its steps do not depend on each other backwards)
    segments   the membranes at every segment's start are kept; then the segments from the      kept: K steps and
               last to the first, each again with its graph, the membranes' gradient carried    T / K membranes
    bits       all spikes are kept, one bit each; then the segments from the last to the        kept: K steps and
               first, their drives computed again from the bits, the membranes run backwards    T bits a neuron

All give the gradient of `full`, up to the order of additions (and for S3 with bits to the rounding of the membranes).
In both passes the arithmetic and its shapes are the same, so that no spike differs.

The first layer's drive is constant over time: it is computed once, and gets the summed gradient of all steps.

T steps, K steps of a segment, B batch, C channels, H W image, N classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hwsim.network.bitnet_neuron import Rewound, fire, or_pool, refire, start
from hwsim.network.convolution import convolve

MEMORY = ("full", "two-pass", "segments", "bits")
_PADDING = (1, 1)

Weights = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(weight, bias) of every layer behind the first."""
Neuron = Callable[[int, torch.Tensor], torch.Tensor]
"""(number of the layer, drive) → spikes [K, B, ...]."""


@dataclass(frozen=True)
class Way:
    """How a network runs its steps: which layers are pooled, T, surrogate, memory and K."""

    pools: tuple[bool, ...]
    steps: int
    surrogate: str = "S2"
    memory: str = "full"
    segment: int = 1

    @property
    def lengths(self) -> list[int]:
        """Steps of each segment; the last one may be shorter."""
        whole, rest = divmod(self.steps, self.segment)
        return [self.segment] * whole + [rest] * (rest > 0)


def segment_length(steps: int, memory: str) -> int:
    """K where none is asked, for the least memory: all steps for full, near sqrt(T) for segments, else 1."""
    return {"full": steps, "segments": math.isqrt(steps - 1) + 1}.get(memory, 1)


def layers(
    pools: Sequence[bool], drive_1BCHW: torch.Tensor, weights: Weights, neuron: Neuron
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]]:
    """(input, spikes, spikes behind the pool) of every layer for some steps, in order; the last layer is linear.

    The first one's input is None: its drive is given.
    """
    x = None
    for i, pool in enumerate((*pools, False)):
        if i == 0:
            drive = drive_1BCHW
        elif i < len(pools):
            drive = convolve(x, *weights[i - 1], _PADDING, 1)
        else:
            x = x.flatten(2)
            drive = F.linear(x, *weights[i - 1])
        spikes = neuron(i, drive)
        pooled = or_pool(spikes) if pool else spikes
        yield x, spikes, pooled
        x = pooled


class Membranes:
    """The neurons of a network from segment to segment; layer i's are made when it first fires.

    now: membranes before the segment that runs, of layers that have fired in it after it, without a graph. With
    `graph` they take a gradient and stay, and `after` has those after the segment, with it.
    """

    def __init__(self, surrogate: str, before: Sequence[torch.Tensor] = (), *, graph: bool = False):
        self.surrogate, self.graph = surrogate, graph
        self.now = [m.detach().requires_grad_() for m in before] if graph else list(before)
        self.after: list[torch.Tensor] = []

    def fire(self, steps: int) -> Neuron:
        """The neurons for the next segment."""

        def neuron(i: int, drive_TB: torch.Tensor) -> torch.Tensor:
            if len(self.now) == i:
                self.now.append(start(drive_TB))
            spikes, after = fire(drive_TB, self.now[i], steps, self.surrogate)
            if self.graph:
                self.after.append(after)
            else:
                self.now[i] = after.detach()
            return spikes

        return neuron


def counts(way: Way, drive_1BCHW: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Spikes of the last layer over all steps, [B, N], with the gradient to the drive and the weights."""
    if way.memory == "full":
        return _last(layers(way.pools, drive_1BCHW, weights, Membranes(way.surrogate).fire(way.steps))).sum(0)
    return _Recomputed.apply(way, drive_1BCHW, *(tensor for pair in weights for tensor in pair))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, way, drive, *flat):
        ctx.way, ctx.autocast = way, _autocast(drive)
        ctx.save_for_backward(drive, *flat)
        ctx.kept, neurons = [], Membranes(way.surrogate)
        weights = _pairs([t.detach() for t in flat])
        total: torch.Tensor | float = 0.0
        # With gradients enabled and nothing that takes one: the arithmetic of training, and nothing is kept.
        with torch.enable_grad():
            for number, steps in enumerate(way.lengths):
                if way.memory == "segments" and number:
                    ctx.kept.append(list(neurons.now))
                packed = []
                for _, spikes, _ in layers(way.pools, drive.detach(), weights, neurons.fire(steps)):
                    if way.memory == "bits":
                        packed.append((pack(spikes), spikes.shape, spikes.stride(), spikes.dtype))
                ctx.kept += [packed] if packed else []
                total = total + spikes.sum(0)
        if way.memory == "bits":
            ctx.last = [m if way.surrogate == "S3" else None for m in neurons.now]
        return total

    @staticmethod
    def backward(ctx, grad_BN):
        way, (drive, *flat) = ctx.way, ctx.saved_tensors
        leaves = [t.detach().requires_grad_() for t in (drive, *flat)]
        again = {"two-pass": _forwards, "segments": _from_states, "bits": _from_bits}[way.memory]
        with torch.enable_grad(), _autocasting(*ctx.autocast):
            again(ctx, way, leaves[0], _pairs(leaves[1:]), grad_BN)
        return None, *(leaf.grad for leaf in leaves)


def _forwards(ctx, way: Way, drive, weights: Weights, grad_BN) -> None:
    neurons = Membranes(way.surrogate)
    for steps in way.lengths:
        spikes = _last(layers(way.pools, drive, weights, neurons.fire(steps)))
        spikes.backward(grad_BN.to(spikes.dtype).expand_as(spikes))


def _from_states(ctx, way: Way, drive, weights: Weights, grad_BN) -> None:
    carried: list[torch.Tensor] = []
    for number, steps in reversed(list(enumerate(way.lengths))):
        neurons = Membranes(way.surrogate, ctx.kept.pop() if number else (), graph=True)
        spikes = _last(layers(way.pools, drive, weights, neurons.fire(steps)))
        into = neurons.after if carried else []
        torch.autograd.backward([spikes, *into], [grad_BN.to(spikes.dtype).expand_as(spikes), *carried])
        carried = [m.grad for m in neurons.now]


def _from_bits(ctx, way: Way, drive, weights: Weights, grad_BN) -> None:
    rewound = [Rewound(m) for m in ctx.last]
    ctx.last = []
    for _ in way.lengths:
        packed = ctx.kept.pop()

        def neuron(i, drive, packed=packed):
            spikes = unpack(*packed[i])
            return refire(drive, spikes, rewound[i], way.surrogate)

        spikes = _last(layers(way.pools, drive, weights, neuron))
        spikes.backward(grad_BN.to(spikes.dtype).expand_as(spikes))


def _last(each: Iterator[tuple]) -> torch.Tensor:
    """The last layer's spikes; those of the others are let go as soon as the next layer has them."""
    for _, spikes, _ in each:  # noqa: B007 (used after the loop)
        pass
    return spikes


def _pairs(flat: Sequence[torch.Tensor]) -> Weights:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _autocast(x: torch.Tensor) -> tuple[str, bool, torch.dtype]:
    kind = x.device.type
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _autocasting(kind: str, enabled: bool, dtype: torch.dtype) -> AbstractContextManager:
    return torch.autocast(kind, dtype=dtype, enabled=enabled)


_BITS = 8


def pack(spikes: torch.Tensor) -> torch.Tensor:
    """Spikes 0 or 1 of any shape as bytes, eight to each, in the order in which they lie in memory.

    >>> pack(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 1, 1])).tolist()
    [1, 3]
    """
    flat = spikes.as_strided((spikes.numel(),), (1,)).to(torch.uint8)
    flat = F.pad(flat, (0, -len(flat) % _BITS)).view(-1, _BITS)
    out = flat[:, 0].clone()
    for i in range(1, _BITS):
        out |= flat[:, i] << i
    return out


def unpack(
    bits: torch.Tensor, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The spikes that `pack` was given, with the same shape and memory order.

    >>> unpack(torch.tensor([1, 3], dtype=torch.uint8), (10,), (1,)).tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """
    flat = torch.empty(len(bits), _BITS, dtype=dtype, device=bits.device)
    for i in range(_BITS):
        flat[:, i] = (bits >> i) & 1
    return flat.view(-1).as_strided(tuple(shape), tuple(stride))
