"""A constrained VGG as a spiking network: every ReLU becomes a neuron that integrates and fires.

Weights and their stores are those of the ordinary network. With lambda_k the percentile of ReLU k (lambda_0 = 1), a
neuron of layer k fires at lambda_k / lambda_{k-1}, which is the published weight normalization with thresholds of 1. In
hardware the scale alpha_o of a binary filter is no weight but part of its threshold, so what is stored is

    theta_o = lambda_k / (lambda_{k-1} alpha_o)          alpha_o = 1 for full-precision layers

and it may lie in cells with a spread. The image is a constant current at every step; outputs are the sum over steps of
fc2's currents: divided by the steps that reached it and times the last lambda, an estimate of the ordinary network's.

Time runs in segments that fit a buffer, layer by layer within each, so that memory does not grow with the steps. In the
published schedule ("pipelined") a layer reads what its source did a step before, and so does every average, which only
delays a layer's spikes by its depth: layer k runs the first T - delay_k steps of the network without delays.

T steps, B batch, C channels, H W image, N neurons, K classes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import ConfigError
from hwsim.device.store import Ideal, add_cells
from hwsim.network.arrivals import BY_STEP, arrived, fired, joined, silent
from hwsim.network.integrate import integrate_and_fire
from hwsim.network.vgg15 import Vgg15

BUFFER = {"cpu": 2**21}
"""Spikes (floats) of the first layer in one segment of time, if a step has no more: on the CPU what the caches like."""
BUFFER_ELSEWHERE = 2**24


class Threshold(nn.Module):
    """Thresholds of a layer's neurons, one a filter: `weight` [O] is what is stored, `unit` [O] what it counts in."""

    store = Ideal()

    def __init__(self, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs), requires_grad=False)
        self.register_buffer("unit", torch.ones(outputs))
        add_cells(self)

    def forward(self) -> torch.Tensor:
        """The thresholds that currents meet, [O]."""
        return self.store.read(self) * self.unit


