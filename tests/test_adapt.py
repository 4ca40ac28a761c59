"""Adaptation of BNTT to a chip: the statistics are those of T torch batch norms, and nothing else changes."""

import pytest
import torch
from torch import nn

from hwsim.data.image import ImageData, Split, batches, normalize
from hwsim.device.hybrid import Hybrid, Sram
from hwsim.device.store import Rram, draw, place
from hwsim.network.layer import BNTT
from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.adapt import adapted
from hwsim.recipe.evaluate import measure, over_chips
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Evaluate, Train
from hwsim.recipe.train import train

CLASSES = 4
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def images(n: int, seed: int) -> Split:
    """Four noisy patterns of 8 x 8 pixels; image i belongs to class i mod 4."""
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 180
    noise = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 75
    labels = torch.arange(n) % CLASSES
    return Split((patterns[labels] + noise).to(torch.uint8), labels)


DATA = ImageData("patterns", images(100, 1), images(32, 2), images(60, 3), CLASSES, (0.5,), (0.25,), "")
STORES = {
    "rram": Rram(bits=2, sigma=0.3),
    "hybrid": Hybrid(Rram(bits=2, sigma=0.3), Sram(bits=4), shift_bit=-1),
}


def network(store=STORES["rram"], coding: str = "poisson", plan=(4, "A", 6, "A")) -> VggBntt:
    net = VggBntt(
        plan, 12, channels=1, size=(8, 8), classes=CLASSES, steps=3, coding=coding,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for name in place(net, {"conv*": store}):
        if isinstance(store, Hybrid):
            layer = net.get_submodule(name)
            layer.rram = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for layer in bntt(net):
            layer.weight.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(1))
    return net


def bntt(net) -> list[BNTT]:
    return [m for m in net.modules() if isinstance(m, BNTT)]


def settings(chip: int = 3, **more) -> dict:
    order, coding = generator(1, "order", chip), generator(1, "coding", chip)
    return {"batch_size": 16, "order": order, "coding": coding} | more


