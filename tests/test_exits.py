"""Early exit: when each rule stops, on made-up scales and leads; what it costs, against counts and shortened runs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwsim.data.image import ImageData, Split, load_images
from hwsim.device.pricelist import Prices
from hwsim.network.encode import encode
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe.account import count
from hwsim.recipe.coding_settings import Exit
from hwsim.recipe.exits import Seen, changes, exit_rows, exit_step, leaving, scales_of, seen, step_energy
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows

PRICES = Prices.load("horowitz_45nm")
SCALES = np.array([[0.05, 0.9, 0.5, 0.05, 0.2, 0.01], [0.01, 0.3, 0.6, 0.02, 0.1, 0.02]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    "threshold, first, suffix",
    [(0.1, 1, 5), (0.04, 5, 5), (0.02, 6, 6), (0.0200001, 5, 5), (0.25, 1, 3), (0.7, 1, 2), (1.0, 1, 1), (0.0, 6, 6)],
)
def test_all_layers_scales_must_be_below_and_at_least_one_step_is_run(threshold, first, suffix):
    assert exit_step(SCALES, threshold, suffix=False) == first
    assert exit_step(SCALES, threshold, suffix=True) == suffix


def test_the_first_step_rule_stops_before_the_first_small_step_and_fires_on_a_small_middle_one():
    assert exit_step(SCALES[:, 1:], 0.1, suffix=False) == 2
    assert exit_step(SCALES[:, 1:], 0.1, suffix=True) == 4


@given(arrays(float, (3, 7), elements=st.floats(0, 2)), st.floats(0, 2.5))
def test_the_suffix_rule_never_stops_before_the_first_step_rule(scales, threshold):
    first, suffix = (exit_step(scales, threshold, suffix=s) for s in (False, True))
    assert 1 <= first <= suffix <= 7
    assert all(scales[:, t].max() < threshold for t in range(suffix, 7))
    if suffix > 1:
        assert scales[:, suffix - 1].max() >= threshold


@given(arrays(float, (2, 6), elements=st.floats(0.01, 2)))
def test_every_exit_step_of_a_network_has_a_threshold_of_its_own(scales):
    thresholds = changes(scales)
    assert 0.1 in thresholds and thresholds == sorted(thresholds)
    for other in np.linspace(0.0, 2.2, 45):
        for suffix in (False, True):
            step = exit_step(scales, other, suffix=suffix)
            assert step == 6 or step in {exit_step(scales, t, suffix=suffix) for t in thresholds}


def test_an_image_leaves_at_the_first_step_whose_lead_is_the_margin():
    leads = np.array([[0.0, 0.5, 0.2, 1.0], [0.3, 0.1, 0.2, 0.0], [0.6, 0.9, 0.2, 0.0]])
    assert leaving(leads, 0.5).tolist() == [3, 1, 3, 1]
    assert leaving(leads, 2.0).tolist() == [3, 3, 3, 3]


def made_up(correct, leads, energy) -> Seen:
    return Seen(np.array(correct, bool), np.array(leads, float), np.array(energy, float))


def test_rows_say_what_each_rule_gives_for_its_images():
    test = made_up(
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]], [[9, 1, 1], [9, 9, 2], [9, 9, 9]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    )
    rows = exit_rows(test, test, None, Exit(of=["x"], margins=[5.0, 100.0]))
    assert [r["rule"] for r in rows] == ["fixed"] * 3 + ["margin"] * 2
    left, never = rows[3:]
    assert (left["accuracy"], left["mean_steps"], left["energy_pj"]) == (1.0, 2.0, (1 + 5 + 9) / 3)
    assert left["energy_saved_fraction"] == pytest.approx(1 - 5 / 8) and left["left_early_fraction"] == 2 / 3
    assert (never["accuracy"], never["mean_steps"], never["left_early_fraction"]) == (2 / 3, 3.0, 0.0)
    assert [r["exit_step"] for r in rows] == [1, 2, 3, "", ""]


def test_thresholds_are_chosen_on_validation_whatever_the_test_images_say():
    good = made_up([[1, 1, 1, 1]] * 3, [[5, 5, 5, 5]] * 3, np.ones((3, 4)))
    slow = made_up(
        [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], [[5, 1, 1, 1], [5, 5, 5, 1], [5, 5, 5, 5]], np.ones((3, 4))
    )
    stage = Exit(of=["x"], margins=[0.5, 3.0, 99.0])
    by = {
        what: [(r["rule"], r["threshold"]) for r in exit_rows(*pair, SCALES[:, 1:4], stage) if r["is_chosen"]]
        for what, pair in {"slow": (good, slow), "good": (slow, good)}.items()
    }
    assert by["slow"][0] == ("fixed", 3) and by["slow"][-1] == ("margin", 3.0)
    assert by["good"][0] == ("fixed", 1) and by["good"][-1] == ("margin", 0.5)
    loose = Exit(of=["x"], margins=[0.5, 3.0, 99.0], tolerance=0.25)
    assert [r["threshold"] for r in exit_rows(good, slow, None, loose) if r["is_chosen"]] == [2, 3.0]


def test_the_accuracy_to_keep_and_the_margins_to_try_are_those_of_the_validation_images():
    poor = made_up([[0, 0, 0, 0]] * 2, [[50, 60, 70, 80]] * 2, np.ones((2, 4)))
    good = made_up([[0, 1, 1, 1], [1, 1, 1, 1]], [[1, 2, 3, 4], [2, 4, 6, 8]], np.ones((2, 4)))
    rows = exit_rows(poor, good, None, Exit(of=["x"]))
    assert [r["is_chosen"] for r in rows if r["rule"] == "fixed"] == [0, 1]
    margins = [r["threshold"] for r in rows if r["rule"] == "margin"]
    assert len(margins) == 25 and 1 <= min(margins) < 1.1 and max(margins) == 8


def test_where_no_threshold_keeps_the_accuracy_none_is_chosen():
    slow = made_up([[0, 0], [1, 1]], [[5, 5], [5, 5]], np.ones((2, 2)))
    rows = exit_rows(slow, slow, None, Exit(of=["x"], margins=[0.5]))
    assert [r["is_chosen"] for r in rows] == [0, 1, 0]


# -------------------------------------------------------------------------------------------------- what is measured


def data(n: int = 10) -> ImageData:
    full = load_images("digits", limit=40)
    test = Split(full.test.images_NCHW[:n], full.test.labels_N[:n])
    return ImageData("digits", full.train, full.validation, test, 10, full.mean, full.std, "")


def network(coding: str, norm: str = "bntt", steps: int = 4) -> VggBntt:
    net = build(
        "vgg5", width=1 / 16, channels=1, size=(8, 8), classes=10, steps=steps, coding=coding, norm=norm, leak=0.8,
        gain=4.0, generator=seeded(1),
    )  # fmt: skip
    if norm == "bntt":
        x = torch.randn(32, 1, 8, 8, generator=seeded(2))
        for _ in range(5):
            net.train()(x, seeded(3))
    return net.eval()


@pytest.mark.parametrize("pooled", ["mac", "ac"])
@pytest.mark.parametrize(
    "coding, norm", [("poisson", "bntt"), ("direct", "bntt"), ("direct", "none"), ("repeat", "none")]
)
def test_the_energy_of_all_steps_is_that_of_the_account(coding, norm, pooled):
    net, images = network(coding, norm), data()
    found = seen(net, images.test, images, generator(7, "batches", "test", 0), PRICES, pooled=pooled, batch_size=128)
    counts = count({"": net}, images, Account(of="", samples=100, window_rows=[]), 7)
    rows = energy_rows(counts, PRICES, Definitions(synapses="fanout", pooled=pooled), "")
    expected = sum(r["energy_pj"] for r in rows if r["component"] == "synapse" and r["phase"] == "inference"
                   and r["layer"] != "TOTAL")  # fmt: skip
    assert found.energy_TN[-1].mean() == pytest.approx(expected, rel=1e-12)
    assert found.energy_TN.shape == (4, 10) and (np.diff(found.energy_TN, axis=0) >= 0).all()


@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_a_step_costs_what_a_network_that_ends_there_costs(coding):
    # Without BNTT the first steps do not know how many follow: a shorter network is an independent measurement.
    x = torch.randn(5, 1, 8, 8, generator=seeded(4))
    whole = network(coding, "none", steps=5)
    events = encode(x, 5, coding, seeded(5))
    outputs, trace = whole.over_time(events, account=[])
    spent = step_energy(trace, 5, 5, PRICES, "mac").cumsum(0)
    for steps in range(1, 5):
        short = network(coding, "none", steps=steps)
        logits, cut = short.run(events[:steps], account=[])
        torch.testing.assert_close(logits, outputs[:steps].mean(0))
        np.testing.assert_allclose(step_energy(cut, steps, 5, PRICES, "mac").sum(0), spent[steps - 1], rtol=1e-12)
    shares = spent[0] / spent[-1]
    assert (shares > 0.2 + 1e-3).all() if coding == "direct" else np.ptp(shares) > 0


def test_an_image_has_its_own_energy():
    net = network("direct", "none")
    x = torch.randn(3, 1, 8, 8, generator=seeded(4))
    together = step_energy(net.over_time(net.encode(x), account=[])[1], 4, 3, PRICES, "mac")
    alone = [step_energy(net.over_time(net.encode(x[i : i + 1]), account=[])[1], 4, 1, PRICES, "mac") for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone, 1), rtol=1e-12)
    assert np.ptp(together.sum(0)) > 0


def test_leads_and_answers_are_of_the_summed_outputs():
    net, images = network("direct"), data(6)
    found = seen(net, images.test, images, seeded(0), PRICES, pooled="mac", batch_size=4)
    x = (images.test.images_NCHW.float() / 255 - images.mean[0]) / images.std[0]
    sums = net.over_time(net.encode(x))[0].detach().cumsum(0)
    top = sums.topk(2, 2).values
    np.testing.assert_allclose(found.leads_TN, (top[..., 0] - top[..., 1]).numpy(), rtol=1e-4, atol=1e-5)
    assert (found.correct_TN == (sums.argmax(2) == images.test.labels_N).numpy()).all()


def test_scales_are_the_mean_size_of_the_gains():
    net = network("direct", steps=2)
    with torch.no_grad():
        net.bntt1.weight.copy_(torch.tensor([[1.0, -1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.4]]))
    scales = scales_of(net)
    assert list(scales) == ["bntt1", "bntt2", "bntt3", "bntt_fc"]
    np.testing.assert_allclose(scales["bntt1"], [0.75, 0.1], rtol=1e-6)
    assert scales_of(network("direct", "none")) == {}
