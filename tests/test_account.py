"""What accounting counts of a network as programmed: its arrays and samples, both parts of a hybrid, ensembles."""

import numpy as np
import pytest
import torch
from counted import arrivals, counted, network, picture, prices, reached, seeded, slow_counts

from hwsim.data.image import ImageData, Split
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.quantize import dorefa, ternary, twos_complement
from hwsim.device.store import Rram, Ternary, draw, place
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.account import MOST_LEVELS, count, held
from hwsim.recipe.settings import Account
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows
from hwsim.report.sparsity import LEVELS, level_rows, sparsity_rows
from hwsim.report.trace import Counts


def images(n: int) -> Split:
    return Split(torch.randint(0, 256, (n, 2, 7, 6), generator=seeded(3), dtype=torch.uint8), torch.zeros(n).long())


DATA = ImageData("noise", images(2), images(2), images(140), 3, (0.5, 0.5), (0.2, 0.3), "")
CARD = prices({"covers": ["synapse"], "prices": {"add_fp32": 0.9, "mult_fp32": 3.7}})


def counts_of(*nets: VggBntt, samples: int = 10, seed: int = 1) -> Counts:
    return count({f"shift{i}": n for i, n in enumerate(nets)}, DATA, Account(of="vat", samples=samples), seed)


def rows_of(counts: Counts, **said) -> list[dict]:
    return energy_rows(counts, CARD, Definitions(**said), "r")


def by_array(rows: list[dict], phase: str = "inference") -> dict[tuple[str, str, str], float]:
    """(layer, component, action) → count, without totals."""
    mine = [r for r in rows if r["phase"] == phase and r["layer"] != "TOTAL"]
    out = {(r["layer"], r["component"], r["action"]): r["count"] for r in mine}
    assert len(out) == len(mine)
    return out


# ------------------------------------------------------------------------------------------------------------ as it is


def test_a_network_is_counted_as_programmed_without_spread():
    net = network("direct")
    place(net, {"conv2": Rram(bits=2, sigma=0.5), "conv3": Ternary(sigma=0.5)})
    draw(net, seeded(0))
    counts = counts_of(net)
    assert net.conv2.z is None
    assert counts.images == 10
    held_by = {n: layer.held for n, layer in counts.layers.items()}
    assert {len(arrays) for arrays in held_by.values()} == {1}
    said = {n: (h.component, h.bits, h.cells) for n, (h,) in held_by.items()}
    ideal = dict.fromkeys(("conv1", "fc1", "fc2"), ("synapse", 32, False))
    assert said == ideal | {"conv2": ("synapse", 2, True), "conv3": ("synapse", 2, True)}
    for name, values in (
        ("conv2", dorefa(net.conv2.weight.detach(), 2)[0]),
        ("conv3", ternary(net.conv3.weight.detach())[0]),
    ):
        (array,) = held_by[name]
        assert array.density == float((values != 0).double().mean())
        assert array.nonzero_CKK.tolist() == (values != 0).sum(0).tolist()
        assert array.outputs == len(values)
        levels, at = values.unique(return_counts=True)
        assert array.weights_at.tolist() == at.tolist() and array.distinct == len(levels)
        # The levels are those of the cells times the layer's scale.
        assert np.allclose(array.levels / np.abs(array.levels).max(), levels / levels.abs().max(), atol=1e-6)
    rows = level_rows(counts)
    assert all(tuple(r) == LEVELS for r in rows)
    assert [(r["layer"], r["part"], r["bits"], r["weights"]) for r in rows] == [
        ("conv2", "synapse", 2, 3 * 2 * 9), ("conv3", "synapse", 2, 4 * 3 * 9)]  # fmt: skip


