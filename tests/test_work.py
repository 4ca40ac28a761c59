"""Arithmetic of layers and neurons, each action counted by hand on tiny layers, and by loops on a small network."""

import math

import pytest
import torch
from counted import array, counted, network, one_layer, picture, slow_counts
from torch import nn

from hwsim.report.action import Action, Definitions
from hwsim.report.work import (
    ann_actions,
    input_bits,
    learning_actions,
    neuron_actions,
    synapse_actions,
    synop_actions,
    update_actions,
)

D = Definitions()
FP32_MAC = ("mult_fp32", "add_fp32")


def spikes(*steps, shape: tuple[int, ...]) -> torch.Tensor:
    """[T, B, ...]: for each step, for each image, the places of its spikes."""
    out = torch.zeros(len(steps), len(steps[0]), *shape)
    for t, images in enumerate(steps):
        for b, places in enumerate(images):
            for place in places:
                out[t, b, *place] = 1
    return out


def padded():
    """A 3x3 convolution with padding: 1 channel of 3x3, 2 outputs, two of 18 weights 0; two steps, two images.

    Four spikes arrive: in a corner, in the middle, at an edge, in the opposite corner. Three neurons fire.
    """
    x = spikes([[(0, 0, 0), (0, 1, 1)], []], [[(0, 2, 1)], [(0, 0, 2)]], shape=(1, 3, 3))
    out = spikes([[(0, 0, 0)], []], [[(1, 2, 2)], [(0, 1, 1)]], shape=(2, 3, 3))
    held = array((2, 1, 3, 3), zeros=[(0, 0, 0, 0), (1, 0, 1, 1)], bits=2)
    return one_layer(nn.Conv2d(1, 2, 3, padding=1, bias=False), x, spikes_TB=out, held=[held])


def strided():
    """A 2x2 convolution of stride 2 on 2 channels of 5x4, 3 outputs: the last row lies in no window."""
    x = spikes([[(0, 0, 0), (1, 4, 3)]], [[(1, 3, 1), (0, 4, 0)]], [[]], shape=(2, 5, 4))
    out = spikes([[]], [[(2, 1, 1)]], [[(0, 0, 0)]], shape=(3, 2, 2))
    return one_layer(nn.Conv2d(2, 3, 2, stride=2, bias=False), x, spikes_TB=out)


def averaged():
    """Behind 2x2 pooling: 4 inputs in quarters, 3 outputs without neurons; two steps, 2 spikes and 3 averages."""
    x = torch.tensor([[[0, 0.25, 1, 0.5]], [[1, 0, 0, 0.75]]])
    return one_layer(nn.Linear(4, 3, bias=False), x, parts=4, held=[array((3, 4), zeros=[(0, 3), (1, 3), (2, 0)])])


def analog():
    """An image of numbers, computed once for all three steps, as direct coding does."""
    x = torch.tensor([[[[[1.0, -0.5], [0.0, 2.0]]]]])
    out = spikes([[(0, 0, 0)]], [[]], [[(0, 0, 0)]], shape=(2, 1, 1))
    return one_layer(nn.Conv2d(1, 2, 2, bias=False), x, parts=0, spikes_TB=out)


def table(found) -> dict[tuple[str, str], float]:
    """(component, action) → count an image. Nothing may be said twice, nor of another layer or phase than asked."""
    found = list(found)
    assert {a.layer for a in found} <= {"layer"} and len({a.phase for a in found}) <= 1
    out = {(a.component, a.action): a.count for a in found}
    assert len(out) == len(found)
    return out


def synapse(counts, **said) -> dict[str, float]:
    layer, definitions = counts.layers["layer"], Definitions(**said)
    made = synapse_actions("layer", layer, layer.held[0], definitions, counts.images, "inference")
    return {action: count for (_, action), count in table(made).items()}


def learning(counts, rule: str, is_first: bool = False) -> dict[tuple[str, str, str], float]:
    """(phase, component, action) → count an image, with 10 classes."""
    layer, found = counts.layers["layer"], {}
    d = Definitions(rule=rule)
    for a in learning_actions("layer", layer, d, counts.images, is_first=is_first, classes=10):
        assert (a.phase, a.component, a.action) not in found
        found[a.phase, a.component, a.action] = a.count
    return found


# ------------------------------------------------------------------------------------------------------------- synapses


