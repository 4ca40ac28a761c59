"""docs/energy.md tells the truth: its cards and definitions, its commands, and every number that it works by hand."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from counted import array, local_network, one_layer, prices
from torch import nn

from hwsim.cli import cli
from hwsim.device.card import card_names, load_card
from hwsim.device.crossbar import map_layer
from hwsim.report.action import Definitions
from hwsim.report.crossbar import windows_read
from hwsim.report.energy import actions, energy_rows
from hwsim.report.learned import Learned
from hwsim.report.memory import code
from hwsim.report.work import ann_actions, input_bits, learning_actions

TEXT = (Path(__file__).parents[1] / "docs" / "energy.md").read_text(encoding="utf-8")


def table(head: str) -> dict[str, list[str]]:
    """First cell → the other cells of the table whose first heading is `head`."""
    (body,) = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in body.splitlines()]
    assert len({r[0] for r in rows}) == len(rows)
    return {r[0]: r[1:] for r in rows}


def by_hand(head: str) -> dict[str, float]:
    """Name → value of a table worked by hand; the sum beside each value must give it."""
    out = {}
    for name, (hand, value) in table(head).items():
        assert re.fullmatch(r"[\d\s.e+*/()-]+", hand), hand
        assert eval(hand) == pytest.approx(float(value), rel=1e-12), name
        out[name] = float(value)
    return out


# ------------------------------------------------------------------------------------------------- as the text tells it


def places(name: str) -> list[tuple[int, int]]:
    """The places (row, column) that the first table of the example gives."""
    return [(int(r), int(c)) for r, c in re.findall(r"\((\d), (\d)\)", table("what")[name][0])]


def events(name: str) -> torch.Tensor:
    """[T, B, C, H, W]: spikes of both steps."""
    out = torch.zeros(2, 1, 1, 3, 3)
    for t in (0, 1):
        for row, column in places(f"{name}, step {t + 1}"):
            out[t, 0, 0, row, column] = 1
    return out


def layer(cells: bool = False):
    zeros = [(0, 0, *p) for p in places("weight that is zero")]
    held = array((1, 1, 3, 3), zeros=zeros, bits=4, cells=cells)
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    x, spikes = events("spikes that arrive"), events("neurons that fire")
    return one_layer(conv, x, spikes_TB=spikes, held=[held])


def energy(card: str = "horowitz_45nm", counts=None, **said) -> dict[tuple[str, str, str], float]:
    """(phase, component, action) → pJ; actions of the same name together, totals as `all`."""
    d, out = Definitions(**said), {}
    rows = energy_rows(counts or layer(), prices(card, to_node_nm=d.to_node_nm, scaling=d.scaling), d, "r")
    for r in rows:
        key = r["phase"], r["component"], r["action"]
        out[key] = out.get(key, 0) + r["energy_pj"]
    return out


def agree(head: str, found: dict[str, float]) -> None:
    """Every row of the table is what the library says, and there are no others."""
    said = by_hand(head)
    assert list(said) == list(found)
    assert said == pytest.approx(found, rel=1e-9)


def test_synaptic_operations():
    counts = layer()
    here = counts.layers["layer"]
    agree("synaptic operations", {
        **{s: here.operations(here.unit, s, here.held[0]) for s in ("inbounds", "effective", "fanout")},
        "ordinary network, inbounds": here.dense("inbounds"), "ordinary network, fanout": here.dense("fanout"),
    })  # fmt: skip


def test_arithmetic():
    pJ = energy()
    agree("arithmetic", {
        "additions in synapses": pJ["inference", "synapse", "ac"],
        "multiplications of neurons, 2 each and step": pJ["inference", "neuron_arithmetic", "mult"],
        "additions of neurons, 3 each and step, 1 a spike": pJ["inference", "neuron_arithmetic", "add"],
        "ordinary network, synapses": pJ["ann_inference", "synapse", "mac"],
        "ordinary network, neurons": pJ["ann_inference", "neuron_arithmetic", "add"],
    })  # fmt: skip


def test_memory():
    pJ = {k[2]: v for k, v in energy().items() if k[:2] == ("inference", "memory")}
    bits = {}
    for name in ("bitmap", "events"):
        _, count, each = code(layer().layers["layer"], Definitions(spike_code=name), 1)
        bits[name] = count * each
    agree("memory", {
        "weights, read": pJ["weight_read"],
        "sums, read: by spikes, and by the neurons of each step": pJ["accumulator_read"],
        "sums, written: by spikes, and cleared each step": pJ["accumulator_write"],
        "membranes, read and written": pJ["membrane_read"] + pJ["membrane_write"],
        "inputs, a bitmap of 9 bits a step, written and read": pJ["spike_read"] + pJ["spike_write"],
        "scale and offset of BNTT, 2 * 32 bits a step": pJ["norm_read"],
        "bits of the bitmap": bits["bitmap"], "bits of address events, 4 each": bits["events"],
        "all dynamic energy of inference": energy()["inference", "all", "all"],
    })  # fmt: skip


def test_learning():
    here = layer().layers["layer"]
    made = learning_actions("layer", here, Definitions(rule="bptt"), 1, is_first=False, classes=10)
    count = {(a.phase, a.component, a.action): a.count for a in made}
    agree("learning", {
        "error, multiply-additions in synapses": count["error", "synapse", "mac"],
        "error, multiplications of neurons": count["error", "neuron_arithmetic", "mult"],
        "error, additions of neurons": count["error", "neuron_arithmetic", "add"],
        "gradient, additions": count["gradient", "synapse", "ac"],
        "update, multiplications": count["update", "neuron_arithmetic", "mult"],
    })  # fmt: skip


def test_crossbar():
    counts, crossbar = layer(cells=True), load_card("rram_crossbar_spikesim").crossbar
    here = counts.layers["layer"]
    mapping = map_layer(crossbar, (1, 1, 3, 3), 4)
    read = [sum(windows_read("layer", here, mapping, crossbar, 1, skip=skip)) for skip in (True, False)]
    rows = energy("rram_crossbar_spikesim", counts)
    pJ = {k[2]: v for k, v in rows.items() if k[0] == "inference" and k[1] != "all" and k[2] != "all"}
    names = {
        "array reads": "array_read", "conversions": "adc_conversion", "multiplexer": "mux", "subtractions": "subtract",
        "tile buffer, read": "buffer_read", "registers, read": "register_read", "registers, written": "register_write",
        "tree": "interconnect", "neuron updates": "neuron_update",
    }  # fmt: skip
    assert set(names.values()) == set(pJ)
    agree("crossbar", {
        "windows read": read[0], "windows without skipping": read[1], "cells in use": mapping.used_cells,
        "converters of the array": mapping.adcs, **{said: pJ[action] for said, action in names.items()},
    })  # fmt: skip


def test_other_cards():
    loihi, dram = energy("loihi"), energy("dram")
    membranes = [dram["inference", "memory", f"membrane_{way}"] for way in ("read", "write")]
    synapses = {s: energy(to_node_nm=22.5, scaling=s)["inference", "synapse", "ac"] for s in ("cubic", "linear")}
    agree("other", {
        "loihi, synaptic operations": loihi["inference", "synop", "synop"],
        "loihi, neuron updates": loihi["inference", "neuron", "neuron_update"],
        "truenorth, synaptic operations": energy("truenorth")["inference", "synop", "synop"],
        "memory_iscas2020, one pass at 4 bits": energy("memory_iscas2020")["inference", "organization", "all"],
        "dram, weights": dram["inference", "memory", "weight_read"],
        "dram, membranes, 288 bits are 2 bursts": sum(membranes),
        "sram_cacti_32nm, leakage at 1 microsecond a step":
            energy("sram_cacti_32nm", step_time_us=1.0)["static", "memory", "leakage"],
        "horowitz_45nm at 22.5 nm, cubic, synapses": synapses["cubic"],
        "horowitz_45nm at 22.5 nm, linear, synapses": synapses["linear"],
    })  # fmt: skip


def test_averages():
    (line,) = re.findall(r"inputs (0, .*?) of a linear layer with three outputs", TEXT.replace("\n", " "))
    values = [eval(v) for v in line.split(", ")]
    counts = one_layer(nn.Linear(4, 3, bias=False), torch.tensor([[values]]), parts=4)
    here = counts.layers["layer"]
    pJ = {pooled: energy(counts=counts, pooled=pooled)["inference", "synapse", "all"] for pooled in ("mac", "ac")}
    agree("averages", {
        "additions": here.operations(here.unit, "inbounds"),
        "multiply-additions": here.operations(here.fractional, "inbounds"),
        "energy in pJ": pJ["mac"], "energy in pJ, `--pooled ac`": pJ["ac"],
        "bits of an input, none to four quarters": input_bits(here),
    })  # fmt: skip


def local() -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """(layer, phase, component, action) → (actions, bits) of the layer that learns locally, as its tables give it."""
    recording, training = (
        {k: int(v) for k, (v,) in table(head).items()}
        for head in ("one test recording", "training, one batch of two recordings")
    )
    arrived, traces, spikes, features = (
        recording[k]
        for k in ("inputs that spike", "P that are not zero", "neurons that fire", "sigmoids that are not zero")
    )
    steps, updates, scores, at_features, errors, gradients, changes = training.values()
    learned = Learned(2, steps, updates, 8, changes, changes, errors, gradients, scores, at_features)
    counts = local_network(arrived=arrived, traces=traces, spikes=spikes, features=features, training=learned)
    out: dict[tuple[str, str, str, str], tuple[float, float]] = {}
    for a in actions(counts, prices("horowitz_45nm"), Definitions(rule="local")):
        key = a.layer, a.phase, a.component, a.action
        number, bits = out.get(key, (0.0, 0.0))
        out[key] = number + a.count, bits + a.count * a.bits
    return out


def test_operations_of_local_learning():
    def of(layer: str, phase: str, action: str) -> float:
        component = "synapse" if action == "mac" else "neuron_arithmetic"
        return found.pop((layer, phase, component, action))[0]

    found = {k: v for k, v in local().items() if k[2] != "memory" and k[1] != "ann_inference" and v[0]}
    agree("local learning, operations", {
        "forward, MAC of the layer": of("layer1", "forward", "mac"),
        "forward, MAC of the readout": of("readout1", "forward", "mac"),
        "forward, multiplications: 2 a neuron, 3 an input and step": of("layer1", "forward", "mult"),
        "forward, additions: 3 a neuron, 1 an input and step; 1 a spike out or in": of("layer1", "forward", "add"),
        "error, MAC of the readout": of("readout1", "error", "mac"),
        "error, multiplications": of("layer1", "error", "mult"),
        "error, additions of the readout, 2 a class and step": of("readout1", "error", "add"),
        "error, additions of the layer, 2 a feature and step": of("layer1", "error", "add"),
        "gradient, MAC": of("layer1", "gradient", "mac"), "gradient, additions": of("layer1", "gradient", "add"),
        "update, multiplications": of("layer1", "update", "mult"),
        "update, additions: search, rounding, change": of("layer1", "update", "add"),
    })  # fmt: skip
    assert not found


def test_bits_that_local_learning_moves():
    def of(phase: str, *actions: str, layer: str = "layer1") -> float:
        return sum(found.pop((layer, phase, "memory", action))[1] for action in actions)

    found = {k: v for k, v in local().items() if k[2] == "memory" and k[1] != "ann_inference"}
    both = "membrane_trace_read", "membrane_trace_write"
    errors = of("error", "error_read", "error_write"), of("error", "error_read", "error_write", layer="readout1")
    agree("local learning, bits", {
        "weights, streamed": of("forward", "weight_read"), "biases": of("forward", "bias_weight_read"),
        "P, read: to decay and to multiply": of("forward", both[0]), "P, written": of("forward", both[1]),
        "Q, read and written": of("forward", "synaptic_trace_read", "synaptic_trace_write"),
        "decays, two of 32 bits an input": of("forward", "decay_read"),
        "R, read and written": of("forward", "refractory_read", "refractory_write"),
        "U, read and written by steps that vote": of("forward", "potential_read", "potential_write"),
        "inputs, a bitmap written and read": of("forward", "spike_read", "spike_write"),
        "readout": of("forward", "weight_read", layer="readout1"),
        "scores, read and written": of("forward", "score_read", "score_write", layer="readout1"),
        "error: feedback": of("error", "feedback_read", layer="readout1"),
        "error: scores": of("error", "score_read", layer="readout1"),
        "error: U": of("error", "potential_read"),
        "error: errors, written and, but at neurons, read": sum(errors),
        "gradient: P": of("gradient", "membrane_trace_read"),
        "gradient: errors at neurons, read": of("gradient", "error_read"),
        "gradient: sums, written, and read by the second of the batch":
            of("gradient", "gradient_read", "gradient_write"),
        "update: sums, read to search and to round": of("update", "gradient_read"),
        "update: masters, read": of("update", "master_read"),
        "update: masters and weights that changed, written": of("update", "master_write", "weight_write"),
    })  # fmt: skip
    assert not found


# ------------------------------------------------------------------------------------------------------ tables of words


def test_every_card_of_prices_is_listed_with_what_it_covers():
    said = table("card")
    assert {name.strip("`") for name in said} == {n for n in card_names() if load_card(n).prices}
    for name, (node, covers, _) in said.items():
        card = load_card(name.strip("`"))
        if card.covers:
            assert covers.split(", ") == card.covers, name
            assert node == (f"{card.node_nm:g}" if card.node_nm else "unknown"), name
        else:
            assert (node, covers) == ("any", "nothing alone")


def test_every_definition_is_listed_with_its_default_and_its_choices():
    said = table("setting")
    assert [name.strip("`") for name in said] == list(Definitions.model_fields)
    for name, (default, others) in said.items():
        field = Definitions.model_fields[name.strip("`")]
        assert default == f"`{field.default}`"
        if isinstance(field.default, str):
            choices = {field.default, *re.findall(r"`([\w-]+)`", others)}
            assert choices == set(field.annotation.__args__), name


def test_every_command_on_a_run_parses():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^|`)hwsim ((?:energy|report|describe) RUN[^`\n]*)", TEXT + readme, re.M)
    assert len(found) > 4
    for command in found:
        name, *words = shlex.split(command.split("  #")[0])
        given = cli.commands[name].make_context(name, words).params
        for card in given.get("cards", ()):
            assert prices(card, to_node_nm=given.get("to_node_nm"))


def test_the_first_layer_hands_no_error_down_and_the_ordinary_network_has_no_steps():
    """What the text says beside the tables."""
    here = layer().layers["layer"]
    first = learning_actions("layer", here, Definitions(rule="bptt"), 1, is_first=True, classes=10)
    assert ("error", "synapse") not in {(a.phase, a.component) for a in first}
    assert [a.timesteps for a in ann_actions("layer", here, Definitions())] == [1, 1]
