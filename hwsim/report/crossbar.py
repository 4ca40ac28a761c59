"""Actions of crossbars, counted from what arrived at a layer; exact, an image.

A window is what meets the kernel at one output place and step: K = C kh kw inputs, which lie on the R row tiles of
`hwsim.device.crossbar` (S slices, J column tiles, U columns in use, O outputs). A_r is the number of windows in which
tile r is read: those with at least one input in it that is not zero, or without skipping all. A = sum of A_r.

b bits go in one after the other for every window that is read: 1 for spikes (the sign of a signed spike is the
direction of the drive), ceil(log2(n + 1)) for averages of n spikes, `input_bits` for analog inputs. An input that is
not zero is taken to drive its row in all of them. c = b, or 1 where charge joins the bits (`joins_bits: analog`).
E are the inputs that are not zero, each counted in every window that it lies in (padding has none).

| action | one is | count |
|---|---|---|
| row_drive | one row driven into one array, for one bit | E J b |
| array_read | one array read, for one bit of one window | A J b |
| sample, integrate | one column's charge (only where charge joins the bits) | A U (2^b - 1) |
| adc_conversion | one column, at `adc_bits` | A U c |
| mux | one column put on a shared converter | A U c, or none if `columns_per_adc` is 1 |
| subtract | differential: one column from the other of its pair | A S O c |
| | offset: the offset's sum from an output, at the end | A O (arrays over which an output is spread) |
| shift_add | one more slice or bit joins a sum | A (O (S c - 1) + offset: J (c - 1)) |
| tile_add | the sum of a row tile joins its output's | A O, or none where R is 1 |
| buffer_read | a window's inputs of one tile leave the layer's buffer: rows b bits | A |
| register_read | the same, out of the register of one array | A J |
| register_write | what one array gives for a window goes to its register: outputs w bits | A J |
| interconnect | what one array takes and gives for a window: rows b + outputs w bits | A J |
| buffer_write | a tile's sums for a window go to the layer's buffer: O w bits | A |
| route | the same bits on to where tiles are joined and neurons are | A |

Rows are those of the tile (the last may be shorter), outputs those of the array. w bits hold any sum with its sign:
w = 1 + bits of (2^adc_bits - 1) (1 + 2^b' + … + 2^((S - 1) b')) (2^c - 1) for b' bits a cell.

Finding out that a window is zero is not counted. Errors, gradients and updates do not run on
crossbars here. The ordinary network of the same shape reads every window once an image, with `input_bits` bits, and all
its inputs count as not zero.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from hwsim.config import RunError
from hwsim.device.crossbar import Crossbar, Mapping, map_layer, outputs_by_array
from hwsim.report.action import Action, Definitions
from hwsim.report.trace import Held, LayerCounts


def crossbar_actions(
    name: str,
    layer: LayerCounts,
    held: Held,
    crossbar: Crossbar,
    definitions: Definitions,
    images: int,
    phase: str = "inference",
) -> Iterator[Action]:
    """What a layer's inputs make the crossbars do that hold its weights (phase inference or forward), an image.

    Actions that do not occur, or that the card's block says the machine does not have, are left out. Raises `RunError`
    if windows are skipped and the trace does not say which for arrays of this height.
    """
    mapping = map_layer(crossbar, layer.weight_shape, held.bits)
    active = windows_read(name, layer, mapping, crossbar, images, skip=definitions.skip_zero_windows)
    events = layer.row_events(layer.unit) + layer.row_events(layer.fractional)
    seen = int(layer.unit.sum() + layer.fractional.sum())
    about = {
        "timesteps": layer.steps, "weight_bits": held.bits, "weight_density": held.density,
        "input_density": seen / (images * layer.inputs * layer.steps),
    }  # fmt: skip
    yield from _actions(name, phase, mapping, crossbar, active, events, bits_in(layer, crossbar), images, about)


def ann_actions(name: str, layer: LayerCounts, held: Held, crossbar: Crossbar) -> Iterator[Action]:
    """What the layer of an ordinary network of the same shape, on the same weights, makes the crossbars do."""
    mapping = map_layer(crossbar, layer.weight_shape, held.bits)
    everywhere = np.ones((layer.weight_shape[1], *layer.image), dtype=np.int64)
    about = {"timesteps": 1, "weight_bits": held.bits, "weight_density": held.density, "input_density": 1.0}
    active = [layer.places] * mapping.row_tiles
    events = layer.row_events(everywhere)
    yield from _actions(name, "ann_inference", mapping, crossbar, active, events, crossbar.input_bits, 1, about)


def bits_in(layer: LayerCounts, crossbar: Crossbar) -> int:
    """Bits of an input of the layer, b: of a code its own."""
    return layer.widths.get("input") or layer.parts.bit_length() or crossbar.input_bits


def windows_read(
    name: str, layer: LayerCounts, mapping: Mapping, crossbar: Crossbar, images: int, *, skip: bool
) -> list[int]:
    """A_r of every row tile, summed over images.

    Raises `RunError` if windows are skipped and were not counted for this height. Any height at which the layer has one
    tile will do if it has one here.
    """
    if not skip:
        return [images * layer.steps * layer.places] * mapping.row_tiles
    same = [h for h in layer.windows if h == crossbar.rows or (mapping.row_tiles == 1 and h >= mapping.rows)]
    if not same:
        wanted = [*layer.windows, crossbar.rows]
        raise RunError(
            f"layer {name}: windows without an active input were counted for arrays of "
            f"{', '.join(map(str, layer.windows)) or 'no'} rows, the card's have {crossbar.rows}; account again with "
            f"--set stages.account.window_rows=[{','.join(map(str, wanted))}], or do not skip zero windows"
        )
    return [int(n) for n in layer.windows[same[0]]]


def array_reads(mapping: Mapping, active: Sequence[int], bits: int) -> int:
    """Reads of single arrays, one a bit: A J b."""
    return sum(active) * mapping.column_tiles * bits


def adc_conversions(mapping: Mapping, crossbar: Crossbar, active: Sequence[int], bits: int) -> int:
    """Conversions of single columns: A U c."""
    return sum(active) * mapping.columns * _joined(crossbar, bits)


def _joined(crossbar: Crossbar, bits: int) -> int:
    """Bits that are converted one by one, c."""
    return 1 if crossbar.joins_bits == "analog" else bits


def sum_bits(mapping: Mapping, crossbar: Crossbar, bits: int) -> int:
    """Bits of a sum that leaves the arrays, w."""
    places = sum(2 ** (s * crossbar.bits_per_cell) for s in range(mapping.slices))
    return 1 + ((2**crossbar.adc_bits - 1) * places * (2 ** _joined(crossbar, bits) - 1)).bit_length()


def _actions(
    name: str,
    phase: str,
    mapping: Mapping,
    crossbar: Crossbar,
    active: Sequence[int],
    events: int,
    bits: int,
    images: int,
    about: dict,
) -> Iterator[Action]:
    counts = Counter(_computing(mapping, crossbar, active, events, bits))
    for tile, read in enumerate(active):
        rows = min(crossbar.rows, mapping.rows - tile * crossbar.rows)
        counts.update(_moving(mapping, crossbar, rows, read, bits))
    for (action, moved), count in counts.items():
        if count and action not in crossbar.left_out:
            yield Action(name, phase, "crossbar", action, (action,), count / images, moved, input_bits=bits, **about)


def _computing(
    mapping: Mapping, crossbar: Crossbar, active: Sequence[int], events: int, bits: int
) -> dict[tuple[str, int], int]:
    """(action, bits that it is on) → count over all images, of reading, converting and adding."""
    read, tiles = sum(active), mapping.column_tiles
    outputs, slices, once = mapping.outputs, mapping.slices, _joined(crossbar, bits)
    conversions = adc_conversions(mapping, crossbar, active, bits)
    samples = read * mapping.columns * (2**bits - 1) if crossbar.joins_bits == "analog" else 0
    offset, word = crossbar.signs == "offset", sum_bits(mapping, crossbar, bits)
    subtractions = {
        "differential": slices * outputs * once, "offset": outputs * mapping.arrays_of_output, "paired_rows": 0,
    }  # fmt: skip
    return {
        ("row_drive", 1): events * tiles * bits,
        ("array_read", 1): array_reads(mapping, active, bits),
        ("sample", 1): samples,
        ("integrate", 1): samples,
        ("mux", 1): conversions if crossbar.columns_per_adc > 1 else 0,
        ("adc_conversion", crossbar.adc_bits): conversions,
        ("subtract", word if offset else crossbar.adc_bits): read * subtractions[crossbar.signs],
        ("shift_add", word): read * (outputs * (slices * once - 1) + offset * tiles * (once - 1)),
        ("tile_add", word): read * outputs if mapping.row_tiles > 1 else 0,
    }  # fmt: skip


def _moving(mapping: Mapping, crossbar: Crossbar, rows: int, read: int, bits: int) -> Counter[tuple[str, int]]:
    """(action, bits that it moves) → count over all images, for one row tile."""
    word = sum_bits(mapping, crossbar, bits)
    out: Counter[tuple[str, int]] = Counter()
    out["buffer_read", rows * bits] += read
    for outputs, tiles in outputs_by_array(crossbar, mapping).items():
        out["register_read", rows * bits] += read * tiles
        out["register_write", outputs * word] += read * tiles
        out["interconnect", rows * bits + outputs * word] += read * tiles
    for action in ("buffer_write", "route"):
        out[action, mapping.outputs * word] += read
    return out