def test_additions_of_a_padded_convolution():
    # Inbounds 4 + 9 + 6 + 4 = 23 an output, 2 outputs, 2 images.
    assert synapse(padded()) == {"ac": 23}
    # The first output's zero is met by the corner and the middle, the second's (in its middle) by all four.
    assert synapse(padded(), synapses="effective") == {"ac": (46 - 2 - 4) / 2}
    assert synapse(padded(), synapses="fanout") == {"ac": 4 * 2 * 9 / 2}


def test_additions_of_a_strided_convolution():
    # Each input lies in one window, the last row in none.
    assert synapse(strided()) == {"ac": 2 * 3}
    # The published formula shares 2x2 windows of 2x2 inputs among 5x4 places: 3·4·4/20 an event, wherever it is.
    assert synapse(strided(), synapses="fanout") == {"ac": pytest.approx(4 * 2.4)}


def test_averages_are_multiplications_or_additions_as_chosen():
    assert synapse(averaged()) == {"ac": 2 * 3, "mac": 3 * 3}
    assert synapse(averaged(), pooled="ac") == {"ac": 5 * 3}
    # Column 3 (an average, twice) has one weight that is not 0, column 0 (a spike) two.
    assert synapse(averaged(), synapses="effective") == {"ac": 3 + 2, "mac": 3 + 1 + 1}


@pytest.mark.parametrize("pooled", ["mac", "ac"])
def test_an_analog_input_is_a_multiplication_even_where_it_is_one(pooled):
    # Three of four pixels are not 0, each reaches 2 outputs; once for all steps.
    assert synapse(analog(), pooled=pooled) == {"ac": 0, "mac": 6}


def test_actions_say_what_they_are_done_on():
    layer = padded().layers["layer"]
    (a,) = synapse_actions("layer", layer, layer.held[0], D, 2, "forward")
    assert a == Action("layer", "forward", "synapse", "ac", ("add_fp32",), 23, weight_bits=2, input_bits=1,
                       timesteps=2, input_density=4 / (2 * 2 * 9), weight_density=16 / 18, widths=(6,))  # fmt: skip
    layer = averaged().layers["layer"]
    ac, mac = synapse_actions("layer", layer, layer.held[0], Definitions(arithmetic="int8"), 1, "inference")
    assert (ac.elements, mac.elements) == (("add_int8",), ("mult_int8", "add_int8"))
    assert (ac.input_bits, mac.input_bits) == (1, 3)  # none to four quarters
    assert (mac.input_density, mac.weight_density, mac.timesteps) == (5 / 8, 9 / 12, 2)


def test_an_operation_is_as_wide_as_its_operands_and_a_sum_never_overflows():
    layer = averaged().layers["layer"]
    ac, mac = synapse_actions("layer", layer, layer.held[0], Definitions(arithmetic="int"), 1, "inference")
    w, n = layer.held[0].bits, math.prod(layer.weight_shape[1:])
    sums = math.ceil(math.log2(n))
    assert ac.parts == [("add_int", w + sums)]
    assert mac.parts == [("mult_int", w * 3), ("add_int", w + 3 + sums)]
    assert (2**w - 1) * 7 * n < 2 ** mac.widths[1]  # the largest sum of products fits


def test_neuron_arithmetic_is_as_wide_as_the_widest_state():
    layer = padded().layers["layer"]
    widths = {a.action: a.widths for a in neuron_actions("layer", layer, D, 2, "forward")}
    assert widths == {"mult": (32 * 32,), "add": (32,)}
    layer.widths = {"accumulator": 8, "error": 6}
    widths = {a.action: a.widths for a in neuron_actions("layer", layer, D, 2, "forward")}
    assert widths == {"mult": (8 * 8,), "add": (8,)}
    given = Definitions(state_bits=12)
    assert {a.widths for a in neuron_actions("layer", layer, given, 2, "forward")} == {(144,), (12,)}


