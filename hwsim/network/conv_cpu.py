"""3x3 convolutions on the CPU by Winograd's F(4x4, 3x3): a quarter of the multiplications, in float32.

An image is cut into 4x4 output tiles, each with its 6x6 input patch d. With the filter g,

    output tile = A' [ (G g G') . (B' d B) ] A          . is the product of 36 pairs, summed over input channels

so the work is 36 small matrix products, done by torch as one grouped 1x1 convolution, and the two transforms, done
here. A chunk of images is transformed, multiplied and transformed back while it lies in the caches. The gradient of the
input is the same operation with the filter turned by 180 degrees and its channels exchanged.

Rounding: float32 throughout. Against float64 the largest error measured is 6e-5 of the output's rms, for the direct
convolution 5e-6. Only shapes that it is faster for are taken (`fits`), and only in training; all else goes to torch.
Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, arXiv 1509.09308.

N images (time folded in), C input channels, K output channels, H W image, P tiles.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F

from hwsim.network.threads import PARALLEL, share_threads
from hwsim.network.workspace import empty

_G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip
_FILTER = torch.kron(_G, _G).float()
"""G g G' as one matrix [36, 9] on the nine numbers of a filter; exact in float64, rounded once."""
_CHUNK_BYTES = 6 * 2**20
"""Size of a chunk's transformed patches: they and their products stay in the second- and third-level cache."""


@numba.njit(inline="always")
def _forward_six(r0, r1, r2, r3, r4, r5, out, n):
    """B' times six rows of n numbers: out[i] for i = 0..5."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    o = out[0]
    for p in range(n):
        o[p] = four * r0[p] - five * r2[p] + r4[p]
    o = out[1]
    for p in range(n):
        o[p] = (r3[p] + r4[p]) - four * (r1[p] + r2[p])
    o = out[2]
    for p in range(n):
        o[p] = (r4[p] - r3[p]) + four * (r1[p] - r2[p])
    o = out[3]
    for p in range(n):
        o[p] = (r4[p] - r2[p]) + two * (r3[p] - r1[p])
    o = out[4]
    for p in range(n):
        o[p] = (r4[p] - r2[p]) - two * (r3[p] - r1[p])
    o = out[5]
    for p in range(n):
        o[p] = four * r1[p] - five * r3[p] + r5[p]


@numba.njit(inline="always")
def _backward_four(m0, m1, m2, m3, m4, m5, out, n):
    """A' times six rows of n numbers: out[o] for o = 0..3."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    o = out[0]
    for p in range(n):
        o[p] = m0[p] + (m1[p] + m2[p]) + (m3[p] + m4[p])
    o = out[1]
    for p in range(n):
        o[p] = (m1[p] - m2[p]) + two * (m3[p] - m4[p])
    o = out[2]
    for p in range(n):
        o[p] = (m1[p] + m2[p]) + four * (m3[p] + m4[p])
    o = out[3]
    for p in range(n):
        o[p] = (m1[p] - m2[p]) + eight * (m3[p] - m4[p]) + m5[p]


@numba.njit(**PARALLEL)
def _patches(x_NHL, C, V_P36C):
    """V = B' d B of every tile; x is [N, H, W C], zero outside."""
    N, H, L = x_NHL.shape
    W = L // C
    down, across = H // 4, W // 4
    for job in numba.prange(N * down):
        n, ty = job // down, job % down
        zero = np.zeros(L, np.float32)
        R = np.zeros((6, L + 2 * C), np.float32)  # one column of zeros on either side
        top = 4 * ty
        r0 = x_NHL[n, top - 1] if top > 0 else zero
        r5 = x_NHL[n, top + 4] if top + 4 < H else zero
        r1, r2, r3, r4 = x_NHL[n, top], x_NHL[n, top + 1], x_NHL[n, top + 2], x_NHL[n, top + 3]
        _forward_six(r0, r1, r2, r3, r4, r5, R[:, C : C + L], L)
        for tx in range(across):
            V = V_P36C[job * across + tx]
            for i in range(6):
                q = R[i, 4 * tx * C : (4 * tx + 6) * C]
                _forward_six(
                    q[:C], q[C : 2 * C], q[2 * C : 3 * C], q[3 * C : 4 * C], q[4 * C : 5 * C], q[5 * C :],
                    V[6 * i : 6 * i + 6], C,
                )  # fmt: skip


