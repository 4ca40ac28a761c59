"""The recipes of integer networks: they run, leave their tables, find finished stages, and refuse what cannot be."""

import contextlib
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import hwsim

from hwsim.device.pricelist import Prices
from hwsim.recipe.checkpoint import load_arrays
from hwsim.recipe.decolle import checked, count, train
from hwsim.recipe.integer_settings import Decolle, Events, Pattern
from hwsim.recipe.pattern import Trainer
from hwsim.recipe.progress import Progress
from hwsim.recipe.settings import Account
from hwsim.recipe.tracefile import read_trace
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows
from hwsim.report.footprint import footprint_rows

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


def test_what_decolle_did_and_how_it_learned_is_counted_and_priced(decolle):
    folder, _ = decolle
    counts = read_trace(folder)
    names = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("layer", "readout")]
    assert counts.images == 6 and counts.steps == 24 and list(counts.layers) == names
    metrics = [r for r in rows(folder, "metrics.csv") if (r["stage"], r["repeat"]) == ("decolle", "0")]
    for i in (1, 2, 3):
        layer, readout = counts.layers[f"layer{i}"], counts.layers[f"readout{i}"]
        assert layer.held[0].bits == 8 and readout.held[0].bits == 6 and not layer.normalized
        kept = layer.learned
        # 12 recordings in batches of 6, one epoch; steps 11 … 23 learn.
        assert (kept.recordings, kept.steps, kept.updates) == (12, 12 * 13, 2 * 13)
        assert kept.changed_share == pytest.approx(float(metrics[0][f"update_share{i}"])) and kept.changes > 0
        assert kept.errors / (kept.steps * layer.neurons) == pytest.approx(float(metrics[0][f"error_density{i}"]))
        gradients = kept.gradients / (kept.updates * kept.weights)
        assert gradients == pytest.approx(float(metrics[0][f"gradient_density{i}"]))
        assert layer.traced.votes == readout.readout.votes == 13 and readout.learned.scores > 0
    first, second = counts.layers["layer1"], counts.layers["layer2"]
    assert 0 < first.traced.arrived < first.fractional.sum() and second.traced.arrived <= first.spikes_T.sum()
    energy = rows(folder, "energy.csv")
    assert {r["phase"] for r in energy} == {"forward", "error", "gradient", "update", "ann_inference"}
    update = [r for r in energy if (r["layer"], r["action"]) == ("layer1", "master_write")]
    assert float(update[0]["count"]) == pytest.approx(first.learned.changes / 12)
    summary = (folder / "summary.md").read_text()
    assert "bits of memory" in summary and "as published" in summary
    assert (folder / "footprint.png").read_bytes().startswith(b"\x89PNG")
    bits = {(r["layer"], r["variable"]): int(r["bits"]) for r in rows(folder, "footprint.csv")}
    assert bits["layer1", "membrane_trace"] == 2 * 32 * 32 * 12 and bits["layer1", "refractory"] == first.neurons * 2


def test_finished_runs_of_decolle_are_priced_described_and_reported(decolle):
    folder, _ = decolle
    for words in (["energy"], ["energy", "--card", "loihi", "--rule", "inference"], ["footprint"],
                  ["describe", "--map-all"], ["report"]):  # fmt: skip
        done = hwsim(words[0], folder, *words[1:])
        assert done.code == 0, done.err
    page = (folder / "report.html").read_text()
    assert "Accuracy over epochs." in page and "membrane_trace_read" in page
    assert "net.name" not in page  # settings of image networks
    for command in ("energy", "footprint"):
        done = hwsim(command, folder, "--rule", "bptt")
        assert done.code == 2 and "learns from local errors; take local" in done.err


class Stop(Exception):
    """Ends a training in the middle."""


class Interrupted(Progress):
    """Says nothing; stops a training behind its first epoch where `stops` is set."""

    stops = False

    def say(self, text):
        if self.stops and "epoch 1:" in text:
            raise Stop


