"""One network in several processes: the part of a batch that each takes, and what they must tell each other.

Every process holds the same weights and runs an equal share of each batch. Nothing here sends anything: whoever starts
the processes gives `gather`.

Synchronised BNTT. With mean_r and var_r of the share of process r = 1 … R, all of n numbers a step and channel,

    mean = sum_r mean_r / R         var = sum_r (var_r + (mean_r - mean)²) / R          in float64

are the statistics of the whole batch: no difference of large numbers. Its gradient needs the sums of dm and of dm·xhat
over the whole batch, divided by R n; as each share divides by its own n, it takes their means over the processes. The
gains' gradient stays that of the share: it is averaged with those of the weights.
Source: Chan, Golub, LeVeque 1983 (merged moments); Ioffe & Szegedy 2015 (gradient of batch statistics).

T steps, C channels, R processes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Share:
    """The share of process `rank` of `ranks`.

    gather: a tensor of this process → those of all, stacked in the order of ranks, [R, ...]; all processes call it
    alike. Its gradient reaches every process's own tensor, summed over the processes.
    """

    rank: int
    ranks: int
    gather: Callable[[torch.Tensor], torch.Tensor]

    def of(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This process's part of a whole batch that lies along `dim`.

        Raises `ValueError` if the processes would not get equal parts.

        >>> Share(1, 2, torch.stack).of(torch.arange(6)).tolist()
        [3, 4, 5]
        """
        if x.shape[dim] % self.ranks:
            raise ValueError(f"share: a batch of {x.shape[dim]} for {self.ranks} processes")
        return x.chunk(self.ranks, dim)[self.rank]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, in x's type."""
        return self.gather(x.double()).mean(0).to(x.dtype)

    def statistics(self, mean_TC: torch.Tensor, var_TC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of the whole batch, of those of the shares."""
        mean_RTC, var_RTC = self.gather(torch.stack([mean_TC, var_TC]).double()).unbind(1)
        mean = mean_RTC.mean(0)
        var = (var_RTC + (mean_RTC - mean).square()).mean(0)
        return mean.to(mean_TC.dtype), var.to(var_TC.dtype)
