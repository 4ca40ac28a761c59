"""Tables and sentences of a run, on made-up chips."""

from types import SimpleNamespace

import pytest
from made_up import chips

from hwsim.recipe.folder import Folder
from hwsim.recipe.recover import SRAM_COLUMNS
from hwsim.recipe.results import accuracy_rows, gain_rows
from hwsim.recipe.settings import Recipe
from hwsim.recipe.summary import sentences, sram_sentences, summary, write_tables
from hwsim.report import plot

RECIPE = Recipe.model_validate({
    "title": "T",
    "stages": {
        "baseline": {"do": "train", "variation_scale": 0.0},
        "vat": {"do": "train", "from": "baseline", "variation_scale": 1.0},
        "vat-4": {"do": "train", "from": "baseline", "variation_scale": 4.0},
        "evaluate": {"do": "evaluate", "of": ["baseline", "vat"], "chips": 2},
    },
})  # fmt: skip


def chips_of(recipe: Recipe, number: int) -> Recipe:
    """The recipe, evaluated on so many chips."""
    stages = recipe.model_dump(by_alias=True)["stages"]
    stages["evaluate"] |= {"chips": number}
    return Recipe.model_validate({"title": "T", "stages": stages})


def told(rows: list[dict], recipe: Recipe = RECIPE) -> list[str]:
    return sentences(accuracy_rows(rows), gain_rows(rows, recipe), recipe)


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


# --- the whole of it ----------------------------------------------------------------------------------------------


def results(rows: list[dict], **more):
    empty = {k: [] for k in ("levels", "energy", "sparsity", "sram", "metrics")}
    empty |= {"curves": {}, "conversion": {}, "timing": {}}
    return SimpleNamespace(**({"chips": rows, "folder": "runs/x"} | empty | more))


def test_the_summary_holds_a_table_of_all_networks_and_scales():
    rows = chips(baseline_0=[0.9, 0.8], baseline_1=[0.5, 0.6], vat_0=[0.9, 0.9], vat_1=[0.8, 0.7])
    levels = [{"layer": "conv1", "part": "synapse", "bits": 2, "levels_used": 3}]
    text = summary(RECIPE, "r", results(rows, levels=levels))
    assert text.startswith("# r: T\n") and "| network | scale 0 | scale 1 |\n|---|---|---|\n" in text
    assert "| baseline | 85.00 [21.47, 148.53], 80.00 | 55.00" in text and text.count("\n| vat | 90.00 ") == 1
    assert "Distinct weight values in use (2 bit): conv1 3." in text


def test_the_summary_of_one_chip_has_no_intervals():
    one = chips_of(RECIPE, 1)
    text = summary(one, "r", results(chips(baseline_1=[0.5], vat_1=[0.9])))
    assert "| vat | 90.00 |" in text and "nan" not in text


SRAM = Recipe.model_validate({
    "title": "T",
    "stages": {
        "baseline": {"do": "train", "variation_scale": 0.0},
        "vat": {"do": "train", "from": "baseline"},
        "recover": {"do": "recover", "from": "vat"},
        "recover-chip": {"do": "recover", "from": "vat", "redraw": "chip", "fixed_chips": 3},
        "prune": {"do": "recover", "from": "recover", "prune": {"group": 4}},
        "evaluate": {"do": "evaluate", "of": ["baseline", "vat", "recover"], "chips": 4},
    },
})  # fmt: skip


def test_networks_with_and_without_adaptation_have_a_line_each_in_the_table():
    rows = chips(vat_1=[0.5, 0.6, 0.5, 0.6]) + chips(10, vat_1=[0.7, 0.8, 0.7, 0.8])
    text = summary(SRAM, "r", results(rows))
    assert "\n| vat | 55.00 [" in text and "\n| vat, adapted (10) | 75.00 [" in text


