"""`hwsim compare`: rows are those of the runs' accuracy.csv, columns the settings that differ; or it is refused."""

import csv
import json
import shlex
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from command_line import hwsim, refused

from hwsim.recipe import chips

COMMON = "epochs: 1, batch_size: 16, validation_chips: 1"
VAT = f"""
title: Settings to compare
net: {{name: vgg5, width: 0.125, steps: 1}}
data: {{name: digits, limit: 40}}
device: {{weights: {{bits: 2}}}}
from_replaces: vat
stages:
  vat: {{do: train, {COMMON}}}
"""
RECOVER = f"  recover: {{do: recover, from: vat, {COMMON}}}\n"
RECIPE = f"""{VAT}{RECOVER}
  prune: {{do: recover, from: vat, {COMMON}, prune: {{group: 4, by: group, threshold: 0.7}}}}
  again: {{do: recover, from: prune, {COMMON}}}
  early: {{do: evaluate, of: [vat], chips: 2, variation_scales: [0, 1]}}
  late: {{do: evaluate, of: [recover, prune, again], chips: 2, variation_scales: [1], adapt: [0, 1],
          adapt_batch_size: 16}}
"""
HYBRID = ("recover", "prune", "again")
"""Stages whose networks have an SRAM part. Each has two rows: as it is, and adapted by one batch."""
ACCURACY = [
    "network", "adapt_batches", "variation_scale", "chips", "mean", "std", "ci95_low", "ci95_high", "minimum", "images",
]  # fmt: skip
SPARSITY = ["zero_words", "zero_groups"]
DIFFERENT = {
    "base": {},
    "bits": {"device.weights.bits": 4, "device.weights.quantizer": "xnor"},
    "words": {f"stages.{s}.sram.bits": 2 for s in HYBRID},
    "shifts": {"stages.recover.sram.shift_bits": [-1, 0], "stages.early.redraw": "batch"},
    "pruned": {"stages.prune.prune.threshold": 0.4, "stages.prune.prune.group": 8, "stages.prune.variation_scale": 2},
    "tested": {"stages.late.adapt_batch_size": 8, "stages.late.batch_size": 5, "data.dir": "elsewhere"},
}
"""Run → what is set otherwise than in the recipe."""
FEW = {"stages.late.of": ["recover"]}
REDRAWN = FEW | {"stages.early.redraw": "batch"}


def execute(home: Path, sets: dict | None = None, *arguments: str | Path, text: str = RECIPE):
    """`hwsim recipe` in a folder where runs share finished stages."""
    file = home / "r.yaml"
    file.write_text(text, encoding="utf-8")
    options = [a for place, value in (sets or {}).items() for a in ("--set", f"{place}={json.dumps(value)}")]
    return hwsim("recipe", file, "--runs", home / "runs", "--quiet", *options, *arguments)


