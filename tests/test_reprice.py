"""`hwsim energy RUN`: a finished run is priced again, by other cards and definitions, without network and torch."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, hwsim, refused

from hwsim.config import RunError
from hwsim.device.pricelist import Prices
from hwsim.recipe.checkpoint import load_arrays
from hwsim.recipe.reprice import repriced, side_by_side
from hwsim.recipe.tracefile import load_trace, read_trace, save_trace
from hwsim.report.action import Definitions
from hwsim.report.energy import COLUMNS, energy_rows
from hwsim.report.trace import Counts

DEFAULTS = Definitions()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run. Tests only read it."""
    runs = tmp_path_factory.mktemp("runs")
    done = hwsim("recipe", TINY, "--runs", runs, "--set", "stages.evaluate.chips=1", "--scales", "0")
    assert done.code == 0, done
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


# --------------------------------------------------------------------------------------------------------- the same run


def test_pricing_a_run_again_gives_the_bytes_that_it_wrote_itself(finished, tmp_path):
    done = hwsim("energy", finished, "--csv", tmp_path / "again.csv")
    assert done.code == 0 and not done.err
    assert (tmp_path / "again.csv").read_bytes() == (finished / "energy.csv").read_bytes()
    done = hwsim("energy", finished / "account", "--csv", tmp_path / "stage.csv")
    assert (tmp_path / "stage.csv").read_bytes() == (finished / "energy.csv").read_bytes()


def test_the_runs_own_card_and_definitions_are_the_ones_that_count(finished, tmp_path):
    runs = tmp_path / "runs"
    sets = ["card=loihi", "synapses=fanout", "state_bits=8", "to_node_nm=28", "scaling=linear"]
    done = hwsim("recipe", TINY, "--runs", runs, "--set", "stages.evaluate.chips=1", "--scales", "0",
                 *(w for s in sets for w in ("--set", f"stages.account.{s}")))  # fmt: skip
    assert done.code == 0, done
    (folder,) = runs.iterdir()
    hwsim("energy", folder, "--csv", tmp_path / "own.csv")
    assert (tmp_path / "own.csv").read_bytes() == (folder / "energy.csv").read_bytes()
    assert {r["card"] for r in table(folder / "energy.csv")} == {"loihi"}
    # Given on top of another run, they are these again: only the run's name differs.
    hwsim("energy", finished, "--card", "loihi", "--synapses", "fanout", "--state-bits", "8", "--to-node", "28",
          "--scaling", "linear", "--csv", tmp_path / "given.csv")  # fmt: skip
    one, other = ([{**r, "run_id": ""} for r in table(tmp_path / f"{n}.csv")] for n in ("own", "given"))
    assert one == other


def test_other_prices_and_definitions_are_no_reason_to_count_again(finished, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs / finished.name)
    arguments = ["recipe", TINY, "--runs", runs, "--set", "stages.evaluate.chips=1", "--scales", "0"]
    done = hwsim(*arguments, "--set", "stages.account.card=loihi", "--set", "stages.account.synapses=fanout")
    assert done.code == 0 and "account: finished before" in done.err
    done = hwsim(*arguments, "--set", "stages.account.window_rows=[32]")
    assert done.code == 0 and "account: finished before" not in done.err


def test_the_trace_in_the_run_is_what_was_counted(finished, tmp_path):
    counts = read_trace(finished)
    assert counts.images == 10 and counts.steps == 2
    assert list(counts.layers) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    rows = energy_rows(counts, Prices.load("horowitz_45nm"), DEFAULTS, finished.name)
    assert [f"{r['energy_pj']:.10g}" for r in rows] == [r["energy_pj"] for r in table(finished / "energy.csv")]
    save_trace(tmp_path, counts, {"key": "k"})
    arrays, about = load_arrays(tmp_path / "trace.safetensors")
    assert about["key"] == "k" and all(isinstance(a, np.ndarray) for a in arrays.values())
    with pytest.raises(RunError, match=r"stage.json"):
        load_trace(tmp_path)


# ---------------------------------------------------------------------------------------------------------- other cards


