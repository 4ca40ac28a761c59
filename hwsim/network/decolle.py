"""The DECOLLE network: layers of spiking neurons that learn locally and online, each from its own random readout.

Nothing flows back through time or from layer to layer. All state lives inside `run`; between calls only the masters of
the weights change. Randomness comes from the generators that are given. Which backend runs is said in `Run.backend`
with its reason:

    fused   int8 products and numba kernels, CPU, every width set (`decolle_cpu.py`)
    float   plain torch on any device, any widths (`decolle_arithmetic.Real`)
    codes   plain torch on int64, any device, every width set (`decolle_arithmetic.Whole`)

All three give the same codes. Source: Schaefer and Joshi, ICONS 2020, doi 10.1145/3407197.3407203, section 3.

T steps, B batch, C X Y input, K classes, L layers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hwsim.config import DataError
from hwsim.network.decolle_arithmetic import Real, Whole
from hwsim.network.decolle_layer import Layer
from hwsim.network.decolle_rule import DecolleRule
from hwsim.network.decolle_step import StepLayer
from hwsim.network.decolle_trace import LayerTrace, Seen

Backend = Literal["auto", "fused", "float", "codes"]
LARGEST_INPUT = 127
"""The largest number of events in a pixel at a step that an integer network takes."""


@dataclass
class Run:
    """What one batch gave. predictions_LB: of each layer, by vote over the steps behind the burn-in. loss_L: means over
    the steps that learned, NaN without. by_step_LTB: the class of every step that votes.
    """

    predictions_LB: Tensor
    by_step_LTB: Tensor
    loss_L: list[float]
    trace: list[LayerTrace]
    backend: str


def vote(classes_TB: Tensor, classes: int) -> Tensor:
    """The most frequent class of each sample [B]; the smallest one on ties (trap B20).

    >>> vote(torch.tensor([[0, 2], [1, 0], [1, 2], [0, 2]]), 3)
    tensor([0, 2])
    """
    return F.one_hot(classes_TB, classes).sum(0).argmax(1)


class Decolle(nn.Module):
    """Layers, by number; `state_dict` holds masters (in units of weight_mult), readouts, feedbacks, time constants."""

    def __init__(self, rule: DecolleRule, generator: Generator | None = None):
        super().__init__()
        self.rule = rule
        self.layers = nn.ModuleList(Layer(rule, plan, generator) for plan in rule.plan())

    def choose(self, backend: Backend = "auto") -> tuple[str, str]:
        """The backend that runs, and why. Raises `ValueError` where the one asked for cannot."""
        from hwsim.network import decolle_cpu

        device = self.layers[0].weight.device
        if backend not in ("auto", "fused", "float", "codes"):
            raise ValueError(f"backend: found '{backend}'; there is auto, fused, float, codes")
        if backend == "codes" and not self.rule.is_integer:
            raise ValueError("backend codes: a width is none; take float")
        if backend in ("float", "codes"):
            return backend, "asked for"
        fits, why = decolle_cpu.available(self.rule, device)
        if backend == "fused" and not fits:
            raise ValueError(f"backend fused: {why}")
        return ("fused", why) if fits else ("float", why)

    @torch.no_grad()
    def run(
        self,
        x_TBCXY: Tensor,
        labels_B: Tensor | None = None,
        *,
        learn: bool = False,
        rate: float | None = None,
        generator: Generator | None = None,
        backend: Backend = "auto",
        watch: Callable[[int, Seen], None] | None = None,
    ) -> Run:
        """One batch from silence: all steps forward; behind the burn-in every step votes and, with `learn`, learns.

        x: input counts after the input mode, any dtype. rate: as `rule.rate(epoch)`; without one that of epoch 0.
        generator: for dropout and the rounding of gradients, on the CPU; needed to learn, and where scores are dropped.
        watch: called with the number of each layer and what is to be seen of it, at every step.
        Raises `DataError` for a batch that does not fit the network.
        """
        rule = self.rule
        T, B = x_TBCXY.shape[:2]
        self._check(x_TBCXY, labels_B, learn)
        drops = rule.dropout > 0 and (learn or rule.drops_in_tests)
        if generator is None and (drops or (learn and rule.gb is not None)):
            raise ValueError("a generator is needed: for dropped scores, and to learn with gb")
        name, why = self.choose(backend)
        rate = rule.rate(0) if rate is None else rate
        trace = [LayerTrace(layer.plan, T) for layer in self.layers]
        layers = [self._start(name, layer, B, own) for layer, own in zip(self.layers, trace, strict=True)]
        x = layers[0].prepare(x_TBCXY.to(self.layers[0].weight.device))
        first, count = rule.burn_in + 1, len(layers)
        masks = None
        if drops:
            shape = (T - first, count, B, rule.classes)
            masks = (torch.rand(shape, generator=generator, device=generator.device) >= rule.dropout).to(x.device)
        target = None if labels_B is None else F.one_hot(labels_B.to(x.device).long(), rule.classes)
        votes = torch.empty(count, T - first, B, dtype=torch.int64, device=x.device)
        loss = [0.0] * count
        for t in range(T):
            s = x[t]
            for i, layer in enumerate(layers):
                s = layer.forward(s, t)
                if t >= first:
                    votes[i, t - first] = layer.scores(None if masks is None else masks[t - first, i])
                if watch is not None:
                    watch(i, layer.seen(voted=t >= first))
                if learn and t >= first:
                    loss[i] += layer.learn(target, rate, t, generator)
        for layer in layers:
            layer.finish()
        predictions = torch.stack([vote(v, rule.classes) for v in votes])
        means = [total / (T - first) if learn else float("nan") for total in loss]
        return Run(predictions, votes, means, trace, f"{name}: {why}")

    def _start(self, name: str, layer: Layer, batch: int, trace: LayerTrace):
        if name == "fused":
            from hwsim.network.decolle_cpu import FusedLayer

            return FusedLayer(layer, batch, trace)
        return StepLayer(layer, batch, Whole() if name == "codes" else Real(self.rule.is_integer), trace)

    def _check(self, x: Tensor, labels: Tensor | None, learn: bool) -> None:
        rule = self.rule
        wanted = (rule.inputs, *rule.image)
        if x.dim() != 5 or tuple(x.shape[2:]) != wanted:
            raise DataError(
                f"batch: found shape {tuple(x.shape)}; the network takes [T, B, {', '.join(map(str, wanted))}]"
            )
        if x.shape[0] <= rule.burn_in + 1:
            raise DataError(
                f"batch: {x.shape[0]} steps are not longer than the burn-in, steps 0 to {rule.burn_in}: nothing would"
                " learn or vote; take more steps or a shorter burn_in"
            )
        if rule.is_integer and x.numel():
            low, high = x.aminmax()
            whole = not x.is_floating_point() or bool((x == x.round()).all())
            if not whole or float(high) > LARGEST_INPUT or float(low) < -LARGEST_INPUT:
                raise DataError(
                    f"batch: found inputs from {float(low):g} to {float(high):g}; an integer network takes whole"
                    f" numbers from -{LARGEST_INPUT} to {LARGEST_INPUT}"
                )
        if learn and labels is None:
            raise ValueError("learning needs labels")
        if labels is not None and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < rule.classes:
            raise DataError(
                f"batch: labels from {int(labels.min())} to {int(labels.max())}; the network has classes 0 to"
                f" {rule.classes - 1}"
            )


def build(generator: Generator, rule: DecolleRule | None = None, **settings: Any) -> Decolle:
    """A network with first weights drawn; `settings` are fields of `DecolleRule`.

    Raises `ConfigError` naming every setting that cannot be.
    """
    return Decolle(rule if rule is not None else DecolleRule(**settings), generator)


def train_epoch(
    net: Decolle,
    batches: Iterable[tuple[Tensor, Tensor]],
    generator: Generator,
    epoch: int = 0,
    backend: Backend = "auto",
) -> dict[str, Any]:
    """One epoch over (x_TBCXY, labels_B): weights change at every step behind the burn-in.

    Returns `accuracy` [L] (votes while learning), `loss` [L] (means over batches and learning steps; the published log
    has that of the last batch, trap B24), `samples`, `rate`, `trace` (list of `LayerTrace`) and `backend`.
    """
    rate = net.rule.rate(epoch)
    return _over(net, batches, backend=backend, learn=True, rate=rate, generator=generator) | {"rate": rate}


def evaluate(
    net: Decolle,
    batches: Iterable[tuple[Tensor, Tensor]],
    generator: Generator | None = None,
    backend: Backend = "auto",
) -> dict[str, Any]:
    """Accuracies of every layer; the headline is the last one's. generator: where scores are dropped (trap B11).

    Returns `accuracy` [L], `correct` [L], `samples`, `predictions` [L, samples], `trace` and `backend`.
    """
    return _over(net, batches, backend=backend, learn=False, generator=generator)


def _over(net: Decolle, batches: Iterable[tuple[Tensor, Tensor]], **how: Any) -> dict[str, Any]:
    traces: list[LayerTrace] = []
    correct, samples, loss, predictions, name = torch.zeros(len(net.layers), dtype=torch.int64), 0, [], [], ""
    for x, labels in batches:
        out = net.run(x, labels, **how)
        right = out.predictions_LB.cpu() == labels.cpu()
        correct, samples, name = correct + right.sum(1), samples + len(labels), out.backend
        loss.append([own * len(labels) for own in out.loss_L])
        predictions.append(out.predictions_LB.cpu())
        if traces and traces[0].steps_T == out.trace[0].steps_T:
            for whole, own in zip(traces, out.trace, strict=True):
                whole.add(own)
        elif traces:
            raise DataError("batches of different numbers of steps cannot be counted together")
        else:
            traces = out.trace
    if not samples:
        raise DataError("no batches: there is nothing to run")
    return {
        "accuracy": (correct.double() / samples).tolist(),
        "correct": correct.tolist(),
        "samples": samples,
        "loss": [sum(column) / samples for column in zip(*loss, strict=True)],
        "predictions": torch.cat(predictions, 1),
        "trace": traces,
        "backend": name,
    }
