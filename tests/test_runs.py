"""Runs: stages are reused by content, interrupted ones end with the same bytes, tables are what their columns say."""

import csv
import errno
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from command_line import TINY, Done, child, hwsim, refused
from scipy.stats import t

from hwsim.recipe import checkpoint
from hwsim.recipe.checkpoint import FORMAT
from hwsim.recipe.recover import SRAM_COLUMNS
from hwsim.recipe.results import ACCURACY, GAINS
from hwsim.recipe.summary import CHIPS, METRICS
from hwsim.report.energy import COLUMNS
from hwsim.report.sparsity import COLUMNS as SPARSITY_COLUMNS
from hwsim.report.sparsity import LEVELS

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
TABLES = {
    "metrics.csv": METRICS, "chips.csv": CHIPS, "accuracy.csv": ACCURACY, "gains.csv": GAINS, "levels.csv": LEVELS,
    "energy.csv": COLUMNS, "sparsity.csv": SPARSITY_COLUMNS,
}  # fmt: skip


def tiny(runs: Path, *arguments: str | Path) -> Done:
    done = hwsim("recipe", TINY, "--runs", runs, *arguments)
    assert done.code == 0, done
    return done


def only(runs: Path) -> Path:
    """The one run folder in a folder of runs."""
    (folder,) = runs.iterdir()
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """File → bytes of all that must not depend on how a run came about."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("manifest.json", "recipe.yaml", ".lock")}


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def stages_done(err: str) -> dict[str, bool]:
    """Training stage → whether it was reused; from what a run told."""
    return {line.split(":")[0]: "finished before" in line for line in err.splitlines() if " epochs in " in line
            or "finished before" in line}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs that holds a finished one. Tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def finished(runs) -> Path:
    return only(runs)


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """The finished run in a folder of runs of its own."""
    shutil.copytree(runs, tmp_path / "copied")
    return tmp_path / "copied"


# --- tables -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_these_files_and_no_others(finished):
    assert set(results(finished)) == {
        *TABLES, "accuracy.png", "energy.png", "summary.md", "start/stage.json", "start/weights.safetensors",
        "vat/stage.json", "vat/weights.safetensors", "evaluate/stage.json", "account/stage.json",
        "account/trace.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_columns_that_are_declared(finished, name):
    rows = table(finished, name)
    assert rows and all(tuple(row) == TABLES[name] for row in rows)
    assert (finished / name).read_bytes().startswith(",".join(TABLES[name]).encode() + b"\n")


def test_there_is_a_row_for_each_chip(finished):
    rows = table(finished, "chips.csv")
    keys = [(r["network"], r["variation_scale"], r["chip"]) for r in rows]
    assert keys == [(n, s, c) for n in ("start", "vat") for s in ("0", "2") for c in "012"]
    assert all(r["stage"] == "evaluate" and r["images"] == "11" for r in rows)
    assert all(abs(11 * float(r["accuracy"]) - round(11 * float(r["accuracy"]))) < 1e-6 for r in rows)


def test_accuracies_are_recomputed_from_the_chips(finished):
    chips = table(finished, "chips.csv")
    for row in table(finished, "accuracy.csv"):
        values = [float(c["accuracy"]) for c in chips
                  if (c["network"], c["variation_scale"]) == (row["network"], row["variation_scale"])]  # fmt: skip
        n, mean = len(values), sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        half = t.ppf(0.975, n - 1) * std / math.sqrt(n)
        wanted = {"chips": n, "mean": mean, "std": std, "ci95_low": mean - half, "ci95_high": mean + half,
                  "minimum": min(values), "images": 11}  # fmt: skip
        assert {k: float(row[k]) for k in wanted} == pytest.approx(wanted, abs=1e-9)


def test_gains_are_recomputed_from_the_chips(finished):
    accuracy = {(c["network"], c["variation_scale"], c["chip"]): float(c["accuracy"])
                for c in table(finished, "chips.csv")}  # fmt: skip
    rows = table(finished, "gains.csv")
    assert [(r["network"], r["reference"], r["variation_scale"]) for r in rows] == [
        ("vat", "start", "0"), ("vat", "start", "2")]  # fmt: skip
    for r in rows:
        s = r["variation_scale"]
        gain = sum(accuracy["vat", s, c] - accuracy["start", s, c] for c in "012") / 3
        assert float(r["gain_mean"]) == pytest.approx(gain, abs=1e-9)


def test_fractions_are_fractions(finished):
    columns = {
        "chips.csv": ["accuracy"],
        "accuracy.csv": ["mean", "minimum"],
        "metrics.csv": ["validation_accuracy"],
        "energy.csv": ["share", "input_density", "weight_density"],
        "sparsity.csv": ["zeros_fraction"],
    }
    for name, names in columns.items():
        values = [float(row[c]) for row in table(finished, name) for c in names if row[c] != ""]
        assert values and all(0 <= v <= 1 for v in values), name


def test_there_is_a_row_of_metrics_for_each_epoch_and_one_best_so_far(finished):
    rows = table(finished, "metrics.csv")
    assert [(r["stage"], r["epoch"]) for r in rows] == [("start", "1"), ("vat", "1"), ("vat", "2")]
    assert rows[0]["lr"] == "0.1" and rows[0]["is_best"] == rows[1]["is_best"] == "1"


def test_energies_add_up_and_name_the_run(finished):
    rows = table(finished, "energy.csv")
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase]
        total = [float(r["energy_pj"]) for r in part if r["layer"] == "TOTAL" and r["component"] == "all"]
        each = [float(r["count"]) * float(r["unit_energy_pj"]) for r in part if r["layer"] != "TOTAL"]
        assert [sum(each)] == pytest.approx(total, rel=1e-8)
    assert {r["run_id"] for r in rows} == {finished.name}


def test_one_bit_cells_use_two_levels(finished):
    rows = table(finished, "levels.csv")
    assert [(r["layer"], r["part"], r["bits"]) for r in rows] == [(f"conv{i}", "synapse", "1") for i in (1, 2, 3)]
    assert {r["levels_used"] for r in rows} <= {"1", "2"}


def test_the_manifest_says_what_the_run_was(finished, runs):
    said = json.loads((finished / "manifest.json").read_text())
    assert said["state"] == "done" and said["command"].split()[:2] == ["hwsim", "recipe"] and TINY in said["command"]
    assert {"hwsim", "python", "torch", "numpy", "numba"} <= set(said["versions"])
    assert said["machine"]["backend"] == "cpu" and "numba" in said["machine"]["backend_reason"]
    assert {"platform", "cores", "threads", "device"} <= set(said["machine"])
    assert said["seed"] == 1234 and said["data"]["name"] == "digits" and len(said["data"]["checksum"]) == 64
    assert set(said["cards"]) == {"rram_65nm_asu", "horowitz_45nm"}
    assert all(len(h) == 16 for h in [*said["cards"].values(), *said["keys"].values()])
    assert list(said["keys"]) == ["start", "vat", "evaluate", "account"] and said["seconds"] > 0
    assert said["reused"] == [] and said["loaded"] == {}


def test_the_runs_recipe_runs_again_as_it_stands(finished, runs):
    done = hwsim("recipe", finished / "recipe.yaml", "--runs", runs.parent / "again")
    assert done.code == 0
    mine, theirs = (json.loads((only(r) / "manifest.json").read_text()) for r in (runs, runs.parent / "again"))
    assert mine["keys"] == theirs["keys"]
    assert only(runs).name.removeprefix("tiny") == only(runs.parent / "again").name.removeprefix("recipe")


# --- reuse --------------------------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing_and_leaves_the_same_bytes(copied):
    folder = only(copied)
    before, times = results(folder), {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    done = tiny(copied)
    assert stages_done(done.err) == dict.fromkeys(("start", "vat", "evaluate", "account"), True)
    assert "epoch" not in done.err
    assert results(folder) == before
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == times
    assert json.loads((folder / "manifest.json").read_text())["reused"] == ["start", "vat", "evaluate", "account"]


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        (["--set", "stages.evaluate.chips=2"], ["start", "vat", "account"]),
        (["--scales", "0,1"], ["start", "vat", "account"]),
        (["--set", "stages.account.card=loihi"], ["start", "vat", "evaluate", "account"]),
        (["--set", "stages.account.rule=bptt"], ["start", "vat", "evaluate", "account"]),
        (["--set", "stages.account.samples=5"], ["start", "vat", "evaluate"]),
        (["--set", "stages.vat.lr=0.05"], ["start"]),
        (["--start-epochs", "2"], []),
        (["--quant", "2"], []),
        (["--seed", "7"], []),
        (["--set", "stages.vat.redraw=chip"], ["start"]),
        (["--set", "stages.vat.gradient=xnor"], ["start"]),
        (
            ["--set", "stages.evaluate.adapt=[0, 1]", "--set", "stages.evaluate.adapt_batch_size=8"],
            ["start", "vat", "account"],
        ),
        (["--set", "data.limit=41"], []),
    ],
    ids=lambda v: " ".join(v),
)
def test_only_what_depends_on_a_change_is_done_again(copied, change, reused):
    done = tiny(copied, *change)
    assert len(list(copied.iterdir())) == 2
    found = stages_done(done.err)
    assert [n for n, before in found.items() if before] == reused
    new = max(copied.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert (new / "start" / "weights.safetensors").exists()  # a run holds all that it rests on


def test_a_copied_stage_stands_on_its_own(copied):
    old = only(copied)
    tiny(copied, "--set", "stages.account.samples=5")
    shutil.rmtree(old)
    done = tiny(copied, "--set", "stages.account.samples=5")
    assert all(stages_done(done.err).values()) and str(old) not in done.err


def test_the_name_of_a_recipe_does_not_matter_for_reuse(copied, tmp_path):
    (tmp_path / "renamed.yaml").write_bytes(Path(TINY).read_bytes())
    done = hwsim("recipe", tmp_path / "renamed.yaml", "--runs", copied)
    assert done.code == 0 and all(stages_done(done.err).values())


def test_the_name_of_a_card_does_not_matter_for_reuse(copied, tmp_path):
    from hwsim.config import shipped

    (tmp_path / "mine.yaml").write_bytes((shipped("devices") / "rram_65nm_asu.yaml").read_bytes())
    done = tiny(copied, "--set", f"device.card={tmp_path / 'mine.yaml'}")
    assert all(stages_done(done.err).values())


def test_a_card_whose_number_changed_is_another_card(copied, tmp_path):
    from hwsim.config import shipped

    text = (shipped("devices") / "rram_65nm_asu.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("1: 0.08164", "1: 0.0817"), encoding="utf-8")
    done = tiny(copied, "--set", f"device.card={tmp_path / 'mine.yaml'}")
    assert not any(stages_done(done.err).values())


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated weights", "changed weights", "changed rows", "another format"])
def test_a_damaged_run_is_refused_in_one_line_and_mended_by_what_it_says(copied, finished, damage):
    folder = only(copied)
    weights, record = folder / "vat" / "weights.safetensors", folder / "evaluate" / "stage.json"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "changed weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "changed rows":
        record.write_text(record.read_text().replace('"accuracy": 0.', '"accuracy": 0.9', 1))
    else:
        record.write_text(record.read_text().replace(f'"format": {FORMAT}', '"format": 99', 1))
    done = hwsim("recipe", TINY, "--runs", copied, "--quiet")
    stage = "vat" if "weights" in damage else "evaluate"
    assert done.code == 2 and len(done.lines) == 1 and str(folder / stage) in done.err and not done.out
    shutil.rmtree(folder / stage)
    tiny(copied)
    assert results(folder) == results(finished)


def test_leftovers_of_a_killed_process_do_not_matter(copied, finished):
    folder = only(copied)
    for name in ("summary.md.part9", "vat/weights.safetensors.part9", "vat/stage.json.part9"):
        (folder / name).write_bytes(b"half")
    (folder / "vat" / "stage.json").unlink()
    tiny(copied)
    assert results(folder) == results(finished)


# --- interruption -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of the program runs any more."""


