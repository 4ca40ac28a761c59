"""numba kernels of `decolle_cpu.py`: traces, windows, membranes, scores; on codes, channels last.

float64 holds whole numbers below 2^53, so that products and sums of codes are exact in it and vectorize. `_near` rounds
half to even. Errors and gradients: `decolle_kernels_learn.py`.

B batch, H W C input, y x O outputs, h w after pooling, D digits of a code, F features, K classes.
"""

import math

import numba
import numpy as np

from hwsim.network.threads import PARALLEL

DIGIT = 7
"""Bits of a digit of P: digits from 0 to 127 are int8."""
_MAGIC = 1.5 * 2.0**52
_SQRT_HALF = math.sqrt(0.5)


@numba.njit(inline="always")
def _near(x):
    """Round half to even of |x| < 2^51: the sum keeps no fraction bits."""
    return (x + _MAGIC) - _MAGIC


@numba.njit(cache=True)
def exponent(largest):
    """rne(log2 largest) of a whole number below 2^53; 0 of 0. As `hwsim.device.integer.shift_exponent`."""
    if largest == 0:
        return 0
    mantissa, e = math.frexp(np.float64(largest))
    return e - 1 if mantissa < _SQRT_HALF else e


@numba.njit(inline="always")
def rne_shift(n, k):
    if k <= 0:
        return n << -k
    return (n + ((np.int64(1) << (k - 1)) - 1) + ((n >> k) & 1)) >> k


@numba.njit(**PARALLEL)
def advance(s_BHL, P_BHL, Q_BHL, alpha, drive_p, beta, drive_q, top_p, top_q, one, left, padded_DBHL, counts_B4):
    """Traces of one step; the digits of P go into padded_DBHL [D, B, H + 2 pad, (W + 2 pad) C], `left` = pad C.

    counts_B4: nonzero P, nonzero Q, nonzero inputs, largest P. one: 2^-24.
    """
    D, B = padded_DBHL.shape[:2]
    H, L = alpha.shape
    pad = (padded_DBHL.shape[2] - H) // 2
    for b in numba.prange(B):
        some_p, some_q, some_s, largest = 0, 0, 0, np.int32(0)
        for h in range(H):
            for i in range(L):
                p, q, s = np.float64(P_BHL[b, h, i]), np.float64(Q_BHL[b, h, i]), np.float64(s_BHL[b, h, i])
                new_p = min(max(alpha[h, i] * p + drive_p[h, i] * q, 0.0), top_p)
                new_q = min(max(beta[h, i] * q + drive_q[h, i] * s, 0.0), top_q)
                code, code_q = np.int32(_near(new_p * one)), np.int32(_near(new_q * one))
                P_BHL[b, h, i], Q_BHL[b, h, i] = code, code_q
                some_p += code != 0
                some_q += code_q != 0
                some_s += s != 0
                largest = max(largest, code)
            for d in range(D):
                shift = np.int32(DIGIT * d)
                for i in range(L):
                    padded_DBHL[d, b, pad + h, left + i] = np.int8((P_BHL[b, h, i] >> shift) & 127)
        counts_B4[b, 0], counts_B4[b, 1], counts_B4[b, 2], counts_B4[b, 3] = some_p, some_q, some_s, largest


@numba.njit(**PARALLEL)
def windows(padded_BHL, C, col_ByxkL):
    """col[b, y, x, i] = the k C numbers of row y + i that meet the kernel's row i at place (y, x)."""
    B, Y, X, k, n = col_ByxkL.shape
    for job in numba.prange(B * Y):
        b, y = job // Y, job % Y
        for x in range(X):
            for i in range(k):
                row, out = padded_BHL[b, y + i], col_ByxkL[b, y, x, i]
                for j in range(n):
                    out[j] = row[x * C + j]


@numba.njit(**PARALLEL)
def fire(total_DMO, bias_O, numbers, sticky, U_ByxO, R_ByxO, pool, edge, top_BhwO, place_BhwO, out_BhwO, counts_B3):
    """Membranes and spikes of one step, refractory states of the next, and the pooled maxima.

    numbers: gain, refract, top_u 2^frac_u, 2^-frac_u, gamma, spike, 2^-24. sticky: R is always rounded to nearest.
    place: index of the first maximum in its window. counts_B3: spikes, pooled spikes, sum of U.
    """
    gain, refract, limit, one, gamma, spike, small = numbers
    D = total_DMO.shape[0]
    B, Y, X, O = U_ByxO.shape  # noqa: E741
    hs, ws = top_BhwO.shape[1], top_BhwO.shape[2]
    for b in numba.prange(B):
        spikes, passed, sum_u = 0, 0, 0
        for y in range(Y):
            for x in range(X):
                m = (b * Y + y) * X + x
                for o in range(O):
                    total = np.float64(total_DMO[0, m, o])
                    if D > 1:
                        total += 128.0 * total_DMO[1, m, o]
                    if D > 2:
                        total += 16384.0 * total_DMO[2, m, o]
                    n = gain * total + bias_O[o] - refract * R_ByxO[b, y, x, o]
                    u = np.int16(_near(min(max(n, -limit), limit) * one))
                    U_ByxO[b, y, x, o] = u
                    fired = 1 if u >= 0 else 0
                    r = (gamma * R_ByxO[b, y, x, o] + spike * fired) * small
                    code = _near(r)
                    if code > r and not fired and not sticky:
                        code -= 1.0
                    R_ByxO[b, y, x, o] = np.int32(code)
                    spikes += fired
                    sum_u += u
        for y in range(hs):
            for x in range(ws):
                top, place = top_BhwO[b, y, x], place_BhwO[b, y, x]
                top[:] = np.int16(-32768)
                for i in range(pool):
                    for j in range(pool):
                        yy, xx = y * pool - edge + i, x * pool - edge + j
                        if 0 <= yy < Y and 0 <= xx < X:
                            for o in range(O):
                                u = U_ByxO[b, yy, xx, o]
                                more = u > top[o]
                                place[o] = np.uint8(i * pool + j) if more else place[o]
                                top[o] = u if more else top[o]
                for o in range(O):
                    fired = 1 if top[o] >= 0 else 0
                    out_BhwO[b, y, x, o] = fired
                    passed += fired
        counts_B3[b, 0], counts_B3[b, 1], counts_B3[b, 2] = spikes, passed, sum_u


@numba.njit(**PARALLEL)
def look_up(code_BF, table, out_BF):
    """out = table[code + middle]."""
    middle = len(table) // 2
    B, F = code_BF.shape
    for b in numba.prange(B):
        for f in range(F):
            out_BF[b, f] = table[code_BF[b, f] + middle]


@numba.njit(cache=True)
def classes(total_BK, frac, bits, mask_BK, scale, y_BK, best_B):
    """Scores in steps of 2^-bits, and the first of the largest that were not dropped."""
    B, K = total_BK.shape
    limit = (np.int64(1) << (bits - 1)) - 1
    for b in range(B):
        best, at = np.int64(-1), 0
        for k in range(K):
            n = np.int64(total_BK[b, k])
            f = frac
            if f < bits - 1:
                n, f = n << (bits - 1 - f), bits - 1
            edge = limit << (f - (bits - 1))
            y_BK[b, k] = rne_shift(min(max(n, -edge), edge), f - (bits - 1)) + limit + 1
            shown = y_BK[b, k] * mask_BK[b, k]
            if shown > best:
                best, at = shown, k
        best_B[b] = at
