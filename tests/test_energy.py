"""Counts and prices: counted by slow loops, by hand and from published numbers; tables that add up."""

import csv
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import CardError
from hwsim.data.image import ImageData, Split
from hwsim.device.card import Card, Price, load_card
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.quantize import dorefa, ternary, twos_complement
from hwsim.device.store import Rram, Ternary, draw, place
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe.account import count
from hwsim.recipe.settings import Account
from hwsim.report import plot
from hwsim.report.energy import COLUMNS, SPARSITY_COLUMNS, Held, energy_rows, sparsity_rows
from hwsim.report.plot import accuracy_figure, energy_figure
from hwsim.report.table import aligned, csv_bytes
from hwsim.report.trace import Counts, LayerCounts

CARD = load_card("horowitz_45nm")
AC, MAC = 0.9, 4.6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prices(**pJ: float) -> Card:
    return Card(title="t", prices={k: Price(pJ=v, source=f"source of {k}", evidence="assumed") for k, v in pJ.items()})


def network(coding: str = "poisson", plan=(2, 3, "A", 4, "A"), steps: int = 3) -> VggBntt:
    """A small network in evaluation mode with statistics of some images."""
    net = VggBntt(plan, 5, channels=2, size=(7, 6), classes=3, steps=steps, coding=coding, generator=seeded(1))
    for seed in range(12):
        net(picture(6, seed), seeded(seed))
    return net.eval()


def picture(n: int, seed: int = 50) -> torch.Tensor:
    return 1.5 * torch.randn(n, 2, 7, 6, generator=seeded(seed))


def counted(net: VggBntt, x: torch.Tensor, seed: int = 9) -> Counts:
    counts = Counts(net.steps)
    counts.add(net(x, seeded(seed), account=True)[1], len(x))
    return counts


def rows_of(counts: Counts, card: Card = CARD, synapses: str = "inbounds", pooled: str = "mac") -> list[dict]:
    held = dict.fromkeys(counts.layers, (Held(4, 0.75),))
    return energy_rows(counts, card, held, run_id="vat-1", synapses=synapses, pooled=pooled)


def table(rows: list[dict], phase: str = "inference") -> dict[tuple[str, str], float]:
    """(layer, action) → count."""
    return {(r["layer"], r["action"]): r["count"] for r in rows if r["phase"] == phase}


# ------------------------------------------------------------------------------------------------------ how far reach


def one_layer(outputs: int, inputs: int, kernel, padding, image) -> LayerCounts:
    return LayerCounts((outputs, inputs, *kernel), padding, image, 0, None, None, None)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(5, 9), st.integers(5, 9)), st.integers(1, 3),
)  # fmt: skip
def test_inbounds_fan_out_is_what_brute_force_counts(kernel, padding, image, outputs):
    (kh, kw), (ph, pw), (H, W) = kernel, padding, image
    reached = torch.zeros(H, W, dtype=torch.int64)
    for row in range(H + 2 * ph - kh + 1):
        for column in range(W + 2 * pw - kw + 1):
            for dy in range(kh):
                for dx in range(kw):
                    y, x = row + dy - ph, column + dx - pw
                    if 0 <= y < H and 0 <= x < W:
                        reached[y, x] += outputs
    layer = one_layer(outputs, 7, kernel, padding, image)
    assert layer.fan_out("inbounds").tolist() == reached.tolist()
    assert layer.dense("inbounds") == 7 * reached.sum()
    assert layer.fan_out("fanout").tolist() == torch.full((H, W), outputs * kh * kw).tolist()
    assert layer.dense("fanout") == 7 * H * W * outputs * kh * kw


def test_an_event_in_a_corner_at_an_edge_and_inside_reaches_four_six_and_nine():
    layer = one_layer(1, 1, (3, 3), (1, 1), (3, 3))
    assert layer.fan_out("inbounds").tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    corner = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 0, 0]]]).numpy()
    assert layer.operations(corner, "inbounds") == 4
    assert layer.operations(corner, "fanout") == 9


def test_an_event_at_a_linear_layer_reaches_every_output():
    layer = LayerCounts((5, 8), None, (), 5, None, None, None)
    assert layer.fan_out("inbounds") == layer.fan_out("fanout") == 5
    assert layer.dense("inbounds") == layer.dense("fanout") == 40
    assert layer.operations(torch.tensor([3, 2]).numpy(), "inbounds") == 25