def test_learning_is_as_wide_as_errors_and_gradients():
    layer = padded().layers["layer"]
    layer.widths = {"accumulator": 8, "error": 6, "gradient": 14}
    d = Definitions(rule="bptt", arithmetic="int")
    found = list(learning_actions("layer", layer, d, 2, is_first=False, classes=3))
    bits = layer.held[0].bits
    error = {a.action: a.parts for a in found if a.phase == "error"}
    out = math.ceil(math.log2(layer.outputs))
    assert error["mac"] == [("mult_int", bits * 6), ("add_int", bits + 6 + out)]
    assert error["mult"] == [("mult_int", 36)] and error["add"] == [("add_int", 6)]
    assert [a.parts for a in found if a.phase == "gradient"] == [[("add_int", 14)]]
    assert {a.action: a.parts for a in found if a.phase == "update"} == {
        "mult": [("mult_int", 14 * 14)], "add": [("add_int", 14)],
    }  # fmt: skip


def test_bits_of_an_input_follow_from_how_many_spikes_it_averages():
    layer = averaged().layers["layer"]
    bits = {}
    for layer.parts in (0, 1, 4, 16):
        bits[layer.parts] = input_bits(layer)
    assert bits == {0: 32, 1: 1, 4: 3, 16: 5}


def test_each_of_two_arrays_is_read():
    counts = averaged()
    layer = counts.layers["layer"]
    layer.held = [array((3, 4), component="rram"), array((3, 4), component="sram", zeros=[(0, 2)])]
    d = Definitions(synapses="effective")
    both = [a for h in layer.held for a in synapse_actions("layer", layer, h, d, 1, "inference")]
    assert {(a.component, a.action): a.count for a in both} == {
        ("rram", "ac"): 6, ("rram", "mac"): 9, ("sram", "ac"): 5, ("sram", "mac"): 9}  # fmt: skip


@pytest.mark.parametrize("plan", [(2, 3, "A", 4, "A"), (2, "A", 3, "G")])
@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
def test_operations_of_a_network_are_those_of_a_loop_over_events(coding, plan):
    net, x = network(coding, plan), picture(4)
    found = {}
    for name, layer in counted(net, x).layers.items():
        for a in synapse_actions(name, layer, layer.held[0], D, 4, "inference"):
            found[name, a.action] = a.count
    expected = slow_counts(net, x)
    assert {k: v for k, v in found.items() if v} == pytest.approx({k: v for k, v in expected.items() if v}, rel=1e-12)


def test_direct_coding_counts_the_first_layer_once_and_repeat_every_step():
    found = []
    for coding in ("direct", "repeat"):
        layer = counted(network(coding), picture(4)).layers["conv1"]
        (mac,) = [a for a in synapse_actions("conv1", layer, layer.held[0], D, 4, "inference") if a.action == "mac"]
        found.append((mac.count, mac.timesteps))
    (once, one), (each, three) = found
    assert (one, three) == (1, 3) and each == 3 * once
    # Every pixel is some number other than zero: as many multiplications as the ordinary network has.
    (ann, *_) = ann_actions("conv1", layer, D)
    assert (ann.action, ann.count) == ("mac", once)


# -------------------------------------------------------------------------------------------------------------- neurons


def test_a_neuron_takes_two_multiplications_three_additions_and_one_more_when_it_fires():
    layer = padded().layers["layer"]  # 18 neurons, 2 steps, 3 spikes of 2 images
    found = table(neuron_actions("layer", layer, D, 2, "inference"))
    assert found == {("neuron_arithmetic", "mult"): 2 * 36, ("neuron_arithmetic", "add"): 3 * 36 + 1.5}
    layer = analog().layers["layer"]  # its inputs come once, its 2 neurons run 3 steps and fire twice
    found = table(neuron_actions("layer", layer, D, 1, "inference"))
    assert found == {("neuron_arithmetic", "mult"): 2 * 6, ("neuron_arithmetic", "add"): 3 * 6 + 2}
    assert table(neuron_actions("layer", averaged().layers["layer"], D, 1, "inference")) == {}


def test_neuron_updates_are_neurons_times_steps():
    layer = padded().layers["layer"]
    (a,) = update_actions("layer", layer, "inference")
    assert (a.component, a.action, a.elements, a.count) == ("neuron", "neuron_update", ("neuron_update",), 36)
    assert list(update_actions("layer", averaged().layers["layer"], "inference")) == []


def test_synaptic_operations_of_chips_count_events_of_any_value():
    layer = averaged().layers["layer"]
    (a,) = synop_actions("layer", layer, layer.held[0], D, 1, "inference")
    assert (a.component, a.action, a.elements, a.count) == ("synop", "synop", ("synop",), 15)
    (a,) = synop_actions("layer", layer, layer.held[0], Definitions(synapses="effective"), 1, "inference")
    assert a.count == 5 + 5
    layer = padded().layers["layer"]
    (a,) = synop_actions("layer", layer, layer.held[0], D, 2, "inference")
    assert a.count == 23


