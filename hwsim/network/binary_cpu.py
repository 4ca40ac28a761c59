"""Convolutions and matrix products with binary weights on the CPU: AND and population count, in whole numbers.

Where all weights of a filter are a or -a its current is counted (`popcount.py` has the equation):

    y[n, k, h, w] = a_k (2 pop(x AND plus_k) - pop(x))

with the bits x of the places that the filter covers, 32 channels a word, as `events_cpu` packs them. Where some weights
are 0, pop(x AND plus) - pop(x AND minus) is pop(x AND plus) + pop(NOT x AND minus) - pop(minus): twice as many words.
Inputs of whole multiples of 1/parts, such as averages of spikes, are a few planes of bits, 1/parts of 1, 2, 4 … each.
Signed spikes of a few channels (`events_cpu.MOST_SIGNED`) are twice as many channels; the bits of all places that a
filter covers then share words.

Counts are exact; the current is rounded once, in the product with a_k / parts. Work does not fall with the density of
the spikes: `LEAST` says from which on it is below that of `events_cpu`. Measured, 80 images, one thread: 64 to 64
channels at 32x32 3.4 ms, event by event 17 ms (26 % spikes); averages, 64 to 128 at 16x16, 4.4 ms, Winograd 10 ms.
Compiled for AVX2 10 ms against 18 ms, and 14.5 ms against 11 ms: there averages are left to Winograd.

N images (time folded in), C input channels, K output channels, H W image, P planes, S words of 32 channels.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F

from hwsim.network.binary_ir import COUNTS, RUN, count_tile
from hwsim.network.bits_cpu import PARTS, gathered, seen
from hwsim.network.events_cpu import MOST_SIGNED, WORD
from hwsim.network.threads import PARALLEL, share_threads
from hwsim.network.vector_ir import LANES, WIDE
from hwsim.network.workspace import empty

LEAST = 0.01 if COUNTS else 0.12
"""Density of spikes below which `events_cpu` is faster."""
_LEAST_WORK = 2**24
"""Multiplications of the usual way below which there is nothing to gain."""
_ROWS = 4
"""Places of a tile."""
_PIECE = 32
"""Places of an image row that one program takes."""


@numba.njit(**PARALLEL)
def _signs(weight_KTC, plus_KTS, minus_KTS, size_K, odd_K):
    """Bits of the weights above and below 0, and the size of a filter's weights; odd where they have several."""
    K, T, C = weight_KTC.shape
    for k in numba.prange(K):
        size, odd = np.float32(0), np.uint32(0)
        for t in range(T):
            for s in range(plus_KTS.shape[2]):
                count = min(32, C - 32 * s)
                if size == 0:
                    for c in range(count):
                        size = max(size, abs(weight_KTC[k, t, 32 * s + c]))
                plus, minus = np.uint32(0), np.uint32(0)
                for c in range(count):
                    v = weight_KTC[k, t, 32 * s + c]
                    up, down = np.uint32(v > np.float32(0)), np.uint32(v < np.float32(0))
                    odd |= np.uint32(abs(v) != size) & np.uint32(v != np.float32(0))
                    plus |= up << np.uint32(c)
                    minus |= down << np.uint32(c)
                plus_KTS[k, t, s], minus_KTS[k, t, s] = plus, minus
                if odd != 0:
                    break
            if odd != 0:
                break
        size_K[k], odd_K[k] = size, odd


