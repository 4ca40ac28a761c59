"""Laws of energy on every shipped card: more spikes cost more, twice the time twice as much, every number counts."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from counted import array, counted, network, one_layer, picture, prices, repeated, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cards import DEVICES, changed, numbers
from torch import nn

from hwsim.config import CardError, Document, check, read_yaml
from hwsim.device.card import card_names, load_card
from hwsim.device.pricelist import Prices
from hwsim.device.schema import Card
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows
from hwsim.report.trace import Counts

PRICED = [name for name in card_names() if load_card(name).covers]
BITS = {"rram_crossbar_neurram": 6}  # two slices of its cells
RULES = ("inference", "bptt", "local")


@cache
def workload(bits: int, cells: bool) -> Counts:
    """Layers of very different sizes, on which spikes, averages of spikes and numbers arrive."""
    images = {
        "conv1": (nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 6, 5), 0),
        "conv2": (nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False), (3, 6, 5), 1),
        "fc1": (nn.Linear(130, 64, bias=False), (130,), 4),
        "fc2": (nn.Linear(1024, 256, bias=False), (1024,), 1),
        "fc3": (nn.Linear(1024, 400, bias=False), (1024,), 1),
        "fc4": (nn.Linear(64, 3, bias=False), (64,), 1),
    }
    together = Counts(2, 1)
    for i, (name, (layer, shape, parts)) in enumerate(images.items()):
        x = torch.randint(0, (parts or 3) + 1, (2, 1, *shape), generator=seeded(i)) / (parts or 3)
        shape = (2, 1, *layer(x[0]).shape[1:])
        spikes = (torch.rand(shape, generator=seeded(i + 10)) < 0.3).float() if name != "fc4" else None
        held = array(tuple(layer.weight.shape), zeros=[(0,) * layer.weight.dim()], bits=bits, cells=cells)
        one = one_layer(layer, x, parts=parts, spikes_TB=spikes, held=[held])
        together.layers[name], together.raster[name] = one.layers["layer"], one.raster["layer"]
    return together


def digital(name: str) -> bool:
    return "crossbar" not in load_card(name).covers


def work_of(name: str) -> Counts:
    return workload(BITS.get(name, 4), not digital(name))


def dynamic(counts: Counts, card: Prices, **said) -> list[dict]:
    """Rows of the spiking network's own dynamic energy."""
    rows = energy_rows(counts, card, Definitions(**said), "r")
    return [r for r in rows if r["layer"] != "TOTAL" and r["phase"] not in ("ann_inference", "static")]


def joule(rows: list[dict]) -> float:
    return sum(r["energy_pj"] for r in rows)


# --------------------------------------------------------------------------------------------------------- more spikes

SHAPES = {
    "conv": (lambda: nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 4, 4)),
    "strided": (lambda: nn.Conv2d(1, 2, 2, stride=2, bias=False), (1, 5, 5)),
    "linear": (lambda: nn.Linear(9, 4, bias=False), (9,)),
}


@pytest.mark.parametrize("name", PRICED)
@settings(max_examples=20)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 99), st.sampled_from(["inbounds", "effective", "fanout"]),
       st.sampled_from(["bitmap", "events", "shorter"]), st.booleans())  # fmt: skip
def test_energy_never_falls_when_more_spikes_arrive(name, shape, seed, synapses, code, skip):
    make, size = SHAPES[shape]
    layer, card = make(), prices(name)
    held = array(tuple(layer.weight.shape), zeros=[(0,) * layer.weight.dim()], cells=not digital(name))
    few = torch.rand(2, 1, *size, generator=seeded(seed)) < 0.2
    more = few | (torch.rand(few.shape, generator=seeded(seed + 1)) < 0.3)
    d = {"synapses": synapses, "spike_code": code, "skip_zero_windows": skip}
    out = torch.zeros(2, 1, *layer(few[0].float()).shape[1:])
    less, much = (joule(dynamic(one_layer(layer, x, spikes_TB=out, held=[held]), card, **d)) for x in (few, more))
    assert less <= much * (1 + 1e-12)
    if {"synapse", "synop"} & card.covers and torch.any(more != few) and synapses != "effective" and shape != "strided":
        assert less < much


@pytest.mark.parametrize("name", PRICED)
def test_energy_never_falls_when_more_neurons_fire(name):
    layer = nn.Linear(5, 6, bias=False)
    held = array((6, 5), cells=not digital(name))
    energies = []
    for fired in range(7):
        spikes = torch.zeros(2, 1, 6)
        spikes[1, 0, :fired] = 1
        counts = one_layer(layer, torch.ones(2, 1, 5), spikes_TB=spikes, held=[held])
        energies.append(joule(dynamic(counts, prices(name))))
    assert energies == sorted(energies)
    assert (energies[0] < energies[-1]) == ("neuron_arithmetic" in load_card(name).covers)


