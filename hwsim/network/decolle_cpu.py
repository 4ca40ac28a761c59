"""A DECOLLE layer on the CPU at speed: the same codes as `decolle_arithmetic.Whole`, from int8 matrix products.

A trace code P is cut into digits of 7 bits. The windows of each digit under the kernel are laid out as one int8 matrix,
which is multiplied with the int8 weights (forward) and with the int8 errors (gradient) into int32, exactly: most of the
work runs in the processor's byte dot products, several times as fast as float32 convolutions. Between the products
numba kernels do each pass over memory once. In steps that neither learn nor vote the readout is skipped.

The int8 product is torch's (`torch._int_mm`). `available` tries it on the largest codes and says why it is not taken:
some processors saturate in it.
"""

import functools
import math

import numpy as np
import torch
from torch import Generator, Tensor

from hwsim.device.integer_codes import weight_code
from hwsim.network import decolle_kernels as kernels
from hwsim.network import decolle_kernels_learn as learning
from hwsim.network.decolle_layer import (
    GAIN,
    MASK,
    SLOPE,
    TRACE,
    Layer,
    Numbers,
    gradient_gain,
    master_codes,
    master_limit,
)  # fmt: skip
from hwsim.network.decolle_rule import DecolleRule
from hwsim.network.decolle_step import draw_words
from hwsim.network.decolle_trace import LayerTrace, Seen
from hwsim.network.threads import share_threads

LARGEST = {"wb": 8, "eb": 8, "sb": 8, "ub": 12, "qb": 16, "pb": 16}
"""Widths whose codes fit into the types used here."""


@functools.lru_cache
def _exact_product() -> bool:
    """Whether torch multiplies int8 matrices exactly, the largest codes included."""
    product = getattr(torch, "_int_mm", None)
    if product is None:
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-127, 128, (2, 64, 512), generator=generator, dtype=torch.int8)
    try:
        for a, b in ((drawn[0], drawn[1]), (torch.full_like(drawn[0], 127), torch.full_like(drawn[1], -127))):
            if not torch.equal(product(a, b.t()), (a.double() @ b.t().double()).int()):
                return False
    except (RuntimeError, NotImplementedError):
        return False
    return True


def available(rule: DecolleRule, device: torch.device) -> tuple[bool, str]:
    """Whether this backend can run these widths here, and why or why not."""
    if device.type != "cpu":
        return False, f"the device is {device.type}"
    if not rule.is_integer:
        return False, "a width is none"
    for name, largest in LARGEST.items():
        if getattr(rule, name) > largest:
            return False, f"{name} is above {largest}"
    if not _exact_product():
        return False, "torch's int8 product is missing or saturates on this processor"
    return True, "int8 products and numba kernels"


