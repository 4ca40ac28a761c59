"""The table of energy: counts times prices, totals that add up, what is refused, static energy beside it."""

import csv
import io
import re

import pytest
from counted import array, counted, network, picture, prices, repeated, silenced

from hwsim.config import CardError
from hwsim.report.action import Definitions
from hwsim.report.energy import COLUMNS, energy_rows, unpriced
from hwsim.report.memory import kib
from hwsim.report.table import csv_bytes
from hwsim.report.trace import Counts
from hwsim.report.work import neuron_actions, synapse_actions

CARD = prices("horowitz_45nm")
AC, MAC = 0.9, 4.6
CITED = {"source": "s", "evidence": "assumed"}
FP32 = {"add_fp32": 0.5, "mult_fp32": 4.0}
NET = {coding: counted(network(coding), picture(4)) for coding in ("poisson", "direct")}
LAYERS = ["conv1", "conv2", "conv3", "fc1", "fc2"]


def rows_of(counts: Counts = NET["poisson"], card=CARD, **said) -> list[dict]:
    return energy_rows(counts, card, Definitions(**said), "vat-1")


def table(rows: list[dict], phase: str = "inference") -> dict[tuple[str, str, str], float]:
    """(layer, component, action) → count, without totals."""
    out: dict[tuple[str, str, str], float] = {}
    for r in rows:
        if r["phase"] == phase and r["layer"] != "TOTAL":
            key = r["layer"], r["component"], r["action"]
            out[key] = out.get(key, 0) + r["count"]
    return out


def energy(rows: list[dict], phase: str = "inference", component: str = "all") -> float:
    (total,) = [r["energy_pj"] for r in rows if (r["layer"], r["phase"], r["component"]) == ("TOTAL", phase, component)]
    return total


def crossbars(counts: Counts, *layers: str) -> Counts:
    """The same counts with these layers, or all, on resistive cells of 4 bits."""
    out = Counts.from_arrays(*counts.arrays())
    for name in layers or out.layers:
        out.layers[name].held = [array(out.layers[name].weight_shape, cells=True)]
    return out


# ---------------------------------------------------------------------------------------------------- counts and prices


def test_energy_is_counts_times_prices():
    rows = [r for r in rows_of(NET["direct"]) if r["component"] == "synapse" and r["layer"] != "TOTAL"]
    assert {r["action"] for r in rows} == {"ac", "mac"}
    for row in rows:
        price = {"ac": AC, "mac": pytest.approx(MAC)}[row["action"]]
        assert row["unit_energy_pj"] == price
        assert row["energy_pj"] == row["count"] * row["unit_energy_pj"]


def test_arithmetic_is_that_of_every_layer_and_nothing_else():
    """The rows are the actions of `work.py`, whose counts are checked there by hand."""
    counts, d = NET["direct"], Definitions()
    expected = {}
    for name, layer in counts.layers.items():
        made = synapse_actions(name, layer, layer.held[0], d, 4, "inference")
        for a in (*made, *neuron_actions(name, layer, d, 4, "inference")):
            expected[name, a.component, a.action] = a.count
    card = prices({"covers": ["synapse", "neuron_arithmetic"], "prices": FP32})
    assert table(rows_of(counts, card)) == expected
    only = prices({"covers": ["synapse"], "prices": FP32})
    assert table(rows_of(counts, only)) == {k: v for k, v in expected.items() if k[1] == "synapse"}


@pytest.mark.parametrize("price", FP32)
def test_doubling_a_price_doubles_its_part_of_every_row(price):
    before, after = (
        rows_of(card=prices({"covers": ["synapse", "neuron_arithmetic"], "prices": p}))
        for p in (FP32, {**FP32, price: 2 * FP32[price]})
    )
    for a, b in zip(before, after, strict=True):
        if a["layer"] != "TOTAL":
            uses = {"ac": ["add_fp32"], "mac": [*FP32], "add": ["add_fp32"], "mult": ["mult_fp32"]}[a["action"]]
            more = FP32[price] if price in uses else 0
            assert b["unit_energy_pj"] - a["unit_energy_pj"] == pytest.approx(more)
            assert b["count"] == a["count"]


PHASES = {"inference": ["inference"]} | dict.fromkeys(("bptt", "local"), ["forward", "error", "gradient", "update"])
PRICED = [("horowitz_45nm", r) for r in PHASES] + [("sram_cacti_32nm", r) for r in PHASES] + [
    ("rram_crossbar_isaac+sram_cacti_32nm", "inference"), ("rram_crossbar_isaac+horowitz_45nm", "bptt"),
    ("rram_crossbar_spikesim", "inference"), ("loihi", "inference"), ("memory_iscas2020", "bptt"),
]  # fmt: skip


