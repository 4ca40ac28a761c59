"""3x3 convolutions on the CPU by Winograd's F(4x4, 3x3): a quarter of the multiplications, in float32.

An image is cut into 4x4 output tiles, each with its 6x6 input patch d. With the filter g,

    output tile = A' [ (G g G') . (B' d B) ] A          . is the product of 36 pairs, summed over input channels

so the work is 36 small matrix products (`matrix_ir.py`) and the transforms (`winograd_ir.py`). A chunk of images is
transformed, multiplied and transformed back while it lies in the caches. The input's gradient is the same operation
with the filter turned by 180 degrees and its channels exchanged; that of the weights, from tiles e of the gradient, is

    G' [ sum over tiles (A e A') . (B' d B) ] G         . is now the product of 36 pairs, for every two channels

Rounding: float32 throughout. Against float64 the largest error measured is 6e-5 of the output's rms, for the direct
convolution 5e-6. Only shapes that it is faster for are taken (`fits`); all else goes to torch.
Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, arXiv 1509.09308.

N images (time folded in), C input channels, K output channels, H W image, P tiles.
"""

import numba
import numpy as np
import torch

from hwsim.network.events_cpu import unpacked
from hwsim.network.products_cpu import PAIR_SUMS, PRODUCTS, SUMS, widest
from hwsim.network.threads import PARALLEL, share_threads
from hwsim.network.vector_ir import LANES
from hwsim.network.winograd_ir import PATCH, SPREAD, TILE, transform
from hwsim.network.workspace import empty

_G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip
_FILTER = torch.kron(_G, _G).float()
"""G g G' as one matrix [36, 9] on the nine numbers of a filter; exact in float64, rounded once."""
_CHUNK_BYTES = 2 * 2**20
"""Size of a chunk's transformed patches: they and their products stay in the second- and third-level cache."""
_PARTS = 64
"""Pieces of a chunk, each with scratch memory of its own."""


