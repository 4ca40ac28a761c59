"""numba kernels of `decolle_cpu.py`: errors, gradients and the update of the weights; int64 codes, channels last.

B batch, y x O outputs, h w after pooling, F features, K classes, D digits, N weights of an output.
"""

import numba
import numpy as np

from hwsim.network.decolle_kernels import DIGIT, exponent, rne_shift
from hwsim.network.threads import PARALLEL


@numba.njit(inline="always")
def _error(n, e, bits):
    """Code of an error with the largest one's exponent e, as `integer_codes.error_code`."""
    if bits == 1:
        return np.int64(1) if n > 0 else np.int64(-1) if n < 0 else np.int64(0)
    limit = (np.int64(1) << (bits - 1)) - 1
    return min(max(rne_shift(n, e - (bits - 1)), -limit), limit)


@numba.njit(cache=True)
def class_errors(y_BK, mask_BK, label_B, scale, frac, bits, e1_BK):
    """e1 = Qe((y - t) mask); returns (sum of (y - t)^2 in units of 2^-frac squared, nonzero errors)."""
    B, K = y_BK.shape
    largest, square, some = np.int64(0), 0.0, 0
    for b in range(B):
        for k in range(K):
            kept = np.int64(mask_BK[b, k])
            d = y_BK[b, k] * kept * scale - ((np.int64(1) << frac) if label_B[b] == k else np.int64(0))
            square += np.float64(d) * np.float64(d)
            largest = max(largest, abs(d * kept * scale))
    e = exponent(largest)
    for b in range(B):
        for k in range(K):
            kept = np.int64(mask_BK[b, k])
            d = y_BK[b, k] * kept * scale - ((np.int64(1) << frac) if label_B[b] == k else np.int64(0))
            e1_BK[b, k] = _error(d * kept * scale, e, bits)
            some += e1_BK[b, k] != 0
    return square, some


@numba.njit(**PARALLEL)
def feed_back(e1_BK, feedback_KF, raw_BF, largest_B):
    """raw = e1 Wfa, and the largest |raw| of each sample."""
    B, F = raw_BF.shape
    K = feedback_KF.shape[0]
    for b in numba.prange(B):
        raw = raw_BF[b]
        raw[:] = 0
        for k in range(K):
            e = np.int32(e1_BK[b, k])
            if e != 0:
                row = feedback_KF[k]
                for f in range(F):
                    raw[f] += e * row[f]
        largest = np.int32(0)
        for f in range(F):
            largest = max(largest, abs(raw[f]))
        largest_B[b] = largest


@numba.njit(**PARALLEL)
def to_membrane(raw_BF, e, bits, shift, plus, quiet, top_BF, slope, sigmoid, g_BF, largest_B, some_B, sum_B):
    """g = (e2 2^shift + plus) sigmoid'(U) - quiet, its largest size, nonzero e2 and the sum of sigmoids by sample."""
    B, F = raw_BF.shape
    middle = len(slope) // 2
    for b in numba.prange(B):
        largest, some, total = np.int64(0), 0, 0.0
        for f in range(F):
            code = _error(np.int64(raw_BF[b, f]), e, bits)
            u = top_BF[b, f] + middle
            g = ((code << shift) + plus) * slope[u] - quiet
            g_BF[b, f] = g
            largest = max(largest, abs(g))
            some += code != 0
            total += sigmoid[u]
        largest_B[b], some_B[b], sum_B[b] = largest, some, total


@numba.njit(**PARALLEL)
def spread(g_BhwO, place_BhwO, e, bits, elsewhere, pool, edge, e3_ByxO, some_B, sum_BO):
    """e3: the codes of g where the maxima were, of `elsewhere` at all other places; and its sums over places."""
    B, hs, ws, O = g_BhwO.shape  # noqa: E741
    Y, X = e3_ByxO.shape[1], e3_ByxO.shape[2]
    rest = _error(np.int64(elsewhere), e, bits)
    for b in numba.prange(B):
        e3_ByxO[b] = rest
        sum_BO[b] = rest * (Y * X - hs * ws)
        some = Y * X * O if rest != 0 else 0
        for y in range(hs):
            for x in range(ws):
                for o in range(O):
                    i, j = place_BhwO[b, y, x, o] // pool, place_BhwO[b, y, x, o] % pool
                    code = _error(g_BhwO[b, y, x, o], e, bits)
                    e3_ByxO[b, y * pool - edge + i, x * pool - edge + j, o] = code
                    sum_BO[b, o] += code
                    some += (code != 0) - (rest != 0)
        some_B[b] = some


@numba.njit(**PARALLEL)
def add_digits(part_DON, sum_ON, largest_O):
    """Sums of the products of the digits, and the largest size in each row."""
    D, O, N = part_DON.shape  # noqa: E741
    for o in numba.prange(O):
        largest = np.int64(0)
        for i in range(N):
            n = np.int64(part_DON[0, o, i])
            if D > 1:
                n += np.int64(part_DON[1, o, i]) << DIGIT
            if D > 2:
                n += np.int64(part_DON[2, o, i]) << (2 * DIGIT)
            sum_ON[o, i] = n
            largest = max(largest, abs(n))
        largest_O[o] = largest


@numba.njit(**PARALLEL)
def update(n_ON, words_ON, e, factor, rb, unbiased, step, limit, frac, wb, master_ON, code_ON, counts_O4):
    """Masters minus the steps of `decolle_arithmetic.Whole.steps`, and the weight codes of the next step.

    e, factor: |n| factor/2^e is the normalized gradient times the rate; e >= rb. step: a step of a gradient on the grid
    of the masters. limit: largest master. counts_O4: nonzero gradients, nonzero steps, changed masters, nonzero codes.
    """
    O, N = n_ON.shape  # noqa: E741
    word_half = np.int64(0) if unbiased else np.int64(1) << (17 - rb)
    # f > r is f >= r + 1.
    more = np.int64(1) if unbiased else np.int64(0)
    down = e - (rb - 1)
    half = (np.int64(1) << (down - 1)) - 1
    fraction = (np.int64(1) << e) - 1
    edge = ((np.int64(1) << (wb - 1)) - 1) << (frac - (wb - 1))
    drop = frac - (wb - 1)
    round_up = (np.int64(1) << drop >> 1) - np.int64(drop > 0)
    even = np.int64(drop > 0)
    for o in numba.prange(O):
        some, moved, changed, dense = 0, 0, 0, 0
        for i in range(N):
            n = n_ON[o, i]
            product = abs(n) * factor
            part = product & fraction
            part = (part + half + ((part >> down) & 1)) >> down
            drawn = ((2 * np.int64(words_ON[o, i]) + 1 + word_half) >> (18 - rb)) + more
            k = (product >> e) + np.int64(part >= drawn)
            k = k if n > 0 else -k if n < 0 else np.int64(0)
            before = min(max(np.int64(master_ON[o, i]), -limit), limit)
            after = before - k * step
            kept = min(max(after, -limit), limit)
            master_ON[o, i] = after
            if wb == 1:
                code = np.int64(kept > 0) - np.int64(kept < 0)
            else:
                code = min(max(kept, -edge), edge)
                code = (code + round_up + ((code >> drop) & even)) >> drop
            code_ON[o, i] = code
            some += n != 0
            moved += k != 0
            changed += kept != before
            dense += code != 0
        counts_O4[o, 0], counts_O4[o, 1], counts_O4[o, 2], counts_O4[o, 3] = some, moved, changed, dense
