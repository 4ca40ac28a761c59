"""The recipes rate-vs-direct, early-exit and attack, end to end; what they reuse; what does not go together."""

import csv
import math
from pathlib import Path

import pytest
from command_line import hwsim, refused

from hwsim.recipe.attack import summary_rows as attack_summary
from hwsim.recipe.codings import summary_rows

SMALL = ("--set", "net.width=0.0625", "--smoke")


def table(folder: Path, name: str) -> list[dict]:
    with (folder / f"{name}.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def ran(runs: Path, recipe: str, *more) -> tuple[Path, str]:
    done = hwsim("recipe", recipe, "--smoke", "--runs", runs, *more)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent, done.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def grid(runs) -> Path:
    return ran(runs, "rate-vs-direct")[0]


@pytest.fixture(scope="module")
def attacked(runs, grid) -> tuple[Path, str]:
    return ran(runs, "attack")


# ---------------------------------------------------------------------------------------------------- rate-vs-direct


def test_every_coding_step_and_seed_is_trained_and_summed_up(grid):
    rows = table(grid, "codings")
    assert {(r["encode"], r["steps"], r["seed"]) for r in rows} == {
        (e, s, seed) for e in ("poisson", "direct") for s in "12" for seed in ("1234", "1235")
    }
    summary = table(grid, "codings-summary")
    assert [(r["encode"], r["steps"], r["seeds"]) for r in summary] == [
        (e, s, "2") for e in ("poisson", "direct") for s in "12"
    ]
    of = {(r["encode"], r["steps"]): r for r in summary}
    for key, r in of.items():
        own = [float(n["accuracy"]) for n in rows if (n["encode"], n["steps"]) == key]
        assert float(r["accuracy_mean"]) == pytest.approx(sum(own) / 2)
    assert len({r["ann_energy_pj"] for r in rows}) == 1
    assert (grid / "codings.png").stat().st_size > 10_000
    assert "| 2 | direct |" in (grid / "summary.md").read_text()


def test_energy_by_layer_is_the_published_formula(grid):
    layers, rows = table(grid, "codings-layers"), table(grid, "codings")
    macs = {"conv1": 64 * 9 * 8, "conv2": 16 * 9 * 8 * 16, "conv3": 16 * 9 * 16 * 16, "fc1": 64 * 128, "fc2": 1280}
    for r in layers:
        unit = 0.9 if r["action"] == "ac" else 4.6
        assert float(r["energy_pj"]) == pytest.approx(unit * float(r["operations"]), rel=1e-9)
    for n in rows:
        own = [r for r in layers if all(r[k] == n[k] for k in ("encode", "steps", "seed"))]
        assert math.fsum(float(r["energy_pj"]) for r in own) == pytest.approx(float(n["energy_pj"]), rel=1e-8)
        assert float(n["ann_energy_pj"]) == pytest.approx(4.6 * sum(macs.values()))
        for name, dense in macs.items():
            steps = 1 if (n["encode"], name) == ("direct", "conv1") else int(n["steps"])
            part = [r for r in own if r["layer"] == name]
            density = float(part[0]["input_density"])
            # Of an image on which a pixel is never exactly the mean, direct coding multiplies everywhere, once.
            found = sum(float(r["operations"]) for r in part)
            assert found == pytest.approx(dense * steps * density, rel=1e-6), (name, n)
            if (n["encode"], name) == ("direct", "conv1"):
                assert [r["action"] for r in part if float(r["operations"])] == ["mac"] and density == 1


def test_intervals_are_students_over_seeds_and_one_seed_has_none():
    rows = [
        {"stage": "c", "encode": "direct", "steps": 2, "seed": s, "accuracy": a, "energy_pj": e, "ann_energy_pj": 10.0}
        for s, a, e in ((1, 0.8, 4.0), (2, 0.9, 6.0), (3, 1.0, 5.0))
    ]
    (r,) = summary_rows(rows)
    assert (r["accuracy_mean"], r["energy_pj_mean"], r["energy_share_of_ann"]) == pytest.approx((0.9, 5.0, 0.5))
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert (r["accuracy_ci95_low"], r["accuracy_ci95_high"]) == pytest.approx((0.9 - half, 0.9 + half))
    assert math.isnan(summary_rows(rows[:1])[0]["accuracy_ci95_low"])


def test_a_word_or_a_letter_names_the_same_networks(runs, grid):
    folder, said = ran(runs, "rate-vs-direct", "--encode", "d", "--steps", "2")
    assert said.count("finished before") == 2 and "epoch" not in said
    assert {r["encode"] for r in table(folder, "codings")} == {"direct"}
    (a,) = table(folder, "codings-summary")
    assert a == next(r for r in table(grid, "codings-summary") if (r["encode"], r["steps"]) == ("direct", "2"))


def test_a_network_of_the_grid_is_that_of_a_recipe_of_its_own(runs, grid, tmp_path):
    (tmp_path / "one.yaml").write_text(
        "title: One network of the grid\n"
        "seed: 1235\n"
        "net: {name: vgg5, width: 0.125, steps: 2, encode: direct, norm: none, leak: 0.5, leak_rule: complement, "
        "gain: 6.0}\n"
        "data: {name: digits, limit: 160}\n"
        "device: {card: ideal, on: ['*']}\n"
        "stages:\n"
        "  net: {do: train, epochs: 1, batch_size: 64, optimizer: adam, lr: 0.005, weight_decay: 0.0, "
        "schedule: cosine, validation_chips: 1, variation_scale: 0.0}\n"
        "  evaluate: {do: evaluate, of: [net], chips: 1, variation_scales: [0]}\n"
    )
    done = hwsim("recipe", tmp_path / "one.yaml", "--runs", runs)
    assert done.code == 0 and "net: finished before" in done.err
    (row,) = table(Path(done.out.splitlines()[-1]).parent, "accuracy")
    mine = next(r for r in table(grid, "codings") if (r["encode"], r["steps"], r["seed"]) == ("direct", "2", "1235"))
    assert row["mean"] == mine["accuracy"]


def test_other_prices_make_another_table_with_the_same_networks(runs, grid):
    folder, said = ran(runs, "rate-vs-direct", "--pooled", "ac")
    assert said.count("finished before") == 8 and folder != grid
    mac, ac = (table(f, "codings")[-1] for f in (grid, folder))
    assert float(ac["energy_pj"]) < float(mac["energy_pj"]) and ac["accuracy"] == mac["accuracy"]


# -------------------------------------------------------------------------------------------------------- early-exit


def test_early_exit_reuses_the_baseline_and_writes_its_curve(runs):
    folder, _ = ran(runs, "baseline", "--steps", "3")
    exits, said = ran(runs, "early-exit", "--steps", "3")
    assert f"baseline: finished before, taken from {folder / 'baseline'}" in said
    rows = table(exits, "early-exit")
    assert {r["rule"] for r in rows} == {"fixed", "scales-first", "scales-suffix", "margin"}
    assert all(int(r["steps"]) == 3 and 1 <= float(r["mean_steps"]) <= 3 for r in rows)
    fixed = [float(r["energy_pj"]) for r in rows if r["rule"] == "fixed"]
    assert fixed == sorted(fixed) and fixed[0] < fixed[2]
    assert {r["timestep"] for r in table(exits, "scales")} == {"1", "2", "3"}
    assert (exits / "exit-baseline.png").stat().st_size > 10_000
    assert "| margin |" in (exits / "summary.md").read_text()
    again, said = ran(runs, "early-exit", "--from", folder, "--scales", "0.2,1.5")
    assert {r["threshold"] for r in table(again, "early-exit") if r["rule"] == "scales-first"} == {"0.2", "1.5"}


def test_a_network_without_bntt_leaves_by_its_lead_alone(runs):
    net = ("--set", "net.norm=none", "--set", "net.gain=6.0", "--encode", "d")
    folder, _ = ran(runs, "early-exit", *net)
    assert {r["rule"] for r in table(folder, "early-exit")} == {"fixed", "margin"}
    assert not (folder / "scales.csv").exists() and (folder / "exit-baseline.png").exists()


# ------------------------------------------------------------------------------------------------------------ attack


def test_attack_measures_own_naive_and_transferred_images(attacked):
    rows = table(attacked[0], "attack")
    kinds = {(r["encode"], r["gradient"], r["made_on"].split("-")[1]) for r in rows}
    assert kinds == {
        ("poisson", "expectation", "poisson"), ("poisson", "naive", "poisson"), ("poisson", "transfer", "direct"),
        ("direct", "exact", "direct"), ("direct", "transfer", "poisson"),
    }  # fmt: skip
    assert len(rows) == 5 * 2 * 4 * 2  # kinds, methods, sizes, seeds
    for r in rows:
        eps, change = float(r["eps_255"]), float(r["largest_change_255"])
        assert change <= eps + 1e-3
        still = (r["gradient"], r["method"]) == ("naive", "fgsm")
        assert change == pytest.approx(0 if still else eps, abs=1e-3) or r["method"] == "pgd"
    for seed in ("1234", "1235"):  # the same images and the same spikes: the same answers, whatever attack it is
        for coding in ("poisson", "direct"):
            own = [r for r in rows if (r["seed"], r["encode"]) == (seed, coding)]
            assert len({r["accuracy"] for r in own if float(r["eps_255"]) == 0 or
                        (r["gradient"], r["method"]) == ("naive", "fgsm")}) == 1  # fmt: skip
    assert (attacked[0] / "attack.png").stat().st_size > 10_000
    assert "transfer from codings-direct-t2" in (attacked[0] / "summary.md").read_text()


def test_attack_finds_the_networks_of_rate_vs_direct(attacked):
    assert attacked[1].count("finished before") == 4 and "epoch" not in attacked[1]


def test_an_attack_is_repeated_to_the_digit(attacked, tmp_path):
    again = ran(tmp_path, "attack")[0]
    assert (again / "attack.csv").read_bytes() == (attacked[0] / "attack.csv").read_bytes()


def test_a_network_of_another_run_is_attacked_on_its_chips(runs):
    start, _ = ran(runs, "baseline", "--steps", "2")
    folder, _ = ran(runs, "attack", "--from", start, "--attack-scale", "1", "--chips", "2", "--methods", "fgsm")
    rows = table(folder, "attack")
    assert {r["chip"] for r in rows} == {"0", "1"} and {r["network"] for r in rows} == {"codings"}
    assert {r["gradient"] for r in rows} == {"expectation", "naive"}
    assert "with variation at scale 1 on 2 chips" in (folder / "summary.md").read_text()


def test_the_cells_of_a_chip_change_what_an_attack_leaves(runs):
    start, _ = ran(runs, "baseline", "--steps", "2", "--encode", "d", "--epochs", "8", "--batch-size", "32")
    left = []
    for scale in ("1e-6", "8.0"):
        more = ("--attack-scale", scale, "--methods", "fgsm", "--eps", "0,8,16", "--images", "46")
        left.append([r["accuracy"] for r in table(ran(runs, "attack", "--from", start, *more)[0], "attack")])
    assert len(left[0]) == 3 and left[0] != left[1]


def test_a_single_attacked_network_has_an_interval_over_images():
    row = {
        "stage": "a", "network": "n", "encode": "direct", "steps": 2, "method": "fgsm", "gradient": "exact",
        "made_on": "n", "eps_255": 8.0, "accuracy": 0.5, "ci95_low": 0.4, "ci95_high": 0.6,
    }  # fmt: skip
    assert [attack_summary([row])[0][k] for k in ("networks", "ci95_low", "ci95_high")] == [1, 0.4, 0.6]
    two = attack_summary([row, {**row, "accuracy": 0.7}])[0]
    assert two["networks"] == 2 and two["accuracy_mean"] == pytest.approx(0.6) and two["ci95_low"] < 0


# ----------------------------------------------------------------------------------------------- what is refused


REFUSED = {
    "unknown coding": ("rate-vs-direct", ["--encode", "rate"], "(allowed: poisson, direct, repeat)"),
    "coding twice": ("rate-vs-direct", ["--encode", "p,poisson"], "stages.codings.encodings: names poisson twice"),
    "steps twice": ("rate-vs-direct", ["--steps", "2,2"], "stages.codings.steps: names 2 twice"),
    "beyond BNTT": ("rate-vs-direct", ["--norm", "bntt", "--steps", "65"], "with BNTT it must be at most 64"),
    "steps beyond": ("early-exit", ["--steps", "65"], "net.steps: found 65; it must be at most 64"),
    "leak rule": ("rate-vs-direct", ["--leak-rule", "other"], "(allowed: plain, complement, swapped, reference)"),
    "no reference": ("rate-vs-direct", ["--net", "vgg11", "--gain", "reference"], "has no vgg11 without BNTT"),
    "too small": ("rate-vs-direct", ["--net", "vgg11"], "this plan halves the image 4 times; it needs 16x16 pixels"),
    "batch": ("rate-vs-direct", ["--limit", "50"], "64 is more than data.limit, 50"),
    "card": ("rate-vs-direct", ["--set", "stages.codings.card=loihi"], "needs a card of arithmetic"),
    "from": ("rate-vs-direct", ["--set", "stages.codings.train.from=x"], "start from fresh weights"),
    "scales without BNTT": (
        "early-exit", ["--set", "net.norm=none", "--scales", "0.1"], "this vgg5 has no BNTT, and so no scales",
    ),
    "bitnet": ("bitnet", ["--set", "net.norm=none"], "is for the mlp and vgg networks with a leak"),
    "ordinary": ("binary-train", ["--set", "net.leak_rule=swapped"], "leave leak_rule out"),
    "adapt": ("vat", ["--set", "net.norm=none", "--set", "stages.evaluate.adapt=[2]"], "no BNTT statistics to adapt"),
    "grid measured": ("attack", ["--set", "stages.attack.of=[cod]"], "network 'cod'; did you mean 'codings'?"),
    "method": ("attack", ["--methods", "cw"], "(allowed: fgsm, pgd)"),
    "eps": ("attack", ["--eps", "0,300"], "found 300; it must be at most 255"),
    "tolerance": ("early-exit", ["--tolerance", "1"], "found 1; it must be below 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(case, tmp_path):
    recipe, more, message = REFUSED[case]
    said = refused("recipe", recipe, *more, "--runs", tmp_path)
    assert len([line for line in said.splitlines() if line.strip()]) == 1, said
    assert message in said
    assert not list(tmp_path.glob("*/*"))


def test_other_steps_than_bntts_are_refused_and_without_it_any_will_do(runs, tmp_path):
    with_bntt, _ = ran(runs, "early-exit", "--steps", "3")
    said = refused("recipe", "early-exit", "--from", with_bntt, "--steps", "2", "--runs", tmp_path)
    assert "was trained with 3 and has as many sets of BNTT statistics" in said
    net = ("--set", "net.norm=none", "--set", "net.gain=6.0", "--encode", "d")
    without, _ = ran(runs, "early-exit", *net)
    more, _ = ran(runs, "early-exit", "--from", without, "--steps", "7")
    assert {r["steps"] for r in table(more, "early-exit")} == {"7"}