@numba.njit(**PARALLEL)
def _patches(x_NHL, C, V_36PC):
    """V = B' d B of every tile; x is [N, H, W C], zero outside."""
    N, H, L = x_NHL.shape
    P, down, across = V_36PC.shape[1], H // 4, L // C // 4
    x, V = x_NHL.reshape(-1), V_36PC.reshape(-1)
    line = L + 2 * C
    parts = min(_PARTS, N * down)
    for part in numba.prange(parts):
        R = np.zeros(6 * line, np.float32)  # one column of zeros on either side
        d = np.empty(6 * L, np.float32)
        for job in range(N * down * part // parts, N * down * (part + 1) // parts):
            n, ty = job // down, job % down
            top = 4 * ty - 1
            if top >= 0 and top + 6 <= H:
                transform(R, C, line, x, (n * H + top) * L, L, L, PATCH)
            else:
                for r in range(6):
                    if 0 <= top + r < H:
                        d[r * L : (r + 1) * L] = x_NHL[n, top + r]
                    else:
                        d[r * L : (r + 1) * L] = np.float32(0)
                transform(R, C, line, d, 0, L, L, PATCH)
            for tx in range(across):
                at = (job * across + tx) * C
                for i in range(6):
                    transform(V, 6 * i * P * C + at, P * C, R, i * line + 4 * tx * C, C, C, PATCH)


@numba.njit(**PARALLEL)
def _spread(e_NHL, K, Q_36PK):
    """Q = A e A' of every tile of a gradient e, [N, H, W K]."""
    N, H, L = e_NHL.shape
    P, down, across = Q_36PK.shape[1], H // 4, L // K // 4
    e, Q = e_NHL.reshape(-1), Q_36PK.reshape(-1)
    parts = min(_PARTS, N * down)
    for part in numba.prange(parts):
        R = np.empty(6 * L, np.float32)
        for job in range(N * down * part // parts, N * down * (part + 1) // parts):
            n, ty = job // down, job % down
            transform(R, 0, L, e, (n * H + 4 * ty) * L, L, L, SPREAD)
            for tx in range(across):
                at = (job * across + tx) * K
                for i in range(6):
                    transform(Q, 6 * i * P * K + at, P * K, R, i * L + 4 * tx * K, K, K, SPREAD)


@numba.njit(**PARALLEL)
def _tiles(M_36PK, K, out_NHL):
    """Output = A' M A of every tile; out is [N, H, W K]."""
    N, H, L = out_NHL.shape
    P, down, across = M_36PK.shape[1], H // 4, L // K // 4
    M, out = M_36PK.reshape(-1), out_NHL.reshape(-1)
    parts = min(_PARTS, N * down)
    for part in numba.prange(parts):
        S = np.empty(4 * 6 * K, np.float32)
        for job in range(N * down * part // parts, N * down * (part + 1) // parts):
            n, ty = job // down, job % down
            for tx in range(across):
                at = (job * across + tx) * K
                for j in range(6):
                    transform(S, j * K, 6 * K, M, j * P * K + at, 6 * P * K, K, TILE)
                for r in range(4):
                    transform(out, (n * H + 4 * ty + r) * L + 4 * tx * K, K, S, r * 6 * K, K, K, TILE)


def fits(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor, padding: tuple[int, int]) -> bool:
    """Whether this file's convolution is the faster one: 3x3, padding 1, whole tiles, enough channels and images."""
    N, C, H, W = x_NCHW.shape
    return (
        x_NCHW.device.type == "cpu"
        and x_NCHW.dtype in (torch.float32, torch.int8)
        and weight_KCkk.dtype == torch.float32
        and tuple(weight_KCkk.shape[2:]) == (3, 3)
        and tuple(padding) == (1, 1)
        and H % 4 == 0
        and W % 4 == 0
        and min(C, weight_KCkk.shape[0]) >= 32
        and max(C, weight_KCkk.shape[0]) >= 64
        and C % LANES == weight_KCkk.shape[0] % LANES == 0
        and N * H * W >= 4096
    )


def transformed(weight_KCkk: torch.Tensor) -> torch.Tensor:
    """G g G' of every filter, [36, C, K]."""
    K, C = weight_KCkk.shape[:2]
    return (_FILTER @ weight_KCkk.permute(2, 3, 1, 0).reshape(9, C * K)).view(36, C, K)


def _lines(x_NCHW: torch.Tensor) -> torch.Tensor:
    """The tensor as [N, H, W C]; copied only where its memory lies otherwise."""
    N, C, H, W = x_NCHW.shape
    if C % LANES or H % 4 or W % 4:
        raise ValueError(f"convolution: found {C} channels of {H}x{W}; it takes multiples of {LANES} and of 4x4")
    return x_NCHW.permute(0, 2, 3, 1).contiguous().view(N, H, W * C)


def _chunk(tiles: int, channels: int, size: int = _CHUNK_BYTES) -> int:
    """Images of a chunk whose transformed patches take `size` bytes."""
    return max(1, size // (36 * 4 * tiles * channels))


def _paired(U_36CK: torch.Tensor) -> torch.Tensor:
    """The factors as words of two input channels' bf16, int32 [36, C / 2, K]."""
    low, high = U_36CK.bfloat16().unflatten(1, (-1, 2)).view(torch.int16).int().unbind(2)
    return low & 0xFFFF | high << 16


def convolution(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor, pairs: bool = False) -> torch.Tensor:
    """conv2d(x, weight, padding=1) for shapes that `fits` takes; memory of input and output is channels-last.

    pairs: round the factors of the 36 products to bf16 (where `PAIRS`).
    """
    share_threads()
    N, C, H, W = x_NCHW.shape
    K = weight_KCkk.shape[0]
    if K % LANES:
        raise ValueError(f"convolution: found {K} channels of the output; it takes multiples of {LANES}")
    U = transformed(weight_KCkk).contiguous()
    U = (_paired(U) if pairs else U).contiguous().numpy()
    x = _lines(x_NCHW).numpy()
    out = empty(N, H, W, K, dtype=torch.float32)
    y = out.numpy().reshape(N, H, W * K)
    tiles = (H // 4) * (W // 4)
    chunk = min(N, _chunk(tiles, max(C, K)))
    V = empty(36 * chunk * tiles * C, dtype=torch.int16 if pairs else torch.float32)
    M = empty(36 * chunk * tiles * K, dtype=torch.float32)
    for start in range(0, N, chunk):
        part = x[start : start + chunk]
        P = len(part) * tiles
        here, product = V[: 36 * P * C].view(36, P, C), M[: 36 * P * K].view(36, P, K)
        _patches(part, C, here.numpy())
        PRODUCTS[widest(K)]((here.view(torch.int32) if pairs else here).numpy(), U, product.numpy())
        _tiles(product.numpy(), K, y[start : start + chunk])
    return out.permute(0, 3, 1, 2)


def weight_gradient(
    x: torch.Tensor, grad_NKHW: torch.Tensor, pairs: bool = False, channels: int | None = None
) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to the weight, for shapes that `fits` takes.

    x: [N, C, H, W] of any number type; with `channels`, C, spikes that `events_cpu` packed. pairs: as of `convolution`.
    """
    share_threads()
    N, K, H, W = grad_NKHW.shape
    C = channels or x.shape[1]
    e, tiles = _lines(grad_NKHW).numpy(), (H // 4) * (W // 4)
    dU = torch.zeros(36, C, K)
    chunk = min(N, _chunk(tiles, max(C, K), max(_CHUNK_BYTES, dU.nbytes)))  # each chunk walks through all of dU
    V, Q = (empty(36 * chunk * tiles * n, dtype=torch.int16 if pairs else torch.float32) for n in (C, K))
    for start in range(0, N, chunk):
        part = x[start : start + chunk]
        part = _lines(part.to(torch.float32) if channels is None else unpacked(part, C)).numpy()
        P = len(part) * tiles
        here, spread = V[: 36 * P * C].view(36, P, C), Q[: 36 * P * K].view(36, P, K)
        _patches(part, C, here.numpy())
        _spread(e[start : start + chunk], K, spread.numpy())
        (PAIR_SUMS if pairs else SUMS)[widest(K)](here.numpy(), spread.numpy(), dU.numpy())
    return (_FILTER.T @ dU.view(36, C * K)).view(3, 3, C, K).permute(3, 2, 0, 1)


def input_gradient(grad_NKHW: torch.Tensor, weight_KCkk: torch.Tensor, pairs: bool = False) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to x, for shapes that `fits` takes."""
    return convolution(grad_NKHW, weight_KCkk.flip(2, 3).transpose(0, 1), pairs)
