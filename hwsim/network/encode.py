"""Images to spikes: signed Poisson, direct and repeat coding.

The image stays one tensor x_BCHW, normalized by mean and standard deviation; time is made here, never in a data set.

T steps, B batch, C channels, H W image.
"""

import torch

ENCODINGS = ("poisson", "direct", "repeat")


def poisson_spikes(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Signed Poisson spikes for given uniform draws.

        s = sign(x) [2u <= |x|],   u ~ U[0, 1)   so that   P(|s| = 1) = min(1, |x| / 2),  E[s] = clip(x, -2, 2) / 2

    x: normalized image; u: uniform draws whose shape broadcasts with x's. Returns -1, 0 or 1.
    Source: BNTT, arXiv 2010.01729, as in its published code: the image is normalized, so spikes carry a sign.

    >>> poisson_spikes(torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([0.5, 0.0, 0.9])).tolist()
    [-1.0, 0.0, 1.0]
    """
    # Halving is exact, and there are T times fewer images than draws.
    return torch.where(u <= x.abs() / 2, x.sign(), torch.zeros((), dtype=x.dtype, device=x.device))


class _ExpectedPoisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, u):
        ctx.save_for_backward(x)
        return poisson_spikes(x, u)

    @staticmethod
    def backward(ctx, grad_out):
        (x,) = ctx.saved_tensors
        while grad_out.dim() > x.dim():
            grad_out = grad_out.sum(0)
        return 0.5 * (x.abs() < 2) * grad_out, None


def poisson_spikes_expected(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The same spikes with the gradient of their expectation, for attacks; the spikes' own is zero everywhere.

        ds/dx := dE[s]/dx = 0.5 [|x| < 2]

    u: draws of x's shape, or [T, ...] of them, over which the gradient is summed.
    Source: backward pass differentiable approximation, Athalye et al., ICML 2018, of the expectation above.

    >>> x = torch.tensor([1.0, -3.0], requires_grad=True)
    >>> poisson_spikes_expected(x, torch.zeros(4, 2)).sum().backward(); x.grad.tolist()
    [2.0, 0.0]
    """
    return _ExpectedPoisson.apply(x, u)


def encode(
    x_BCHW: torch.Tensor, steps: int, how: str, generator: torch.Generator | None = None, *, expected: bool = False
) -> torch.Tensor:
    """A batch of images as input over time.

    poisson: [T, B, C, H, W] fresh signed spikes at every step, from `generator` (on x's device).
    direct:  [1, B, C, H, W] the analog image once; the network computes its first layer once and injects the result at
             every step ("learned convolutional encoder", Kim et al., ICASSP 2022).
    repeat:  [T, B, C, H, W] the analog image at every step; the same currents as direct, computed T times.
    expected: Poisson spikes carry the gradient of their expectation, in place of none.
    Raises `ValueError` for any other word.
    """
    if how not in ENCODINGS:
        raise ValueError(f"encode: found '{how}'; it can be {', '.join(ENCODINGS)}")
    if how == "direct":
        return x_BCHW.unsqueeze(0)
    if how == "repeat":
        return x_BCHW.unsqueeze(0).expand(steps, *x_BCHW.shape)
    x = x_BCHW.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    u = torch.rand(steps, B, H, W, C, generator=generator, dtype=x.dtype, device=x.device).permute(0, 1, 4, 2, 3)
    return poisson_spikes_expected(x, u) if expected else poisson_spikes(x, u)