class FusedLayer:
    """The state of one layer during one batch; the same methods as `decolle_step.StepLayer`."""

    def __init__(self, layer: Layer, batch: int, trace: LayerTrace):
        share_threads()
        self.layer, self.rule, self.plan, self.trace, self.B = layer, layer.rule, layer.plan, trace, batch
        rule, plan, n = self.rule, self.plan, Numbers(layer)
        self.n = n
        C, H, W = plan.shape
        O, Y, X = plan.out  # noqa: E741
        _, hs, ws = plan.pooled
        k, pad = plan.kernel, plan.padding
        self.K, self.N, self.M = rule.classes, k * k * C, batch * Y * X
        self.edge = (plan.pool - 1) // 2
        self.tables = [
            t.permute(1, 2, 0).reshape(H, W * C).contiguous().numpy() for t in (n.alpha, n.drive_p, n.beta, n.drive_q)
        ]
        self.P, self.Q = np.zeros((batch, H, W * C), np.int32), np.zeros((batch, H, W * C), np.int32)
        assert rule.pb is not None and rule.sb is not None and rule.sig is not None and n.slope is not None
        digits = -(-(rule.pb + 1) // kernels.DIGIT)
        self.padded = np.zeros((digits, batch, H + 2 * pad, (W + 2 * pad) * C), np.int8)
        # Whole channels are copied as the longest words that they consist of.
        self.word = np.dtype(f"i{math.gcd(C, 8)}")
        self.channels = C // self.word.itemsize
        # A kernel of one place meets the digits as they are.
        whole = k == 1 and pad == 0
        self.col = self.padded.reshape(digits, self.M, self.N) if whole else np.empty((digits, self.M, self.N), np.int8)
        self.col_t = torch.from_numpy(self.col)
        self.U, self.R = np.zeros((batch, Y, X, O), np.int16), np.zeros((batch, Y, X, O), np.int32)
        self.top, self.place = np.zeros((batch, hs, ws, O), np.int16), np.zeros((batch, hs, ws, O), np.uint8)
        self.e3, self.e3_sum = np.zeros((batch, Y, X, O), np.int8), np.zeros((batch, O), np.int32)
        self.total, self.part = torch.empty(digits, self.M, O).int(), torch.empty(digits, O, self.N).int()
        self.gradient = np.zeros((O, self.N), np.int64)
        self.raw, self.g = np.zeros((batch, plan.features), np.int32), np.zeros((batch, plan.features), np.int64)
        assert n.top_u is not None and n.sigmoid is not None and n.pooled_sigmoid is not None
        limit = float(n.top_u << n.frac_u)
        self.numbers = (n.gain, n.refract, limit, 2.0**-n.frac_u, n.gamma, n.spike, 2.0**-TRACE)
        self.numbers = tuple(float(x) for x in self.numbers)
        self.slope, self.sigmoid = n.slope.long().numpy(), n.sigmoid.numpy()
        # Sigmoids of more than 7 bits are multiplied in float64, which is exact too.
        self.small = rule.sig < kernels.DIGIT
        self.pooled_sigmoid = n.pooled_sigmoid.numpy().astype(np.int8 if self.small else np.float64)
        self.a = np.zeros((batch, plan.features), self.pooled_sigmoid.dtype)
        readout, feedback = (
            torch.round(x.double() * 2 ** (rule.sb - 1)).view(-1, O, hs, ws).permute(0, 2, 3, 1).flatten(1)
            for x in (layer.readout, layer.feedback)
        )
        self.readout = readout.to(torch.int8 if self.small else torch.float64).t()
        self.feedback = feedback.to(torch.int32).contiguous().numpy()
        weight = master_codes(layer.weight, rule).int().permute(0, 2, 3, 1).reshape(O, self.N)
        self.masters = [weight.contiguous().numpy(), master_codes(layer.bias, rule).int().view(O, 1).numpy()]
        self.codes = [self._codes(m) for m in self.masters]
        self.y, self.best = np.zeros((batch, self.K), np.int64), np.zeros(batch, np.int64)
        self.e1, self.ones = np.zeros((batch, self.K), np.int32), np.ones((batch, self.K), np.int8)
        trace.samples, trace.weights = batch, layer.weight.numel() + layer.bias.numel()
        self._products()

    def prepare(self, x_TBCHW: Tensor) -> Tensor:
        """Inputs as int8, channels last."""
        x = x_TBCHW.reshape(*x_TBCHW.shape[:2], *self.plan.shape)
        return x.to(torch.int8).permute(0, 1, 3, 4, 2).contiguous()

    def forward(self, s: Tensor, t: int) -> Tensor:
        """Spikes of the step for the next layer, [B, h, w, O] int8."""
        n, B, plan, trace = self.n, self.B, self.plan, self.trace
        counts = np.empty((B, 4), np.int64)
        flat = s.numpy().reshape(self.P.shape)
        left = plan.padding * plan.shape[0]
        one = 2.0**-TRACE
        tops = float(n.top_p), float(n.top_q)
        kernels.advance(flat, self.P, self.Q, *self.tables, *tops, one, left, self.padded, counts)
        largest = int(counts[:, 3].max())
        self.digits = max(1, -(-largest.bit_length() // kernels.DIGIT))
        O, Y, X = plan.out  # noqa: E741
        k = plan.kernel
        if self.col.base is not self.padded:
            for d in range(self.digits):
                col = self.col[d].reshape(B, Y, X, k, k * plan.shape[0])
                kernels.windows(self.padded[d].view(self.word), self.channels, col.view(self.word))
        total = self.total[: self.digits].view(-1, O)
        torch._int_mm(self.col_t[: self.digits].view(-1, self.N), self.weight_t, out=total)
        out = np.empty(self.top.shape, np.int8)
        passed = np.empty((B, 3), np.int64)
        kernels.fire(
            total.numpy().reshape(self.digits, self.M, O), self.bias, self.numbers, not self.rule.fixed, self.U, self.R,
            plan.pool, self.edge, self.top, self.place, out, passed,
        )  # fmt: skip
        trace.p[t], trace.q[t], trace.inputs[t] = counts[:, :3].sum(0)
        trace.spikes[t], trace.pooled[t], self.sum_u = passed.sum(0)
        return torch.from_numpy(out)

    def scores(self, mask_BK: Tensor | None) -> Tensor:
        """Class scores y of the step, kept for `learn`; returns their argmax [B], the first on ties."""
        kernels.look_up(self.top.reshape(self.a.shape), self.pooled_sigmoid, self.a)
        a = torch.from_numpy(self.a)
        total = torch._int_mm(a, self.readout) if self.small else (a @ self.readout).long()
        self.mask = self.ones if mask_BK is None else mask_BK.to(torch.int8).numpy()
        kernels.classes(total.numpy(), self.n.frac_o, self.rule.ab, self.mask, self.n.mask, self.y, self.best)
        return torch.from_numpy(self.best.copy())

    def seen(self, *, voted: bool) -> Seen:
        """Where the layer is active at the step that was done."""
        C, H, W = self.plan.shape
        traces = torch.from_numpy(self.P).view(self.B, H, W, C).permute(0, 3, 1, 2) != 0
        fired = torch.from_numpy(self.U).permute(0, 3, 1, 2) >= 0
        features = torch.from_numpy(self.a.reshape(self.top.shape)).permute(0, 3, 1, 2).flatten(1) != 0
        return Seen(traces, fired, features if voted else None)

    def learn(self, target_BK: Tensor, rate: float, t: int, generator: Generator | None, given=None) -> float:
        """One online update from the scores of this step; returns part1 + part2 + part3 of the loss."""
        rule, n, plan, trace, B = self.rule, self.n, self.plan, self.trace, self.B
        frac, eb = rule.ab + MASK, rule.eb
        labels = target_BK.argmax(1).numpy()
        square, trace.scores[t] = learning.class_errors(self.y, self.mask, labels, n.mask, frac, eb, self.e1)
        largest, some, sums = np.zeros(B, np.int64), np.zeros(B, np.int64), np.zeros(B)
        learning.feed_back(self.e1, self.feedback, self.raw, largest)
        size, everywhere = B * plan.features, self.U.size
        mean_u = float(self.sum_u) * n.unit_u / everywhere
        plus = round(20 * rule.l1 / size * 2**GAIN)
        quiet = round(0.1 * rule.l2 / everywhere * 2.0 ** (GAIN + SLOPE)) if mean_u < 0.1 else 0
        top = self.top.reshape(self.raw.shape)
        learning.to_membrane(
            self.raw, kernels.exponent(largest.max()), eb, GAIN - (eb - 1), plus, quiet, top, self.slope, self.sigmoid,
            self.g, largest, some, sums,
        )  # fmt: skip
        trace.features[t] = some.sum()
        # The largest of g includes the places without a maximum, if there are any.
        largest = max(int(largest.max()), quiet if size < everywhere else 0)
        g = self.g.reshape(self.top.shape)
        learning.spread(
            g, self.place, kernels.exponent(largest), eb, -quiet, plan.pool, self.edge, self.e3, some, self.e3_sum
        )
        trace.errors[t] = some.sum()
        trace.learned[t] = 1
        self._update(rate, t, generator, given)
        loss = square * 4.0**-frac / 2
        return loss + 20 * rule.l1 * (float(sums.sum()) / size + 0.01) + 0.1 * rule.l2 * max(0.0, 0.1 - mean_u)

    def _update(self, rate: float, t: int, generator: Generator | None, given) -> None:
        rule, layer = self.rule, self.layer
        O = self.plan.out[0]  # noqa: E741
        e3_t = torch.from_numpy(self.e3).view(self.M, O).t()
        for d in range(self.digits):
            torch._int_mm(e3_t, self.col_t[d], out=self.part[d])
        part, bias = self.part[: self.digits].numpy(), self.e3_sum.sum(0, dtype=np.int32).reshape(1, O, 1)
        if given is None:
            assert generator is not None
            words = draw_words(layer.weight.numel() + O, generator).numpy().view(np.uint16)
        else:
            words = torch.cat([given[0].permute(0, 2, 3, 1).flatten(), given[1]])
            words = torch.floor(words.double() * 65536).long().numpy().astype("u2")
        drawn = (words[: -O or None].reshape(O, -1), words[-O:].reshape(O, 1))
        step = 2 ** (rule.master_frac - (rule.gb - 1))
        totals = np.zeros(4, np.int64)
        for i, sums in enumerate((part, bias)):
            largest, counts = np.zeros(O, np.int64), np.zeros((O, 4), np.int64)
            gradient = self.gradient if i == 0 else np.zeros((O, 1), np.int64)
            learning.add_digits(sums, gradient, largest)
            unit, factor, k = gradient_gain(self.n.unit_p if i == 0 else 1.0, rate)
            e = max(rule.rb, k + kernels.exponent(largest.max() * unit))
            learning.update(
                gradient, drawn[i], e, factor, rule.rb, rule.fixed, step, master_limit(rule), rule.master_frac,
                rule.wb, self.masters[i], self.codes[i], counts,
            )  # fmt: skip
            totals += counts.sum(0)
        self.trace.gradients[t], self.trace.steps[t], self.trace.updates[t] = totals[:3]
        self._products()

    def finish(self) -> None:
        """Write the masters back to the layer."""
        layer, back = self.layer, 2.0**-self.rule.master_frac
        O, C, k, _ = layer.weight.shape  # noqa: E741
        weight = torch.from_numpy(self.masters[0]).view(O, k, k, C).permute(0, 3, 1, 2)
        layer.weight.copy_(weight.double() * back)
        layer.bias.copy_(torch.from_numpy(self.masters[1]).view(O).double() * back)
        self.trace.nonzero_weights = int(np.count_nonzero(self.codes[0]))

    def _codes(self, master: np.ndarray) -> np.ndarray:
        limit = master_limit(self.rule)
        clipped = torch.from_numpy(master).long().clamp(-limit, limit)
        assert self.rule.wb is not None
        return weight_code(clipped, self.rule.master_frac, self.rule.wb).to(torch.int8).numpy()

    def _products(self) -> None:
        self.weight_t = torch.from_numpy(self.codes[0]).t()
        self.bias = self.n.gain_b * self.codes[1][:, 0].astype(np.float64)
