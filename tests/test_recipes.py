"""Every shipped recipe: it runs, its options set what they say, its comment's commands work."""

import re
import shlex
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from command_line import hwsim

from hwsim.config import parse_yaml, shipped
from hwsim.fields import field_at, members, place_of, value_at
from hwsim.recipe.resolve import Request, recipe_document, recipe_names, resolve
from hwsim.recipe.settings import Recipe

DATA = {name: recipe_document(name)[1].data for name in recipe_names()}
NAMES = [n for n in DATA if not any(s["do"] in ("pattern", "decolle") for s in DATA[n]["stages"].values())]
"""Recipes of networks that see images; the others: test_recipes_integer.py."""
assert NAMES
FAITHFUL = [name for name in NAMES if "faithful" in DATA[name]]
OPTIONS = [(name, option) for name in NAMES for option in DATA[name]["options"]]
TEXTS = {
    "data-dir": "/some/folder", "var-scales": "0,0.5", "var-scale": "0.5", "card": "rram_65nm_asu_bitwise",
    "quantizer": "xnor", "width": "0.375", "lr": "0.01", "limit": "500", "init-run": "/some/run", "encode": "direct",
    "eps": "0,4", "methods": "pgd", "scales": "0.1,0.25", "attack-scale": "0.5",
    "memory": "bits", "eval-size": "9", "threshold-bits": "4", "margins": "0.5,2",
}  # fmt: skip
"""A value for options that none can be made up for."""
BESIDE = {"init-run": {"init": "sram"}}
"""Options that go with others only."""


def smoke(name: str, runs: Path, *more: str | Path) -> tuple[Path, str]:
    """(run folder, what was said) of a recipe's smoke run."""
    done = hwsim("recipe", name, "--smoke", "--runs", runs, *more)
    assert done.code == 0, (name, done.err)
    return Path(done.out.splitlines()[-1]).parent, done.err


@pytest.fixture(scope="module")
def smokes(tmp_path_factory) -> tuple[Path, dict[str, Path], dict[str, str]]:
    """(folder of runs, the run folder of each recipe's smoke run, what each said); vat comes first."""
    runs, folders, said = tmp_path_factory.mktemp("runs"), {}, {}
    for name in sorted(NAMES, key=lambda n: (takes_a_run(n), n != "vat")):
        start = ["--from", folders["vat"]] if takes_a_run(name) else []
        folders[name], said[name] = smoke(name, runs, *start)
    return runs, folders, said


@pytest.fixture(scope="module")
def smoked(smokes) -> tuple[Path, dict[str, Path]]:
    return smokes[:2]


@pytest.fixture(scope="module")
def faithfully(tmp_path_factory) -> tuple[dict[str, Path], dict[str, str]]:
    """(run folder, what was said) of each recipe's smoke run with --faithful; vat comes first.

    In batches that the few test images fill.
    """
    runs, folders, said = tmp_path_factory.mktemp("faithful"), {}, {}
    for name in sorted(FAITHFUL, key=lambda n: (takes_a_run(n), n != "vat")):
        start = ["--from", folders["vat"]] if takes_a_run(name) else []
        small = [w for stage, how in DATA[name]["stages"].items() if how["do"] == "evaluate"
                 for w in ("--set", f"stages.{stage}.batch_size=16")]  # fmt: skip
        folders[name], said[name] = smoke(name, runs, "--faithful", *small, *start)
    return folders, said


def first_table(name: str) -> str:
    """The table that a run of a recipe is about."""
    own = {"codings": "codings-summary.csv", "exit": "early-exit.csv", "attack": "attack-summary.csv"}
    return own.get(list(DATA[name]["stages"].values())[-1]["do"], "accuracy.csv")


def takes_a_run(name: str) -> bool:
    return any(stage == {"do": "load"} for stage in DATA[name]["stages"].values())


def resolved(name: str, run: Path | None = None, **more):
    return resolve(Request(name, from_run=str(run) if takes_a_run(name) else None, **more))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_smokes(smoked, name):
    folder = smoked[1][name]
    assert (folder / "summary.md").stat().st_size > 200 and (folder / first_table(name)).exists()


@pytest.mark.parametrize("name", FAITHFUL)
def test_every_faithful_recipe_smokes(faithfully, name):
    folder = faithfully[0][name]
    assert (folder / "summary.md").stat().st_size > 200 and (folder / first_table(name)).exists()
    assert "  # --faithful\n" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize("more", [[], ["--smoke"], ["--smoke", "--faithful"]], ids=" ".join)
