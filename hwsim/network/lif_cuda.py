"""The fused BNTT + LIF operation on CUDA: Triton kernels. The equation and its derivative stand in `lif.py`.

Why layer by layer. A network that walks through time on the outside launches thousands of small kernels a training step
and moves, by estimate, 230 bytes for every neuron and time step. All that time couples is one membrane value a neuron;
so here the currents of all steps are one tensor [T, B, H, W, C], and a program keeps the membranes of its neurons in
registers while it walks through T. What is left is memory traffic. Bytes per neuron and time step, in brackets with the
fused 2x2 pool; s is the size of a number, 4 for float32 (and tf32, which is float32 in memory), 2 for bf16:

                                                            of a number s       float32          bf16
    moments     read x                                          1                 4                2
    membrane    read x, write the spikes                        2  (5/4)          8    (5)         4   (2.5)
                and in short, for the backward pass                               0.125 (0.25)     0.125 (0.25)
    unpack      read those, write them for the weights          1  (1/4)          4.125 (1.25)     2.125 (0.75)
    membrane    again, in the backward pass: read x, write v    2                 8                4
    reverse     read v, x and the spikes' gradient, write dm    4  (13/4)        16   (13)         8   (6.5)
    normalize   read dm and x, write the currents' gradient     3                12                6
                                                       total                     52.25 (43.5)     26.25 (22)

Evaluation needs neither moments nor normalize, and writes no short copy. What convolutions read and write comes on top
(docs/cuda.md). Kept for the backward pass: x and the short copy, 4.125 and 2.125 bytes (4.25, 2.25); with the spikes
themselves in its place it would be 8 and 4, for 8 % less traffic. v = pre / threshold - 1 and then dm = dL/dpre live in
the buffer that becomes the currents' gradient. Both uses of membrane are one kernel, so that the backward pass meets
the spikes of the forward pass.

bf16. Currents come from the tensor cores as bfloat16 and are kept so; spikes are written as bfloat16, in which they and
their averages are exact, so that nothing is cast between layers. A kernel widens what it reads: membranes, statistics,
sums and all arithmetic are float32. Rounded to bfloat16 (half a unit of the 8th bit, 0.2 %) are only v, dm and the
currents' gradient where they lie in memory; which neurons fire does not depend on that.

Tiles. The innermost memory axis is C. A tile is 2048 neurons: BLOCK_C channels (at most 32, one 128-byte line of
float32) times rows; with 4 warps 16 neurons a thread, so that a quarter of full occupancy has 32 KB of loads in flight
on each multiprocessor, about what hides the memory's latency. A row is an image position; with the pool it is a 2x2
window, whose four positions are the tile's first axis: Triton (from 3.7) spreads C over the threads, then rows, and
leaves the first axis to each thread, so that pooling needs no exchange. Windows at an odd border are incomplete: they
count spikes, feed the batch statistics and give no output.

Grids. membrane and reverse: ceil(rows / BLOCK_R) * ceil(C / BLOCK_C) programs on one axis (8,192 for 256 images of
32x32x64), channel blocks adjacent because they share memory pages. normalize: as many for every t. moments: at most
64 for every t and channel block, each with a contiguous run of rows.

Why no atomics. Sums in order of arrival differ from run to run, and one spike that flips makes other logits of these
networks. So every program stores its partial sums and a second pass adds them in a fixed order; tile sizes depend on
the shape alone; two runs agree bit for bit. Multiply-add fusion is off: leak u + (scale x + shift) is rounded after
every operation, as in `lif_cpu` and in plain torch, so that from the same scale and shift all of them fire the same
spikes. The arithmetic hides behind the memory traffic anyway.

leak and threshold are compile-time constants, because Triton rounds a run-time Python float to float32 even for a
float64 kernel. Each new pair compiles once, in seconds, cached on disk.

T steps, B batch, C channels, H W image, h w image after pooling, K positions of a window, R rows, P programs.
"""

from types import SimpleNamespace

import torch

from hwsim.config import UserError
from hwsim.network import lif_cuda_kernels as kernels
from hwsim.network.lif_cuda_kernels import triton
from hwsim.network.spikes_cuda import Kept, remember
from hwsim.network.surrogate import TRIANGLE_SLOPE

