"""Inputs as bits for the kernels that count them (`binary_cpu.py`): planes, gathered fields, and how many are set.

N images (time folded in), C input channels, H W image, P planes, S words of 32 channels.
"""

import numba
import numpy as np
import torch

from hwsim.network.binary_ir import equal_words, population
from hwsim.network.events_cpu import WORD
from hwsim.network.threads import PARALLEL, share_threads

PARTS = (1, 2, 4)
"""Numbers of parts: spikes, and averages of 2 and of 2x2 (3 planes). The work grows with the planes."""


@numba.njit(**PARALLEL)
def _pack_planes(x_NHWC, parts, planes_PNHWS, odd_N):
    """Bit p of parts x in plane p; odd where an image holds a number that is no whole one, or too large."""
    P, N, H, W, S = planes_PNHWS.shape
    C, one = x_NHWC.shape[3], np.uint32(1)
    x = x_NHWC.reshape(-1)
    for n in numba.prange(N):
        odd = np.uint32(0)
        for h in range(H):
            for w in range(W):
                for s in range(S):
                    first, count = ((n * H + h) * W + w) * C + 32 * s, C - 32 * s
                    a, b, c, rest = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
                    if count >= 32:
                        is_1, is_2, is_3, is_4, rest = equal_words(x, first, parts)
                        a, b, c = is_1 | is_3, is_2 | is_3, is_4
                    else:
                        for i in range(count):
                            v, at = x[first + i] * parts, np.uint32(i)
                            whole = np.uint32(min(max(v, np.float32(0)), np.float32(4)))
                            rest |= np.uint32(np.float32(whole) != v)
                            a |= (whole & one) << at
                            b |= (whole >> one & one) << at
                            c |= (whole >> np.uint32(2)) << at
                    odd |= rest
                    planes_PNHWS[0, n, h, w, s] = a
                    if P > 1:
                        planes_PNHWS[1, n, h, w, s] = b
                    else:
                        odd |= b
                    if P > 2:
                        planes_PNHWS[2, n, h, w, s] = c
                    else:
                        odd |= c
        odd_N[n] = odd


@numba.njit(**PARALLEL)
def _gather(bits_NHW, width, kh, kw, words_NHWD):
    N, H, W, D = words_NHWD.shape
    per = 32 // width
    for n in numba.prange(N):
        line = np.empty(W, np.uint32)
        for h in range(H):
            for d in range(D):
                line[:] = 0
                for tap in range(d * per, min((d + 1) * per, kh * kw)):
                    by = np.uint32((tap - d * per) * width)
                    y, x = h + tap // kw, tap % kw
                    for w in range(W):
                        line[w] |= bits_NHW[n, y, x + w] << by
                for w in range(W):
                    words_NHWD[n, h, w, d] = line[w]


@numba.njit(**PARALLEL)
def _seen(words_PNHWS, kh, kw, seen_NHW):
    P, _, Hp, Wp, S = words_PNHWS.shape
    N, H, W = seen_NHW.shape
    for n in numba.prange(N):
        count = np.zeros((Hp, Wp), np.int32)
        column = np.empty(Wp, np.int32)
        for p in range(P):
            for h in range(Hp):
                for w in range(Wp):
                    ones = np.int32(0)
                    for s in range(S):
                        ones += population(words_PNHWS[p, n, h, w, s])
                    count[h, w] += ones << np.int32(p)
        for h in range(H):
            column[:] = 0
            for y in range(kh):
                for w in range(Wp):
                    column[w] += count[h + y, w]
            for w in range(W):
                total = np.int32(0)
                for x in range(kw):
                    total += column[w + x]
                seen_NHW[n, h, w] = total


@numba.njit(**PARALLEL)
def _ones(words_NL, ones_N):
    for n in numba.prange(len(words_NL)):
        for i in range(words_NL.shape[1]):
            ones_N[n] += population(words_NL[n, i])


def density(words_NHWS: torch.Tensor, channels: int) -> float:
    """Share of the inputs that fired, of spikes that `events_cpu.packed` packed."""
    share_threads()
    N, H, W, _ = words_NHWS.shape
    ones = np.zeros(N, np.int64)
    _ones(words_NHWS.numpy().view(np.uint32).reshape(N, -1), ones)
    return float(ones.sum()) / (N * H * W * channels)


def planes(x_NCHW: torch.Tensor, parts: int) -> torch.Tensor | None:
    """The input as planes [P, N, H, W, S] of bits (int32), 1/parts of 1, 2, 4 each; parts as in `PARTS`.

    None where an input is no whole multiple of 1/parts that the planes hold.
    """
    share_threads()
    x = x_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
    N, H, W, C = x.shape
    out, odd = np.empty((parts.bit_length(), N, H, W, -(-C // WORD)), np.uint32), np.empty(N, np.uint32)
    _pack_planes(x, np.float32(parts), out, odd)
    return None if odd.any() else torch.from_numpy(out.view(np.int32))


def gathered(words_1NHW1: np.ndarray, width: int, kh: int, kw: int) -> np.ndarray:
    """The `width` bits of all places that a filter covers side by side, as many places a word as go whole:
    [1, N, H - kh + 1, W - kw + 1, D].
    """
    _, N, H, W, _ = words_1NHW1.shape
    out = np.empty((1, N, H - kh + 1, W - kw + 1, -(-kh * kw // (WORD // width))), np.uint32)
    _gather(words_1NHW1[0, ..., 0], width, kh, kw, out[0])
    return out


def seen(words_PNHWS: np.ndarray, kh: int, kw: int) -> np.ndarray:
    """How many bits are set among those that a filter covers, those of plane p counted 2^p times: [N, H', W'] int32."""
    _, N, H, W, _ = words_PNHWS.shape
    out = np.empty((N, H - kh + 1, W - kw + 1), np.int32)
    _seen(words_PNHWS, kh, kw, out)
    return out