@pytest.mark.parametrize("name", FAITHFUL)
def test_what_a_recipe_shows_runs_again_as_it_stands(smoked, tmp_path, name, more):
    run = smoked[1]["vat"]
    shown = hwsim("recipe", name, *more, "--show", *(["--from", run] if takes_a_run(name) else []))
    (tmp_path / "my.yaml").write_text(shown.out)
    again = hwsim("recipe", tmp_path / "my.yaml", "--show")
    assert shown.code == again.code == 0, (shown.err, again.err)
    one, two = (Recipe.model_validate(parse_yaml(text, "shown").data) for text in (shown.out, again.out))
    assert one == two == resolved(name, run, smoke="--smoke" in more, faithful="--faithful" in more).recipe


SRAM = ("sram-recover", "sram-prune")
TABLES = ("metrics", "chips", "accuracy", "gains", "energy", "sparsity", "levels", "sram")


@pytest.mark.parametrize("name", SRAM)
@pytest.mark.parametrize("how", ["plain", "faithful"])
def test_a_smoke_run_with_sram_leaves_every_table_and_its_words(smoked, faithfully, name, how):
    folder = (smoked[1] if how == "plain" else faithfully[0])[name]
    assert all((folder / f"{table}.csv").stat().st_size > 100 for table in TABLES)
    text = (folder / "summary.md").read_text()
    assert "% of the SRAM words are zero" in text and "(RRAM, 1 bit)" in text and "(SRAM, 4 bit)" in text
    adapted = ", adapted (1) |" in text
    assert adapted == (how == "plain")


# --- one variation-aware network for all ----------------------------------------------------------------------------


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("name", SRAM)
def test_recipes_with_sram_start_from_the_network_of_the_recipe_vat(name, faithful):
    theirs, mine = (resolve(Request(n, faithful=faithful)).recipe for n in ("vat", name))
    assert (mine.seed, mine.net, mine.data, mine.device) == (theirs.seed, theirs.net, theirs.data, theirs.device)
    for stage in ("baseline", "vat"):
        assert mine.stages[stage] == theirs.stages[stage]
    assert mine.stages["vat"].start == (None if faithful else "baseline")


@pytest.mark.parametrize("options", [{"quant": "4"}, {"net": "vgg9", "data": "cifar10", "steps": "20"}], ids=str)
@pytest.mark.parametrize("name", SRAM)
def test_options_of_both_leave_it_the_same_network(name, options):
    theirs, mine = (resolve(Request(n, options=options)).recipe for n in ("vat", name))
    assert (mine.net, mine.data, mine.device) == (theirs.net, theirs.data, theirs.device)
    assert mine.stages["vat"] == theirs.stages["vat"]