WRITES = [
    "recipe.yaml", "manifest.json", "start/resume.safetensors", "start/weights.safetensors", "start/stage.json",
    "vat/resume.safetensors", "vat/weights.safetensors", "vat/stage.json", "evaluate/resume.json",
    "evaluate/stage.json", "metrics.csv", "accuracy.png", "summary.md",
]  # fmt: skip


def test_a_run_that_is_killed_at_any_write_ends_with_the_same_bytes(tmp_path, finished, monkeypatch):
    """One folder, and an attempt for each file that dies before its rename, then one that dies behind it."""
    replace, folder = Path.replace, tmp_path / "runs" / finished.name
    for write in WRITES:
        for behind in (False, True):

            def dying(self, target, write=write, behind=behind):
                dies = target == folder / write
                if behind or not dies:
                    replace(self, target)
                if dies:
                    raise Killed
                return target

            monkeypatch.setattr(Path, "replace", dying)
            with pytest.raises(Killed):
                hwsim("recipe", TINY, "--runs", tmp_path / "runs", "--quiet")
            monkeypatch.undo()
    tiny(tmp_path / "runs")
    assert results(folder) == results(finished)


def test_a_full_disk_is_one_line_and_nothing_finished_is_lost(tmp_path, finished, monkeypatch):
    fsync, runs = os.fsync, tmp_path / "runs"
    for room in (0, 2, 3, 5, 6, 8):
        left = room

        def full(descriptor):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(checkpoint.os, "fsync", full)
        done = hwsim("recipe", TINY, "--runs", runs, "--quiet")
        monkeypatch.undo()
        assert done.code == 2 and len(done.lines) == 1 and not done.out
        assert "No space left on device; nothing finished is lost" in done.err and str(runs) in done.err
        assert not list(runs.rglob("*.part*"))
    tiny(runs)
    assert results(only(runs)) == results(finished)