def test_very_many_different_weights_are_counted_in_bins():
    net = network()
    net.fc1 = torch.nn.Linear(100, 50, bias=False)
    net.fc1.store = net.fc2.store
    (array,) = held(net.fc1)
    values = net.fc1.weight.detach().double().numpy()
    assert array.distinct == len(np.unique(values)) > MOST_LEVELS
    assert len(array.levels) == MOST_LEVELS and array.weights_at.sum() == 5000
    width = array.levels[1] - array.levels[0]
    assert array.levels[0] - width / 2 == pytest.approx(values.min(), abs=1e-9)
    assert array.levels[-1] + width / 2 == pytest.approx(values.max(), abs=1e-9)
    assert (array.levels * array.weights_at).sum() == pytest.approx(values.sum(), abs=5000 * width / 2)
    (few,) = held(net.fc2)
    assert few.levels.tolist() == np.unique(net.fc2.weight.detach().double().numpy()).tolist()


def test_samples_are_the_first_test_images_over_all_batches_and_at_most_all():
    net = network("direct")
    sizes = [counts_of(net, samples=n) for n in (129, 1000)]
    assert [c.images for c in sizes] == [129, 140]
    x = (DATA.test.images_NCHW[:129] / 255 - 0.5) / torch.tensor([0.2, 0.3]).view(1, 2, 1, 1)
    first = counted(net, x)
    for name, layer in first.layers.items():
        layer.held = sizes[0].layers[name].held
    assert rows_of(sizes[0]) == rows_of(first)
    assert sizes[0].layers["conv1"].windows.keys() == {64, 128, 256}


def test_counting_twice_gives_the_same_rows_and_another_seed_others():
    net = network()
    rows = [rows_of(counts_of(net, samples=20, seed=s)) for s in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


# ---------------------------------------------------------------------------------------------------------- two arrays


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


def test_a_hybrid_layer_is_held_in_two_arrays_with_their_own_bits_density_and_levels():
    net = recovered(masked=True)
    draw(net, seeded(0))
    counts = counts_of(net)
    rows, arrays = rows_of(counts), {n: layer.held for n, layer in counts.layers.items()}
    assert net.conv2.z is None
    for name in ("conv2", "conv3"):
        assert [(h.component, h.bits, h.cells) for h in arrays[name]] == [("rram", 2, True), ("sram", 3, False)]
    assert [(h.component, h.bits, h.cells) for h in arrays["conv1"] + arrays["fc2"]] == [("synapse", 32, False)] * 2
    levels_of = {"conv2": dorefa(net.conv2.rram, 2), "conv3": ternary(net.conv3.rram)}
    for name, (level, scale) in levels_of.items():
        layer = net.get_submodule(name)
        words = twos_complement(layer.weight.detach(), 3, scale * (2 if name == "conv3" else 1)) * layer.mask
        for array, part in zip(arrays[name], (level, words), strict=True):
            assert array.nonzero_CKK.tolist() == (part != 0).sum(0).tolist()
        found = [r for r in level_rows(counts) if r["layer"] == name]
        assert [(r["part"], r["bits"], r["levels_used"]) for r in found] == [
            ("rram", 2, len(level.unique())), ("sram", 3, len(words.unique()))]  # fmt: skip
        assert {r["weights"] for r in found} == {layer.weight.numel()}
        assert 0 < arrays[name][1].density < 0.6
    assert [(r["weight_bits"], r["weight_density"]) for r in rows if r["layer"] == "conv2"][:2] == [
        (2, arrays["conv2"][0].density), (3, arrays["conv2"][1].density)]  # fmt: skip
    assert {r["layer"] for r in level_rows(counts)} == {"conv2", "conv3"}


def test_an_sram_part_of_floats_has_their_bits():
    net = recovered()
    place(net, {"conv2": Hybrid(Rram(bits=2), Sram(bits=3, quantizer="none"))})
    assert [h.bits for h in held(net.conv2)] == [2, 32]


@pytest.mark.parametrize("coding", ["poisson", "direct"])
@pytest.mark.parametrize("pooled", ["mac", "ac"])
def test_every_input_event_reads_both_arrays_of_a_hybrid_layer_and_the_one_of_others(coding, pooled):
    net, x = recovered(coding), picture(4)
    counts = counted(net, x)
    for name, layer in counts.layers.items():
        layer.held = list(held(net.get_submodule(name)))
    hybrid, rows = ("conv2", "conv3"), rows_of(counts, pooled=pooled)
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
    for layer in counts.layers.values():
        layer.held = layer.held[:1]
    ann = [[r for r in some if r["phase"] == "ann_inference"] for some in (rows, rows_of(counts, pooled=pooled))]
    assert ann[0] == ann[1]


def test_effective_operations_are_those_over_each_arrays_own_weights():
    net, x = recovered(masked=True), picture(4)
    counts = counted(net, x)
    layer = counts.layers["conv2"]
    layer.held = list(held(net.conv2))
    found = by_array(rows_of(counts, synapses="effective"))
    store = net.conv2.store
    words = store.sram.read(net.conv2, full_scale=store.rram.full_scale(net.conv2.rram), shift_bit=0)
    for component, weight in (("rram", store.rram.held(net.conv2.rram)), ("sram", words)):
        expected = 0
        for place_ in arrivals(net, x)["conv2"].nonzero().tolist():
            expected += sum(bool(weight[s]) for s in reached(net.conv2, place_[2:], (7, 6)))
        assert found["conv2", component, "ac"] == expected / 4
    assert found["conv2", "sram", "ac"] < found["conv2", "rram", "ac"]


def test_totals_of_two_arrays_are_sums():
    rows = rows_of(counts_of(recovered()))
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase and r["layer"] != "TOTAL"]
        totals = {r["component"]: r for r in rows if r["phase"] == phase and r["layer"] == "TOTAL"}
        for column in ("count", "energy_pj", "share"):
            assert totals["all"][column] == pytest.approx(sum(r[column] for r in part), rel=1e-12)
        if phase == "inference":
            assert list(totals) == ["synapse", "rram", "sram", "all"]
            assert (
                totals["rram"]["energy_pj"] == pytest.approx(totals["sram"]["energy_pj"])
                and totals["rram"]["count"] > 0
            )


