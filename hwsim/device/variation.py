"""Laws of spread from cell to cell: what a level becomes when it is written into real cells.

Pure functions of a tensor of levels, drawn standard normals `z` and the numbers of a card. They draw nothing, change
nothing in place, keep the tensor's type and device, and never wait for the GPU. A law acts on *levels* (1 = full
conductance); a quantizer's digital scale is multiplied in afterwards by the store. `lognormal` is homogeneous,
lognormal(c w) = c lognormal(w) for c > 0, so there the order makes no difference; the rows of `lognormal_by_level` are
limits of levels.
"""

import torch
from torch import Tensor

CLAMPS = ("none", "magnitude", "signed")

Row = tuple[float | None, float | None, float]


def lognormal(weight: Tensor, z: Tensor, sigma: float, clamp: str, on_off_ratio: float) -> Tensor:
    """One lognormal factor for every cell, and what limits the result.

        v = w · exp(σ z)
        "none"       v
        "magnitude"  sign(w) · |v|, with |v| limited to [max|w|/on_off_ratio, max|w|]
        "signed"     |v| limited to [min w, max w] of the *signed* tensor, then negated where v < 0

    weight: levels, any shape.   z: standard normals, same shape.   sigma: spread of ln(factor), unit-free.
    sigma = 0 returns `weight` itself, not clamped. A level 0 stays 0: both cells of a differential pair are off, and
    their difference has no lower limit.

    "signed" is the reference. When max w < |min w| it cuts the large negatives even for tiny sigma, it flips every sign
    of an all-negative tensor, and its lower limit acts only on an all-positive one (trap B2). With both clamps a
    cell on the top level can only lose conductance, so at one bit the noise is one-sided; with "none" it is not.

    Source: the reference's `addDeviceVariation_SA` ("signed"); "magnitude" with ratio 350 is its commented-out line.

    >>> lognormal(torch.tensor([1.0, -0.5]), torch.tensor([1.0, -1.0]), 0.1, "none", 350.0)
    tensor([ 1.1052, -0.4524])
    >>> lognormal(torch.tensor([-1.0, 0.75]), torch.zeros(2), 1e-9, "signed", 350.0)
    tensor([-0.7500,  0.7500])
    """
    _check_normals(weight, z)
    if sigma == 0:
        return weight
    varied = weight * torch.exp(sigma * z.to(weight.dtype))
    if clamp == "none":
        return varied
    size = varied.abs()
    if clamp == "magnitude":
        top = weight.abs().amax()
        return torch.minimum(torch.maximum(size, top / on_off_ratio), top) * torch.sign(weight)
    if clamp == "signed":
        size = torch.maximum(torch.minimum(size, weight.amax()), weight.amin())
        return torch.where(varied < 0, -size, size)
    raise ValueError(f"clamp: {clamp!r} is not one of {', '.join(CLAMPS)}")


def lognormal_by_level(weight: Tensor, z: Tensor, rows: tuple[Row, ...] | list[Row]) -> Tensor:
    """A spread for each level: every row keeps the cells whose level lies in its range and spreads those.

        held = Σ_r w · [low_r <= |w| <= high_r] · exp(σ_r z_r)

    weight: levels, any shape.   z: standard normals of that shape (one draw for all rows), or (R, *shape), one a row.
    rows: (low, high, sigma) each; None is no limit. No rows at all return `weight` itself.

    A level in no row becomes 0 and a level in two rows is held twice: that is what the reference's own rows do on its
    own grid (trap B3). A card's rows are checked against the grid before they get here.

    Source: the reference's `addDeviceVar_bbb`, which it never calls.

    >>> lognormal_by_level(torch.tensor([-1.0, 1 / 3]), torch.ones(2), [(None, 0.4, 0.2), (0.9, None, 0.1)])
    tensor([-1.1052,  0.4071])
    """
    rows = tuple(rows)
    if not rows:
        return weight
    shared = z.shape == weight.shape
    if not shared:
        _check_normals(weight, z, rows=len(rows))
    size = weight.abs()
    z = z.to(weight.dtype)
    held = torch.zeros_like(weight)
    for r, (low, high, sigma) in enumerate(rows):
        spread = weight * torch.exp(sigma * (z if shared else z[r]))
        if low is not None:
            spread = spread.masked_fill(size < low, 0)
        if high is not None:
            spread = spread.masked_fill(size > high, 0)
        held = held + spread
    return held


def rows_holding(level: float, rows: tuple[Row, ...] | list[Row]) -> list[Row]:
    """The rows whose range contains |level|. Exactly one where the rows fit the grid.

    >>> rows_holding(-1 / 3, [(None, 0.4, 0.2), (0.9, None, 0.1)])
    [(None, 0.4, 0.2)]
    """
    size = abs(level)
    return [r for r in rows if (r[0] is None or r[0] <= size) and (r[1] is None or size <= r[1])]


def _check_normals(weight: Tensor, z: Tensor, rows: int | None = None) -> None:
    # Normals that merely broadcast would give many cells the same factor.
    want = tuple(weight.shape) if rows is None else (rows, *weight.shape)
    if tuple(z.shape) != want:
        raise ValueError(f"z: shape {tuple(z.shape)} does not fit weights of shape {tuple(weight.shape)}; want {want}")
