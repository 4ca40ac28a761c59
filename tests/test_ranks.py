"""`torchrun … -m hwsim recipe`: one writer, one voice, the run folder of one process; errors end all processes."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import TINY, hwsim
from ranks_started import Started

from hwsim.config import ConfigError, DataError
from hwsim.data.image import ImageData, Split
from hwsim.recipe import manifest
from hwsim.recipe.compute import compute_device
from hwsim.recipe.keys import fresh_key, stage_keys
from hwsim.recipe.parents import before_running
from hwsim.recipe.resolve import Request, resolve
from hwsim.recipe.settings import Recipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def only(runs: Path) -> Path:
    """The one run folder in a folder of runs."""
    (folder,) = runs.iterdir()
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def results(folder: Path) -> dict[str, bytes]:
    """File → bytes of all that must not depend on how a run came about."""
    return {f: (folder / f).read_bytes() for f in files(folder) if f not in ("manifest.json", "recipe.yaml", ".lock")}


def recipe(runs: Path, *arguments: str | Path) -> list[str | Path]:
    return ["recipe", TINY, "--runs", runs, *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder of runs that holds one process's. Tests only read it."""
    runs = tmp_path_factory.mktemp("one")
    assert hwsim(*recipe(runs)).code == 0
    return runs


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder of runs that holds that of two processes, and beside it what they said. Tests only read it."""
    folder = tmp_path_factory.mktemp("two")
    codes, said = Started(folder / "said", *recipe(folder / "runs")).ended()
    assert codes == [0, 0], said
    return folder


def test_two_processes_leave_the_files_of_one_and_one_of_them_speaks(finished, two):
    assert files(only(two / "runs")) == files(only(finished))
    first, second = ((two / "said" / f"rank{r}").read_text() for r in (0, 1))
    assert second == ""
    assert "2 processes, BNTT statistics synchronised" in first and "vat: 2 epochs in" in first
    assert first.rstrip().endswith("summary.md")
    manifest = (only(two / "runs") / "manifest.json").read_text()
    assert '"processes": 2' in manifest and '"state": "done"' in manifest
    assert '"command": "torchrun --nproc-per-node 2 -m hwsim recipe' in manifest


def test_a_run_of_two_processes_is_that_of_one_process_when_it_is_repeated(two, tmp_path):
    shutil.copytree(two / "runs", tmp_path / "runs")
    done = hwsim(*recipe(tmp_path / "runs"))
    assert done.code == 0 and done.err.count("finished before") == 4 and "trained now" not in done.err
    assert results(only(tmp_path / "runs")) == results(only(two / "runs"))


def test_a_run_of_one_process_is_found_by_two_which_write_nothing_new(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs")
    codes, said = Started(tmp_path / "said", *recipe(tmp_path / "runs")).ended()
    assert codes == [0, 0] and sum("finished before" in line for line in said[0]) == 4 and said[1] == []
    assert results(only(tmp_path / "runs")) == results(only(finished))


def test_chips_shared_by_three_processes_have_the_rows_of_one(finished, tmp_path):
    evaluate = ["recipe", "evaluate", "--from", only(finished), "--set", "stages.evaluate.chips=4", "--quiet"]
    evaluate += ["--set", "stages.evaluate.variation_scales=[0, 1, 2]", "--set", "stages.evaluate.adapt=[0, 1]"]
    evaluate += ["--set", "stages.evaluate.adapt_batch_size=8", "--runs"]
    assert hwsim(*evaluate, tmp_path / "one").code == 0
    codes, said = Started(tmp_path / "said", *evaluate, tmp_path / "three", count=3).ended()
    assert codes == [0, 0, 0], said
    one, three = only(tmp_path / "one"), only(tmp_path / "three")
    assert results(three) == results(one)
    with (three / "chips.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 24 and [r["chip"] for r in rows[:8]] == list("00112233")


LONG = ["--epochs", "8", "--quiet"]


def _begun(started: Started, runs: Path) -> None:
    """Wait until a stage has a state to resume from."""
    end = time.monotonic() + 60
    while not list(runs.glob("*/*/resume.*")):
        assert time.monotonic() < end and all(p.is_alive() for p in started.processes), started.ended()
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [[1], *(pytest.param(k, marks=pytest.mark.slow) for k in ([0], [0, 1]))])
def test_a_run_of_which_processes_are_killed_ends_with_the_same_bytes_when_it_is_repeated(killed, tmp_path, calm):
    runs = tmp_path / "runs"
    started = Started(tmp_path / "killed", *recipe(runs, *LONG))
    _begun(started, runs)
    for rank in killed:
        started.processes[rank].kill()
    codes, said = started.ended()
    for rank in (0, 1):
        if rank in killed:
            assert codes[rank] == -signal.SIGKILL
        else:
            assert codes[rank] == 2 and "another process of this run has ended" in said[rank][-1], said
    codes, said = Started(tmp_path / "again", *recipe(runs, *LONG)).ended()
    assert codes == [0, 0], said
    assert results(only(runs)) == calm


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> dict[str, bytes]:
    """The results of two processes that were left alone."""
    folder = tmp_path_factory.mktemp("calm")
    codes, said = Started(folder / "said", *recipe(folder / "runs", *LONG)).ended()
    assert codes == [0, 0], said
    return results(only(folder / "runs"))


# ------------------------------------------------------------------------------------------------------------ errors


def refusal(folder: Path, *arguments: str | Path, count: int = 2, code: int = 2, before=None) -> list[str]:
    """The lines that all processes together say of a mistake; every one of them ends with the code."""
    codes, said = Started(folder / "said", *arguments, count=count, before=before).ended()
    assert codes == [code] * count, said
    return [line for lines in said for line in lines if line.strip()]


def test_a_batch_without_equal_shares_is_one_line_a_stage(tmp_path):
    lines = refusal(tmp_path, *recipe(tmp_path / "runs"), count=3)
    assert len(lines) == 2 and not (tmp_path / "runs").exists()
    assert "tiny.yaml:" in lines[0] and "stages.start.batch_size: 16 images a batch have no equal shares" in lines[0]
    assert lines[0].endswith("for 3 processes; take 15 or 18, or start 1, 2, 4, 8 or 16 processes")


def test_a_mistake_that_all_processes_find_is_said_once(tmp_path):
    lines = refusal(tmp_path, *recipe(tmp_path / "runs", "--set", "stages.vat.epochs=none"))
    assert len(lines) == 1 and "stages.vat.epochs" in lines[0]
    lines = refusal(tmp_path, *recipe(tmp_path / "runs", "--epoch", "2"))
    assert lines[0].startswith("Usage: ") and lines[-1].startswith("Error: No such option") and len(lines) == 3


def test_a_loss_that_diverges_is_said_once(tmp_path):
    (line,) = refusal(tmp_path, *recipe(tmp_path / "runs", "--quiet", "--set", "stages.start.lr=1e30"))
    assert line.startswith("stage start: loss is")


def _fails(error: Exception) -> None:
    from hwsim.recipe import run

    def damaged(*args, **kwargs):
        raise error

    run.load_images = damaged


def test_a_mistake_of_one_process_ends_all_with_its_line_alone(tmp_path):
    before = {1: partial(_fails, DataError("the data are damaged here"))}
    assert refusal(tmp_path, *recipe(tmp_path / "runs"), before=before) == ["the data are damaged here"]


def test_a_defect_of_one_process_ends_all_with_its_traceback_alone(tmp_path):
    before = {1: partial(_fails, ZeroDivisionError("a defect"))}
    lines = refusal(tmp_path, *recipe(tmp_path / "runs"), before=before, code=1)
    assert lines[0].startswith("Traceback") and lines[-1] == "ZeroDivisionError: a defect"
    assert sum(line.startswith("Traceback") for line in lines) == 1


def _small_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


def test_a_full_disk_where_the_first_process_writes_ends_all(tmp_path):
    (line,) = refusal(tmp_path, *recipe(tmp_path / "runs", "--quiet"), before={0: _small_files})
    assert "File too large; nothing finished is lost" in line


def test_integer_recipes_and_other_commands_are_refused(tmp_path):
    (line,) = refusal(tmp_path, "recipe", "pattern", "--smoke", "--runs", tmp_path / "runs")
    assert line.startswith("pattern: integer networks learn in one process") and not (tmp_path / "runs").exists()
    (line,) = refusal(tmp_path, "device")
    assert line == "hwsim device: works in one process; torchrun is for hwsim recipe"


@pytest.mark.slow
def test_torchrun_runs_a_recipe(tmp_path, finished):
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hwsim"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = partial(subprocess.run, capture_output=True, text=True, env=environment, timeout=300)
    done = run([*program, *recipe(tmp_path / "runs")])
    assert done.returncode == 0, done.stderr
    assert files(only(tmp_path / "runs")) == files(only(finished))
    assert done.stdout.count("summary.md") == 1 and done.stderr.count("vat: 2 epochs in") == 1
    done = run([*program, *recipe(tmp_path / "runs", "--set", "stages.vat.batch_size=15")])
    assert done.returncode != 0 and done.stderr.count("15 images a batch have no equal shares") == 1
    assert done.stderr.count("(exitcode: 2)") + done.stderr.count("exitcode  : 2") >= 2


# --------------------------------------------------------------------------------------- keys, settings, the machine


def of(**changes) -> Recipe:
    stages = {"vat": {"do": "train"}, "evaluate": {"do": "evaluate", "of": ["vat"]}}
    return Recipe.model_validate({"title": "T", "stages": stages, **changes})


def keys(recipe: Recipe, processes: int) -> dict[str, str]:
    return stage_keys(recipe, "data", "cpu", {}, {}, processes)


def test_only_local_statistics_of_several_processes_make_another_result():
    usual = keys(of(), 1)
    assert keys(of(), 2) == keys(of(statistics="local"), 1) == usual
    local = keys(of(statistics="local"), 2)
    assert all(local[name] != usual[name] for name in usual)
    assert keys(of(statistics="local"), 4)["vat"] not in (local["vat"], usual["vat"])
    for net in ({"norm": "none"}, {"name": "vgg6-abr"}, {"name": "bitnet6"}):
        assert keys(of(net=net, statistics="local"), 2) == keys(of(net=net), 1)


def test_a_network_of_a_grid_has_the_key_of_its_own_training():
    recipe = of(statistics="local")
    for processes in (1, 2):
        fresh = fresh_key(recipe, recipe.stages["vat"], "data", "cpu", processes)
        assert fresh == keys(recipe, processes)["vat"]


DATA = ImageData(
    "digits", *[Split(torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))] * 3, 10,
    (0.5,), (0.5,), "",
)  # fmt: skip


def test_shares_of_one_image_have_no_statistics_of_their_own():
    sets = ["stages.vat.batch_size=2", "stages.start.batch_size=2"]
    before_running(resolve(Request(TINY, {}, sets)), DATA, 2)
    with pytest.raises(ConfigError, match="2 images for 2 processes are one image each.*take 4 or more"):
        before_running(resolve(Request(TINY, {}, [*sets, "statistics=local"])), DATA, 2)
    with pytest.raises(ConfigError, match="take 3, or start 1 or 2 processes"):
        before_running(resolve(Request(TINY, {}, sets)), DATA, 3)


def test_the_networks_of_a_grid_need_equal_shares_too():
    asked = resolve(Request("rate-vs-direct", {}, ["data.name=digits"], smoke=True))
    with pytest.raises(ConfigError, match=r"train\.batch_size: \d+ images a batch have no equal shares for 7"):
        before_running(asked, DATA, 7)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert compute_device("cuda", local=0) == torch.device("cuda")
    assert compute_device("auto", local=1) == torch.device("cuda", 1) == chosen[-1]
    with pytest.raises(ConfigError, match="3 processes or more for 2 GPUs"):
        compute_device("cuda", local=2)
    assert compute_device("cpu", local=2) == torch.device("cpu")


def test_the_command_of_several_processes_names_torchrun(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hwsim", "recipe", "vat"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert manifest.command() == "hwsim recipe vat"
    assert manifest.command(4) == "torchrun --nproc-per-node 4 -m hwsim recipe vat"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert manifest.command(4) == "torchrun --nproc-per-node 2 -m hwsim recipe vat"
