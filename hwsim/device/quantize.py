"""Every rounding in the library: master weights to the levels that a cell may be asked to hold.

A quantizer turns a master weight (any shape, unit-free) into ``(level, scale)``: `level` is the state in units of full
conductance, `scale` a factor that the digital periphery multiplies in (a 0-d tensor, or 1.0). The weight that a layer
computes with is level * scale. Nothing here waits for the GPU. Spread of the cells is in `variation.py`.

rne = round half to even. n = 2^bits - 1. m = 2^(bits - 1).
"""

import torch
from torch import Tensor

TERNARY_THRESHOLD = 0.05  # of max|w|; Source: the reference's ternary layer, trap B10


def xnor(weight: Tensor, bits: int) -> tuple[Tensor, float]:
    """The reference's fixed grid of 2^bits levels without a zero, ±1/m … ±1; one scale for all networks.

        q     = 2 (rne((w + 1)/2 · n)/n - 1/2)
        level = rne(q · m)/m,   scale = 1

    There is no clamp: beyond ±1 the grid goes on (trap B4). 0 becomes -1 at one bit and +1/m above. Small weights use
    few levels: at 2 bits everything within ±2/3 is ±0.5. The arithmetic is that of the weight's type (float32 in the
    reference), so that ties fall where they fell there.

    Source: the reference's `XNOR_quant`; it is kept for reproducing its numbers, `dorefa` is the corrected quantizer.

    >>> xnor(torch.tensor([-0.7, -0.1, 0.0, 0.9, 1.5]), 2)
    (tensor([-1.0000, -0.5000,  0.5000,  1.0000,  1.5000]), 1.0)
    """
    n, m = 2**bits - 1, 2 ** (bits - 1)
    q = 2 * (torch.round((weight + 1) / 2 * n) / n - 0.5)
    return torch.round(q * m) / m, 1.0


