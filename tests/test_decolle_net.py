"""The DECOLLE network: backends that agree over training runs, randomness, refused batches, learning, traces."""

import numpy as np
import pytest
import torch

from hwsim.config import DataError
from hwsim.network.decolle import Decolle, build, evaluate, train_epoch
from hwsim.network.decolle_rule import WIDTHS
from hwsim.network.decolle_stepwise import run_published

TINY = {
    "image": (5, 5), "classes": 3, "channels": (4, 6), "kernel": 3, "padding": 1, "pooling": (2, 1), "burn_in": 2,
    "weight_mult": 2.0**-12,
}  # fmt: skip


def net(seed: int = 0, **settings) -> Decolle:
    return build(seeded(seed), **{**TINY, **settings})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(steps: int = 14, batch: int = 4, seed: int = 1, share: float = 0.2) -> torch.Tensor:
    return (torch.rand(steps, batch, 2, 5, 5, generator=seeded(seed)) < share).float()


def quadrants(generator: torch.Generator, batch: int, steps: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Events in one quadrant of 8 x 8 pixels, which is the class, over noise everywhere."""
    labels = torch.randint(0, 4, (batch,), generator=generator)
    share = torch.full((batch, 1, 8, 8), 0.03)
    for b, k in enumerate(labels.tolist()):
        share[b, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 0.25
    return (torch.rand(steps, batch, 2, 8, 8, generator=generator) < share).float(), labels


def trained(backend: str, epochs: int, batches: int = 1, steps: int = 14, **settings):
    own, generator, last = net(**settings), seeded(3), None
    for epoch in range(epochs):
        data = [(noise(steps, seed=s), torch.tensor([0, 1, 2, 1])) for s in range(batches)]
        last = train_epoch(own, data, generator, epoch, backend)
    return own, last


def assert_equal(one, other) -> None:
    (own, a), (twin, b) = one, other
    for name, x in own.state_dict().items():
        assert torch.equal(x, twin.state_dict()[name]), name
    assert torch.equal(a["predictions"], b["predictions"]) and a["loss"] == pytest.approx(b["loss"], rel=1e-9)
    for x, y in zip(a["trace"], b["trace"], strict=True):
        for name, value in vars(x).items():
            assert np.array_equal(value, getattr(y, name)), name


@pytest.mark.parametrize("other", ["float", "fused"])
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_mult": 4e-5}, {"profile": "release"}, {"profile": "paper", "dropout": 0.3, "rfb": 4},
        {"kind": "dense", "channels": (12, 9)}, {"pooling": (3, 2)}, {"wb": 2, "gb": 4, "eb": 2, "rb": 6, "pb": 6},
        {"wb": 1, "sb": 8, "sig": 7, "ub": 9, "pb": 14, "qb": 13, "lr": 0.3}, {"l1": 30.0, "l2": 900.0},
    ],
)  # fmt: skip
def test_backends_give_the_same_codes_over_a_training_run(settings, other):
    assert_equal(trained("codes", 4, 2, **settings), trained(other, 4, 2, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["release", "paper", "fixed"])
def test_backends_give_the_same_codes_over_200_epochs(profile):
    settings = {"profile": profile, "lr_div": 70, "weight_mult": 4e-5, "steps": 8}
    codes = trained("codes", 200, **settings)
    assert_equal(codes, trained("float", 200, **settings))
    assert_equal(codes, trained("fused", 200, **settings))


@pytest.mark.parametrize("profile", ["release", "paper", "fixed"])
def test_the_published_loop_in_float64_gives_the_same_codes_over_a_training_run(profile):
    own, twin = net(profile=profile), net(profile=profile)
    ours, theirs, labels = seeded(3), seeded(3), torch.tensor([0, 1, 2, 1])
    for epoch in range(6):
        found = own.run(noise(seed=epoch), labels, learn=True, generator=ours)
        predictions, votes, layers = run_published(
            twin, noise(seed=epoch), labels, generator=theirs, dtype=torch.float64
        )
        assert torch.equal(found.by_step_LTB, votes) and torch.equal(found.predictions_LB, predictions)
    for a, b in zip(own.layers, twin.layers, strict=True):
        assert a.weight.count_nonzero() > 50
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_the_generator_alone_decides_the_run():
    def end(seed: int) -> torch.Tensor:
        own, generator = net(), seeded(seed)
        own.run(noise(), torch.tensor([0, 1, 2, 1]), learn=True, generator=generator)
        return own.layers[0].weight

    before = torch.random.get_rng_state()
    assert torch.equal(end(5), end(5)) and not torch.equal(end(5), end(6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(net(1).layers[1].weight, net(1).layers[1].weight)
    assert not torch.equal(net(1).layers[1].weight, net(2).layers[1].weight)


@pytest.mark.parametrize("backend", ["codes", "float", "fused"])
def test_no_state_is_left_between_runs(backend):
    own, x = net(), noise()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    first = own.run(x, backend=backend)
    own.run(noise(seed=8), backend=backend)
    again = own.run(x, backend=backend)
    assert torch.equal(first.by_step_LTB, again.by_step_LTB)
    assert np.array_equal(first.trace[1].spikes, again.trace[1].spikes) and first.trace[1].spikes.sum() > 0
    for name, x_ in own.state_dict().items():
        assert torch.equal(x_, before[name])


def test_a_saved_network_goes_on_as_the_one_that_was_saved():
    own, _ = trained("auto", 2)
    twin = Decolle(own.rule)
    twin.load_state_dict(own.state_dict())
    for each in (own, twin):
        each.run(noise(), torch.tensor([0, 1, 2, 1]), learn=True, generator=seeded(9))
    assert torch.equal(own.layers[1].weight, twin.layers[1].weight)


def test_only_the_fixed_profile_tests_without_dropout():
    x = noise(batch=40)
    for profile, drops in (("fixed", False), ("release", True), ("paper", True)):
        own = net(profile=profile, dropout=0.8)
        own.layers[1].weight.copy_(net().layers[1].weight)
        a, b = (own.run(x, generator=seeded(s)).by_step_LTB for s in (1, 2))
        assert torch.equal(a, b) != drops
        assert own.rule.jitters_in_tests == drops
        if drops:
            with pytest.raises(ValueError, match="generator"):
                own.run(x)
            # With all scores dropped the class is 0 (trap B20).
            assert (a == 0).float().mean() > 0.45
        else:
            own.run(x)


def test_nothing_learns_or_votes_in_the_burn_in():
    own = net(burn_in=9)
    before = own.layers[0].weight.clone()
    out = own.run(noise(11), torch.tensor([0, 1, 2, 1]), learn=True, generator=seeded(1))
    assert out.by_step_LTB.shape == (2, 1, 4)
    trace = out.trace[0]
    assert trace.learned.tolist() == [0] * 10 + [1]
    assert (trace.steps[:10] == 0).all() and 0 < trace.updates[10] <= trace.steps[10]
    moved = (own.layers[0].weight != before).sum() + (own.layers[0].bias != 0).sum()
    assert moved > 0
    with pytest.raises(DataError, match="burn-in"):
        own.run(noise(10))


def test_counts_of_the_trace_are_those_of_the_published_values():
    own, twin, labels = net(), net(), torch.tensor([0, 1, 2, 1])
    trace = own.run(noise(4), labels, learn=True, generator=seeded(3)).trace
    layers = run_published(twin, noise(4), labels, generator=seeded(3), dtype=torch.float64)[2]
    start = net()
    for mine, layer, first in zip(trace, layers, start.layers, strict=True):
        assert mine.spikes[3] == layer.S.sum() and mine.p[3] == layer.P.count_nonzero()
        assert mine.q[3] == layer.Q.count_nonzero() and mine.errors[3] == layer.e3.count_nonzero()
        assert mine.features[3] == layer.e2.count_nonzero() and mine.scores[3] == layer.e1.count_nonzero()
        assert mine.gradients[3] == layer.gW.count_nonzero() + layer.gb.count_nonzero()
        assert mine.steps[3] == layer.stepW.count_nonzero() + layer.stepb.count_nonzero() > 0
        # One step learns, so the changed weights are those that differ from the first ones, unless they were clipped.
        limit = 1 - 2.0**-9
        changed = [
            (a.clamp(-limit, limit) != b.clamp(-limit, limit)).sum().item()
            for a, b in ((layer.layer.weight, first.weight), (layer.layer.bias, first.bias))
        ]
        assert mine.updates[3] == sum(changed)
    assert trace[0].inputs[:].tolist() == noise(4).sum((1, 2, 3, 4)).tolist()
    assert trace[1].inputs.tolist() == trace[0].pooled.tolist()


def test_shares_divide_counts_by_what_could_have_been():
    _, out = trained("auto", 1, batches=3)
    trace, shares = out["trace"][0], out["trace"][0].shares()
    assert trace.samples == 12 and trace.learned.max() == 3
    assert shares["input"] == pytest.approx(0.2, abs=0.02)
    assert shares["spike"] == pytest.approx(trace.spikes.sum() / (12 * 14 * 4 * 25))
    assert shares["p_upd"] == pytest.approx(trace.updates.sum() / (3 * 11 * trace.weights))
    assert shares["error"] == pytest.approx(trace.errors.sum() / (12 * 11 * 4 * 25))
    assert all(0 < v <= 1 for v in shares.values())
    assert np.isnan(evaluate(net(), [(noise(), torch.zeros(4))])["trace"][0].shares()["p_upd"])


def test_accuracy_is_counted_over_batches_of_different_sizes():
    own = net()
    data = [(noise(batch=b, seed=b), torch.zeros(b, dtype=torch.int64)) for b in (4, 1)]
    out = evaluate(own, data)
    wanted = torch.cat([own.run(x).predictions_LB for x, _ in data], 1)
    assert torch.equal(out["predictions"], wanted) and out["samples"] == 5
    assert out["accuracy"] == pytest.approx((wanted == 0).double().mean(1).tolist())
    with pytest.raises(DataError, match="no batches"):
        evaluate(own, [])


def test_inputs_may_be_counts_or_signs_of_any_integer_type():
    own = net()
    x = torch.randint(-2, 4, (6, 3, 2, 5, 5), generator=seeded(1))
    runs = [own.run(x.to(kind), backend=b).by_step_LTB for kind in (torch.int16, torch.int8, torch.float32)
            for b in ("codes", "float", "fused")]  # fmt: skip
    assert all(torch.equal(r, runs[0]) for r in runs)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(9, 2, 2, 5, 4), ["shape (9, 2, 2, 5, 4)", "[T, B, 2, 5, 5]"]),
        (torch.zeros(3, 2, 2, 5, 5), ["3 steps", "burn-in"]),
        (torch.full((9, 2, 2, 5, 5), 0.5), ["whole numbers"]),
        (torch.full((9, 2, 2, 5, 5), 300.0), ["300", "-127 to 127"]),
    ],
)
def test_batches_that_do_not_fit_are_explained(x, words):
    with pytest.raises(DataError) as e:
        net().run(x)
    for word in words:
        assert word in str(e.value)


def test_labels_outside_the_classes_are_explained():
    with pytest.raises(DataError, match="labels from 0 to 3; the network has classes 0 to 2"):
        net().run(noise(), torch.tensor([0, 1, 2, 3]))


def test_a_backend_that_cannot_run_says_why():
    own = net(eb=None)
    assert own.choose() == ("float", "a width is none")
    with pytest.raises(ValueError, match="a width is none"):
        own.run(noise(), backend="fused")
    with pytest.raises(ValueError, match="take float"):
        own.run(noise(), backend="codes")
    with pytest.raises(ValueError, match="there is auto"):
        own.run(noise(), backend="gpu")


LEARNING = {
    "image": (8, 8), "classes": 4, "channels": (8, 8, 8), "kernel": 3, "padding": 1, "pooling": (2, 1, 2), "burn_in": 8,
    "weight_mult": 2e-4, "lc_ampl": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"profile": "release"}, {"kind": "dense", "channels": (32, 32)},
        {**dict.fromkeys(WIDTHS), "lr_sgd": 1e-7, "dropout": 0.5},
    ],
)  # fmt: skip
def test_a_small_network_learns_well_above_chance(settings):
    own = build(seeded(0), **{**LEARNING, **settings})
    generator, data = seeded(1), seeded(2)
    for epoch in range(5):
        train_epoch(own, [quadrants(data, 16, 60) for _ in range(4)], generator, epoch)
    accuracy = evaluate(own, [quadrants(seeded(7), 60, 60)], seeded(8))["accuracy"]
    # Four classes.
    assert accuracy[-1] > 0.8


def test_any_number_of_threads_gives_the_same_codes():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = trained("fused", 2)
        torch.set_num_threads(2)
        assert_equal(one, trained("fused", 2))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["codes", "float"])
def test_cuda_gives_the_same_codes_as_the_cpu(backend):
    own, twin = net(), net().to("cuda")
    labels = torch.tensor([0, 1, 2, 1])
    a = own.run(noise(), labels, learn=True, generator=seeded(3), backend=backend)
    b = twin.run(noise(), labels.cuda(), learn=True, generator=seeded(3), backend=backend)
    assert torch.equal(a.by_step_LTB, b.by_step_LTB.cpu())
    for x, y in zip(own.layers, twin.layers, strict=True):
        assert torch.equal(x.weight, y.weight.cpu())