@pytest.fixture(scope="module")
def small():
    """A stage that trains two epochs in a moment, its data, what trains it."""
    events = Events(limit=8, steps=12, test_steps=12)
    stage = Decolle(epochs=2, batch_size=4, kind="dense", channels=[5], burn_in=2, events=events)
    trainer = Trainer(3, torch.device("cpu"), Interrupted())
    return stage, trainer, checked(stage, trainer)


def weights_of(folder: Path, small, *stops: bool) -> Path:
    """Weights of the stage `small`, trained in a folder, once for each of `stops`."""
    stage, trainer, data = small
    folder.mkdir()
    for trainer.progress.stops in stops:
        with contextlib.suppress(Stop):
            train("decolle", stage, trainer, "key", folder, data)
    trainer.progress.stops = False
    return folder / "weights-0.safetensors"


def test_an_interrupted_training_keeps_what_it_had_learned(tmp_path, small):
    whole, resumed = (
        load_arrays(weights_of(tmp_path / name, small, *stops))[0]
        for name, stops in (("whole", [False]), ("resumed", [True, False]))
    )
    assert whole.keys() == resumed.keys() and all(np.array_equal(v, resumed[k]) for k, v in whole.items())
    # 8 recordings in batches of 4, two epochs; steps 3 … 11 learn.
    assert whole["learned"][0, :3].tolist() == [16, 16 * 9, 4 * 9]


def test_narrower_states_take_less_memory_and_energy(tmp_path, small):
    stage, trainer, data = small
    weights = weights_of(tmp_path / "run", small, False)
    samples, definitions = Account(of="decolle", samples=3), Definitions(rule="local")
    bits, energy = [], []
    for own in (stage, stage.model_copy(update={"pb": 8})):
        counts = count(own, trainer, weights, data, samples)
        assert counts.images == 3
        bits.append({r["variable"]: r["bits"] for r in footprint_rows(counts, definitions) if r["layer"] == "layer1"})
        rows = energy_rows(counts, Prices.load("horowitz_45nm"), definitions, "r")
        energy.append({r["action"]: r["energy_pj"] for r in rows if r["layer"] == "layer1"})
    # Sums of gradients of 4 recordings at one place have 12 + 6 + 2 bits.
    assert bits[0]["gradient"] / 20 == bits[1]["gradient"] / 16 == 5 * 2 * 32 * 32 + 5
    assert {k for k in bits[0] if bits[0][k] != bits[1][k]} == {"membrane_trace", "gradient"}
    assert bits[0]["membrane_trace"] / 12 == bits[1]["membrane_trace"] / 8 == 2 * 32 * 32
    for action in ("membrane_trace_write", "gradient_write"):
        assert energy[0][action] > energy[1][action]


def test_decolle_is_not_priced_by_backpropagation(tmp_path):
    done = hwsim("recipe", "decolle", "--rule", "bptt", "--runs", tmp_path / "runs")
    assert done.code == 2 and "'decolle' is DECOLLE and learns from local errors" in done.err
    assert not list(tmp_path.rglob("stage.json"))


def test_updates_of_the_pattern_network_are_those_that_were_counted(pattern):
    folder, _ = pattern
    hidden = read_trace(folder).layers["hidden"]
    own = [r for r in rows(folder, "loss.csv") if r["stage"] == "pattern"]
    changes = sum(float(r["hidden_update_share"]) for r in own) * 70 * 40
    assert hidden.learned.changes == pytest.approx(changes) and hidden.learned.updates == 12
    writes = [r for r in rows(folder, "energy.csv") if (r["layer"], r["action"]) == ("hidden", "master_write")]
    assert float(writes[0]["count"]) == pytest.approx(changes / 12)
    assert not hidden.normalized and hidden.widths["membrane"] == 16 and hidden.widths["momentum"] == 0
    actions = {r["action"] for r in rows(folder, "energy.csv")}
    assert not {"norm_read", "momentum_read"} & actions


def test_none_switches_a_width_off_and_card_asks_the_card():
    assert Pattern().widths("wb", "gb") == {"wb": 2, "gb": 8}
    assert Pattern(wb="none", gb=6).widths("wb", "gb") == {"wb": None, "gb": 6}
    assert Decolle(epochs=1).widths("pb", "rfb", "sig") == {"pb": 12, "rfb": 2, "sig": 6}
