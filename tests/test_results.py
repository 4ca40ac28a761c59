"""What chips say together: means with intervals, gains against parents and calm networks, the headline."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import chips
from scipy.stats import t

from hwsim.recipe.results import ACCURACY, GAINS, accuracy_rows, gain_rows, headline, label, stage_of
from hwsim.recipe.settings import Recipe

FOLDER = Path("runs/x")


def recipe(**stages: dict) -> Recipe:
    """A recipe of training stages; in a name __ stands for a hyphen."""
    named = {n.replace("__", "-"): {"do": "train", **stage} for n, stage in stages.items()}
    return Recipe.model_validate({"title": "T", "stages": named})


RECIPE = recipe(
    baseline={"variation_scale": 0.0},
    vat={"from": "baseline", "variation_scale": 1.0},
    vat__4={"from": "baseline", "variation_scale": 4.0},
)
SRAM = recipe(
    baseline={"variation_scale": 0.0},
    vat={"from": "baseline"},
    recover={"do": "recover", "from": "vat", "sram": {"shift_bits": [0, 1]}},
    recover__chip={"do": "recover", "from": "vat", "redraw": "chip"},
    prune={"do": "recover", "from": "recover", "prune": {}},
)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_accuracy_is_the_mean_over_chips_with_its_interval(values):
    (row,) = accuracy_rows(chips(vat_1=values))
    n, mean = len(values), sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = t.ppf(0.975, n - 1) * std / math.sqrt(n)
    assert tuple(row) == ACCURACY and row["chips"] == n and row["images"] == 100
    for column, wanted in {"mean": mean, "std": std, "ci95_low": mean - half, "ci95_high": mean + half}.items():
        assert row[column] == pytest.approx(wanted, abs=1e-12)
    assert row["minimum"] == min(values)


def test_each_network_and_scale_has_its_row():
    rows = accuracy_rows(chips(a_0=[1, 1], b_0=[0, 0], a_2=[0.5, 0.5]))
    assert [(r["network"], r["variation_scale"], r["mean"]) for r in rows] == [("a", 0, 1), ("b", 0, 0), ("a", 2, 0.5)]


def test_each_adaptation_has_its_row():
    rows = accuracy_rows(chips(vat_1=[0.5, 0.5]) + chips(10, vat_1=[0.7, 0.9]))
    assert [(r["adapt_batches"], r["chips"], r["mean"]) for r in rows] == [(0, 2, 0.5), (10, 2, pytest.approx(0.8))]
    assert [label(r) for r in rows] == ["vat", "vat, adapted (10)"]


# --- gains --------------------------------------------------------------------------------------------------------


def test_gains_are_differences_chip_by_chip():
    rows = chips(baseline_1=[0.5, 0.7, 0.9], vat_1=[0.6, 0.8, 1.0])
    (gain,) = gain_rows(rows, RECIPE)
    assert tuple(gain) == GAINS
    assert gain["gain_mean"] == pytest.approx(0.1) and gain["gain_ci95_low"] == pytest.approx(0.1)
    assert gain["verdict"] == "overlap"  # though every chip gained: the verdict is about the networks' own intervals
    shuffled = gain_rows(rows[:3] + rows[:2:-1], RECIPE)
    assert shuffled == [gain]


def test_only_chips_that_both_networks_met_are_compared():
    (gain,) = gain_rows(chips(baseline_1=[0.5, 0.7, 0.9], vat_1=[0.6, 0.8]), RECIPE)
    assert gain["chips"] == 2 and gain["gain_mean"] == pytest.approx(0.1)


def test_networks_trained_without_variation_are_not_compared():
    calm = recipe(baseline={"variation_scale": 0.0}, control={"variation_scale": 0.0})
    assert gain_rows(chips(baseline_1=[0.5, 0.6], control_1=[0.5, 0.6]), calm) == []


PAIR = [0.5, 0.6]


def pairs(rows: list[dict], of: Recipe = SRAM) -> list[tuple]:
    return [(g["network"], g["reference"], g["adapt_batches"], g["variation_scale"]) for g in gain_rows(rows, of)]


def test_a_recovered_network_is_compared_with_its_parent_and_with_calm_networks():
    rows = chips(baseline_1=PAIR, vat_1=PAIR, recover_1=PAIR, recover__chip_1=PAIR, prune_1=PAIR)
    assert pairs(rows) == [
        ("vat", "baseline", 0, 1),
        ("recover", "baseline", 0, 1), ("recover", "vat", 0, 1),
        ("recover-chip", "baseline", 0, 1), ("recover-chip", "vat", 0, 1),
        ("prune", "baseline", 0, 1), ("prune", "recover", 0, 1),
    ]  # fmt: skip


def test_a_calm_parent_is_one_reference_and_not_two():
    of = recipe(baseline={"variation_scale": 0.0}, recover={"do": "recover", "from": "baseline"})
    assert pairs(chips(baseline_1=PAIR, recover_1=PAIR), of) == [("recover", "baseline", 0, 1)]


def test_a_parent_that_was_loaded_is_a_reference_too():
    of = recipe(vat={"do": "load", "run": "r"}, recover={"do": "recover", "from": "vat"})
    assert pairs(chips(vat_1=PAIR, recover_1=PAIR), of) == [("recover", "vat", 0, 1)]


def test_only_what_was_measured_at_the_same_scale_is_compared():
    assert pairs(chips(baseline_1=PAIR, vat_2=PAIR, recover_1=PAIR)) == [("recover", "baseline", 0, 1)]


def test_only_networks_adapted_by_as_many_batches_are_compared():
    rows = chips(baseline_1=[0.1, 0.2], vat_1=[0.4, 0.5], recover_1=[0.6, 0.7])
    rows += chips(5, vat_1=[0.8, 0.9], recover_1=[0.85, 0.95]) + chips(10, recover_1=[1.0, 1.0])
    found = {(g["network"], g["reference"], g["adapt_batches"]): g["gain_mean"] for g in gain_rows(rows, SRAM)}
    assert found == {
        ("vat", "baseline", 0): pytest.approx(0.3),
        ("recover", "baseline", 0): pytest.approx(0.5),
        ("recover", "vat", 0): pytest.approx(0.2),
        ("recover", "vat", 5): pytest.approx(0.05),
    }


def test_each_shift_of_an_ensemble_is_compared_like_its_stage():
    rows = chips(vat_1=PAIR, recover_1=PAIR, **{"recover/shift+0_1": PAIR, "recover/shift+1_1": PAIR})
    assert pairs(rows) == [(n, "vat", 0, 1) for n in ("recover", "recover/shift+0", "recover/shift+1")]
    assert stage_of(SRAM, "recover/shift+1") is SRAM.stages["recover"]
    assert stage_of(SRAM, "recover-chip") is SRAM.stages["recover-chip"]


def test_chips_are_paired_by_number_whatever_others_were_measured():
    # Recovered on chips 1 and 3 only; the parent on five.
    parent = chips(vat_1=[0.0, 0.5, 0.0, 0.7, 1.0])
    mine = [r | {"chip": c} for r, c in zip(chips(recover__chip_1=[0.8, 0.6]), (3, 1), strict=True)]
    (gain,) = gain_rows(parent + mine, SRAM)
    assert gain["chips"] == 2 and gain["gain_mean"] == pytest.approx(0.1)
    assert gain["gain_ci95_low"] == pytest.approx(0.1) == gain["gain_ci95_high"]
    # And a calm network for any chip may be measured on fewer than the one beside it.
    rows = chips(vat_1=[0.5, 0.7], prune_1=[0.1, 0.2, 0.3], recover_1=[0.0, 0.1])
    gain = gain_rows(rows, SRAM)[-1]
    assert (gain["network"], gain["reference"], gain["chips"]) == ("recover", "vat", 2)
    gain = next(g for g in gain_rows(rows, SRAM) if g["network"] == "prune")
    assert (gain["reference"], gain["chips"]) == ("recover", 2) and gain["gain_mean"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        # On the common chips 0 to 2 the intervals are apart; over all of the parent's chips they are not.
        ([0.9, 0.91, 0.92], [0.5, 0.51, 0.52, 1.0, 1.0, 1.0], "apart_above"),
        ([0.5, 0.51, 0.52], [0.9, 0.91, 0.92, 0.1, 0.1, 0.1], "apart_below"),
        # And the other way round.
        ([0.9, 0.91, 0.92], [0.91, 0.92, 0.93, *[0.5] * 60], "overlap"),
        ([0.9], [0.1, 0.11, 0.12], "no_interval"),
    ],
)
def test_the_verdict_is_about_the_common_chips(mine, theirs, verdict):
    (gain,) = gain_rows(chips(recover__chip_1=mine, vat_1=theirs), SRAM)
    assert gain["verdict"] == verdict
    assert gain["chips"] == len(mine)


# --- the one number -----------------------------------------------------------------------------------------------


def test_the_headline_is_the_last_network_at_the_scale_that_it_was_trained_for():
    rows = chips(baseline_0=[0.9], baseline_1=[0.8], vat_0=[0.7], vat_1=[0.6], vat_4=[0.5])
    best = headline(RECIPE, rows, FOLDER)
    assert (best["network"], best["variation_scale"], best["mean"], best["run"]) == ("vat", 1.0, 0.6, "runs/x")
    best = headline(RECIPE, rows + chips(vat__4_0=[0.3], vat__4_4=[0.2]), FOLDER)
    assert (best["network"], best["variation_scale"], best["mean"]) == ("vat-4", 4.0, 0.2)


def counted(of: Recipe, network: str) -> Recipe:
    """The recipe with a stage that counts a network."""
    stages = of.model_dump(by_alias=True)["stages"] | {"account": {"do": "account", "of": network}}
    return Recipe.model_validate({"title": "T", "stages": stages})


def test_the_headline_is_about_the_network_that_is_counted():
    best = headline(counted(RECIPE, "baseline"), chips(baseline_0=[0.9], vat_1=[0.8]), FOLDER)
    assert best["network"] == "baseline"


def test_the_headline_of_a_network_with_and_without_adaptation_is_without():
    rows = chips(10, recover_1=[0.9]) + chips(recover_1=[0.7])
    best = headline(SRAM, rows, FOLDER)
    assert (best["mean"], best["adapt_batches"]) == (0.7, 0)
    best = headline(SRAM, chips(20, recover_1=[0.9]) + chips(10, recover_1=[0.8]), FOLDER)
    assert (best["mean"], best["adapt_batches"]) == (0.8, 10)
    # The scale counts more than the adaptation.
    best = headline(SRAM, chips(10, recover_1=[0.9]) + chips(recover_0=[0.7]), FOLDER)
    assert (best["mean"], best["variation_scale"]) == (0.9, 1.0)


def test_the_headline_of_an_ensemble_is_that_of_the_whole():
    rows = chips(vat_1=[0.5], recover_1=[0.9], **{"recover/shift+0_1": [0.7], "recover/shift+1_1": [0.8]})
    assert headline(SRAM, rows, FOLDER)["network"] == "recover"
    assert headline(counted(SRAM, "recover"), rows, FOLDER)["network"] == "recover"


def test_the_headline_takes_the_nearest_scale_that_was_measured():
    best = headline(RECIPE, chips(vat_0=[0.9], vat_2=[0.8]), FOLDER)
    assert best["variation_scale"] == 0.0


def test_a_run_without_evaluation_has_no_headline():
    assert headline(RECIPE, [], FOLDER) == {"run": "runs/x"}