@pytest.mark.parametrize(("card", "rule"), PRICED)
def test_totals_are_the_sums_of_rows_by_component_and_of_a_phase(card, rule):
    counts = crossbars(NET["poisson"]) if "crossbar" in card else NET["poisson"]
    card = prices(card, to_node_nm=32.0 if "+" in card else None)
    rows = rows_of(counts, card, rule=rule, step_time_us=10.0)
    found = list(dict.fromkeys(r["phase"] for r in rows))
    beside = ["ann_inference"] * bool(card.covers & {"synapse", "crossbar", "memory"}) + ["static"] * bool(card.static)
    has_update = card.covers != {"organization"}
    assert found == [p for p in PHASES[rule] if has_update or p in ("forward", "error")] + beside
    for phase in found:
        part = [r for r in rows if r["phase"] == phase and r["layer"] != "TOTAL"]
        totals = {r["component"]: r for r in rows if r["phase"] == phase and r["layer"] == "TOTAL"}
        assert list(totals) == [*dict.fromkeys(r["component"] for r in part), "all"]
        for component, total in totals.items():
            mine = [r for r in part if component in ("all", r["component"])]
            for column in ("count", "energy_pj", "share"):
                assert total[column] == pytest.approx(sum(r[column] for r in mine), rel=1e-12)
        assert totals["all"]["share"] == pytest.approx(1)
        assert all(r["share"] == r["energy_pj"] / totals["all"]["energy_pj"] for r in part)


def test_no_spikes_no_synaptic_energy():
    for card, component in (("horowitz_45nm", "synapse"), ("loihi", "synop"), ("rram_crossbar_isaac", "crossbar")):
        counts = silenced(crossbars(NET["poisson"]) if component == "crossbar" else NET["poisson"])
        rows = rows_of(counts, prices(card))
        mine = [r for r in rows if (r["phase"], r["component"]) == ("inference", component)]
        assert {(r["count"], r["energy_pj"], r["share"]) for r in mine} <= {(0, 0, 0)}
        assert bool(mine) == (component != "crossbar")  # reads that do not occur are no rows
        if component != "synop":
            assert energy(rows, "ann_inference") > 0
    # Weights are read by events too; membranes are updated all the same.
    memory = table(rows_of(silenced(NET["poisson"])))
    assert not [k for k in memory if k[2] in ("weight_read", "index_read")]
    assert memory["conv1", "memory", "membrane_read"] == 3


def test_a_layer_on_a_crossbar_is_neither_added_up_nor_read_from_memory():
    mixed = crossbars(NET["poisson"], "conv2", "fc1")
    both = prices("rram_crossbar_isaac+horowitz_45nm", to_node_nm=45.0)
    rows = rows_of(mixed, both)
    for phase in ("inference", "ann_inference"):
        on = {k[0] for k in table(rows, phase) if k[1] == "crossbar"}
        digital = {k[0] for k in table(rows, phase) if k[1] == "synapse"}
        read = {k[0] for k in table(rows, phase) if k[2] == "weight_read"}
        assert on == {"conv2", "fc1"} and digital == read == {"conv1", "conv3", "fc2"}
        assert {k[0] for k in table(rows, phase) if k[1] == "neuron_arithmetic"} == set(LAYERS[:4])
    # Everything may be laid on crossbars; then nothing is left to add up.
    rows = rows_of(mixed, both, map_all=True)
    assert {k[0] for k in table(rows) if k[1] == "crossbar"} == set(LAYERS)
    assert not [k for k in table(rows) if k[1] == "synapse" or k[2] == "weight_read"]
    # A card of crossbars alone has no price for the layers beside them.
    with pytest.raises(CardError, match="no price for 'add_fp32'.*which conv1, conv3, fc2 need"):
        rows_of(mixed, prices("rram_crossbar_isaac"))


# ------------------------------------------------------------------------------------------------------------ the table


def test_energy_rows_have_exactly_the_columns_of_the_file():
    rows = rows_of(NET["direct"])
    assert all(tuple(r) == COLUMNS for r in rows)
    read = list(csv.DictReader(io.StringIO(csv_bytes(rows, COLUMNS).decode())))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        assert tuple(text) == COLUMNS
        assert float(text["energy_pj"]) == pytest.approx(row["energy_pj"], rel=1e-9)


