"""How the weights of a layer lie in a memory: their bits, the rows that inputs visit, and published energy by pass.

The weights are a matrix of R rows and O columns. A row is an input of a linear layer (R = C), or for a convolution an
input channel and kernel element (R = C k k, in the order of the weight): the kernel is stored once, and which output
place a row leads to is computed from the geometry. N = R O possible synapses, z stored weights of b bits. Bits:

| organization | weights | index |
|---|---|---|
| row, column, crossbar, functional | N b | 0 |
| pb-bmp | z b | N + R ceil(log2(z + 1)): a bit a synapse, a pointer a row |
| pb-csr | z b | z ceil(log2 O) + (R + 1) ceil(log2(z + 1)): a column number a weight, pointers |
| pb-csr, both directions | z b | also z ceil(log2 R) + z ceil(log2 z) + (O + 1) ceil(log2(z + 1)) |

row and functional store a row's O weights one after the other, column an output's R weights; crossbar can be read
either way (a memory with two ports, not an array of analog cells). pb-bmp and pb-csr store a row's weights that are not
zero one after the other. Source: Schaefer et al., ISCAS 2020, arXiv 2003.11639, whose result tables name these
structures; the formulas are this library's reading of them.

C channels, k kernel, H W image, O outputs.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from hwsim.report.action import Action, Definitions
from hwsim.report.trace import Held, LayerCounts


class Capacity(NamedTuple):
    """Bits of an array's weights, and of what says where they belong."""

    weights: int
    index: int


def organization_of(layer: LayerCounts, definitions: Definitions) -> str:
    """The organization that the definitions choose for a layer."""
    is_conv = len(layer.weight_shape) > 2
    return definitions.conv_organization if is_conv else definitions.linear_organization


def is_sparse(organization: str) -> bool:
    """Whether weights that are zero are not stored."""
    return organization.startswith("pb-")


def code_bits(values: int) -> int:
    """Bits that tell so many values apart, ceil(log2 values).

    >>> [code_bits(n) for n in (1, 2, 250, 256, 257)]
    [0, 1, 8, 8, 9]
    """
    return (values - 1).bit_length()


def capacity(
    organization: str, rows: int, columns: int, stored: int, bits: int, *, both_directions: bool = False
) -> Capacity:
    """Bits of R rows and O columns with `stored` weights that are not zero (the table above).

    both_directions: pb-csr with the index of the transposed matrix as well, as learning needs it.

    784 inputs, 128 outputs, a quarter of the weights, 8 bits:

    >>> sum(capacity("pb-bmp", 784, 128, 25088, 8))
    312816
    """
    if not is_sparse(organization):
        return Capacity(rows * columns * bits, 0)
    pointer = code_bits(stored + 1)
    if organization == "pb-bmp":
        return Capacity(stored * bits, rows * columns + rows * pointer)
    index = stored * code_bits(columns) + (rows + 1) * pointer
    if both_directions:
        index += transposed_index_bits(rows, columns, stored)
    return Capacity(stored * bits, index)


def transposed_index_bits(rows: int, columns: int, stored: int) -> int:
    """Bits of pb-csr's index by outputs: row number and place of each weight, and a pointer an output."""
    if not stored:
        return 0
    return stored * (code_bits(rows) + code_bits(stored)) + (columns + 1) * code_bits(stored + 1)


def array_capacity(layer: LayerCounts, held: Held, definitions: Definitions) -> Capacity:
    """Bits of one array of a layer; both directions of an index where the rule is bptt."""
    rows, columns, stored = shape(layer, held)
    both = definitions.rule == "bptt"
    return capacity(organization_of(layer, definitions), rows, columns, stored, held.bits, both_directions=both)


def shape(layer: LayerCounts, held: Held) -> tuple[int, int, int]:
    """(rows R, columns O, weights that are not zero z) of one array of a layer."""
    return prod(layer.weight_shape[1:]), layer.weight_shape[0], int(held.nonzero_CKK.sum())


def visits(layer: LayerCounts, events: np.ndarray) -> np.ndarray:
    """How often events visit each row, [C, k, k] ([C] for a linear layer), exact: padding has no inputs.

    An event at a place visits the row of every kernel element through which it reaches an output that exists
    (`LayerCounts.reach`). events: [C, H, W] or [C], as in `LayerCounts.unit`.
    """
    if len(layer.weight_shape) == 2:
        return events
    rows, columns = (r.astype(np.int64) for r in layer.reach())
    return np.einsum("chw,kh,lw->ckl", events, rows, columns)


def everywhere(layer: LayerCounts) -> np.ndarray:
    """Visits of a step at which every input is active; their sum is R where there is no image."""
    return visits(layer, np.ones((layer.weight_shape[1], *layer.image), dtype=np.int64))


def bursts(visits_CKK: np.ndarray, layer: LayerCounts, held: Held, organization: str) -> dict[int, int]:
    """Stored weights of a row → visits to rows of so many."""
    if not is_sparse(organization):
        return {layer.weight_shape[0]: int(visits_CKK.sum())}
    stored = held.nonzero_CKK
    return {int(z): n for z in np.unique(stored) if (n := int(visits_CKK[stored == z].sum()))}


_PUBLISHED = {
    "row": "crossbar", "column": "crossbar", "crossbar": "crossbar", "pb-bmp": "bitmap", "pb-csr": "csr",
    "functional": "functional",
}  # fmt: skip


def organization_actions(
    name: str, layer: LayerCounts, held: Held, definitions: Definitions, phase: str
) -> Iterator[Action]:
    """Passes over an array as the published synthesis prices them: one pass a presentation, whatever T is.

    Per image, N possible synapses (for a convolution every place that exists, `dense`), z of N stored:

    * a linear layer as row, column or crossbar: N crossbar_forward (a dense matrix, whichever way it lies)
    * as pb-bmp: N bitmap_forward (what the bitmap adds) and z crossbar_forward (the stored words)
    * as pb-csr: z csr_forward
    * a convolution: N functional_forward, conv_bitmap_forward or conv_csr_forward, published for d = 1 only

    A rule of learning adds the same counts of ..._backward in phase error; the published backward energy includes
    gradient and update, and is not split. The price is chosen by the bits of a weight.
    """
    organization = organization_of(layer, definitions)
    is_conv = len(layer.weight_shape) > 2
    possible, stored = int(layer.dense("inbounds")), int(layer.dense("effective", held))
    kind = _PUBLISHED[organization]
    if is_conv:
        units = {kind if kind == "functional" else f"conv_{kind}": possible}
    elif kind == "bitmap":
        units = {"bitmap": possible, "crossbar": stored}
    else:
        units = {kind: stored if kind == "csr" else possible}
    passes = [("forward", phase)]
    if definitions.rule != "inference":
        passes.append(("backward", "error"))
    for direction, where in passes:
        for unit, count in units.items():
            action = f"{unit}_{direction}"
            yield Action(
                name, where, "organization", action, (action,), count, bits=held.bits, weight_bits=held.bits,
                weight_density=held.density,
            )  # fmt: skip