_TILE = 2048
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
_MOMENT_PROGRAMS = 64


def available() -> tuple[bool, str]:
    """Whether these kernels can run here, and why (or why not)."""
    if isinstance(triton, SimpleNamespace):
        return False, "triton cannot be imported"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; Triton needs 8.0"
    return True, f"triton {triton.__version__} on {torch.cuda.get_device_name()}"


def _last(x_TBCHW: torch.Tensor) -> torch.Tensor:
    """The same values as [T, B, H, W, C] in that memory order; copied only where they lie otherwise."""
    return x_TBCHW.permute(0, 1, 3, 4, 2).contiguous()


def _checked(x_TBCHW: torch.Tensor) -> torch.Tensor:
    if x_TBCHW.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise UserError(
            f"lif_cuda: currents are {x_TBCHW.dtype}; float32, float64 and bfloat16 are possible; cast them first"
        )
    if isinstance(triton, SimpleNamespace):
        raise UserError("lif_cuda: triton cannot be imported; pip install triton, or choose the reference backend")
    T, B, C, H, W = x_TBCHW.shape
    if B * H * W >= 2**31 - _TILE:
        raise UserError(f"lif_cuda: {B} images of {H}x{W} have too many positions (2^31); make the batch smaller")
    return _last(x_TBCHW)


def _state(x: torch.Tensor) -> torch.dtype:
    """The type of membranes, statistics and sums."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _blocks(x_TBHWC: torch.Tensor, rows: int, positions: int = 1) -> tuple[dict[str, int], int]:
    """Tile of about 2048 neurons for `rows` windows of `positions`, and the number of tiles."""
    C = x_TBHWC.shape[-1]
    block_c = min(triton.next_power_of_2(C), 64 if x_TBHWC.dtype == torch.bfloat16 else 32)
    block_r = min(triton.next_power_of_2(rows), _TILE // (block_c * positions))
    return {"BLOCK_R": block_r, "BLOCK_C": block_c}, triton.cdiv(rows, block_r) * triton.cdiv(C, block_c)


def _per_channel(like: torch.Tensor, *params_TC: torch.Tensor) -> list[torch.Tensor]:
    return [p.to(_state(like)).contiguous() for p in params_TC]


def statistics(x_TBCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over B, H, W of every time step and channel, in one pass over x.

    x_TBCHW: float32, float64 or bfloat16, channels-last in memory. Returns (mean [T, C], variance [T, C]) in x's type,
    of bfloat16 in float32. Partial means and squared deviations are kept in that type and merged in float64.
    Source: Welford 1962; Chan, Golub, LeVeque 1983 (pairwise merge). Raises `UserError` for other types.
    """
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    rows = B * H * W
    block, _ = _blocks(x, rows)
    tiles = triton.cdiv(rows, block["BLOCK_R"])
    rows_each = triton.cdiv(tiles, _MOMENT_PROGRAMS) * block["BLOCK_R"]
    programs, channel_blocks = triton.cdiv(rows, rows_each), triton.cdiv(C, block["BLOCK_C"])
    partial, mean, var = (x.new_empty(shape, dtype=_state(x)) for shape in ((programs, T, 2, C), (T, C), (T, C)))
    with torch.cuda.device_of(x):
        kernels.moments[(programs * channel_blocks, T)](x, partial, rows, rows_each, C, rows * C, **block, **_LAUNCH)
        kernels.merge[(channel_blocks, T)](
            partial, mean, var, rows, rows_each, C, BLOCK_P=triton.next_power_of_2(programs),
            BLOCK_C=block["BLOCK_C"], **_LAUNCH,
        )  # fmt: skip
    return mean, var


