"""The pattern network on the CPU: numba kernels on integer codes that give what `pattern_stepwise.Codes` gives.

Its equations stand there. Currents and weight gradients are sums of rows of events (a spike raster is 3 to 20 % full),
a block of neurons runs through all T steps at once, and an update reads each gradient once. Integer sums do not depend
on the number of threads. T steps, N neurons, I inputs, O outputs.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from hwsim.device.integer import HIGHEST_EXPONENT, LOWEST_EXPONENT, shift_exponent
from hwsim.device.integer_codes import largest_code, rate_code
from hwsim.network.pattern_rule import PatternRule
from hwsim.network.pattern_stepwise import Codes, Tape, loss_of
from hwsim.network.threads import PARALLEL, share_threads

_SEQUENTIAL = PARALLEL | {"parallel": False}
_SQRT_HALF = math.sqrt(0.5)
_BLOCK = 64
"""Neurons that one thread takes through all steps."""


@numba.njit(inline="always")
def _exponent(top):
    """rne(log2 top), 0 of 0, as `integer.shift_exponent`."""
    if top == 0:
        return 0
    mantissa, e = math.frexp(np.float64(top))
    return min(max(e if mantissa >= _SQRT_HALF else e - 1, LOWEST_EXPONENT), HIGHEST_EXPONENT)


@numba.njit(**_SEQUENTIAL)
def _events(raster_RC):
    """(start [R + 1], columns): the columns that are not 0, row by row."""
    R, C = raster_RC.shape
    start = np.zeros(R + 1, np.int64)
    columns = np.empty(np.count_nonzero(raster_RC), np.int32)
    n = 0
    for r in range(R):
        for c in range(C):
            if raster_RC[r, c]:
                columns[n] = c
                n += 1
        start[r + 1] = n
    return start, columns


@numba.njit(**PARALLEL)
def _neurons(start_T, active, w_IO, numbers, s_TN, z_TN, iz_TN, im_TN, is_TN):
    """Currents and states of all steps; numbers: what `Kernels` says."""
    ab, threshold, lowest, pa, up_s, up_h, sh_a, pb, sh_b, T = numbers
    N = w_IO.shape[1]
    d = np.int64(1) << (ab - 1)
    limit = d - 1
    top_a, top_b = limit << sh_a, limit << sh_b
    half_a, half_b = ((np.int64(1) << sh_a) >> 1) - 1, ((np.int64(1) << sh_b) >> 1) - 1
    for block in numba.prange(-(-N // _BLOCK)):
        first = block * _BLOCK
        size = min(_BLOCK, N - first)
        mem, syn = np.zeros(size, np.int64), np.zeros(size, np.int64)
        H = np.empty(size, np.int32)
        for t in range(T):
            H[:] = 0
            for e in range(start_T[t], start_T[t + 1]):
                row = w_IO[active[e], first : first + size]
                for n in range(size):
                    H[n] += row[n]
            for n in range(size):
                m, y = mem[n], syn[n]
                z = min(max(m - threshold, -limit), limit)
                s = np.int64(z > 0)
                a = ((pa * y) << up_s) + (np.int64(H[n]) << up_h)
                b = pb * m + ((y - d * s) << sh_b)
                s_TN[t, first + n] = s
                z_TN[t, first + n] = z
                iz_TN[t, first + n] = m >= lowest
                is_TN[t, first + n] = abs(a) <= top_a
                im_TN[t, first + n] = abs(b) <= top_b
                a = (a + half_a + ((a >> sh_a) & 1)) >> sh_a if sh_a > 0 else a
                b = (b + half_b + ((b >> sh_b) & 1)) >> sh_b if sh_b > 0 else b
                syn[n] = min(max(a, -limit), limit)
                mem[n] = min(max(b, -limit), limit)


@numba.njit(**PARALLEL)
def _fresh_errors(g_TN, z_TN, inside_TN, table, bits, limit, out_TN):
    """dz of all steps: each row brought to about 1 by its own power of two, rounded and masked."""
    T, N = g_TN.shape
    for t in numba.prange(T):
        product = np.empty(N, np.float32)
        top = np.float32(0)
        for n in range(N):
            product[n] = g_TN[t, n] * table[abs(z_TN[t, n])]
            top = max(top, abs(product[n]))
        factor = np.float32(math.ldexp(1.0, bits - 1 - _exponent(top)))
        for n in range(N):
            code = np.int32(np.rint(min(max(product[n] * factor, -limit), limit)))
            if bits == 1:
                code = np.int32(np.sign(product[n]))
            out_TN[t, n] = code * inside_TN[t, n]


@numba.njit(**_SEQUENTIAL)
def _errors(x, bits, limit, inside, out):
    """E of whole numbers, masked."""
    top = 0
    for n in range(len(x)):
        top = max(top, abs(x[n]))
    if bits == 1:
        for n in range(len(x)):
            out[n] = np.sign(x[n]) * inside[n]
        return
    k = _exponent(top) - (bits - 1)
    if k <= 0:
        for n in range(len(x)):
            out[n] = min(max(x[n] << -k, -limit), limit) * inside[n]
    else:
        half = (1 << (k - 1)) - 1
        for n in range(len(x)):
            v = (x[n] + np.int32(half) + ((x[n] >> k) & 1)) >> k
            out[n] = min(max(v, -limit), limit) * inside[n]


@numba.njit(**_SEQUENTIAL)
def _through_time(dz_TN, im_TN, is_TN, numbers, out_TN):
    """dy of all steps, backwards, then E of the whole matrix."""
    bits, limit, pa, ka, pb, kb = numbers
    T, N = dz_TN.shape
    gm, gs = np.empty(N, np.int32), np.zeros(N, np.int32)
    dm, dy = np.zeros(N, np.int32), np.zeros(N, np.int32)
    out_TN[T - 1] = 0
    for n in range(N):
        gm[n] = dz_TN[T - 1, n] << kb
    for t in range(T - 2, -1, -1):
        _errors(gm, bits, limit, im_TN[t], dm)
        _errors(gs, bits, limit, is_TN[t], dy)
        for n in range(N):
            gm[n] = (dz_TN[t, n] << kb) + pb * dm[n]
            gs[n] = (dm[n] << ka) + pa * dy[n]
            out_TN[t, n] = dy[n]
    flat = out_TN.reshape(-1)
    _errors(flat, bits, limit, np.ones(T * N, np.uint8), flat)


@numba.njit(**PARALLEL)
def _gradient(start_I, when, E_TO, out_IO):
    """X' E by events."""
    I, O = out_IO.shape  # noqa: E741
    for i in numba.prange(I):
        total = np.zeros(O, np.int32)
        for e in range(start_I[i], start_I[i + 1]):
            row = E_TO[when[e]]
            for o in range(O):
                total[o] += row[o]
        out_IO[i] = total


