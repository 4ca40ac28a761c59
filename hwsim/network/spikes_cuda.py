"""What the backward pass keeps of spikes on CUDA: a bit each, or a byte of a 2x2 average, written as they are fired.

The neuron's kernel has the spikes in registers when it writes them in the type that the next layer multiplies, so the
short copy costs its own bytes and no pass: 1/8 of a byte a neuron and step (a quarter with the pool, or a whole byte
where the channels are no multiple of 8). It travels as an attribute of the tensor of spikes, and the convolution that
meets this very tensor keeps the copy in its place; views and products of it do not carry it, and are kept as ever.

T steps, B batch, C channels, h w image.
"""

from typing import NamedTuple

import torch

from hwsim.network import lif_cuda_kernels as kernels

_BYTES = 256
"""Packed bytes of a program: 2048 spikes."""


class Kept(NamedTuple):
    """Spikes, or 2x2 averages of them, in short."""

    values: torch.Tensor
    """uint8: [T, B, h, w, C / 8], eight channels a byte, the lowest bit first; or [T, B, h, w, C], parts times each."""
    parts: int
    """The spikes are multiples of 1/parts: 1, or 4 behind the 2x2 pool."""
    is_bits: bool
    """Whether a byte holds eight channels."""

    def again(self, dtype: torch.dtype) -> torch.Tensor:
        """`parts` times the spikes, [T B, C, h, w] and channels-last in memory; all exact in bfloat16 too."""
        T, B, h, w, C = self.values.shape
        if not self.is_bits:
            return self.values.view(T * B, h, w, C).to(dtype).permute(0, 3, 1, 2)
        out = torch.empty(T * B, h, w, 8 * C, dtype=dtype, device=self.values.device)
        count = self.values.numel()
        with torch.cuda.device_of(out):
            kernels.unpack[(kernels.triton.cdiv(count, _BYTES),)](self.values, out, count, BLOCK=_BYTES, num_warps=4)
        return out.permute(0, 3, 1, 2)


def remember(spikes_TBCHW: torch.Tensor, kept: Kept) -> torch.Tensor:
    """The spikes, with their short copy tied to them."""
    spikes_TBCHW._hwsim_kept = (kept, spikes_TBCHW._version)
    return spikes_TBCHW


def recall(spikes_TBCHW: torch.Tensor, parts: int) -> Kept | None:
    """The short copy of this very tensor, as multiples of 1/parts; None where there is none or it was changed since."""
    kept, version = getattr(spikes_TBCHW, "_hwsim_kept", (None, None))
    return kept if kept is not None and kept.parts == parts and version == spikes_TBCHW._version else None