def test_cards_stand_side_by_side_and_all_rows_are_in_the_table(finished, tmp_path):
    cards = ["horowitz_45nm", "loihi", "rram_crossbar_isaac+sram_cacti_32nm+horowitz_45nm"]
    flags = [w for c in cards for w in ("--card", c)]
    done = hwsim("energy", finished, *flags, "--to-node", "45", "--csv", tmp_path / "all.csv")
    assert done.code == 0, done
    rows = table(tmp_path / "all.csv")
    assert tuple(rows[0]) == COLUMNS
    assert list(dict.fromkeys(r["card"] for r in rows if r["layer"] == "TOTAL")) == cards
    for card in cards:
        hwsim("energy", finished, "--card", card, "--to-node", "45", "--csv", tmp_path / "one.csv")
        one = table(tmp_path / "one.csv")
        assert [r for r in rows if r["card_hash"] == one[0]["card_hash"]] == one
    head, *lines = done.out.splitlines()[1:]
    assert head.split() == ["phase", "component", *cards]
    shown = {tuple(line.split()[:2]): line.split()[2:] for line in lines[: lines.index("")]}
    totals = [r for r in rows if r["layer"] == "TOTAL" and (r["phase"], r["component"]) == ("inference", "all")]
    assert shown["inference", "all"] == [f"{float(r['energy_pj']) / 1000:.6g}" for r in totals]
    assert "mean of 10 test images" in done.out and "definitions: to_node_nm 45.0" in done.out
    for card in ("horowitz_45nm", "loihi", "sram_cacti_32nm"):
        assert re.search(rf"^{card}: covers ", done.out, re.M)


def test_side_by_side_leaves_a_gap_where_a_card_prices_nothing():
    rows = [
        {"layer": "TOTAL", "phase": "inference", "component": c, "card": card, "energy_pj": e}
        for card, c, e in (("a", "synapse", 1000), ("a", "all", 1000), ("b", "synop", 5000), ("b", "all", 5000))
    ] + [{"layer": "conv1", "phase": "inference", "component": "synapse", "card": "a", "energy_pj": 1000}]
    assert side_by_side(rows) == [
        {"phase": "inference", "component": "synapse", "a": 1, "b": ""},
        {"phase": "inference", "component": "synop", "a": "", "b": 5},
        {"phase": "inference", "component": "all", "a": 1, "b": 5},
    ]


FLAGS = {
    "synapses": "fanout", "pooled": "ac", "arithmetic": "int8", "rule": "bptt", "linear_organization": "column",
    "conv_organization": "pb-bmp", "spike_code": "events", "state_bits": 8, "skip_zero_windows": False, "map_all": True,
    "step_time_us": 5.0, "to_node_nm": 22.0, "scaling": "linear",
}  # fmt: skip


@pytest.mark.parametrize("field", Definitions.model_fields)
def test_every_definition_has_an_option(finished, field):
    value = FLAGS[field]
    names = {"skip_zero_windows": "--read-zero-windows", "map_all": "--map-all", "to_node_nm": "--to-node"}
    flag = names.get(field, "--" + field.replace("_", "-"))
    done = hwsim("energy", finished, flag, *([] if isinstance(value, bool) else [str(value)]))
    assert done.code == 0, done
    assert f"definitions: {field} {value}\n" in done.out


def test_definitions_that_are_not_given_stay_as_the_run_has_them(finished):
    _, definitions, prices = repriced(finished, [], {"synapses": "fanout", "rule": None})
    assert definitions == Definitions(synapses="fanout")
    assert [p.name for p in prices] == ["horowitz_45nm"]


