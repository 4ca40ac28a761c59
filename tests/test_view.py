"""What an evaluation sees of a stage's networks: which run on a chip, under what name, with which weights."""

from pathlib import Path

import pytest
import torch

from hwsim.config import RunError
from hwsim.data.image import ImageData, Split
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Ideal, Rram, draw, place
from hwsim.recipe import network
from hwsim.recipe.checkpoint import save_tensors
from hwsim.recipe.evaluate import Ensemble, measure, over_chips
from hwsim.recipe.load import Member, Trained
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Evaluate, Recipe, SramSettings
from hwsim.recipe.view import View, views

CPU = torch.device("cpu")
RECIPE = Recipe.model_validate({
    "title": "T", "seed": 5,
    "net": {"name": "vgg5", "width": 0.0625, "steps": 2},
    "device": {"weights": {"bits": 1}},
    "stages": {"vat": {"do": "train"}},
})  # fmt: skip


def split(n: int, seed: int) -> Split:
    g = torch.Generator().manual_seed(seed)
    return Split(torch.randint(0, 256, (n, 1, 8, 8), generator=g, dtype=torch.uint8), torch.arange(n) % 3)


DATA = ImageData("noise", split(40, 1), split(4, 2), split(60, 3), 3, (0.5,), (0.3,), "")


def member(folder: Path, chip: int | None, shift: int | None, seed: int, *, hybrid=True, masked=False) -> Member:
    """A network with weights and statistics of its own, in a file."""
    net = network.fresh(RECIPE, DATA, CPU, str(seed))
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 1, 8, 8, generator=g)
    for _ in range(20):
        net(x, g)
    for name in place(net, {"conv*": Ideal()}) if hybrid else ():
        layer = net.get_submodule(name)
        layer.rram = layer.weight.detach().clone()
        layer.weight.data = 0.2 * torch.randn(layer.weight.shape, generator=g)
        layer.mask = torch.rand(layer.weight.shape, generator=g) < 0.5 if masked else None
    path = folder / f"weights-{chip}-{shift}.safetensors"
    return Member(path, save_tensors(path, net.state_dict(), {}), chip, shift)


def stage(folder: Path, chips=(None,), shifts=(0,), masked=False) -> Trained:
    """A finished stage with networks for these chips and shifts."""
    made = [member(folder, c, s, 10 * i + j, masked=masked)
            for i, c in enumerate(chips) for j, s in enumerate(shifts)]  # fmt: skip
    return Trained(tuple(made), 1, SramSettings(shift_bits=list(shifts)), masked)


def made_up(chips=(None,), shifts=(None,)) -> Trained:
    """The same without files."""
    return Trained(tuple(Member(Path(f"s/{c}{s}"), "", c, s) for c in chips for s in shifts), 1)


# --- names, chips, shifts -----------------------------------------------------------------------------------------


def test_one_network_for_any_chip_is_one_view_of_all_chips():
    (view,) = views("vat", made_up(), 4)
    assert (view.name, view.chips, view.shifts) == ("vat", (0, 1, 2, 3), (None,))
    assert [view.members(c) for c in view.chips] == [[view.of.members[0]]] * 4


@pytest.mark.parametrize(("asked", "measured"), [(5, (0, 1, 2)), (3, (0, 1, 2)), (2, (0, 1)), (1, (0,))])
def test_networks_for_fixed_chips_are_measured_on_these_alone(asked, measured):
    of = made_up(chips=(0, 1, 2), shifts=(0,))
    (view,) = views("recover-chip", of, asked)
    assert view.chips == measured
    for chip in measured:
        assert [(m.chip, m.shift_bit) for m in view.members(chip)] == [(chip, 0)]
    with pytest.raises(RunError, match="holds no network for chip 3, shift 0"):
        view.members(3)


def test_an_ensemble_is_measured_as_a_whole_and_then_each_shift_by_itself():
    of = made_up(shifts=(1, 0, -2))
    whole, *alone = views("recover", of, 2)
    assert (whole.name, whole.shifts) == ("recover", (1, 0, -2))
    assert [m.shift_bit for m in whole.members(1)] == [1, 0, -2]
    assert [v.name for v in alone] == ["recover/shift+1", "recover/shift+0", "recover/shift-2"]
    assert [[m.shift_bit for m in v.members(0)] for v in alone] == [[1], [0], [-2]]
    assert {v.chips for v in (whole, *alone)} == {(0, 1)}


def test_an_ensemble_for_each_chip_has_the_networks_of_that_chip():
    of = made_up(chips=(0, 1), shifts=(-1, 1))
    whole, minus, plus = views("recover", of, 9)
    assert whole.chips == minus.chips == plus.chips == (0, 1)
    assert [(m.chip, m.shift_bit) for m in whole.members(1)] == [(1, -1), (1, 1)]
    assert [(m.chip, m.shift_bit) for m in plus.members(1)] == [(1, 1)]
    assert (minus.name, plus.name) == ("recover/shift-1", "recover/shift+1")


def test_one_shift_is_no_ensemble():
    (view,) = views("recover", made_up(shifts=(3,)), 1)
    assert (view.name, view.shifts) == ("recover", (3,))


# --- the networks -------------------------------------------------------------------------------------------------


def loaded(view: View, scale: float = 1.0):
    return view.networks(RECIPE, DATA, CPU, scale)


