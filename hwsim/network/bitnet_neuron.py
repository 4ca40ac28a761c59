"""The neuron of BITnet: clamp the drive, integrate, fire at the threshold, subtract it. No leak, no refractory time.

    p_t = clamp(f_t, 0, 1)      c_t = m_{t-1} + p_t      s_t = [c_t >= 1]      m_t = c_t - s_t,      m_0 = 0

A tie fires. The membrane m stays in [0, 1), and in exact arithmetic sum_{t<=T} s_t = floor(sum_{t<=T} p_t): the neuron
is a first-order sigma-delta modulator of its clamped drive. Source: BITnet (preddy5/Buddhi), forward pass of the
published code.

The author's gradient ("bddi") is NOT published, and nothing here is it. The surrogates below are ours, for the same
forward pass. With g_t = dL/ds_t, M_t = [0 <= f_t <= 1] and dc_t = dL/dc_t, from the last step backwards:

    S1   dc_t = g_t + dc_{t+1}                     spike passes its gradient straight through, the reset carries none
    S2   dc_t = g_t                                the reset carries it: dm/dc = 0; exact for the sum of spikes
    S3   dc_t = max(0, 1 - |c_t - 1|) g_t + dc_{t+1}       triangle instead of S1's 1
    dL/df_t = M_t dc_t

S1 counts a drive of step t once for each step that follows: d(sum of s)/dp_t = T - t + 1 in place of 1. S2 is the
default.

T steps, B batch, C channels, H W image, N neurons; f and s are [T, B, ...], m is [B, ...].
"""

from dataclasses import dataclass

import torch

SURROGATES = ("S1", "S2", "S3")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The membrane's type for a drive's: float32, float64 for float64. In fewer bits ties flip (trap 12)."""
    return torch.promote_types(dtype, torch.float32)


def start(drive_TB: torch.Tensor) -> torch.Tensor:
    """Membranes before the first step, for a drive of any number of steps."""
    return torch.zeros_like(drive_TB[0], dtype=wide(drive_TB.dtype))


class _Fire(torch.autograd.Function):
    """(drive [T or 1, B, ...], membranes before [B, ...], T, surrogate) → (spikes [T, B, ...], membranes after)."""

    @staticmethod
    def forward(ctx, drive, m, steps, surrogate):
        p = drive.to(m.dtype).clamp(0, 1)
        spikes = _like(p, steps)
        charge = _like(p, steps) if surrogate == "S3" else None
        for t in range(steps):
            c = m + p[t if len(p) > 1 else 0]
            m = c - torch.ge(c, 1, out=spikes[t])
            if charge is not None:
                charge[t] = c
        ctx.save_for_backward(_passes(drive), charge)
        ctx.rest = (surrogate, drive.dtype)
        return spikes, m

    @staticmethod
    def backward(ctx, grad_spikes, grad_m):
        passes, charge = ctx.saved_tensors
        surrogate, dtype = ctx.rest
        grad_drive, grad_m = _backward(passes, charge, grad_spikes, grad_m, surrogate)
        return grad_drive.to(dtype), grad_m, None, None


@dataclass
class Rewound:
    """A layer's neurons on the way from the last step to the first.

    membrane: after the steps that come next, [B, ...], or None where the surrogate does not ask for it. carried:
    dL/dm there, 0.0 behind the last step.
    """

    membrane: torch.Tensor | None
    carried: torch.Tensor | float = 0.0


class _Refire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, drive, spikes, neurons, surrogate):
        charge = None
        if surrogate == "S3":
            p = drive.to(spikes.dtype).clamp(0, 1)
            charge = _like(p, len(spikes))
            for t in reversed(range(len(spikes))):
                torch.add(neurons.membrane, spikes[t], out=charge[t])
                neurons.membrane = charge[t] - p[t if len(p) > 1 else 0]
        ctx.save_for_backward(_passes(drive), charge)
        ctx.rest = (neurons, surrogate, drive.dtype)
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx, grad_spikes):
        passes, charge = ctx.saved_tensors
        neurons, surrogate, dtype = ctx.rest
        grad_drive, neurons.carried = _backward(passes, charge, grad_spikes, neurons.carried, surrogate)
        return grad_drive.to(dtype), None, None, None


def _passes(drive: torch.Tensor) -> torch.Tensor:
    """Where the clamp lets the gradient pass: also at both bounds, like torch's."""
    return (drive >= 0) & (drive <= 1)