def test_a_network_on_fewer_chips_says_how_many_in_its_cell():
    rows = chips(vat_1=[0.5, 0.6, 0.5, 0.6], recover__chip_1=[0.9, 0.8, 0.7])
    text = summary(SRAM, "r", results(rows))
    (vat,) = [line for line in text.splitlines() if line.startswith("| vat |")]
    (recovered,) = [line for line in text.splitlines() if line.startswith("| recover-chip |")]
    assert vat.endswith("], 50.00 |") and recovered.endswith("], 70.00 over 3 |")
    text = summary(SRAM, "r", results(chips(vat_1=[0.5, 0.6, 0.5, 0.6], recover__chip_1=[0.9])))
    assert "\n| recover-chip | 90.00 over 1 |\n" in text


def test_a_gain_of_adapted_networks_says_that_both_are():
    rows = chips(vat_1=[0.5, 0.52]) + chips(10, vat_1=[0.6, 0.62], recover_1=[0.9, 0.92])
    (sentence,) = told(rows, SRAM)
    assert sentence.startswith("* scale 1: `recover` against `vat`, both adapted (10): +30.00 points (95 % ")


def test_what_variation_costs_an_adapted_reference_is_what_it_costs_it_adapted():
    low, high = [0.80, 0.81, 0.82, 0.83], [0.90, 0.91, 0.92, 0.93]
    rows = chips(vat_0=[0.99] * 4, vat_1=[0.2] * 4) + chips(10, vat_0=high, vat_1=low, recover_1=low)
    (sentence,) = told(rows, SRAM)
    assert "Variation costs `vat` 10.00 points here" in sentence
    rows = chips(vat_0=[0.99] * 4) + chips(10, vat_1=low, recover_1=low)
    assert told(rows, SRAM)[0].endswith("the two intervals overlap.")


def test_a_recovery_on_one_chip_says_what_would_give_an_interval():
    rows = chips(vat_1=[0.5, 0.6, 0.7, 0.8], recover__chip_1=[0.9])
    stages = SRAM.model_dump(by_alias=True)["stages"]
    stages["recover-chip"] |= {"fixed_chips": 1}
    (sentence,) = told(rows, Recipe.model_validate({"title": "T", "stages": stages}))
    assert sentence.endswith("+40.00 points on one chip, which gives no interval; use --fixed-chips 2 or more.")
    (sentence,) = told(rows[:1] + rows[-1:], chips_of(SRAM, 1))
    assert sentence.endswith("+40.00 points on one chip, which gives no interval; use --chips 2 or more.")


# --- the SRAM -----------------------------------------------------------------------------------------------------


def sram(stage: str, *layers: tuple, chip="", shift="", group: int = 4) -> list[dict]:
    """Rows of sram.csv: (weights, share of zeros, groups, share of zero groups) of each layer."""
    return [
        dict(zip(SRAM_COLUMNS, (stage, chip, shift, f"conv{i + 1}", 4, w, zero, 0.0, group, g, zg), strict=True))
        for i, (w, zero, g, zg) in enumerate(layers)
    ]


def epochs(stage: str, *is_best: int, chip="", first: int = 0) -> list[dict]:
    """Rows of metrics.csv, from an epoch on."""
    return [
        {"stage": stage, "epoch": first + i, "is_best": b, "chip": chip, "shift_bit": ""} for i, b in enumerate(is_best)
    ]


LAYERS = ((10, 1.0, 2, 1.0), (100, 0.5, 10, 0.2), (300, 0.9, 30, 0.6))


def test_zeros_of_the_sram_are_counted_over_all_layers_but_the_first():
    (text,) = sram_sentences(sram("recover", *LAYERS), epochs("recover", 1, 0, 1), SRAM)
    # (50 + 270) of 400 words, (2 + 18) of 40 groups.
    assert text == (
        "\n`recover`: 80.0 % of the SRAM words are zero, 50.0 % of the groups of 4 input channels (not pruned; without "
        "the first layer)."
    )


