"""The recipes of integer networks: they run, leave their tables, find finished stages, and refuse what cannot be."""

import csv
from pathlib import Path

import pytest
from command_line import hwsim

from hwsim.recipe.checkpoint import load_arrays
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.tracefile import read_trace

SMALL = ["--smoke"]


def rows(folder: Path, name: str) -> list[dict]:
    with (folder / name).open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pattern(runs):
    done = hwsim("recipe", "pattern", *SMALL, "--runs", runs)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent, done


@pytest.fixture(scope="module")
def decolle(runs):
    done = hwsim("recipe", "decolle", *SMALL, "--runs", runs, "--repeats", "2", "--steps", "24")
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent, done


def test_the_pattern_recipe_leaves_a_row_an_epoch_and_its_rasters(pattern):
    folder, done = pattern
    loss = rows(folder, "loss.csv")
    assert [(r["stage"], int(r["epoch"])) for r in loss] == [(s, e) for s in ("pattern", "float") for e in range(1, 13)]
    for stage in ("pattern", "float"):
        first, *_, last = (float(r["loss"]) for r in loss if r["stage"] == stage)
        assert f"{stage}: van Rossum distance {first:.1f} at epoch 1, {last:.1f} at epoch 12" in done.out
        rasters, _ = load_arrays(folder / stage / "weights.safetensors")
        assert rasters["raster12"].shape == rasters["target"].shape == (50, 50)
        assert (folder / f"rasters-{stage}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "loss.png").stat().st_size > 1000


def test_a_finished_pattern_run_is_found_again(pattern, runs):
    folder, done = pattern
    again = hwsim("recipe", "pattern", *SMALL, "--runs", runs)
    assert again.code == 0 and again.out == done.out
    assert again.err.count("finished before") == 3


def test_what_the_pattern_network_did_is_counted_and_priced(pattern):
    folder, _ = pattern
    counts = read_trace(folder)
    assert counts.images == 1 and list(counts.layers) == ["hidden", "output"]
    hidden, output = counts.layers.values()
    assert hidden.held[0].bits == 2 and hidden.held[0].distinct <= 4
    assert hidden.spikes_T.sum() == output.unit.sum()
    energy = rows(folder, "energy.csv")
    assert {r["phase"] for r in energy} == {"forward", "error", "gradient", "update", "ann_inference"}
    priced = hwsim("energy", folder, "--card", "memory_iscas2020")
    assert priced.code == 0 and "organization" in priced.out, priced.err


def test_decolle_is_tested_where_validation_was_best(decolle):
    folder, done = decolle
    metrics, accuracy = rows(folder, "metrics.csv"), rows(folder, "accuracy.csv")
    assert [(r["stage"], r["repeat"]) for r in metrics] == [(s, n) for s in ("decolle", "float") for n in "01"]
    assert all(r["is_best"] == "True" and r["test_accuracy3"] for r in metrics)
    for stage in ("decolle", "float"):
        own = [r for r in accuracy if r["stage"] == stage]
        assert [int(r["layer"]) for r in own] == [1, 2, 3]
        each = [float(r["test_accuracy3"]) for r in metrics if r["stage"] == stage]
        assert float(own[-1]["mean"]) == pytest.approx(sum(each) / 2)
        assert int(own[-1]["repeats"]) == 2
    assert "over 2 seeds" in done.out and (folder / "learning.png").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pattern", "--ab", "3"], "ab: 3 bits can never fire"),
        (["pattern", "--wb", "40"], "stages.pattern.wb"),
        (["pattern", "--target", "nothing.png"], "there is no file nothing.png"),
        (["pattern", "--from", "."], "--from ."),
        (["decolle", "--steps", "5000"], "window"),
        (["decolle", "--data", "gesture", "--data-dir", "/nowhere"], "gesture"),
        (["decolle", "--batch-size", "5000"], "batch_size: 5000"),
        (["decolle", "--burn-in", "60"], "burn_in: 60"),
        (["pattern", "--set", "stages.pattern.card=loihi"], "card loihi: its state block has no bits for 'wb'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(tmp_path, words, says):
    done = hwsim("recipe", *words, "--runs", tmp_path / "runs")
    assert done.code == 2 and "Traceback" not in done.err
    assert any(says in text for text in done.err.splitlines()), done.err
    assert not list(tmp_path.rglob("stage.json"))


def test_networks_of_any_depth_have_their_columns(runs):
    layers = ["--kind", "dense", "--channels", "6,6,6,6,6", "--steps", "24", "--epochs", "1"]
    done = hwsim("recipe", "decolle", *SMALL, "--runs", runs, *layers)
    assert done.code == 0, done.err
    folder = Path(done.out.splitlines()[-1]).parent
    assert all(r["validation_accuracy5"] for r in rows(folder, "metrics.csv"))
    assert [r["layer"] for r in rows(folder, "accuracy.csv") if r["stage"] == "decolle"] == list("12345")


def test_counting_decolle_is_refused_before_anything_is_trained(tmp_path):
    shown = hwsim("recipe", "decolle", "--show").out
    (tmp_path / "my.yaml").write_text(shown + "  account: {do: account, of: decolle}\n")
    done = hwsim("recipe", tmp_path / "my.yaml", "--runs", tmp_path / "runs")
    assert done.code == 2 and "'decolle' is DECOLLE, which cannot be counted yet" in done.err


def test_none_switches_a_width_off_and_card_asks_the_card():
    assert Pattern().widths("wb", "gb") == {"wb": 2, "gb": 8}
    assert Pattern(wb="none", gb=6).widths("wb", "gb") == {"wb": None, "gb": 6}
    assert Decolle(epochs=1).widths("pb", "rfb", "sig") == {"pb": 12, "rfb": 2, "sig": 6}
