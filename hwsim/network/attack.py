"""Attacks on normalized images: FGSM and PGD, with the gradient that a spike coding hides.

A network that draws signed Poisson spikes has no gradient with respect to its pixels: the draw is a comparison.
Naively attacked it looks robust. The expected gradient takes the derivative of the spikes' mean in its place,
0.5 [|x| < 2], summed over the steps, and is averaged over several draws.

    FGSM   x' = clip(x + eps sign(g))
    PGD    x' <- clip(project(x' + alpha sign(g(x'))))       `iterations` times, from x or a random point within eps

clip keeps pixels within 0..1, project within eps of the image; both act in the normalized space, channel by channel.
Sources: Goodfellow et al., arXiv 1412.6572; Madry et al., arXiv 1706.06083; Athalye et al., arXiv 1802.00420.

T steps, B batch, C channels, H W image, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(images [B, C, H, W], labels [B]) → gradient of the loss with respect to the images."""


@dataclass(frozen=True)
class Ball:
    """What an attack may do to normalized pixels: change each by eps (in units of pixels 0..1), and keep it valid."""

    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _constant(self, values, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]

    def radius(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """eps of each channel in the normalized space, [C, 1, 1]."""
        return self.eps / self._constant(self.std, x_BCHW)

    def clip(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels within 0..1."""
        mean, std = self._constant(self.mean, x_BCHW), self._constant(self.std, x_BCHW)
        return torch.minimum(torch.maximum(x_BCHW, -mean / std), (1 - mean) / std)

    def project(self, x_BCHW: torch.Tensor, center_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels within eps of the center's and within 0..1."""
        radius = self.radius(x_BCHW)
        return self.clip(torch.minimum(torch.maximum(x_BCHW, center_BCHW - radius), center_BCHW + radius))


def gradient_of(net, *, draws: int, coding: torch.Generator | None, expected: bool = True) -> Gradient:
    """The gradient of a network's mean cross-entropy, averaged over `draws` spike codings from `coding`.

    The network is taken in evaluation mode with its weights fixed. expected: Poisson spikes by their mean's derivative;
    else the spikes' own, which is zero. A coding that draws nothing is computed once.
    """
    draws = draws if net.coding == "poisson" else 1

    def gradient(x_BCHW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        was = [(p, p.requires_grad) for p in net.parameters()]
        training = net.training
        net.eval().requires_grad_(False)
        total = torch.zeros_like(x_BCHW)
        try:
            for _ in range(draws):
                x = x_BCHW.detach().clone().requires_grad_()
                logits, _ = net.run(net.encode(x, coding, expected=expected))
                loss = F.cross_entropy(logits, y_B)
                if loss.requires_grad:  # naive spikes depend on no pixel
                    total += torch.autograd.grad(loss, x)[0]
        finally:
            for p, required in was:
                p.requires_grad_(required)
            net.train(training)
        return total / draws

    return gradient


def fgsm(x_BCHW: torch.Tensor, y_B: torch.Tensor, gradient: Gradient, ball: Ball) -> torch.Tensor:
    """One step of eps against the sign of the gradient; where that is zero a pixel stays."""
    if ball.eps == 0:
        return x_BCHW
    return ball.clip(x_BCHW + ball.radius(x_BCHW) * gradient(x_BCHW, y_B).sign())


def pgd(
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    gradient: Gradient,
    ball: Ball,
    *,
    iterations: int,
    alpha_share: float,
    start: torch.Generator | None = None,
) -> torch.Tensor:
    """`iterations` steps of alpha = alpha_share eps, each projected. start: draws a random first point within eps."""
    if ball.eps == 0:
        return x_BCHW
    radius, moved = ball.radius(x_BCHW), x_BCHW
    if start is not None:
        u = torch.rand(x_BCHW.shape, generator=start, dtype=x_BCHW.dtype, device=x_BCHW.device)
        moved = ball.project(x_BCHW + radius * (2 * u - 1), x_BCHW)
    for _ in range(iterations):
        moved = ball.project(moved + alpha_share * radius * gradient(moved, y_B).sign(), x_BCHW)
    return moved