def _like(p_TB: torch.Tensor, steps: int) -> torch.Tensor:
    """An empty tensor for that many steps in the memory format of p."""
    if p_TB.dim() != 5:
        return p_TB.new_empty(steps, *p_TB.shape[1:])
    channels_last = p_TB.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if channels_last else torch.contiguous_format
    shape = (steps * p_TB.shape[1], *p_TB.shape[2:])
    return torch.empty(shape, dtype=p_TB.dtype, device=p_TB.device, memory_format=form).unflatten(0, (steps, -1))


def _backward(
    passes: torch.Tensor, charge: torch.Tensor | None, g: torch.Tensor, carried: torch.Tensor | float, surrogate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dL/df, dL/dm before the first step) from dL/ds and dL/dm after the last one."""
    out = g.new_zeros(passes.shape)
    once = len(passes) == 1
    dc = carried
    for t in reversed(range(len(g))):
        if surrogate == "S2":
            dc = g[t]
        elif surrogate == "S1":
            dc = g[t] + dc
        else:
            dc = (1 - (charge[t] - 1).abs()).clamp_(min=0).mul_(g[t]).add_(dc)
        out[0 if once else t] += dc
    return out.mul_(passes), dc


def fire(
    drive_TB: torch.Tensor, m_B: torch.Tensor, steps: int, surrogate: str = "S2"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(spikes [steps, B, ...], membranes after) of the neuron above, its gradient by the surrogate.

    drive_TB: [steps, B, ...], or [1, B, ...] for a drive that is the same at every step, which then gets the sum of the
    steps' gradients. m_B: membranes before, float32 or float64, whatever the drive is in (also under autocast).

    >>> s, m = fire(torch.tensor([[[0.5, 0.25, -1.0, 7.0]]]), torch.zeros(1, 4), 3)
    >>> s.sum(0).tolist(), m.tolist()
    ([[1.0, 0.0, 0.0, 3.0]], [[0.5, 0.75, 0.0, 0.0]])
    """
    return _Fire.apply(drive_TB, m_B, steps, surrogate)


def refire(drive_TB: torch.Tensor, spikes_TB: torch.Tensor, neurons: Rewound, surrogate: str) -> torch.Tensor:
    """The given spikes, with the gradient of `fire`; `neurons` goes back from after these steps to before them.

    Its membrane is moved at once: c_t = m_t + s_t is exact, m_{t-1} = c_t - p_t is rounded, by at most 6e-8 a step in
    float32. Spikes are given, so that no rounding changes one: membranes serve S3's triangle alone. What it carries is
    moved by the backward pass.
    """
    return _Refire.apply(drive_TB, spikes_TB, neurons, surrogate)


class _OrPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        first, out = None, None
        for k, corner in enumerate(_corners(x)):
            if out is None:
                out, first = corner.clone(), torch.zeros_like(corner, dtype=torch.uint8)
                continue
            first.masked_fill_((corner > out), k)
            out = torch.maximum(out, corner)
        ctx.save_for_backward(first)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx, grad_out):
        (first,) = ctx.saved_tensors
        grad_x = grad_out.new_zeros(ctx.shape)
        for k, corner in enumerate(_corners(grad_x)):
            torch.mul(grad_out, first == k, out=corner)
        return grad_x


def _corners(x: torch.Tensor) -> list[torch.Tensor]:
    """The four elements of every 2x2 window in row-major order; an odd last row or column lies in no window."""
    H, W = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., i:H:2, j:W:2] for i in (0, 1) for j in (0, 1)]


def or_pool(x: torch.Tensor) -> torch.Tensor:
    """Maximum over 2x2 windows, for spikes the logical or; the first maximum of a window takes all of its gradient.

    As torch's max_pool2d, with one byte a window kept for the backward pass. x: [..., H, W].
    """
    return _OrPool.apply(x)
