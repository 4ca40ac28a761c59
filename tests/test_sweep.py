"""Sweeps: points are checked before one runs, finished ones are found, means have intervals, a figure is drawn."""

import csv
from pathlib import Path

import pytest
from command_line import hwsim, refused

from hwsim.config import ConfigError
from hwsim.recipe.evaluate import interval
from hwsim.recipe.resolve import Request
from hwsim.recipe.sweep import Axis, axis, energy_of, points, summary


def table(path: Path) -> list[dict]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    command = ["sweep", "pattern", "--vary", "wb=2,4", "--vary", "ab,eb=6,8", "--seeds", "2", "--smoke"]
    command += ["--runs", folder / "runs", "--out", folder / "out"]
    return folder, command, hwsim(*command)


def test_a_sweep_runs_every_value_with_every_seed_and_no_other(swept):
    folder, _, done = swept
    assert done.code == 0, done.err
    rows = table(folder / "out.csv")
    assert [(r["axis"], r["point"], r["seed"], r["stage"]) for r in rows] == [
        (a, v, s, stage)
        for a, values in (("wb", "24"), ("ab=eb", "68"))
        for v in values
        for s in ("1234", "1235")
        for stage in ("pattern", "float")
    ]
    assert len({r["run"] for r in rows}) == 6  # ab = eb = 8 is what the card says: the same runs as wb 2
    assert {r["measure"] for r in rows} == {"loss"}


def test_a_network_that_the_axis_leaves_alone_is_marked_and_the_same_everywhere(swept):
    rows = table(swept[0] / "out.csv")
    assert {r["varied"] for r in rows if r["stage"] == "float"} == {"0"}
    assert {r["varied"] for r in rows if r["stage"] == "pattern"} == {"1"}
    for seed in ("1234", "1235"):
        assert len({r["value"] for r in rows if r["stage"] == "float" and r["seed"] == seed}) == 1
    assert all((r["energy_pj"] == "") == (r["stage"] == "float") for r in rows)


def test_values_and_energies_are_those_of_the_runs(swept):
    folder = swept[0]
    for r in table(folder / "out.csv"):
        if r["stage"] == "pattern":
            run = folder / "runs" / r["run"]
            last = [x for x in table(run / "loss.csv") if x["stage"] == "pattern"][-1]
            assert float(r["value"]) == float(last["loss"])
            energy = [x for x in table(run / "energy.csv") if x["layer"] != "TOTAL" and x["phase"] != "ann_inference"]
            assert float(r["energy_pj"]) == pytest.approx(sum(float(x["energy_pj"]) for x in energy))


def test_means_and_intervals_are_over_the_seeds(swept):
    rows = table(swept[0] / "out.csv")
    short = table(swept[0] / "out-summary.csv")
    assert len(short) == 8
    for s in short:
        own = [r for r in rows if all(r[k] == s[k] for k in ("axis", "point", "stage"))]
        i = interval([float(r["value"]) for r in own])
        assert (int(s["seeds"]), float(s["mean"])) == (2, pytest.approx(i.mean))
        assert float(s["ci95_low"]) == pytest.approx(i.low) and float(s["ci95_high"]) == pytest.approx(i.high)
    assert (swept[0] / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_repeated_sweep_finds_every_run_and_writes_the_same(swept):
    folder, command, done = swept
    before = {p.name: p.read_bytes() for p in folder.glob("out*")}
    stages = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*/weights.safetensors")}
    again = hwsim(*command)
    assert again.code == 0 and again.out == done.out
    assert {p.name: p.read_bytes() for p in folder.glob("out*")} == before
    assert {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*/weights.safetensors")} == stages


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--vary", "wbb=2"], "--vary wbb: recipe pattern has no option --wbb; did you mean 'wb'"),
        (["--vary", "wb="], "--vary wb=: expected OPTION=VALUE,VALUE"),
        (["--vary", "wb=2,2"], "2 stands twice"),
        (["--vary", "wb=2,99"], "at wb 99: --wb: stages.pattern.wb: found 99"),
        (["--vary", "wb=2,4", "--wb", "3"], "--vary wb: --wb is given beside it"),
        (["--vary", "wb=2", "--seeds", "0"], "--seeds: found 0; it must be at least 1"),
        (["--vary", "wb=2", "--show"], "--show and --json belong to one run"),
        (["--vary", "wb=2", "--nonsense", "1"], "No such option"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(arguments, said, tmp_path):
    done = hwsim("sweep", "pattern", *arguments, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.code == 2 and said in done.err, done.err
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_of_a_sweep_is_told_at_once():
    with pytest.raises(ConfigError) as e:
        points(Request("pattern"), [axis("wb=77,2,99"), axis("ab,eb=88")], 1)
    assert {m.split(":")[0] for m in e.value.messages} == {"at wb 77", "at wb 99", "at ab=eb 88"}


def test_there_is_no_such_recipe():
    assert "there is no 'patern'" in refused("sweep", "patern", "--vary", "wb=2")


def test_seeds_go_upwards_from_the_given_one():
    made = points(Request("pattern", seed="7"), [Axis(("wb",), ("2", "3"))], 3)
    assert [(p.value, p.seed, p.resolved.recipe.seed) for p in made] == [
        (v, s, s) for v in ("2", "3") for s in (7, 8, 9)
    ]
    assert made[3].resolved.recipe.stages["pattern"].wb == 3


def test_image_networks_are_swept_at_each_scale_of_variation():
    rows = [
        {"axis": "quant", "point": "1", "stage": "vat", "varied": 1, "at": at, "measure": "accuracy", "value": v,
         "energy_pj": e}
        for at, v, e in ((0.0, 0.9, 5.0), (1.0, 0.8, 5.0), (0.0, 0.7, 7.0), (1.0, 0.6, 7.0))
    ]  # fmt: skip
    short = summary(rows)
    assert [(s["at"], s["seeds"], round(s["mean"], 6), s["energy_pj_mean"]) for s in short] == [
        (0.0, 2, 0.8, 6.0), (1.0, 2, 0.7, 6.0),
    ]  # fmt: skip


def test_energy_leaves_out_totals_static_and_the_network_that_does_not_spike():
    rows = [
        {"layer": layer, "phase": phase, "energy_pj": pj}
        for layer, phase, pj in (
            ("a", "forward", 1.0), ("b", "update", 2.0), ("TOTAL", "forward", 4.0), ("all", "static", 8.0),
            ("a", "ann_inference", 16.0),
        )
    ]  # fmt: skip
    assert energy_of(rows) == 3.0