def dorefa(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """DoReFa weights: 2^bits evenly spaced levels ±1/n, ±3/n … ±1 that follow the layer's own range.

        s     = max|tanh w|
        level = (2 rne((tanh(w)/s + 1)/2 · n) - n)/n,   scale = max|w|         bits >= 2
        level = sign(w), sign(0) = +1,                  scale = mean|w|        bits = 1

    The largest weight is always on level ±1, so no level lies outside the cell's range. Zhou et al. leave the levels in
    [-1, 1] for two bits and more; here max|w| follows as a digital scale. A positive factor per layer is invisible
    before BNTT, and with it the straight-through gradient fits the size of the master weight. Weights that are all zero
    have scale 0.

    Source: Zhou et al. 2016, arXiv 1606.06160, equations 8 and 9.

    >>> level, scale = dorefa(torch.tensor([-0.2, -0.05, 0.01, 0.2]), 2)
    >>> (level * 3).round().tolist(), round(scale.item(), 3)
    ([-3.0, -1.0, 1.0, 3.0], 0.2)
    >>> dorefa(torch.tensor([-0.3, 0.0, 0.6]), 1)
    (tensor([-1.,  1.,  1.]), tensor(0.3000))
    """
    if bits == 1:
        return (weight >= 0).to(weight.dtype).mul_(2).sub_(1), weight.abs().mean()
    n = 2**bits - 1
    squashed = torch.tanh(weight)
    top = squashed.abs().amax()
    top = torch.where(top > 0, top, torch.ones_like(top))
    code = torch.round((squashed / top + 1) / 2 * n)
    # n as a tensor: CUDA turns a division by a number into a product with its reciprocal, which can miss a level by
    # 1 ulp and so put 9/15 outside a row of a card that begins at 0.6.
    return (2 * code - n) / torch.full_like(top, n), weight.abs().amax()


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Three levels -1, 0, +1 by a threshold relative to the largest weight.

        d     = 0.05 max|w|
        level = +1 where w >= d;  -1 where w < -d;  0 elsewhere
        scale = mean of |w| over |w| >= d

    A weight exactly at -d counts in the mean and yet becomes 0, as in the reference (trap B10). Use it with
    `straight_through(..., pass_within=1.0)`: the reference stops the gradient where |w| >= 1. Weights that are all zero
    have level 0 and scale 0.

    Source: the reference's ternary layer.

    >>> ternary(torch.tensor([-1.0, -0.01, 0.0, 0.5]))
    (tensor([-1.,  0.,  0.,  1.]), tensor(0.7500))
    """
    size = weight.abs()
    d = TERNARY_THRESHOLD * size.amax()
    kept = size >= d
    up = (weight >= d) & (weight > 0)
    scale = (size * kept).sum() / kept.sum()
    return up.to(weight.dtype) - (weight < -d).to(weight.dtype), scale


def binary(weight: Tensor, bits: int = 1) -> tuple[Tensor, Tensor]:
    """XNOR-Net's binary weights: signs, and one scale for each filter.

        level = sign(w),   sign(0) = 0          scale_o = mean|w_o|, zeros counted

    weight: [O, I, ...]; scale: [O, 1, ...]. A weight that is exactly 0 stays 0: such a cell holds a third state, and
    needs a mask bit in digital hardware. `bits` must be 1. The gradient that goes with it is `xnor_gradient`.

    Source: Rastegari et al. 2016, arXiv 1603.05279, equation 6.

    >>> level, scale = binary(torch.tensor([[-0.25, 0.75], [0.0, 1.0]]))
    >>> level.tolist(), scale.flatten().tolist()
    ([[-1.0, 1.0], [0.0, 1.0]], [0.5, 0.5])
    """
    if bits != 1:
        raise ValueError(f"binary: {bits} bits; a sign has 1")
    over = tuple(range(1, weight.dim()))
    return torch.sign(weight), weight.abs().sum(over, keepdim=True) / weight[0].numel()


def centered(weight: Tensor) -> Tensor:
    """What XNOR-Net's training makes of a master weight before every batch, for good.

        w <- clamp(w - mean of w over its inputs, -1, 1)

    weight: [O, I, ...]; the mean is over I: each kernel element of a filter by itself, a linear layer's whole row.
    Clamping moves the mean, so that doing it twice is not doing it once.

    Source: the published training code of arXiv 1603.05279.

    >>> centered(torch.tensor([[2.0, 0.5, -0.25, -0.25]]))
    tensor([[ 1.0000,  0.0000, -0.7500, -0.7500]])
    """
    return (weight - weight.mean(1, keepdim=True)).clamp(-1.0, 1.0)


def twos_complement(weight: Tensor, bits: int, full_scale: Tensor | float) -> Tensor:
    """Signed whole numbers in two's complement, as an SRAM word holds them; 0 is one of them at every width.

        m     = 2^(bits - 1)
        level = clip(rne(w/F · m), -m, m - 1)/m          held = F · level

    weight: any shape. full_scale: F > 0, the weight that level 1 would be (a number or a 0-d tensor); with F = 0 every
    level is 0. One bit holds -1 and 0: it can only take away.

    >>> twos_complement(torch.tensor([-2.0, -0.6, 0.1, 0.4, 2.0]), 2, 1.0)
    tensor([-1.0000, -0.5000,  0.0000,  0.5000,  0.5000])
    """
    m = 2 ** (bits - 1)
    # Neither as_tensor nor where with a number: both copy it to the GPU and wait.
    full_scale = full_scale if isinstance(full_scale, Tensor) else weight.new_full((), full_scale)
    share = weight / full_scale.masked_fill(full_scale <= 0, torch.inf)
    # Rounding makes -0.0 of small negatives; adding 0 makes it 0.
    return (torch.round(share * m).clamp(-m, m - 1) + 0.0) / m


QUANTIZERS = {"xnor": xnor, "dorefa": dorefa, "ternary": ternary, "binary": binary}

# What a decision boundary is measured in; w is the master weight.
BOUNDARY_UNITS = {"xnor": "w", "dorefa": "tanh(w)/max|tanh w|", "ternary": "w/max|w|", "binary": "w"}


def ternarize(x: Tensor, low: float, high: float) -> Tensor:
    """Three levels by two fixed thresholds: 1 where x >= high, -1 where x <= low, else 0.

    Source: a helper that the reference has and never calls.

    >>> ternarize(torch.tensor([-0.2, 0.0, 0.25]), -0.1, 0.25)
    tensor([-1.,  0.,  1.])
    """
    return (x >= high).to(x.dtype) - ((x <= low) & (x < high)).to(x.dtype)


def levels(quantizer: str, bits: int | None = None) -> list[float]:
    """The levels of a quantizer in units of full conductance, ascending. `bits` is not used by "ternary" and "binary".

    >>> levels("xnor", 2), levels("dorefa", 1), levels("ternary")
    ([-1.0, -0.5, 0.5, 1.0], [-1.0, 1.0], [-1.0, 0.0, 1.0])
    """
    if quantizer == "ternary":
        return [-1.0, 0.0, 1.0]
    if quantizer == "binary":  # that an exact 0 stays 0 is no level to aim at
        return [-1.0, 1.0]
    n, m = 2**bits - 1, 2 ** (bits - 1)
    if quantizer == "xnor":
        return [k / m for k in range(-m, m + 1) if k]
    if quantizer == "dorefa":
        return [(2 * k - n) / n for k in range(n + 1)]
    raise KeyError(quantizer)


def decision_boundaries(quantizer: str, bits: int | None = None) -> list[float]:
    """Where a quantizer changes from one level to the next, ascending, in the unit that BOUNDARY_UNITS names.

        (2j + 1)/n - 1,  j = 0 … n-1        (xnor and dorefa);        ±0.05        (ternary);        0        (binary)

    >>> decision_boundaries("xnor", 1), [round(b, 4) for b in decision_boundaries("dorefa", 2)]
    ([0.0], [-0.6667, 0.0, 0.6667])
    """
    if quantizer == "ternary":
        return [-TERNARY_THRESHOLD, TERNARY_THRESHOLD]
    if quantizer == "binary":
        return [0.0]
    if quantizer not in QUANTIZERS:
        raise KeyError(quantizer)
    n = 2**bits - 1
    return [(2 * j + 1 - n) / n for j in range(n)]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(weight, held, pass_within):
        return held.view_as(held)

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, _, ctx.pass_within = inputs
        if ctx.pass_within is not None:
            ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx, grad):
        if ctx.pass_within is None:
            return grad, None, None
        (weight,) = ctx.saved_tensors
        return grad.masked_fill(weight.abs() >= ctx.pass_within, 0), None, None


def xnor_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """XNOR-Net's gradient of a binarized filter, as the reference has it and never calls.

        m_o = sum|w|/n;  M = m_o where |w| <= 1, else 0;  A_o = sum(sign(w) g)/n
        g'  = (M g + A sign(w)) (1 - 1/I) n

    weight: [O, I, ...], the weight that the layer computed with (or its master); sums run over all but O.
    gradient: g, same shape.   I inputs, n = weights of one output. With I = 1 it is 0.

    Source: the reference's `updateBinaryGradWeight`; Rastegari et al. 2016, arXiv 1603.05279, equation 12.
    """
    n, inputs = weight[0].numel(), weight.shape[1]
    over = tuple(range(1, weight.dim()))
    magnitude = weight.abs().sum(over, keepdim=True) / n
    magnitude = torch.where(weight.abs() > 1, torch.zeros_like(weight), magnitude)
    sign = torch.sign(weight)
    across = sign * (sign * gradient).sum(over, keepdim=True) / n
    return (magnitude * gradient + across) * (1 - 1 / inputs) * n


def straight_through(weight: Tensor, held: Tensor, *, pass_within: float | None = None) -> Tensor:
    """`held`, bit for bit, with the gradient of `weight`: dL/dw := dL/dheld, or 0 where |w| >= pass_within.

    weight: master weight, any shape.   held: what the cells hold, same shape; it gets no gradient.

    It is an autograd Function because ``w + (held - w).detach()`` rounds: three ternary levels become seven.
    Source: Bengio et al. 2013, arXiv 1308.3432 (straight-through estimator); `pass_within`: the reference's ternary.

    >>> w = torch.tensor([0.1, -1.5], requires_grad=True)
    >>> straight_through(w, torch.tensor([1.0, -1.0]), pass_within=1.0).sum().backward()
    >>> w.grad
    tensor([1., 0.])
    """
    if weight.shape != held.shape:
        raise ValueError(f"straight_through: weight has shape {tuple(weight.shape)}, held {tuple(held.shape)}")
    return _StraightThrough.apply(weight, held, pass_within)