def run(*arguments, **more) -> Path:
    """The folder of a finished run."""
    done = execute(*arguments, **more)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    """Runs are quicker without, and no table depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwsim.report.plot.accuracy_figure", lambda *_: b"")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def runs(home) -> dict[str, Path]:
    """Finished runs that tests only read."""
    made = {name: run(home, sets) for name, sets in DIFFERENT.items()}
    for name, size in (("base", 4), ("bits", 8)):
        made[f"of {name}"] = run(home, REDRAWN | {"stages.early.batch_size": size}, "--from", made[name] / "vat")
    return made


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def measured(folder: Path, *networks: str) -> list[dict[str, str]]:
    """Rows of a run's accuracy.csv, all or those of some networks, each with the run's name."""
    rows = [{"run": folder.name, **row} for row in table(folder / "accuracy.csv")]
    return [row for row in rows if not networks or row["network"] in networks]


class Compared:
    """What `hwsim compare … --csv` has written, in its parts."""

    def __init__(self, folder: Path, *arguments: str | Path):
        done = hwsim("compare", *arguments, "--csv", folder / "table.csv")
        assert done.code == 0 and not done.err, done
        self.rows = table(folder / "table.csv")
        self.columns = [*self.rows[0]]
        self.settings = self.columns[1 : -len(ACCURACY + SPARSITY)]
        assert self.columns == ["run", *self.settings, *ACCURACY, *SPARSITY]
        self.results = [{k: row[k] for k in ("run", *ACCURACY)} for row in self.rows]

    def of(self, column: str, *keys: str) -> dict[tuple[str, ...], set[str]]:
        """Values of these columns → those of a column."""
        out: dict = {}
        for row in self.rows:
            out.setdefault(tuple(row[k] for k in keys), set()).add(row[column])
        return out


def test_runs_on_other_cells_stand_below_each_other_with_the_settings_of_the_cells(tmp_path, runs):
    found = Compared(tmp_path, runs["base"], runs["bits"])
    assert found.results == measured(runs["base"]) + measured(runs["bits"])
    assert found.settings == ["device.weights.bits", "device.weights.quantizer"]
    for column, of in zip(found.settings, ({"base": "2", "bits": "4"}, {"base": "null", "bits": "xnor"}), strict=True):
        assert found.of(column, "run") == {(runs[name].name,): {value} for name, value in of.items()}


def test_a_setting_of_several_stages_is_one_column_and_what_a_network_has_not_is_empty(tmp_path, runs):
    base, words = runs["base"], runs["words"]
    found = Compared(tmp_path, base, words)
    assert found.results == measured(base) + measured(words, *HYBRID) and found.settings == ["sram.bits"]
    bits = {(r.name, n): {b} for r, b in ((base, "4"), (words, "2")) for n in HYBRID}
    assert found.of("sram.bits", "run", "network") == bits | {(base.name, "vat"): {""}}


def test_the_same_network_measured_alike_is_one_row_of_the_run_that_is_named_first(tmp_path, runs):
    found = Compared(tmp_path, runs["words"], runs["base"], runs["words"])
    assert found.results == measured(runs["words"]) + measured(runs["base"], *HYBRID)


def test_what_a_network_met_in_training_is_named_apart_from_what_it_is_tested_at(tmp_path, runs):
    base, pruned = runs["base"], runs["pruned"]
    found = Compared(tmp_path, base, pruned)
    assert found.results == measured(base) + measured(pruned, "prune", "again")
    assert sorted(found.settings) == ["prune.group", "prune.threshold", "trained_variation_scale"]
    scales = found.of("trained_variation_scale", "run", "network")
    assert scales.pop((pruned.name, "prune")) == {"2"} and len(scales) == 5
    assert all(trained == {"1"} for trained in scales.values())
    assert found.of("variation_scale", "network") == {("vat",): {"0", "1"}} | {(n,): {"1"} for n in HYBRID}
    # A network that goes on from a pruned one has its masks; the others have none.
    for column, mine, theirs in (("prune.group", "4", "8"), ("prune.threshold", "0.7", "0.4")):
        masked = {(r.name, n): {v} for r, v in ((base, mine), (pruned, theirs)) for n in ("prune", "again")}
        others = {(base.name, n): {""} for n in ("vat", "recover")}
        assert found.of(column, "run", "network") == masked | others


def test_an_ensemble_has_all_its_rows_and_a_network_tested_otherwise_has_one_more(tmp_path, runs):
    base, shifts = runs["base"], runs["shifts"]
    found = Compared(tmp_path, base, shifts)
    parts = ("recover", "recover/shift-1", "recover/shift+0")
    assert found.results == measured(base) + measured(shifts, "vat", *parts)
    assert sorted(found.settings) == ["evaluate.redraw", "sram.shift_bits"]
    redrawn = {(r.name, n): {"chip"} for r, of in ((base, ("vat", *HYBRID)), (shifts, parts)) for n in of}
    assert found.of("evaluate.redraw", "run", "network") == redrawn | {(shifts.name, "vat"): {"batch"}}
    bits = {(base.name, n): {"0"} for n in HYBRID} | {(shifts.name, n): {"-1 0"} for n in parts}
    none = {(r.name, "vat"): {""} for r in (base, shifts)}
    assert found.of("sram.shift_bits", "run", "network") == bits | none


def test_only_settings_that_a_row_depends_on_tell_it_from_others(tmp_path, runs):
    base, tested = runs["base"], runs["tested"]
    found = Compared(tmp_path, base, tested)
    adapted = [row for row in measured(tested, *HYBRID) if row["adapt_batches"] == "1"]
    assert len(adapted) == 3 and found.results == measured(base) + adapted
    assert found.settings == ["evaluate.adapt_batch_size"]
    sizes = found.of("evaluate.adapt_batch_size", "run", "adapt_batches")
    assert sizes == {(base.name, "0"): {""}, (base.name, "1"): {"16"}, (tested.name, "1"): {"8"}}


def test_networks_of_other_runs_are_named_and_of_tests_on_redrawn_chips_the_batch_size(tmp_path, runs):
    found = Compared(tmp_path, runs["of base"], runs["of bits"])
    assert found.results == measured(runs["of base"]) + measured(runs["of bits"])
    assert found.settings[2:] == ["from", "evaluate.redraw", "evaluate.batch_size"]
    of = {(runs[f"of {n}"].name, m): {f"{runs[n].name}/vat"} for n in ("base", "bits") for m in ("vat", "recover")}
    assert found.of("from", "run", "network") == of
    assert [*found.of("evaluate.batch_size", "run", "network").values()] == [{"4"}, {""}, {"8"}, {""}]


def sparsity(folder: Path, network: str) -> list[float]:
    """Shares of the words and of the groups that are zero, by hand from sram.csv: without conv1, layers by size."""
    stage, _, shift = network.partition("/shift")
    rows = [r for r in table(folder / "sram.csv") if r["stage"] == stage and r["layer"] != "conv1"]
    rows = [r for r in rows if not shift or int(r["shift_bit"]) == int(shift)]
    assert {r["layer"] for r in rows} == {"conv2", "conv3"}
    out = []
    for size, share in (("weights", "zero_fraction"), ("groups", "zero_groups_fraction")):
        pairs = [(int(r[size]), float(r[share])) for r in rows if r[size]]
        out.append(sum(n * of for n, of in pairs) / sum(n for n, _ in pairs))
    return out


@pytest.mark.parametrize("name", ["base", "words", "shifts", "pruned", "of bits"])
def test_sparsity_is_that_of_the_sram_behind_the_first_layer(tmp_path, runs, name):
    found = Compared(tmp_path, runs[name])
    assert any(row["zero_groups"] for row in found.rows)
    for row in found.rows:
        if row["network"] == "vat":
            assert (row["zero_words"], row["zero_groups"]) == ("", "")
        else:
            expected = sparsity(runs[name], row["network"])
            assert [float(row["zero_words"]), float(row["zero_groups"])] == pytest.approx(expected, abs=1e-9)


def test_without_whole_groups_only_words_are_counted_and_one_chip_has_no_interval(tmp_path, home):
    one = "  evaluate: {do: evaluate, of: [recover], chips: 1}\n"
    narrow = run(home, {"net.width": 0.0625}, text=VAT + RECOVER + one)
    assert not any(row["groups"] for row in table(narrow / "sram.csv"))
    found = Compared(tmp_path, narrow)
    assert found.results == measured(narrow) and {row["ci95_low"] for row in found.rows} == {"nan"}
    assert all(row["zero_words"] and not row["zero_groups"] for row in found.rows)


def test_only_the_networks_that_are_asked_for_make_rows_and_columns(tmp_path, runs):
    every = (runs["base"], runs["words"], runs["pruned"])
    found = Compared(tmp_path, *every, "--networks", "vat,again")
    assert found.results == measured(runs["base"], "vat", "again") + [
        row for n in ("words", "pruned") for row in measured(runs[n], "again")
    ]
    assert found.settings == ["sram.bits", "prune.group", "prune.threshold"]  # not what `prune` was trained at
    assert Compared(tmp_path, *every, "--networks", "vat").columns == ["run", *ACCURACY, *SPARSITY]
    found = Compared(tmp_path, runs["shifts"], "--networks", "recover/shift+0")
    assert found.results == measured(runs["shifts"], "recover/shift+0")


def test_the_table_on_the_screen_is_the_one_in_the_file(tmp_path, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = (runs["base"], runs["words"], "--networks", "prune")
    done = hwsim("compare", *asked)
    assert done.code == 0 and not list(tmp_path.iterdir())
    head, *lines = [line.split() for line in done.out.splitlines()]
    found = Compared(tmp_path, *asked)
    assert head == found.columns and len(lines) == 4
    for line, row in zip(lines, found.rows, strict=True):
        assert line == [v if k in ("run", "network") else f"{float(v):.6g}" for k, v in row.items()]


def message(folder: Path, *arguments: str | Path) -> str:
    """What a comparison says that is refused; it writes nothing."""
    text = refused("compare", *arguments, "--csv", folder / "table.csv")
    assert not (folder / "table.csv").exists()
    return text.removesuffix("\n")


def test_a_network_that_nobody_measured_is_refused_with_the_nearest(tmp_path, runs):
    text = message(tmp_path, runs["base"], runs["words"], "--networks", "vat,prun")
    assert text == "--networks: none of these runs has measured 'prun'; did you mean 'prune'?"
    text = message(tmp_path, runs["base"], "--networks", "xyz")
    assert text == "--networks: none of these runs has measured 'xyz'; there is vat, recover, prune, again"
    in_one_of_them = Compared(tmp_path, runs["of base"], runs["base"], "--networks", "again")
    assert in_one_of_them.results == measured(runs["base"], "again")


@pytest.mark.parametrize("where", ["", "vat", "absent"])
def test_a_folder_that_is_no_runs_is_refused(tmp_path, runs, where):
    folder = runs["base"] / where if where else tmp_path
    said = f"{folder}: this is no run's folder; one has a manifest.json and lies in runs/, see `ls runs`"
    assert message(tmp_path, runs["base"], folder) == said


def test_a_run_that_broke_off_is_refused_with_the_command_that_ends_it(tmp_path, home, runs):
    before = set((home / "runs").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "over_chips", Mock(side_effect=KeyboardInterrupt))
        assert execute(home, FEW).code == 130
    (folder,) = set((home / "runs").iterdir()) - before
    text, _, command = message(tmp_path, runs["base"], folder).partition("; its command goes on: ")
    assert text == f"{folder}: this run is not finished"
    assert hwsim(*shlex.split(command)[1:]).code == 0
    assert Compared(tmp_path, runs["base"], folder).results == measured(runs["base"])


def test_a_run_that_measured_nothing_is_refused_with_the_command_that_does(tmp_path, home):
    folder = run(home, text=VAT)
    assert (
        message(tmp_path, folder)
        == f"{folder}: this run has measured nothing; hwsim recipe evaluate --from {folder} does"
    )


@pytest.mark.parametrize(
    ("file", "old"),
    [("recipe.yaml", "\n  vat"), ("early/stage.json", '"images": 11'), ("prune/stage.json", '"bits": 4')],
)
def test_a_run_that_was_changed_since_is_refused(tmp_path, runs, file, old):
    changed = Path(shutil.copytree(runs["base"], tmp_path / "copy")) / file
    text = changed.read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, f"{old}1"), encoding="utf-8")
    said = message(tmp_path, runs["words"], tmp_path / "copy")
    assert said.startswith(f"{changed}: ") and "changed since" in said