def test_energy_rows_say_where_their_numbers_come_from():
    rows = rows_of(NET["direct"], step_time_us=1.0)
    assert {(r["run_id"], r["samples"], r["card"], r["card_hash"]) for r in rows} == {
        ("vat-1", 4, "horowitz_45nm", CARD.hash)
    }
    assert all(r["source"] and r["evidence"] for r in rows if r["layer"] != "TOTAL")
    bits = {(r["phase"], r["layer"], r["action"]): (r["weight_bits"], r["input_bits"]) for r in rows}
    assert bits["inference", "conv1", "mac"] == (4, 32)  # a pixel
    assert bits["inference", "conv2", "ac"] == (4, 1)  # a spike
    assert bits["inference", "conv3", "mac"] == (4, 3)  # none to four quarters
    assert bits["ann_inference", "conv3", "mac"] == (32, 32)
    density = {(r["phase"], r["layer"], r["action"]): (r["weight_density"], r["input_density"]) for r in rows}
    assert density["inference", "conv1", "ac"] == (pytest.approx(1 - 1 / 36), 1.0)
    assert density["ann_inference", "conv1", "mac"] == (1.0, 1.0)
    steps = {r["layer"]: r["timesteps"] for r in rows if (r["phase"], r["component"]) == ("inference", "synapse")}
    assert {k: v for k, v in steps.items() if k != "TOTAL"} == {n: 1 if n == "conv1" else 3 for n in LAYERS}


def test_a_price_of_two_cards_names_both():
    both = prices({"prices": {"add_fp32": 1.0}}, {"prices": {"mult_fp32": 2.0}})
    rows = rows_of(NET["direct"], both)
    said = {(r["action"], r["unit_energy_pj"], r["card"], r["source"]) for r in rows if r["layer"] != "TOTAL"}
    assert said == {
        ("ac", 1.0, "card0", "source of add_fp32"),
        ("mac", 3.0, "card1 + card0", "source of mult_fp32 + source of add_fp32"),
    }
    assert {r["card"] for r in rows if r["layer"] == "TOTAL"} == {"card0+card1"}


# -------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(("missing", "layers"), [("add_fp32", LAYERS), ("mult_fp32", ["conv3", "fc1"])])
def test_a_missing_price_is_an_error_that_names_card_action_and_layers(missing, layers):
    card = prices({"covers": ["synapse"], "prices": {k: v for k, v in FP32.items() if k != missing} | {"x": 1.0}})
    only = Counts.from_arrays(*NET["poisson"].arrays())
    with pytest.raises(CardError, match=f"^card card0: there is no price for '{missing}', which (.*?) need") as e:
        rows_of(only, card)
    assert re.search("which (.*?) need", str(e.value))[1].split(", ")[: len(layers)] == layers
    assert f"; add prices.{missing}: {{pJ" in str(e.value)
    (line,) = unpriced(card, Definitions())
    assert f"no price for '{missing}', which layers (synapse) need" in line


def test_every_missing_price_is_said_at_once():
    card = prices({"covers": ["memory", "synapse"], "prices": {"memory_read": 1.0}})
    with pytest.raises(CardError) as e:
        rows_of(card=card)
    assert [line.split("'")[1] for line in str(e.value).splitlines()] == ["add_fp32", "memory_write", "mult_fp32"]
    assert len(unpriced(card, Definitions())) == 3
    assert unpriced(CARD, Definitions(arithmetic="int8")) == []


def test_bits_without_a_price_name_card_action_and_layers():
    counts = Counts.from_arrays(*NET["poisson"].arrays())
    for name in ("fc1", "fc2"):
        counts.layers[name].held = [array(counts.layers[name].weight_shape, bits=32)]
    with pytest.raises(
        CardError, match=r"memory_iscas2020: prices.crossbar_forward is given for 2, .* not for 32"
    ) as e:
        rows_of(counts, prices("memory_iscas2020"))
    assert str(e.value).endswith("(needed by fc1, fc2)")


@pytest.mark.parametrize("card", ["loihi", "truenorth", "rram_crossbar_isaac", "rram_crossbar_spikesim"])
@pytest.mark.parametrize("rule", ["bptt", "local"])
def test_learning_is_not_priced_by_a_card_of_inference(card, rule):
    with pytest.raises(CardError, match=rf"card {card}: prices inference, not learning \({rule}\); take a card"):
        rows_of(crossbars(NET["poisson"]), prices(card), rule=rule)