@numba.njit(**PARALLEL)
def _steps(g_IO, u_IO, top_I, number, e, random_bits, unbiased, out_IO):
    """The whole steps of quant_grad."""
    I, O = g_IO.shape  # noqa: E741
    m = np.float32(2.0 ** (random_bits - 1))
    k = e - (random_bits - 1)
    half = ((np.int64(1) << max(k, 0)) >> 1) - 1
    for i in numba.prange(I):
        if top_I[i] == 0:
            for o in range(O):
                out_IO[i, o] = 0
        else:
            for o in range(O):
                g = np.int64(g_IO[i, o])
                product = abs(g) * number
                whole = product >> e
                part = product - (whole << e)
                part = (part + half + ((part >> k) & 1)) >> k if k > 0 else part << -k
                u = u_IO[i, o] * m
                if unbiased:
                    whole += np.int64(part > np.int64(np.floor(u)))
                else:
                    whole += np.int64(part >= np.int64(np.rint(u)))
                out_IO[i, o] = np.sign(g) * whole


@numba.njit(**_SEQUENTIAL)
def _traces(x_TN, y_TN, kernel, D_TN):
    T, N = D_TN.shape
    for n in range(N):
        D_TN[0, n] = np.float32(x_TN[0, n]) - np.float32(y_TN[0, n])
    for t in range(1, T):
        for n in range(N):
            D_TN[t, n] = kernel * D_TN[t - 1, n] + (np.float32(x_TN[t, n]) - np.float32(y_TN[t, n]))