def test_networks_of_a_stage_are_counted_together_and_stages_apart():
    rows = sram("recover-chip", *LAYERS, chip=0) + sram("recover-chip", (10, 0.0, 2, 0.0), (400, 0.0, 40, 0.0), chip=1)
    rows += sram("prune", *LAYERS)
    both, pruned = sram_sentences(rows, epochs("prune", 1, first=1), SRAM)
    assert both.startswith("\n`recover-chip`: 40.0 % of the SRAM words are zero, 25.0 % of the groups")
    assert pruned.startswith("\n`prune`: 80.0 % ") and "(pruned; without the first layer)" in pruned


def test_where_groups_do_not_divide_the_layers_only_words_are_counted():
    rows = sram("recover", (10, 0.0, "", ""), (100, 0.25, "", ""), group=16)
    (text,) = sram_sentences(rows, [], SRAM)
    assert text == "\n`recover`: 25.0 % of the SRAM words are zero (not pruned; without the first layer)."
    # A layer that groups do not fit is left out of the groups alone.
    rows = sram("recover", (10, 0.0, 2, 0.0), (100, 0.0, "", ""), (100, 0.5, 10, 0.3))
    (text,) = sram_sentences(rows, [], SRAM)
    assert text.startswith("\n`recover`: 25.0 % of the SRAM words are zero, 30.0 % of the groups")


def test_a_parent_that_was_kept_is_told():
    rows = sram("recover", *LAYERS)
    (text,) = sram_sentences(rows, epochs("recover", 1, 0, 0), SRAM)
    assert text.endswith(" on the validation images no epoch was better than the parent, which was kept.")
    (text,) = sram_sentences(rows, epochs("recover", 1, 1, 0), SRAM)
    assert "parent" not in text
    (text,) = sram_sentences(rows, epochs("recover", 1, 0, first=1), SRAM)
    assert "parent" not in text


def test_of_several_networks_it_is_told_for_how_many_the_parent_was_kept():
    rows = [row for chip in range(3) for row in sram("recover-chip", *LAYERS, chip=chip)]
    metrics = epochs("recover-chip", 1, 0, chip=0) + epochs("recover-chip", 1, 1, chip=1)
    metrics += epochs("recover-chip", 1, 0, chip=2) + epochs("vat", 1, 0)
    (text,) = sram_sentences(rows, metrics, SRAM)
    assert text.endswith(" no epoch was better than the parent, which was kept (2 of 3 networks).")


def test_the_summary_tells_of_the_sram_and_of_the_levels_of_both_parts():
    levels = [{"layer": f"conv{i}", "part": p, "bits": b, "levels_used": n} for i in (1, 2)
              for p, b, n in (("rram", 2, 2 + i), ("sram", 4, 12 + i))]  # fmt: skip
    more = {"sram": sram("recover", *LAYERS), "metrics": epochs("recover", 1, 0), "levels": levels}
    text = summary(SRAM, "r", results(chips(vat_1=[0.5, 0.6], recover_1=[0.5, 0.6]), **more))
    assert "\n`recover`: 80.0 % of the SRAM words are zero" in text and "which was kept." in text
    assert "Distinct weight values in use (RRAM, 2 bit): conv1 3, conv2 4.\n" in text
    assert "Distinct weight values in use (SRAM, 4 bit): conv1 13, conv2 14.\n" in text