# ------------------------------------------------------------------------------------------------------ twice the time


@pytest.mark.parametrize("name", PRICED)
@pytest.mark.parametrize("code", ["bitmap", "events"])
def test_twice_the_steps_of_a_constant_input_take_twice_the_energy(name, code):
    """But for a published pass over an organized memory, the one read and clearing of sums without a neuron, and the
    memory of BNTT's numbers, which has a row a step: a larger memory is dearer to read."""
    counts, card = work_of(name), prices(name)
    once, twice = (dynamic(c, card, spike_code=code) for c in (counts, repeated(counts)))
    doubled = 0
    for a, b in zip(once, twice, strict=True):
        kind = ("layer", "phase", "component", "action", "input_density", "weight_bits")
        assert [a[k] for k in kind] == [b[k] for k in kind]
        assert a["unit_energy_pj"] == b["unit_energy_pj"] or a["action"] == "norm_read"
        is_once = a["component"] == "organization" or (a["action"].startswith("readout_") and a["count"] == 1)
        assert b["count"] == pytest.approx(a["count"] if is_once else 2 * a["count"], rel=1e-12)
        doubled += not is_once
    assert doubled == len(once) - (2 if card.covers >= {"memory"} else 0) or card.covers == {"organization"}
    if not card.covers & {"memory", "organization"}:
        assert joule(twice) == pytest.approx(2 * joule(once), rel=1e-12)


@pytest.mark.parametrize("rule", ["bptt", "local"])
def test_twice_the_steps_take_twice_the_learning_but_one_update_an_image(rule):
    card = prices({"covers": ["synapse", "neuron_arithmetic"], "prices": {"add_fp32": 1.0, "mult_fp32": 2.0}})
    once, twice = (dynamic(c, card, rule=rule) for c in (workload(4, False), repeated(workload(4, False))))
    for phase in ("forward", "error", "gradient", "update"):
        before, after = (joule([r for r in rows if r["phase"] == phase]) for rows in (once, twice))
        assert after == pytest.approx(before * (1 if (rule, phase) == ("bptt", "update") else 2)) and before > 0


def test_a_network_of_repeated_images_is_counted_like_repeated_counts():
    """`repeated` says what a real network does on a constant input in its first layer."""
    short, long = (counted(network("repeat", steps=t), picture(3)) for t in (2, 4))
    first, again = repeated(short).layers["conv1"], long.layers["conv1"]
    for field in ("unit", "fractional", "unit_T", "fractional_T"):
        assert np.array_equal(getattr(first, field), getattr(again, field)), field
    assert {r: w.tolist() for r, w in first.windows.items()} == {r: w.tolist() for r, w in again.windows.items()}


# -------------------------------------------------------------------------------------------------- every number counts

SETTINGS = [
    {"rule": rule, "linear_organization": linear, "conv_organization": conv, "arithmetic": arithmetic}
    for rule, (linear, conv), arithmetic in itertools.product(
        RULES,
        [("row", "functional"), ("pb-bmp", "pb-bmp"), ("pb-csr", "pb-csr"), ("column", "functional")],
        ["fp32", "fp16", "int32", "int8", "int"],
    )
]
COMPLETED = {"adc_survey": "rram_crossbar_isaac"}


@cache
def settings_of(file: str, bits: int) -> list[tuple[Counts, Definitions, list[float]]]:
    """(counts, definitions, energies) of everything that a card prices, each set of numbers once."""
    data, seen, out = read_yaml(DEVICES / f"{file}.yaml").data, set(), []
    whole = workload(bits, file in COMPLETED or not digital(file))
    has_formats = bool({"synapse", "memory"} & set(load_card(file).covers))
    for kind in ("", "fc"):  # some laws know fewer bits for convolutions
        counts = Counts(2, 1, {n: layer for n, layer in whole.layers.items() if n.startswith(kind)})
        for said in (s for s in SETTINGS if has_formats or s["arithmetic"] == "fp32"):
            d = Definitions(**said, step_time_us=10.0)
            found = energies(file, data, counts, d)
            if found and tuple(found) not in seen:
                seen.add(tuple(found))
                out.append((counts, d, found))
    return out


def energies(file: str, data: dict, counts: Counts, definitions: Definitions) -> list[float]:
    """Every energy of the table; none where the card prices other work or other bits."""
    partner = [load_card(COMPLETED[file])] if file in COMPLETED else []
    try:
        card = Prices([*partner, check(Card, Document(data, file))])
        return [r["energy_pj"] for r in energy_rows(counts, card, definitions, "r")]
    except CardError:
        return []


