"""The command line as its users meet it: what it prints, how it refuses, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import TINY, child, hwsim, refused

from hwsim import __version__
from hwsim.config import parse_yaml, shipped
from hwsim.device.card import card_names, load_card
from hwsim.recipe import member
from hwsim.recipe.resolve import recipe_names
from hwsim.recipe.settings import Recipe

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes and signals")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs in which the tiny recipe is finished."""
    folder = tmp_path_factory.mktemp("runs")
    assert hwsim("recipe", TINY, "--runs", folder).code == 0
    return folder


def python(*arguments: str, **options) -> subprocess.Popen:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **pipe, **options)


# --- help and lists -----------------------------------------------------------------------------------------------


def test_help_version_and_lists_do_not_import_torch():
    code = """
import sys
from hwsim import cli
for words in (["--help"], ["--version"], ["recipe"], ["recipe", "--help"], ["recipe", "vat", "--help"], ["device"],
              ["schema", "recipe"], ["schema", "device"], ["doctor", "--help"], ["recipe", "vatt"], ["nonsense"]):
    sys.argv = ["hwsim", *words]
    try:
        cli.main()
    except SystemExit as e:
        print("ended", e.code)
heavy = ("torch", "numpy", "pandas", "matplotlib", "scipy", "numba", "sklearn", "rich")
print("heavy:", *[m for m in heavy if m in sys.modules])
"""
    process = python("-W", "error", "-c", code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [line for line in out.splitlines() if line.startswith("ended")] == ["ended 0"] * 9 + ["ended 2"] * 2
    assert out.splitlines()[-1] == "heavy:"


def test_help_names_the_commands_and_the_first_things_to_type():
    done = hwsim("--help")
    assert done.code == 0 and "hwsim recipe vat --quant 1" in done.out
    assert all(f"\n  {command} " in done.out for command in ("recipe", "device", "schema", "doctor", "bench"))
    assert hwsim("--version").out == f"hwsim, version {__version__}\n"


def test_recipe_alone_lists_recipes_with_time_and_expectation():
    done = hwsim("recipe")
    assert done.code == 0 and recipe_names()
    for name in recipe_names():
        data = parse_yaml((shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8"), name).data
        assert f"{name:12} {data['title']}\n" in done.out
        assert f"time: {data['time']}; expected: {data['expected']}\n" in done.out


@pytest.mark.parametrize("name", ["vat", TINY])
def test_help_of_a_recipe_is_made_from_the_recipe(name):
    done = hwsim("recipe", name, "--help")
    words, joined = " ".join(done.out.split()), "".join(done.out.split())
    document = parse_yaml(Path(TINY if name == TINY else shipped("recipes") / "vat.yaml").read_text(), name)
    assert done.code == 0 and document.data["title"] in words
    for option, how in document.data["options"].items():
        assert f" --{option} " in words and "".join(how["help"].split()) in joined
    assert "--quant 1|2|3|4|8 bits held by one RRAM weight [default: 1]" in words
    assert "--download fetch" in words  # a flag takes no value
    for option in ("set", "seed", "device", "runs", "from", "smoke", "faithful", "show", "quiet", "json"):
        assert f" --{option} " in words


def test_defaults_in_help_are_the_recipes_or_those_of_the_settings():
    words = " ".join(hwsim("recipe", TINY, "--help").out.split())
    assert "--scales VALUE scales to evaluate at [default: 0,2]" in words
    assert "--steps VALUE time steps T [default: 2]" in words
    assert "--data-dir VALUE folder of the data sets --download" in words  # there is no default to tell


def test_python_m_hwsim_is_the_same_program():
    process = python("-m", "hwsim", "recipe", "vat", "--help")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.startswith("Usage: hwsim recipe vat [OPTIONS]") and not err


@pytest.mark.parametrize(
    ("words", "offered"),
    [("hwsim rec", {"recipe"}), ("hwsim recipe va", {"vat", "vat-scales"}), ("hwsim recipe vat --qui", {"--quiet"})],
)
def test_shells_can_complete_commands_recipes_and_their_options(words, offered):
    shell = {"_HWSIM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    process = python("-m", "hwsim", env={**os.environ, **shell})
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and {line.removeprefix("plain,") for line in out.splitlines()} == offered


# --- cards, schema, doctor ----------------------------------------------------------------------------------------


def test_device_alone_lists_cards_with_their_sources():
    done = hwsim("device")
    rows = json.loads(hwsim("device", "--json").out)
    assert done.code == 0 and [r["name"] for r in rows] == card_names()
    assert all(f"{r['name']:24} {r['title']}\n" in done.out and r["source"] in done.out for r in rows)


@pytest.mark.parametrize("card", card_names())
def test_every_card_can_be_looked_at(card):
    done = hwsim("device", card)
    assert done.code == 0 and load_card(card).title in done.out and not done.err
    assert json.loads(hwsim("device", card, "--json").out) is not None


def test_a_card_with_bits_shows_levels_boundaries_and_spreads():
    done = hwsim("device", "rram_65nm_asu", "--bits", "2")
    rows = [line.split() for line in done.out[done.out.index("level  ") :].splitlines()[1:5]]
    assert [float(r[0]) for r in rows] == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-5)
    assert [r[1] for r in rows[1:]] == [r[2] for r in rows[:-1]]  # one ends where the next begins
    assert {r[3] for r in rows} == {"0.12542"}
    tables = json.loads(hwsim("device", "rram_65nm_asu", "--bits", "2", "--json").out)
    (levels,) = [rows for title, rows in tables.items() if title.startswith("levels")]
    assert [r["sigma_ln"] for r in levels] == [0.12542] * 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rram_65nm"], "device card 'rram_65nm': there is no such card; did you mean 'rram_65nm_asu'?"),
        (["./no.yaml"], "device card no.yaml: there is no such file"),
        (["rram_65nm_asu", "--bits", "5"], "--bits: 5 is not one of 1, 2, 3, 4, 8 (card rram_65nm_asu gives sigma"),
        (["rram_65nm_asu", "--bits", "0"], "--bits: 0 is not one of 1, 2, 3, 4, 8"),
        (["rram_65nm_asu", "--quantizer", "xnor"], "--quantizer xnor: needs the bits of a weight too; give --bits B"),
        (["rram_65nm_asu", "--bits", "1", "--quantizer", "ternary"], "--quantizer: ternary does not go with card"),
        (["rram_65nm_asu_bitwise", "--variant", "a"], "--variant a: needs the bits of a weight too"),
        (["rram_65nm_asu_bitwise", "--bits", "1", "--variant", "z"], "--variant: card rram_65nm_asu_bitwise has no"),
        (["ternary", "--bits", "2"], "--bits: 2 does not go with card ternary, which holds ternary weights; leave it"),
        (["ideal", "--bits", "2"], "--bits 2: card ideal holds the weights themselves; leave it out"),
        (["horowitz_45nm", "--bits", "1"], "--bits 1: card horowitz_45nm holds no weights, only prices; leave it out"),
    ],
)
def test_what_a_card_does_not_hold_is_refused(arguments, says):
    (line,) = refused("device", *arguments).splitlines()
    assert line.startswith(says)


def test_a_broken_card_of_a_user_is_refused_with_lines(tmp_path):
    (tmp_path / "my.yaml").write_text("title: t\nweights: {cell: ideal, source: x, evidence: guessed}\nprice: {}\n")
    lines = refused("device", tmp_path / "my.yaml").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{tmp_path / 'my.yaml'}:2", "weights.evidence"], [f"{tmp_path / 'my.yaml'}:3", "price"]]  # fmt: skip


@pytest.mark.parametrize(("what", "names"), [("recipe", recipe_names), ("device", card_names)])
def test_the_schema_describes_every_field_that_shipped_files_use(what, names):
    schema = json.loads(hwsim("schema", what).out)
    assert schema["$schema"].startswith("https://json-schema.org/") and schema["type"] == "object"

    def fits(value, at, place):
        at = schema["$defs"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
        if "discriminator" in at:
            at = {"$ref": at["discriminator"]["mapping"][value["do"]]}
            return fits(value, at, place)
        if "anyOf" in at:
            kinds = {dict: "object", list: "array", type(None): "null"}
            chosen = [a for a in at["anyOf"] if a.get("type", "object") == kinds.get(type(value), a.get("type"))]
            return fits(value, chosen[0], place)
        if isinstance(value, dict) and "properties" in at:
            assert at["additionalProperties"] is False
            assert set(value) <= set(at["properties"]) and set(at.get("required", ())) <= set(value), place
            for key, inner in value.items():
                assert at["properties"][key].get("description") or "$ref" in at["properties"][key], (place, key)
                fits(inner, at["properties"][key], [*place, key])
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(at.get("additionalProperties"), dict):
                    fits(inner, at["additionalProperties"], [*place, key])
        if "enum" in at:
            assert value in at["enum"], place

    for name in names():
        text = (shipped(f"{what}s") / f"{name}.yaml").read_text(encoding="utf-8")
        fits(parse_yaml(text, name).data, schema, [name])


def test_doctor_tells_versions_machine_and_backend():
    lines = dict(line.split(None, 1) for line in hwsim("doctor").out.splitlines())
    assert lines["hwsim"] == __version__ and lines["torch"] == torch.__version__
    assert lines["neuron"].startswith("cpu: numba") or torch.cuda.is_available()
    assert "memory" not in lines


def test_doctor_estimates_the_memory_of_a_recipe():
    def mebibytes(*sets: str) -> float:
        out = hwsim("doctor", "vat", "--device", "cpu", *[w for s in sets for w in ("--set", s)]).out
        return float(out.partition("memory        about ")[2].split(" MiB")[0].replace(",", ""))

    assert mebibytes() < mebibytes("net.width=1") < mebibytes("net.width=1", "data.name=cifar10")
    long, short = (mebibytes(f"net.steps={T}", "net.width=1") for T in (60, 30))
    assert 1.5 < long / short < 2  # most of it grows with the steps, weights and cells do not


def test_doctor_estimates_the_memory_of_integer_recipes():
    """The numbers of the measurements that the estimates were made from, within 15 %."""
    from hwsim.recipe.integer_settings import Decolle, Events, Pattern
    from hwsim.recipe.memory_others import decolle_bytes, pattern_bytes

    for factor, steps, mib in ((1, 250, 14.8), (1, 1000, 24.7), (3, 250, 100.4)):
        stage = Pattern(inputs=700 * factor, hidden=400 * factor, outputs=250 * factor, steps=steps)
        assert pattern_bytes(stage) / 2**20 == pytest.approx(mib, rel=0.15)
    for channels, batch, backend, mib in (
        ([16, 32, 32], 12, "fused", 25.3), ([64, 128, 128], 8, "fused", 108.7), ([64, 128, 128], 32, "fused", 240.0),
        ([64, 128, 128], 8, "float", 215.4), ([64, 128, 128], 32, "float", 421.1),
    ):  # fmt: skip
        stage = Decolle(channels=channels, batch_size=batch, backend=backend, epochs=1, events=Events(steps=10),
                        burn_in=2)  # fmt: skip
        assert decolle_bytes(stage) / 2**20 == pytest.approx(mib, rel=0.2)
    for recipe, stage in (("pattern", "pattern"), ("decolle", "float")):  # in floating point DECOLLE takes the most
        said = rf"memory +about \d+ MiB at the most .*in stage {stage}, training"
        assert re.search(said, hwsim("doctor", recipe).out)


def test_doctor_refuses_what_a_run_would_refuse():
    assert "there is no 'vatt'" in refused("doctor", "vatt")
    assert "net.width: found 0; it must be above 0" in refused("doctor", "vat", "--set", "net.width=0")
    assert "--set and --from change a recipe; name one" in refused("doctor", "--set", "net.width=1")
    assert "'tpu' is not one of" in refused("doctor", "--device", "tpu")


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["recipe", "vatt"], "recipe: there is no 'vatt'; did you mean 'vat'?"),
        (["recipe", "./none.yaml"], "./none.yaml: there is no such recipe file"),
        (["recipe", "vat", "--quantt", "1"], "No such option"),
        (["recipe", "vat", "--quant"], "Option '--quant' requires an argument"),
        (["recipe", "vat", "extra"], "Got unexpected extra argument (extra)"),
        (["recipe", "vat", "--quant", "5"], "--quant: found 5; it can be 1, 2, 3, 4, 8"),
        (["recipe", "vat", "--seed", "-1"], "--seed: seed: found -1; it must be at least 0"),
        (["recipe", "vat", "--device", "gpu"], '--device: compute: found text "gpu"'),
        (["recipe", "vat", "--from", "nowhere"], "--from nowhere: this is no run folder"),
        (["recipe", "evaluate"], "stages.trained.run: this stage takes a finished run; give one with --from RUN"),
        (["recipe", "vat", "--net", "vgg9", "--width", "0"], "--width: net.width: found 0; it must be above 0"),
        (["schema", "network"], "'network' is not one of 'recipe', 'device'"),
        (["device", "ideal", "--bits", "one"], "'one' is not a valid integer"),
    ],
)
def test_a_mistake_ends_with_2_and_what_to_do(arguments, says):
    text = refused(*arguments)
    assert says in text and says in text.splitlines()[-1]


