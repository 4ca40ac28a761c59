"""The pattern network: two layers of integer neurons learn to answer one spike raster with another (ISCAS 2020).

One sample, shown every epoch; an epoch is a forward pass over T steps, the van Rossum distance to the target raster,
integer backpropagation through time and one update. Sizes, widths and profiles are in `pattern_rule.py`, the layers in
`pattern_stepwise.py` (plain torch, any device) and `pattern_cpu.py` (numba). Which of them runs is a rule: `choose`.

Source: Schaefer, Faley, Neftci, Joshi, "Memory Organization for Energy-Efficient Learning and Inference in Digital
Neuromorphic Accelerators", ISCAS 2020, arXiv 2003.11639, and its published code.

T steps, I inputs, H hidden, O outputs. Rasters are [T, neurons], 0 or 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Generator, Tensor, nn

from hwsim.config import ConfigError, nearest
from hwsim.device.integer import step_of
from hwsim.network.arrivals import arrived, fired
from hwsim.network.pattern_rule import PatternRule, dyadic
from hwsim.network.pattern_stepwise import Codes, Values, van_rossum

BACKENDS = ("auto", "integer", "integer-torch", "float")
"""integer: kernels on the CPU, else integer-torch: codes step by step. float: the emulation, as published scripts."""
LAYERS = ("hidden", "output")


@dataclass(frozen=True)
class Backend:
    """What computes the network, and why it was chosen."""

    name: str
    reason: str
    arithmetic: Values
    loss: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]] = van_rossum


def choose(rule: PatternRule, device: torch.device | str = "cpu", asked: str = "auto") -> Backend:
    """The backend for a rule: integer codes where all five widths are set, else the float emulation.

    Raises `ConfigError` where integers were asked for and a width is none, or a decay is no multiple of 1/1024.
    """
    if asked not in BACKENDS:
        raise ConfigError([f"backend: there is no '{asked}'{nearest(asked, BACKENDS)}"])
    off = [w for w in ("wb", "ab", "gb", "eb", "rb") if getattr(rule, w) is None]
    if asked == "float" or (asked == "auto" and off):
        reason = "asked for" if asked == "float" else f"without a width ({', '.join(off)}) nothing is an integer"
        dtype = emulation_type(rule)
        return Backend("float", f"{reason}; {str(dtype).removeprefix('torch.')}", Values(rule, dtype))
    if off:
        raise ConfigError([f"backend: integers need all five widths, {', '.join(off)} is none; set it, or take float"])
    if asked == "integer-torch":
        return Backend("integer-torch", "asked for", Codes(rule))
    if torch.device(device).type != "cpu":
        return Backend("integer-torch", "the kernels are for the CPU; step by step in torch", Codes(rule))
    try:
        from hwsim.network import pattern_cpu
    except ImportError as e:
        return Backend("integer-torch", f"numba cannot be imported ({e}); some 20 times slower", Codes(rule))
    reason = f"all widths are set; numba {pattern_cpu.numba.__version__}"
    return Backend("integer", reason, pattern_cpu.Kernels(rule), pattern_cpu.van_rossum)


def emulation_type(rule: PatternRule) -> torch.dtype:
    """float32 where it is exact for the rule's widths, as at all published ones; else float64."""
    if not rule.is_integer:
        return torch.float32
    try:
        finer = {name: dyadic(getattr(rule, name), name)[1] for name in ("alpha", "beta")}
    except ConfigError:  # such a decay is rounded anyway
        return torch.float32
    bits = [rule.eb - 1 + _bits(rule.steps), rule.master_bits, rule.ab + 1 + finer["beta"]]
    for layer, (fan_in, _) in enumerate(rule.shapes):
        scale = rule.scale(layer)
        currents = max(rule.ab - 1 + finer["alpha"], rule.wb - 1 + scale) + _bits(1 + fan_in / 2**scale)
        bits += [currents, rule.eb - 1 + rule.wb - 1 + _bits(rule.outputs)]
    return torch.float32 if max(bits) <= 24 else torch.float64


