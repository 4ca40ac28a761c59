"""What a layer leaves for accounting, against loops over every place, step and output; fan-out by each definition."""

import json
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from counted import array, arrivals, counted, network, one_layer, picture, reached, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwsim.network.arrivals import active_windows, arrived, fired, silent
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.report.trace import Counts

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw) -> tuple[nn.Conv2d, tuple[int, int]]:
    """(a convolution with any kernel, padding and stride, and weights some of which are 0; an image that fits)."""
    kernel, stride = draw(PAIR), draw(PAIR)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    image = draw(st.tuples(st.integers(3, 6), st.integers(3, 6)))
    layer = nn.Conv2d(draw(st.integers(1, 2)), draw(st.integers(1, 3)), kernel, stride, padding, bias=False)
    keep = torch.rand(layer.weight.shape, generator=seeded(draw(st.integers(0, 9)))) < 0.6
    layer.weight.data = keep.float()
    return layer, image


def of(layer: nn.Module, image: tuple[int, ...], events=None):
    """LayerCounts of one image on which nothing arrives, or these events."""
    x = torch.zeros(layer.weight.shape[1], *image) if events is None else torch.as_tensor(events)
    zeros = [tuple(i) for i in (layer.weight == 0).nonzero().tolist()]
    held = [array(tuple(layer.weight.shape), zeros=zeros)]
    return one_layer(layer, x.float()[None, None], held=held).layers["layer"]


# ------------------------------------------------------------------------------------------------------------- fan-out


@given(convolutions())
def test_fan_out_is_what_a_loop_over_outputs_counts(made):
    layer, image = made
    counts = of(layer, image)
    (held,) = counts.held
    existing, working = np.zeros((2, layer.in_channels, *image), dtype=np.int64)
    for c, h, w in np.ndindex(existing.shape):
        synapses = reached(layer, [c, h, w], image)
        existing[c, h, w] = len(synapses)
        working[c, h, w] = sum(bool(layer.weight[s]) for s in synapses)
    assert np.broadcast_to(counts.fan_out("inbounds"), existing.shape).tolist() == existing.tolist()
    assert np.broadcast_to(counts.fan_out("effective", held), existing.shape).tolist() == working.tolist()
    assert counts.dense("inbounds") == existing.sum()
    assert counts.dense("effective", held) == working.sum()
    # The published formula: the multiplications of all windows, shared by all inputs alike.
    places = layer(torch.zeros(1, layer.in_channels, *image)).shape[2:].numel()
    formula = layer.out_channels * layer.weight[0, 0].numel() * places / (image[0] * image[1])
    assert np.unique(counts.fan_out("fanout")).tolist() == [pytest.approx(formula, rel=1e-12)]
    assert counts.dense("fanout") == pytest.approx(layer.weight.numel() * places, rel=1e-12)
    assert (counts.places, counts.outputs) == (places, layer.out_channels * places)


