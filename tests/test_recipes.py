"""Every shipped recipe: it runs, its options set what they say, its comment's commands work."""

import re
import shlex
from pathlib import Path

import pytest
from command_line import hwsim

from hwsim.config import parse_yaml, shipped
from hwsim.fields import place_of, value_at
from hwsim.recipe.resolve import Request, recipe_document, recipe_names, resolve

NAMES = recipe_names()
assert NAMES
DATA = {name: recipe_document(name)[1].data for name in NAMES}
OPTIONS = [(name, option) for name in NAMES for option in DATA[name]["options"]]
TEXTS = {
    "data-dir": "/some/folder", "var-scales": "0,0.5", "var-scale": "0.5", "card": "rram_65nm_asu_bitwise",
    "quantizer": "xnor", "width": "0.25", "lr": "0.01", "limit": "500",
}  # fmt: skip
"""A value for options whose default or choices do not give one."""


@pytest.fixture(scope="module")
def smoked(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """(folder of runs, the run folder of each recipe's smoke run)."""
    runs, folders = tmp_path_factory.mktemp("runs"), {}
    for name in sorted(NAMES, key=takes_a_run):
        start = ["--from", folders["vat"]] if takes_a_run(name) else []
        done = hwsim("recipe", name, "--smoke", "--runs", runs, "--quiet", *start)
        assert done.code == 0, (name, done.err)
        folders[name] = Path(done.out.splitlines()[-1]).parent
    return runs, folders


def takes_a_run(name: str) -> bool:
    return any(stage == {"do": "load"} for stage in DATA[name]["stages"].values())


def resolved(name: str, run: Path | None = None, **more):
    return resolve(Request(name, from_run=str(run) if takes_a_run(name) else None, **more))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_smokes(smoked, name):
    folder = smoked[1][name]
    assert (folder / "summary.md").stat().st_size > 200 and (folder / "accuracy.csv").exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_states_its_time_and_what_to_expect(name):
    head = (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8").split("\ntitle:")[0]
    assert all(line.startswith("# ") or line.startswith("#   ") for line in head.splitlines())
    assert f"hwsim recipe {name}" in head
    assert {"title", "time", "expected", "smoke"} <= set(DATA[name])


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_sets_its_places(smoked, name, option):
    run = smoked[1]["vat"]
    how = DATA[name]["options"][option]
    plain = resolved(name, run)
    before = value_at(plain.recipe.model_dump(by_alias=True), place_of(how["sets"][0]))
    text = TEXTS.get(option)
    if isinstance(before, bool):
        text = True
    elif text is None:
        choices = how.get("choices") or []
        text = str(next((c for c in choices if c != before), before))
    try:
        r = resolved(name, run, options={option: text})
    except ValueError as e:  # it goes together with another option only
        assert option in ("card", "limit") and ("device.weights" in str(e) or "batch_size" in str(e))
        return
    after = [value_at(r.recipe.model_dump(by_alias=True), place_of(p)) for p in how["sets"]]
    wanted = {str(True): True}.get(str(text), text)
    for place, found in zip(how["sets"], after, strict=True):
        spoken = ",".join(f"{v:g}" for v in found) if isinstance(found, list) else found
        assert str(spoken) == str(wanted), place
        assert r.document.where(place_of(place)) == f"--{option}"


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
            if theirs and not how["sets"][0].startswith("stages."):
                assert theirs["sets"] == how["sets"], (option, other)


@pytest.mark.parametrize("name", NAMES)
def test_smoke_makes_a_recipe_small(smoked, name):
    r = resolved(name, smoked[1]["vat"], smoke=True).recipe
    assert r.data.name == "digits" and r.data.limit <= 200 and r.net.steps <= 4 and r.net.width <= 0.25
    assert all(s.epochs == 1 for s in r.stages.values() if s.do == "train")
    assert all(s.chips <= 3 for s in r.stages.values() if s.do == "evaluate")


@pytest.mark.parametrize("name", [n for n in NAMES if "faithful" in DATA[n]])
def test_faithful_sets_what_it_says(smoked, name):
    r = resolved(name, smoked[1]["vat"], faithful=True)
    data = r.recipe.model_dump(by_alias=True)
    for place, value in DATA[name]["faithful"].items():
        assert value_at(data, place_of(place)) == value and r.document.where(place_of(place)) == "--faithful"
    assert resolved(name, smoked[1]["vat"]).recipe != r.recipe


def test_there_is_a_faithful_recipe():
    assert any("faithful" in data for data in DATA.values())


@pytest.mark.parametrize("name", [n for n in NAMES if "faithful" not in DATA[n]])
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
    words = [str(smoked[1]["vat"]) if "…" in w else w for w in shlex.split(command)[1:]]
    done = hwsim(*words, *(() if "--help" in words else ("--show",)))
    assert done.code == 0 and parse_yaml(done.out, "shown").data["title"], done.err


def test_networks_that_another_recipe_has_trained_are_reused(smoked):
    runs, _ = smoked
    done = hwsim("recipe", "baseline", "--smoke", "--runs", runs)
    assert "baseline: finished before" in done.err