class PatternNet(nn.Module):
    """The network, its master weights and its optimizer's state; all tensors are buffers.

    generator: draws the first weights. weight1 [I, H] and weight2 [H, O] are master weights: int32 codes in units of
    2^(1 - rule.master_bits) with integers and sgd, else values. `weights()` gives the values in every case.
    """

    def __init__(self, rule: PatternRule, *, generator: Generator, device: str = "cpu", backend: str = "auto"):
        super().__init__()
        self.rule, self.backend = rule, choose(rule, device, backend)
        for layer in (0, 1):
            first = self.backend.arithmetic.master(rule.first_weights(layer, generator)).to(device)
            self.register_buffer(f"weight{layer + 1}", first)
            if rule.update == "adamax":
                self.register_buffer(f"mean{layer + 1}", torch.zeros(first.shape, device=device))
                self.register_buffer(f"norm{layer + 1}", torch.zeros(first.shape, device=device))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def weights(self) -> tuple[Tensor, Tensor]:
        """Copies of the master weights as float32 values, [I, H] and [H, O]."""
        values = self.backend.arithmetic.values
        return tuple(values(w).to(torch.float32, copy=True) for w in (self.weight1, self.weight2))

    def set_weights(self, values: Sequence[Tensor]) -> None:
        """Replace the master weights; with integers and sgd they must lie on the grid of rule.master_bits."""
        for layer, value in enumerate(values):
            self._master(layer).copy_(self.backend.arithmetic.master(value))

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As of every module; codes that another backend stored become values, and values codes."""
        state = dict(state_dict)
        for name in ("weight1", "weight2"):
            w, own = state.get(name), getattr(self, name)
            if w is not None and w.is_floating_point() and not own.is_floating_point():
                state[name] = self.backend.arithmetic.master(w)
            elif w is not None and own.is_floating_point() and not w.is_floating_point():
                state[name] = w * step_of(self.rule.master_bits)
        return super().load_state_dict(state, *args, **kwargs)

    def _master(self, layer: int) -> Tensor:
        return getattr(self, f"weight{layer + 1}")

    def used(self) -> list[Tensor]:
        """Clip the master weights in place, and what the layers compute with."""
        for layer in (0, 1):
            self._master(layer).copy_(self.backend.arithmetic.clip(self._master(layer)))
        return [self.backend.arithmetic.weights(self._master(layer), layer) for layer in (0, 1)]

    def forward(self, x_TI: Tensor, account: Sequence[int] | None = None):
        """(output spikes [T, O] uint8, trace). Clips the master weights, as every forward pass of the source does.

        trace: layer → `spikes` [T], `neurons`, `weight_density`; with `account`, heights of crossbars (may be empty),
        all that `hwsim.report.trace.LayerCounts` holds.
        """
        used, rasters, trace = self.used(), [x_TI], {}
        for layer, name in enumerate(LAYERS):
            rasters.append(self.backend.arithmetic.forward(rasters[-1], used[layer], layer).spikes)
            trace[name] = {
                "neurons": rasters[-1].shape[1], "spikes": rasters[-1].sum(1, dtype=torch.int64).cpu(),
                "weight_density": _density(used[layer]),
            }  # fmt: skip
            if account is not None:
                linear = SimpleNamespace(weight=used[layer].T.float())
                trace[name] |= arrived(linear, rasters[-2][:, None], 1, signed=False, rows=account)
                trace[name] |= fired(rasters[-1][:, None])
        return rasters[-1], trace

    def step(self, x_TI: Tensor, y_TO: Tensor, uniforms: Sequence[Tensor]) -> tuple[float, dict, Tensor]:
        """One epoch: (loss before the update, trace, output spikes [T, O]).

        uniforms: U[0, 1) float32 of the shapes of weight1 and weight2, see `draw`. x, y: uint8.
        trace: layer → `spikes` [T] and numbers from 0 to 1: `input_density`, `weight_density`, `error_density` (of
        E [T, N]), `gradient_density` (steps that are not 0), `update_share` (stored weights that change).
        """
        run, used = self.backend.arithmetic, self.used()
        hidden = run.forward(x_TI, used[0], 0)
        output = run.forward(hidden.spikes, used[1], 1)
        loss, g_TO = self.backend.loss(output.spikes, y_TO, self.rule.vr_kernel, self.rule.tau_s)
        E2 = run.backward(g_TO, output)
        E1 = run.backward(run.hidden_gradient(E2, used[1]), hidden)
        self.epoch += 1
        trace = {}
        parts = ((0, x_TI, E1, hidden), (1, hidden.spikes, E2, output))
        for layer, inputs, E, tape in parts:
            nonzero, changed = self._update(layer, run.gradient(inputs, E), uniforms[layer])
            trace[LAYERS[layer]] = {
                "spikes": tape.spikes.sum(1, dtype=torch.int64).cpu(), "input_density": _density(inputs),
                "weight_density": _density(used[layer]), "error_density": _density(E),
                "gradient_density": nonzero / used[layer].numel(), "update_share": changed / used[layer].numel(),
            }  # fmt: skip
        return loss.item(), trace, output.spikes

    def _update(self, layer: int, gradient: Tensor, uniform: Tensor) -> tuple[int, int]:
        """Change a layer's master weights; (steps that are not 0, weights that differ after the next clip)."""
        run, master = self.backend.arithmetic, self._master(layer)
        if self.rule.update == "sgd":
            after, nonzero = run.descend(master, gradient, uniform)
        else:
            change = run.change(gradient, uniform)
            nonzero = int(torch.count_nonzero(change))
            after = self._adamax(layer, master, change.float())
        changed = int(torch.count_nonzero(run.clip(after) != master))
        master.copy_(after)
        return nonzero, changed

    def _adamax(self, layer: int, master: Tensor, change: Tensor) -> Tensor:
        """W - m/u/(1 - 0.9^t), m = 0.9 m + 0.1 G, u = max(0.999 u, |G| + 1e-8): lr 1, off the grid. Source: 1.9."""
        m, u = getattr(self, f"mean{layer + 1}"), getattr(self, f"norm{layer + 1}")
        m.mul_(0.9).add_(0.1 * change)
        torch.maximum(u.mul_(0.999), change.abs() + 1e-8, out=u)
        return master - (m / u / (1 - 0.9 ** self.epoch.item())).to(master.dtype)

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """The uniforms of one update, on the generator's device: first weight2's, then weight1's (source order)."""
        device = generator.device
        two = torch.rand(self.weight2.shape, generator=generator, device=device)
        return torch.rand(self.weight1.shape, generator=generator, device=device), two


