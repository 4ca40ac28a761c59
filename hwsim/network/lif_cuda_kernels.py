"""The kernels of `lif_cuda`, which says why they are as they are, and how they are launched.

The currents x, the spikes and their gradients are float32, float64 or bfloat16 in memory; membranes, statistics and all
arithmetic are in the type of the parameters of a channel (scale, mean), float32 or float64. A gradient's buffer has the
currents' type.

T steps, B batch, C channels, H W image, h w image after pooling, K positions of a window, R rows, P programs.
"""

from types import SimpleNamespace

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels below stay plain functions that nothing calls; `lif_cuda.available` says so
    triton = tl = SimpleNamespace(jit=lambda kernel: kernel, constexpr=None)


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
def moments(x, partial, rows, rows_each, C, step, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and sum of squared deviations of one run of rows (Welford down each lane, then Chan across the lanes)."""
    block, c = _channels(C, BLOCK_C)
    t = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_R)
    first = block * rows_each
    count = tl.minimum(rows_each, rows - first)
    mean = tl.zeros((BLOCK_R, BLOCK_C), partial.dtype.element_ty)
    square = tl.zeros((BLOCK_R, BLOCK_C), partial.dtype.element_ty)
    seen = tl.zeros((1, 1), partial.dtype.element_ty)
    x += t * step
    for start in range(0, count, BLOCK_R):
        valid = (start + lane < count)[:, None] & (c < C)[None, :]
        value = tl.load(x + _at(first + start + lane, c, C), mask=valid, other=0.0).to(mean.dtype)
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
def merge(partial, mean, var, rows, rows_each, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
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
def membrane(x, scale, shift, out, kept, counts, T, windows, H, W, C, step, out_step, kept_step, LEAK: tl.constexpr,
             THRESHOLD: tl.constexpr, POOL: tl.constexpr, RECOMPUTE: tl.constexpr, KEEP: tl.constexpr,
             BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """The neuron through all steps. Writes the pooled spikes and their counts or, to RECOMPUTE, only v (into out).

    KEEP: 1 writes the spikes of a window as a byte into `kept` too, 8 those of eight channels (without pool), 0 none.
    """
    block, c = _channels(C, BLOCK_C)
    row, exists, out_row, whole = _windows(block, windows, H, W, POOL, BLOCK_R)
    at, mask = _at(row, c, C), exists[:, :, None] & (c < C)
    out_at, out_mask = _at(out_row, c, C), whole[:, None] & (c < C)
    u = tl.zeros((POOL * POOL, BLOCK_R, BLOCK_C), scale.dtype.element_ty)
    counts += tl.program_id(0)
    for _ in range(T):
        y = tl.load(x + at, mask=mask, other=0.0).to(u.dtype) * tl.load(scale + c, mask=c < C, other=0.0)
        pre = LEAK * u + (y + tl.load(shift + c, mask=c < C, other=0.0))
        # Triton's own float32 division is off by up to two units in the last place; that would move the threshold.
        v = (tl.div_rn(pre, THRESHOLD) if u.dtype == tl.float32 else pre / THRESHOLD) - 1
        fired = (v > 0) & mask
        u = tl.where(fired, pre - THRESHOLD, pre)
        if RECOMPUTE:
            tl.store(out + at, v, mask=mask)
        else:
            number = tl.sum(fired.to(tl.int32), axis=0)
            tl.store(out + out_at, number.to(u.dtype) * (1 / (POOL * POOL)), mask=out_mask)
            tl.store(counts, tl.sum(number))
            counts += tl.num_programs(0)
            if KEEP == 1:
                tl.store(kept + out_at, number.to(tl.uint8), mask=out_mask)
            if KEEP == 8:
                eight = tl.reshape(number, (BLOCK_R, BLOCK_C // 8, 8)) << tl.arange(0, 8)[None, None, :]
                byte = (tl.program_id(0) % tl.cdiv(C, BLOCK_C)) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
                there = whole[:, None] & (byte < C // 8)
                tl.store(kept + _at(out_row, byte, C // 8), tl.sum(eight, axis=2).to(tl.uint8), mask=there)
            kept += kept_step
        x += step
        out += out_step
        scale += C
        shift += C


@triton.jit
def unpack(bits, out, bytes, BLOCK: tl.constexpr):
    """Bits, eight to a byte, the lowest first, as 0 and 1 of out's type."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(bits + at, mask=at < bytes, other=0).to(tl.int32)
    bit = tl.arange(0, 8)
    value = (byte[:, None] >> bit[None, :]) & 1
    tl.store(out + at[:, None] * 8 + bit[None, :], value.to(tl.float32), mask=(at < bytes)[:, None])


@triton.jit
def reverse(grad_out, x, grad_x, mean, invstd, scale, partial, T, windows, H, W, C, step, last, out_step, out_last,
             last_TC, LEAK: tl.constexpr, THRESHOLD: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
             TRAINING: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """From the last step to the first: replaces v by dm (scale dm in evaluation); sums dm and dm xhat over the rows."""
    block, c = _channels(C, BLOCK_C)
    row, exists, out_row, whole = _windows(block, windows, H, W, POOL, BLOCK_R)
    at, mask = _at(row, c, C), exists[:, :, None] & (c < C)
    out_at, out_mask = _at(out_row, c, C), whole[:, None] & (c < C)
    dm = tl.zeros((POOL * POOL, BLOCK_R, BLOCK_C), scale.dtype.element_ty)
    x += last
    grad_x += last
    grad_out += out_last
    mean += last_TC
    invstd += last_TC
    scale += last_TC
    partial += block.to(tl.int64) * T * 2 * C + last_TC * 2 + c
    for _ in range(T):
        g = tl.load(grad_out + out_at, mask=out_mask, other=0.0).to(dm.dtype) * (1 / (POOL * POOL))
        v = tl.load(grad_x + at, mask=mask, other=0.0).to(dm.dtype)
        # Positions outside the image lie in incomplete windows: their g, hence their dm, is 0.
        dm = g[None, :, :] * ((SLOPE / THRESHOLD) * tl.maximum(1 - tl.abs(v), 0.0)) + LEAK * dm
        centered = tl.load(x + at, mask=mask, other=0.0).to(dm.dtype) - tl.load(mean + c, mask=c < C, other=0.0)
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
def normalize(grad_x, x, mean, invstd, scale, sums, rows, C, step, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Replaces dm by the gradient of the currents, scale (dm - mean of dm - xhat · mean of dm xhat)."""
    block, c = _channels(C, BLOCK_C)
    t = tl.program_id(1).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (row < rows)[:, None] & (c < C)
    at = t * step + _at(row, c, C)
    at_C, mask_C = t * C + c, c < C
    factor = tl.load(scale + at_C, mask=mask_C, other=0.0)
    current = tl.load(x + at, mask=mask, other=0.0).to(factor.dtype)
    xhat = (current - tl.load(mean + at_C, mask=mask_C, other=0.0)) * tl.load(invstd + at_C, mask=mask_C, other=0.0)
    mean_dm = tl.load(sums + t * 2 * C + c, mask=mask_C, other=0.0) / rows
    mean_dot = tl.load(sums + (t * 2 + 1) * C + c, mask=mask_C, other=0.0) / rows
    dm = tl.load(grad_x + at, mask=mask, other=0.0).to(factor.dtype)
    tl.store(grad_x + at, factor * (dm - mean_dm - xhat * mean_dot), mask=mask)