PUBLISHED = {
    "vgg9": [1_769_472, 37_748_736, 18_874_368, 37_748_736, 18_874_368, 37_748_736, 37_748_736, 4_194_304, 10_240],
    "vgg11": [1_769_472, 18_874_368, 18_874_368, 37_748_736, 18_874_368, 37_748_736, 9_437_184, 9_437_184, 2_097_152],
    "vgg5": [1_769_472, 18_874_368, 37_748_736, 8_388_608, 10_240],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_counts_are_the_published_multiplications(name):
    classes = 100 if name == "vgg11" else 10
    net = build(name, channels=3, size=(32, 32), classes=classes, steps=1).eval()
    with torch.no_grad():
        counts = counted(net, torch.zeros(1, 3, 32, 32))
    expected = PUBLISHED[name] + ([409_600] if name == "vgg11" else [])
    found = table(rows_of(counts, synapses="fanout"), "ann_inference")
    assert list(found.values()) == [*expected, sum(expected)]
    assert list(counts.layers) == [k[0] for k in found][:-1]
    if name == "vgg9":
        assert found["TOTAL", "all"] == 194_717_696
    # One row and column of kernel are missing at each border of a 3x3 convolution with padding 1.
    border = table(rows_of(counts), "ann_inference")
    assert border["conv1", "mac"] == 3 * 64 * (3 * 32 - 2) ** 2


# ------------------------------------------------------------------------------------------------------ what is there


def arrivals(net: VggBntt, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What arrives at every layer, [T, B, ...]. The network hands fc2 the mean over time; hardware sees the spikes."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [net.bntt_fc.register_forward_hook(lambda layer, given, result: seen.update(fc2=result[0].flatten(2)))]
    for name in [conv for conv, _, _ in net.blocks] + ["fc1"]:
        layer = net.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]})))
    net(x, seeded(9))
    for hook in hooks:
        hook.remove()
    return {name: t.detach() for name, t in seen.items()}


def slow_counts(net: VggBntt, x: torch.Tensor) -> dict[tuple[str, str], float]:
    """Synaptic operations an image by a loop over every event and every output that it may reach."""
    operations: dict[tuple[str, str], float] = {}
    for name, arrived in arrivals(net, x).items():
        operations[name, "ac"] = operations[name, "mac"] = 0
        weight = net.get_submodule(name).weight
        for place_, value in zip(arrived.nonzero().tolist(), arrived[arrived != 0].tolist(), strict=True):
            reached = len(weight)
            if name.startswith("conv"):
                row, column = place_[-2:]
                reached *= sum(
                    0 <= row + dy < arrived.shape[3] and 0 <= column + dx < arrived.shape[4]
                    for dy in (-1, 0, 1) for dx in (-1, 0, 1)
                )  # fmt: skip
            operations[name, "ac" if abs(value) == 1 else "mac"] += reached / len(x)
    return operations


@pytest.mark.parametrize("plan", [(2, 3, "A", 4, "A"), (2, "A", 3, "G")])
@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
def test_operations_are_those_of_a_loop_over_events(coding, plan):
    net, x = network(coding, plan), picture(4)
    found = table(rows_of(counted(net, x)))
    expected = slow_counts(net, x)
    assert {k: v for k, v in expected.items() if v} == pytest.approx(
        {k: v for k, v in found.items() if v and k[0] != "TOTAL"}, rel=1e-12
    )
    # Averages of spikes arrive where a layer was pooled, and nowhere else; an analog image only at the first layer.
    assert {layer for (layer, action), v in found.items() if action == "mac" and v} == (
        {"conv3", "fc1"} if "G" not in plan else {"conv2", "fc1"}
    ) | ({"conv1"} if coding != "poisson" else set())


def test_averages_can_be_priced_as_additions_but_an_analog_image_cannot():
    net, x = network("direct"), picture(4)
    as_mac, as_ac = (table(rows_of(counted(net, x), pooled=pooled)) for pooled in ("mac", "ac"))
    assert {k for k in as_ac if k[1] == "mac"} == {("conv1", "mac")}
    assert as_ac["conv1", "mac"] == as_mac["conv1", "mac"]
    for layer in ("conv3", "fc1"):
        assert as_ac[layer, "ac"] == as_mac[layer, "ac"] + as_mac[layer, "mac"]
    assert as_ac["TOTAL", "all"] == pytest.approx(as_mac["TOTAL", "all"])


