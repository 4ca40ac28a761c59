"""The same networks in snnTorch and SpikingJelly, for `hwsim bench --peers`.

Both get the weights of our network, its BNTT (without offset, eps 1e-4), leak, threshold and subtractive reset without
gradient, and the surrogate of the same shape. snnTorch (BatchNormTT, Leaky) runs time outside; SpikingJelly in its
multi-step mode layer by layer (BatchNormThroughTime, LIFNode). snnTorch resets a step later than we do and SpikingJelly
has its triangle without our factor 0.3: the work is the same, the numbers are not.

Neither is required: `installed` says which there are. They bring other versions of what we pin, so install them with
`pip install --no-deps snntorch` and `pip install --no-deps spikingjelly loguru tqdm`.
"""

import importlib.util
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.network.stepwise import Step
from hwsim.network.vgg_bntt import VggBntt

PEERS = ("snntorch", "spikingjelly")
"""Names of the packages, and of their ways."""


def installed() -> tuple[str, ...]:
    """The peers that can be imported here."""
    return tuple(p for p in PEERS if importlib.util.find_spec(p) is not None)


def peer(name: str, net: VggBntt) -> nn.Module:
    """Our network as the peer runs it: a module from an encoded input [T, B, C, H, W] to (logits [B, K],)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        return (_SnnTorch if name == "snntorch" else _SpikingJelly)(net)


def _copied(to: nn.Module, layer: nn.Module) -> nn.Module:
    to.weight = nn.Parameter(layer.weight.detach().clone())
    return to


def _widths(net: VggBntt) -> list[tuple[nn.Conv2d, str]]:
    return [(net.get_submodule(conv), pool) for conv, _, pool in net.blocks]


class _SnnTorch(nn.Module):
    def __init__(self, net: VggBntt):
        super().__init__()
        import snntorch
        from snntorch import BatchNormTT1d, BatchNormTT2d

        def neuron() -> nn.Module:
            return snntorch.Leaky(beta=net.leak, threshold=net.threshold, spike_grad=Step.apply)

        layers = _widths(net)
        self.pools = [pool for _, pool in layers]
        self.convs = nn.ModuleList(
            _copied(nn.Conv2d(c.in_channels, c.out_channels, 3, padding=1, bias=False), c) for c, _ in layers
        )
        self.norms = nn.ModuleList(BatchNormTT2d(c.out_channels, net.steps, eps=1e-4) for c, _ in layers)
        self.neurons = nn.ModuleList(neuron() for _ in layers)
        self.fc1 = _copied(nn.Linear(net.fc1.in_features, net.fc1.out_features, bias=False), net.fc1)
        self.norm, self.neuron = BatchNormTT1d(net.fc1.out_features, net.steps, eps=1e-4), neuron()
        self.fc2 = _copied(nn.Linear(net.fc2.in_features, net.fc2.out_features, bias=False), net.fc2)

    def forward(self, x_TBCHW: torch.Tensor) -> tuple[torch.Tensor]:
        membranes = [neuron.reset_mem() for neuron in (*self.neurons, self.neuron)]
        total: torch.Tensor | float = 0.0
        for t, x in enumerate(x_TBCHW):
            for i, (conv, norm, neuron) in enumerate(zip(self.convs, self.norms, self.neurons, strict=True)):
                x, membranes[i] = neuron(norm[t](conv(x)), membranes[i])
                if self.pools[i]:
                    x = F.avg_pool2d(x, 2) if self.pools[i] == "A" else F.adaptive_avg_pool2d(x, 1)
            x, membranes[-1] = self.neuron(self.norm[t](self.fc1(x.flatten(1))), membranes[-1])
            total = total + self.fc2(x)
        return (total / len(x_TBCHW),)


class _SpikingJelly(nn.Module):
    def __init__(self, net: VggBntt):
        super().__init__()
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        def fires() -> nn.Module:
            return neuron.LIFNode(
                tau=1 / (1 - net.leak), decay_input=False, v_threshold=net.threshold, v_reset=None, detach_reset=True,
                surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0), step_mode="m",
            )  # fmt: skip

        self.clear = functional.reset_net
        parts: list[nn.Module] = []
        for c, pool in _widths(net):
            conv = layer.Conv2d(c.in_channels, c.out_channels, 3, padding=1, bias=False, step_mode="m")
            norm = layer.BatchNormThroughTime2d(net.steps, c.out_channels, eps=1e-4, step_mode="m")
            parts += [_copied(conv, c), norm, fires()]
            if pool:
                parts.append(layer.AvgPool2d(2, step_mode="m") if pool == "A" else layer.AdaptiveAvgPool2d(1, "m"))
        fc1 = layer.Linear(net.fc1.in_features, net.fc1.out_features, bias=False, step_mode="m")
        norm = layer.BatchNormThroughTime1d(net.steps, net.fc1.out_features, eps=1e-4, step_mode="m")
        parts += [layer.Flatten(step_mode="m"), _copied(fc1, net.fc1), norm, fires()]
        fc2 = layer.Linear(net.fc2.in_features, net.fc2.out_features, bias=False, step_mode="m")
        self.layers = nn.Sequential(*parts, _copied(fc2, net.fc2))

    def forward(self, x_TBCHW: torch.Tensor) -> tuple[torch.Tensor]:
        self.clear(self.layers)
        return (self.layers(x_TBCHW).mean(0),)