def test_an_evaluation_without_a_run_says_only_that():
    assert len(refused("recipe", "evaluate").splitlines()) == 1


def test_a_recipe_file_with_many_mistakes_gets_a_line_for_each(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "title: t\ntitle: u\nsede: 1\n"
        "device: {on: [cnv*], weights: {bits: 7, clmap: none}}\n"
        "stages:\n"
        "  a: {do: train, epochs: '5', from: b}\n"
        "  b: {do: trian}\n"
        "  e: {do: evaluate, of: [a, c]}\n"
    )
    lines = refused("recipe", path, "--quiet").splitlines()
    assert {tuple(line.removeprefix(f"{path}:").split(": ")[:2]) for line in lines} == {
        ("2", "title"), ("3", "sede"), ("4", "device.weights.clmap"), ("4", "device.on.0"),
        ("4", "device.weights.bits"), ("6", "stages.a.epochs"), ("7", "stages.b.do"), ("8", "stages.e.of"),
    } | ({("6", "stages.a.from")} if any("stages.a.from" in line for line in lines) else set())  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("{x: 3}", "options.x: expected a mapping, found 3"),
        ("[x]", 'options: expected a mapping, found the list ["x"]'),
        ("{x: {sets: [net.name]}}", "options.x.help: this is missing"),
        ("{x: {sets: [], help: h}}", "options.x.sets: found the list []; at least 1 must be given"),
        ("{x: {sets: [3], help: h}}", "options.x.sets.0: expected text, found 3"),
        ("{x: {sets: [net.name], help: h, choices: 3}}", "options.x.choices: expected a list, found 3"),
        ("{x: {sets: [net.nmae], help: h}}", "options.x.sets: there is no place 'net.nmae' in this recipe"),
        ("{seed: {sets: [net.name], help: h}}", "options.seed: every recipe has --seed already"),
        ("{json: {sets: [net.name], help: h}}", "options.json: every recipe has --json already"),
        ("{help: {sets: [net.name], help: h}}", "options.help: every recipe has --help already"),
    ],
)
def test_a_recipe_with_broken_options_says_so(tmp_path, options, says):
    text = f"title: t\ndevice: {{weights: {{bits: 1}}}}\nstages: {{a: {{do: train}}}}\noptions: {options}\n"
    (tmp_path / "my.yaml").write_text(text)
    assert says in refused("recipe", tmp_path / "my.yaml", "--x", "1", "--show" if "nmae" in options else "--help") or (
        says in refused("recipe", tmp_path / "my.yaml", "--show")
    )