class Spiking(nn.Module):
    """The spiking network of an ordinary one whose layers it shares; `thresholds` or a state_dict give its thresholds.

    steps: T. one_step: a signal passes all layers within a step; else the published schedule, one step a layer and one
    an average. coding is direct: the first layer's current is computed once.
    Raises `ConfigError` if no signal reaches the output within T steps.
    """

    coding = "direct"
    update = (0, 2)
    """Multiplications and additions of a neuron's update: its current is added, the threshold compared."""

    def __init__(self, net: Vgg15, *, steps: int, one_step: bool):
        super().__init__()
        self.steps, self.one_step = steps, one_step
        self.pooled = dict(net.pooled)
        for name, layer in net.layers.items():
            self.add_module(name, layer)
        for name in self.pooled:
            self.add_module(f"threshold_{name}", Threshold(self.get_submodule(name).weight.shape[0]))
        self.to(next(net.parameters()).device)
        if self.effective_steps < 1:
            raise ConfigError(
                [
                    f"time: {steps} steps, but in a pipeline the first signal reaches the output at step "
                    f"{self.delay + 1}; take more steps, or --one-step"
                ]
            )
        self.eval()

    @property
    def delays(self) -> dict[str, int]:
        """Steps by which each layer's neurons come behind the image."""
        out, now = {}, 0
        for name, pools in self.pooled.items():
            now += 0 if self.one_step else 1 + pools
            out[name] = now
        return out

    @property
    def delay(self) -> int:
        """Steps before the first signal reaches the output."""
        return 0 if self.one_step else self.delays["fc1"] + 1

    @property
    def effective_steps(self) -> int:
        """Steps whose signal reaches the output."""
        return self.steps - self.delay

    def encode(self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The image as it is, [1, B, C, H, W]: the same current at every step."""
        return x_BCHW.unsqueeze(0)

    def forward(
        self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None, account: Sequence[int] | None = None
    ):
        """(mean output current over the steps that reached it [B, K], trace) of normalized images."""
        return self.run(self.encode(x_BCHW), account)

    def run(self, x_1BCHW: torch.Tensor, account: Sequence[int] | None = None):
        """(mean output [B, K], trace): with `account`, the heights of crossbars, what `arrivals.py` counts."""
        out, trace, _ = self._simulate(x_1BCHW, account, every_step=False)
        return out[-1] / self.effective_steps, trace

    def lead(self, x_1BCHW: torch.Tensor, is_fixed: Callable[[nn.Module], bool]) -> tuple:
        """The beginning of a pass, which `follow` ends: (image, currents of conv1, or None where they move)."""
        return x_1BCHW, self._current("conv1", x_1BCHW) if is_fixed(self.conv1) else None

    def follow(self, at: tuple) -> torch.Tensor:
        """Mean output [B, K] of a pass that `lead` began: `run`, bit for bit."""
        x_1BCHW, first = at
        return self._simulate(x_1BCHW, None, every_step=False, first=first)[0][-1] / self.effective_steps

    def outputs(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Summed output currents after every step, [T, B, K]."""
        return self._simulate(self.encode(x_BCHW), None, every_step=True)[0]

    @torch.no_grad()
    def _simulate(
        self, x_1B: torch.Tensor, account: Sequence[int] | None, *, every_step: bool, first: torch.Tensor | None = None
    ):
        thresholds = {n: self.get_submodule(f"threshold_{n}")() for n in self.pooled}
        first = self._current("conv1", x_1B) if first is None else first
        v_of: dict[str, torch.Tensor] = {}
        B, K = x_1B.shape[1], self.fc2.weight.shape[0]
        total = torch.zeros(1, B, K, dtype=first.dtype, device=first.device)
        sums, trace = [total.expand(self.delay, B, K)], _Trace(self, account)
        trace.arrives("conv1", x_1B, 0, signed=True)
        segment = max(1, BUFFER.get(first.device.type, BUFFER_ELSEWHERE) // max(first.numel(), 1))
        for start in range(0, self.steps, segment):
            end, x = min(start + segment, self.steps), None
            for name in self.pooled:
                steps = min(end, self.steps - self.delays[name]) - start
                if steps < 1:
                    break
                if x is not None:
                    trace.arrives(name, x[:steps], 1)
                current = first if x is None else self._current(name, x[:steps])
                theta = thresholds[name].reshape(-1, *[1] * (current.dim() - 3))
                constant = {"steps": steps} if x is None else {}
                x, v_of[name] = integrate_and_fire(current, v_of.get(name), theta, **constant)
                trace.fires(name, x)
                x = x.flatten(2) if name == list(self.pooled)[-2] else x
            steps = min(end, self.steps - self.delay) - start
            if steps >= 1:
                trace.arrives("fc2", x[:steps], 1)
                if every_step:
                    sums.append(total + self.fc2(x[:steps]).cumsum(0))
                    total = sums[-1][-1:]
                else:
                    total = total + self.fc2(x[:steps].sum(0, keepdim=True))
        return torch.cat(sums) if every_step else total, trace.finished(), v_of

    def _current(self, name: str, x_TB: torch.Tensor) -> torch.Tensor:
        current = self.get_submodule(name)(x_TB)
        if self.pooled[name]:
            current = F.avg_pool2d(current.flatten(0, 1), 2).unflatten(0, current.shape[:2])
        return current


class _Trace:
    """The counts of all segments of a run, added up; without `account` nothing."""

    def __init__(self, net: Spiking, account: Sequence[int] | None):
        self.net, self.account, self.layers = net, account, {}

    def arrives(self, name: str, x_TB: torch.Tensor, parts: int, *, signed: bool = False) -> None:
        if self.account is not None:
            self._add(name, arrived(self.net.get_submodule(name), x_TB, parts, signed=signed, rows=self.account))

    def fires(self, name: str, spikes_TB: torch.Tensor) -> None:
        if self.account is not None:
            self._add(name, fired(spikes_TB))

    def _add(self, name: str, new: dict) -> None:
        self.layers[name] = joined([self.layers.get(name, {}), new])

    def finished(self) -> dict[str, dict]:
        """The trace: what a delayed layer does not see of T steps is silence before its first."""
        if self.account is None:
            return {}
        T = self.net.steps
        for name, here in self.layers.items():
            here |= silent(T) if name == "fc2" else {}
            for key, value in here.items():
                once = name == "conv1" and key.startswith(("unit", "fractional"))  # the image, all steps' input
                if key.endswith(BY_STEP) and not once and len(value) < T:
                    here[key] = torch.cat([value.new_zeros(T - len(value), *value.shape[1:]), value])
        return self.layers
