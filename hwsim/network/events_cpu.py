"""3x3 convolutions of spikes on the CPU, event by event: work falls with the density of the spikes, in float32.

Spikes are packed, a bit each, 32 channels a word. Forward, each spike adds a row of weights to the sums of the three
output places around it in a row of the image:

    y[n, :, h, w] = sum over ky, kx and the channels c that fired at (h + ky - 1, w + kx - 1) of  weight[:, c, ky, kx]

with a block of weights (32 inputs, 3 taps, up to 64 outputs: 24 KiB) in the first-level cache while it meets a whole
image. The gradient of the weights goes the other way: for each channel a list of the places where it fired in a tile of
128 pixels, and for each of them the nine gradients around it, added in registers (`vector_ir.py`).

Signed spikes of a few channels (`MOST_SIGNED`: a Poisson coded image) become twice as many channels, those at 1 and
those at -1, which meet the weights turned in sign.

Sums are those of float32 additions in the order of the channels: closer to float64 than a direct convolution. The
weight gradient is summed in `_PARTS` groups of images whose order is fixed, so it does not depend on the number of
threads. Measured, 80 images of 64 channels at 32x32 with 26 % spikes, one thread: forward 16 ms, gradient 22 ms; torch
52 and 59 ms.

N images (time folded in), C input channels, K output channels, H W image, S words of 32 channels.
"""

import numba
import numpy as np
import torch

from hwsim.network import table_cpu
from hwsim.network.binary_ir import equal_words, population
from hwsim.network.threads import PARALLEL, share_threads
from hwsim.network.vector_ir import LANES, TAP_VECTORS, add_rows, add_taps, lowest_bit
from hwsim.network.workspace import empty

WORD = 32
"""Channels of a word."""
DENSEST = 0.33
"""Density of spikes above which Winograd's convolution is faster; where that does not fit, `DENSEST_DIRECT`."""
DENSEST_DIRECT = 0.7
MOST_SIGNED = 8
"""Input channels up to which spikes may be signed, at any density: torch has no good way for so few channels."""
_TILE = 128
"""Pixels of a tile of the weight gradient."""
_TAP = TAP_VECTORS * LANES
"""Output channels of a block of the weight gradient."""
_PARTS, _PARTS_BYTES = 16, 2**26
"""Groups of images of the weight gradient, and the memory that their sums may take."""


@numba.njit(**PARALLEL)
def _pack(x_NHWC, bits_NHWS, ones_N, odd_N):
    """A bit for each input that is 1; how many, and odd where an image holds an input that is neither 0 nor 1."""
    N, H, W, C = x_NHWC.shape
    x = x_NHWC.reshape(-1)
    for n in numba.prange(N):
        ones, odd = 0, np.uint32(0)
        for h in range(H):
            for w in range(W):
                for s in range(bits_NHWS.shape[3]):
                    first, count = ((n * H + h) * W + w) * C + 32 * s, C - 32 * s
                    word, rest = np.uint32(0), np.uint32(0)
                    if count >= 32:
                        word, two, three, four, rest = equal_words(x, first, np.float32(1))
                        rest |= two | three | four
                    else:
                        for c in range(count):
                            one = np.uint32(x[first + c] == np.float32(1))
                            word |= one << np.uint32(c)
                            rest |= np.uint32(x[first + c] != np.float32(0)) - one
                    ones += population(word)
                    odd |= rest
                    bits_NHWS[n, h, w, s] = word
        ones_N[n], odd_N[n] = ones, odd


@numba.njit(**PARALLEL)
def _pack_signed(x_NHWC, bits_NHWS, odd_N):
    """Bits c for inputs that are 1, C + c for those that are -1; how many inputs are another number but 0."""
    N, H, W, C = x_NHWC.shape
    for n in numba.prange(N):
        odd = 0
        for h in range(H):
            for w in range(W):
                word = np.uint32(0)
                for c in range(C):
                    v = x_NHWC[n, h, w, c]
                    up, down = np.uint32(v == np.float32(1)), np.uint32(v == np.float32(-1))
                    word |= (up << np.uint32(c)) | (down << np.uint32(C + c))
                    odd += np.uint32(v != np.float32(0)) - up - down
                bits_NHWS[n, h, w, 0] = word
        odd_N[n] = odd