def test_an_option_may_be_named_like_a_common_ones_variable(tmp_path):
    text = Path(TINY).read_text().replace("  steps:", "  from-run:").replace("  quant:", "  compute:")
    (tmp_path / "my.yaml").write_text(text)
    done = hwsim("recipe", tmp_path / "my.yaml", "--from-run", "3", "--compute", "2", "--show")
    assert done.code == 0 and "steps: 3  # --from-run" in done.out and "bits: 2  # --compute" in done.out


def test_cuda_where_there_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["recipe", TINY, "--runs", tmp_path, "--device", "cuda"], ["doctor", "--device", "cuda"]):
        (line,) = refused(*arguments).splitlines()
        assert line.startswith("compute: found cuda, but ") and "use --device cpu" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_runs_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").touch()
    (line,) = refused("recipe", TINY, "--runs", tmp_path / where).splitlines()
    assert line.startswith(f"--runs {tmp_path / where}: cannot be written: ") and line.endswith("with --runs")


def test_missing_data_are_refused_before_a_run_begins(tmp_path):
    options = ["--set", "data.name=cifar10", "--data-dir", tmp_path / "none", "--runs", tmp_path / "runs"]
    (line,) = refused("recipe", TINY, *options).splitlines()
    assert line.startswith(f"cifar10: not found in {tmp_path / 'none'} (there is no such folder)")
    assert line.endswith("name the folder that holds it with --data-dir, or fetch it with --download")
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_does_not_fit_the_images_is_refused_before_a_run_begins(tmp_path):
    (line,) = refused("recipe", "vat", "--net", "vgg11", "--runs", tmp_path / "runs").splitlines()
    assert "it needs 16x16 pixels, the data have 8x8" in line and not (tmp_path / "runs").exists()


