"""Layers of folded networks: convolution and linear with a weight store, and BNTT with the neuron that it feeds.

A layer runs all T steps at once: time is folded into the batch for the weights and unfolded for the neuron. `weight` is
the full-precision master for ever; what the hardware holds is computed by the layer's store when it is used.

T steps, B batch, C channels, N features, H W image.
"""

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.device.store import Ideal, add_cells
from hwsim.network.convolution import PRECISIONS, convolve
from hwsim.network.lif import lif, lif_bntt


class Conv2d(nn.Conv2d):
    """3x3-style convolution whose weights lie in a store. Its state_dict is exactly torch.nn.Conv2d's.

    x_TBCHW: [T, B, C, H, W]; returns [T, B, C', H', W'].
    parts: the input is a whole multiple of 1/parts within +-127/parts (1 for spikes, 4 after 2x2 pooling), so that the
    backward pass can keep it in one byte; 0 for any real input. bias: a number for each output channel; it lies in no
    store. precision: what is multiplied (`convolution.PRECISIONS`).
    """

    store = Ideal()

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, padding: int = 1, bias: bool = False,
        precision: str = "float32",
    ):  # fmt: skip
        super().__init__(inputs, outputs, kernel, padding=padding, bias=bias)
        if precision not in PRECISIONS:
            raise ValueError(f"precision: found '{precision}'; it can be {', '.join(PRECISIONS)}")
        self.precision = precision
        add_cells(self)

    def forward(self, x_TBCHW: torch.Tensor, parts: int = 0) -> torch.Tensor:
        return convolve(x_TBCHW, self.store.read(self), self.bias, self.padding, parts, self.precision)


class Linear(nn.Linear):
    """Linear layer whose weights lie in a store. Its state_dict is exactly torch.nn.Linear's.

    x_TBN: [T, B, N]; returns [T, B, N']. bias: a number for each output; it lies in no store.
    """

    store = Ideal()

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)
        add_cells(self)

    def forward(self, x_TBN: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TBN, self.store.read(self), self.bias)


class BNTT(nn.Module):
    """Batch normalization through time and the LIF neuron that it feeds (the equation stands in `lif.py`).

    `weight`, `running_mean`, `running_var`: [T, C], one row a time step; there is no offset. A network that was trained
    with T steps has statistics for those T only. Running statistics move by `momentum` towards the batch's mean and
    *unbiased* variance, as in torch.nn.BatchNorm2d. Source: arXiv 2010.01729 (eps 1e-4, momentum 0.1).
    """

    eps = 1e-4
    momentum = 0.1

    def __init__(self, steps: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.register_buffer("running_mean", torch.zeros(steps, channels))
        self.register_buffer("running_var", torch.ones(steps, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(steps, dtype=torch.int64))

    def forward(self, x_TBCHW: torch.Tensor, *, leak: float, threshold: float, pool: int = 1, drive: float = 1.0):
        """Currents to spikes: (spikes [T, B, C, h, w], number of spikes per step before pooling [T]).

        drive: factor of the normalized currents (`lif.convention`).
        """
        settings = {"eps": self.eps, "leak": leak, "threshold": threshold, "pool": pool}
        gain = self.weight if drive == 1.0 else self.weight * drive
        if not self.training:
            out, count, _, _ = lif_bntt(x_TBCHW, gain, self.running_mean, self.running_var, **settings)
            return out, count
        out, count, mean, var = lif_bntt(x_TBCHW, gain, **settings)
        with torch.no_grad():
            n = x_TBCHW.shape[1] * x_TBCHW.shape[3] * x_TBCHW.shape[4]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / (n - 1)) if n > 1 else var, self.momentum)
            self.num_batches_tracked += 1
        return out, count


class Lif(nn.Module):
    """The neuron alone, in the place of `BNTT`: no normalization, no parameters, any number of steps."""

    def forward(self, x_TBCHW: torch.Tensor, *, leak: float, threshold: float, pool: int = 1, drive: float = 1.0):
        """Currents to spikes: (spikes [T, B, C, h, w], number of spikes per step before pooling [T])."""
        return lif(x_TBCHW, leak=leak, drive=drive, threshold=threshold, pool=pool)