# -------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "horowits_45nm"], "there is no such card; did you mean 'horowitz_45nm'"),
        (["--card", "./mine.yaml"], "there is no such file"),
        (["--card", "ideal"], "card ideal: gives no prices; take a card that does"),
        (["--card", "adc_survey"], "card adc_survey: covers nothing alone"),
        (["--card", "loihi", "--card", "loihi"], "--card loihi: named twice; name each card once"),
        (["--synapses", "inbound"], '--synapses: synapses: found text "inbound"'),
        (["--rule", "hebb"], '--rule: rule: found text "hebb"'),
        (["--to-node", "0"], "--to-node: to_node_nm: found 0.0"),
        (["--step-time-us", "-1"], "--step-time-us: step_time_us: found -1.0"),
        (["--step-time-us", "inf"], "--step-time-us: step_time_us: found Infinity; it must be finite"),
        (["--state-bits", "0"], "--state-bits: state_bits: found 0"),
        (["--card", "horowitz_45nm+loihi"], "do not add up; scale them to one node with --to-node NM"),
        (["--card", "loihi", "--rule", "bptt"], "card loihi: prices inference, not learning (bptt)"),
        (["--card", "rram_crossbar_isaac"], "no price for 'add_fp32', which fc1, fc2 need"),
        (["--card", "dram", "--to-node", "20"], "prices.memory_read is of an unknown node and cannot be scaled"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(finished, arguments, message):
    said = refused("energy", finished, *arguments)
    assert message in said
    assert len(said.strip().splitlines()) <= 2 or "no price" in message


def test_two_cards_of_one_name_are_refused(finished, tmp_path):
    text = (Path(__file__).parents[1] / "devices" / "loihi.yaml").read_text(encoding="utf-8")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text(text, encoding="utf-8")
    said = refused("energy", finished, "--card", tmp_path / "a" / "mine.yaml", "--card", tmp_path / "b" / "mine.yaml")
    assert "two cards are named mine" in said


def test_a_run_that_counted_nothing_is_refused(tmp_path, finished, copied):
    assert "there is no such folder; give a run's" in refused("energy", tmp_path / "nowhere")
    said = refused("energy", finished / "vat")
    assert "nothing was counted there" in said and "hwsim recipe evaluate --from" in said
    (copied / "account" / "trace.safetensors").unlink()
    assert "nothing was counted there" in refused("energy", copied)


def test_a_damaged_trace_is_refused(copied):
    trace = copied / "account" / "trace.safetensors"
    whole = trace.read_bytes()
    for wrong in (whole[:-1], whole[:100], bytes([whole[0] ^ 1]) + whole[1:], b""):
        trace.write_bytes(wrong)
        said = refused("energy", copied)
        assert "trace.safetensors" in said and "damaged or changed" in said and len(said.splitlines()) == 1
    trace.write_bytes(whole)
    (copied / "account" / "stage.json").unlink()
    assert "stage.json" in refused("energy", copied)


def test_a_trace_without_the_height_of_a_cards_arrays_is_refused(copied):
    arrays, about = load_arrays(copied / "account" / "trace.safetensors")
    for layer in about["counts"]["layers"].values():
        layer["windows"] = [4]
    arrays = {k.replace("windows64", "windows4"): v for k, v in arrays.items() if not re.search("windows(128|256)", k)}
    counts = Counts.from_arrays(arrays, about["counts"])
    with pytest.raises(
        ValueError, match=r"layer conv\d: windows .* arrays of 4 rows, the card's have 128; account again"
    ):
        energy_rows(counts, Prices.load("rram_crossbar_isaac+horowitz_45nm", 45.0), Definitions(), "r")


# --------------------------------------------------------------------------------------------------------------- speed


def test_pricing_imports_neither_torch_nor_numba_and_is_fast(finished):
    code = (
        "import sys, hwsim.cli as c\n"
        "sys.argv = ['hwsim', 'energy', sys.argv[1], '--card', 'horowitz_45nm', '--card', 'loihi']\n"
        "try:\n    c.main()\nexcept SystemExit as e:\n    print([m for m in ('torch', 'numba', 'scipy', 'matplotlib')"
        " if m in sys.modules], file=sys.stderr); raise\n"
    )
    started = time.process_time(), time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(finished)], capture_output=True, text=True)
    assert done.returncode == 0 and "inference" in done.stdout
    assert json.loads(done.stderr.replace("'", '"')) == []
    assert time.monotonic() - started[1] < 20  # a machine may be busy; alone it takes under a second
