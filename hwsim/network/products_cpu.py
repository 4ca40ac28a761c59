"""Products of many small matrices on the CPU: those of Winograd's convolution, and the sums of its weight gradient.

G pairs of matrices, M rows, K columns, D depth. Factors are float32, or bf16 (`matrix_ir.PAIRS`); sums are float32.
"""

import numba
import numpy as np

from hwsim.network.matrix_ir import ROWS, multiply, pair_rows
from hwsim.network.threads import PARALLEL
from hwsim.network.vector_ir import LANES, WIDE

_DEPTH = 96
"""Tiles that a weight gradient sums at once: the transforms magnify its terms, short float32 sums lose less of them.
Largest error, 128 images of 64 channels at 8x8: 8e-4 of gradients up to 223; with 512 tiles 13e-4; direct 1e-4."""


def _products_kernel(vectors: int):
    width = vectors * LANES

    @numba.njit(**PARALLEL)
    def products(A_GMD, B_GDK, out_GMK):
        """out = A B for every g."""
        G, D, K = B_GDK.shape
        M = out_GMK.shape[1]
        a, b, out = A_GMD.reshape(-1), B_GDK.reshape(-1), out_GMK.reshape(-1)
        whole = M - M % ROWS
        for g in numba.prange(G):
            for k in range(0, K, width):
                at = g * D * K + k
                for m in range(0, whole, ROWS):
                    row = g * M + m
                    multiply(out, row * K + k, K, a, row * D, D, 1, b, at, K, D, ROWS, vectors, 0)
                for m in range(whole, M):
                    row = g * M + m
                    multiply(out, row * K + k, K, a, row * D, D, 1, b, at, K, D, 1, vectors, 0)

    return products


def _sums_kernel(vectors: int):
    width = vectors * LANES

    @numba.njit(**PARALLEL)
    def sums(A_GDM, B_GDK, out_GMK):
        """out += A' B for every g, of at most `_DEPTH` products at once; M is a multiple of ROWS."""
        G, D, K = B_GDK.shape
        M = out_GMK.shape[1]
        a, b, out = A_GDM.reshape(-1), B_GDK.reshape(-1), out_GMK.reshape(-1)
        for g in numba.prange(G):
            for first in range(0, D, _DEPTH):
                depth, at = min(_DEPTH, D - first), g * D + first
                for k in range(0, K, width):
                    for m in range(0, M, ROWS):
                        to = (g * M + m) * K + k
                        multiply(out, to, K, a, at * M + m, 1, M, b, at * K + k, K, depth, ROWS, vectors, 1)

    return sums


def _pair_sums_kernel(vectors: int):
    width = vectors * LANES

    @numba.njit(**PARALLEL)
    def pair_sums(A_GDM, B_GDK, out_GMK):
        """The same of bf16 factors, [D] in pairs; behind an odd end comes a row of zeros."""
        G, D, K = B_GDK.shape
        M = out_GMK.shape[1]
        a, b, out = A_GDM.reshape(-1), B_GDK.reshape(-1), out_GMK.reshape(-1)
        for g in numba.prange(G):
            a_pairs, b_pairs = np.empty(_DEPTH // 2 * M, np.int32), np.empty(_DEPTH // 2 * K, np.int32)
            for first in range(0, D, _DEPTH):
                depth = min(_DEPTH, D - first)
                half = (depth + 1) // 2
                for d in range(depth // 2):
                    at = g * D + first + 2 * d
                    pair_rows(a_pairs, d * M, a, at * M, (at + 1) * M, M)
                    pair_rows(b_pairs, d * K, b, at * K, (at + 1) * K, K)
                if depth % 2:
                    at = g * D + first + depth - 1
                    for c in range(M):
                        a_pairs[(half - 1) * M + c] = np.int32(a[at * M + c]) & np.int32(0xFFFF)
                    for c in range(K):
                        b_pairs[(half - 1) * K + c] = np.int32(b[at * K + c]) & np.int32(0xFFFF)
                for k in range(0, K, width):
                    for m in range(0, M, ROWS):
                        to = (g * M + m) * K + k
                        multiply(out, to, K, a_pairs, m, 1, M, b_pairs, k, K, half, ROWS, vectors, 1)

    return pair_sums


VECTORS = (4, 2, 1) if WIDE else (2, 1)
"""Vectors of a tile: with AVX-512 four of four rows fit into the registers."""
PRODUCTS = {vectors: _products_kernel(vectors) for vectors in VECTORS}
SUMS = {vectors: _sums_kernel(vectors) for vectors in VECTORS}
PAIR_SUMS = {vectors: _pair_sums_kernel(vectors) for vectors in VECTORS}


def widest(K: int) -> int:
    return next(v for v in VECTORS if K % (v * LANES) == 0)