@numba.njit(**PARALLEL)
def _tiles(M_P36K, out_NHL):
    """Output = A' M A of every tile; out is [N, H, W K]."""
    N, H, L = out_NHL.shape
    K = M_P36K.shape[2]
    W = L // K
    down, across = H // 4, W // 4
    for job in numba.prange(N * down):
        n, ty = job // down, job % down
        S = np.empty((4, 6 * K), np.float32)
        for tx in range(across):
            M = M_P36K[job * across + tx].reshape(6, 6 * K)
            _backward_four(M[0], M[1], M[2], M[3], M[4], M[5], S, 6 * K)
            for o in range(4):
                s = S[o]
                row = out_NHL[n, 4 * ty + o, 4 * tx * K : 4 * (tx + 1) * K].reshape(4, K)
                _backward_four(
                    s[:K], s[K : 2 * K], s[2 * K : 3 * K], s[3 * K : 4 * K], s[4 * K : 5 * K], s[5 * K :], row, K
                )


def fits(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor, padding: tuple[int, int]) -> bool:
    """Whether this file's convolution is the faster one: 3x3, padding 1, whole tiles, enough channels and images."""
    N, C, H, W = x_NCHW.shape
    return (
        x_NCHW.device.type == "cpu"
        and x_NCHW.dtype == torch.float32
        and tuple(weight_KCkk.shape[2:]) == (3, 3)
        and tuple(padding) == (1, 1)
        and H % 4 == 0
        and W % 4 == 0
        and min(C, weight_KCkk.shape[0]) >= 64
        and N * H * W >= 8192
    )


def transformed(weight_KCkk: torch.Tensor) -> torch.Tensor:
    """G g G' of every filter, as weights of a grouped 1x1 convolution [36 K, C, 1, 1]."""
    K, C = weight_KCkk.shape[:2]
    U_36KC = (_FILTER @ weight_KCkk.reshape(K * C, 9).T).view(36 * K, C, 1, 1)
    return U_36KC.contiguous(memory_format=torch.channels_last)


def winograd(x_NCHW: torch.Tensor, weight_KCkk: torch.Tensor) -> torch.Tensor:
    """conv2d(x, weight, padding=1) for shapes that `fits` takes; memory of input and output is channels-last."""
    share_threads()
    N, C, H, W = x_NCHW.shape
    K = weight_KCkk.shape[0]
    U = transformed(weight_KCkk)
    x = x_NCHW.permute(0, 2, 3, 1).contiguous().numpy().reshape(N, H, W * C)
    out = empty(N, H, W, K, dtype=torch.float32)
    y = out.numpy().reshape(N, H, W * K)
    tiles = (H // 4) * (W // 4)
    chunk = max(1, _CHUNK_BYTES // (36 * 4 * tiles * max(C, K)))
    V = empty(min(chunk, N) * tiles, 36, C, dtype=torch.float32)
    for start in range(0, N, chunk):
        part = x[start : start + chunk]
        P = len(part) * tiles
        _patches(part, C, V.numpy())
        columns = V[:P].view(1, P, 1, 36 * C).permute(0, 3, 1, 2)
        M = F.conv2d(columns, U, groups=36).permute(0, 2, 3, 1).reshape(P, 36, K)
        _tiles(M.numpy(), y[start : start + chunk])
    return out.permute(0, 3, 1, 2)


def input_gradient(grad_NKHW: torch.Tensor, weight_KCkk: torch.Tensor) -> torch.Tensor:
    """Gradient of conv2d(x, weight, padding=1) with respect to x, for shapes that `fits` takes."""
    return winograd(grad_NKHW, weight_KCkk.flip(2, 3).transpose(0, 1))