def test_direct_coding_counts_the_first_layer_once_and_repeat_every_step():
    x = picture(4)
    direct, again = (rows_of(counted(network(coding), x)) for coding in ("direct", "repeat"))
    once, each = table(direct), table(again)
    # Every pixel is some number other than zero: as many multiplications as the ordinary network has.
    assert once["conv1", "mac"] == table(direct, "ann_inference")["conv1", "mac"]
    assert each["conv1", "mac"] == 3 * once["conv1", "mac"]
    assert {k: v for k, v in once.items() if k[0] not in ("conv1", "TOTAL")} == {
        k: v for k, v in each.items() if k[0] not in ("conv1", "TOTAL")
    }
    steps = {r["layer"]: r["timesteps"] for r in direct if r["phase"] == "inference" and r["layer"] != "TOTAL"}
    assert steps == {"conv1": 1, "conv2": 3, "conv3": 3, "fc1": 3, "fc2": 3}


def test_counts_of_batches_add_up_to_those_of_all_images():
    net, x = network("direct"), picture(7)
    whole, parts = counted(net, x), Counts(3)
    for piece in (x[:3], x[3:4], x[4:]):
        parts.add(net(piece, account=True)[1], len(piece))
    assert rows_of(parts) == rows_of(whole)
    assert sparsity_rows(parts, "r") == sparsity_rows(whole, "r")


# ---------------------------------------------------------------------------------------------------------- the price


def test_no_spikes_no_synaptic_energy():
    net = VggBntt((2, "A", 3), 4, channels=1, size=(4, 4), classes=3, steps=2, generator=seeded(1)).eval()
    rows = rows_of(counted(net, torch.zeros(3, 1, 4, 4)))
    spiking = [r for r in rows if r["phase"] == "inference"]
    assert {r["count"] for r in spiking} == {0}
    assert {r["energy_pj"] for r in spiking} == {0}
    assert {r["share"] for r in spiking} == {0}
    assert all(r["energy_pj"] > 0 for r in rows if r["phase"] == "ann_inference")


def test_energy_is_counts_times_prices():
    for row in rows_of(counted(network("direct"), picture(4))):
        if row["layer"] != "TOTAL":
            price = {"ac": AC, "mac": MAC}[row["action"]]
            assert row["unit_energy_pj"] == price
            assert row["energy_pj"] == row["count"] * price


@pytest.mark.parametrize("action", ["ac", "mac"])
def test_doubling_a_price_doubles_its_rows(action):
    counts = counted(network(), picture(4))
    before, after = rows_of(counts, prices(ac=0.9, mac=4.6)), rows_of(counts, prices(**{"ac": 0.9, "mac": 4.6, action: (
        1.8 if action == "ac" else 9.2)}))  # fmt: skip
    for a, b in zip(before, after, strict=True):
        if a["layer"] != "TOTAL":
            assert b["energy_pj"] == (2 if a["action"] == action else 1) * a["energy_pj"]
            assert b["count"] == a["count"]


def test_totals_are_sums_and_shares_add_up_to_one():
    rows = rows_of(counted(network(), picture(4)))
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase and r["layer"] != "TOTAL"]
        (total,) = [r for r in rows if r["phase"] == phase and r["layer"] == "TOTAL"]
        assert total["count"] == pytest.approx(sum(r["count"] for r in part), rel=1e-12)
        assert total["energy_pj"] == pytest.approx(sum(r["energy_pj"] for r in part), rel=1e-12)
        assert sum(r["share"] for r in part) == pytest.approx(1)
        assert total["share"] == 1
        assert all(r["share"] == r["energy_pj"] / total["energy_pj"] for r in part)


@pytest.mark.parametrize("there, missing", [("ac", "mac"), ("mac", "ac")])
def test_a_missing_price_is_an_error_and_not_zero(there, missing):
    with pytest.raises(CardError, match=f"there is no price for '{missing}'"):
        rows_of(counted(network(), picture(2)), prices(**{there: 1.0}))


# ---------------------------------------------------------------------------------------------------------- the table