LONG = ["--epochs", "12", "--set", "stages.evaluate.chips=8", "--quiet"]


@posix
def test_a_run_that_is_killed_and_repeated_ends_with_the_same_bytes(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    log = tmp_path / "log"
    process = child(log, "recipe", TINY, "--runs", calm, *LONG)
    process.join(60)
    assert process.exitcode == 0, log.read_text()
    chance, codes = random.Random(1), []
    for _ in range(3):
        process = child(log, "recipe", TINY, "--runs", killed, *LONG)
        _wait(lambda p=process: list(killed.glob("*/*/resume.*")) or not p.is_alive())
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.join(30)
        codes.append(process.exitcode)
    assert codes[0] == -signal.SIGKILL
    process = child(log, "recipe", TINY, "--runs", killed, *LONG)
    process.join(60)
    assert process.exitcode == 0, log.read_text()
    assert results(only(killed)) == results(only(calm))


def _wait(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@posix
def test_two_processes_on_one_run_both_end_well_with_the_same_bytes(tmp_path, finished):
    logs = [tmp_path / "log0", tmp_path / "log1"]
    both = [child(log, "recipe", TINY, "--runs", tmp_path / "runs") for log in logs]
    for process in both:
        process.join(120)
    said = [log.read_text() for log in logs]
    assert [p.exitcode for p in both] == [0, 0], said
    assert results(only(tmp_path / "runs")) == results(finished)
    assert sorted(all(stages_done(text).values()) for text in said) == [False, True]


@posix
def test_a_limit_on_the_size_of_files_is_one_line(tmp_path):
    process = child(tmp_path / "log", "recipe", TINY, "--runs", tmp_path / "runs", "--quiet", before=_small_files)
    process.join(60)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert process.exitcode == 2 and "File too large; nothing finished is lost" in line and "safetensors" in line


def _small_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


# --- from a finished run ------------------------------------------------------------------------------------------


def test_the_evaluate_recipe_measures_a_finished_network_on_the_same_chips(finished, tmp_path):
    options = ["--from", finished, "--runs", tmp_path / "runs", "--chips", "3", "--var-scale", "0,2"]
    assert hwsim("recipe", "evaluate", *options).code == 0
    folder = only(tmp_path / "runs")
    mine = [(r["variation_scale"], r["chip"], r["accuracy"]) for r in table(folder, "chips.csv")]
    theirs = [(r["variation_scale"], r["chip"], r["accuracy"]) for r in table(finished, "chips.csv")
              if r["network"] == "vat"]  # fmt: skip
    assert mine == theirs
    said = json.loads((folder / "manifest.json").read_text())
    assert said["loaded"]["trained"]["from"] == str(finished / "vat")


def test_a_stages_folder_names_its_network(finished, tmp_path):
    done = hwsim("recipe", "evaluate", "--from", finished / "start", "--runs", tmp_path / "r", "--smoke", "--set",
                 "data.limit=40", "--json")  # fmt: skip
    assert done.code == 0
    said = json.loads((Path(json.loads(done.out)["run"]) / "manifest.json").read_text())
    assert said["loaded"]["trained"]["from"] == str(finished / "start")


def test_training_goes_on_from_a_finished_run(finished, tmp_path):
    done = tiny(tmp_path, "--from", finished)
    assert f"start: weights of {finished / 'vat'}" in done.err and "vat: 2 epochs" in done.err
    again = tiny(tmp_path, "--from", finished)
    assert stages_done(again.err) == {"vat": True, "evaluate": True, "account": True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "25"], "--steps: net.steps: found 25, but the network in {vat} was trained with 2 and has as many "
                            "sets of BNTT statistics; take 2, or train again"),
        (["--set", "net.width=0.5"], "--set net.width=0.5: net.width: found 0.5, but the network in {vat} was trained "
                                     "with 0.0625; take 0.0625, or train again"),
        (["--set", "net.encode=direct"], "net.encode: found direct, but the network in {vat} was trained with poisson"),
    ],
)  # fmt: skip
def test_another_network_than_the_runs_is_refused(finished, tmp_path, options, says):
    (line,) = refused("recipe", "evaluate", "--from", finished, "--runs", tmp_path, *options).splitlines()
    assert says.format(vat=finished / "vat") in line
    assert not list(tmp_path.iterdir())


