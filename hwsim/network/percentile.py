"""Exact percentiles of very many numbers that come in batches, in memory that does not grow with their count.

The bits of a float32 that is not negative, read as a whole number, have the order of the floats. So two passes over the
same numbers suffice: the first counts them by their upper 16 bits, which tells in which bins the wanted ranks lie; the
second counts the members of these bins by their lower 16 bits, which names the numbers themselves.
"""

import math

import torch

_UPPER = 2**15  # the sign bit is 0
_LOWER = 2**16


class Percentile:
    """numpy.percentile(x, q), method linear, of float32 numbers x >= 0 that are shown twice, in any batches.

        rank h = (n - 1) q / 100;      result = x_(floor h) + (h - floor h) (x_(floor h + 1) - x_(floor h))

    Call `count` with every batch, then `refine` with every batch again, then read `value`. Memory: 2^15 + 2 2^16
    counts, whatever n. Raises `ValueError` for q outside (0, 100], numbers that are negative or not finite, no numbers
    at all, or a second pass that is not the first again.

    >>> p = Percentile(50.0)
    >>> x = torch.tensor([4.0, 1.0, 2.0, 3.0])
    >>> p.count(x); p.refine(x); p.value
    2.5
    """

    def __init__(self, q: float):
        if not 0 < q <= 100:
            raise ValueError(f"percentile {q}: must be above 0 and at most 100")
        self.q, self._upper, self._lower = q, None, {}
        self._refined = 0

    def count(self, x: torch.Tensor) -> None:
        """First pass: one batch, any shape."""
        bins = torch.bincount(_bits(x) >> 16, minlength=_UPPER)
        self._upper = bins if self._upper is None else self._upper.add_(bins)

    def refine(self, x: torch.Tensor) -> None:
        """Second pass: one batch."""
        if not self._lower:
            self._lower = {b: torch.zeros(_LOWER, dtype=torch.int64, device=x.device) for b in self._bins()}
        bits = _bits(x)
        self._refined += len(bits)
        for b, counts in self._lower.items():
            counts += torch.bincount(bits[bits >> 16 == b] & (_LOWER - 1), minlength=_LOWER)

    @property
    def n(self) -> int:
        """How many numbers the first pass has seen."""
        return 0 if self._upper is None else int(self._upper.sum())

    @property
    def value(self) -> float:
        """The percentile, interpolated in float64."""
        bins = self._bins()
        if self._refined != self.n or any(int(self._lower[b].sum()) != int(self._upper[b]) for b in set(bins)):
            raise ValueError(f"percentile: the second pass showed other numbers than the first ({self.n} of them)")
        low, high = (self._number(rank, b) for rank, b in zip(self._ranks(), bins, strict=True))
        return low + (self._place() - self._ranks()[0]) * (high - low)

    def _place(self) -> float:
        return (self.n - 1) * self.q / 100

    def _ranks(self) -> tuple[int, int]:
        below = math.floor(self._place())
        return below, min(below + 1, self.n - 1)

    def _bins(self) -> tuple[int, int]:
        """The upper halves of the two numbers whose ranks are wanted."""
        if not self.n:
            raise ValueError("percentile: of no numbers")
        upto = self._upper.cumsum(0).cpu()
        low, high = (int(torch.searchsorted(upto, rank, right=True)) for rank in self._ranks())
        return low, high

    def _number(self, rank: int, upper: int) -> float:
        before = int(self._upper[:upper].sum())
        lower = int(torch.searchsorted(self._lower[upper].cumsum(0).cpu(), rank - before, right=True))
        return torch.tensor((upper << 16) | lower, dtype=torch.int32).view(torch.float32).item()


def _bits(x: torch.Tensor) -> torch.Tensor:
    """float32 numbers, flat, as whole numbers of the same order."""
    flat = x.detach().to(torch.float32).flatten()
    if len(flat) and not bool((torch.isfinite(flat) & (flat >= 0)).all()):
        raise ValueError("percentile: found a number that is negative or not finite")
    return (flat + 0.0).view(torch.int32)  # -0.0 becomes 0.0