def test_a_recovery_finds_the_finished_variation_aware_network(smokes, faithfully):
    # The smoke runs of these two recipes have the same settings; that of sram-prune is larger.
    for folders, said in (smokes[1:], faithfully):
        lines = said["sram-recover"].splitlines()
        assert f"vat: finished before, taken from {folders['vat'] / 'vat'}" in lines
        assert any(line.startswith("baseline: finished before, taken from ") for line in lines)
        assert not any(line.startswith(("baseline: epoch", "vat: epoch")) for line in lines)
        assert any(line.startswith("recover: epoch 1/1") for line in lines)
        mine, theirs = ((folders[n] / "vat" / "weights.safetensors").read_bytes() for n in ("sram-recover", "vat"))
        assert mine == theirs


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_states_its_time_and_what_to_expect(name):
    head = (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8").split("\ntitle:")[0]
    assert all(line.startswith("# ") or line.startswith("#   ") for line in head.splitlines())
    assert f"hwsim recipe {name}" in head
    assert {"title", "time", "expected", "smoke"} <= set(DATA[name])


def another(before, option: str, how: dict, annotation) -> str | bool:
    """A text for an option that differs from its default, and what it stands for."""
    if isinstance(before, bool):
        return True
    choices = how.get("choices") or [v for m in members(annotation) for v in get_args(m) if get_origin(m) is Literal]
    if option in TEXTS or choices:
        return TEXTS.get(option) or str(next(c for c in choices if c != before))
    if isinstance(before, list):
        return ",".join(str(v + 1) for v in before)
    return str(before + 1 if isinstance(before, int) else before / 2)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_sets_its_places(smoked, name, option):
    run = smoked[1]["vat"]
    how = DATA[name]["options"][option]
    plain = resolved(name, run)
    first = place_of(how["sets"][0])
    before = value_at(plain.recipe.model_dump(by_alias=True), first)
    text = another(before, option, how, field_at(Recipe, plain.document.data, first).annotation)
    try:
        r = resolved(name, run, options={option: text, **BESIDE.get(option, {})})
    except ValueError as e:  # it goes together with another option only
        assert option in ("card", "limit", "quant") and ("device.weights" in str(e) or "batch_size" in str(e))
        return
    after = [value_at(r.recipe.model_dump(by_alias=True), place_of(p)) for p in how["sets"]]
    for place, found in zip(how["sets"], after, strict=True):
        assert found != value_at(plain.recipe.model_dump(by_alias=True), place_of(place)) or len(how["sets"]) > 1
        spoken = ",".join(v if isinstance(v, str) else f"{v:g}" for v in found) if isinstance(found, list) else found
        assert str(spoken) == str(text), place
        assert r.document.where(place_of(place)) == f"--{option}"
    assert after[0] != before


@pytest.mark.parametrize("name", NAMES)
def test_every_option_appears_in_help(name):
    words = hwsim("recipe", name, "--help").out.split()
    for option, how in DATA[name]["options"].items():
        assert f"--{option}" in words and "".join(how["help"].split()) in "".join(words)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_option_means_the_same_in_every_recipe(name):
    for option, how in DATA[name]["options"].items():
        for other in NAMES:
            theirs = DATA[other]["options"].get(option)
            if theirs and not any(o["sets"][0].startswith("stages.") for o in (how, theirs)):
                assert theirs["sets"] == how["sets"], (option, other)


@pytest.mark.parametrize("name", NAMES)
def test_smoke_makes_a_recipe_small(smoked, name):
    r = resolved(name, smoked[1]["vat"], smoke=True).recipe
    assert r.data.name == "digits" and r.data.limit <= 200 and r.net.width <= 0.25
    assert r.net.is_ordinary or r.net.steps <= 4
    assert all(s.epochs == 1 for s in r.stages.values() if s.do == "train")
    recovered = [s for s in r.stages.values() if s.do == "recover"]
    assert all(s.epochs <= 2 and len(s.members) <= 2 for s in recovered)
    assert bool(recovered) == (name in SRAM)
    assert all(s.chips <= 3 for s in r.stages.values() if s.do == "evaluate")


@pytest.mark.parametrize("name", FAITHFUL)
def test_faithful_sets_what_it_says(smoked, name):
    r = resolved(name, smoked[1]["vat"], faithful=True)
    data = r.recipe.model_dump(by_alias=True)
    for place, value in DATA[name]["faithful"].items():
        assert value_at(data, place_of(place)) == value and r.document.where(place_of(place)) == "--faithful"
    assert resolved(name, smoked[1]["vat"]).recipe != r.recipe


def test_there_is_a_faithful_recipe():
    assert any("faithful" in data for data in DATA.values())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FAITHFUL])
def test_a_recipe_without_faithful_says_so(smoked, name):
    with pytest.raises(ValueError, match="--faithful: .* this recipe does not offer it"):
        resolved(name, smoked[1]["vat"], faithful=True)


def commands() -> list[str]:
    out = []
    for name in NAMES:
        text = (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        out += re.findall(r"^#   (hwsim .*)$", text, re.MULTILINE)
    return out


@pytest.mark.parametrize("command", commands())
def test_every_command_in_a_recipes_comment_works(smoked, command):
    runs = {"vat": smoked[1]["vat"], **smoked[1]}  # a command names the recipe whose run it takes, else vat's will do
    words = shlex.split(command)[1:]
    for i, word in enumerate(words):
        if "…" in word:
            words[i] = str(runs.get(Path(word).name.removesuffix("-…"), runs["vat"]))
    done = hwsim(*words, *(() if "--help" in words else ("--show",)))
    assert done.code == 0 and parse_yaml(done.out, "shown").data["title"], done.err


def test_networks_that_another_recipe_has_trained_are_reused(smoked):
    runs, _ = smoked
    done = hwsim("recipe", "baseline", "--smoke", "--runs", runs)
    assert "baseline: finished before" in done.err