def test_an_event_in_a_corner_at_an_edge_and_inside_reaches_four_six_and_nine():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    layer.weight.data = torch.ones(1, 1, 3, 3)
    layer.weight.data[0, 0, 0, 0] = 0
    counts = of(layer, (3, 3), [[[1, 0, 0], [0, 0, 0], [0, 0, 0]]])
    assert counts.fan_out("inbounds")[0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    # Through the kernel's first element an input meets the output one row down and one column to the right.
    assert counts.fan_out("effective", counts.held[0])[0].tolist() == [[3, 5, 4], [5, 8, 6], [4, 6, 4]]
    operations = [counts.operations(counts.unit, s, counts.held[0]) for s in ("inbounds", "effective", "fanout")]
    assert operations == [4, 3, 9]
    assert [counts.row_events(counts.unit), counts.inputs, counts.weights] == [4, 9, 9]


def test_an_event_between_strides_reaches_nothing():
    counts = of(nn.Conv2d(1, 2, 1, stride=2, bias=False), (3, 3))
    assert counts.fan_out("inbounds")[0].tolist() == [[2, 0, 2], [0, 0, 0], [2, 0, 2]]


def test_an_event_at_a_linear_layer_reaches_every_output_over_a_weight():
    layer = nn.Linear(8, 5, bias=False)
    layer.weight.data = torch.ones(5, 8)
    layer.weight.data[0, :4] = 0
    layer.weight.data[:, 7] = 0
    counts = of(layer, (), [1, 0, 0, 0, 1, 0, 0, 1])
    assert counts.fan_out("inbounds") == counts.fan_out("fanout") == 5
    assert counts.dense("inbounds") == counts.dense("fanout") == 40
    assert counts.fan_out("effective", counts.held[0]).tolist() == [4, 4, 4, 4, 5, 5, 5, 0]
    operations = [counts.operations(counts.unit, s, counts.held[0]) for s in ("inbounds", "effective", "fanout")]
    assert operations == [15, 9, 15]
    assert (counts.places, counts.outputs, counts.inputs, counts.weights) == (1, 5, 8, 40)


def test_effective_operations_want_the_weights():
    with pytest.raises(ValueError, match="weights that an array holds"):
        of(nn.Linear(2, 2, bias=False), ()).fan_out("effective")


PUBLISHED = {
    "vgg9": [1_769_472, 37_748_736, 18_874_368, 37_748_736, 18_874_368, 37_748_736, 37_748_736, 4_194_304, 10_240],
    "vgg11": [1_769_472, 18_874_368, 18_874_368, 37_748_736, 18_874_368, 37_748_736, 9_437_184, 9_437_184, 2_097_152,
              409_600],
    "vgg5": [1_769_472, 18_874_368, 37_748_736, 8_388_608, 10_240],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_counts_are_the_published_multiplications(name):
    net = build(name, channels=3, size=(32, 32), classes=100 if name == "vgg11" else 10, steps=1).eval()
    counts = Counts(1)
    with torch.no_grad():
        counts.add(net(torch.zeros(1, 3, 32, 32), account=())[1], 1)
    assert [layer.dense("fanout") for layer in counts.layers.values()] == PUBLISHED[name]
    if name == "vgg9":
        assert sum(PUBLISHED[name]) == 194_717_696
    # One row and column of kernel are missing at each border of a 3x3 convolution with padding 1.
    assert counts.layers["conv1"].dense("inbounds") == 3 * 64 * (3 * 32 - 2) ** 2


# --------------------------------------------------------------------------------------------------- what arrives there


@given(convolutions(), st.integers(1, 3), st.integers(1, 2), st.sampled_from([0, 1, 4]))
def test_arrivals_are_counted_by_place_and_by_step(made, steps, batch, parts):
    layer, image = made
    x = torch.randint(-1 if parts == 1 else 0, (parts or 4) + 1, (steps, batch, layer.in_channels, *image))
    x = x / (parts or 4) if parts != 1 else x.float()
    here = arrived(layer, x, parts, signed=parts == 1, rows=(2, 64))
    unit, fractional = np.zeros((2, layer.in_channels, *image), dtype=int)
    unit_T, fractional_T = np.zeros((2, steps), dtype=int)
    for t, b, *place in np.ndindex(tuple(x.shape)):
        value = float(x[t, b, *place])
        if value != 0:
            is_spike = abs(value) == 1 and parts > 0
            (unit if is_spike else fractional)[*place] += 1
            (unit_T if is_spike else fractional_T)[t] += 1
    found = {k: here[k].tolist() for k in ("unit", "fractional", "unit_T", "fractional_T")}
    assert found == {"unit": unit.tolist(), "fractional": fractional.tolist(), "unit_T": unit_T.tolist(),
                     "fractional_T": fractional_T.tolist()}  # fmt: skip
    assert (here["weight_shape"], here["image"]) == (tuple(layer.weight.shape), image)
    assert (here["padding"], here["stride"]) == (layer.padding, layer.stride)
    assert (here["parts"], here["signed"]) == (parts, parts == 1)
    assert parts or not unit.any()


@given(convolutions(), st.integers(1, 7), st.integers(0, 9))
def test_active_windows_are_those_of_a_loop_over_windows_and_tiles(made, height, seed):
    layer, image = made
    active = torch.rand(2, 3, layer.in_channels, *image, generator=seeded(seed)) < 0.2
    C, (kh, kw), (ph, pw), (sh, sw) = layer.in_channels, layer.kernel_size, layer.padding, layer.stride
    padded = torch.nn.functional.pad(active, (pw, pw, ph, ph))
    expected = [0] * -(-C * kh * kw // height)
    for t, b in np.ndindex(2, 3):
        for row in range(0, padded.shape[3] - kh + 1, sh):
            for column in range(0, padded.shape[4] - kw + 1, sw):
                window = padded[t, b, :, row : row + kh, column : column + kw].flatten()
                for tile in range(len(expected)):
                    expected[tile] += bool(window[tile * height : (tile + 1) * height].any())
    assert {k: v.tolist() for k, v in active_windows(layer, active, (height,)).items()} == {height: expected}


def test_active_windows_of_a_linear_layer_are_its_steps_with_an_active_input_in_the_tile():
    active = torch.tensor([[[1, 0, 0, 0, 1]], [[0, 0, 1, 0, 0]], [[0, 0, 0, 0, 0]]]).bool()
    found = active_windows(nn.Linear(5, 2, bias=False), active, (2, 3, 8))
    assert {k: v.tolist() for k, v in found.items()} == {2: [1, 1, 1], 3: [2, 1], 8: [2]}


def test_spikes_are_counted_by_neuron_and_by_step_and_those_of_the_first_image_drawn():
    spikes = (torch.rand(3, 4, 2, 2, 2, generator=seeded(1)) < 0.4).float()
    found = fired(spikes)
    assert found["neurons"] == 8
    assert found["spikes"].tolist() == [int(spikes[t].sum()) for t in range(3)]
    assert found["spikes_N"].tolist() == [int(spikes[:, :, c, h, w].sum()) for c, h, w in np.ndindex(2, 2, 2)]
    assert found["raster"].tolist() == [
        [bool(spikes[t, 0, c, h, w]) for c, h, w in np.ndindex(2, 2, 2)] for t in range(3)
    ]
    nothing = silent(3)
    assert nothing["neurons"] == 0 and nothing["spikes"].tolist() == [0, 0, 0] and nothing["raster"].shape == (3, 0)


# --------------------------------------------------------------------------------------------------------- in a network


@pytest.mark.parametrize("plan", [(2, 3, "A", 4, "A"), (2, "A", 3, "G")])
@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
def test_a_network_leaves_what_arrived_at_each_of_its_layers(coding, plan):
    net, x = network(coding, plan), picture(4)
    counts, there = counted(net, x), arrivals(net, x)
    assert list(counts.layers) == list(there)
    for name, layer in counts.layers.items():
        is_analog = name == "conv1" and coding != "poisson"
        is_unit = (there[name].abs() == 1) & (not is_analog)
        assert layer.unit.tolist() == is_unit.sum((0, 1)).tolist()
        assert layer.fractional.tolist() == ((there[name] != 0) & ~is_unit).sum((0, 1)).tolist()
        assert layer.signed == (name == "conv1") and layer.steps == len(there[name])
        height = net.get_submodule(name).weight[0].numel()
        assert counts.layers[name].windows[4].shape == (-(-height // 4),)
    # Averages of spikes arrive where a layer was pooled, and nowhere else; an analog image only at the first layer.
    averaged = {"conv3", "fc1"} if "G" not in plan else {"conv2", "fc1"}
    analog = {"conv1"} if coding != "poisson" else set()
    assert {n for n, layer in counts.layers.items() if layer.fractional.any()} == averaged | analog
    assert [n for n, layer in counts.layers.items() if layer.steps == 1] == (["conv1"] if coding == "direct" else [])


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_a_network_leaves_the_spikes_of_its_neurons(coding):
    net, x, spikes = network(coding), picture(4), {}
    names = {f"bntt{i}": f"conv{i}" for i in (1, 2, 3)} | {"bntt_fc": "fc1"}
    for bntt, name in names.items():
        net.get_submodule(bntt).register_forward_hook(lambda _, given, out, name=name: spikes.update({name: out[0]}))
    counts = counted(net, x)
    for name, fired_TB in spikes.items():
        layer, each = counts.layers[name], fired_TB.detach().flatten(2)
        assert layer.neurons == each.shape[2]
        assert layer.spikes_T.tolist() == each.sum((1, 2)).tolist()
        assert layer.spikes_N.tolist() == each.sum((0, 1)).tolist()
        assert counts.raster[name].tolist() == each[:, 0].bool().tolist()
    assert counts.layers["fc2"].neurons == 0 and not counts.layers["fc2"].spikes_T.any()


def test_accounting_does_not_change_what_a_network_says():
    net, x = network("direct"), picture(4)
    with torch.no_grad():
        plain, trace = net(x)
        watched, more = net(x, account=(64,))
    assert torch.equal(plain, watched)
    assert {n: v["spikes"].tolist() for n, v in trace.items() if "spikes" in v} == {
        n: v["spikes"].tolist() for n, v in more.items() if v["neurons"]
    }


@pytest.mark.parametrize(("coding", "steps"), [("direct", 1), ("repeat", 3)])
def test_an_analog_input_of_exactly_one_is_no_spike(coding, steps):
    net = VggBntt((2, "A"), 3, channels=1, size=(4, 4), classes=2, steps=3, coding=coding).eval()
    first = counted(net, torch.ones(2, 1, 4, 4)).layers["conv1"]
    assert first.unit.sum() == 0 and first.fractional.sum() == 2 * 16 * steps
    assert first.parts == 0


def test_counts_of_batches_add_up_to_those_of_all_images():
    net, x = network("direct"), picture(7)
    whole, parts = counted(net, x), Counts(3)
    for piece in (x[:3], x[3:4], x[4:]):
        with torch.no_grad():
            parts.add(net(piece, account=(4, 64, 128, 256))[1], len(piece))
    for name, layer in parts.layers.items():
        layer.held = whole.layers[name].held
    assert plain(parts) == plain(whole)


# ----------------------------------------------------------------------------------------------------- kept and beside


def plain(value):
    """A dataclass, or what is in one, as lists and numbers that can be compared."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return plain(vars(value)) if is_dataclass(value) else (type(value), value)


def ensemble() -> Counts:
    one, other = counted(network("direct"), picture(3)), counted(network(), picture(3, 51))
    other.layers["conv2"].held = [array((3, 2, 3, 3), component="rram", cells=True, bits=2), array((3, 2, 3, 3), bits=3,
                                  component="sram", zeros=[(0, 0, 1, 1)])]  # fmt: skip
    together = Counts(3, 3)
    together.beside(one, "shift-1")
    together.beside(other, "shift0")
    return together


@pytest.mark.parametrize("make", [lambda: counted(network("direct"), picture(3)), ensemble], ids=["one", "ensemble"])
def test_counts_come_back_from_plain_arrays_as_they_were(make):
    counts = make()
    arrays, about = counts.arrays()
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    again = Counts.from_arrays(arrays, json.loads(json.dumps(about)))
    assert plain(again) == plain(counts)


def test_members_of_an_ensemble_stand_beside_each_other():
    counts = ensemble()
    layers = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert list(counts.layers) == [f"{n}@shift-1" for n in layers] + [f"{n}@shift0" for n in layers]
    assert list(counts.raster) == list(counts.layers)
    assert counts.one_member == [f"{n}@shift-1" for n in layers]
    assert counts.first == {"conv1@shift-1", "conv1@shift0"}
    assert counts.images == 3
    alone = counted(network(), picture(3, 51))
    assert (alone.one_member, alone.first) == (layers, {"conv1"})
    assert plain(counts.layers["conv3@shift0"]) == plain(alone.layers["conv3"])