def snapshot(net) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def averaged(net: VggBntt, number: int, chip: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, variance) [T, C] of each BNTT: the mean over batches of each batch's mean and unbiased variance.

    Of the network as published codes run it, step by step, with the weights that this chip holds.
    """
    slow = StepwiseVgg(net).train()
    for copy, (name, _, _) in zip(slow.convs, net.blocks, strict=True):
        layer = net.get_submodule(name)
        copy.weight = nn.Parameter(layer.store.read(layer).detach().clone())
    arrived: dict[tuple[int, int], list[torch.Tensor]] = {}
    for i, norms in enumerate([*slow.norms, slow.norm_fc]):
        for t, norm in enumerate(norms):
            norm.register_forward_pre_hook(
                lambda _, given, at=(i, t): arrived.setdefault(at, []).append(given[0].transpose(0, 1).flatten(1))
            )
    how = settings(chip)
    with torch.no_grad():
        for k, (x, _) in enumerate(batches(DATA.train, how["batch_size"], how["order"], True)):
            if k < number:
                slow(net.encode(normalize(x, DATA.mean, DATA.std), how["coding"]))
    out = []
    for i in range(len(slow.norms) + 1):
        rows = [arrived[i, t] for t in range(net.steps)]
        assert all(len(r) == number for r in rows)
        mean = torch.stack([sum(x.mean(1) for x in r) / number for r in rows])
        var = torch.stack([sum(x.var(1, correction=1) for x in r) / number for r in rows])
        out.append((mean, var))
    return out


# ------------------------------------------------------------------------------------------------- what is estimated


@pytest.mark.parametrize("number", [1, 2, 6])
@pytest.mark.parametrize("coding", ["poisson", "direct"])
@pytest.mark.parametrize("store", STORES)
def test_statistics_are_the_mean_over_batches_of_mean_and_unbiased_variance(backend, number, coding, store):
    net = network(STORES[store], coding)
    draw(net, generator(1, "chips", 3))
    expected = averaged(net, number)
    with adapted(net, DATA, number, **settings()):
        for layer, (mean, var) in zip(bntt(net), expected, strict=True):
            torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.running_var, var, rtol=1e-4, atol=1e-5)


def test_each_chip_has_statistics_of_its_own():
    net, found = network(), []
    for chip in (0, 1):
        draw(net, generator(1, "chips", chip))
        with adapted(net, DATA, 2, **settings()):  # the same images
            found.append([layer.running_mean.clone() for layer in bntt(net)])
    # The first layer's currents are the images times this chip's weights.
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(*found, strict=True))


def test_what_was_there_before_does_not_count():
    found = []
    for value in (0.0, 50.0):
        net = network()
        draw(net, generator(1, "chips", 3))
        for layer in bntt(net):
            layer.running_mean.fill_(value)
            layer.running_var.fill_(value + 1)
            layer.num_batches_tracked.fill_(7)
        with adapted(net, DATA, 3, **settings()):
            found.append([layer.running_mean.clone() for layer in bntt(net)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def test_labels_are_not_used():
    net = network()
    draw(net, generator(1, "chips", 3))
    found = []
    for labels in (DATA.train.labels_N, torch.zeros_like(DATA.train.labels_N)):
        data = ImageData("x", Split(DATA.train.images_NCHW, labels), *[None] * 2, CLASSES, DATA.mean, DATA.std, "")
        with adapted(net, data, 2, **settings()):
            found.append(snapshot(net))
    assert same(*found)


def test_nothing_is_kept_for_a_backward_pass():
    net, kept = network(), []
    draw(net, generator(1, "chips", 3))
    net.conv2.register_forward_hook(lambda layer, given, result: kept.append((layer.training, result.requires_grad)))
    with adapted(net, DATA, 2, **settings()):
        pass
    assert kept == [(True, False)] * 2


def test_the_same_generators_give_the_same_statistics_and_others_do_not(backend):
    net, found = network(), []
    draw(net, generator(1, "chips", 3))
    for chip in (3, 3, 4):
        with adapted(net, DATA, 2, **settings(chip)):
            found.append(snapshot(net))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


# ----------------------------------------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("store", STORES)
def test_only_statistics_change_and_they_come_back(store):
    net = network(STORES[store])
    draw(net, generator(1, "chips", 3))
    before, z = snapshot(net), net.conv1.z.clone()
    with adapted(net, DATA, 3, **settings()):
        within = snapshot(net)
        changed = {k for k in before if not torch.equal(before[k], within[k])}
        assert changed == {k for k in before if k.rpartition(".")[2] in STATISTICS}
        assert torch.equal(net.conv1.z, z)
        assert all(p.grad is None for p in net.parameters())
        assert not net.training and torch.is_grad_enabled()
    assert same(snapshot(net), before)
    assert torch.equal(net.conv1.z, z)
    assert {layer.momentum for layer in bntt(net)} == {BNTT.momentum} == {0.1}


def test_a_network_goes_on_learning_as_if_it_had_never_been_adapted():
    nets = [network(), network()]
    with adapted(nets[0], DATA, 2, **settings()):
        pass
    for net in nets:
        net.train()
        (loss,) = net.losses(normalize(DATA.train.images_NCHW, DATA.mean, DATA.std), DATA.train.labels_N, generator(2))
        loss.backward()
    assert same(snapshot(nets[0]), snapshot(nets[1]))
    gradients = [[p.grad for p in net.parameters()] for net in nets]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_no_batch_changes_nothing_and_draws_no_spikes():
    net, how = network(), settings()
    draw(net, generator(1, "chips", 3))
    before, coding = snapshot(net), how["coding"].get_state()
    with adapted(net, DATA, 0, **how):
        assert same(snapshot(net), before)
        assert not net.training
    assert same(snapshot(net), before)
    assert torch.equal(how["coding"].get_state(), coding)


def test_after_an_exception_in_the_block_everything_is_as_before():
    net = network()
    before = snapshot(net)
    with pytest.raises(ZeroDivisionError), adapted(net, DATA, 2, **settings()):
        assert not same(snapshot(net), before)
        raise ZeroDivisionError
    assert same(snapshot(net), before)
    assert {layer.momentum for layer in bntt(net)} == {0.1}
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("at", [1, 2, 5])
def test_after_an_exception_while_it_is_adapted_everything_is_as_before(at):
    net = network()
    before, calls = snapshot(net), []

    def breaks(*_):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    hook = net.bntt2.register_forward_hook(breaks)
    with pytest.raises(KeyboardInterrupt), adapted(net, DATA, 5, **settings()):
        pytest.fail("the block must not run")
    hook.remove()
    assert len(calls) == at
    assert same(snapshot(net), before)
    assert {layer.momentum for layer in bntt(net)} == {0.1}
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------ what it is for


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> dict[str, torch.Tensor]:
    """State of a network that knows the patterns."""
    torch.set_num_threads(1)
    return train(
        network(Rram(bits=2, sigma=0.1), "direct"), DATA, Train(epochs=12, batch_size=16), name="vat", key="k", seed=1,
        epochs_before=0, augmentation="none", resume=tmp_path_factory.mktemp("t") / "r", progress=Progress(quiet=True),
    )[0]  # fmt: skip


def test_a_network_whose_statistics_are_wrong_is_right_again(learned):
    net = network(Rram(bits=2, sigma=0.1), "direct")
    net.load_state_dict(learned)
    draw(net, generator(1, "chips", 0))

    def accuracy() -> float:
        return measure(net, DATA.test, DATA, generator(4), batch_size=32).accuracy

    right = accuracy()
    with torch.no_grad():
        for layer in bntt(net):
            layer.running_mean += 3
            layer.running_var *= 20
    wrong = accuracy()
    with adapted(net, DATA, 4, **settings()):
        again = accuracy()
    assert right > 0.9 and again > 0.9 and wrong < 0.5
    assert accuracy() == wrong


def test_a_network_on_chips_that_vary_much_more_than_in_training_gains(learned):
    net = network(Rram(bits=2, sigma=0.8), "direct")
    net.load_state_dict(learned)
    stage = Evaluate(of=["vat"], adapt=[0, 5], adapt_batch_size=16)
    rows = list(over_chips(lambda chip: [net], range(8), DATA, stage, 1, lambda n: None))
    plain, fixed = ([r["accuracy"] for r in rows if r["adapt_batches"] == a] for a in (0, 5))
    gains = [b - a for a, b in zip(plain, fixed, strict=True)]
    assert sum(gains) / 8 > 0.1