@numba.njit(**_SEQUENTIAL)
def _traces_back(D_TN, kernel, factor, out_TN):
    T, N = D_TN.shape
    g = np.zeros(N, np.float32)
    for t in range(T - 1, -1, -1):
        for n in range(N):
            g[n] = D_TN[t, n] + kernel * g[n]
            out_TN[t, n] = g[n] * factor


def van_rossum(x_TN: Tensor, y_TN: Tensor, kernel: float, tau: float) -> tuple[Tensor, Tensor]:
    """`pattern_stepwise.van_rossum` on uint8 rasters, bit for bit."""
    D, out = (np.empty(x_TN.shape, np.float32) for _ in range(2))
    _traces(x_TN.numpy(), y_TN.numpy(), np.float32(kernel), D)
    loss, factor = loss_of(torch.from_numpy(D), tau)
    _traces_back(D, np.float32(kernel), np.float32(factor.item()), out)
    return loss, torch.from_numpy(out)


class Kernels(Codes):
    """`Codes` by kernels; rasters and masks are uint8, z int16, errors and gradients int32."""

    def __init__(self, rule: PatternRule):
        super().__init__(rule)
        share_threads()

    def forward(self, x_TI: Tensor, w_IO: Tensor, layer: int, keep: bool = False) -> Tape:
        if keep:
            return super().forward(x_TI, w_IO, layer, keep)
        share_threads()
        T, N = len(x_TI), w_IO.shape[1]
        (pa, ka), (pb, kb) = self.decay["alpha"], self.decay["beta"]
        finer = self.fraction(layer) - (self.rule.ab - 1)
        more = ka + max(0, finer)
        numbers = (
            self.rule.ab, self.threshold, int(self.lowest_inside), pa, more - ka, more - finer, more, pb, kb, T,
        )  # fmt: skip
        start, active = _events(x_TI.numpy())
        s, iz, im, iy = (np.empty((T, N), np.uint8) for _ in range(4))
        z = np.empty((T, N), np.int16)
        _neurons(start, active, w_IO.numpy(), numbers, s, z, iz, im, iy)
        return Tape(*(torch.from_numpy(a) for a in (s, z, iz, im, iy)))

    def backward(self, g_TN: Tensor, tape: Tape) -> Tensor:
        share_threads()
        bits, limit = self.rule.eb, largest_code(self.rule.eb)
        dz = np.empty(g_TN.shape, np.int32)
        _fresh_errors(
            g_TN.numpy(), tape.z.numpy(), tape.inside_z.numpy(), self.table.numpy(), bits, np.float32(limit), dz
        )
        (pa, ka), (pb, kb) = self.decay["alpha"], self.decay["beta"]
        out = np.empty(g_TN.shape, np.int32)
        _through_time(dz, tape.inside_mem.numpy(), tape.inside_syn.numpy(), (bits, limit, pa, ka, pb, kb), out)
        return torch.from_numpy(out)

    def hidden_gradient(self, E_TO: Tensor, w_IO: Tensor) -> Tensor:
        bits = self.rule.eb - 1 + self.rule.wb - 1 + math.ceil(math.log2(E_TO.shape[1]))
        if bits > 24:
            return super().hidden_gradient(E_TO, w_IO)
        return E_TO.float() @ w_IO.float().T

    def gradient(self, x_TI: Tensor, E_TO: Tensor) -> Tensor:
        share_threads()
        start, when = _events(np.ascontiguousarray(x_TI.numpy().T))
        out = np.empty((x_TI.shape[1], E_TO.shape[1]), np.int32)
        _gradient(start, when, E_TO.numpy(), out)
        return torch.from_numpy(out)

    def steps(self, gradient: Tensor, uniform: Tensor) -> Tensor:
        share_threads()
        number, k = rate_code(self.rule.step_rate)
        tops = gradient.abs().amax(1).numpy()
        out = np.empty(gradient.shape, np.int32)
        e = k + int(shift_exponent(torch.tensor(tops.max())))
        _steps(gradient.numpy(), uniform.numpy(), tops, number, e, self.rule.rb, self.rule.unbiased, out)
        return torch.from_numpy(out)