def test_energy_rows_have_exactly_the_columns_of_the_file():
    rows = rows_of(counted(network("direct"), picture(4)))
    assert all(tuple(r) == COLUMNS for r in rows)
    read = list(csv.DictReader(io.StringIO(csv_bytes(rows, COLUMNS).decode())))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        assert tuple(text) == COLUMNS
        assert float(text["energy_pj"]) == pytest.approx(row["energy_pj"], rel=1e-9)


def test_energy_rows_say_where_their_numbers_come_from():
    rows = rows_of(counted(network("direct"), picture(4)))
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
    assert density["inference", "conv1", "ac"] == (0.75, 1.0)
    assert density["ann_inference", "conv1", "mac"] == (1.0, 1.0)


def test_input_density_is_the_share_of_inputs_that_are_not_zero():
    net, x = network(), picture(4)
    rows, arrived = rows_of(counted(net, x)), arrivals(net, x)
    assert list(arrived) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    for name, there in arrived.items():
        (density,) = {r["input_density"] for r in rows if r["layer"] == name and r["phase"] == "inference"}
        assert density == pytest.approx(float((there != 0).double().mean()), rel=1e-12)


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_sparsity_rows_count_spikes_and_inputs_of_an_image_and_step(coding):
    net, x = network(coding), picture(4)
    spikes, inputs = {}, {k: (v != 0).flatten(1).sum(1) / 4 for k, v in arrivals(net, x).items()}
    for i in (1, 2, 3):
        net.get_submodule(f"bntt{i}").register_forward_hook(
            lambda layer, given, result, i=i: spikes.update({f"conv{i}": result[1] / 4})
        )
    rows = sparsity_rows(counted(net, x), "vat-1")
    assert all(tuple(r) == SPARSITY_COLUMNS for r in rows)
    assert [(r["layer"], r["timestep"]) for r in rows] == [
        (layer, t) for layer in ("conv1", "conv2", "conv3", "fc1", "fc2") for t in (1, 2, 3)
    ]
    neurons = {"conv1": 2 * 42, "conv2": 3 * 42, "conv3": 4 * 9, "fc1": 5, "fc2": 0}
    widths = {"conv1": 2 * 42, "conv2": 2 * 42, "conv3": 3 * 9, "fc1": 4, "fc2": 5}
    for r in rows:
        name, t = r["layer"], r["timestep"] - 1
        assert r["neurons"] == neurons[name]
        if name in spikes:
            assert r["spikes"] == float(spikes[name][t])
            assert r["zeros_fraction"] == pytest.approx(1 - r["spikes"] / neurons[name])
        there = t < len(inputs[name])  # direct coding: the first layer has its inputs once
        assert r["inputs"] == (widths[name] if there else 0)
        assert r["nonzero_inputs"] == (float(inputs[name][t]) if there else 0)
    assert rows[-1]["zeros_fraction"] == ""


def test_a_table_is_the_same_bytes_for_the_same_numbers_and_knows_its_columns():
    assert csv_bytes([{"a": 1 / 3, "b": "x"}, {"a": 2, "b": ""}], ("a", "b")) == b"a,b\n0.3333333333,x\n2,\n"
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        csv_bytes([{"a": 1, "c": 2}], ("a",))
    assert aligned([{"n": "conv1", "pJ": 0.5}, {"n": "fc", "pJ": 12.25}]) == "n         pJ\nconv1    0.5\nfc     12.25"


def test_figures_are_drawn_from_the_rows_and_are_the_same_twice():
    energy = rows_of(counted(network("direct"), picture(4)))
    accuracy = [
        {"network": n, "variation_scale": s, "mean": 0.5, "ci95_low": 0.4, "ci95_high": 0.6}
        for n in ("vat", "baseline") for s in (0.0, 1.0, 2.0)
    ]  # fmt: skip
    for draw_figure, rows in ((energy_figure, energy), (accuracy_figure, accuracy)):
        png = draw_figure(rows, "title")
        assert png.startswith(b"\x89PNG\r\n")
        assert png == draw_figure(rows, "title")


# ------------------------------------------------------------------------------------------------ a network as it is


def images(n: int) -> Split:
    return Split(torch.randint(0, 256, (n, 2, 7, 6), generator=seeded(3), dtype=torch.uint8), torch.zeros(n).long())


DATA = ImageData("noise", images(2), images(2), images(140), 3, (0.5, 0.5), (0.2, 0.3), "")