def test_cards_complete_each_other_and_the_later_price_counts():
    once = {"covers": ["synapse"], "prices": FP32}
    more = {"covers": ["neuron"], "prices": {"neuron_update": 7.0, "add_fp32": 5.0}}
    rows = rows_of(NET["poisson"], prices(once, more))
    alone = rows_of(NET["poisson"], prices(once))
    updates = 3 * sum(layer.neurons for layer in NET["poisson"].layers.values())
    assert energy(rows, component="neuron") == 7 * updates
    additions = sum(r["count"] for r in alone if r["phase"] == "inference" and r["layer"] != "TOTAL")
    assert energy(rows, component="synapse") - energy(alone) == pytest.approx(4.5 * additions)
    # A neuron is counted as the chip's update or as arithmetic, not as both.
    rows = rows_of(NET["poisson"], prices({**once, "covers": ["synapse", "neuron_arithmetic"]}, more))
    assert {k[1] for k in table(rows)} == {"synapse", "neuron"}
    # Synaptic additions and multiplications are not counted a second time as operations of a chip.
    chip = {"covers": ["synop"], "prices": {"synop": 1.0}}
    assert {r["component"] for r in rows_of(NET["poisson"], prices(once, chip))} == {"synapse", "all"}


# --------------------------------------------------------------------------------------------------------------- static

LEAKY = {"covers": ["memory"], "prices": {"memory_read": 1.0, "memory_write": 1.0}}


def test_static_energy_needs_a_time_base_and_is_in_no_other_total():
    leaky = {**LEAKY, "static": {"memory": {"nW_per_bit": 50.0, **CITED}, "device": {"mW": 3.0, **CITED}}}
    without, with_time = rows_of(card=prices(leaky)), rows_of(card=prices(leaky), step_time_us=4.0)
    assert "static" not in {r["phase"] for r in without}
    assert [r for r in with_time if r["phase"] != "static"] == without
    rows = [r for r in with_time if r["phase"] == "static" and r["layer"] != "TOTAL"]
    seconds = 3 * 4e-6
    (device,) = [r for r in rows if r["component"] == "device"]
    assert (device["layer"], device["count"], device["timesteps"]) == ("all", seconds, 3)
    assert device["energy_pj"] == pytest.approx(3e-3 * seconds * 1e12)
    layers = {r["layer"]: r["energy_pj"] for r in rows if r["component"] == "memory"}
    bits = {n: 8192 * kib(layer, Definitions()) for n, layer in NET["poisson"].layers.items()}
    assert layers == pytest.approx({n: 50e-9 * b * seconds * 1e12 for n, b in bits.items()})
    assert energy(with_time, "static") == pytest.approx(sum(r["energy_pj"] for r in rows))
    assert {r["source"] for r in rows} == {"s; time base: 3 steps of 4 us"}


def test_the_time_of_a_step_is_the_definitions_or_the_cards():
    leaky = {**LEAKY, "step_time_us": 2.0, "static": {"device": {"mW": 1.0, **CITED}}}
    card = prices(leaky)
    assert energy(rows_of(card=card), "static") == pytest.approx(6000)
    assert energy(rows_of(card=card, step_time_us=5.0), "static") == pytest.approx(15000)
    assert energy(rows_of(repeated(NET["poisson"]), card), "static") == pytest.approx(12000)


def test_leakage_is_not_scaled_and_says_so():
    leaky = {**LEAKY, "static": {"device": {"mW": 1.0, **CITED}}}
    rows = rows_of(card=prices(leaky, to_node_nm=22.5), step_time_us=1.0)
    (row, *_) = [r for r in rows if r["phase"] == "static"]
    assert row["energy_pj"] == pytest.approx(3000) and row["source"].endswith("3 steps of 1 us; not scaled, of 45 nm")
    (row, *_) = [r for r in rows if r["phase"] == "inference"]
    assert row["unit_energy_pj"] == 1 / 8


def test_weights_on_crossbars_leak_in_no_memory():
    leaky = {**LEAKY, "static": {"memory": {"nW_per_bit": 50.0, **CITED}}}
    card = prices("rram_crossbar_isaac", to_node_nm=32.0)
    card.covers, card.static = card.covers | {"memory"}, prices(leaky).static
    card._by_action |= prices(leaky)._by_action
    on = rows_of(crossbars(NET["poisson"], *LAYERS), card, step_time_us=1.0)
    off = rows_of(card=prices(leaky), step_time_us=1.0)
    weights = sum(4 * layer.weights for layer in NET["poisson"].layers.values())
    sums = sum(layer.outputs * 32 for layer in NET["poisson"].layers.values())
    assert energy(off, "static") - energy(on, "static") == pytest.approx(50e-9 * (weights + sums) * 3e-6 * 1e12)
