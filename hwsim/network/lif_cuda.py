"""The fused BNTT + LIF operation on CUDA: Triton kernels. The equation and its derivative stand in `lif.py`.

Why layer by layer. A network that walks through time on the outside launches thousands of small kernels a training step
and moves, by estimate, 230 bytes for every neuron and time step. All that time couples is one membrane value a neuron;
so here the currents of all steps are one tensor [T, B, H, W, C], and a program keeps the membranes of its neurons in
registers while it walks through T. What is left is memory traffic; in float32, bytes per neuron and time step:

    _moments     read x                                              4
    _membrane    read x, write the spikes                            8 (5 with the fused 2x2 pool)
    _membrane    again, in the backward pass: read x, write v        8
    _reverse     read v, x and the spikes' gradient, write dm       16 (13 with the pool)
    _normalize   read dm and x, write the currents' gradient        12

48 in training (42 with the pool); evaluation needs neither _moments nor _normalize. Only x is kept for the backward
pass: v = pre / threshold - 1 and then dm = dL/dpre live in the buffer that becomes the currents' gradient. Both uses of
_membrane are one kernel, so that the backward pass meets the spikes of the forward pass.

Tiles. The innermost memory axis is C. A tile is 2048 neurons: BLOCK_C channels (at most 32, one 128-byte line of
float32) times rows; with 4 warps 16 neurons a thread, so that a quarter of full occupancy has 32 KB of loads in flight
on each multiprocessor, about what hides the memory's latency. A row is an image position; with the pool it is a 2x2
window, whose four positions are the tile's first axis: Triton (from 3.7) spreads C over the threads, then rows, and
leaves the first axis to each thread, so that pooling needs no exchange. Windows at an odd border are incomplete: they
count spikes, feed the batch statistics and give no output.

Grids. _membrane and _reverse: ceil(rows / BLOCK_R) * ceil(C / BLOCK_C) programs on one axis (8,192 for 256 images of
32x32x64), channel blocks adjacent because they share memory pages. _normalize: as many for every t. _moments: at most
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
from hwsim.network.surrogate import TRIANGLE_SLOPE

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels below stay plain functions that nothing calls; `available` says so
    triton = tl = SimpleNamespace(jit=lambda kernel: kernel, constexpr=None)

_TILE = 2048
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
_MOMENT_PROGRAMS = 64


@triton.jit
def _channels(C, BLOCK_C: tl.constexpr):
    """This program's row block and the channels of its tile."""
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    return pid // blocks, (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _windows(block, windows, H, W, POOL: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows of the image [K, R] and which of them exist; rows of the pooled output [R] and which of them exist."""
    window = block * BLOCK_R + tl.arange(0, BLOCK_R)
    tall, wide = (H + POOL - 1) // POOL, (W + POOL - 1) // POOL
    b, top, left = window // (tall * wide), (window // wide) % tall, window % wide
    k = tl.arange(0, POOL * POOL)[:, None]
    h, w = top[None, :] * POOL + k // POOL, left[None, :] * POOL + k % POOL
    exists = (window < windows)[None, :] & (h < H) & (w < W)
    whole = (window < windows) & (top < H // POOL) & (left < W // POOL)
    return (b[None, :] * H + h) * W + w, exists, (b * (H // POOL) + top) * (W // POOL) + left, whole


@triton.jit
def _at(row, c, C):
    """Where channel c of a row lies within one time step; 64 bits, because a step may hold more than 2^31 values."""
    return tl.expand_dims(row.to(tl.int64), -1) * C + c


@triton.jit
def _moments(x, partial, rows, rows_each, C, step, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and sum of squared deviations of one run of rows (Welford down each lane, then Chan across the lanes)."""
    block, c = _channels(C, BLOCK_C)
    t = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_R)
    first = block * rows_each
    count = tl.minimum(rows_each, rows - first)
    mean = tl.zeros((BLOCK_R, BLOCK_C), x.dtype.element_ty)
    square = tl.zeros((BLOCK_R, BLOCK_C), x.dtype.element_ty)
    seen = tl.zeros((1, 1), x.dtype.element_ty)
    x += t * step
    for start in range(0, count, BLOCK_R):
        valid = (start + lane < count)[:, None] & (c < C)[None, :]
        value = tl.load(x + _at(first + start + lane, c, C), mask=valid, other=0.0)
        seen += 1
        apart = tl.where(valid, value - mean, 0.0)
        mean += apart / seen
        square += apart * (value - mean)
    weight = ((count - lane + BLOCK_R - 1) // BLOCK_R).to(mean.dtype)[:, None]  # values that each lane has seen
    tile_mean = tl.sum(mean * weight, axis=0) / count
    apart = mean - tile_mean[None, :]
    out = partial + (block.to(tl.int64) * tl.num_programs(1) + t) * 2 * C + c
    tl.store(out, tile_mean, mask=c < C)
    tl.store(out + C, tl.sum(square + weight * apart * apart, axis=0), mask=c < C)


@triton.jit
def _merge(partial, mean, var, rows, rows_each, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and biased variance of all rows from those of the runs (Chan), in float64."""
    _, c = _channels(C, BLOCK_C)
    t, steps = tl.program_id(1), tl.num_programs(1)
    p = tl.arange(0, BLOCK_P)
    count = tl.maximum(tl.minimum(rows_each, rows - p * rows_each), 0).to(tl.float64)[:, None]
    mask = (count > 0) & (c < C)[None, :]
    at = partial + _at((p * steps + t) * 2, c, C)
    mean_PC = tl.load(at, mask=mask, other=0.0).to(tl.float64)
    square_PC = tl.load(at + C, mask=mask, other=0.0).to(tl.float64)
    total = tl.sum(mean_PC * count, axis=0) / rows
    apart = mean_PC - total[None, :]
    square = tl.sum(square_PC + count * apart * apart, axis=0)
    tl.store(mean + t * C + c, total, mask=c < C)
    tl.store(var + t * C + c, square / rows, mask=c < C)


@triton.jit
def _membrane(x, scale, shift, out, counts, T, windows, H, W, C, step, out_step, LEAK: tl.constexpr,
              THRESHOLD: tl.constexpr, POOL: tl.constexpr, RECOMPUTE: tl.constexpr, BLOCK_R: tl.constexpr,
              BLOCK_C: tl.constexpr):  # fmt: skip
    """The neuron through all steps. Writes the pooled spikes and their counts or, to RECOMPUTE, only v (into out)."""
    block, c = _channels(C, BLOCK_C)
    row, exists, out_row, whole = _windows(block, windows, H, W, POOL, BLOCK_R)
    at, mask = _at(row, c, C), exists[:, :, None] & (c < C)
    out_at, out_mask = _at(out_row, c, C), whole[:, None] & (c < C)
    u = tl.zeros((POOL * POOL, BLOCK_R, BLOCK_C), x.dtype.element_ty)
    counts += tl.program_id(0)
    for _ in range(T):
        y = tl.load(x + at, mask=mask, other=0.0) * tl.load(scale + c, mask=c < C, other=0.0)
        pre = LEAK * u + (y + tl.load(shift + c, mask=c < C, other=0.0))
        # Triton's own float32 division is off by up to two units in the last place; that would move the threshold.
        v = (tl.div_rn(pre, THRESHOLD) if u.dtype == tl.float32 else pre / THRESHOLD) - 1
        fired = (v > 0) & mask
        u = tl.where(fired, pre - THRESHOLD, pre)
        if RECOMPUTE:
            tl.store(out + at, v, mask=mask)
        else:
            tl.store(out + out_at, tl.sum(fired.to(u.dtype), axis=0) * (1 / (POOL * POOL)), mask=out_mask)
            tl.store(counts, tl.sum(fired.to(tl.int32)))
            counts += tl.num_programs(0)
        x += step
        out += out_step
        scale += C
        shift += C


@triton.jit
def _reverse(grad_out, x, grad_x, mean, invstd, scale, partial, T, windows, H, W, C, step, last, out_step, out_last,
             last_TC, LEAK: tl.constexpr, THRESHOLD: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
             TRAINING: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """From the last step to the first: replaces v by dm (scale dm in evaluation); sums dm and dm xhat over the rows."""
    block, c = _channels(C, BLOCK_C)
    row, exists, out_row, whole = _windows(block, windows, H, W, POOL, BLOCK_R)
    at, mask = _at(row, c, C), exists[:, :, None] & (c < C)
    out_at, out_mask = _at(out_row, c, C), whole[:, None] & (c < C)
    dm = tl.zeros((POOL * POOL, BLOCK_R, BLOCK_C), x.dtype.element_ty)
    x += last
    grad_x += last
    grad_out += out_last
    mean += last_TC
    invstd += last_TC
    scale += last_TC
    partial += block.to(tl.int64) * T * 2 * C + last_TC * 2 + c
    for _ in range(T):
        g = tl.load(grad_out + out_at, mask=out_mask, other=0.0) * (1 / (POOL * POOL))
        v = tl.load(grad_x + at, mask=mask, other=0.0)
        # Positions outside the image lie in incomplete windows: their g, hence their dm, is 0.
        dm = g[None, :, :] * ((SLOPE / THRESHOLD) * tl.maximum(1 - tl.abs(v), 0.0)) + LEAK * dm
        centered = tl.load(x + at, mask=mask, other=0.0) - tl.load(mean + c, mask=c < C, other=0.0)
        dot = dm * (centered * tl.load(invstd + c, mask=c < C, other=0.0))
        tl.store(partial, tl.sum(tl.sum(dm, axis=0), axis=0), mask=c < C)
        tl.store(partial + C, tl.sum(tl.sum(dot, axis=0), axis=0), mask=c < C)
        tl.store(grad_x + at, dm if TRAINING else dm * tl.load(scale + c, mask=c < C, other=0.0), mask=mask)
        x -= step
        grad_x -= step
        grad_out -= out_step
        mean -= C
        invstd -= C
        scale -= C
        partial -= 2 * C


@triton.jit
def _normalize(grad_x, x, mean, invstd, scale, sums, rows, C, step, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Replaces dm by the gradient of the currents, scale (dm - mean of dm - xhat · mean of dm xhat)."""
    block, c = _channels(C, BLOCK_C)
    t = tl.program_id(1).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (row < rows)[:, None] & (c < C)
    at = t * step + _at(row, c, C)
    at_C, mask_C = t * C + c, c < C
    xhat = (tl.load(x + at, mask=mask, other=0.0) - tl.load(mean + at_C, mask=mask_C, other=0.0)) * tl.load(
        invstd + at_C, mask=mask_C, other=0.0
    )
    mean_dm = tl.load(sums + t * 2 * C + c, mask=mask_C, other=0.0) / rows
    mean_dot = tl.load(sums + (t * 2 + 1) * C + c, mask=mask_C, other=0.0) / rows
    dm = tl.load(grad_x + at, mask=mask, other=0.0)
    factor = tl.load(scale + at_C, mask=mask_C, other=0.0)
    tl.store(grad_x + at, factor * (dm - mean_dm - xhat * mean_dot), mask=mask)


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
    if x_TBCHW.dtype not in (torch.float32, torch.float64):
        raise UserError(f"lif_cuda: currents are {x_TBCHW.dtype}; float32 and float64 are possible; cast them first")
    if isinstance(triton, SimpleNamespace):
        raise UserError("lif_cuda: triton cannot be imported; pip install triton, or choose the reference backend")
    T, B, C, H, W = x_TBCHW.shape
    if B * H * W >= 2**31 - _TILE:
        raise UserError(f"lif_cuda: {B} images of {H}x{W} have too many positions (2^31); make the batch smaller")
    return _last(x_TBCHW)


def _blocks(rows: int, C: int, positions: int = 1) -> tuple[dict[str, int], int]:
    """Tile of about 2048 neurons for `rows` windows of `positions`, and the number of tiles."""
    block_c = min(triton.next_power_of_2(C), 32)
    block_r = min(triton.next_power_of_2(rows), _TILE // (block_c * positions))
    return {"BLOCK_R": block_r, "BLOCK_C": block_c}, triton.cdiv(rows, block_r) * triton.cdiv(C, block_c)


def _per_channel(like: torch.Tensor, *params_TC: torch.Tensor) -> list[torch.Tensor]:
    return [p.to(like.dtype).contiguous() for p in params_TC]


def statistics(x_TBCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over B, H, W of every time step and channel, in one pass over x.

    x_TBCHW: float32 or float64, channels-last in memory. Returns (mean [T, C], variance [T, C]) in x's type. Partial
    means and squared deviations are kept in x's type and merged in float64.
    Source: Welford 1962; Chan, Golub, LeVeque 1983 (pairwise merge). Raises `UserError` for other types.
    """
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    rows = B * H * W
    block, _ = _blocks(rows, C)
    tiles = triton.cdiv(rows, block["BLOCK_R"])
    rows_each = triton.cdiv(tiles, _MOMENT_PROGRAMS) * block["BLOCK_R"]
    programs, channel_blocks = triton.cdiv(rows, rows_each), triton.cdiv(C, block["BLOCK_C"])
    partial = x.new_empty(programs, T, 2, C)
    mean, var = x.new_empty(T, C), x.new_empty(T, C)
    with torch.cuda.device_of(x):
        _moments[(programs * channel_blocks, T)](x, partial, rows, rows_each, C, rows * C, **block, **_LAUNCH)
        _merge[(channel_blocks, T)](partial, mean, var, rows, rows_each, C, BLOCK_P=triton.next_power_of_2(programs),
                                    BLOCK_C=block["BLOCK_C"], **_LAUNCH)  # fmt: skip
    return mean, var


def fire(x_TBCHW, scale_TC, shift_TC, leak: float, threshold: float, pool: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes of the normalized currents scale x + shift, and how many fired at each time step.

    x_TBCHW: currents, float32 or float64, channels-last in memory. pool: 1, or 2 for 2x2 averages of the spikes (an odd
    last row or column is counted but has no output). Returns (spikes [T, B, C, h, w] in x's type, channels-last; counts
    [T] int64, on the device). Raises `UserError` for other types.
    """
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    windows = B * triton.cdiv(H, pool) * triton.cdiv(W, pool)
    block, programs = _blocks(windows, C, pool * pool)
    out = x.new_empty(T, B, H // pool, W // pool, C)
    counts = torch.empty(T, programs, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        _membrane[(programs,)](x, *_per_channel(x, scale_TC, shift_TC), out, counts, T, windows, H, W, C, B * H * W * C,
                               out[0].numel(), LEAK=float(leak), THRESHOLD=float(threshold), POOL=pool, RECOMPUTE=False,
                               **block, **_LAUNCH)  # fmt: skip
        return out.permute(0, 1, 4, 2, 3), counts.sum(1, dtype=torch.int64)


def backward(grad_out, x_TBCHW, mean_TC, invstd_TC, scale_TC, shift_TC, leak, threshold, pool, training):
    """Gradients of the currents [T, B, C, H, W] and of the BNTT gains [T, C]; the membrane is recomputed from x.

        dm_t   = dL/ds_t · 0.3 max(0, 1 - |v_t|) / threshold + leak dm_{t+1}
        dL/dx  = scale (dm - mean of dm - xhat · mean of dm xhat)    training: statistics of this batch
        dL/dx  = scale dm                                            evaluation
        dL/dgain = sum of dm xhat,   xhat = (x - mean) invstd

    grad_out: gradient of `fire`'s spikes [T, B, C, h, w]. Raises `UserError` for types other than float32 and float64.
    """
    x = _checked(x_TBCHW)
    T, B, H, W, C = x.shape
    rows, step = B * H * W, B * H * W * C
    windows = B * triton.cdiv(H, pool) * triton.cdiv(W, pool)
    block, programs = _blocks(windows, C, pool * pool)
    grad_out = _last(grad_out.to(x.dtype))
    out_step = grad_out[0].numel()
    mean, invstd, scale, shift = _per_channel(x, mean_TC, invstd_TC, scale_TC, shift_TC)
    grad_x = torch.empty_like(x)
    partial = x.new_empty(triton.cdiv(windows, block["BLOCK_R"]), T, 2, C)
    neuron = {"LEAK": float(leak), "THRESHOLD": float(threshold), "POOL": pool, **block, **_LAUNCH}
    with torch.cuda.device_of(x):
        _membrane[(programs,)](x, scale, shift, grad_x, grad_x, T, windows, H, W, C, step, step,
                               RECOMPUTE=True, **neuron)  # fmt: skip
        _reverse[(programs,)](grad_out, x, grad_x, mean, invstd, scale, partial, T, windows, H, W, C, step,
                              (T - 1) * step, out_step, (T - 1) * out_step, (T - 1) * C, SLOPE=TRIANGLE_SLOPE,
                              TRAINING=bool(training), **neuron)  # fmt: skip
        sums = partial.sum(0)
        if training:
            block, programs = _blocks(rows, C)
            _normalize[(programs, T)](grad_x, x, mean, invstd, scale, sums, rows, C, step, **block, **_LAUNCH)
    return grad_x.permute(0, 1, 4, 2, 3), sums[:, 1].contiguous()
