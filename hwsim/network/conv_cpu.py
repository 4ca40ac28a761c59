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

from hwsim.network.matrix_ir import ROWS, multiply
from hwsim.network.threads import PARALLEL, share_threads
from hwsim.network.vector_ir import LANES, WIDE
from hwsim.network.winograd_ir import PATCH, SPREAD, TILE, transform
from hwsim.network.workspace import empty

_G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip
_FILTER = torch.kron(_G, _G).float()
"""G g G' as one matrix [36, 9] on the nine numbers of a filter; exact in float64, rounded once."""
_CHUNK_BYTES = 6 * 2**20
"""Size of a chunk's transformed patches: they and their products stay in the second- and third-level cache."""
_DEPTH = 96
"""Tiles that a weight gradient sums at once: the transforms magnify its terms, short float32 sums lose less of them.
Largest error, 128 images of 64 channels at 8x8: 8e-4 of gradients up to 223; with 512 tiles 13e-4; direct 1e-4."""


@numba.njit(**PARALLEL)
def _patches(x_NHL, C, V_36PC):
    """V = B' d B of every tile; x is [N, H, W C], zero outside."""
    N, H, L = x_NHL.shape
    P, down, across = V_36PC.shape[1], H // 4, L // C // 4
    x, V = x_NHL.reshape(-1), V_36PC.reshape(-1)
    line = L + 2 * C
    for job in numba.prange(N * down):
        n, ty = job // down, job % down
        R = np.zeros(6 * line, np.float32)  # one column of zeros on either side
        top = 4 * ty - 1
        if top >= 0 and top + 6 <= H:
            transform(R, C, line, x, (n * H + top) * L, L, L, PATCH)
        else:
            d = np.zeros(6 * L, np.float32)
            for r in range(max(0, -top), min(6, H - top)):
                d[r * L : (r + 1) * L] = x_NHL[n, top + r]
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
    for job in numba.prange(N * down):
        n, ty = job // down, job % down
        R = np.empty(6 * L, np.float32)
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
    for job in numba.prange(N * down):
        n, ty = job // down, job % down
        S = np.empty(4 * 6 * K, np.float32)
        for tx in range(across):
            at = (job * across + tx) * K
            for j in range(6):
                transform(S, j * K, 6 * K, M, j * P * K + at, 6 * P * K, K, TILE)
            for r in range(4):
                transform(out, (n * H + 4 * ty + r) * L + 4 * tx * K, K, S, r * 6 * K, K, K, TILE)


def _products_kernel(vectors: int):
    width = vectors * LANES

    @numba.njit(**PARALLEL)
    def products(A_GMD, B_GDK, transposed, out_GMK):
        """out = A B for every g; transposed: A is [G, D, M]."""
        G, D, K = B_GDK.shape
        M = out_GMK.shape[1]
        a, b, out = A_GMD.reshape(-1), B_GDK.reshape(-1), out_GMK.reshape(-1)
        a_row, a_step = (1, M) if transposed else (D, 1)
        whole = M - M % ROWS
        for g in numba.prange(G):
            for k in range(0, K, width):
                for m in range(0, whole, ROWS):
                    i = g * M * D + m * a_row
                    multiply(out, (g * M + m) * K + k, K, a, i, a_row, a_step, b, g * D * K + k, K, D, ROWS, vectors)
                for m in range(whole, M):
                    i = g * M * D + m * a_row
                    multiply(out, (g * M + m) * K + k, K, a, i, a_row, a_step, b, g * D * K + k, K, D, 1, vectors)

    return products


_PRODUCTS = {vectors: _products_kernel(vectors) for vectors in ((4, 2, 1) if WIDE else (2, 1))}
"""By vectors of a tile: with AVX-512 four of four rows fit into the registers."""


def _multiplied(A: np.ndarray, B: np.ndarray, transposed: bool, out: np.ndarray) -> None:
    """out [G, M, K] = A [G, M, D], or [G, D, M] transposed, times B [G, D, K]."""
    vectors = next(v for v in _PRODUCTS if B.shape[2] % (v * LANES) == 0)
    _PRODUCTS[vectors](A, B, transposed, out)


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


def _chunk(tiles: int, channels: int) -> int:
    """Images of a chunk."""
    return max(1, _CHUNK_BYTES // (36 * 4 * tiles * channels))


def convolution(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor) -> torch.Tensor:
    """conv2d(x, weight, padding=1) for shapes that `fits` takes; memory of input and output is channels-last."""
    share_threads()
    N, C, H, W = x_NCHW.shape
    K = weight_KCkk.shape[0]
    if K % LANES:
        raise ValueError(f"convolution: found {K} channels of the output; it takes multiples of {LANES}")
    U = transformed(weight_KCkk).contiguous().numpy()
    x = _lines(x_NCHW).numpy()
    out = empty(N, H, W, K, dtype=torch.float32)
    y = out.numpy().reshape(N, H, W * K)
    tiles = (H // 4) * (W // 4)
    chunk = min(N, _chunk(tiles, max(C, K)))
    V, M = (empty(36 * chunk * tiles * n, dtype=torch.float32) for n in (C, K))
    for start in range(0, N, chunk):
        part = x[start : start + chunk]
        P = len(part) * tiles
        here, product = V[: 36 * P * C].view(36, P, C), M[: 36 * P * K].view(36, P, K)
        _patches(part, C, here.numpy())
        _multiplied(here.numpy(), U, False, product.numpy())
        _tiles(product.numpy(), K, y[start : start + chunk])
    return out.permute(0, 3, 1, 2)


def weight_gradient(x_NCHW: torch.Tensor, grad_NKHW: torch.Tensor) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to the weight, for shapes that `fits` takes; x may be of
    any number type.
    """
    share_threads()
    N, C, H, W = x_NCHW.shape
    K = grad_NKHW.shape[1]
    x, e = _lines(x_NCHW), _lines(grad_NKHW).numpy()
    tiles = (H // 4) * (W // 4)
    chunk = min(N, _chunk(tiles, max(C, K)), max(1, _DEPTH // tiles))
    V, Q = (empty(36 * chunk * tiles * n, dtype=torch.float32) for n in (C, K))
    dU, more = torch.zeros(36, C, K), torch.empty(36, C, K)
    for start in range(0, N, chunk):
        part = x[start : start + chunk].to(torch.float32).numpy()
        P = len(part) * tiles
        here, spread = V[: 36 * P * C].view(36, P, C), Q[: 36 * P * K].view(36, P, K)
        _patches(part, C, here.numpy())
        _spread(e[start : start + chunk], K, spread.numpy())
        _multiplied(here.numpy(), spread.numpy(), True, more.numpy())
        dU += more
    return (_FILTER.T @ dU.view(36, C * K)).view(3, 3, C, K).permute(3, 2, 0, 1)


def input_gradient(grad_NKHW: torch.Tensor, weight_KCkk: torch.Tensor) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to x, for shapes that `fits` takes."""
    return convolution(grad_NKHW, weight_KCkk.flip(2, 3).transpose(0, 1))
