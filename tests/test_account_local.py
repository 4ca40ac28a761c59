"""Counts of networks that learn locally, and of what training left: by place, by backend, in files, priced, in bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counted import local_network, prices
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decolle_net import net, noise, seeded, trained

from hwsim.config import ConfigError
from hwsim.network.arrivals import active_windows
from hwsim.network.decolle_count import counted
from hwsim.recipe.account import array
from hwsim.recipe.decolle import LEARNED, learning
from hwsim.recipe.pattern import learned
from hwsim.report.action import Definitions
from hwsim.report.energy import actions, energy_rows
from hwsim.report.footprint import (
    DECOLLE_CORRECTED,
    DECOLLE_PUBLISHED,
    DECOLLE_WIDTHS,
    decolle_bits,
    footprint_rows,
    in_32_bits,
    law_layers,
    law_widths,
)
from hwsim.report.learned import Learned, Readout, Traced
from hwsim.report.local import learning_of
from hwsim.report.memory import learning_actions
from hwsim.report.neurobench import metrics
from hwsim.report.trace import Counts, LayerCounts

HOROWITZ = prices("horowitz_45nm")
LOCAL = Definitions(rule="local", arithmetic="int8")
TRAINING = Learned(2, 4, 2, 8, changes=3, drawn=4, errors=6, gradients=10, scores=5, features=7)


def counts_of(own, x: torch.Tensor, backend: str = "auto", rows=(4,)) -> tuple[Counts, list]:
    """What a network does, in `Counts`, with its weights in one place."""
    trace, layers = counted(own, x, generator=seeded(9), rows=rows, backend=backend)
    counts = Counts(len(x))
    counts.add(trace, x.shape[1])
    for (name, here), layer in zip(counts.layers.items(), (x for y in own.layers for x in (y, y)), strict=True):
        weight = layer.readout if name.startswith("readout") else layer.used()
        here.held = [array("synapse", weight.flatten(1) if len(here.weight_shape) == 2 else weight, 8, cells=False)]
    return counts, layers


# ------------------------------------------------------------------------------------------------------------- by place


@pytest.mark.parametrize(
    "said",
    [{}, {"kind": "dense", "channels": (7, 5)}, {"profile": "release", "rfb": 4}, {"pb": 8, "qb": 7, "sig": 1},
     {"weight_mult": 2.0**-8, "sig": 1}],
)  # fmt: skip
def test_every_backend_leaves_the_same_counts(said):
    own, _ = trained("codes", 2, **said)
    every = [counts_of(own, noise(), backend) for backend in ("codes", "float", "fused")]
    (arrays, about), *others = (counts.arrays() for counts, _ in every)
    assert list(about["layers"]) == ["layer1", "readout1", "layer2", "readout2"]
    assert arrays["layer2/fractional"].sum() > 0 and arrays["readout1/fractional"].sum() > 0
    for other, said_of_it in others:
        assert said_of_it == about and other.keys() == arrays.keys()
        for name, value in arrays.items():
            assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("said", [{}, {"kind": "dense", "channels": (7, 5)}, {"eb": None, "pb": None, "wb": None}])
def test_sums_over_places_are_the_networks_own_counts(said):
    own, _ = trained("auto", 2, **said)
    counts, layers = counts_of(own, noise())
    for i, trace in enumerate(layers):
        here, plan = counts.layers[f"layer{i + 1}"], trace.plan
        assert here.fractional_T.tolist() == trace.p.tolist() and here.fractional.sum() == trace.p.sum() > 0
        assert here.spikes_T.tolist() == trace.spikes.tolist() and here.spikes_N.sum() == trace.spikes.sum() > 0
        assert not here.unit.any() and here.parts == 0
        assert (here.neurons, here.inputs, here.outputs) == tuple(np.prod(s) for s in (plan.out, plan.shape, plan.out))
        dense = said.get("kind") == "dense"
        assert here.fractional.shape == (plan.shape[:1] if dense else plan.shape)
        assert here.weight_shape == (plan.weight_shape[:2] if dense else plan.weight_shape)
        assert here.held[0].nonzero_CKK.sum() == trace.nonzero_weights


@pytest.mark.parametrize("backend", ["codes", "fused"])
def test_traces_spikes_and_features_are_counted_where_they_are(backend):
    """Against the states of the layers themselves, step by step, taken apart in another way."""
    own, _ = trained("codes", 2, weight_mult=2.0**-8, sig=1)
    states = []

    class Spy:
        def __init__(self, layer):
            self.layer = layer

        def __getattr__(self, name):
            return getattr(self.layer, name)

        def forward(self, s, t):
            out = self.layer.forward(s, t)
            states.append((self.layer.P.clone(), self.layer.U.clone()))
            return out

    start = own._start
    own._start = lambda *about: Spy(start(*about))
    own.run(noise(), backend="codes")
    own._start = start
    counts, _ = counts_of(own, noise(), backend)
    rule = own.rule
    for i in range(2):
        P_TB, U_TB = (torch.stack(each) for each in zip(*states[i::2], strict=True))
        layer, readout = counts.layers[f"layer{i + 1}"], counts.layers[f"readout{i + 1}"]
        assert layer.fractional.tolist() == (P_TB != 0).sum((0, 1)).tolist()
        assert layer.spikes_N.tolist() == (U_TB >= 0).sum((0, 1)).flatten().tolist()
        assert counts.raster[f"layer{i + 1}"].tolist() == (U_TB[:, 0] >= 0).flatten(1).tolist()
        pooled = torch.nn.functional.max_pool2d(U_TB.flatten(0, 1).double(), rule.pooling[i]).unflatten(0, (14, 4))
        code = torch.round(torch.sigmoid(pooled * 8 / (2 ** (rule.ub - 1) - 1)) * 2**rule.sig)
        voting = (code != 0)[rule.burn_in + 1 :]
        assert readout.fractional.tolist() == voting.sum((0, 1)).flatten().tolist()
        assert len(set(readout.fractional.tolist())) > 1  # some sigmoids are 0
        assert readout.fractional_T.tolist() == [0, 0, 0, *voting.sum((1, 2, 3, 4)).tolist()]
        conv = torch.nn.Conv2d(*reversed(layer.weight_shape[:2]), 3, padding=1)
        wanted = active_windows(conv, P_TB != 0, (4,))[4]
        assert layer.windows[4].tolist() == wanted.tolist()


def test_batches_add_up_and_counting_does_not_change_the_network():
    own, _ = trained("auto", 1)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    together, apart = counts_of(own, noise())[0], Counts(14)
    for part in noise().split(3, 1):
        apart.add(counted(own, part, generator=None, rows=(4,))[0], part.shape[1])
    assert apart.images == together.images == 4
    for name, here in together.layers.items():
        assert here.fractional.tolist() == apart.layers[name].fractional.tolist()
        assert here.spikes_N.tolist() == apart.layers[name].spikes_N.tolist()
        assert here.windows[4].tolist() == apart.layers[name].windows[4].tolist()
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())


@pytest.mark.parametrize("said", [{}, {"wb": None, "gb": None}, {"gb": None}, {"gb": 4, "wb": 6}, {"wb": None}])
def test_weights_that_are_held_are_those_of_the_forward_pass(said):
    own = net(**said)
    own.layers[0].weight.mul_(2).clamp_(-1.5, 1.5)[0, 0, 0] = torch.tensor([1.5, -1.5, 0.75])  # beyond the clip
    step = own._start("float", own.layers[0], 1, counts_of(own, noise())[1][0])
    unit = 1.0 if own.rule.wb is None else 2.0 ** (1 - own.rule.wb)
    assert torch.equal(own.layers[0].used(), step.w_code.double() * unit)


# --------------------------------------------------------------------------------------------------- what training left


def test_learning_is_summed_from_the_networks_own_counts():
    _, out = trained("auto", 1, batches=3)
    for trace in out["trace"]:
        said = dict(zip(LEARNED, learning(trace), strict=True))
        # Three batches of four recordings; steps 3 … 13 of 14 learn.
        assert (said["recordings"], said["steps"], said["updates"]) == (12, 12 * 11, 3 * 11)
        assert said["changes"] == trace.updates.sum() > 0 and said["drawn"] == trace.steps.sum()
        shares = trace.shares()
        kept = Learned(**said, weights=trace.weights)
        assert kept.changed_share == pytest.approx(shares["p_upd"]) and kept.shared == 4
        assert kept.gradients / (33 * trace.weights) == pytest.approx(shares["gradient"])
        assert kept.errors / (12 * 11 * np.prod(trace.plan.out)) == pytest.approx(shares["error"])
        assert kept.features / (12 * 11 * trace.plan.features) == pytest.approx(shares["feature_error"])
        assert kept.scores == trace.scores.sum() > 0


def test_shares_of_a_pattern_network_become_whole_numbers_again():
    weights, neurons, steps = 700 * 400, 400, 250
    changes, drawn, errors = (17, 3, 100_001), (21, 9, 100_002), (7, 99_999, 0)
    rows = [
        {"hidden_update_share": c / weights, "hidden_gradient_density": d / weights,
         "hidden_error_density": e / (neurons * steps)}
        for c, d, e in zip(changes, drawn, errors, strict=True)
    ]  # fmt: skip
    assert learned(rows, "hidden", weights, neurons, steps) == Learned(
        3, 750, 3, weights, sum(changes), sum(drawn), sum(errors)
    )


def test_what_training_left_survives_a_file_and_older_files_are_read():
    counts = local_network(training=TRAINING)
    counts.layers["layer1"].normalized = False
    arrays, about = counts.arrays()
    again = Counts.from_arrays(arrays, about)
    for name, here in counts.layers.items():
        there = again.layers[name]
        for field in ("widths", "normalized", "learned", "traced", "readout"):
            assert getattr(there, field) == getattr(here, field), field
    assert again.layers["layer1"].learned == TRAINING and again.layers["readout1"].readout == Readout("layer1", 2)
    for here in about["layers"].values():
        for field in ("widths", "normalized", "learned", "traced", "readout"):
            del here[field]
    older = Counts.from_arrays(arrays, about).layers["layer1"]
    assert (older.widths, older.normalized, older.learned, older.traced, older.readout) == ({}, True, None, None, None)


# --------------------------------------------------------------------------------------------------------------- prices


def energies(counts: Counts, definitions: Definitions = LOCAL) -> dict[tuple[str, str, str, str], float]:
    rows = energy_rows(counts, HOROWITZ, definitions, "r")
    out = {}
    for r in rows:
        key = r["layer"], r["phase"], r["component"], r["action"]
        out[key] = out.get(key, 0.0) + r["energy_pj"]
    return out


def test_energy_of_a_tiny_network_by_hand():
    """int8 additions take 0.03 pJ, multiplications 0.2; every access of 64 bits in a memory below 8 KiB takes 10."""
    found = energies(local_network(training=TRAINING))
    mac = 0.23
    assert found["layer1", "forward", "synapse", "mac"] == pytest.approx(14 * mac)
    assert found["readout1", "error", "synapse", "mac"] == pytest.approx(5 * mac)
    assert found["layer1", "gradient", "synapse", "mac"] == pytest.approx(9 * mac)
    assert found["layer1", "update", "neuron_arithmetic", "mult"] == pytest.approx(5 * 0.2)
    assert found["layer1", "update", "neuron_arithmetic", "add"] == pytest.approx(14.5 * 0.03)
    # 96 bits of gradients are two accesses, everything else is one; writes are as dear as reads.
    memory = {
        "error": 10 * (2 + 2 + 2 + 2 + 2 * 3 + 2), "gradient": 10 * (2 + 2 + 3 * 2),
        "update": 10 * (2 * 2 + 1 + 3 / 2 + 3 / 2),
    }  # fmt: skip
    for phase, wanted in memory.items():
        assert found["TOTAL", phase, "memory", "all"] == pytest.approx(wanted), phase
    assert found["TOTAL", "update", "all", "all"] == pytest.approx(memory["update"] + 5 * 0.2 + 14.5 * 0.03)


def test_inference_prices_no_learning_and_the_ordinary_network_has_one_readout():
    counts = local_network(training=TRAINING)
    second = local_network(training=TRAINING)
    counts.layers |= {"layer2": second.layers["layer1"], "readout2": second.layers["readout1"]}
    rows = energy_rows(counts, HOROWITZ, Definitions(), "r")
    assert {r["phase"] for r in rows} == {"inference", "ann_inference"}
    ordinary = {r["layer"] for r in rows if r["phase"] == "ann_inference"}
    assert ordinary == {"layer1", "layer2", "readout2", "TOTAL"}
    assert not any(r["action"].startswith(("feedback", "error", "master", "norm", "membrane_r")) for r in rows)
    assert {r["layer"] for r in rows if r["action"] == "weight_read"} == ordinary - {"TOTAL"} | {"readout1"}
    # It adds up its readout as others do, input by input.
    last = [r["action"] for r in rows if (r["layer"], r["phase"]) == ("readout2", "ann_inference")]
    assert {"mac", "weight_read", "readout_read", "readout_write", "activation_read"} <= set(last)


@pytest.mark.parametrize(
    ("field", "phase"), [("changes", "update"), ("gradients", "update"), ("errors", "gradient"), ("scores", "error"),
                         ("features", "error"), ("updates", "update"), ("steps", "gradient")],
)  # fmt: skip
def test_every_number_that_training_left_moves_its_phase(field, phase):
    more = replace(TRAINING, **{field: getattr(TRAINING, field) + 1})
    before, after = (energies(local_network(training=t))["TOTAL", phase, "all", "all"] for t in (TRAINING, more))
    assert after > before


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.lists(st.integers(0, 10**6), min_size=8, max_size=8))
def test_a_training_as_long_again_costs_a_recording_the_same(times, numbers):
    steps, updates, *rest = numbers
    once = Learned(3, steps + updates + 1, updates + 1, 8, *rest[:3], *rest[3:])
    long = replace(
        once, **{k: times * getattr(once, k) for k in vars(once) if k != "weights" and getattr(once, k) is not None}
    )
    first, second = (energies(local_network(training=t)) for t in (once, long))
    assert second == pytest.approx(first)


def test_without_numbers_of_a_training_every_weight_changes_at_every_step_that_votes():
    layer, readout = local_network().layers.values()
    assert learning_of(layer) == Learned(
        1, 2, 2, 8, changes=16, drawn=16, errors=2 * 2, gradients=2 * 8, scores=0, features=2 * 2
    )
    kept = learning_of(readout)
    assert (kept.steps, kept.scores, kept.features) == (2, 2 * 2, 2 * 2)
    none, some = (energies(local_network(training=t)) for t in (None, TRAINING))
    assert none["TOTAL", "update", "all", "all"] > some["TOTAL", "update", "all", "all"]


def test_backpropagation_is_refused_for_a_network_that_learns_locally():
    d = Definitions(rule="bptt")
    for priced in (lambda: list(actions(local_network(), HOROWITZ, d)), lambda: footprint_rows(local_network(), d)):
        with pytest.raises(ConfigError, match="rule: found bptt, but this network learns from local errors; take"):
            priced()


def test_updates_by_backpropagation_write_the_weights_that_changed():
    plain = local_network().layers["layer1"]
    kept = Learned(4, 40, 4, 6, changes=5, drawn=5, errors=1)
    widths = {"master": 7, "gradient": 9, "momentum": 0}
    layer = replace(plain, parts=1, traced=None, widths=widths, learned=kept, spikes_T=np.ones(4))
    d = Definitions(rule="bptt")

    def update(here: LayerCounts) -> dict[str, tuple[float, int]]:
        made = learning_actions("l", here, d, 1, is_first=True, classes=2)
        return {a.action: (a.count, a.bits) for a in made if a.phase == "update"}

    assert update(layer) == {
        "gradient_read": (1, 6 * 9), "gradient_write": (1, 6 * 9), "master_read": (1, 6 * 7),
        "master_write": (5 / 4, 7), "weight_write": (5 / 4, 4),
    }  # fmt: skip
    assert update(replace(layer, learned=None))["master_write"] == (1, 6 * 7)
    adds = {n: sum(a.count for a in actions(_of(here), HOROWITZ, d) if a.phase == "update" and a.action == "add")
            for n, here in (("kept", layer), ("not", replace(layer, learned=None)))}  # fmt: skip
    assert adds == {"kept": 6 + 5 / 4, "not": 2 * 6}


def _of(layer: LayerCounts) -> Counts:
    return Counts(4, 1, {"l": layer}, {"l": np.zeros((4, 2), bool)})


def test_spikes_travel_by_the_inputs_and_not_by_the_traces():
    layer = local_network(arrived=3)
    layer.layers["layer1"].widths["spike"] = 2
    for code, wanted in (("bitmap", (4, 3 * 2)), ("events", (3, 2 + 1))):
        d = Definitions(spike_code=code)
        (spike,) = [a for a in actions(layer, HOROWITZ, d) if a.action == "spike_read"]
        assert (spike.count, spike.bits) == wanted


def test_neurobench_counts_traces_as_multiplications_and_biases_but_no_normalization():
    counts = local_network()
    found = metrics(counts.layers.values(), counts.steps, counts.images)
    assert found["Effective_MACs"] == 7 * 2 + 3 * 2 and found["Effective_ACs"] == 0
    assert found["parameter_count"] == 6 + 4 + 2
    assert found["footprint"] == (6 * 4 + 4 * 3 + 2 * 4) / 8


# ------------------------------------------------------------------------------------------------------------ footprint

VARIABLES = (
    "weights", "bias_weights", "membrane_trace", "synaptic_trace", "refractory", "potential", "feedback", "score",
    "master", "error",
)  # fmt: skip
"""The variables of the published count."""


def published_network() -> Counts:
    """Counts of the published network, of which only the sizes matter here."""
    counts = Counts(1, 1)
    sizes = [((64, 2), (32, 32), (15, 15)), ((128, 64), (15, 15), (13, 13)), ((128, 128), (13, 13), (5, 5))]
    b = DECOLLE_WIDTHS
    for i, ((O, C), image, pooled) in enumerate(sizes):  # noqa: E741
        neurons, features = O * (image[0] - 2) * (image[1] - 2), O * pooled[0] * pooled[1]
        none = np.zeros(1, np.int64)
        about = {"parts": 0, "signed": False, "unit": none, "fractional": none, "unit_T": none, "fractional_T": none}
        about |= {"spikes_T": none, "spikes_N": none, "normalized": False}
        held = array("synapse", torch.zeros(O, C, 7, 7), b["W"], cells=False)
        counts.layers[f"layer{i + 1}"] = LayerCounts(
            (O, C, 7, 7), image, (2, 2), (1, 1), neurons, **about, held=[held], traced=Traced(0, features, 1, O),
            widths={"membrane_trace": b["P"], "synaptic_trace": b["Q"], "refractory": b["R"], "potential": b["U"],
                    "error": b["E"], "master": b["G"], "gradient": 34},
        )  # fmt: skip
        held = array("synapse", torch.zeros(11, features), b["S"], cells=False)
        counts.layers[f"readout{i + 1}"] = LayerCounts(
            (11, features), (), (), (), 0, **about, held=[held], readout=Readout(f"layer{i + 1}", 1),
            widths={"score": b["A"], "error": b["E"]},
        )  # fmt: skip
    return counts


def test_the_footprint_of_the_published_network_is_the_published_one():
    counts = published_network()
    for network, bits, letters in ((counts, 29_372_940, 0), (in_32_bits(counts), 117_899_328, 32)):
        rows = [r for r in footprint_rows(network, LOCAL) if r["layer"] == "TOTAL"]
        assert sum(r["bits"] for r in rows if r["variable"] in VARIABLES) == bits
        widths = law_widths(network)
        assert widths == (DECOLLE_WIDTHS if not letters else dict.fromkeys(DECOLLE_WIDTHS, letters))
        assert law_layers(network) == list(DECOLLE_CORRECTED)
        assert decolle_bits(law_layers(network), widths, network.classes) == bits
        others = {r["variable"] for r in rows} - {*VARIABLES, "all"}
        assert others == {"spikes", "decay", "gradient"}
    # As published: no biases, neurons are the pooled ones, whose errors are not kept twice; 14 400 is typed 1 440.
    published = [
        x._replace(weights=x.weights - b, neurons=x.features, output_errors=0)
        for x, b in zip(law_layers(counts), (64, 128, 128), strict=True)
    ]
    assert published[0].features == 14_400
    published[0] = published[0]._replace(neurons=1440, features=1440)
    assert published == list(DECOLLE_PUBLISHED)
    quantized, full = (decolle_bits(published, law_widths(n), 11) for n in (counts, in_32_bits(counts)))
    assert (quantized, full) == (26_462_796, 100_928_576) and round(100 * (1 - quantized / full), 2) == 73.78


def test_widths_of_the_network_are_its_bits_and_state_bits_replaces_states():
    counts = local_network(training=TRAINING)

    def bits(definitions: Definitions = LOCAL) -> dict[str, int]:
        return {r["variable"]: r["bits"] for r in footprint_rows(counts, definitions) if r["layer"] == "layer1"}

    assert bits() == {
        "weights": 6 * 4, "spikes": 3, "membrane_trace": 3 * 6, "synaptic_trace": 3 * 5, "decay": 2 * 3 * 32,
        "bias_weights": 2 * 4, "refractory": 2 * 2, "potential": 2 * 4, "error": (2 + 2) * 3, "gradient": 8 * 12,
        "master": 8 * 5,
    }  # fmt: skip
    wider = bits(Definitions(rule="local", state_bits=16))
    assert {k for k, v in wider.items() if v != bits()[k]} == {
        "membrane_trace", "synaptic_trace", "refractory", "potential"
    }  # fmt: skip
    assert wider["membrane_trace"] == 3 * 16
    assert set(bits(Definitions())) == set(bits()) - {"error", "gradient", "master"}
    counts.layers["layer1"].widths = {}
    assert {bits()[k] for k in ("membrane_trace", "synaptic_trace")} == {3 * 32} and bits()["master"] == 8 * 32


def test_32_bits_are_32_bits_a_number():
    counts = local_network()
    layer = counts.layers["layer1"]
    layer.traced, layer.parts = None, 1
    layer.widths = {"membrane": 16, "error_state": 20, "momentum": 0, "tape": 12, "spike": 2}
    wide = in_32_bits(counts).layers["layer1"]
    assert wide.widths == {"membrane": 64, "error_state": 64, "momentum": 0, "tape": 32, "spike": 2}
    assert wide.held[0].bits == 32 and layer.held[0].bits == 4 and layer.widths["tape"] == 12
