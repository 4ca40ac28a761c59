"""Step functions of spiking neurons and the derivatives that stand in for them in training.

v is the membrane above threshold in units of the threshold: v = u / threshold - 1.
"""

import torch

TRIANGLE_SLOPE = 0.3
"""Height of the triangle surrogate (both published BNTT codes use 0.3)."""


class _TriangleStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad_out):
        (v,) = ctx.saved_tensors
        return grad_out * (TRIANGLE_SLOPE * (1 - v.abs()).clamp(min=0))


def triangle_step(v: torch.Tensor) -> torch.Tensor:
    """Step that fires strictly above threshold, with the triangle surrogate.

        s = [v > 0],   ds/dv := 0.3 max(0, 1 - |v|)

    v: membrane above threshold in units of the threshold, any shape. Returns 0 or 1 in v's dtype.
    Source: BNTT, arXiv 2010.01729, as in its published code (strict comparison; the reset carries no gradient).

    >>> v = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    >>> s = triangle_step(v); s.sum().backward(); s.tolist(), v.grad.tolist()
    ([0.0, 0.0, 1.0], [0.15000000596046448, 0.30000001192092896, 0.15000000596046448])
    """
    return _TriangleStep.apply(v)
