"""Memory accesses: hand counts, brute-force loops, spike codes, learning, published numbers, cards."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import held, layer

from hwsim.config import ConfigError, Document, check, read_yaml
from hwsim.device.card import Card, load_card
from hwsim.device.price import Price
from hwsim.report.action import Definitions
from hwsim.report.memory import (
    ann_actions,
    break_even,
    code,
    learning_actions,
    state_actions,
    weight_actions,
)
from hwsim.report.organization import organization_actions

GOLDEN = json.loads((Path(__file__).parent / "golden" / "memory.json").read_text(encoding="utf-8"))
LINEAR = ("row", "column", "crossbar", "pb-bmp", "pb-csr")
CONV = ("functional", "pb-bmp", "pb-csr")
DEVICES = Path(__file__).parents[1] / "devices"


def tally(actions, *names: str) -> dict:
    """(action, bits of a burst) → bursts, of the named actions or of all."""
    out = Counter()
    for a in actions:
        if not names or a.action in names:
            out[a.action, a.bits] += a.count
    return dict(out)


def forward(here, d=None, images=1, array=0):
    return list(weight_actions("l", here, here.held[array], d or Definitions(), images, "inference"))


def learn(here, d, images=1, is_first=False, classes=3):
    return list(learning_actions("l", here, d, images, is_first=is_first, classes=classes))


def corner_and_center() -> np.ndarray:
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 0, 0] = x[0, 0, 1, 1] = 1
    return x


# Weights of a convolution, counted by hand.


def test_a_corner_visits_four_rows_and_the_center_nine_and_each_is_a_burst_of_the_outputs():
    weight = np.ones((2, 1, 3, 3))
    here = layer(corner_and_center(), held(weight, 3), outputs=2, kernel=(3, 3), padding=(1, 1), stride=(1, 1))
    got = tally(forward(here, Definitions(state_bits=10)))
    # 18 sums of 10 bits are read and cleared once by the neurons; each visit adds two of them.
    assert got == {
        ("weight_read", 2 * 3): 13, ("accumulator_read", 20): 13, ("accumulator_write", 20): 13,
        ("accumulator_read", 180): 1, ("accumulator_write", 180): 1,
    }  # fmt: skip


def test_stride_and_missing_padding_leave_out_kernel_elements():
    # 3x3 image, 2x2 kernel, stride 2: one output place; the center meets it through one element, (2, 2) through none.
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = x[0, 0, 2, 2] = 1
    here = layer(x, held(np.ones((4, 1, 2, 2)), 8), outputs=4, kernel=(2, 2), padding=(0, 0), stride=(2, 2))
    assert tally(forward(here), "weight_read") == {("weight_read", 32): 1}


def test_pruned_rows_have_no_weight_burst_but_a_pointer_and_a_bitmap():
    # Row (0, 0) of the kernel holds no weight, row (1, 1) one, the others two; z = 15 needs pointers of 4 bits.
    weight = np.ones((2, 1, 3, 3))
    weight[:, 0, 0, 0] = 0
    weight[1, 0, 1, 1] = 0
    here = layer(corner_and_center(), held(weight, 3), outputs=2, kernel=(3, 3), padding=(1, 1), stride=(1, 1))
    # The corner meets elements (0..1, 0..1), the center all: (0, 0) twice, (1, 1) twice, and 9 other visits.
    names = ("weight_read", "index_read")
    bitmap = tally(forward(here, Definitions(conv_organization="pb-bmp")), *names)
    assert bitmap == {("weight_read", 3): 2, ("weight_read", 6): 9, ("index_read", 2): 13, ("index_read", 4): 13}
    sparse = forward(here, Definitions(conv_organization="pb-csr", state_bits=10))
    # Two outputs need column numbers of one bit: 1 or 2 bits a row; two pointers are 8 bits.
    assert tally(sparse, *names) == {
        ("weight_read", 3): 2, ("weight_read", 6): 9, ("index_read", 1): 2, ("index_read", 2): 9, ("index_read", 8): 13,
    }  # fmt: skip
    assert tally(sparse, "accumulator_write") == {("accumulator_write", 10): 20, ("accumulator_write", 180): 1}


def test_the_memory_of_a_variable_has_its_capacity():
    here = layer(corner_and_center(), held(np.ones((2, 1, 3, 3)), 3), outputs=2, kernel=(3, 3), padding=(1, 1),
                 stride=(1, 1))  # fmt: skip
    for d in (Definitions(), Definitions(conv_organization="pb-bmp")):
        of = {a.action: a.kib * 8192 for a in forward(here, d)}
        assert of["weight_read"] == 18 * 3
        assert of["accumulator_read"] == 18 * 32
    assert of["index_read"] == 18 + 9 * 5


# Brute force.


@st.composite
def small(draw, conv: bool):
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    inputs, outputs, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    parts, signed = draw(st.sampled_from([(1, False), (1, True), (4, False), (0, True)]))
    geometry = {}
    image = ()
    if conv:
        image = (draw(st.integers(2, 4)), draw(st.integers(2, 4)))
        geometry = {k: (draw(values), draw(values)) for k, values in (
            ("kernel", st.integers(1, 2)), ("padding", st.integers(0, 1)), ("stride", st.integers(1, 2)))}  # fmt: skip
    x = rng.integers(-1 if signed else 0, (parts or 3) + 1, (steps, inputs, *image)) / (parts or 2)
    weight = rng.integers(-1, 2, (outputs, inputs, *geometry.get("kernel", ())))
    here = layer(x, held(weight, 3), outputs=outputs, parts=parts, signed=signed, **geometry)
    return x, weight, here


def met(here, x):
    """(step, row) of every visit: an input that is not zero and a kernel element that leads to an output place."""
    kernel = here.weight_shape[2:]
    for at in np.argwhere(x):
        t, c, *place = at
        for k in np.ndindex(*kernel):
            there = [p + pad - e for p, pad, e in zip(place, here.padding, k, strict=True)]
            sizes = zip(here.image, here.padding, kernel, here.stride, strict=True)
            last = [(n + 2 * pad - e) // s for n, pad, e, s in sizes]
            if all(h % s == 0 and 0 <= h // s <= m for h, s, m in zip(there, here.stride, last, strict=True)):
                yield t, (c, *k)


def rows_of(here):
    return int(np.prod(here.weight_shape[1:]))


@settings(deadline=None, max_examples=60)
@given(st.booleans().flatmap(lambda conv: st.tuples(st.just(conv), small(conv))))
def test_forward_bursts_are_those_of_a_loop_over_events(case):
    conv, (x, weight, here) = case
    outputs, z_all = len(weight), int((weight != 0).sum())
    pointer = z_all.bit_length()
    for organization in CONV if conv else LINEAR:
        want = Counter()
        if organization == "column":
            want["weight_read", 3 * rows_of(here)] += here.steps * outputs
        else:
            for _, row in met(here, x):
                z = int((weight[(slice(None), *row)] != 0).sum())
                if organization == "pb-bmp":
                    want["weight_read", 3 * z] += 1
                    want["index_read", pointer] += 1
                    want["index_read", outputs] += 1
                    want["accumulator_read", 32] += z
                elif organization == "pb-csr":
                    want["weight_read", 3 * z] += 1
                    want["index_read", 2 * pointer] += 1
                    want["index_read", z * (outputs - 1).bit_length()] += 1
                    want["accumulator_read", 32] += z
                else:
                    want["weight_read", 3 * outputs] += 1
                    want["accumulator_read", 32 * outputs] += 1
            want["accumulator_read", 32 * here.outputs] += here.steps
        want = {k: n for k, n in want.items() if k[1] and n}
        d = Definitions(conv_organization=organization) if conv else Definitions(linear_organization=organization)
        assert tally(forward(here, d), "weight_read", "index_read", "accumulator_read") == want, organization


@settings(deadline=None, max_examples=60)
@given(st.booleans().flatmap(lambda conv: st.tuples(st.just(conv), small(conv))))
def test_transposed_bursts_are_those_of_a_loop_over_errors(case):
    conv, (x, weight, here) = case
    outputs, inputs, z_all, rows = len(weight), weight.shape[1], int((weight != 0).sum()), rows_of(here)
    pointer, wide = z_all.bit_length(), (rows - 1).bit_length() + (z_all - 1).bit_length()
    for organization in CONV if conv else LINEAR:
        want = Counter()
        ones = np.ones_like(x)
        for _, row in met(here, ones):
            if organization == "functional":
                want["weight_read", 3 * outputs] += 1
                if row[0] == 0:  # sums of all channels lie together
                    want["input_error_write", 32 * inputs] += 1
            for o in range(outputs):
                stored = weight[(o, *row)] != 0
                if organization == "row":
                    want["weight_read", 3] += 1
                if organization.startswith("pb-") and stored:
                    want["weight_read", 3] += 1
                    want["input_error_write", 32] += 1
                if organization == "pb-bmp":
                    want["index_read", 1] += 1
        if organization in ("column", "crossbar"):
            want["weight_read", 3 * rows] += outputs * here.steps
        if organization in ("row", "column", "crossbar"):
            want["input_error_write", 32 * rows] += outputs * here.steps
        if organization == "pb-bmp":
            want["index_read", rows * pointer] += here.places * here.steps
        if organization == "pb-csr" and z_all:
            want["index_read", z_all * wide + (outputs + 1) * pointer] += here.places * here.steps
        want["input_error_write", 32 * here.inputs] += here.steps
        want = {k: n for k, n in want.items() if k[1] and n}
        chosen = {"conv_organization" if conv else "linear_organization": organization}
        found = [a for a in learn(here, Definitions(rule="bptt", **chosen)) if a.phase == "error"]
        assert tally(found, "weight_read", "index_read", "input_error_write") == want, organization


@settings(deadline=None, max_examples=40)
@given(st.booleans().flatmap(lambda conv: st.tuples(st.just(conv), small(conv))))
def test_gradients_are_added_for_every_visit_and_stored_weight(case):
    conv, (x, weight, here) = case
    for organization in CONV if conv else LINEAR:
        want = Counter()
        for _, row in met(here, x):
            stored = int((weight[(slice(None), *row)] != 0).sum())
            want["gradient_write", 32 * (stored if organization.startswith("pb-") else len(weight))] += 1
        chosen = {"conv_organization" if conv else "linear_organization": organization}
        found = [a for a in learn(here, Definitions(rule="bptt", **chosen)) if a.phase == "gradient"]
        assert tally(found, "gradient_write") == {k: n for k, n in want.items() if k[1]}


# Invariants.


@pytest.mark.parametrize("organization", [o for o in LINEAR if o != "column"])
def test_no_spikes_read_no_weights_where_events_drive_the_reads(organization):
    here = layer(np.zeros((4, 6)), held(np.ones((3, 6)), 2), outputs=3)
    found = forward(here, Definitions(linear_organization=organization))
    assert {a.action for a in found} == {"accumulator_read", "accumulator_write"}
    assert tally(found) == {("accumulator_read", 96): 4, ("accumulator_write", 96): 4}
    d = Definitions(spike_code="events")
    assert "spike_read" not in {a.action for a in state_actions("l", here, d, 1, "inference")}


def test_a_column_is_read_whatever_the_spikes():
    d = Definitions(linear_organization="column")
    for x in (np.zeros((4, 6)), np.ones((4, 6))):
        here = layer(x, held(np.ones((3, 6)), 2), outputs=3)
        assert tally(forward(here, d)) == {("weight_read", 12): 12}


@pytest.mark.parametrize("rule", ["inference", "bptt", "local"])
@pytest.mark.parametrize("organization", LINEAR)
def test_twice_the_steps_of_a_constant_input_are_twice_the_bursts(organization, rule):
    d = Definitions(linear_organization=organization, rule=rule, spike_code="events")
    x = np.tile([[1, 0, 1, 1]], (3, 1))
    weight = np.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    once, twice = (layer(here, held(weight, 2), outputs=2) for here in (x, np.tile(x, (2, 1))))

    def every(here):
        found = [*forward(here, d), *state_actions("l", here, d, 1, "forward")]
        return tally(found + [a for a in (learn(here, d) if rule != "inference" else ()) if a.phase != "update"])

    assert every(once)
    assert every(twice) == {k: 2 * n for k, n in every(once).items()}


def test_a_further_spike_takes_more_of_everything_that_spikes_drive():
    weight = np.ones((3, 6))
    for organization in ("row", "crossbar", "pb-bmp", "pb-csr"):
        d, x = Definitions(linear_organization=organization, spike_code="events"), np.zeros((2, 6))
        before = 0
        for at in np.ndindex(2, 6):
            x[at] = 1
            here = layer(x, held(weight, 2), outputs=3)
            found = [*forward(here, d), *state_actions("l", here, d, 1, "inference")]
            bits = sum(a.count * a.bits for a in found)
            assert bits > before
            before = bits


def test_counts_are_per_image():
    here = layer(np.ones((2, 4)), held(np.ones((3, 4)), 2), outputs=3)
    one, half = (tally(forward(here, images=n), "weight_read") for n in (1, 2))
    assert half == {k: n / 2 for k, n in one.items()}
    d = Definitions(spike_code="events")
    one, half = (tally(state_actions("l", here, d, n, "inference"), "spike_read") for n in (1, 2))
    assert half == {k: n / 2 for k, n in one.items()}


# Inputs that are no plain spikes; layers that are computed once; hybrids.


@pytest.mark.parametrize(("n", "rate"), [(250, 0.125), (400, 0.111), (700, 0.100), (14400, 0.071)])
def test_break_even_of_events_and_bitmap_is_one_over_the_address_bits(n, rate):
    here = layer(np.zeros((1, n)), held(np.ones((1, n)), 1), outputs=1)
    assert round(break_even(here, Definitions()), 3) == rate


@pytest.mark.parametrize(
    ("parts", "signed", "place", "event"),
    [(1, False, 1, 3), (1, True, 2, 4), (4, False, 3, 5), (4, True, 4, 6), (3, False, 2, 5), (0, True, 16, 19)],
)
def test_bits_of_an_input_by_code(parts, signed, place, event):
    # Of 5 inputs two arrive in the one step: 1 and 1/2 (analog where there are no parts).
    x = np.array([[1, 0.5, 0, 0, 0]]) if parts != 1 else np.array([[1, 1, 0, 0, 0]])
    here = layer(x, held(np.ones((1, 5)), 1), outputs=1, parts=parts, signed=signed)
    for name, want in (("bitmap", ("bitmap", 1, 5 * place)), ("events", ("events", 2, event))):
        assert code(here, Definitions(spike_code=name, arithmetic="fp16"), 1) == want


def test_shorter_takes_the_code_with_fewer_bits():
    d, weights = Definitions(spike_code="shorter"), held(np.ones((1, 16)), 1)
    for active, want in ((3, ("events", 3, 4)), (4, ("bitmap", 1, 16)), (5, ("bitmap", 1, 16))):
        x = np.zeros((1, 16))
        x[0, :active] = 1
        assert code(layer(x, weights, outputs=1), d, 1) == want


def test_a_single_input_still_takes_a_bit_an_event():
    here = layer(np.ones((1, 1)), held(np.ones((1, 1)), 1), outputs=1)
    assert code(here, Definitions(spike_code="events"), 1) == ("events", 1, 1)


def test_a_current_that_is_computed_once_is_read_at_every_step():
    here = layer(np.array([[0.5, 0.25]]), held(np.ones((3, 2)), 8), outputs=3, parts=0, signed=True, steps=5)
    sums = tally(forward(here), "accumulator_read", "accumulator_write")
    assert sums == {("accumulator_read", 96): 2 + 5, ("accumulator_write", 96): 2 + 1}
    column = tally(forward(here, Definitions(linear_organization="column")))
    assert column == {("weight_read", 16): 3, ("accumulator_write", 96): 1, ("accumulator_read", 96): 5}
    states = tally(state_actions("l", here, Definitions(), 1, "inference"))
    assert states == {
        ("spike_write", 64): 1, ("spike_read", 64): 1, ("membrane_read", 96): 5, ("membrane_write", 96): 5,
        ("norm_read", 2 * 3 * 32): 5,
    }  # fmt: skip


def test_a_layer_without_neurons_sums_over_all_steps_and_is_read_once():
    here = layer(np.array([[1, 1], [0, 1]]), held(np.ones((3, 2)), 8), outputs=3, neurons=0)
    sums = tally(forward(here), "readout_read", "readout_write")
    assert sums == {("readout_read", 96): 3 + 1, ("readout_write", 96): 3 + 1}
    column = tally(forward(here, Definitions(linear_organization="column")), "readout_read", "readout_write")
    assert column == {("readout_read", 96): 2, ("readout_write", 96): 2}
    states = tally(state_actions("l", here, Definitions(), 1, "inference"))
    assert set(states) == {("spike_write", 2), ("spike_read", 2)}


def test_each_array_of_a_hybrid_is_read_by_every_event():
    x, rram, sram = np.ones((2, 4)), np.ones((3, 4)), np.eye(3, 4)
    here = layer(x, held(rram, 1, "rram", cells=True), held(sram, 4, "sram"), outputs=3)
    d = Definitions(linear_organization="pb-bmp")
    assert tally(forward(here, d, array=0), "weight_read") == {("weight_read", 3): 8}
    assert tally(forward(here, d, array=1), "weight_read") == {("weight_read", 4): 6}


# Learning, by hand: 3 inputs to 2 neurons, 2 steps; spikes (1, 0, 1) and (0, 0, 1); 4-bit weights, 10-bit states.


def tiny():
    return layer(np.array([[1, 0, 1], [0, 0, 1]]), held(np.ones((2, 3)), 4), outputs=2)


def by_phase(found):
    out = {}
    for a in found:
        key = (a.phase, a.action, a.bits)
        out[key] = out.get(key, 0) + a.count
    return out


def test_bptt_moves_what_its_table_says():
    d = Definitions(rule="bptt", state_bits=10, arithmetic="fp16")
    got = by_phase([*state_actions("l", tiny(), d, 1, "forward"), *learn(tiny(), d)])
    assert got == {
        ("forward", "spike_write", 3): 2, ("forward", "spike_read", 3): 2,
        ("forward", "membrane_read", 20): 2, ("forward", "membrane_write", 20): 2, ("forward", "norm_read", 40): 2,
        ("forward", "tape_write", 20): 2,
        ("error", "tape_read", 20): 2, ("error", "error_state_read", 32): 2, ("error", "error_state_write", 32): 2,
        ("error", "error_write", 32): 2, ("error", "error_read", 32): 2,
        # 2 steps x 2 errors x 3 weights one by one; 2 x 2 times 3 sums, then 2 x 3 read and cleared.
        ("error", "weight_read", 4): 12, ("error", "input_error_read", 48): 6, ("error", "input_error_write", 48): 6,
        ("gradient", "spike_read", 3): 2, ("gradient", "error_read", 32): 2,
        ("gradient", "gradient_read", 32): 3, ("gradient", "gradient_write", 32): 3,
        ("update", "gradient_read", 96): 1, ("update", "gradient_write", 96): 1, ("update", "master_read", 96): 1,
        ("update", "master_write", 96): 1, ("update", "momentum_read", 96): 1, ("update", "momentum_write", 96): 1,
        ("update", "weight_write", 24): 1,
    }  # fmt: skip


def test_the_first_layer_hands_no_error_down():
    d = Definitions(rule="bptt")
    found = by_phase(learn(tiny(), d, is_first=True))
    assert not [k for k in found if k[0] == "error" and k[1] in ("weight_read", "index_read", "error_read")]
    assert not [k for k in found if k[1].startswith("input_error")]
    assert ("gradient", "error_read", 64) in found


def test_a_readouts_error_is_one_for_all_steps():
    here = tiny()
    here.neurons = 0
    found = by_phase(learn(here, Definitions(rule="bptt")))
    assert found["error", "error_write", 64] == found["error", "error_read", 64] == 1
    assert found["error", "weight_read", 4] == 6
    # Two errors are added; the layer below reads the sums at each of its steps.
    assert found["error", "input_error_read", 96] == 2 + 2
    assert found["error", "input_error_write", 96] == 2 + 1
    assert not [k for k in found if k[1].startswith(("tape", "error_state"))]


def test_local_learning_moves_what_its_table_says():
    d = Definitions(rule="local", state_bits=10, arithmetic="fp16")
    got = by_phase([*forward(tiny(), d), *state_actions("l", tiny(), d, 1, "forward"), *learn(tiny(), d, classes=5)])
    assert got == {
        ("inference", "weight_read", 24): 2,
        ("forward", "spike_write", 3): 2, ("forward", "spike_read", 3): 2,
        ("forward", "membrane_read", 20): 2, ("forward", "membrane_write", 20): 2,
        ("forward", "trace_read", 60): 2, ("forward", "trace_write", 60): 2, ("forward", "decay_read", 60): 2,
        ("forward", "potential_write", 20): 2,
        ("error", "feedback_read", 5 * 2 * 16): 4, ("error", "potential_read", 20): 2, ("error", "error_write", 32): 2,
        ("gradient", "trace_read", 30): 2, ("gradient", "error_read", 32): 2, ("gradient", "gradient_write", 96): 2,
        ("update", "gradient_read", 96): 2, ("update", "master_read", 96): 2, ("update", "master_write", 96): 2,
        ("update", "momentum_read", 96): 2, ("update", "momentum_write", 96): 2, ("update", "weight_write", 24): 2,
    }  # fmt: skip


def test_the_learning_array_of_a_hybrid_is_its_last_and_both_hand_errors_down():
    weight = np.ones((2, 3))
    here = layer(np.ones((1, 3)), held(weight, 1, "rram", cells=True), held(np.eye(2, 3), 4, "sram"), outputs=2)
    found = by_phase(learn(here, Definitions(rule="bptt", linear_organization="pb-bmp")))
    assert found["error", "weight_read", 1] == 6
    assert found["error", "weight_read", 4] == 2
    assert found["update", "weight_write", 8] == 1
    assert not [k for k in found if k[0] == "update" and k[1] == "weight_write" and k[2] != 8]


def test_every_action_is_memory_and_priced_as_a_read_or_a_write():
    for rule in ("inference", "bptt", "local"):
        d = Definitions(rule=rule)
        found = [*forward(tiny(), d), *state_actions("l", tiny(), d, 1, "forward"), *ann_actions("l", tiny(), d)]
        found += learn(tiny(), d) if rule != "inference" else []
        for a in found:
            assert a.component == "memory" and a.layer == "l"
            assert a.elements == (f"memory_{a.action.rpartition('_')[2]}",)
            assert a.count > 0 and a.bits > 0 and a.kib * 8192 >= a.bits - 1e-9, a


# The ordinary network.


@pytest.mark.parametrize("organization", LINEAR)
def test_the_ordinary_network_is_the_same_machine_with_every_input_active_once(organization):
    d = Definitions(linear_organization=organization, arithmetic="fp16")
    weight = np.array([[1, 0, 0], [0, 1, 0]])
    got = by_phase(ann_actions("l", layer(np.zeros((5, 3)), held(weight, 2), outputs=2), d))
    once = {("ann_inference", f"activation_{way}", 48): 1 for way in ("read", "write")}
    if organization == "column":
        assert got == once | {("ann_inference", "weight_read", 48): 2}
    else:
        sums = {("ann_inference", f"accumulator_{way}", 64): 3 + 1 for way in ("read", "write")}
        assert got == once | {("ann_inference", "weight_read", 32): 3} | sums


def test_the_ordinary_convolution_reads_its_weights_at_every_place():
    here = layer(corner_and_center(), held(np.ones((2, 1, 3, 3)), 3), outputs=2, kernel=(3, 3), padding=(1, 1),
                 stride=(1, 1))  # fmt: skip
    found = tally(ann_actions("l", here, Definitions(conv_organization="pb-csr", rule="local")), "weight_read")
    assert found == {("weight_read", 64): 7 * 7}


# Published passes, and the cards.


def passes(organization: str, bits: int, weight: np.ndarray, d=None, **geometry) -> tuple[float, float]:
    """(forward, backward) energy in uJ of one pass by the card, as its law says."""
    card = load_card("memory_iscas2020")
    chosen = {"conv_organization" if geometry else "linear_organization": organization}
    x = np.zeros((1, *weight.shape[1:2], *geometry.pop("image", ())))
    here = layer(x, held(weight, bits), outputs=len(weight), **geometry)
    out = {"forward": 0.0, "error": 0.0}
    for a in organization_actions("l", here, here.held[0], Definitions(rule="bptt", **chosen), "forward"):
        assert a.component == "organization"
        out[a.phase] += a.count * sum(card.prices[e].at(a.bits, a.kib) for e in a.elements) / 1e6
    return out["forward"], out["error"]


def thinned(outputs: int, inputs: int, density: float) -> np.ndarray:
    weight = np.zeros(outputs * inputs)
    weight[: round(density * weight.size)] = 1
    return weight.reshape(outputs, inputs)


@pytest.mark.parametrize("bits", range(2, 13))
def test_dense_passes_are_the_published_table(bits):
    want = GOLDEN["fc_full"]["by_bits"][str(bits)]
    full = np.ones((128, 784))
    got = [e for o in ("crossbar", "pb-bmp", "pb-csr") for e in passes(o, bits, full)]
    assert got == pytest.approx(want, rel=1e-3)
    for organization in ("row", "column"):
        assert passes(organization, bits, full) == pytest.approx(want[:2], rel=1e-4)


def test_passes_at_a_quarter_of_the_weights_are_off_by_what_the_card_says():
    quarter = thinned(128, 784, 0.25)
    errors = []
    for bits, want in GOLDEN["fc_quarter"]["by_bits"].items():
        got = [e for o in ("pb-bmp", "pb-csr") for e in passes(o, int(bits), quarter)]
        errors.append([g / w - 1 for g, w in zip(got, want, strict=True)])
    low, high = np.min(errors, 0).round(2), np.max(errors, 0).round(2)
    assert list(low) == [-0.01, -0.39, -0.02, -0.44]
    assert list(high) == [1.27, 0.17, 0.43, -0.20]


@pytest.mark.parametrize("organization", CONV)
def test_dense_convolutions_are_the_published_table(organization):
    geometry = {"image": (28, 28), "kernel": (3, 3), "padding": (1, 1), "stride": (1, 1)}
    for bits, want in GOLDEN["conv"]["by_organization"][organization].items():
        got = passes(organization, int(bits), np.ones((32, 1, 3, 3)), **geometry)
        assert got == pytest.approx(want, rel=1e-4)


def test_the_published_ratio_is_that_of_the_tables_and_the_laws_are_off_by_what_the_card_says():
    table = GOLDEN["frontier"]["by_bits"]
    assert table["5"][0] / table["2"][1] == pytest.approx(1.3693, abs=1e-4)
    assert table["2"][0] / table["2"][1] == pytest.approx(1.206, abs=1e-3)
    errors, energy = [], {}
    for bits, (*want, first, second) in table.items():
        got = []
        for o in ("crossbar", "pb-bmp", "pb-csr"):
            layers = thinned(400, 700, first), thinned(250, 400, second)
            got.append(sum(sum(passes(o, int(bits), weight)) for weight in layers))
        energy[bits] = got
        errors.append([1 - g / w for g, w in zip(got, want, strict=True)])
    assert list(np.min(errors, 0).round(2)) == [0.02, 0.10, 0.23]
    assert list(np.max(errors, 0).round(2)) == [0.24, 0.28, 0.26]
    assert energy["5"][0] / energy["2"][1] == pytest.approx(1.60, abs=5e-3)
    assert energy["2"][0] / energy["2"][1] == pytest.approx(1.22, abs=5e-3)


def test_passes_are_counted_once_a_presentation_and_by_stored_and_possible_synapses():
    weight = np.array([[1, 0, 0], [1, 1, 0]])
    for steps in (1, 7):
        here = layer(np.ones((steps, 3)), held(weight, 4), outputs=2)

        def counts(organization, rule="inference", here=here):
            d = Definitions(linear_organization=organization, rule=rule)
            return {a.action: a.count for a in organization_actions("l", here, here.held[0], d, "inference")}

        assert counts("row") == counts("column") == counts("crossbar") == {"crossbar_forward": 6}
        assert counts("pb-bmp") == {"bitmap_forward": 6, "crossbar_forward": 3}
        assert counts("pb-csr") == {"csr_forward": 3}
        assert counts("pb-csr", "local") == {"csr_forward": 3, "csr_backward": 3}


def outputs(card: Card) -> list[float]:
    """What small layers of many sizes cost by a card, and what memories leak."""
    out = []
    for bits in range(1, 13):
        weight = np.ones((3, 2 * bits))
        here = layer(np.ones((2, 2 * bits)), held(weight, bits), outputs=3)
        image = layer(np.ones((1, 1, 3, 3)), held(np.ones((2, 1, 3, 3)), bits), outputs=2, kernel=(3, 3),
                      padding=(1, 1), stride=(1, 1))  # fmt: skip
        found = []
        for linear, conv in (("row", "functional"), ("pb-bmp", "pb-bmp"), ("pb-csr", "pb-csr")):
            d = Definitions(linear_organization=linear, conv_organization=conv, rule="bptt")
            for x in (here, image):
                if "organization" in card.covers:
                    found += organization_actions("l", x, x.held[0], d, "forward")
                else:
                    found += [*forward(x, d), *learn(x, d)]
        for a in found:
            law = card.prices[a.elements[0]]
            if law.pJ_by_bits is None or a.bits in law.pJ_by_bits:
                out += [a.count * law.at(a.bits, kib) for kib in (a.kib, 10, 40, 100, 200)]
    return out + [power.milliwatt(kib) for power in (card.static or {}).values() for kib in (1, 10, 40, 100, 200, 300)]


def numbers(data, place=()):
    items = data.items() if isinstance(data, dict) else ()
    if isinstance(data, (int, float)) and place[-1] != "node_nm":
        yield place
    for key, child in items:
        yield from numbers(child, (*place, key))


def changed(data, place):
    if not place:
        return data * 2 if isinstance(data, int) else data * 1.1
    return {**data, place[0]: changed(data[place[0]], place[1:])}


@pytest.mark.parametrize("name", ["sram_cacti_32nm", "dram", "memory_iscas2020"])
def test_every_number_of_a_memory_card_moves_some_output(name):
    data = read_yaml(DEVICES / f"{name}.yaml").data
    before = outputs(check(Card, Document(data, name)))
    places = list(numbers(data))
    assert places
    for place in places:
        assert outputs(check(Card, Document(changed(data, place), name))) != before, place


def test_sram_by_capacity_is_the_cited_table_and_leaks_in_sixteen_banks():
    card = load_card("sram_cacti_32nm")
    for kib, read, write, bank in ((8, 1.18, 1.13, 0.142), (32, 2.75, 2.51, 0.500), (64, 3.94, 3.46, 0.926),
                                   (144, 6.53, 5.89, 1.84), (256, 8.99, 7.89, 3.15)):  # fmt: skip
        assert card.prices["memory_read"].at(8, kib) == pytest.approx(read, abs=0.005)
        assert card.prices["memory_write"].at(8, kib) == pytest.approx(write, abs=0.005)
        assert card.prices["memory_read"].at(9, kib) == 2 * card.prices["memory_read"].at(8, kib)
        assert card.static["memory"].milliwatt(kib) == pytest.approx(16 * bank, rel=0.004)
        assert card.prices["memory_read"].at(8, kib) == pytest.approx(0.00604 * (1024 * kib) ** 0.586, abs=0.09)


def test_dram_moves_whole_bursts():
    read = load_card("dram").prices["memory_read"]
    assert [read.at(bits) for bits in (1, 256, 257)] == [2048, 2048, 4096]


def test_bursts_need_a_price_by_bit():
    with pytest.raises(ConfigError, match="burst_bits goes with pJ_per_bit"):
        check(Price, Document({"pJ": 1.0, "burst_bits": 8, "source": "s", "evidence": "assumed"}, "a.yaml"))


def test_a_card_without_a_node_says_that_nobody_knows_it():
    data = read_yaml(DEVICES / "dram.yaml").data
    assert check(Card, Document(data, "a.yaml")).node_nm is None
    with pytest.raises(ConfigError, match="give node_nm, or say 'unknown node' in includes"):
        check(Card, Document(data | {"includes": "Everything."}, "a.yaml"))