def test_a_network_is_counted_as_programmed_without_spread():
    net = network("direct")
    place(net, {"conv2": Rram(bits=2, sigma=0.5), "conv3": Ternary(sigma=0.5)})
    draw(net, seeded(0))
    counts, held, levels = count([net], DATA, Account(of="vat", samples=10), seed=1)
    assert net.conv2.z is None
    assert counts.images == 10
    three = ternary(net.conv3.weight.detach())[0]
    assert held["conv1"] == held["fc1"] == ((32, 1.0, "synapse"),)
    assert held["conv2"] == ((2, 1.0, "synapse"),)
    assert held["conv3"] == ((2, pytest.approx(float((three != 0).double().mean())), "synapse"),)
    used = len(dorefa(net.conv2.weight.detach(), 2)[0].unique())
    assert levels == [
        {"layer": "conv2", "part": "synapse", "bits": 2, "levels_used": used, "weights": 3 * 2 * 9},
        {"layer": "conv3", "part": "synapse", "bits": 2, "levels_used": len(three.unique()), "weights": 4 * 3 * 9},
    ]


def test_samples_are_the_first_test_images_over_all_batches_and_at_most_all():
    net = network("direct")
    sizes = [count([net], DATA, Account(of="vat", samples=n), seed=1)[0] for n in (129, 1000)]
    assert [c.images for c in sizes] == [129, 140]
    first = Counts(3)
    x = (DATA.test.images_NCHW[:129] / 255 - 0.5) / torch.tensor([0.2, 0.3]).view(1, 2, 1, 1)
    first.add(net(x, account=True)[1], 129)
    assert rows_of(sizes[0]) == rows_of(first)