def test_energy_is_a_table_of_components_and_phases():
    energy = [
        {"layer": name, "phase": p, "component": c, "energy_pj": e, "card": "c", "samples": 10}
        for name, p, c, e in (
            ("conv1", "inference", "synapse", 2000.0), ("TOTAL", "inference", "synapse", 2000.0),
            ("TOTAL", "inference", "memory", 500.0), ("TOTAL", "inference", "all", 2500.0),
            ("TOTAL", "ann_inference", "synapse", 4000.0), ("TOTAL", "ann_inference", "all", 4000.0),
        )
    ]  # fmt: skip
    text = summary(RECIPE, "r", results([], energy=energy))
    assert text.endswith(
        "\nEnergy in nJ an image by c (mean of 10 test images):\n\n"
        "| component | inference | ordinary network |\n|---|---|---|\n"
        "| synapse | 2 | 4 |\n| memory | 0.5 |  |\n| all | 2.5 | 4 |\n"
    )
    assert "Energy" not in summary(RECIPE, "r", results([]))


# --- the figures --------------------------------------------------------------------------------------------------


def legend(monkeypatch, tmp_path, recipe: Recipe, rows: list[dict]) -> tuple[str, dict[str, list[float]]]:
    """(title, label → accuracies in percent) of the figure that a run with these chips draws."""
    drawn = []
    monkeypatch.setattr(plot, "png", lambda figure: drawn.append(figure) or b"png")
    folder = Folder(tmp_path, "r", "0123456789")
    write_tables(folder, recipe, "r", results(rows))
    assert (folder.path / "accuracy.png").read_bytes() == b"png"
    (axes,) = drawn[0].axes
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert texts == [line.get_label() for line in axes.lines]
    return axes.get_title(), {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def test_adapted_networks_have_lines_and_labels_of_their_own(monkeypatch, tmp_path):
    rows = chips(vat_0=[0.9] * 4, vat_1=[0.5] * 4) + chips(10, vat_0=[0.8] * 4, vat_1=[0.7] * 4)
    rows += chips(recover_0=[0.95] * 4, recover_1=[0.85] * 4)
    title, lines = legend(monkeypatch, tmp_path, SRAM, rows)
    assert {name: [round(v, 6) for v in ys] for name, ys in lines.items()} == {
        "vat": [90, 50], "vat, adapted (10)": [80, 70], "recover": [95, 85]}  # fmt: skip
    assert "mean over 4 chips" in title


def test_networks_on_fewer_chips_say_so_in_the_figure(monkeypatch, tmp_path):
    rows = chips(recover__chip_1=[0.9] * 3, vat_1=[0.5] * 4) + chips(10, recover__chip_1=[0.9] * 3)
    title, lines = legend(monkeypatch, tmp_path, SRAM, rows)
    assert list(lines) == ["recover-chip, 3 of them", "vat", "recover-chip, adapted (10), 3 of them"]
    assert "mean over 4 chips" in title


def test_every_table_of_a_run_is_written_with_its_columns(tmp_path):
    folder = Folder(tmp_path, "r", "0123456789")
    more = {"sram": sram("recover", *LAYERS), "metrics": epochs("recover", 1, 0)}
    rows = chips(vat_1=[0.5, 0.6], recover_1=[0.5, 0.6]) + chips(10, vat_1=[0.5, 0.6])
    write_tables(folder, SRAM, "r", results(rows, **more))
    found = {p.name for p in folder.path.iterdir()}
    assert found == {"chips.csv", "accuracy.csv", "gains.csv", "metrics.csv", "sram.csv", "accuracy.png", "summary.md"}
    lines = (folder.path / "sram.csv").read_text().splitlines()
    assert lines[0] == ",".join(SRAM_COLUMNS) and len(lines) == 4
    lines = (folder.path / "accuracy.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["vat", "0", "1"], ["recover", "0", "1"], ["vat", "10", "1"]]


@pytest.mark.parametrize(("encode", "said"), [("poisson", True), ("direct", False)])
def test_only_a_network_that_draws_spikes_scatters_without_variation(encode, said):
    recipe = Recipe.model_validate({**RECIPE.model_dump(by_alias=True), "net": {"encode": encode}})
    text = summary(recipe, "r", results(chips(vat_0=[0.9, 0.9], vat_1=[0.8, 0.7])))
    assert ("its scatter is that of the spike coding" in text) == said