def test_every_difference_to_the_runs_network_is_told(finished, tmp_path):
    changes = ["--steps", "3", "--set", "net.leak=0.5"]
    assert len(refused("recipe", "evaluate", "--from", finished, "--runs", tmp_path, *changes).splitlines()) == 2


@pytest.mark.parametrize("change", ["classes", "image"])
def test_data_of_other_classes_or_another_size_are_refused(finished, tmp_path, monkeypatch, change):
    from dataclasses import replace

    from hwsim.data.image import Split
    from hwsim.recipe import run

    def other(*arguments, **options):
        data = load(*arguments, **options)
        if change == "classes":
            return replace(data, classes=100)
        larger = [Split(s.images_NCHW.repeat(1, 1, 4, 4), s.labels_N) for s in (data.train, data.validation, data.test)]
        return replace(data, train=larger[0], validation=larger[1], test=larger[2])

    load = run.load_images
    monkeypatch.setattr(run, "load_images", other)
    (line,) = refused("recipe", "evaluate", "--from", finished, "--runs", tmp_path).splitlines()
    what = "1x8x8 images in 100 classes" if change == "classes" else "1x32x32 images in 10 classes"
    assert line.startswith(f"--from {finished}: data.name: digits has {what}") and "train again" in line


def test_a_run_without_a_network_is_refused(copied, tmp_path):
    folder = only(copied)
    (line,) = refused("recipe", "evaluate", "--from", folder / "evaluate", "--runs", tmp_path).splitlines()
    assert "no finished network lies there" in line
    for weights in folder.rglob("weights.safetensors"):
        weights.unlink()
    (line,) = refused("recipe", "evaluate", "--from", folder, "--runs", tmp_path).splitlines()
    assert "no finished network lies there" in line