# ------------------------------------------------------------------------------------------------------------- learning


def test_backpropagation_through_time_of_a_padded_convolution():
    # 49 synapses an output and step exist, times 2 outputs and 2 steps.
    expected = {
        ("error", "synapse", "mac"): 2 * 2 * 49,
        ("error", "neuron_arithmetic", "mult"): 3 * 36, ("error", "neuron_arithmetic", "add"): 36,
        ("gradient", "synapse", "ac"): 23,
        ("update", "neuron_arithmetic", "mult"): 2 * 18, ("update", "neuron_arithmetic", "add"): 2 * 18,
    }  # fmt: skip
    assert learning(padded(), "bptt") == expected
    # The first layer hands no error on.
    del expected["error", "synapse", "mac"]
    assert learning(padded(), "bptt", is_first=True) == expected


def test_backpropagation_through_time_of_averages_into_outputs_without_neurons():
    assert learning(averaged(), "bptt") == {
        ("error", "synapse", "mac"): 2 * 12,
        ("gradient", "synapse", "ac"): 2 * 3, ("gradient", "synapse", "mac"): 3 * 3,
        ("update", "neuron_arithmetic", "mult"): 2 * 12, ("update", "neuron_arithmetic", "add"): 2 * 12,
    }  # fmt: skip


def test_local_learning_of_a_strided_convolution():
    # 12 neurons, 3 steps, 2 spikes, 10 classes; 24 weights, 40 inputs; 2·16·3 synapses exist.
    for is_first in (False, True):
        assert learning(strided(), "local", is_first) == {
            ("error", "synapse", "ac"): 10 * 2, ("error", "synapse", "mac"): 10 * 36,
            ("error", "neuron_arithmetic", "mult"): 36,
            ("gradient", "synapse", "mac"): 3 * 96,
            ("gradient", "neuron_arithmetic", "mult"): 2 * 40 * 3, ("gradient", "neuron_arithmetic", "add"): 2 * 40 * 3,
            ("update", "neuron_arithmetic", "mult"): 2 * 24 * 3, ("update", "neuron_arithmetic", "add"): 2 * 24 * 3,
        }  # fmt: skip


def test_learning_counts_every_synapse_that_exists_whatever_is_zero():
    for rule in ("bptt", "local"):
        for name in ("effective", "fanout"):
            layer = padded().layers["layer"]
            chosen, plain = (
                [a.count for a in learning_actions("layer", layer, d, 2, is_first=False, classes=3)]
                for d in (Definitions(rule=rule, synapses=name), Definitions(rule=rule))
            )
            assert chosen == plain


# ------------------------------------------------------------------------------------------------- the ordinary network


def test_the_ordinary_network_multiplies_everything_once():
    expected = {"inbounds": 2 * 49, "effective": 2 * 49, "fanout": 2 * 81}
    for synapses, count in expected.items():
        found = table(ann_actions("layer", padded().layers["layer"], Definitions(synapses=synapses)))
        # A neuron adds its offset and compares with zero.
        assert found == {("synapse", "mac"): count, ("neuron_arithmetic", "add"): 2 * 18}
    assert table(ann_actions("layer", averaged().layers["layer"], D)) == {("synapse", "mac"): 12}
    mac, _ = ann_actions("layer", strided().layers["layer"], D)
    assert (mac.count, mac.elements, mac.weight_bits, mac.input_bits) == (96, FP32_MAC, 32, 32)
    assert (mac.timesteps, mac.input_density, mac.weight_density) == (1, 1.0, 1.0)


def test_the_format_of_numbers_is_in_every_name_of_a_price():
    d = Definitions(arithmetic="fp16", rule="bptt")
    layer = averaged().layers["layer"]
    made = [*synapse_actions("layer", layer, layer.held[0], d, 1, "forward"), *ann_actions("layer", layer, d)]
    made += learning_actions("layer", layer, d, 1, is_first=False, classes=3)
    made += neuron_actions("layer", padded().layers["layer"], d, 1, "forward")
    assert {e for a in made for e in a.elements} == {"add_fp16", "mult_fp16"}
