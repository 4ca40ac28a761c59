"""Memory that a network needs: formulas of the organizations, variables by rule, the published saving."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_layers import held, layer

from hwsim.report.action import Definitions
from hwsim.report.footprint import (
    DECOLLE_CORRECTED,
    DECOLLE_PUBLISHED,
    DECOLLE_WIDTHS,
    FOOTPRINT_COLUMNS,
    array_bits,
    decolle_bits,
    footprint_rows,
    kib,
    layer_bits,
    value_bits,
)
from hwsim.report.organization import capacity, code_bits
from hwsim.report.trace import Counts

GOLDEN = json.loads((Path(__file__).parent / "golden" / "memory.json").read_text(encoding="utf-8"))
FLOAT = dict.fromkeys(DECOLLE_WIDTHS, 32)


@pytest.mark.parametrize(
    ("layers", "golden"), [(DECOLLE_PUBLISHED, "published"), (DECOLLE_CORRECTED, "corrected")], ids=lambda v: str(v)[:9]
)
def test_the_published_saving_and_the_corrected_one_reproduce_exactly(layers, golden):
    want = GOLDEN["decolle"][golden]
    quantized, full = decolle_bits(layers, DECOLLE_WIDTHS), decolle_bits(layers, FLOAT)
    assert (quantized, full) == (want["quantized"], want["float32"])
    assert round(100 * (1 - quantized / full), 2) == want["saving_percent"]


def test_the_published_bits_reproduce_layer_by_layer():
    want = GOLDEN["decolle"]["published"]
    assert [decolle_bits([x], DECOLLE_WIDTHS) for x in DECOLLE_PUBLISHED] == want["per_layer"]
    assert [decolle_bits([x], FLOAT) for x in DECOLLE_PUBLISHED] == want["per_layer_float32"]


def test_a_bitmap_of_a_quarter_of_784_times_128_takes_312816_bits():
    assert capacity("pb-bmp", 784, 128, 25088, 8) == (200704, 100352 + 784 * 15)


def test_organizations_of_a_2_by_5_matrix_with_3_weights_of_4_bits():
    # Pointers tell 0 … 3 apart (2 bits), column numbers 5 outputs (3 bits), row numbers 2 inputs (1 bit).
    assert capacity("row", 2, 5, 3, 4) == capacity("crossbar", 2, 5, 3, 4) == (40, 0)
    assert capacity("pb-bmp", 2, 5, 3, 4) == (12, 10 + 2 * 2)
    assert capacity("pb-csr", 2, 5, 3, 4) == (12, 3 * 3 + 3 * 2)
    assert capacity("pb-csr", 2, 5, 3, 4, both_directions=True) == (12, 15 + 3 * 1 + 3 * 2 + 6 * 2)
    assert capacity("pb-csr", 2, 5, 0, 4, both_directions=True) == (0, 0)


@pytest.mark.parametrize("values", [1, 2, 3, 4, 5, 127, 128, 129, 4096])
def test_code_bits_are_the_fewest_that_tell_the_values_apart(values):
    bits = code_bits(values)
    assert 2**bits >= values
    assert bits == 0 or 2 ** (bits - 1) < values


def test_both_directions_take_about_the_published_36_bits_a_synapse_more():
    index = capacity("pb-csr", 784, 128, 100352, 8, both_directions=True).index
    assert index / 100352 == pytest.approx(35.8, abs=2.0)


def test_bits_of_an_input_tell_its_values_apart():
    def bits(parts, signed=False, arithmetic="fp16"):
        here = layer(np.zeros((1, 3)), outputs=1, parts=parts, signed=signed)
        return value_bits(here, Definitions(arithmetic=arithmetic))

    assert [bits(1), bits(1, signed=True), bits(4), bits(3), bits(4, signed=True)] == [1, 2, 3, 2, 4]
    assert [bits(0), bits(0, arithmetic="int8")] == [16, 8]


def test_variables_of_inference_bptt_and_local_learning_are_those_of_the_table():
    # 4 inputs at 3 steps, 5 neurons, 6 of 20 weights of 2 bits are not zero; states 10 bits, numbers 16.
    weight = np.zeros((5, 4))
    weight.flat[:6] = 1
    here = layer(np.zeros((3, 4)), held(weight, 2), outputs=5)

    def of(rule, organization="row", **about):
        d = Definitions(rule=rule, linear_organization=organization, state_bits=10, arithmetic="fp16")
        return array_bits(here, here.held[0], d) | layer_bits(here, d, **about)

    inference = {"weights": 40, "accumulator": 50, "spikes": 4, "membrane": 50, "norm": 3 * 2 * 5 * 10}
    assert of("inference") == inference
    learned = {"gradient": 320, "master": 320, "momentum": 320}
    back = {"tape": 150, "error": 240, "error_state": 80, "input_error": 3 * 4 * 16, "spikes": 12}
    assert of("bptt") == inference | learned | back
    assert "input_error" not in of("bptt", is_first=True)
    assert of("local", classes=7) == {
        "weights": 40, "spikes": 4, "membrane": 50, "potential": 50, "trace": 80, "decay": 80, "error": 80,
        "feedback": 2 * 7 * 5 * 16,
    } | learned  # fmt: skip
    assert "accumulator" not in of("inference", "column")
    sparse = of("bptt", "pb-csr")
    assert (sparse["weights"], sparse["master"]) == (12, 6 * 16)
    assert sparse["index"] == sum(capacity("pb-csr", 4, 5, 6, 2, both_directions=True)) - 12


def test_a_column_keeps_sums_for_a_readout_and_for_a_current_of_several_steps():
    d = Definitions(linear_organization="column", state_bits=10)
    weights = held(np.ones((5, 4)), 2)
    readout = layer(np.zeros((3, 4)), weights, outputs=5, neurons=0)
    assert array_bits(readout, weights, d)["readout"] == 50
    once = layer(np.zeros((1, 4)), weights, outputs=5, steps=3)
    assert array_bits(once, weights, d)["accumulator"] == 50


def test_the_tape_of_the_published_task_is_279_kib_with_its_rasters():
    # 250 steps, 700 to 400 to 250; 12 bits a neuron and step: a code of 8 bits, three masks and the spike. The
    # published 2.29 Mbit also hold the rasters of inputs, hidden neurons and outputs, one bit each.
    d = Definitions(rule="bptt", state_bits=12)
    layers = [layer(np.zeros((250, i)), held(np.ones((o, i)), 2), outputs=o) for i, o in ((700, 400), (400, 250))]
    bits = [layer_bits(x, d) for x in layers]
    assert sum(b["tape"] for b in bits) == 250 * 650 * 12
    total = sum(b["tape"] + b["spikes"] for b in bits) + 250 * 250
    assert total == 2_287_500
    assert round(total / 8192) == 279
    weights = sum(array_bits(x, x.held[0], d)["weights"] for x in layers)
    assert round(weights / 8192) == 93


def test_footprint_rows_add_up_by_variable_and_in_all():
    counts = Counts(2, 1)
    weight = np.ones((2, 1, 3, 3))
    counts.layers["conv1"] = layer(
        np.zeros((2, 1, 4, 4)), held(weight, 1, "rram", cells=True), held(0 * weight, 4, "sram"), outputs=2,
        kernel=(3, 3), padding=(1, 1), stride=(1, 1),
    )  # fmt: skip
    counts.layers["fc2"] = layer(np.zeros((2, 8)), held(np.ones((3, 8)), 8), outputs=3, neurons=0)
    for d in (Definitions(), Definitions(rule="bptt"), Definitions(rule="local", conv_organization="pb-bmp")):
        rows = footprint_rows(counts, d)
        assert all(tuple(r) == FOOTPRINT_COLUMNS for r in rows)
        parts = [r for r in rows if r["layer"] != "TOTAL"]
        totals = {r["variable"]: r["bits"] for r in rows if r["layer"] == "TOTAL"}
        assert totals.pop("all") == sum(totals.values()) == sum(r["bits"] for r in parts)
        for variable, bits in totals.items():
            assert bits == sum(r["bits"] for r in parts if r["variable"] == variable)
        assert all(r["kib"] == r["bits"] / 8192 for r in rows)
        each = {"conv1": True, "fc2": False}
        sizes = [kib(counts.layers[n], d, is_first=first, classes=3) for n, first in each.items()]
        assert sum(sizes) * 8192 == pytest.approx(sum(r["bits"] for r in parts), rel=1e-12)
    rows = footprint_rows(counts, Definitions())
    weights = {r["array"]: r["bits"] for r in rows if r["variable"] == "weights" and r["layer"] != "TOTAL"}
    assert weights == {"rram": 18, "sram": 72, "synapse": 192}


def test_arrays_that_are_left_out_do_not_count():
    weight = np.ones((2, 1, 3, 3))
    here = layer(
        np.zeros((2, 1, 4, 4)), held(weight, 1, "rram", cells=True), held(weight, 4, "sram"), outputs=2, kernel=(3, 3),
        padding=(1, 1), stride=(1, 1),
    )  # fmt: skip
    sums = 2 * 16 * 32
    both, digital = kib(here, Definitions()), kib(here, Definitions(), lambda h: not h.cells)
    assert (both - digital) * 8192 == pytest.approx(18 + sums)


def test_a_readout_has_one_error_for_all_steps():
    here = layer(np.zeros((3, 4)), held(np.ones((5, 4)), 2), outputs=5, neurons=0)
    bits = layer_bits(here, Definitions(rule="bptt", arithmetic="int8"))
    assert bits == {"spikes": 12, "error": 5 * 8, "input_error": 3 * 4 * 8}


def test_only_the_last_array_of_a_layer_learns():
    weight = np.ones((5, 4))
    here = layer(np.zeros((3, 4)), held(weight, 1, "rram", cells=True), held(weight, 4, "sram"), outputs=5)
    d = Definitions(rule="bptt")
    assert "gradient" not in array_bits(here, here.held[0], d)
    assert array_bits(here, here.held[1], d)["gradient"] == 20 * 32
