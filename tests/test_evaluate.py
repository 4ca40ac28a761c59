"""Accuracy over chips: the interval, which chips are drawn when, and what is averaged."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from torch import nn

from hwsim.data.image import ImageData, Split, normalize
from hwsim.device.store import Ideal, Rram, draw, place
from hwsim.network.layer import Linear
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.evaluate import Ensemble, interval, measure, over_chips
from hwsim.recipe.randomness import generator as derived
from hwsim.recipe.settings import Evaluate

CLASSES = 3


def split(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, CLASSES, (n,), generator=generator))


DATA = ImageData("noise", split(24, 1), split(4, 2), split(22, 3), CLASSES, (0.5,), (0.3,), "")


class Classifier(nn.Module):
    """A linear classifier that writes down the weights, images and generators that it is asked with."""

    def __init__(self, store=None, outputs: int = CLASSES):
        super().__init__()
        self.fc = Linear(16, outputs)
        with torch.no_grad():
            self.fc.weight.uniform_(-1, 1, generator=torch.Generator().manual_seed(7))
        place(self, {"fc": store or Rram(bits=2, sigma=0.3)})
        self.used, self.images, self.codings, self.modes, self.gradients = [], [], [], [], []

    def forward(self, x, coding=None):
        self.used.append(self.fc.store.read(self.fc).detach().clone())
        self.images.append(len(x))
        self.codings.append(coding.get_state())
        self.modes.append(self.training)
        self.gradients.append(torch.is_grad_enabled())
        return self.fc(x.flatten(1)[None])[0], {}


def evaluated(net: nn.Module, seed: int = 5, **changes) -> list[dict]:
    stage = Evaluate(**{"of": ["net"], "chips": 4, "batch_size": 8} | changes)
    return list(over_chips(lambda chip: [net], range(stage.chips), DATA, stage, seed, lambda n: None))


def spiking(seed: int, store=None) -> VggBntt:
    """A small spiking network with statistics of the training images."""
    net = VggBntt(
        (3, "A", 4, "A"), 6, channels=1, size=(4, 4), classes=CLASSES, steps=3,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    for _ in range(20):
        net(normalize(DATA.train.images_NCHW, DATA.mean, DATA.std), torch.Generator().manual_seed(1))
    place(net, {"conv*": store or Rram(bits=1, sigma=0.3)})
    return net


def names(tensors: list[torch.Tensor]) -> list[bytes]:
    return [t.numpy().tobytes() for t in tensors]


# ------------------------------------------------------------------------------------------------------ the interval


@given(st.lists(st.integers(0, 360).map(lambda right: right / 360), min_size=2, max_size=40))
def test_the_interval_is_that_of_a_t_test(values):
    found = interval(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95) if len(set(values)) > 1 else (values[0], values[0])
    assert (found.n, found.minimum) == (len(values), min(values))
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)


def test_the_interval_of_two_values_by_hand():
    # t_0.975 with one degree of freedom is tan(0.475 pi) = 12.7062; std / sqrt(2) of (0.4, 0.6) is 0.1.
    found = interval([0.4, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.std == pytest.approx(math.sqrt(0.02))
    assert (found.low, found.high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)


def test_one_value_has_no_spread():
    found = interval([0.7])
    assert (found.n, found.mean, found.minimum) == (1, 0.7, 0.7)
    assert all(math.isnan(v) for v in (found.std, found.low, found.high))


@pytest.mark.parametrize("chips", [2, 5, 25])
def test_the_interval_covers_the_true_mean_in_95_of_100_cases(chips):
    trials = 4000
    drawn = 0.8 + 0.03 * torch.randn(trials, chips, generator=torch.Generator().manual_seed(chips)).double()
    covered = 0
    for values in drawn.tolist():
        found = interval(values)
        covered += found.low <= 0.8 <= found.high
    # Four standard errors of a binomial share of 0.95.
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


# ---------------------------------------------------------------------------------------------------------- one pass


def test_accuracy_and_loss_are_means_over_images():
    net = Classifier(Ideal())
    found = measure(net, DATA.test, DATA, derived(1, "x"), batch_size=8)
    logits = F.linear(normalize(DATA.test.images_NCHW, DATA.mean, DATA.std).flatten(1), net.fc.weight)
    right = (logits.argmax(1) == DATA.test.labels_N).sum().item()
    assert found.images == 22
    assert found.accuracy == right / 22
    assert found.loss == pytest.approx(F.cross_entropy(logits, DATA.test.labels_N).item(), rel=1e-6)
    assert net.images == [8, 8, 6]


def test_drop_last_leaves_out_the_incomplete_batch_and_averages_over_batches():
    net = Classifier(Ideal())
    found = measure(net, DATA.test, DATA, derived(1, "x"), batch_size=8, drop_last=True)
    logits = F.linear(normalize(DATA.test.images_NCHW, DATA.mean, DATA.std).flatten(1), net.fc.weight)
    right = (logits.argmax(1) == DATA.test.labels_N).double()
    assert found.images == 16
    assert found.accuracy == pytest.approx((right[:8].mean() + right[8:16].mean()).item() / 2, abs=1e-15)
    assert net.images == [8, 8]


def test_a_pass_is_in_evaluation_mode_without_gradients():
    net = Classifier().train()
    draw(net, derived(1, "x"))
    before = net.fc.weight.detach().clone()
    measure(net, DATA.test, DATA, derived(1, "x"), batch_size=8)
    assert net.modes == [False] * 3
    assert net.gradients == [False] * 3
    assert torch.equal(net.fc.weight, before)


# ------------------------------------------------------------------------------------------------------------- chips


def test_a_chip_is_held_for_the_whole_test_set_and_the_next_is_another():
    net = Classifier()
    rows = evaluated(net)
    used = names(net.used)
    assert len(used) == 12
    assert [len(set(used[3 * i : 3 * i + 3])) for i in range(4)] == [1] * 4
    assert len(set(used)) == 4
    assert [(r["chip"], r["images"]) for r in rows] == [(i, 22) for i in range(4)]
    assert net.fc.z is None


def test_each_row_is_the_accuracy_of_its_own_chip():
    net = Classifier()
    rows = evaluated(net)
    x = normalize(DATA.test.images_NCHW, DATA.mean, DATA.std).flatten(1)
    for row, weight in zip(rows, net.used[::3], strict=True):
        assert row["accuracy"] == ((x @ weight.T).argmax(1) == DATA.test.labels_N).sum().item() / 22
    assert len({r["accuracy"] for r in rows}) > 1


def test_the_same_seed_gives_the_same_chips_and_another_seed_others():
    nets = [Classifier() for _ in range(3)]
    rows = [evaluated(net, seed) for net, seed in zip(nets, (5, 5, 6), strict=True)]
    assert rows[0] == rows[1]
    assert names(nets[0].used) == names(nets[1].used)
    assert not set(names(nets[0].used)) & set(names(nets[2].used))


def test_fewer_chips_are_the_first_of_more_and_larger_batches_change_nothing():
    many = evaluated(Classifier(), chips=4)
    assert evaluated(Classifier(), chips=2) == many[:2]
    assert evaluated(Classifier(), chips=4, batch_size=22) == many


def test_a_chip_is_the_same_at_every_scale():
    # The normals are the network's, the sigma is the store's: differences between scales are measured chip by chip.
    weak, strong = Classifier(Rram(bits=2, sigma=0.1)), Classifier(Rram(bits=2, sigma=0.2))
    evaluated(weak, chips=2)
    evaluated(strong, chips=2)
    level = Rram(bits=2).held(weak.fc.weight.detach())
    for a, b in zip(weak.used, strong.used, strict=True):
        torch.testing.assert_close(2 * (a / level).log(), (b / level).log(), rtol=1e-4, atol=1e-5)


def test_redrawing_for_every_batch_gives_every_batch_its_own_chip():
    net = Classifier()
    evaluated(net, redraw="batch")
    assert len(set(names(net.used))) == 12
    again = Classifier()
    evaluated(again, redraw="batch")
    assert names(again.used) == names(net.used)


def test_a_scale_of_zero_is_the_programmed_network_on_every_chip():
    net = Classifier(Rram(bits=2, sigma=0.0))
    rows = evaluated(net)
    held = net.fc.store.held(net.fc.weight.detach())
    assert all(torch.equal(used, held) for used in net.used)
    assert len({r["accuracy"] for r in rows}) == 1


def test_every_chip_has_spike_coding_of_its_own():
    net = Classifier()
    evaluated(net)
    assert len(set(names(net.codings[::3]))) == 4
    again = Classifier(Rram(bits=2, sigma=0.0))
    evaluated(again)
    assert names(again.codings) == names(net.codings)


def test_drop_last_reaches_every_chip():
    net = Classifier()
    rows = evaluated(net, drop_last=True, chips=2)
    assert [r["images"] for r in rows] == [16, 16]
    assert net.images == [8, 8] * 2


def test_finished_chips_are_reported_with_their_images():
    done = []
    net = Classifier()
    list(over_chips(lambda chip: [net], range(3), DATA, Evaluate(of=["net"], batch_size=8), 5, done.append))
    assert done == [22, 22, 22]


def test_the_chips_asked_for_are_measured_and_none_depends_on_the_others():
    net = Classifier()
    rows = evaluated(net, chips=6)
    stage = Evaluate(of=["net"], batch_size=8)
    some = list(over_chips(lambda chip: [net], (5, 2), DATA, stage, 5, lambda n: None))
    assert some == [rows[5], rows[2]]


def test_each_chip_may_have_a_network_of_its_own():
    nets = {chip: Classifier(outputs=CLASSES) for chip in (1, 3)}
    with torch.no_grad():
        nets[3].fc.weight.neg_()
    stage = Evaluate(of=["net"], batch_size=8)
    rows = list(over_chips(lambda chip: [nets[chip]], (1, 3), DATA, stage, 5, lambda n: None))
    assert [len(net.used) for net in nets.values()] == [3, 3]
    for chip, row in zip((1, 3), rows, strict=True):
        draw(nets[chip], derived(5, "chips", chip))
        assert all(torch.equal(used, nets[chip].fc.store.read(nets[chip].fc)) for used in nets[chip].used)
        alone = over_chips(lambda _, chip=chip: [nets[chip]], (chip,), DATA, stage, 5, lambda n: None)
        assert list(alone) == [row]


def test_a_spiking_network_gives_the_same_rows_twice(backend):
    def rows() -> list[dict]:
        net = spiking(0)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        found = evaluated(net)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        return found

    assert rows() == rows()


# --------------------------------------------------------------------------------------------------------- adaptation


def adapting(nets: list, chips=range(4), **changes) -> list[dict]:
    stage = Evaluate(**{"of": ["net"], "batch_size": 8, "adapt_batch_size": 8} | changes)
    return list(over_chips(lambda chip: nets, chips, DATA, stage, 5, lambda n: None))


def test_without_and_with_adaptation_stand_side_by_side():
    net = spiking(0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    both, plain, adapted = (adapting([net], adapt=a) for a in ([0, 2], [0], [2]))
    assert [(r["chip"], r["adapt_batches"]) for r in both] == [(c, a) for c in range(4) for a in (0, 2)]
    assert [r for r in both if r["adapt_batches"] == 0] == plain == evaluated(net)
    assert [r for r in both if r["adapt_batches"] == 2] == adapted
    assert [r["accuracy"] for r in plain] != [r["accuracy"] for r in adapted]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.conv1.z is None


def test_an_adapted_chip_does_not_depend_on_the_others():
    net = spiking(0)
    rows = adapting([net], range(5), adapt=[1, 3])
    for chip in (4, 1):
        assert adapting([net], [chip], adapt=[1, 3]) == [r for r in rows if r["chip"] == chip]


def test_every_chip_is_adapted_by_images_in_an_order_and_coding_of_its_own():
    class Listening(VggBntt):
        """Writes down the images that it is adapted by, and the state of the generator that codes them."""

        def encode(self, x_BCHW, generator=None):
            if self.training:
                self.seen.append((x_BCHW.numpy().tobytes(), generator.get_state().numpy().tobytes()))
            return super().encode(x_BCHW, generator)

    net = spiking(0)
    net.__class__, net.seen = Listening, []
    adapting([net], range(2), adapt=[0, 2])
    assert [len(set(each)) for each in zip(*net.seen, strict=True)] == [4, 4]
    first = net.seen[:2]
    net.seen = []
    adapting([net], range(1), adapt=[1, 2])
    assert net.seen == [first[0], *first]  # fewer batches are the first of more


# --------------------------------------------------------------------------------------------------------- ensembles


class Member(VggBntt):
    """A spiking network that writes down the spikes and the chip that it meets, and its logits."""

    def run(self, x_TBCHW, account=None):
        out = super().run(x_TBCHW, account)
        self.__dict__.setdefault("met", []).append((self.training, x_TBCHW.clone(), self.conv1.z.clone(), out[0]))
        return out


def members(*stores) -> list[VggBntt]:
    nets = [spiking(seed, store) for seed, store in enumerate(stores)]
    for net in nets:
        net.__class__ = Member
    return nets


def test_the_logits_of_an_ensemble_are_the_mean_of_its_networks(backend):
    nets = [spiking(seed) for seed in range(3)]
    for net in nets:
        draw(net, derived(1, "chips", 0))
    x = normalize(DATA.test.images_NCHW, DATA.mean, DATA.std)
    with torch.no_grad():
        logits, _ = Ensemble(nets).eval()(x, derived(1, "coding"))
        spikes = nets[0].encode(x, derived(1, "coding"))
        each = [net.eval().run(spikes)[0] for net in nets]
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(logits, sum(each) / 3)
    assert not any(net.training for net in Ensemble(nets).eval().nets)


def test_networks_of_an_ensemble_meet_the_same_chip_and_the_same_spikes():
    weak, strong = Rram(bits=1, sigma=0.1), Rram(bits=1, sigma=0.4)
    nets = members(weak, strong, weak)
    rows = adapting(nets, adapt=[0, 1], chips=range(2))
    met = [net.met for net in nets]
    assert len(met[0]) == 2 * (3 + 1 + 3)  # two chips: the test set, one batch to adapt by, the test set
    for one, other, third in zip(*met, strict=True):
        assert one[0] == other[0] == third[0]
        assert torch.equal(one[1], other[1]) and torch.equal(one[1], third[1])
        assert torch.equal(one[2], other[2]) and torch.equal(one[2], third[2])
    chips = [z.numpy().tobytes() for _, _, z, _ in met[0]]
    assert len(set(chips[:7])) == len(set(chips[7:])) == 1 and chips[0] != chips[7]
    # Each row is recomputed from the logits that the networks gave.
    for start, row in zip((0, 4, 7, 11), rows, strict=True):
        mean = sum(torch.cat([m[3] for m in each[start : start + 3]]) for each in met) / 3
        assert row["accuracy"] == (mean.argmax(1) == DATA.test.labels_N).sum().item() / 22
    assert all(net.conv1.z is None for net in nets)


def test_an_ensemble_of_equal_networks_is_the_network():
    alone, two = adapting([spiking(0)], adapt=[0, 2]), adapting([spiking(0), spiking(0)], adapt=[0, 2])
    assert alone == two


def test_redrawing_for_every_batch_gives_an_ensemble_one_chip_a_batch():
    nets = members(Rram(bits=1, sigma=0.3), Rram(bits=1, sigma=0.3))
    adapting(nets, redraw="batch", chips=range(1))
    chips = [[z.numpy().tobytes() for _, _, z, _ in net.met] for net in nets]
    assert chips[0] == chips[1] and len(set(chips[0])) == 3