def test_counting_twice_gives_the_same_rows_and_another_seed_others():
    net = network()
    rows = [rows_of(count([net], DATA, Account(of="vat", samples=20), seed=s)[0]) for s in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def traced(plan, coding, image):
    net = VggBntt(plan, 3, channels=1, size=image.shape[2:], classes=2, steps=3, coding=coding).eval()
    with torch.no_grad():
        _, trace = net(image, torch.Generator().manual_seed(0), account=True)
    counts = Counts(3)
    counts.add(trace, len(image))
    return counts


@pytest.mark.parametrize(("coding", "steps"), [("direct", 1), ("repeat", 3)])
def test_an_analog_input_of_exactly_one_is_still_a_multiplication(coding, steps):
    first = traced((2, "A"), coding, torch.ones(2, 1, 4, 4)).layers["conv1"]
    assert first.unit.sum() == 0 and first.fractional.sum() == 2 * 16 * steps
    assert first.parts == 0


@pytest.mark.parametrize(("plan", "parts", "bits"), [((2,), 1, 1), ((2, "A"), 4, 3), ((2, "G"), 16, 5)])
def test_the_bits_of_an_average_follow_from_how_many_spikes_it_averages(plan, parts, bits):
    image = 3 * torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    counts = traced(plan, "poisson", image)
    assert counts.layers["fc1"].parts == parts
    held = dict.fromkeys(counts.layers, (Held(32, 1.0),))
    card = load_card("horowitz_45nm")
    rows = energy_rows(counts, card, held, run_id="r", synapses="inbounds", pooled="mac")
    mine = {r["input_bits"] for r in rows if r["layer"] == "fc1" and r["phase"] == "inference"}
    assert mine <= {1, bits} and (parts == 1 or bits in mine)


# --------------------------------------------------------------------------------------------------------- two arrays


def recovered(coding: str = "poisson", seed: int = 0, masked: bool = False) -> VggBntt:
    """A network whose conv2 and conv3 have an RRAM and an SRAM part."""
    net = network(coding)
    sram = Masked(Sram(bits=3)) if masked else Sram(bits=3)
    place(net, {"conv2": Hybrid(Rram(bits=2, sigma=0.5), sram), "conv3": Hybrid(Ternary(), sram, shift_bit=1)})
    for layer in (net.conv2, net.conv3):
        shape = layer.weight.shape
        layer.rram = layer.weight.detach().clone()
        layer.weight.data = 0.3 * torch.randn(shape, generator=seeded(seed))
        layer.mask = torch.rand(shape, generator=seeded(seed + 100)) < 0.5 if masked else None
    return net


def priced(nets: list, samples: int = 10, synapses: str = "inbounds", pooled: str = "mac"):
    """(rows of energy.csv, counts, held, levels) of a network or an ensemble."""
    counts, held, levels = count(nets, DATA, Account(of="recover", samples=samples), seed=1)
    how = {"run_id": "r", "synapses": synapses, "pooled": pooled}
    return energy_rows(counts, CARD, held, **how), counts, held, levels


def by_array(rows: list[dict], phase: str = "inference") -> dict[tuple[str, str, str], float]:
    """(layer, component, action) → count, without the total."""
    return {(r["layer"], r["component"], r["action"]): r["count"] for r in rows if r["phase"] == phase
            and r["layer"] != "TOTAL"}  # fmt: skip


def test_a_hybrid_layer_is_held_in_two_arrays_with_their_own_bits_density_and_levels():
    net = recovered(masked=True)
    draw(net, seeded(0))
    rows, _, held, levels = priced([net])
    assert net.conv2.z is None
    assert [(h.bits, h.component) for h in held["conv2"]] == [(2, "rram"), (3, "sram")]
    assert [(h.bits, h.component) for h in held["conv3"]] == [(2, "rram"), (3, "sram")]
    assert held["conv1"] == held["fc2"] == ((32, 1.0, "synapse"),)
    levels_of = {"conv2": dorefa(net.conv2.rram, 2), "conv3": ternary(net.conv3.rram)}
    for name, (level, scale) in levels_of.items():
        layer = net.get_submodule(name)
        words = twos_complement(layer.weight.detach(), 3, scale * (2 if name == "conv3" else 1)) * layer.mask
        for array, part in zip(held[name], (level, words), strict=True):
            assert array.density == float((part != 0).double().mean())
        found = [r for r in levels if r["layer"] == name]
        assert [(r["part"], r["bits"], r["levels_used"]) for r in found] == [
            ("rram", 2, len(level.unique())), ("sram", 3, len(words.unique()))]  # fmt: skip
        assert {r["weights"] for r in found} == {layer.weight.numel()}
        assert 0 < held[name][1].density < 0.6
    assert [(r["weight_bits"], r["weight_density"]) for r in rows if r["layer"] == "conv2"][:2] == [
        (2, held["conv2"][0].density), (3, held["conv2"][1].density)]  # fmt: skip
    assert {r["layer"] for r in levels} == {"conv2", "conv3"}


def test_an_sram_part_of_floats_has_their_bits():
    net = recovered()
    place(net, {"conv2": Hybrid(Rram(bits=2), Sram(bits=3, quantizer="none"))})
    assert [h.bits for h in priced([net])[2]["conv2"]] == [2, 32]


@pytest.mark.parametrize("coding", ["poisson", "direct"])
@pytest.mark.parametrize("pooled", ["mac", "ac"])
def test_every_input_event_reads_both_arrays_of_a_hybrid_layer_and_the_one_of_others(coding, pooled):
    net, x = recovered(coding), picture(4)
    counts = counted(net, x)
    hybrid = {n: (Held(2, 1.0, "rram"), Held(3, 0.5, "sram")) for n in ("conv2", "conv3")}
    held = {n: hybrid.get(n, (Held(32, 1.0),)) for n in counts.layers}
    how = {"run_id": "r", "synapses": "inbounds", "pooled": pooled}
    rows = energy_rows(counts, CARD, held, **how)
    expected = {}
    for (layer, action), operations in slow_counts(net, x).items():
        action = "ac" if pooled == "ac" and layer != "conv1" else action
        for component in ("rram", "sram") if layer in hybrid else ("synapse",):
            key = (layer, component, action)
            expected[key] = expected.get(key, 0) + operations
    found = by_array(rows)
    assert {k: v for k, v in found.items() if v} == pytest.approx({k: v for k, v in expected.items() if v}, rel=1e-12)
    for layer in hybrid:
        reads = [sum(v for k, v in found.items() if k[:2] == (layer, part)) for part in ("rram", "sram")]
        assert reads[0] == reads[1] > 0
    # The ordinary network of this shape has one weight at each place.
    once = energy_rows(counts, CARD, {n: (h[0],) for n, h in held.items()}, **how)
    ann = [[r for r in some if r["phase"] == "ann_inference"] for some in (rows, once)]
    assert ann[0] == ann[1]


def test_totals_of_two_arrays_are_sums():
    rows, *_ = priced([recovered()])
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase and r["layer"] != "TOTAL"]
        (total,) = [r for r in rows if r["phase"] == phase and r["layer"] == "TOTAL"]
        for column in ("count", "energy_pj", "share"):
            assert total[column] == pytest.approx(sum(r[column] for r in part), rel=1e-12)
    assert {r["component"] for r in rows} == {"synapse", "rram", "sram", "all"}
    twice = sum(r["energy_pj"] for r in rows if r["component"] in ("rram", "sram"))
    once = sum(r["energy_pj"] for r in rows if r["component"] == "rram")
    assert twice == pytest.approx(2 * once) and once > 0