@pytest.mark.parametrize("name", ["vat/weights.safetensors", "vat/stage.json", "manifest.json"])
def test_a_damaged_run_to_start_from_is_refused(copied, tmp_path, name):
    file = only(copied) / name
    file.write_bytes(file.read_bytes()[:-20])
    (line,) = refused("recipe", "evaluate", "--from", only(copied), "--runs", tmp_path).splitlines()
    assert str(file) in line


def test_a_run_of_another_format_to_start_from_is_refused(copied, tmp_path):
    file = only(copied) / "vat" / "stage.json"
    file.write_text(file.read_text().replace(f'"format": {FORMAT}', '"format": 99', 1))
    (line,) = refused("recipe", "evaluate", "--from", only(copied), "--runs", tmp_path).splitlines()
    assert f"written in format 99, this hwsim reads {FORMAT}" in line


# --- with SRAM ----------------------------------------------------------------------------------------------------

SRAM = """
  recover: {do: recover, from: vat, epochs: 1, batch_size: 16, validation_chips: 1, sram: {shift_bits: [0, 1]}}
  own: {do: recover, from: vat, redraw: chip, fixed_chips: 2, epochs: 2, batch_size: 16, validation_chips: 1}
  evaluate:
    {do: evaluate, of: [start, vat, recover, own], chips: 3, variation_scales: [0, 2], adapt: [0, 2],
     adapt_batch_size: 16}
  account: {do: account, of: recover, samples: 10}
"""
VIEWS = ("start", "vat", "recover", "recover/shift+0", "recover/shift+1", "own")