@pytest.mark.parametrize("file", [n for n in card_names() if load_card(n).prices])
def test_every_price_on_every_card_moves_some_output(file):
    data = read_yaml(DEVICES / f"{file}.yaml").data
    places = [p for p in numbers(data) if p[0] in ("prices", "static")]
    assert places
    for place in places:
        bits = place[-1] if "pJ_by_bits" in place else BITS.get(file, 4)
        factors = (2,) if place[-1] in ("word_bits", "burst_bits") else (1.1, 0.9)
        assert any(
            energies(file, changed(data, place, factor), counts, d) != before
            for factor in factors
            for counts, d, before in settings_of(file, bits)
        ), place


@pytest.mark.parametrize("file", PRICED)
def test_node_and_step_time_of_a_card_move_some_output(file):
    data = read_yaml(DEVICES / f"{file}.yaml").data
    if data.get("node_nm"):
        scaled = Definitions(to_node_nm=14.5)
        cards = [check(Card, Document({**data, "node_nm": n}, file)) for n in (data["node_nm"], 1.1 * data["node_nm"])]
        before, after = (joule(dynamic(work_of(file), Prices([c], 14.5), **scaled.model_dump())) for c in cards)
        assert after == pytest.approx(before / 1.1**3)
    if data.get("static"):
        cards = [check(Card, Document({**data, "step_time_us": t}, file)) for t in (2.0, 3.0)]
        rows = [energy_rows(work_of(file), Prices([c]), Definitions(), "r") for c in cards]
        before, after = (joule([r for r in each if r["phase"] == "static"]) for each in rows)
        assert after == pytest.approx(1.5 * before) and before > 0


# ---------------------------------------------------------------------------------------------- every definition counts

CHOICES = {
    "synapses": ("horowitz_45nm", ["effective", "fanout"]),
    "pooled": ("horowitz_45nm", ["ac"]),
    "arithmetic": ("horowitz_45nm", ["fp16", "int32", "int8"]),
    "state_bits": ("horowitz_45nm", [8]),
    "linear_organization": ("sram_cacti_32nm", ["column", "pb-bmp", "pb-csr"]),
    "conv_organization": ("sram_cacti_32nm", ["pb-bmp", "pb-csr"]),
    "spike_code": ("sram_cacti_32nm", ["events", "shorter"]),
    "rule": ("horowitz_45nm", ["bptt", "local"]),
    "skip_zero_windows": ("rram_crossbar_isaac", [False]),
    "map_all": ("rram_crossbar_isaac+horowitz_45nm", [True]),
    "step_time_us": ("sram_cacti_32nm", [5.0]),
    "to_node_nm": ("horowitz_45nm", [14.0]),
    "scaling": ("horowitz_45nm", ["linear", "quadratic"]),
}


def test_every_definition_is_tried():
    assert set(CHOICES) == set(Definitions.model_fields)


@pytest.mark.parametrize("field", CHOICES)
def test_every_definition_changes_some_number(field):
    names, values = CHOICES[field]
    if field == "map_all":
        counts = Counts.from_arrays(*workload(4, True).arrays())
        counts.layers["fc1"].held = [array(counts.layers["fc1"].weight_shape)]
    else:
        counts = sparse_workload("crossbar" in names)
    base = {"to_node_nm": 20.0} if field == "scaling" or "+" in names else {}
    found = []
    for value in (Definitions.model_fields[field].default, *values):
        d = Definitions(**{**base, field: value})
        card = prices(names, to_node_nm=d.to_node_nm, scaling=d.scaling)
        found.append([r["energy_pj"] for r in energy_rows(counts, card, d, "r")])
    for a, b in itertools.combinations(found, 2):
        assert a != b


def sparse_workload(cells: bool) -> Counts:
    """The same where few spikes arrive: windows without any, and codes of events that are shorter than a bitmap."""
    counts = workload(4, cells)
    few = one_layer(nn.Linear(1000, 6, bias=False), torch.eye(1000)[:2, None], spikes_TB=torch.zeros(2, 1, 6),
                    held=[array((6, 1000), cells=cells)])  # fmt: skip
    out = Counts.from_arrays(*counts.arrays())
    out.layers = {"few": few.layers["layer"], **out.layers}
    return out


def test_crossbar_and_row_organization_differ_in_the_rows_that_errors_read():
    """Forward both are read by rows; only a crossbar gives a column, all inputs of an output, at once."""
    for rule, differ in (("inference", False), ("bptt", True)):
        row, crossbar = (
            joule(dynamic(workload(4, False), prices("sram_cacti_32nm"), linear_organization=o, rule=rule))
            for o in ("row", "crossbar")
        )
        assert (row != crossbar) == differ
