"""Sparsity by layer and step; tables and figures that are drawn from rows."""

import pytest
from counted import arrivals, counted, network, picture, prices

from hwsim.report import plot
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows
from hwsim.report.plot import accuracy_figure, energy_figure
from hwsim.report.sparsity import COLUMNS, sparsity_rows
from hwsim.report.table import aligned, csv_bytes


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_sparsity_rows_count_spikes_and_inputs_of_an_image_and_step(coding):
    net, x = network(coding), picture(4)
    spikes, inputs = {}, {k: (v != 0).flatten(1).sum(1) / 4 for k, v in arrivals(net, x).items()}
    for bntt, name in {"bntt1": "conv1", "bntt2": "conv2", "bntt3": "conv3", "bntt_fc": "fc1"}.items():
        net.get_submodule(bntt).register_forward_hook(
            lambda layer, given, result, name=name: spikes.update({name: result[0].flatten(1).sum(1) / 4})
        )
    rows = sparsity_rows(counted(net, x), "vat-1")
    assert all(tuple(r) == COLUMNS for r in rows)
    assert [(r["layer"], r["timestep"]) for r in rows] == [
        (layer, t) for layer in ("conv1", "conv2", "conv3", "fc1", "fc2") for t in (1, 2, 3)
    ]
    neurons = {"conv1": 2 * 42, "conv2": 3 * 42, "conv3": 4 * 9, "fc1": 5, "fc2": 0}
    widths = {"conv1": 2 * 42, "conv2": 2 * 42, "conv3": 3 * 9, "fc1": 4, "fc2": 5}
    for r in rows:
        name, t = r["layer"], r["timestep"] - 1
        assert r["run_id"] == "vat-1" and r["neurons"] == neurons[name]
        assert r["spikes"] == (float(spikes[name][t]) if name in spikes else 0)
        assert r["zeros_fraction"] == (pytest.approx(1 - r["spikes"] / neurons[name]) if name in spikes else "")
        there = t < len(inputs[name])  # direct coding: the first layer has its inputs once
        assert r["inputs"] == (widths[name] if there else 0)
        assert r["nonzero_inputs"] == (float(inputs[name][t]) if there else 0)
    assert any(0 < r["zeros_fraction"] < 1 for r in rows if r["layer"] != "fc2")


def test_input_density_is_the_share_of_inputs_that_are_not_zero():
    net, x = network(), picture(4)
    counts, there = counted(net, x), arrivals(net, x)
    rows = energy_rows(counts, prices("horowitz_45nm"), Definitions(), "r")
    for name, arrived in there.items():
        (density,) = {r["input_density"] for r in rows if r["layer"] == name and r["phase"] == "inference"
                      and r["component"] == "synapse"}  # fmt: skip
        assert density == pytest.approx(float((arrived != 0).double().mean()), rel=1e-12)


def test_a_table_is_the_same_bytes_for_the_same_numbers_and_knows_its_columns():
    assert csv_bytes([{"a": 1 / 3, "b": "x"}, {"a": 2, "b": ""}], ("a", "b")) == b"a,b\n0.3333333333,x\n2,\n"
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        csv_bytes([{"a": 1, "c": 2}], ("a",))
    assert aligned([{"n": "conv1", "pJ": 0.5}, {"n": "fc", "pJ": 12.25}]) == "n         pJ\nconv1    0.5\nfc     12.25"


def energies(coding: str = "direct", **said) -> list[dict]:
    card = prices("horowitz_45nm")
    return energy_rows(counted(network(coding), picture(4)), card, Definitions(**said), "r")


def test_figures_are_drawn_from_the_rows_and_are_the_same_twice():
    accuracy = [
        {"network": n, "variation_scale": s, "mean": 0.5, "ci95_low": 0.4, "ci95_high": 0.6}
        for n in ("vat", "baseline") for s in (0.0, 1.0, 2.0)
    ]  # fmt: skip
    for draw_figure, rows in ((energy_figure, energies()), (accuracy_figure, accuracy)):
        png = draw_figure(rows, "title")
        assert png.startswith(b"\x89PNG\r\n")
        assert png == draw_figure(rows, "title")


@pytest.mark.parametrize("rule", ["inference", "bptt"])
def test_the_figure_of_energy_stacks_components_beside_those_of_the_ordinary_network(monkeypatch, rule):
    drawn = []
    monkeypatch.setattr(plot, "png", lambda figure: drawn.append(figure) or b"")
    rows = energies(rule=rule)
    leaks = [{**rows[0], "phase": "static", "energy_pj": 1e9}]
    energy_figure([*leaks, *rows], "title")
    (axes,) = drawn[0].axes
    layers = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert [t.get_text() for t in axes.get_xticklabels()] == layers
    bars = {b.get_label(): [(p.get_y(), p.get_height()) for p in b] for b in axes.containers}
    components = ["synapse", "neuron_arithmetic", "memory"]
    assert set(bars) == {f"{before}{c}" for before in ("", "same shape, not spiking: ") for c in components}
    for is_ann, before in ((False, ""), (True, "same shape, not spiking: ")):
        base = [0.0] * 5
        order = dict.fromkeys(r["component"] for r in rows if r["layer"] != "TOTAL")
        for component in order:
            heights = [
                sum(r["energy_pj"] for r in rows if (r["layer"], r["component"]) == (name, component)
                    and (r["phase"] == "ann_inference") == is_ann) / 1000 for name in layers
            ]  # fmt: skip
            assert [y for y, _ in bars[before + component]] == pytest.approx(base)
            assert [h for _, h in bars[before + component]] == pytest.approx(heights)
            base = [b + h for b, h in zip(base, heights, strict=True)]
