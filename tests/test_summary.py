"""Tables and sentences of a run, on made-up chips."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from hwsim.recipe.settings import Recipe
from hwsim.recipe.summary import ACCURACY, GAINS, accuracy_rows, gain_rows, headline, sentences, summary

RECIPE = Recipe.model_validate({
    "title": "T",
    "stages": {
        "baseline": {"do": "train", "variation_scale": 0.0},
        "vat": {"do": "train", "from": "baseline", "variation_scale": 1.0},
        "vat-4": {"do": "train", "from": "baseline", "variation_scale": 4.0},
        "evaluate": {"do": "evaluate", "of": ["baseline", "vat"]},
    },
})  # fmt: skip


def chips(**accuracies: list[float]) -> list[dict]:
    """Rows of chips.csv: NETWORK_SCALE=[accuracy of each chip]."""
    rows = []
    for name, values in accuracies.items():
        network, _, scale = name.rpartition("_")
        for chip, accuracy in enumerate(values):
            where = {"network": network.replace("__", "-"), "variation_scale": float(scale), "chip": chip}
            rows.append({"stage": "evaluate", **where, "accuracy": accuracy, "images": 100})
    return rows


def told(rows: list[dict], recipe: Recipe = RECIPE) -> list[str]:
    return sentences(accuracy_rows(rows), gain_rows(rows, recipe), recipe)


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


@pytest.mark.parametrize(
    ("baseline", "vat", "verdict", "says"),
    [
        ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], "apart_above", "it wins, the two intervals are apart."),
        ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], "apart_below", "it loses, the two intervals are apart."),
        ([0.5, 0.6, 0.9], [0.6, 0.7, 0.8], "overlap", "no clear difference, the two intervals overlap."),
        ([0.5], [0.9], "no_interval", "on one chip, which gives no interval; use --chips 2 or more."),
    ],
)
def test_the_verdict_is_what_the_intervals_say(baseline, vat, verdict, says):
    rows = chips(baseline_1=baseline, vat_1=vat)
    (gain,) = gain_rows(rows, RECIPE)
    assert gain["verdict"] == verdict
    (sentence,) = told(rows)
    assert sentence.startswith("* scale 1: `vat` against `baseline`: ") and says in sentence and "nan" not in sentence


def test_a_gain_is_told_in_points_with_its_interval():
    (sentence,) = told(chips(baseline_1=[0.5, 0.5, 0.5], vat_1=[0.6, 0.625, 0.65]))
    assert "+12.50 points (95 % of the difference chip by chip: +6.29 to +18.71)" in sentence


def test_a_difference_on_the_same_chips_is_told_though_the_intervals_overlap():
    low, high = [0.5, 0.7, 0.9], [0.6, 0.8, 1.0]
    assert "ahead chip by chip, but the two intervals overlap." in told(chips(baseline_1=low, vat_1=high))[-1]
    assert "behind chip by chip, but the two intervals overlap." in told(chips(baseline_1=high, vat_1=low))[-1]


def test_where_variation_costs_little_there_is_little_to_win_back():
    same = [0.90, 0.91, 0.92]
    rows = chips(baseline_0=[0.91, 0.92, 0.93], baseline_1=same, vat_1=same)
    assert told(rows)[-1].endswith("Variation costs `baseline` 1.00 points here: there is little to win back.")
    rows = chips(baseline_0=[0.89, 0.90, 0.91], baseline_1=same, vat_1=same)
    assert told(rows)[-1].endswith("Variation costs `baseline` nothing here: there is little to win back.")


def test_where_both_fail_it_says_so():
    low = [0.10, 0.11, 0.12]
    (sentence,) = told(chips(baseline_0=[0.95, 0.95, 0.95], baseline_1=low, vat_1=low))[-1:]
    assert "more than training absorbs: both networks fail (11.0 % remains)" in sentence


def test_where_only_the_trained_one_fails_it_does_not_say_that_both_do():
    rows = chips(baseline_0=[0.99, 0.99, 0.99], baseline_1=[0.90, 0.91, 0.92], vat_1=[0.1, 0.11, 0.12])
    sentence = told(rows)[-1]
    assert "it loses" in sentence and "both" not in sentence
    assert "Variation costs `baseline` 8.00 points here, and chips differ by 1.00 points (s.d.)." in sentence


def test_a_clear_win_needs_no_excuse():
    rows = chips(baseline_0=[0.95, 0.95, 0.95], baseline_1=[0.5, 0.51, 0.52], vat_1=[0.9, 0.91, 0.92])
    assert told(rows)[-1].endswith("it wins, the two intervals are apart.")


def test_without_a_measurement_at_scale_0_no_cost_is_claimed():
    (sentence,) = told(chips(baseline_1=[0.5, 0.6, 0.7], vat_1=[0.5, 0.6, 0.7]))
    assert sentence.endswith("the two intervals overlap.")


def test_nothing_is_said_about_scale_0_or_a_scale_that_a_network_was_not_trained_for():
    pair = [0.5, 0.6]
    rows = chips(baseline_0=pair, baseline_2=pair, baseline_4=pair, vat_0=pair, vat_2=pair)
    rows += chips(vat__4_2=pair, vat__4_4=pair)
    found = [(s.split(":")[0], s.split("`")[1]) for s in told(rows)]
    assert found == [("* scale 2", "vat"), ("* scale 4", "vat-4")]


def test_networks_trained_without_variation_are_not_compared():
    recipe = Recipe.model_validate({
        "title": "T",
        "stages": {n: {"do": "train", "variation_scale": 0.0} for n in ("baseline", "control")},
    })  # fmt: skip
    assert gain_rows(chips(baseline_1=[0.5, 0.6], control_1=[0.5, 0.6]), recipe) == []


# --- the one number -----------------------------------------------------------------------------------------------


def results(rows: list[dict], **more):
    empty = {"chips": rows, "folder": "runs/x", "levels": [], "energy": []}
    return SimpleNamespace(**(empty | more))


def test_the_headline_is_the_last_network_at_the_scale_that_it_was_trained_for():
    rows = chips(baseline_0=[0.9], baseline_1=[0.8], vat_0=[0.7], vat_1=[0.6], vat_4=[0.5])
    best = headline(RECIPE, results(rows))
    assert (best["network"], best["variation_scale"], best["mean"], best["run"]) == ("vat", 1.0, 0.6, "runs/x")
    best = headline(RECIPE, results(rows + chips(vat__4_0=[0.3], vat__4_4=[0.2])))
    assert (best["network"], best["variation_scale"], best["mean"]) == ("vat-4", 4.0, 0.2)


def test_the_headline_is_about_the_network_that_is_counted():
    stages = RECIPE.model_dump(by_alias=True)["stages"] | {"account": {"do": "account", "of": "baseline"}}
    recipe = Recipe.model_validate({"title": "T", "stages": stages})
    assert headline(recipe, results(chips(baseline_0=[0.9], vat_1=[0.8])))["network"] == "baseline"


def test_the_headline_takes_the_nearest_scale_that_was_measured():
    best = headline(RECIPE, results(chips(vat_0=[0.9], vat_2=[0.8])))
    assert best["variation_scale"] == 0.0


def test_a_run_without_evaluation_has_no_headline():
    assert headline(RECIPE, results([])) == {"run": "runs/x"}


def test_the_summary_holds_a_table_of_all_networks_and_scales():
    rows = chips(baseline_0=[0.9, 0.8], baseline_1=[0.5, 0.6], vat_0=[0.9, 0.9], vat_1=[0.8, 0.7])
    text = summary(RECIPE, "r", results(rows, levels=[{"layer": "conv1", "bits": 2, "levels_used": 3}]))
    assert text.startswith("# r: T\n") and "| network | scale 0 | scale 1 |\n|---|---|---|\n" in text
    assert "| baseline | 85.00 [21.47, 148.53], 80.00 | 55.00" in text and text.count("\n| vat | 90.00 ") == 1
    assert "Distinct weight values in use (2 bit): conv1 3." in text


def test_the_summary_of_one_chip_has_no_intervals():
    text = summary(RECIPE, "r", results(chips(baseline_1=[0.5], vat_1=[0.9])))
    assert "| vat | 90.00 |" in text and "nan" not in text


def test_free_additions_are_no_division_by_zero():
    energy = [{"layer": "TOTAL", "phase": p, "energy_pj": e, "card": "c"} for p, e in
              (("inference", 0.0), ("ann_inference", 5000.0))]  # fmt: skip
    text = summary(RECIPE, "r", results([], energy=energy))
    assert text.endswith("Energy an image by c, synaptic operations only: 0 nJ; the network of the same shape without "
                         "spikes: 5 nJ.\n")  # fmt: skip
    energy[0]["energy_pj"] = 2000.0
    assert "5 nJ, 2.50 times as much." in summary(RECIPE, "r", results([], energy=energy))