def test_batches_that_no_data_fill_are_refused_before_a_run_begins(tmp_path):
    (line,) = refused("recipe", TINY, "--set", "data.limit=null", "--set", "stages.vat.batch_size=5000",
                      "--runs", tmp_path / "runs").splitlines()  # fmt: skip
    assert "stages.vat.batch_size: 5000 is more than the 1257 training images of digits" in line
    assert not (tmp_path / "runs").exists()


def test_too_few_images_are_refused_in_a_line(tmp_path):
    sets = [w for s in ("data.limit=5", "stages.start.batch_size=2", "stages.vat.batch_size=2") for w in ("--set", s)]
    (line,) = refused("recipe", TINY, "--runs", tmp_path, *sets).splitlines()
    assert "limit is 5; digits needs at least 10" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the memory is full; lower --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "the memory is full; lower"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory is full; lower --batch-size"),
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied; nothing finished is lost"),
        (OSError(28, "No space left on device"), "writing: No space left on device; nothing finished is lost"),
    ],
)
def test_trouble_with_the_machine_is_told_in_a_line(tmp_path, monkeypatch, error, says):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(member, "train", fails)
    done = hwsim("recipe", TINY, "--runs", tmp_path, "--quiet")
    assert done.code == 2 and len(done.lines) == 1 and done.err.startswith(says)


