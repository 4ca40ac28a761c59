"""One DECOLLE layer over the steps of one batch, in plain torch on any device: forward, readout, local learning.

Two kinds of arithmetic do exactly the same where every width is set: `Whole` on int64 codes with shifts, and `Real` on
floats that hold the codes (float64 between the products, float32 inside them where their sums stay below 2^24). `Real`
also runs without any of the widths; without one of them it is float32 throughout. `decolle_cpu.py` is the fast form of
the same, `decolle_stepwise.py` the published form on float32 values. The equations (n: a number over a power of two):

    P, Q     traces of the inputs s:  P' = alpha P + drive_p Q,  Q' = beta Q + drive_q s, clamped, rounded
    U        = round(gain sum(w P) + gain_b b - refract R),  clamped;   S = [U >= 0]
    R'       = round(gamma R + spike S);  in profile `fixed` rounded down where S = 0, so that it decays (trap B10)
    a        = sigmoid of the pooled U, o = sum(Wr a)/scale, y = (o + 1)/2, dropped at random
    e1       = Qe((y - t) mask), e2 = Qe(e1 Wfa), e3 = Qe(unpool(e2 + l1 term) sigmoid'(U) - l2 term)
    W        = W - steps(gradient of (P, e3)), then the same for the bias

Source: Schaefer and Joshi, ICONS 2020; sections 3.4 to 3.7.

B batch, C H W input, O outputs, K classes, F features.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hwsim.device import integer, integer_codes
from hwsim.network.decolle_arithmetic import Real, Whole
from hwsim.network.decolle_layer import GAIN, MASK, SLOPE, TRACE, Layer, Numbers, gradient_gain, master_limit
from hwsim.network.decolle_trace import LayerTrace, Seen

WORDS = 16
"""Bits of a drawn word; u = (word + 1/2)/2^16."""


def draw_words(count: int, generator: Generator) -> Tensor:
    """Random 16-bit words as int16, four from each 64-bit draw; on the generator's device."""
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    return draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]


def uniforms(layer: Layer, generator: Generator) -> tuple[Tensor, Tensor]:
    """The uniforms of one update for weight [O, C, k, k] and bias [O]; words where rb is set, in one draw.

    Those of the weight are drawn in the order output, kernel row, kernel column, channel.
    """
    weight, bias = layer.weight, layer.bias
    count = weight.numel() + bias.numel()
    if layer.rule.rb is None:
        u = torch.rand(count, generator=generator, device=generator.device)
    else:
        u = ((draw_words(count, generator).int() & 0xFFFF).float() + 0.5) * 2.0**-WORDS
    O, C, k, _ = weight.shape  # noqa: E741
    return u[: weight.numel()].view(O, k, k, C).permute(0, 3, 1, 2), u[weight.numel() :]