def _counts_kernel(vectors: int):
    block = vectors * LANES

    @numba.njit(**PARALLEL)
    def counts(words_PNHWS, less_NHW, blocks_JDK, segments, scale_K, minus_K, doubled, rows, out_NHWK):
        """rows: of an image that one program takes."""
        Hp, Wp, S = words_PNHWS.shape[2:]
        N, H, W, K = out_NHWK.shape
        J, D = blocks_JDK.shape[:2]
        x, out, less = words_PNHWS.reshape(-1), out_NHWK.reshape(-1), less_NHW.reshape(-1)
        weight, listed = blocks_JDK.reshape(-1), segments.reshape(-1)
        bands, pieces = -(-H // rows), -(-W // _PIECE)
        for job in numba.prange(N * bands * pieces):
            n, band, piece = job // pieces // bands, job // pieces % bands, job % pieces
            first, last = piece * _PIECE, min(W, (piece + 1) * _PIECE)
            whole = last - (last - first) % _ROWS
            for j in range(J):
                at, k = j * D * block, j * block
                for h in range(band * rows, min(H, (band + 1) * rows)):
                    i, m = (n * Hp + h) * Wp * S, (n * H + h) * W
                    for w in range(first, whole, _ROWS):
                        count_tile(
                            out, (m + w) * K + k, K, x, i + w * S, S, less, m + w, weight, at, scale_K, minus_K, k,
                            listed, doubled, _ROWS, vectors,
                        )  # fmt: skip
                    for w in range(whole, last):
                        count_tile(
                            out, (m + w) * K + k, K, x, i + w * S, S, less, m + w, weight, at, scale_K, minus_K, k,
                            listed, doubled, 1, vectors,
                        )  # fmt: skip

    return counts


_COUNTS = {vectors: _counts_kernel(vectors) for vectors in ((4, 2, 1) if WIDE else (2, 1))}
"""By vectors of a tile."""


class Binary(NamedTuple):
    """A weight whose filters have one size each: bits [K, places, S] above and below 0 (uint32), `size` [K]."""

    plus: np.ndarray
    minus: np.ndarray
    size: np.ndarray
    shape: torch.Size
    has_zeros: bool


def binary(
    weight_KCkk: torch.Tensor,
    shape: tuple[int, ...],
    padding: tuple[int, int],
    parts: int = 1,
    has_winograd: bool = False,
) -> Binary | None:
    """The bits of a weight for float32 inputs of a shape [N, C, H, W] that are multiples of 1/parts.

    None where a filter holds two sizes, and where this file is not the faster way: outputs that fill no vectors, little
    work, many planes; and what `conv_cpu` can take too (has_winograd) where the processor counts no lanes itself. It
    costs a look at all weights that are of one size.
    """
    (N, _, H, W), (K, C, kh, kw) = shape, weight_KCkk.shape
    places = (H + 2 * padding[0] - kh + 1) * (W + 2 * padding[1] - kw + 1)
    if (
        weight_KCkk.dtype != torch.float32
        or parts not in PARTS
        or K % LANES
        or N * places * K * C * kh * kw < _LEAST_WORK
        or (parts > 1 and has_winograd and not COUNTS)
    ):
        return None
    share_threads()
    memory = weight_KCkk.detach().permute(0, 2, 3, 1).contiguous().view(K, kh * kw, C).numpy()
    plus, minus = (np.empty((K, kh * kw, -(-C // WORD)), np.uint32) for _ in range(2))
    size, odd = np.empty(K, np.float32), np.empty(K, np.uint32)
    _signs(memory, plus, minus, size, odd)
    if odd.any() or not np.isfinite(size).all():
        return None
    whole = np.array([2 ** min(WORD, C - WORD * s) - 1 for s in range(plus.shape[2])], np.uint32)
    return Binary(plus, minus, size, weight_KCkk.shape, bool(((plus | minus) != whole).any()))


def _fields(words_KTS: np.ndarray, width: int) -> np.ndarray:
    """The bits of all places of a filter, `width` each, in the order of `_gather`: [K, 1, D]."""
    K, T, _ = words_KTS.shape
    per = WORD // width
    out = np.zeros((K, 1, -(-T // per)), np.uint32)
    for t in range(T):
        out[:, 0, t // per] |= words_KTS[:, t, 0] << np.uint32(t % per * width)
    return out


def _segments(planes: int, plane: int, line: int, down: int, words: int) -> np.ndarray:
    """The segments of `count_tile`: planes from the highest, in each the rows of a filter, at most `RUN` words."""
    out = [
        (p * plane + y * line + d, y * words + d, min(RUN, words - d), int(y == d == 0))
        for p in reversed(range(planes))
        for y in range(down)
        for d in range(0, words, RUN)
    ]
    return np.array(out, np.int64)


def convolution(
    planes_PNHWS: torch.Tensor, weight: Binary, padding: tuple[int, int] = (0, 0), parts: int = 1
) -> torch.Tensor:
    """conv2d(x, weight, padding=padding), [N, K, H, W] with channels-last memory; the kernel is smaller than the image.

    planes: of `planes`, or for parts 1 those of `events_cpu.packed`, [1, N, H, W, S].
    """
    share_threads()
    P, N, H, W, _ = planes_PNHWS.shape
    K, C, kh, kw = weight.shape
    (ph, pw), plus, minus, zeros = padding, weight.plus, weight.minus, weight.has_zeros
    words = planes_PNHWS if ph == pw == 0 else F.pad(planes_PNHWS, (0, 0, pw, pw, ph, ph))
    words = words.numpy().view(np.uint32)
    H, W = H + 2 * ph - kh + 1, W + 2 * pw - kw + 1
    width = C
    if parts == 1 and C <= MOST_SIGNED:
        width, shift = 2 * C, np.uint32(C)
        plus, minus = plus | (minus << shift), minus | (plus << shift)
    if P == 1 and width <= WORD // 2 and kh * kw > 1:
        words, plus, minus = gathered(words, width, kh, kw), _fields(plus, width), _fields(minus, width)
        kh = kw = 1
    if kh == kw == 1:  # one long row
        words = words.reshape(P, 1, 1, -1, words.shape[4])
    if zeros:
        words, bits = np.concatenate([words, ~words], 4), np.concatenate([plus, minus], 2)
    else:
        bits = plus
    out = empty(N, H, W, K, dtype=torch.float32)
    y = out.numpy().reshape(1, 1, -1, K) if kh == kw == 1 else out.numpy()
    less = np.zeros(y.shape[:3], np.int32) if zeros else seen(words, kh, kw)
    fewer = (2**P - 1) * _bits(minus) if zeros else np.zeros(K, np.int32)
    vectors = next(v for v in _COUNTS if K % (v * LANES) == 0)
    block = vectors * LANES
    blocks = np.ascontiguousarray(bits.reshape(K // block, block, -1).transpose(0, 2, 1))
    S = words.shape[4]
    segments = _segments(P, words[0].size, words.shape[3] * S, kh, kw * S)
    rows = max(1, _PIECE // y.shape[2])
    scale = weight.size / np.float32(parts)
    _COUNTS[vectors](words, less, blocks, segments, scale, fewer, int(not zeros), rows, y)
    return out.permute(0, 3, 1, 2)


def _bits(words_KTS: np.ndarray) -> np.ndarray:
    """Ones of each filter, [K]."""
    return np.unpackbits(words_KTS.reshape(len(words_KTS), -1).view(np.uint8), axis=1).sum(1, dtype=np.int32)
