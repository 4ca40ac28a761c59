"""DECOLLE as the published code runs it: float32 values, one operation after the other, every step alike.

Reference in tests, where every intermediate value is kept, and yardstick in the benchmark: weights are quantized anew
at every step, the readout runs in the burn-in too, errors and gradients are emulated in float. Only the gradient is
written out instead of recorded by autograd, which makes it faster than the published loop. In float64 with a
weight_mult that is a power of two the emulation rounds as `decolle_arithmetic.Whole` does, but for exact ties; in
float32, or with another weight_mult, a code can differ by one now and then (trap B16).

Source: Schaefer and Joshi, ICONS 2020, sections 3.4 to 3.8. Letters as in `decolle_step.py`.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hwsim.device.integer import clip, quant01, quant_act, quant_err, quant_grad, quant_u, quant_w
from hwsim.network.decolle import Decolle, vote
from hwsim.network.decolle_layer import Layer
from hwsim.network.decolle_step import uniforms


class PublishedLayer:
    """Values of one layer during one batch. W, b: masters; P, Q, R, V, U, S, A, o, y and errors of the last step."""

    def __init__(self, layer: Layer, batch: int, dtype: torch.dtype = torch.float32):
        self.layer, self.rule, self.plan, self.dtype = layer, layer.rule, layer.plan, dtype
        self.c, device = layer.constants(), layer.weight.device
        self.alpha, self.beta = self.c.alpha.to(dtype), self.c.beta.to(dtype)
        self.kappa_m, self.kappa_s = self.c.kappa_m.to(dtype), self.c.kappa_s.to(dtype)
        self.W, self.b = layer.weight.to(dtype) * self.rule.weight_mult, layer.bias.to(dtype) * self.rule.weight_mult
        self.readout, self.feedback = layer.readout.to(dtype), layer.feedback.to(dtype)
        self.P = torch.zeros(batch, *self.plan.shape, dtype=dtype, device=device)
        self.Q = torch.zeros_like(self.P)
        self.R = torch.zeros(batch, *self.plan.out, dtype=dtype, device=device)
        self.S = torch.zeros_like(self.R)

    def forward(self, s: Tensor) -> Tensor:
        """Pooled spikes [B, O, h, w]; the undropped scores y [B, K] are kept."""
        rule, c, plan = self.rule, self.c, self.plan
        wm = rule.weight_mult
        if rule.gb is not None:
            self.W, self.b = clip(self.W / wm, rule.gb) * wm, clip(self.b / wm, rule.gb) * wm
        if rule.rfb is not None:
            nearest = quant01(self.R / c.full_r, rule.rfb)
            if rule.fixed:
                lower = torch.floor(self.R / c.full_r * 2.0**rule.rfb) * 2.0**-rule.rfb
                nearest = torch.where(self.S > 0, nearest, lower)
            self.R = nearest * c.full_r
        P = self.alpha * self.P + self.kappa_m * self.Q
        R = c.gamma * self.R
        Q = self.beta * self.Q + self.kappa_s * s
        top_p, top_q = rule.cap * c.full_p, rule.cap * c.full_q
        if rule.cap != 1:
            P, Q = P.clamp(0, top_p), Q.clamp(0, top_q)
        self.P = P if rule.pb is None else quant01((P / top_p).clamp(0, 1), rule.pb) * top_p
        self.Q = Q if rule.qb is None else quant01((Q / top_q).clamp(0, 1), rule.qb) * top_q
        self.W_used, self.b_used = self.W, self.b
        if rule.wb is not None:
            self.W_used, self.b_used = quant_w(self.W / wm, rule.wb) * wm, quant_w(self.b / wm, rule.wb) * wm
        self.V = F.conv2d(self.P, self.W_used, self.b_used, padding=plan.padding) / self.layer.scale
        self.R_used = R
        self.U = quant_u(self.V - R, rule.ub)
        self.S = (self.U >= 0).to(self.dtype)
        self.R = R + self.S
        edge = (plan.pool - 1) // 2
        out = F.max_pool2d(self.S, plan.pool, plan.pool, edge)
        self.sigmoid = torch.sigmoid(self.U)
        self.A, self.place = F.max_pool2d(self.sigmoid, plan.pool, plan.pool, edge, return_indices=True)
        pooled = quant01(self.A, rule.sig).flatten(1)
        self.o = quant_act(pooled @ self.readout.T / self.layer.readout_scale, rule.ab)[0]
        self.y = (self.o + 1) / 2
        return out

    def scores(self, mask_BK: Tensor | None) -> Tensor:
        """The scores with dropout [B, K]."""
        self.kept = torch.ones_like(self.y) if mask_BK is None else mask_BK.to(self.dtype)
        self.kept = self.kept * self.rule.mask_scale
        self.dropped = self.y * self.kept
        return self.dropped

    def learn(self, target_BK: Tensor, rate: float, generator: Generator | None = None, given=None) -> float:
        """One update; returns the loss, whose three parts are kept. given: uniforms of the weight and the bias."""
        rule, plan = self.rule, self.plan
        B, K = target_BK.shape
        t = target_BK.to(self.dtype)
        square = (self.dropped - t).square()
        self.part1 = (square.sum() / 2 if rule.eb is not None else square.mean()).item()
        self.part2 = (rule.l1 * 20 * F.relu(self.A + 0.01).mean()).item()
        self.part3 = (rule.l2 * 0.1 * F.relu(0.1 - self.U.mean())).item()
        g_y = (self.dropped - t) * self.kept
        self.e1 = quant_err(g_y if rule.eb is not None else 2 / (B * K) * g_y, rule.eb)
        self.e2 = quant_err(self.e1 @ self.feedback, rule.eb)
        gain = self.e2.view_as(self.A) + 20 * rule.l1 / self.A.numel()
        spread = torch.zeros_like(self.U).flatten(2).scatter_(2, self.place.flatten(2), gain.flatten(2))
        quiet = 0.1 * rule.l2 / self.U.numel() if self.U.mean() < 0.1 else 0.0
        self.gU = spread.view_as(self.U) * (self.sigmoid * (1 - self.sigmoid)) - quiet
        self.e3 = quant_err(self.gU, rule.eb)
        pair, want = [plan.padding, plan.padding], [False, True, False]
        self.gW = torch.ops.aten.convolution_backward(
            self.e3, self.P, self.W_used, None, [1, 1], pair, [1, 1], False, [0, 0], 1, want
        )[1]
        self.gb = self.e3.sum((0, 2, 3))
        if rule.gb is None:
            self.stepW, self.stepb = rate * self.gW, rate * self.gb
        else:
            u = given if given is not None else uniforms(self.layer, generator)
            how = {"random_bits": rule.rb, "rate": rate, "weight_mult": rule.weight_mult, "unbiased": rule.fixed}
            self.stepW = quant_grad(self.gW, rule.gb, uniform=u[0], **how)
            self.stepb = quant_grad(self.gb, rule.gb, uniform=u[1], **how)
        self.W, self.b = self.W - self.stepW, self.b - self.stepb
        return self.part1 + self.part2 + self.part3


@torch.no_grad()
def run_published(
    net: Decolle,
    x_TBCXY: Tensor,
    labels_B: Tensor,
    *,
    learn: bool = True,
    rate: float | None = None,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, list[PublishedLayer]]:
    """One batch of `Decolle.run`, with the same draws: (predictions [L, B], classes of the steps [L, T', B], layers).

    The masters of `net` change as there.
    """
    rule, B = net.rule, x_TBCXY.shape[1]
    rate = rule.rate(0) if rate is None else rate
    layers = [PublishedLayer(layer, B, dtype) for layer in net.layers]
    first = rule.burn_in + 1
    steps, target = x_TBCXY.shape[0], F.one_hot(labels_B.long(), rule.classes)
    masks = None
    if rule.dropout > 0 and (learn or rule.drops_in_tests):
        masks = torch.rand((steps - first, len(layers), B, rule.classes), generator=generator) >= rule.dropout
    votes = torch.empty(len(layers), steps - first, B, dtype=torch.int64)
    for t in range(steps):
        s = x_TBCXY[t].to(dtype).view(B, *layers[0].plan.shape)
        for i, layer in enumerate(layers):
            s = layer.forward(s)
            if t < first:
                continue
            votes[i, t - first] = layer.scores(None if masks is None else masks[t - first, i]).argmax(1)
            if learn:
                layer.learn(target, rate, generator)
    for layer in layers:
        layer.layer.weight.copy_(layer.W / rule.weight_mult)
        layer.layer.bias.copy_(layer.b / rule.weight_mult)
    return torch.stack([vote(v, rule.classes) for v in votes]), votes, layers