@pytest.fixture(scope="module")
def sram_file(tmp_path_factory) -> Path:
    """The tiny recipe with two recoveries: an ensemble for any chip, and a network for each of two chips."""
    path = tmp_path_factory.mktemp("recipe") / "sram.yaml"
    path.write_text(Path(TINY).read_text().split("  evaluate: {")[0] + SRAM.lstrip("\n"))
    return path


def recover(file: Path, runs: Path, *arguments: str | Path) -> Done:
    done = hwsim("recipe", file, "--runs", runs, *arguments)
    assert done.code == 0, done
    return done


@pytest.fixture(scope="module")
def recovered(sram_file, tmp_path_factory) -> Path:
    """A finished run of it. Tests only read it."""
    runs = tmp_path_factory.mktemp("runs")
    recover(sram_file, runs)
    return only(runs)


def rows_of(folder: Path, *networks: str) -> list[dict[str, str]]:
    return [
        {k: v for k, v in r.items() if k != "stage"} for r in table(folder, "chips.csv") if r["network"] in networks
    ]


def test_several_networks_of_a_stage_lie_in_files_of_their_own(recovered):
    weights = sorted(str(p.relative_to(recovered)) for p in recovered.rglob("weights*"))
    assert weights == [
        "own/weights-chip0.safetensors", "own/weights-chip1.safetensors", "recover/weights-shift+0.safetensors",
        "recover/weights-shift+1.safetensors", "start/weights.safetensors", "vat/weights.safetensors",
    ]  # fmt: skip
    said = json.loads((recovered / "own" / "stage.json").read_text())
    assert [(m["file"], m["chip"], m["shift_bit"]) for m in said["members"]] == [
        ("weights-chip0.safetensors", 0, 0), ("weights-chip1.safetensors", 1, 0)]  # fmt: skip
    assert set(said["files"]) == {m["file"] for m in said["members"]}
    assert not list(recovered.rglob("resume*"))


@pytest.mark.parametrize("name", ["sram.csv", *TABLES])
def test_a_table_of_a_run_with_sram_has_the_columns_that_are_declared(recovered, name):
    rows = table(recovered, name)
    assert rows and all(tuple(row) == {**TABLES, "sram.csv": SRAM_COLUMNS}[name] for row in rows)


def test_each_network_is_measured_on_its_chips_with_and_without_adaptation(recovered):
    rows = table(recovered, "chips.csv")
    assert [(r["network"], r["variation_scale"], r["chip"], r["adapt_batches"]) for r in rows] == [
        (n, s, c, a) for n in VIEWS for s in ("0", "2") for c in ("01" if n == "own" else "012") for a in ("0", "2")
    ]
    accuracy = {(r["network"], r["adapt_batches"], r["variation_scale"]): r for r in table(recovered, "accuracy.csv")}
    assert set(accuracy) == {(n, a, s) for n in VIEWS for a in ("0", "2") for s in ("0", "2")}
    for (network, adapt, scale), row in accuracy.items():
        values = [float(r["accuracy"]) for r in rows
                  if (r["network"], r["adapt_batches"], r["variation_scale"]) == (network, adapt, scale)]  # fmt: skip
        assert int(row["chips"]) == len(values) == (2 if network == "own" else 3)
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_networks_beside_it_and_adaptation_change_no_row(recovered, finished):
    plain = [r for r in rows_of(recovered, "start", "vat") if r["adapt_batches"] == "0"]
    assert plain == rows_of(finished, "start", "vat")


