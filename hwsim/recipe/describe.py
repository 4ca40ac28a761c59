"""How the layers of a finished run lie on a card's crossbars, and how often these are read: `hwsim describe`."""

from pathlib import Path

from hwsim.config import CardError, RunError
from hwsim.device.card import load_card
from hwsim.device.crossbar import Crossbar, map_layer
from hwsim.recipe.tracefile import read_trace
from hwsim.report import crossbar as work
from hwsim.report.trace import Counts

CARD = "rram_crossbar_spikesim"
"""Card of crossbars where none is named."""
COLUMNS = (
    "layer", "array", "weight_bits", "input_bits", "rows_needed", "columns_needed", "row_tiles", "column_tiles",
    "slices", "arrays", "cells", "used_cells", "utilization", "adcs", "array_reads", "array_reads_all",
    "adc_conversions", "adc_conversions_all",
)  # fmt: skip
"""Reads and conversions are an image's: with windows skipped that have no active input, and (_all) without."""
_ADDS_UP = (
    "arrays", "cells", "used_cells", "adcs", "array_reads", "array_reads_all", "adc_conversions", "adc_conversions_all",
)  # fmt: skip


def describe(run: Path, card: str = CARD, *, map_all: bool = False) -> list[dict]:
    """One row (`COLUMNS`) for every array of weights that lies on crossbars, and a TOTAL row.

    card: CARD or CARD+CARD, of which the last with crossbars counts. map_all: lay down every layer, with the bits of
    its weights, not only those on resistive cells (a hybrid layer's SRAM part never). Members of an ensemble are
    LAYER@NAME.

    Raises `CardError` for a card without crossbars; `RunError` for a folder without counts, counts without this height
    of arrays, or a run of which nothing lies on resistive cells.
    """
    crossbars = [c.crossbar for c in map(load_card, card.split("+")) if c.crossbar]
    if not crossbars:
        raise CardError(f"card {card}: has no crossbars; take one that has, as {CARD}")
    counts = read_trace(run)
    rows = mapped(counts, crossbars[-1], map_all=map_all)
    if not rows:
        raise RunError(f"{run}: no layer lies on resistive cells; map every layer with --map-all")
    return rows


def mapped(counts: Counts, crossbar: Crossbar, *, map_all: bool = False) -> list[dict]:
    """The rows of `describe`; none if no layer lies on crossbars."""
    rows = []
    for name, layer in counts.layers.items():
        for held in layer.held:
            if not (held.cells or (map_all and held.component != "sram")):
                continue
            mapping = map_layer(crossbar, layer.weight_shape, held.bits)
            bits = work.bits_in(layer, crossbar)
            row = {
                "layer": name, "array": held.component, "weight_bits": held.bits, "input_bits": bits,
                "rows_needed": mapping.rows, "columns_needed": mapping.columns, "row_tiles": mapping.row_tiles,
                "column_tiles": mapping.column_tiles, "slices": mapping.slices, "arrays": mapping.arrays,
                "cells": mapping.cells, "used_cells": mapping.used_cells, "utilization": mapping.utilization,
                "adcs": mapping.adcs,
            }  # fmt: skip
            for which, skip in (("", True), ("_all", False)):
                active = work.windows_read(name, layer, mapping, crossbar, counts.images, skip=skip)
                reads = work.array_reads(mapping, active, bits)
                conversions = work.adc_conversions(mapping, crossbar, active, bits)
                row |= {
                    f"array_reads{which}": reads / counts.images,
                    f"adc_conversions{which}": conversions / counts.images,
                }
            rows.append({c: row[c] for c in COLUMNS})
    if rows:
        rows.append(_total(rows))
    return rows


def _total(rows: list[dict]) -> dict:
    total = {"layer": "TOTAL", **{c: sum(r[c] for r in rows) for c in _ADDS_UP}}
    total["utilization"] = total["used_cells"] / total["cells"]
    return {c: total.get(c, "") for c in COLUMNS}