# ---------------------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_counts_of_an_ensemble_are_the_sums_of_its_networks(coding):
    nets = [recovered(coding, seed) for seed in range(3)]
    (together, counts, held, levels), alone = priced(nets), [priced([net]) for net in nets]
    each = [by_array(rows) for rows, *_ in alone]
    assert each[0] != each[1]
    keys = {k for some in each for k in some}
    assert by_array(together) == pytest.approx({k: sum(some.get(k, 0) for some in each) for k in keys}, rel=1e-12)
    totals = [[r["energy_pj"] for r in rows if r["layer"] == "TOTAL" and r["phase"] == "inference"][0]
              for rows in (together, *(a[0] for a in alone))]  # fmt: skip
    assert totals[0] == pytest.approx(sum(totals[1:]))
    # One ordinary network of the same shape stands beside them, and one set of images.
    assert by_array(together, "ann_inference") == by_array(alone[0][0], "ann_inference")
    assert counts.images == 10 and {r["samples"] for r in together} == {10}
    assert levels == alone[0][3]
    for name, arrays in held.items():
        for i, array in enumerate(arrays):
            mean = sum(a[2][name][i].density for a in alone) / 3
            assert array == (alone[0][2][name][i].bits, pytest.approx(mean), alone[0][2][name][i].component)


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_fractions_of_an_ensemble_are_those_of_all_its_neurons_and_inputs(coding):
    nets = [recovered(coding, seed) for seed in range(3)]
    together, alone = priced(nets), [priced([net]) for net in nets]
    parts = [sparsity_rows(a[1], "r") for a in alone]
    for row, *each in zip(sparsity_rows(together[1], "r"), *parts, strict=True):
        for column in ("neurons", "spikes", "inputs", "nonzero_inputs"):
            assert row[column] == pytest.approx(sum(r[column] for r in each)), column
        assert 0 <= row["nonzero_inputs"] <= row["inputs"]
        if row["neurons"]:
            assert row["zeros_fraction"] == pytest.approx(sum(r["zeros_fraction"] for r in each) / 3)
            assert 0 <= row["zeros_fraction"] <= 1
    density = [{(r["layer"], r["component"]): r["input_density"] for r in rows if r["phase"] == "inference"
                and r["layer"] != "TOTAL"} for rows in (together[0], *(a[0] for a in alone))]  # fmt: skip
    for key, found in density[0].items():
        assert found == pytest.approx(sum(d[key] for d in density[1:]) / 3)
        assert 0 <= found <= 1


def test_counting_an_ensemble_leaves_the_counts_of_its_networks_alone():
    nets = [recovered(seed=seed) for seed in range(2)]
    first = priced(nets[:1])[0]
    priced(nets)
    assert priced(nets[:1])[0] == first


def test_the_figure_of_energy_stacks_both_arrays(monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "_png", lambda figure: drawn.append(figure) or b"")
    rows, *_ = priced([recovered("direct")])
    energy_figure(rows, "title")
    layers = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    additions, multiplications, ordinary = ([bar.get_height() for bar in bars] for bars in drawn[0].axes[0].containers)

    def nanojoule(phase: str, action: str) -> list[float]:
        return [sum(r["energy_pj"] for r in rows if (r["layer"], r["phase"], r["action"]) == (n, phase, action)) / 1000
                for n in layers]  # fmt: skip

    assert additions == pytest.approx(nanojoule("inference", "ac"))
    assert multiplications == pytest.approx(nanojoule("inference", "mac"))
    assert ordinary == pytest.approx(nanojoule("ann_inference", "mac"))
    bottoms = [bar.get_y() for bar in drawn[0].axes[0].containers[1]]
    assert bottoms == pytest.approx(additions)
    assert [t.get_text() for t in drawn[0].axes[0].get_xticklabels()] == layers