def test_gains_of_a_recovery_are_recomputed_from_the_chips(recovered):
    accuracy = {(r["network"], r["adapt_batches"], r["variation_scale"], r["chip"]): float(r["accuracy"])
                for r in table(recovered, "chips.csv")}  # fmt: skip
    rows = table(recovered, "gains.csv")
    pairs = [("vat", "start")] + [(n, r) for n in VIEWS[2:] for r in ("start", "vat")]
    assert [(r["network"], r["reference"], r["variation_scale"], r["adapt_batches"]) for r in rows] == [
        (n, r, s, a) for network in VIEWS[1:] for s in "02" for a in "02" for n, r in pairs if n == network
    ]
    for r in rows:
        chips = "01" if r["network"] == "own" else "012"
        mine, theirs = ([accuracy[r[n], r["adapt_batches"], r["variation_scale"], c] for c in chips]
                        for n in ("network", "reference"))  # fmt: skip
        gain = sum(a - b for a, b in zip(mine, theirs, strict=True)) / len(chips)
        assert int(r["chips"]) == len(chips) and float(r["gain_mean"]) == pytest.approx(gain, abs=1e-9)


def test_metrics_and_sram_tell_of_each_network(recovered):
    rows = table(recovered, "metrics.csv")
    own = [(r["chip"], r["shift_bit"], r["epoch"]) for r in rows if r["stage"] == "own"]
    assert own == [(c, "0", e) for c in "01" for e in "012"]
    assert [(r["chip"], r["shift_bit"], r["epoch"]) for r in rows if r["stage"] == "recover"] == [
        ("", s, e) for s in "01" for e in "01"]  # fmt: skip
    assert [(r["chip"], r["shift_bit"]) for r in rows if r["stage"] in ("start", "vat")] == [("", "")] * 3
    sram = [(r["stage"], r["chip"], r["shift_bit"], r["layer"], r["bits"]) for r in table(recovered, "sram.csv")]
    which = [("recover", "", "0"), ("recover", "", "1"), ("own", "0", "0"), ("own", "1", "0")]
    assert sram == [(*w, f"conv{i}", "4") for w in which for i in (1, 2, 3)]


def test_energies_of_two_arrays_and_two_networks_add_up(recovered, finished):
    rows = table(recovered, "energy.csv")
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase]
        total = [float(r["energy_pj"]) for r in part if r["layer"] == "TOTAL" and r["component"] == "all"]
        each = [float(r["count"]) * float(r["unit_energy_pj"]) for r in part if r["layer"] != "TOTAL"]
        assert [sum(each)] == pytest.approx(total, rel=1e-8)
    mine = [r for r in rows if r["phase"] == "inference" and r["layer"] != "TOTAL"]
    arrays = {(r["layer"], r["component"]): r["weight_bits"] for r in mine if r["component"] in ("rram", "sram")}
    assert arrays == {(f"conv{i}@shift{s}", part): bits for i in (1, 2, 3) for s in (0, 1)
                      for part, bits in (("rram", "1"), ("sram", "4"))}  # fmt: skip
    both = (recovered, finished)
    ann = [[r["energy_pj"] for r in table(f, "energy.csv") if r["phase"] == "ann_inference"] for f in both]
    assert ann[0] == ann[1]
    neurons = [[(r["layer"], r["neurons"]) for r in table(f, "sparsity.csv")] for f in both]
    assert neurons[0] == [(f"{layer}@shift{s}", n) for s in (0, 1) for layer, n in neurons[1]]


def test_fractions_of_a_run_with_sram_are_fractions(recovered):
    columns = {
        "chips.csv": ["accuracy"],
        "energy.csv": ["share", "input_density", "weight_density"],
        "sparsity.csv": ["zeros_fraction"],
        "sram.csv": ["zero_fraction", "masked_fraction", "zero_groups_fraction"],
    }
    for name, names in columns.items():
        values = [float(row[c]) for row in table(recovered, name) for c in names if row[c] != ""]
        assert values and all(0 <= v <= 1 for v in values), name


def test_networks_of_one_chip_are_counted_once(sram_file, recovered, tmp_path, finished):
    shutil.copytree(recovered, tmp_path / recovered.name)
    recover(sram_file, tmp_path, "--set", "stages.account.of=own")
    (folder,) = [p for p in tmp_path.iterdir() if p.name != recovered.name]
    neurons = [[r["neurons"] for r in table(f, "sparsity.csv")] for f in (folder, finished)]
    assert neurons[0] == neurons[1]


