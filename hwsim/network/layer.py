"""Layers of folded networks: convolution and linear with a weight store, and BNTT with the neuron that it feeds.

A layer runs all T steps at once: time is folded into the batch for the weights and unfolded for the neuron. `weight` is
the full-precision master for ever; what the hardware holds is computed by the layer's store when it is used.

T steps, B batch, C channels, N features, H W image.
"""

import torch
from torch import nn

from hwsim.device.store import Ideal, add_cells
from hwsim.network.convolution import PRECISIONS, convolve, product
from hwsim.network.lif import lif, lif_bntt
from hwsim.network.share import Share


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

    x_TBN: [T, B, N]; returns [T, B, N']. parts: as of `Conv2d`. bias: a number for each output; it lies in no store.
    precision: what is multiplied on CUDA (`convolution.PRECISIONS`); on the CPU it is what is given.
    """

    store = Ideal()

    def __init__(self, inputs: int, outputs: int, bias: bool = False, precision: str = "float32"):
        super().__init__(inputs, outputs, bias=bias)
        self.precision = precision
        add_cells(self)

    def forward(self, x_TBN: torch.Tensor, parts: int = 0) -> torch.Tensor:
        return product(x_TBN, self.store.read(self), self.bias, parts, self.precision)


class BNTT(nn.Module):
    """Batch normalization through time and the LIF neuron that it feeds (the equation stands in `lif.py`).

    `weight`, `running_mean`, `running_var`: [T, C], one row a time step; there is no offset. A network that was trained
    with T steps has statistics for those T only. Running statistics move by `momentum` towards the batch's mean and
    *unbiased* variance, as in torch.nn.BatchNorm2d. Source: arXiv 2010.01729 (eps 1e-4, momentum 0.1).
    """

    eps = 1e-4
    momentum = 0.1
    share: Share | None = None
    """In training, what it is given is a share of the batch that its statistics are of; None: all of it."""

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
        settings = {"eps": self.eps, "leak": leak, "threshold": threshold, "pool": pool, "share": self.share}
        out, count, mean, var = lif_bntt(x_TBCHW, *self.normalization(len(x_TBCHW), self.weight, drive), **settings)
        self.seen(mean, var, x_TBCHW.shape[1] * x_TBCHW.shape[3] * x_TBCHW.shape[4])
        return out, count

    def normalization(self, steps: int, weight: torch.Tensor, drive: float):
        """Gain, mean and variance [T, C] that a pass normalizes with; in training those of the batch, given as None.

        steps, weight: T and the weight that makes the currents, for neurons that hold neither (`Lif`).
        """
        gain = self.weight if drive == 1.0 else self.weight * drive
        return (gain, None, None) if self.training else (gain, self.running_mean, self.running_var)

    @torch.no_grad()
    def seen(self, mean_TC: torch.Tensor, var_TC: torch.Tensor, n: int) -> None:
        """Move the running statistics, in training, towards those of a batch: n numbers a step and channel."""
        if self.training:
            n *= self.share.ranks if self.share else 1
            self.running_mean.lerp_(mean_TC, self.momentum)
            self.running_var.lerp_(var_TC * (n / (n - 1)) if n > 1 else var_TC, self.momentum)
            self.num_batches_tracked += 1


class Lif(nn.Module):
    """The neuron alone, in the place of `BNTT`: no normalization, no parameters, any number of steps."""

    eps = 0.0
    share = None

    def forward(self, x_TBCHW: torch.Tensor, *, leak: float, threshold: float, pool: int = 1, drive: float = 1.0):
        """Currents to spikes: (spikes [T, B, C, h, w], number of spikes per step before pooling [T])."""
        return lif(x_TBCHW, leak=leak, drive=drive, threshold=threshold, pool=pool)

    def normalization(self, steps: int, weight: torch.Tensor, drive: float):
        """Gain, mean and variance [T, C] that change nothing but the current's factor."""
        ones = weight.new_ones(steps, len(weight))
        return drive * ones, torch.zeros_like(ones), ones

    def seen(self, mean_TC: torch.Tensor, var_TC: torch.Tensor, n: int) -> None:
        """There are no running statistics."""
