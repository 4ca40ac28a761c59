"""The pattern network's layers step by step in plain torch, on any device: once on values, once on integer codes.

A layer of current-based neurons; Q quantizes to ab bits and saturates, masks say where it did not (section 1.4):

    z_t       = Q(mem_t - 0.9)                      s_t = [z_t > 0]
    syn_{t+1} = Q(alpha syn_t + H_t)                mem_{t+1} = Q(beta mem_t + syn_t - s_t)      syn_0 = mem_0 = 0

Backwards, E brings a vector to about 1 and quantizes it to eb bits; g_t = dL/ds_t, s'(z) = 1/(100 |z| + 1)^2 (1.8):

    dz_t   = E(g_t s'(z_t)) where z_t is inside       dL/dH_t = dy_t
    dm_t   = E(gm_{t+1}) where mem_{t+1} is inside    gm_t = dz_t + beta dm_t
    dy_t   = E(gs_{t+1}) where syn_{t+1} is inside    gs_t = dm_t + alpha dy_t,   gm_T = gs_{T-1} = 0

The reset carries no gradient. `Values` is the float emulation that the published scripts run; `Codes` has only integers
in its states, weights, errors and gradients. Two factors are real numbers and are the same float32 numbers in both: the
gradient of the loss, and s'. So both give the same codes, and so do the kernels of `pattern_cpu.py`.

T steps, N neurons, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hwsim.device.integer import clip, quant_act, quant_err, quant_grad, quant_w, shift, step_of
from hwsim.device.integer_codes import act_code, error_code, gradient_steps, largest_code, rne_shift, threshold_code
from hwsim.network.pattern_rule import FLOAT_STEP, SLOPE, THRESHOLD, PatternRule, dyadic


@dataclass
class Tape:
    """What the backward pass needs of a layer, [T, N] each; `after` holds mem and syn for t = 0 … T if asked for."""

    spikes: Tensor
    z: Tensor
    inside_z: Tensor
    inside_mem: Tensor
    inside_syn: Tensor
    after: tuple[Tensor, Tensor] | None = None


def surrogate(z: Tensor) -> Tensor:
    """1/(100 |z| + 1)^2 in float32."""
    y = SLOPE * z.float().abs() + 1
    return 1 / (y * y)


def van_rossum(x_TN: Tensor, y_TN: Tensor, kernel: float, tau: float) -> tuple[Tensor, Tensor]:
    """(loss, gradient [T, N] float32) of spikes x against a target y; the gradient of equal rasters is 0.

        D_t = kernel D_{t-1} + x_t - y_t,   L = sqrt(sum D^2/tau),   dL/dx_t = 1/(tau L) sum_{j >= t} kernel^(j-t) D_j

    Recursions in float32, the sum of squares in float64, L rounded to float32. Source: section 1.7.
    """
    difference = x_TN.float() - y_TN.float()
    D = torch.empty_like(difference)
    d = torch.zeros_like(difference[0])
    for t in range(len(D)):
        d = kernel * d + difference[t]
        D[t] = d
    loss, factor = loss_of(D, tau)
    gradient = torch.empty_like(D)
    g = torch.zeros_like(d)
    for t in range(len(D) - 1, -1, -1):
        g = D[t] + kernel * g
        gradient[t] = g * factor
    return loss, gradient


def loss_of(D_TN: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(L, 1/(tau L)) as float32 numbers, 0 in place of 1/0."""
    loss = (D_TN.double().square().sum(1).sum() / tau).sqrt().float()
    factor = 1 / (tau * loss.double())
    return loss, torch.where(loss > 0, factor, 0.0).float()