def fire(x_TBCHW, scale_TC, shift_TC, leak: float, threshold: float, pool: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes of the normalized currents scale x + shift, and how many fired at each time step.

    x_TBCHW: currents, float32, float64 or bfloat16, channels-last in memory. pool: 1, or 2 for 2x2 averages of the
    spikes (an odd last row or column is counted but has no output). Returns (spikes [T, B, C, h, w] in x's type,
    channels-last; counts [T] int64, on the device). Raises `UserError` for other types.
    """
    return _fired(x_TBCHW, scale_TC, shift_TC, leak, threshold, pool, 0)


def fire_and_keep(x_TBCHW, scale_TC, shift_TC, leak, threshold, pool) -> tuple[torch.Tensor, torch.Tensor]:
    """The same; the spikes carry their short copy for the backward pass of what reads them (`spikes_cuda.recall`)."""
    return _fired(
        x_TBCHW, scale_TC, shift_TC, leak, threshold, pool, 8 if pool == 1 and x_TBCHW.shape[2] % 8 == 0 else 1
    )


def _fired(x_TBCHW, scale_TC, shift_TC, leak, threshold, pool, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """keep: channels that share a byte of the short copy, 0 without one."""
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    windows = B * triton.cdiv(H, pool) * triton.cdiv(W, pool)
    block, programs = _blocks(x, windows, pool * pool)
    out = x.new_empty(T, B, H // pool, W // pool, C)
    kept = x.new_empty((*out.shape[:4], C // keep), dtype=torch.uint8) if keep else out
    counts = torch.empty(T, programs, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        kernels.membrane[(programs,)](
            x, *_per_channel(x, scale_TC, shift_TC), out, kept, counts, T, windows, H, W, C, B * H * W * C,
            out[0].numel(), kept[0].numel(), LEAK=float(leak), THRESHOLD=float(threshold), POOL=pool, RECOMPUTE=False,
            KEEP=keep, **block, **_LAUNCH,
        )  # fmt: skip
        spikes, total = out.permute(0, 1, 4, 2, 3), counts.sum(1, dtype=torch.int64)
    return (remember(spikes, Kept(kept, pool * pool, keep == 8)) if keep else spikes), total


def backward(grad_out, x_TBCHW, mean_TC, invstd_TC, scale_TC, shift_TC, leak, threshold, pool, training, share=None):
    """Gradients of the currents [T, B, C, H, W] and of the BNTT gains [T, C]; the membrane is recomputed from x.

        dm_t   = dL/ds_t · 0.3 max(0, 1 - |v_t|) / threshold + leak dm_{t+1}
        dL/dx  = scale (dm - mean of dm - xhat · mean of dm xhat)    training: statistics of this batch
        dL/dx  = scale dm                                            evaluation
        dL/dgain = sum of dm xhat,   xhat = (x - mean) invstd

    grad_out: gradient of `fire`'s spikes [T, B, C, h, w]. share: x is a process's share of the batch; the means are
    over those of all. The first result has x's type, the second that of the statistics.
    Raises `UserError` for types other than float32, float64 and bfloat16.
    """
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    rows, step = B * H * W, B * H * W * C
    windows = B * triton.cdiv(H, pool) * triton.cdiv(W, pool)
    block, programs = _blocks(x, windows, pool * pool)
    grad_out = _last(grad_out.to(x.dtype))
    out_step = grad_out[0].numel()
    mean, invstd, scale, shift = _per_channel(x, mean_TC, invstd_TC, scale_TC, shift_TC)
    grad_x = torch.empty_like(x)
    partial = x.new_empty((triton.cdiv(windows, block["BLOCK_R"]), T, 2, C), dtype=_state(x))
    neuron = {"LEAK": float(leak), "THRESHOLD": float(threshold), "POOL": pool, **block, **_LAUNCH}
    with torch.cuda.device_of(x):
        kernels.membrane[(programs,)](x, scale, shift, grad_x, grad_x, grad_x, T, windows, H, W, C, step, step, step,
                                      RECOMPUTE=True, KEEP=0, **neuron)  # fmt: skip
        kernels.reverse[(programs,)](grad_out, x, grad_x, mean, invstd, scale, partial, T, windows, H, W, C, step,
                              (T - 1) * step, out_step, (T - 1) * out_step, (T - 1) * C, SLOPE=TRIANGLE_SLOPE,
                              TRAINING=bool(training), **neuron)  # fmt: skip
        sums = partial.sum(0)
        if training:
            block, programs = _blocks(x, rows)
            totals = sums if share is None else share.mean(sums)
            kernels.normalize[(programs, T)](grad_x, x, mean, invstd, scale, totals, rows, C, step, **block, **_LAUNCH)
    return grad_x.permute(0, 1, 4, 2, 3), sums[:, 1].contiguous()