def _bits(n: float) -> int:
    return math.ceil(math.log2(n))


def _density(x: Tensor) -> float:
    return torch.count_nonzero(x).item() / x.numel()


def train_pattern(
    net: PatternNet,
    x_TI: Tensor,
    y_TO: Tensor,
    *,
    epochs: int,
    generator: Callable[[int], Generator],
    snapshots: Sequence[int] = (),
) -> Iterator[dict]:
    """Train epoch by epoch; a row each: epoch (1, 2, …), loss and `trace` as `PatternNet.step` has them.

    generator: epoch → the generator of its uniforms, so that a resumed run draws what it would have drawn; epochs that
    net.epoch has done are not done again. snapshots: epochs whose row has `raster`, the output spikes [T, O] (uint8,
    on the CPU) that gave the loss. Raises `ConfigError` if the rasters do not fit the network.
    """
    rule, device = net.rule, net.weight1.device
    for what, raster, expected in (
        ("input", x_TI, (rule.steps, rule.inputs)), ("target", y_TO, (rule.steps, rule.outputs)),
    ):  # fmt: skip
        if tuple(raster.shape) != expected:
            found = "x".join(map(str, raster.shape))
            raise ConfigError(
                [f"{what} raster is {found}, the network has {expected[0]} steps x {expected[1]} neurons"]
            )
    x, y = (r.to(device, torch.uint8).contiguous() for r in (x_TI, y_TO))
    for epoch in range(int(net.epoch) + 1, epochs + 1):
        loss, trace, spikes = net.step(x, y, [u.to(device) for u in net.draw(generator(epoch))])
        row = {"epoch": epoch, "loss": loss, "trace": trace}
        if epoch in snapshots:
            row["raster"] = spikes.to("cpu", copy=True)
        yield row