def test_each_chip_gets_the_weights_and_the_store_that_belong_to_it(tmp_path):
    of = stage(tmp_path, chips=(0, 1), shifts=(-1, 2))
    view = views("recover", of, 9)[0]
    on = loaded(view, 3.0)
    for chip in (0, 1, 0):
        nets = on(chip)
        assert [net.conv2.store.shift_bit for net in nets] == [-1, 2]
        for net, shift in zip(nets, (-1, 2), strict=True):
            own = network.trained(RECIPE, DATA, CPU, of, of.member(chip, shift), 3.0)
            assert own.state_dict().keys() == net.state_dict().keys()
            assert all(torch.equal(v, net.state_dict()[k]) for k, v in own.state_dict().items())
            rram = net.conv2.store.rram
            assert net.conv2.store == Hybrid(rram, Sram(4), shift)
            assert (rram.bits, rram.sigma) == (1, pytest.approx(3 * 0.08164))
            assert isinstance(net.fc1.store, Ideal)
    weights = {net.conv2.weight.detach().numpy().tobytes() for chip in (0, 1) for net in on(chip)}
    assert len(weights) == 4


def test_a_network_for_any_chip_is_built_once_and_one_for_a_chip_is_not_kept(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(network, "trained", lambda *a: built.append(a[4]) or torch.nn.Identity())
    of = made_up(shifts=(0, 1))
    on = loaded(views("recover", of, 5)[0])
    assert all(on(chip) == on(0) for chip in range(5)) and len(built) == 2
    built.clear()
    on = loaded(views("recover", made_up(chips=(0, 1, 2), shifts=(0,)), 5)[0])
    first = on(0)
    assert on(0) == first and on(1) != first and on(0) != first
    assert [m.chip for m in built] == [0, 1, 0]


def test_a_masked_network_is_put_on_a_masked_store(tmp_path):
    (view,) = views("prune", stage(tmp_path, masked=True), 3)
    (net,) = loaded(view)(0)
    assert isinstance(net.conv2.store.sram, Masked) and not net.conv2.store.sram.revivable
    held = net.conv2.store.sram.read(net.conv2, full_scale=1.0)
    assert bool((held[~net.conv2.mask] == 0).all()) and bool((held != 0).any())
    x = torch.zeros(1, 1, 8, 8)
    assert net.eval()(x, generator(1))[0].shape == (1, 3)


def test_a_network_without_sram_is_put_on_the_card_alone(tmp_path):
    of = Trained((member(tmp_path, None, None, 1, hybrid=False),), 1)
    (view,) = views("vat", of, 3)
    (net,) = loaded(view, 2.0)(0)
    assert isinstance(net.conv1.store, Rram) and net.conv1.store.sigma == pytest.approx(2 * 0.08164)
    assert net.conv1.rram is None


def test_a_damaged_network_is_refused_when_it_is_measured(tmp_path):
    of = stage(tmp_path, chips=(0, 1))
    path = of.members[1].weights
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    on = loaded(views("recover", of, 2)[0])
    on(0)
    with pytest.raises(RunError, match="damaged or changed"):
        on(1)


# --- measured -----------------------------------------------------------------------------------------------------


def measured(of: Trained, chips: int = 9, **changes) -> dict[str, list[dict]]:
    """View → its rows."""
    settings = Evaluate(**{"of": ["recover"], "adapt_batch_size": 16} | changes)
    found = {}
    for view in views("recover", of, chips):
        found[view.name] = list(over_chips(loaded(view, 3.0), view.chips, DATA, settings, 5, lambda n: None))
    return found


def test_fixed_chips_are_measured_with_their_own_weights_on_their_own_chip(tmp_path):
    of = stage(tmp_path, chips=(0, 1, 2))
    rows = measured(of)["recover"]
    assert [r["chip"] for r in rows] == [0, 1, 2]
    for row in rows:
        net = network.trained(RECIPE, DATA, CPU, of, of.member(row["chip"], 0), 3.0)
        draw(net, generator(5, "chips", row["chip"]))
        coding = generator(5, "batches", "test", row["chip"])
        assert row["accuracy"] == measure(net, DATA.test, DATA, coding, batch_size=100).accuracy
    # Another network, or another chip, is another accuracy: the test can tell.
    net = network.trained(RECIPE, DATA, CPU, of, of.member(1, 0), 3.0)
    others = []
    for chip in (0, 2):
        draw(net, generator(5, "chips", chip))
        coding = generator(5, "batches", "test", chip)
        others.append(measure(net, DATA.test, DATA, coding, batch_size=100).accuracy)
    assert others != [rows[0]["accuracy"], rows[2]["accuracy"]]


def test_fewer_chips_and_other_networks_change_no_row(tmp_path):
    of = stage(tmp_path, chips=(0, 1, 2))
    rows = measured(of, adapt=[0, 2])["recover"]
    assert measured(of, 2, adapt=[0, 2])["recover"] == rows[:4]
    alone = Trained((of.members[2],), 1, of.sram)
    assert measured(alone, adapt=[0, 2])["recover"] == rows[4:]


def test_an_ensembles_rows_are_those_of_the_mean_logits_and_each_shifts_its_own(tmp_path):
    of = stage(tmp_path, shifts=(0, 2))
    rows = measured(of, 3)
    assert list(rows) == ["recover", "recover/shift+0", "recover/shift+2"]
    nets = [network.trained(RECIPE, DATA, CPU, of, m, 3.0) for m in of.members]
    for chip in range(3):
        for net in nets:
            draw(net, generator(5, "chips", chip))
        for name, net in zip(rows, (Ensemble(nets), *nets), strict=True):
            coding = generator(5, "batches", "test", chip)
            assert rows[name][chip]["accuracy"] == measure(net, DATA.test, DATA, coding, batch_size=100).accuracy