@numba.njit(**PARALLEL)
def _unpack(bits_NHWS, x_NHWC):
    N, H, W, C = x_NHWC.shape
    for n in numba.prange(N):
        for h in range(H):
            for w in range(W):
                for c in range(C):
                    word = bits_NHWS[n, h, w, c // 32]
                    x_NHWC[n, h, w, c] = np.float32(word >> np.uint32(c % 32) & np.uint32(1))


def _forward_kernel(vectors: int):
    block = vectors * LANES

    @numba.njit(**PARALLEL)
    def forward(bits_NHWS, weight_JSYXCK, out_NHWK):
        N, H, W, S = bits_NHWS.shape
        K = out_NHWK.shape[3]
        out, weight = out_NHWK.reshape(-1), weight_JSYXCK.reshape(-1)
        tap = 32 * block
        for n in numba.prange(N):
            none = np.uint32(0)
            for j in range(K // block):
                for h in range(H):
                    for w in range(W):
                        for k in range(block):
                            out_NHWK[n, h, w, j * block + k] = np.float32(0)
                for s in range(S):
                    for ky in range(3):
                        at = ((j * S + s) * 3 + ky) * 3 * tap
                        for h in range(max(0, 1 - ky), min(H, H + 1 - ky)):
                            y = h + ky - 1
                            left, here = none, bits_NHWS[n, y, 0, s]
                            o = ((n * H + h) * W) * K + j * block
                            for w in range(W):
                                right = bits_NHWS[n, y, w + 1, s] if w + 1 < W else none
                                add_rows(out, o, weight, at, left, here, right, tap, vectors)
                                left, here = here, right
                                o += K

    return forward


_FORWARD = {vectors: _forward_kernel(vectors) for vectors in (4, 2, 1)}
"""By vectors of a block of outputs."""


@numba.njit(**PARALLEL)
def _weight_gradient(bits_NHWS, grad_NHWK, rows, together, out_PJCL):
    """rows: of an image in a tile; together: images in a tile, more than one only where it holds them whole."""
    N, H, W, S = bits_NHWS.shape
    J, C = out_PJCL.shape[1], out_PJCL.shape[2]
    parts, line = out_PJCL.shape[0], (W + 2) * _TAP
    for p in numba.prange(parts):
        tile = np.zeros(together * (rows + 2) * line, np.float32)  # the gradients, zeros around every image
        places = np.empty((C, together * rows * W), np.uint16)
        count = np.zeros(C, np.int64)
        out, listed = out_PJCL[p].reshape(-1), places.reshape(-1)
        out[:] = np.float32(0)
        last = N * (p + 1) // parts
        for first in range(N * p // parts, last, together):
            images = min(together, last - first)
            for top in range(0, H, rows):
                high = min(rows, H - top)
                count[:] = 0
                for i in range(images):
                    for h in range(high):
                        for w in range(W):
                            here = np.uint16((i * (rows + 2) + h) * (W + 2) + w)
                            for s in range(S):
                                word = bits_NHWS[first + i, top + h, w, s]
                                while word != 0:
                                    c = 32 * s + lowest_bit(word)
                                    places[c, count[c]] = here
                                    count[c] += 1
                                    word &= word - np.uint32(1)
                for j in range(J):
                    for i in range(images):
                        for h in range(high + 2):
                            y, o = top + h - 1, (i * (rows + 2) + h) * line
                            if y < 0 or y >= H:
                                tile[o : o + line] = np.float32(0)
                            else:
                                for w in range(W):
                                    for k in range(_TAP):
                                        tile[o + (w + 1) * _TAP + k] = grad_NHWK[first + i, y, w, j * _TAP + k]
                    for c in range(C):
                        if count[c] > 0:
                            o = (j * C + c) * 9 * _TAP
                            add_taps(out, o, tile, listed, c * places.shape[1], count[c], line, TAP_VECTORS)


def fits(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor, padding: tuple[int, int]) -> bool:
    """Whether this file can compute the convolution: float32, 3x3, padding 1, outputs that fill vectors."""
    N, C, H, W = x_NCHW.shape
    return (
        x_NCHW.device.type == "cpu"
        and x_NCHW.dtype == weight_KCkk.dtype == torch.float32
        and tuple(weight_KCkk.shape[2:]) == (3, 3)
        and tuple(padding) == (1, 1)
        and weight_KCkk.shape[0] % _TAP == 0
        and weight_KCkk.shape[0] % LANES == 0
        and N * H * W >= 1024
        and W + 2 <= 2**14
    )


def packed(x_NCHW: torch.Tensor, densest: float) -> torch.Tensor | None:
    """The spikes as words [N, H, W, S] (int32); None where an input is no spike, or more than `densest` fire.

    Of at most `MOST_SIGNED` channels spikes are 1 and -1, and may be as dense as they like; else they are 1.
    """
    share_threads()
    x = x_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
    N, H, W, C = x.shape
    bits = np.empty((N, H, W, -(-C // WORD)), np.uint32)
    ones, odd = np.zeros(N, np.int64), np.zeros(N, np.int64)
    if C <= MOST_SIGNED:
        _pack_signed(x, bits, odd)
    else:
        _pack(x, bits, ones, odd)
    if odd.any() or ones.sum() > densest * x.size:
        return None
    return torch.from_numpy(bits.view(np.int32))


def unpacked(bits_NHWS: torch.Tensor, channels: int) -> torch.Tensor:
    """The spikes, [N, C, H, W] with channels-last memory, of more than `MOST_SIGNED` channels."""
    share_threads()
    out = empty(*bits_NHWS.shape[:3], channels, dtype=torch.float32)
    _unpack(bits_NHWS.numpy().view(np.uint32), out.numpy())
    return out.permute(0, 3, 1, 2)


def convolution(bits_NHWS: torch.Tensor, weight_KCkk: torch.Tensor) -> torch.Tensor:
    """conv2d(spikes, weight, padding=1), [N, K, H, W] with channels-last memory."""
    share_threads()
    N, H, W, S = bits_NHWS.shape
    K, C = weight_KCkk.shape[:2]
    if C <= table_cpu.MOST:
        return table_cpu.convolution(bits_NHWS[..., 0], weight_KCkk)
    vectors = next(v for v in _FORWARD if K % (v * LANES) == 0)
    block = vectors * LANES
    weight = weight_KCkk.detach()
    weight = torch.cat([weight, -weight], 1) if C <= MOST_SIGNED else weight
    if weight.shape[1] < S * WORD:
        weight = torch.cat([weight, weight.new_zeros(K, S * WORD - weight.shape[1], 3, 3)], 1)
    blocks = weight.reshape(K // block, block, S, WORD, 3, 3).permute(0, 2, 4, 5, 3, 1).contiguous()
    out = empty(N, H, W, K, dtype=torch.float32)
    _FORWARD[vectors](bits_NHWS.numpy().view(np.uint32), blocks.numpy(), out.numpy())
    return out.permute(0, 3, 1, 2)


def weight_gradient(bits_NHWS: torch.Tensor, grad_NKHW: torch.Tensor, channels: int) -> torch.Tensor:
    """Gradient of conv2d(spikes, weight, padding=1) with respect to the weight, [K, C, 3, 3]."""
    share_threads()
    N, H, W, S = bits_NHWS.shape
    grad = grad_NKHW.permute(0, 2, 3, 1).contiguous().numpy()
    K, C = grad.shape[3], S * WORD
    parts = max(1, min(_PARTS, N, _PARTS_BYTES // (4 * 9 * K * C)))
    rows = max(1, min(H, _TILE // W))
    together = max(1, _TILE // (H * W)) if rows == H else 1
    sums = empty(parts, K // _TAP, C, 9 * _TAP, dtype=torch.float32)
    _weight_gradient(bits_NHWS.numpy().view(np.uint32), grad, rows, together, sums.numpy())
    whole = sums.sum(0).view(K // _TAP, C, 3, 3, _TAP).permute(0, 4, 1, 2, 3).reshape(K, C, 3, 3)
    if channels <= MOST_SIGNED:
        return whole[:, :channels] - whole[:, channels : 2 * channels]
    return whole[:, :channels]