class Values:
    """Float emulation: every tensor holds values. Any width may be None. dtype: float32 as published, or float64."""

    def __init__(self, rule: PatternRule, dtype: torch.dtype = torch.float32):
        self.rule, self.dtype = rule, dtype

    def master(self, w: Tensor) -> Tensor:
        """First weights as this arithmetic keeps them."""
        return w.to(self.dtype)

    def values(self, master: Tensor) -> Tensor:
        """Master weights as values."""
        return master

    def clip(self, master: Tensor) -> Tensor:
        """Master weights within the range of wb bits; done before every forward pass."""
        return clip(master, self.rule.wb)

    def weights(self, master: Tensor, layer: int) -> Tensor:
        """The weights that the layer computes with."""
        scale = 2.0 ** self.rule.scale(layer)
        w = quant_w(master, self.rule.wb, scale)
        return w / scale if self.rule.wb is None and self.rule.divides() else w

    def currents(self, x_TI: Tensor, w_IO: Tensor) -> Tensor:
        """H = X W, [T, O]."""
        return x_TI.to(self.dtype) @ w_IO.to(self.dtype)

    def forward(self, x_TI: Tensor, w_IO: Tensor, layer: int, keep: bool = False) -> Tape:
        """Spikes of a layer and what its backward pass needs."""
        return self.neurons(self.currents(x_TI, w_IO), self.fraction(layer), keep)

    def fraction(self, layer: int) -> int:
        """Fractional bits of the currents H, where they are integers."""
        return (self.rule.wb or 0) - 1 + self.rule.scale(layer)

    def neurons(self, H_TN: Tensor, frac: int, keep: bool = False) -> Tape:
        """The recursion of the module's text. frac: fractional bits of H, read by `Codes`. keep: hold all states."""
        mem, syn = torch.zeros_like(H_TN[0]), torch.zeros_like(H_TN[0])
        rows, states = [], [(mem, syn)]
        for H in H_TN:
            z, inside_z = self.distance(mem)
            s = z > 0
            (syn, inside_syn), (mem, inside_mem) = self.charge(syn, H, frac), self.leak(mem, syn, s)
            rows.append((s, z, inside_z, inside_mem, inside_syn))
            if keep:
                states.append((mem, syn))
        s, z, *inside = (torch.stack(column) for column in zip(*rows, strict=True))
        after = tuple(torch.stack(c) for c in zip(*states, strict=True)) if keep else None
        return Tape(s.to(torch.uint8), z, *inside, after)

    def distance(self, mem: Tensor) -> tuple[Tensor, Tensor]:
        return quant_act(mem - THRESHOLD, self.rule.ab)

    def charge(self, syn: Tensor, H: Tensor, frac: int) -> tuple[Tensor, Tensor]:
        return quant_act(self.rule.alpha * syn + H, self.rule.ab)

    def leak(self, mem: Tensor, syn: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return quant_act(self.rule.beta * mem + syn - s.to(mem.dtype), self.rule.ab)

    def slopes(self, z: Tensor) -> Tensor:
        return surrogate(z)

    def fresh_error(self, g: Tensor) -> Tensor:
        """E of a real float32 vector."""
        return quant_err(g, self.rule.eb).to(self.dtype)

    def error(self, g: Tensor) -> Tensor:
        """E of a vector or matrix in this arithmetic."""
        return quant_err(g, self.rule.eb)

    def blend(self, fresh: Tensor, old: Tensor, decay: str) -> Tensor:
        """fresh + decay old."""
        return fresh + getattr(self.rule, decay) * old

    def backward(self, g_TN: Tensor, tape: Tape) -> Tensor:
        """E(dL/dH) [T, N] of a layer with one factor for the whole matrix, from dL/ds."""
        slope = self.slopes(tape.z)
        gm = gs = dm = dy = self.error(torch.zeros_like(tape.z[0]))
        rows = []
        for t in range(len(g_TN) - 1, -1, -1):
            dz = self.fresh_error(g_TN[t].float() * slope[t]) * tape.inside_z[t]
            if t < len(g_TN) - 1:
                dm, dy = self.error(gm) * tape.inside_mem[t], self.error(gs) * tape.inside_syn[t]
            gm, gs = self.blend(dz, dm, "beta"), self.blend(dm, dy, "alpha")
            rows.append(dy)
        return self.error(torch.stack(rows[::-1]))

    def hidden_gradient(self, E_TO: Tensor, w_IO: Tensor) -> Tensor:
        """dL/ds of the layer before, float32, up to a power of two."""
        return (E_TO @ w_IO.to(self.dtype).T).float()

    def gradient(self, x_TI: Tensor, E_TO: Tensor) -> Tensor:
        """dL/dW = X' E, [I, O], up to a power of two if errors are quantized."""
        return x_TI.to(self.dtype).T @ E_TO

    def change(self, gradient: Tensor, uniform: Tensor) -> Tensor:
        """What an optimizer subtracts, in values: k 2^(1 - gb); without gb the mean of that at 8 bits."""
        rule = self.rule
        if rule.gb is None:
            return rule.step_rate * FLOAT_STEP * gradient / shift(gradient.abs().amax())
        return quant_grad(
            gradient, rule.gb, random_bits=rule.rb, rate=rule.step_rate, uniform=uniform, unbiased=rule.unbiased
        )

    def descend(self, master: Tensor, gradient: Tensor, uniform: Tensor) -> tuple[Tensor, int]:
        """(master weights after a step of plain descent, number of steps that are not 0)."""
        change = self.change(gradient, uniform)
        return master - change, int(torch.count_nonzero(change))


class Codes(Values):
    """Integer codes: states, weights, errors, gradients and, for sgd, master weights are int64 or int32 tensors.

    Codes of weights have the unit 2^(1 - wb)/scale, of states 2^(1 - ab), of errors 2^(1 - eb). All five widths must
    be set, and alpha and beta be multiples of 1/1024.
    """

    def __init__(self, rule: PatternRule):
        super().__init__(rule)
        assert rule.is_integer
        self.decay = {"alpha": dyadic(rule.alpha, "alpha"), "beta": dyadic(rule.beta, "beta")}
        d = 2 ** (rule.ab - 1)
        self.threshold = threshold_code(THRESHOLD, rule.ab)
        self.lowest_inside = -(-(THRESHOLD * d - (d - 1)) // 1)
        self.table = surrogate(torch.arange(d) / d)
        self.keeps_codes = rule.update == "sgd"
        self.limit = largest_code(rule.wb) << rule.master_bits - max(rule.wb, 1)

    def master(self, w: Tensor) -> Tensor:
        return rne_shift_values(w, self.rule.master_bits) if self.keeps_codes else w

    def values(self, master: Tensor) -> Tensor:
        return master * step_of(self.rule.master_bits) if self.keeps_codes else master

    def clip(self, master: Tensor) -> Tensor:
        if not self.keeps_codes:
            return super().clip(master)
        return master.clamp(-self.limit, self.limit)

    def weights(self, master: Tensor, layer: int) -> Tensor:
        if not self.keeps_codes:
            return (quant_w(master, self.rule.wb) * 2 ** (self.rule.wb - 1)).to(torch.int16)
        if self.rule.wb == 1:
            return torch.sign(master).to(torch.int16)
        return rne_shift(master, self.rule.master_bits - self.rule.wb).to(torch.int16)

    def currents(self, x_TI: Tensor, w_IO: Tensor) -> Tensor:
        return self._product(x_TI, w_IO)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        # No integer matrix product on CUDA, a slow one on the CPU; whole numbers below 2^53 are exact in float64.
        return (a.double() @ b.double()).long()

    def distance(self, mem: Tensor) -> tuple[Tensor, Tensor]:
        limit = largest_code(self.rule.ab)
        return (mem - self.threshold).clamp(-limit, limit), mem >= self.lowest_inside

    def charge(self, syn: Tensor, H: Tensor, frac: int) -> tuple[Tensor, Tensor]:
        (p, k), finer = self.decay["alpha"], frac - (self.rule.ab - 1)
        more = k + max(0, finer)
        return act_code((p * syn << more - k) + (H << more - finer), self.rule.ab - 1 + more, self.rule.ab)

    def leak(self, mem: Tensor, syn: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        (p, k), d = self.decay["beta"], 2 ** (self.rule.ab - 1)
        return act_code(p * mem + (syn - d * s.long() << k), self.rule.ab - 1 + k, self.rule.ab)

    def slopes(self, z: Tensor) -> Tensor:
        return self.table.to(z.device)[z.abs()]

    def fresh_error(self, g: Tensor) -> Tensor:
        return (quant_err(g, self.rule.eb) * 2 ** (self.rule.eb - 1)).long()

    def error(self, g: Tensor) -> Tensor:
        return error_code(g, self.rule.eb)

    def blend(self, fresh: Tensor, old: Tensor, decay: str) -> Tensor:
        """2^k (fresh + p/2^k old): the unit does not matter to `error`."""
        p, k = self.decay[decay]
        return (fresh << k) + p * old

    def hidden_gradient(self, E_TO: Tensor, w_IO: Tensor) -> Tensor:
        return self._product(E_TO, w_IO.T).float()

    def gradient(self, x_TI: Tensor, E_TO: Tensor) -> Tensor:
        return self._product(x_TI.T, E_TO)

    def steps(self, gradient: Tensor, uniform: Tensor) -> Tensor:
        """The whole steps of every weight."""
        rule = self.rule
        return gradient_steps(
            gradient, random_bits=rule.rb, rate=rule.step_rate, uniform=uniform, unbiased=rule.unbiased
        )

    def change(self, gradient: Tensor, uniform: Tensor) -> Tensor:
        return self.steps(gradient, uniform).float() * step_of(self.rule.gb)

    def descend(self, master: Tensor, gradient: Tensor, uniform: Tensor) -> tuple[Tensor, int]:
        steps = self.steps(gradient, uniform)
        after = master - (steps << self.rule.master_bits - self.rule.gb).to(master.dtype)
        return after, int(torch.count_nonzero(steps))


def rne_shift_values(w: Tensor, bits: int) -> Tensor:
    """Weights that lie on the grid of so many bits, as int32 codes."""
    return torch.round(w.double() * 2 ** (bits - 1)).to(torch.int32)