def test_a_defect_is_not_hidden(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(member, "train", fails)
    with pytest.raises(ZeroDivisionError):
        hwsim("recipe", TINY, "--runs", tmp_path, "--quiet")


# --- show ---------------------------------------------------------------------------------------------------------


def test_what_show_prints_can_be_saved_and_run_again(tmp_path):
    first = hwsim("recipe", "vat", "--quant", "2", "--smoke", "--seed", "3", "--set", "net.leak=0.5", "--show")
    (tmp_path / "my.yaml").write_text(first.out)
    again = hwsim("recipe", tmp_path / "my.yaml", "--show")
    assert first.code == again.code == 0 and not first.err and not again.err

    def plain(text):
        return Recipe.model_validate(parse_yaml(text, "f").data)

    assert plain(first.out) == plain(again.out)
    assert hwsim("recipe", tmp_path / "my.yaml", "--quant", "3", "--show").out.count("  # --quant") == 1


def test_show_does_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hwsim("recipe", "vat", "--show").code == 0
    assert not list(tmp_path.iterdir())


# --- what a run prints --------------------------------------------------------------------------------------------


def test_a_run_tells_first_what_it_is_and_last_where_its_result_lies(tmp_path):
    done = hwsim("recipe", TINY, "--runs", tmp_path)
    (folder,) = tmp_path.iterdir()
    head = done.err.splitlines()[:6]
    words = ["tiny: A tiny run", f"run      {folder}", "vgg5 x0.0625, T = 2, poisson, on digits (40 + 10 + 11 images",
             "device   rram_65nm_asu, 1 bit, on conv*", "seed 1234", "neuron   "]  # fmt: skip
    assert all(word in line for word, line in zip(words, head, strict=True))
    assert "vat: epoch 2/2  lr 0.1  loss " in done.err and "evaluate: vat at scale 2: mean " in done.err
    *accuracy, best, last = done.out.splitlines()
    assert len(accuracy) == 5 and accuracy[0].split()[:4] == ["network", "adapt_batches", "variation_scale", "chips"]
    assert best.startswith("vat at scale 0: ") and best.endswith("] over 3 chips")
    assert last == str(folder / "summary.md") and Path(last).exists()
    assert "\x1b" not in done.err + done.out and "\r" not in done.err + done.out  # plain lines off a terminal


def test_quiet_prints_only_the_result(runs):
    done = hwsim("recipe", TINY, "--runs", runs, "--quiet")
    assert done.code == 0 and not done.err and len(done.out.splitlines()) == 2


def test_json_is_all_that_comes_out(runs):
    done = hwsim("recipe", TINY, "--runs", runs, "--json")
    result = json.loads(done.out)
    assert result["network"] == "vat" and len(result["accuracy"]) == 4 and 0 <= result["mean"] <= 1
    assert Path(result["run"]).is_dir() and done.err


def test_json_of_one_chip_has_no_nan(tmp_path):
    done = hwsim("recipe", TINY, "--runs", tmp_path, "--set", "stages.evaluate.chips=1", "--json", "--quiet")
    result = json.loads(done.out, parse_constant=pytest.fail)
    assert result["std"] is None and result["chips"] == 1 and not done.err


def test_a_recipe_without_evaluation_ends_well(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "title: t\nnet: {width: 0.0625, steps: 1}\ndata: {limit: 20}\ndevice: {weights: {bits: 1}}\n"
        "stages: {a: {do: train, epochs: 1, batch_size: 10}}\n"
    )
    done = hwsim("recipe", tmp_path / "my.yaml", "--runs", tmp_path / "runs", "--quiet")
    assert done.code == 0 and len(done.out.splitlines()) == 1 and Path(done.out.strip()).exists()
    result = json.loads(hwsim("recipe", tmp_path / "my.yaml", "--runs", tmp_path / "runs", "--json").out)
    assert result["accuracy"] == []


def test_a_terminal_gets_a_live_bar(monkeypatch, capsys):
    from hwsim.recipe.progress import Progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress()
    with progress.task("vat", 4) as advance:
        advance(2, "loss 1.0")
        progress.say("a line")
    assert progress.live and "a line" in capsys.readouterr().err
    assert not Progress(quiet=True).live


@posix
def test_nobody_reading_the_output_is_no_traceback(runs, tmp_path):
    process = child(tmp_path / "log", "recipe", TINY, "--runs", runs, "--quiet", before=_closed_pipe)
    process.join(60)
    assert process.exitcode == 141 and (tmp_path / "log").read_text() == ""


def _closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sys.stdout = os.fdopen(writer, "w")


@posix
def test_a_run_with_closed_output_ends_well(runs, tmp_path):
    process = child(tmp_path / "log", "recipe", TINY, "--runs", runs, before=_no_streams)
    process.join(60)
    assert process.exitcode == 0 and (tmp_path / "log").read_text() == ""


def _no_streams() -> None:
    sys.stdout = sys.stderr = None


@posix
def test_ctrl_c_ends_with_130_and_one_line_and_the_run_goes_on_from_there(tmp_path):
    process = python("-m", "hwsim", "recipe", TINY, "--runs", str(tmp_path), "--epochs", "5000")
    told = []
    for line in process.stderr:
        told.append(line)
        if "vat: epoch" in line or "start: epoch 3/" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    rest = [line for line in err.splitlines() if line.strip() and ": epoch" not in line]
    assert rest == ["interrupted; finished epochs are kept, the same command goes on from there"] and not out
    assert list(tmp_path.glob("*/start/resume.safetensors")) and any("epoch 3" in line for line in told)
    log, end = tmp_path / "log", time.monotonic() + 60
    again = child(log, "recipe", TINY, "--runs", tmp_path, "--epochs", "5000")
    while "start: resuming after epoch" not in (log.read_text() if log.exists() else ""):
        assert again.is_alive() and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    again.kill()
    again.join()


def test_a_download_is_told_by_tenths(capsys):
    from hwsim.recipe.progress import Progress

    progress = Progress()
    for done in range(0, 101, 5):
        progress.fetched("a.gz", done * 2**20, 100 * 2**20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0] == "fetching a.gz: 0.0 MiB of 100.0 MiB (0 %)" and lines[-1].endswith("(100 %)")
    progress.fetched("b.bin", 20 * 2**20, None)
    assert capsys.readouterr().err == "fetching b.bin: 20.0 MiB\n"
    Progress(quiet=True).fetched("c", 1, 1)
    assert capsys.readouterr().err == ""
