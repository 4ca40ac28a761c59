"""How a layer lies on crossbars: tiles, slices, signs, converters.

A convolution is unrolled: its K = C kh kw inputs of one window are rows, in the order channel, kernel row, kernel
column (that of the weight), and its O outputs are columns; a linear layer has K = C. B bits a weight, b bits a cell:

    m = max(1, B - 1)     bits of the magnitude, on each cell of a pair (differential, paired_rows)
    m = B                 all bits (offset)
    S = ceil(m / b)       slices
    n = 2 S or S          columns of an output: 2 S differential, else S

With a sign and B - 1 bits of magnitude, B bits name the 2^B levels ±1/n … ±1 of the dorefa grid; the other cell of the
pair is off. One bit is a pair of single-bit cells, and so are the three states of a ternary weight (B = 2).

An array of X columns has X - 1 of them for weights if one is the offset. q = floor(columns for weights / columns of a
slice) slices fit side by side; a slice's pair is never torn apart, and a weight's slices stay in one array if they fit:

    row tiles     R = ceil(K / rows)
    column tiles  J = ceil(O / floor(q / S)) if S <= q, else O ceil(S / q)
    columns used  U = n O + (offset: J)
    arrays        A = R J
    cells         A rows X, used K U; each twice for paired rows
    converters    A ceil(X / columns_per_adc)
"""

from typing import Annotated, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from hwsim.config import CardError
from hwsim.device.cited import Cited, Text

Count = Annotated[int, Field(ge=1)]
Resolution = Annotated[int, Field(ge=1, le=32)]

Part = Literal[
    "row_drive", "array_read", "sample", "integrate", "mux", "adc_conversion", "subtract", "shift_add", "tile_add",
    "buffer_read", "register_read", "register_write", "interconnect", "buffer_write", "route",
]  # fmt: skip
"""Actions of crossbars and their periphery; `hwsim.report.crossbar` says what one of each is."""


class Crossbar(Cited):
    """The arrays of a card."""

    rows: Count
    """Rows of an array that take inputs of weights (both rows of a pair of rows count as one)."""
    columns: Count
    """Physical columns of an array."""
    bits_per_cell: Count
    """Bits that one cell holds; a weight of more bits is sliced over several columns."""
    signs: Literal["differential", "offset", "paired_rows"]
    """Signed weights: two columns that are subtracted after conversion; one column an array that is subtracted from
    all; or two cells of one column, on rows that are driven in opposite directions, subtracted on the wire."""
    adc_bits: Resolution
    """Resolution of the converters."""
    columns_per_adc: Count
    """Columns that share a converter, one after the other."""
    input_bits: Resolution
    """Bits of an analog input, which goes in bit by bit."""
    joins_bits: Literal["digital", "analog"] = "digital"
    """Inputs of several bits: every bit is converted and the results are shifted and added; or bit i is sampled 2^i
    times, the charge is integrated, and the sum is converted once."""
    left_out: dict[Part, Text] = {}
    """Actions that are not counted, with the reason: the machine has none, another price includes them, or no source
    prices them."""

    @pydantic.model_validator(mode="after")
    def _columns_hold_a_weight(self) -> Self:
        if self.slices_across < 1:
            raise ValueError(f"columns: {self.columns} is too few for signs: {self.signs}; it must be at least 2")
        return self

    @property
    def columns_of_slice(self) -> int:
        """Columns that one slice of a weight takes."""
        return 2 if self.signs == "differential" else 1

    @property
    def slices_across(self) -> int:
        """Slices that lie side by side in an array, q."""
        return (self.columns - (self.signs == "offset")) // self.columns_of_slice

    @property
    def cells_of_place(self) -> int:
        """Cells at a crossing of a row that takes an input and a column."""
        return 2 if self.signs == "paired_rows" else 1


class Mapping(NamedTuple):
    """A layer on crossbars: tiles of rows and of columns, arrays, cells, converters."""

    rows: int
    """Inputs of a window, K."""
    outputs: int
    """Outputs, O."""
    slices: int
    """Slices of a weight, S."""
    row_tiles: int
    """R."""
    column_tiles: int
    """J."""
    columns: int
    """Columns in use, offset columns included, U."""
    arrays: int
    """R J."""
    cells: int
    """Cells of these arrays."""
    used_cells: int
    """Cells that hold a part of a weight (zero or not) or of the offset."""
    adcs: int
    """Converters of these arrays."""

    @property
    def utilization(self) -> float:
        """Fraction of the cells that are used."""
        return self.used_cells / self.cells

    @property
    def arrays_of_output(self) -> int:
        """Arrays side by side over which one output's slices are spread: 1, unless one array is too narrow."""
        return max(1, self.column_tiles // self.outputs)


def map_layer(crossbar: Crossbar, weight_shape: tuple[int, ...], weight_bits: int) -> Mapping:
    """Where a layer of `weight_shape` ([O, C, kh, kw] or [O, C]) and `weight_bits` bits a weight lies.

    The equations stand above. Raises `CardError` for less than one bit.

    >>> card = {"rows": 64, "columns": 64, "bits_per_cell": 2, "adc_bits": 4, "columns_per_adc": 8, "input_bits": 8}
    >>> crossbar = Crossbar(**card, signs="differential", source="an example", evidence="assumed")
    >>> mapping = map_layer(crossbar, (64, 16, 3, 3), 5)
    >>> mapping.slices, mapping.row_tiles, mapping.column_tiles, mapping.arrays, mapping.adcs
    (2, 3, 4, 12, 96)
    >>> mapping.used_cells, mapping.cells, mapping.utilization
    (36864, 49152, 0.75)
    """
    if weight_bits < 1:
        raise CardError(f"a crossbar holds weights of at least 1 bit, found {weight_bits}")
    outputs, *fan_in = weight_shape
    rows = 1
    for size in fan_in:
        rows *= size
    bits = weight_bits if crossbar.signs == "offset" else max(1, weight_bits - 1)
    slices = _ceil(bits, crossbar.bits_per_cell)
    across = crossbar.slices_across
    column_tiles = _ceil(outputs, across // slices) if slices <= across else outputs * _ceil(slices, across)
    row_tiles = _ceil(rows, crossbar.rows)
    columns = crossbar.columns_of_slice * slices * outputs + column_tiles * (crossbar.signs == "offset")
    arrays = row_tiles * column_tiles
    return Mapping(
        rows, outputs, slices, row_tiles, column_tiles, columns, arrays,
        cells=arrays * crossbar.rows * crossbar.columns * crossbar.cells_of_place,
        used_cells=rows * columns * crossbar.cells_of_place,
        adcs=arrays * _ceil(crossbar.columns, crossbar.columns_per_adc),
    )  # fmt: skip


def outputs_by_array(crossbar: Crossbar, mapping: Mapping) -> dict[int, int]:
    """Outputs (whole or in part) that an array gives → how many of the column tiles give so many."""
    if mapping.slices > crossbar.slices_across:
        return {1: mapping.column_tiles}
    full = crossbar.slices_across // mapping.slices
    last = mapping.outputs - full * (mapping.column_tiles - 1)
    out = {full: mapping.column_tiles - 1, last: 1} if last != full else {full: mapping.column_tiles}
    return {outputs: tiles for outputs, tiles in out.items() if tiles}


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