def test_a_run_with_sram_again_does_nothing_and_leaves_the_same_bytes(sram_file, recovered, tmp_path):
    folder = shutil.copytree(recovered, tmp_path / recovered.name)
    done = recover(sram_file, tmp_path)
    assert all(stages_done(done.err).values()) and "epoch" not in done.err
    assert list(stages_done(done.err)) == ["start", "vat", "recover", "own", "evaluate", "account"]
    assert results(folder) == results(recovered)


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ("stages.recover.sram.bits=3", ["start", "vat", "own"]),
        ("stages.recover.sram.shift_bits=[0]", ["start", "vat", "own"]),
        ("stages.own.fixed_chips=1", ["start", "vat", "recover", "account"]),
        ("stages.own.init=zeros", ["start", "vat", "recover", "account"]),
        ("stages.evaluate.adapt=[0, 1]", ["start", "vat", "recover", "own", "account"]),
        ("stages.vat.lr=0.05", ["start"]),
    ],
)
def test_only_what_depends_on_a_change_of_a_recovery_is_done_again(sram_file, recovered, tmp_path, change, reused):
    shutil.copytree(recovered, tmp_path / recovered.name)
    done = recover(sram_file, tmp_path, "--set", change)
    assert [n for n, before in stages_done(done.err).items() if before] == reused
    (new,) = [p for p in tmp_path.iterdir() if p.name != recovered.name]
    if "own" in reused:  # a run holds all that it rests on
        for file in ("weights-chip0.safetensors", "weights-chip1.safetensors"):
            assert (new / "own" / file).read_bytes() == (recovered / "own" / file).read_bytes()
        shutil.rmtree(tmp_path / recovered.name)
        assert all(stages_done(recover(sram_file, tmp_path, "--set", change).err).values())


SRAM_WRITES = [
    "recover/weights-shift+0.safetensors", "recover/resume-shift+1.safetensors", "recover/stage.json",
    "own/resume-chip1.safetensors", "own/weights-chip1.safetensors", "evaluate/resume.json", "sram.csv",
]  # fmt: skip


def test_a_run_with_sram_that_is_killed_at_any_write_ends_with_the_same_bytes(
    sram_file, recovered, tmp_path, monkeypatch
):
    replace, folder = Path.replace, tmp_path / recovered.name
    for stage in ("start", "vat"):
        shutil.copytree(recovered / stage, folder / stage)
    for write in SRAM_WRITES:
        for behind in (False, True):

            def dying(self, target, write=write, behind=behind):
                dies = target == folder / write
                if behind or not dies:
                    replace(self, target)
                if dies:
                    raise Killed
                return target

            monkeypatch.setattr(Path, "replace", dying)
            with pytest.raises(Killed):
                hwsim("recipe", sram_file, "--runs", tmp_path, "--quiet")
            monkeypatch.undo()
    recover(sram_file, tmp_path)
    assert results(folder) == results(recovered)


@pytest.mark.parametrize("stage", ["recover", "own"])
def test_the_evaluate_recipe_measures_a_recovered_network_on_the_same_chips(recovered, tmp_path, stage):
    options = ["--chips", "3", "--var-scale", "0,2", "--adapt", "0,2", "--set", "stages.evaluate.adapt_batch_size=16"]
    done = hwsim("recipe", "evaluate", "--from", recovered / stage, "--runs", tmp_path, *options)
    assert done.code == 0, done
    folder = only(tmp_path)
    named = [n for n in VIEWS if n.partition("/")[0] == stage]
    theirs = [r | {"network": r["network"].replace(stage, "trained")} for r in rows_of(recovered, *named)]
    assert rows_of(folder, *(n.replace(stage, "trained") for n in named)) == theirs
    said = json.loads((folder / "manifest.json").read_text())
    assert said["loaded"]["trained"]["from"] == str(recovered / stage) and len(said["loaded"]["trained"]["sha256"]) == 2


def test_more_batches_to_adapt_by_than_there_are_images_are_refused_before_anything_runs(sram_file, tmp_path):
    (line,) = refused("recipe", sram_file, "--runs", tmp_path, "--set", "stages.evaluate.adapt=[0, 3]").splitlines()
    assert "stages.evaluate.adapt: 3 x 16 is more than the 40 training images of digits; take at most 2 batches" in line
    assert not list(tmp_path.iterdir())
