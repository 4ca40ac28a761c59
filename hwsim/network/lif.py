"""The spiking neuron: batch normalization through time, leaky integration, fire, soft reset, for all steps at once.

For every time step t, with per-step mean, var and gain of each channel (BNTT has no offset):

    y_t    = gain_t (x_t - mean_t) / sqrt(var_t + eps)
    pre_t  = leak u_{t-1} + y_t                            u_{-1} = 0
    s_t    = [pre_t / threshold - 1 > 0]                   strict; ds/dv by the triangle surrogate
    u_t    = pre_t - threshold s_t                         soft reset; it carries no gradient

so dL/dpre_t = dL/ds_t ds_t/dpre_t + leak dL/dpre_{t+1}. With batch statistics mean and var depend on x and the usual
batch-norm terms are added. Source: BNTT, arXiv 2010.01729, as in its published code.

Without normalization y_t = drive x_t (`lif`). What leak and drive are is a convention; the published codes have three,
see `convention`.

`lif_bntt_reference` is this in plain torch. The fast backends (`lif_cpu`, `lif_cuda`) offer three functions,
statistics, fire and backward, behind one autograd Function; they keep nothing but x for the backward pass. Which one
runs is a rule: see `choose`.

T steps, B batch, C channels, H W image, h w image after pooling. fc layers have H = W = 1.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hwsim.network.share import Share
from hwsim.network.surrogate import triangle_step

LEAK_RULES = ("plain", "complement", "swapped")


def convention(rule: str, leak: float) -> tuple[float, float]:
    """(what a membrane keeps, drive: the factor of its current) by a leak convention.

        plain        u <- leak u + I                    BNTT, all networks
        complement   u <- leak u + (1 - leak) I         rate versus direct (Kim et al., ICASSP 2022), MLP and VGG5
        swapped      u <- (1 - leak) u + leak I         its VGG9: leak means the opposite (trap 2)

    Raises `ValueError` for any other word.

    >>> convention("complement", 0.75), convention("swapped", 0.75)
    ((0.75, 0.25), (0.25, 0.75))
    """
    if rule not in LEAK_RULES:
        raise ValueError(f"leak rule: found '{rule}'; it can be {', '.join(LEAK_RULES)}")
    return {"plain": (leak, 1.0), "complement": (leak, 1.0 - leak), "swapped": (1.0 - leak, leak)}[rule]


class Backend(NamedTuple):
    """What computes the neuron, and why it was chosen."""

    name: str
    reason: str
    module: ModuleType | None


BACKENDS = ("auto", "reference", "cpu", "cuda")
forced = "auto"
"""Tests and `hwsim bench` set this to one of `BACKENDS`; `auto` applies the rule of `choose`."""


def choose(device: torch.device | str) -> Backend:
    """The backend for tensors on a device: Triton on CUDA, numba on the CPU, plain torch where those cannot run.

    Never silent: the name and the reason are printed by every run and kept in its manifest.
    """
    return _chosen(torch.device(device).type, forced)


@functools.cache
def _chosen(kind: str, wanted: str) -> Backend:
    if wanted == "reference":
        return Backend("reference", "asked for", None)
    if kind == "cuda":
        from hwsim.network import lif_cuda as module
    elif kind == "cpu":
        try:
            from hwsim.network import lif_cpu as module
        except ImportError as e:
            return Backend("reference", f"numba cannot be imported ({e}); slow for large networks", None)
    else:
        return Backend("reference", f"there is no kernel for device '{kind}'", None)
    runs, reason = module.available()
    if not runs:
        return Backend("reference", f"{reason}; slow for large networks", None)
    return Backend(kind, reason, module)


def lif_bntt_reference(
    x_TBCHW, gain_TC, mean_TC, var_TC, *, eps: float, leak: float, threshold: float = 1.0, pool: int = 1
):
    """The equation above in plain torch, step by step, differentiated by autograd.

    mean_TC, var_TC: statistics to normalize with (biased variance); they may depend on x. pool: 2 averages the spikes
    over 2x2 after the neuron. Returns (spikes [T, B, C, h, w], number of spikes per step [T], before pooling).
    """
    # Folded as in the fast backends, so that equal statistics give equal spikes bit for bit.
    scale_TC = gain_TC * (1 / torch.sqrt(var_TC + eps))
    shift_TC = -mean_TC * scale_TC
    y = x_TBCHW * scale_TC[:, None, :, None, None] + shift_TC[:, None, :, None, None]
    u = torch.zeros_like(y[0])
    spikes = []
    for y_t in y:
        pre = leak * u + y_t
        s = triangle_step(pre / threshold - 1)
        u = pre - threshold * s.detach()
        spikes.append(s)
    s_TBCHW = torch.stack(spikes)
    count = s_TBCHW.detach().sum((1, 2, 3, 4), dtype=torch.float64).to(torch.int64)
    if pool > 1:
        s_TBCHW = F.avg_pool2d(s_TBCHW.flatten(0, 1), pool).unflatten(0, s_TBCHW.shape[:2])
    return s_TBCHW, count


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, mean, var, eps, leak, threshold, pool, backend, share):
        training = mean is None
        if training:
            mean, var = backend.statistics(x)
            if share is not None:
                mean, var = share.statistics(mean, var)
        invstd = 1 / torch.sqrt(var + eps)
        scale = gain * invstd
        shift = -mean * scale
        fire = backend.fire
        if any(ctx.needs_input_grad) and hasattr(backend, "fire_and_keep"):
            fire = backend.fire_and_keep  # with what the backward pass of the next layer needs of the spikes
        out, count = fire(x, scale, shift, leak, threshold, pool)
        ctx.save_for_backward(x, mean, invstd, scale, shift)
        ctx.rest = (leak, threshold, pool, training, share if training else None, backend)
        ctx.mark_non_differentiable(count, mean, var)
        return out, count, mean, var

    @staticmethod
    def backward(ctx, grad_out, *_):
        x, mean, invstd, scale, shift = ctx.saved_tensors
        *how, backend = ctx.rest
        grad_x, grad_gain = backend.backward(grad_out, x, mean, invstd, scale, shift, *how)
        return grad_x, grad_gain, *[None] * 8


def lif_bntt(
    x_TBCHW, gain_TC, mean_TC=None, var_TC=None, *, eps: float, leak: float, threshold: float = 1.0, pool: int = 1,
    share: Share | None = None,
):  # fmt: skip
    """Normalize, integrate, fire, reset and pool all steps of a layer, by the backend that `choose` gives.

    mean_TC, var_TC: running statistics (evaluation); None takes those of the batch (training). pool: 1 or 2.
    share: x is a share of the batch, whose statistics are those of all processes; None: x is all of it.
    Returns (spikes [T, B, C, h, w], spikes per step [T], mean [T, C], biased variance [T, C]).
    Raises `ValueError` for what does not fit: the kernels do not check where they read.
    """
    if pool not in (1, 2):
        raise ValueError(f"lif_bntt: pool is {pool}; it can be 1 or 2")
    T, _, C, H, W = x_TBCHW.shape
    if min(H, W) < pool:
        raise ValueError(f"lif_bntt: {H}x{W} positions cannot be pooled over {pool}x{pool}")
    for name, p_TC in (("gains", gain_TC), ("means", mean_TC), ("variances", var_TC)):
        if p_TC is not None and p_TC.shape != (T, C):
            raise ValueError(f"lif_bntt: {name} of shape {tuple(p_TC.shape)}, expected {(T, C)}")
    backend = choose(x_TBCHW.device)
    if backend.module is None:
        if mean_TC is None:
            var_TC, mean_TC = torch.var_mean(x_TBCHW, (1, 3, 4), correction=0)
            if share is not None:
                mean_TC, var_TC = share.statistics(mean_TC, var_TC)
        out, count = lif_bntt_reference(
            x_TBCHW, gain_TC, mean_TC, var_TC, eps=eps, leak=leak, threshold=threshold, pool=pool
        )
        return out, count, mean_TC.detach(), var_TC.detach()
    return _Fused.apply(x_TBCHW, gain_TC, mean_TC, var_TC, eps, leak, threshold, pool, backend.module, share)


def lif(x_TBCHW, *, leak: float, drive: float = 1.0, threshold: float = 1.0, pool: int = 1):
    """The same without normalization: y_t = drive x_t. Returns (spikes [T, B, C, h, w], spikes per step [T]).

    It is `lif_bntt` with mean 0, variance 1 and eps 0, which changes no bit of drive x_t, on the same backends.
    """
    T, _, C, _, _ = x_TBCHW.shape
    state = torch.float32 if x_TBCHW.dtype == torch.bfloat16 else x_TBCHW.dtype
    zero, one = x_TBCHW.new_zeros(T, C, dtype=state), x_TBCHW.new_ones(T, C, dtype=state)
    settings = {"eps": 0.0, "leak": leak, "threshold": threshold, "pool": pool}
    out, count, _, _ = lif_bntt(x_TBCHW, drive * one, zero, one, **settings)
    return out, count
