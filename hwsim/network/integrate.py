"""The neuron of a converted network: it integrates without leak, fires at its threshold, and keeps what is left.

T steps, B batch, N neurons (any shape).
"""

import torch


def integrate_and_fire(
    x_TBN: torch.Tensor, v_BN: torch.Tensor | None, threshold: torch.Tensor | float, *, steps: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Currents to spikes: (spikes [T, B, ...] of 0 and 1, membrane after the last step [B, ...]).

        v <- v + x_t;    s_t = [v >= threshold];    v <- v - threshold s_t

    A tie fires. There is at most one spike a step, however large v is: the surplus stays. v has no lower bound.
    v_BN: membrane before the first step, None is 0; it is not changed. threshold: broadcasts with a step's currents.
    steps: T where the current is the same at every step and x_TBN holds it once.

    Source: reset by subtraction as in the published code of arXiv 2002.10064.

    >>> spikes, v = integrate_and_fire(torch.tensor([[[3.0]], [[0.0]], [[-2.5]]]), None, 1.0)
    >>> spikes.flatten().tolist(), v.item()
    ([1.0, 1.0, 0.0], -1.5)
    """
    T = len(x_TBN) if steps is None else steps
    v = torch.zeros_like(x_TBN[0]) if v_BN is None else v_BN.clone()
    spikes = v.new_empty_strided((T, *v.shape), (v.numel(), *v.stride()))  # each step as the currents lie
    for t in range(T):
        v += x_TBN[0 if steps is not None else t]
        s = torch.ge(v, threshold, out=spikes[t])
        v -= s * threshold
    return spikes, v