# ---------------------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_counts_of_an_ensemble_are_those_of_each_of_its_networks(coding):
    nets = [recovered(coding, seed) for seed in range(3)]
    together, alone = counts_of(*nets), [counts_of(net) for net in nets]
    each = [by_array(rows_of(c)) for c in alone]
    assert each[0] != each[1]
    expected = {(f"{layer}@shift{i}", *k): v for i, some in enumerate(each) for (layer, *k), v in some.items()}
    rows = rows_of(together)
    assert by_array(rows) == expected
    totals = [[r["energy_pj"] for r in some if r["component"] == "all" and r["phase"] == "inference"][0]
              for some in (rows, *map(rows_of, alone))]  # fmt: skip
    assert totals[0] == pytest.approx(sum(totals[1:]))
    # One ordinary network of the same shape stands beside them, and one set of images.
    ann = {(layer.partition("@")[0], *k): v for (layer, *k), v in by_array(rows, "ann_inference").items()}
    assert ann == by_array(rows_of(alone[0]), "ann_inference") and len(by_array(rows, "ann_inference")) == len(ann)
    assert together.images == 10 and {r["samples"] for r in rows} == {10}
    assert [{**r, "layer": r["layer"].partition("@")[0]} for r in level_rows(together)] == [
        r for c in alone for r in level_rows(c)]  # fmt: skip
    sparse = [{**r, "layer": r["layer"].partition("@")[0]} for r in sparsity_rows(together, "r")]
    assert sparse == [r for c in alone for r in sparsity_rows(c, "r")]


def test_counting_an_ensemble_leaves_the_counts_of_its_networks_alone():
    nets = [recovered(seed=seed) for seed in range(2)]
    first = rows_of(counts_of(nets[0]))
    counts_of(*nets)
    assert rows_of(counts_of(nets[0])) == first
