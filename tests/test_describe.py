"""`hwsim describe`: how a run's layers lie on crossbars, from the counts that the run has kept."""

import counted
import numpy as np
import pytest
import torch
from torch import nn

from hwsim.config import CardError, RunError
from hwsim.device.card import load_card
from hwsim.recipe.describe import COLUMNS, describe, mapped
from hwsim.recipe.folder import Folder
from hwsim.recipe.tracefile import save_trace
from hwsim.report.action import Definitions
from hwsim.report.crossbar import crossbar_actions
from hwsim.report.table import aligned, csv_bytes
from hwsim.report.trace import Counts


def hybrid_counts() -> Counts:
    counts = counted.counted(counted.network(), counted.picture(3))
    for i, layer in enumerate(counts.layers.values()):
        shape = layer.weight_shape
        layer.held = [
            counted.array(shape, bits=4, component="rram", cells=True),
            counted.array(shape, bits=3, component="sram"),
        ] if i else [counted.array(shape, bits=32)]  # fmt: skip
    return counts


def run_with(tmp_path, counts: Counts):
    folder = Folder(tmp_path, "made-up", "0123456789")
    save_trace(folder.stage("account"), counts, {})
    folder.finish("account", {"key": "k", "rows": []})
    return folder.path


def test_a_layer_of_one_array_is_described_as_counted_by_hand():
    # 100 rows on 64: 2 tiles; 4 bits: 1 slice of 4-bit cells, 10 pairs on 64 columns. Input 70 is active twice.
    x = torch.zeros(3, 1, 100)
    x[:2, 0, 70] = 1
    held = counted.array((10, 100), bits=4, component="rram", cells=True)
    counts = counted.one_layer(nn.Linear(100, 10, bias=False), x, held=[held])
    row, total = mapped(counts, load_card("rram_crossbar_spikesim").crossbar)
    assert row == {
        "layer": "layer", "array": "rram", "weight_bits": 4, "input_bits": 1, "rows_needed": 100, "columns_needed": 20,
        "row_tiles": 2, "column_tiles": 1, "slices": 1, "arrays": 2, "cells": 8192, "used_cells": 2000,
        "utilization": 2000 / 8192, "adcs": 16, "array_reads": 2, "array_reads_all": 6, "adc_conversions": 40,
        "adc_conversions_all": 120,
    }  # fmt: skip
    assert total["layer"] == "TOTAL" and total["rows_needed"] == ""
    assert {k: total[k] for k in ("arrays", "adcs", "array_reads", "utilization")} == {
        "arrays": 2, "adcs": 16, "array_reads": 2, "utilization": 2000 / 8192,
    }  # fmt: skip


def test_a_run_is_described_without_its_network_and_totals_are_the_sums(tmp_path):
    counts = hybrid_counts()
    rows = describe(run_with(tmp_path, counts), "rram_crossbar_isaac+adc_survey")
    assert [tuple(r) for r in rows] == [COLUMNS] * len(rows)
    assert [(r["layer"], r["array"]) for r in rows] == [
        *((name, "rram") for name in list(counts.layers)[1:]), ("TOTAL", ""),
    ]  # fmt: skip
    for column in ("arrays", "cells", "used_cells", "adcs", "array_reads", "array_reads_all", "adc_conversions_all"):
        assert rows[-1][column] == pytest.approx(sum(r[column] for r in rows[:-1]))
    assert rows[-1]["utilization"] == rows[-1]["used_cells"] / rows[-1]["cells"]
    assert csv_bytes(rows, COLUMNS).decode().splitlines()[0] == ",".join(COLUMNS)
    assert len(aligned(rows).splitlines()) == len(rows) + 1


@pytest.mark.parametrize("card", ["rram_crossbar_spikesim", "rram_crossbar_isaac", "rram_crossbar_neurram"])
def test_reads_and_conversions_are_those_of_the_energy_table(card):
    counts, crossbar = hybrid_counts(), load_card(card).crossbar
    crossbar = crossbar.model_copy(update={"left_out": {}})
    for row in mapped(counts, crossbar)[:-1]:
        layer = counts.layers[row["layer"]]
        for which, skip in (("", True), ("_all", False)):
            definitions = Definitions(skip_zero_windows=skip)
            found = crossbar_actions("l", layer, layer.held[0], crossbar, definitions, counts.images)
            count = {a.action: a.count for a in found}
            assert row[f"array_reads{which}"] == pytest.approx(count["array_read"])
            assert row[f"adc_conversions{which}"] == pytest.approx(count["adc_conversion"])
    assert np.isfinite(mapped(counts, crossbar)[-1]["array_reads"])


def test_of_several_cards_with_crossbars_the_last_counts(tmp_path):
    run = run_with(tmp_path, hybrid_counts())
    both = describe(run, "rram_crossbar_spikesim+rram_crossbar_isaac")
    assert both == describe(run, "rram_crossbar_isaac") != describe(run, "rram_crossbar_spikesim")


def test_every_layer_can_be_mapped_but_never_an_sram_part(tmp_path):
    counts = hybrid_counts()
    rows = describe(run_with(tmp_path, counts), map_all=True)
    assert [r["layer"] for r in rows[:-1]] == list(counts.layers)
    assert rows[0]["weight_bits"] == 32 and rows[0]["slices"] == 8
    assert "sram" not in {r["array"] for r in rows}


def test_a_run_without_resistive_cells_says_how_to_map_it(tmp_path):
    counts = counted.counted(counted.network(), counted.picture(2))
    run = run_with(tmp_path, counts)
    with pytest.raises(RunError, match="no layer lies on resistive cells; map every layer with --map-all"):
        describe(run)
    assert describe(run, map_all=True)


def test_a_card_without_crossbars_and_a_folder_without_counts_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CardError, match="card horowitz_45nm: has no crossbars"):
        describe(run_with(tmp_path, hybrid_counts()), "horowitz_45nm")
    with pytest.raises(RunError, match="nothing was counted there"):
        describe(empty)


def test_counts_of_other_heights_say_how_to_count_again(tmp_path):
    counts = counted.counted(counted.network(plan=(8, 8, "A")), counted.picture(2), rows=(16,))
    with pytest.raises(RunError, match=r"window_rows=\[16,64\]"):
        describe(run_with(tmp_path, counts), map_all=True)
