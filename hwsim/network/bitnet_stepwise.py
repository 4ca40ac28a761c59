"""BITnet step by step in plain torch: time outside, layers inside, one autograd graph over everything.

Slow and simple on purpose: float clamp, max_pool2d, and a spike whose gradient is written as the surrogate says. It is
the yardstick of `hwsim bench --bitnet` and the independent reference of the tests; nothing trains with it. Weights lie
in no store. The gradients are S1, S2 and S3 of `bitnet_neuron.py`, ours.

B batch, C channels, H W image, K classes.
"""

import torch
import torch.nn.functional as F

from hwsim.network.bitnet import LAYERS, Bitnet


class _Spike(torch.autograd.Function):
    """[c >= 1], with derivative 1, or the triangle max(0, 1 - |c - 1|)."""

    @staticmethod
    def forward(ctx, c, triangle):
        ctx.save_for_backward(c if triangle else None)
        return (c >= 1).to(c.dtype)

    @staticmethod
    def backward(ctx, grad):
        (c,) = ctx.saved_tensors
        return grad if c is None else grad * (1 - (c - 1).abs()).clamp(min=0), None


def stepwise_counts(net: Bitnet, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """(spikes of mlp1 over all steps [B, K], the spikes of every step and layer before pooling) of a network's own
    weights."""
    membranes: list = [0.0] * len(LAYERS)
    total, spikes = 0.0, []
    for _ in range(net.steps):
        x = x_BCHW
        spikes.append([])
        for i, name in enumerate(LAYERS):
            layer = net.get_submodule(name)
            if name == "mlp1":
                drive = F.linear(x.flatten(1), layer.weight, layer.bias)
            else:
                drive = F.conv2d(x, layer.weight, layer.bias, padding=1)
            c = membranes[i] + drive.clamp(0, 1)
            s = _Spike.apply(c, net.surrogate == "S3")
            membranes[i] = c - (s if net.surrogate == "S2" else s.detach())
            spikes[-1].append(s)
            x = F.max_pool2d(s, 2) if i < len(net.pools) and net.pools[i] else s
        total = total + s
    return total, spikes