class StepLayer:
    """The state of one layer during one batch, and what it does at each step."""

    def __init__(self, layer: Layer, batch: int, arithmetic: Whole | Real, trace: LayerTrace):
        self.layer, self.rule, self.plan, self.a, self.trace = layer, layer.rule, layer.plan, arithmetic, trace
        self.n = Numbers(layer)
        a, rule, n = arithmetic, self.rule, self.n
        self.alpha, self.beta = a.number(n.alpha), a.number(n.beta)
        self.drive_p, self.drive_q = a.number(n.drive_p), a.number(n.drive_q)
        exact = isinstance(a, Whole) or a.exact
        # Without gb the masters are in units of wm; with it in steps of their grid.
        self.frac_w = rule.master_frac if rule.gb is not None else 0
        masters = (layer.weight.double() * 2.0**self.frac_w, layer.bias.double() * 2.0**self.frac_w)
        self.w, self.b = (a.number(torch.round(m) if exact else m) for m in masters)
        sb = 1.0 if rule.sb is None else 2.0 ** (rule.sb - 1)
        self.readout = a.number((layer.readout.double() * sb).T)
        self.feedback = a.number(layer.feedback.double() * sb)
        device = layer.weight.device
        self.P = torch.zeros(batch, *self.plan.shape, dtype=a.dtype, device=device)
        self.Q = torch.zeros_like(self.P)
        self.R = torch.zeros(batch, *self.plan.out, dtype=a.dtype, device=device)
        tables = (n.sigmoid, n.pooled_sigmoid, n.slope)
        self.sigmoid, self.pooled_sigmoid, self.slope = (None if t is None else t.to(device) for t in tables)
        trace.samples, trace.weights = batch, layer.weight.numel() + layer.bias.numel()
        self._weights()

    def prepare(self, x_TBCHW: Tensor) -> Tensor:
        """The input of the first layer as this arithmetic has it."""
        return x_TBCHW.to(self.a.dtype).reshape(*x_TBCHW.shape[:2], *self.plan.shape)

    def forward(self, s: Tensor, t: int) -> Tensor:
        """Spikes of the step for the next layer, [B, O, h, w]."""
        a, n, rule, trace = self.a, self.n, self.rule, self.trace
        p = self.alpha * self.P + self.drive_p * self.Q
        q = self.beta * self.Q + self.drive_q * s
        self.P = a.rounded(p if n.top_p is None else p.clamp(0, n.top_p), TRACE, rule.pb is not None)
        self.Q = a.rounded(q if n.top_q is None else q.clamp(0, n.top_q), TRACE, rule.qb is not None)
        total = a.conv(self.P, self.w_code, self.plan.padding)
        if n.top_sum is not None and isinstance(a, Whole):
            total = total.clamp(-n.top_sum, n.top_sum)
        u = n.gain * total + n.gain_b * self.b_code.view(-1, 1, 1) - n.refract * self.R
        if n.top_u is not None:
            u = u.clamp(-(n.top_u << n.frac_u), n.top_u << n.frac_u)
        self.U = a.rounded(u, n.frac_u, rule.ub is not None)
        fired = self.U >= 0
        r = n.gamma * self.R + n.spike * fired
        self.R = a.rounded(r, TRACE, rule.rfb is not None)
        if rule.fixed and rule.rfb is not None:
            self.R = torch.where(fired, self.R, a.down(r, TRACE))
        out = self._pool(fired.float())[0]
        for name, x in (("inputs", s), ("spikes", fired), ("pooled", out), ("p", self.P), ("q", self.Q)):
            getattr(trace, name)[t] = int(x.count_nonzero())
        return out.to(a.dtype)

    def scores(self, mask_BK: Tensor | None) -> Tensor:
        """Class scores y of the step, kept for `learn`; returns their argmax [B], the first on ties."""
        a, n, rule = self.a, self.n, self.rule
        self.top, self.place = self._pool(self.U)
        if rule.ub is None:
            pooled = torch.sigmoid(self.top)
            pooled = pooled if rule.sig is None else torch.round(pooled * 2.0**rule.sig)
        else:
            table = self.sigmoid if self.pooled_sigmoid is None else self.pooled_sigmoid
            pooled = a.number(table[self.top.long() + n.top_u])
        self.features = pooled.flatten(1)
        total = a.matmul(self.features, self.readout)
        if rule.ab is None:
            self.y = (total * 2.0**-n.frac_o + 1) / 2
        elif isinstance(a, Whole):
            self.y = integer_codes.act_code(total, n.frac_o, rule.ab)[0] + 2 ** (rule.ab - 1)
        else:
            o = integer.quant_act(total * 2.0**-n.frac_o, rule.ab)[0]
            self.y = (o + 1) * 2.0 ** (rule.ab - 1)
        self.kept = None if mask_BK is None else mask_BK.to(a.dtype)
        return (self.y if self.kept is None else self.y * self.kept).argmax(1)

    def seen(self, *, voted: bool) -> Seen:
        """Where the layer is active at the step that was done."""
        return Seen(self.P != 0, self.U >= 0, self.features != 0 if voted else None)

    def learn(self, target_BK: Tensor, rate: float, t: int, generator: Generator | None, given=None) -> float:
        """One online update from the scores of this step; returns part1 + part2 + part3 of the loss.

        given: uniforms of the weight's and the bias's shapes, instead of draws.
        """
        a, n, rule, plan, trace = self.a, self.n, self.rule, self.plan, self.trace
        B, K = target_BK.shape
        frac_y = rule.ab or 0
        kept = torch.ones_like(self.y) if self.kept is None else self.kept
        difference = self.y * kept * n.mask - a.number(target_BK.double() * 2.0 ** (frac_y + MASK))
        g = difference * kept * n.mask
        square = difference.double().square().sum().item() * 4.0 ** -(frac_y + MASK)
        e1 = a.error(g, rule.eb, frac_y + 2 * MASK)
        e1 = e1 if rule.eb is not None else e1 * (2 / (B * K))
        e2 = a.error(a.matmul(e1, self.feedback), rule.eb, rule.sb - 1 if rule.sb is not None else 0)
        size, everywhere = B * plan.features, self.U.numel()
        shift = GAIN - (rule.eb - 1 if rule.eb is not None else 0)
        gain = e2 * 2**shift + round(20 * rule.l1 / size * 2**GAIN)
        at = self.place.flatten(2)
        spread = torch.zeros_like(self.U.flatten(2)).scatter_(2, at, gain.view_as(at)).view_as(self.U)
        if self.slope is None:
            slope = torch.sigmoid(self.U) * torch.sigmoid(-self.U) * 2.0**SLOPE
        else:
            slope = a.number(self.slope[self.U.long() + n.top_u])
        mean_u = float(self.U.double().sum()) * n.unit_u / everywhere
        quiet = round(0.1 * rule.l2 / everywhere * 2.0 ** (GAIN + SLOPE)) if mean_u < 0.1 else 0
        e3 = a.error(spread * slope - quiet, rule.eb, GAIN + SLOPE)
        gw = a.conv_gradient(self.P, self.w_code, e3, plan.padding)
        gb = e3.sum((0, 2, 3))
        sigmoid = torch.sigmoid(self.top.double() * n.unit_u)
        loss = square / 2 if rule.eb is not None else square / (B * K)
        loss += 20 * rule.l1 * (sigmoid.mean().item() + 0.01) + 0.1 * rule.l2 * max(0.0, 0.1 - mean_u)
        for name, x in (("scores", e1), ("features", e2), ("errors", e3)):
            getattr(trace, name)[t] = int(x.count_nonzero())
        trace.gradients[t] = int(gw.count_nonzero() + gb.count_nonzero())
        trace.learned[t] = 1
        self.gw, self.gb, self.e1, self.e2, self.e3 = gw, gb, e1, e2, e3
        self._update(rate, t, given if given is not None else self._draw(generator))
        return loss

    def finish(self) -> None:
        """Write the masters back to the layer."""
        layer, back = self.layer, 2.0**-self.frac_w
        layer.weight.copy_(self.w.double() * back)
        layer.bias.copy_(self.b.double() * back)
        self.trace.nonzero_weights = int(self.w_code.count_nonzero())

    def _draw(self, generator: Generator | None):
        return None if self.rule.gb is None else uniforms(self.layer, generator)

    def _update(self, rate: float, t: int, u) -> None:
        rule, n, moved, changed = self.rule, self.n, 0, 0
        for i, name in enumerate(("w", "b")):
            gradient = (self.gw, self.gb)[i]
            before = self._clipped(getattr(self, name))
            if rule.gb is None:
                # The gradient in the published units: P in full-scale units, error codes over their largest.
                unit = (n.unit_p if name == "w" else 1.0) * (2.0 ** (1 - rule.eb) if rule.eb is not None else 1.0)
                step = gradient * (rate * unit / rule.weight_mult)
            else:
                gain = gradient_gain(n.unit_p if name == "w" else 1.0, rate)
                steps = self.a.steps(gradient, gain, rule.rb, u[i].to(gradient.device), rule.fixed)
                step = steps * 2 ** (self.frac_w - (rule.gb - 1))
            after = before - step
            moved += int(step.count_nonzero())
            changed += int((self._clipped(after) != before).sum())
            setattr(self, name, after)
        self.trace.steps[t], self.trace.updates[t] = moved, changed
        self._weights()

    def _clipped(self, master: Tensor) -> Tensor:
        if self.rule.gb is None:
            return master
        limit = master_limit(self.rule)
        return master.clamp(-limit, limit)

    def _weights(self) -> None:
        wb = self.rule.wb
        self.w_code = self.a.weight(self._clipped(self.w), self.frac_w, wb)
        self.b_code = self.a.weight(self._clipped(self.b), self.frac_w, wb)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pool = self.plan.pool
        kind = x.to(torch.float64) if x.dtype == torch.int64 else x
        out, place = F.max_pool2d(kind, pool, pool, (pool - 1) // 2, return_indices=True)
        return out.to(x.dtype), place
