"""A BNTT VGG as the published codes run it: time outside, layers inside, T batch norms a layer, plain autograd.

Slow and simple on purpose. It is the yardstick of `hwsim bench` and the independent reference of the tests; nothing
trains with it. Weights lie in no store.

T steps, B batch, C channels, H W image, K classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.network.layer import BNTT
from hwsim.network.surrogate import TRIANGLE_SLOPE
from hwsim.network.vgg_bntt import VggBntt


class Step(torch.autograd.Function):
    """1 where the input is above 0; its gradient is the triangle of `surrogate.py`."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.gt(v, 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return TRIANGLE_SLOPE * F.threshold(1.0 - v.abs(), 0, 0) * grad


class StepwiseVgg(nn.Module):
    """The same network as a `VggBntt`, with copies of its weights, gains and statistics, run step by step."""

    def __init__(self, net: VggBntt):
        super().__init__()
        self.steps, self.leak, self.threshold = net.steps, net.leak, net.threshold
        self.pools = [pool for _, _, pool in net.blocks]
        self.convs = nn.ModuleList(_copy_conv(net.get_submodule(conv)) for conv, _, _ in net.blocks)
        self.norms = nn.ModuleList(_split(net.get_submodule(bntt), nn.BatchNorm2d) for _, bntt, _ in net.blocks)
        self.fc1, self.fc2 = _copy_linear(net.fc1), _copy_linear(net.fc2)
        self.norm_fc = _split(net.bntt_fc, nn.BatchNorm1d)
        self.train(net.training)

    def forward(self, x_TBCHW: torch.Tensor) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """(logits [B, K], spikes of every step and layer) of an encoded input."""
        membranes: list = [0.0] * (len(self.convs) + 1)
        total, spikes = 0.0, []
        for t in range(self.steps):
            x = x_TBCHW[t] if len(x_TBCHW) > 1 else x_TBCHW[0]
            spikes.append([])
            for i, (conv, norm, pool) in enumerate(zip(self.convs, self.norms, self.pools, strict=True)):
                membranes[i] = self.leak * membranes[i] + norm[t](conv(x))
                x, membranes[i] = self._fire(membranes[i])
                spikes[t].append(x)
                if pool:
                    x = F.avg_pool2d(x, 2) if pool == "A" else F.adaptive_avg_pool2d(x, 1)
            membranes[-1] = self.leak * membranes[-1] + self.norm_fc[t](self.fc1(x.flatten(1)))
            x, membranes[-1] = self._fire(membranes[-1])
            spikes[t].append(x)
            total = total + self.fc2(x)
        return total / self.steps, spikes

    def _fire(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v = u / self.threshold - 1.0
        reset = torch.zeros_like(u)
        reset[v > 0] = self.threshold
        return Step.apply(v), u - reset


def _copy_conv(layer: nn.Conv2d) -> nn.Conv2d:
    copy = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, bias=False)
    return _fill(copy, layer)


def _copy_linear(layer: nn.Linear) -> nn.Linear:
    return _fill(nn.Linear(layer.in_features, layer.out_features, bias=False), layer)


def _fill(copy: nn.Module, layer: nn.Module) -> nn.Module:
    copy.weight = nn.Parameter(layer.weight.detach().clone())
    return copy


def _split(bntt: BNTT, kind: type[nn.Module]) -> nn.ModuleList:
    """A stacked BNTT as T batch norms without offset."""
    norms = nn.ModuleList()
    for t in range(len(bntt.weight)):
        norm = kind(bntt.weight.shape[1], eps=bntt.eps, momentum=bntt.momentum).to(bntt.weight)
        norm.weight = nn.Parameter(bntt.weight[t].detach().clone())
        norm.bias = None
        norm.running_mean.copy_(bntt.running_mean[t])
        norm.running_var.copy_(bntt.running_var[t])
        norms.append(norm)
    return norms
