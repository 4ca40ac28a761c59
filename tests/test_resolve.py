"""From a recipe file, profiles and options to one checked recipe: who wins, what is refused, what --show prints."""

import tempfile
from pathlib import Path

import pytest
import yaml
from command_line import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.config import ConfigError, parse_yaml
from hwsim.fields import dotted, place_of, value_at
from hwsim.recipe.options import recipe_command
from hwsim.recipe.resolve import Request, recipe_document, recipe_names, resolve
from hwsim.recipe.show import _flow, shown

TINY_LINES = Path(TINY).read_text().splitlines()
SMALL = "title: t\ndevice: {weights: {bits: 1}}\nstages:\n  a: {do: train, epochs: 2}\n  e: {do: evaluate, of: [a]}\n"


def at(request: Request, place: str):
    """(value, origin) of a place of a resolved recipe."""
    r = resolve(request)
    return value_at(r.recipe.model_dump(by_alias=True), place_of(place)), r.document.where(place_of(place))


def refused(request: Request) -> list[str]:
    with pytest.raises(ConfigError) as e:
        resolve(request)
    return e.value.messages


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- who wins -----------------------------------------------------------------------------------------------------


def test_later_words_win_over_earlier_ones():
    epochs = "stages.start.epochs"
    line = TINY_LINES.index(next(x for x in TINY_LINES if x.startswith("  start:"))) + 1
    assert at(Request(TINY), "net.threshold")[0] == 1.0  # the default
    assert at(Request(TINY), epochs) == (1, f"{TINY}:{line}")
    assert at(Request(TINY, smoke=True), epochs) == (1, "--smoke")
    assert at(Request(TINY, {"epochs": "3"}, smoke=True), epochs) == (3, "--epochs")
    text = f"{epochs}=4"
    assert at(Request(TINY, {"epochs": "3"}, [text], smoke=True), epochs) == (4, f"--set {text}")


def test_the_last_of_two_profiles_and_of_two_sets_wins(file):
    name = file(SMALL + "smoke: {net.steps: 1}\nfaithful: {net.steps: 2}\n")
    assert at(Request(name, smoke=True, faithful=True), "net.steps") == (2, "--faithful")
    assert at(Request(name, sets=["net.steps=3", "net.steps=4"]), "net.steps") == (4, "--set net.steps=4")


def test_an_option_sets_all_its_places():
    r = resolve(Request(TINY, {"epochs": "7"})).recipe
    assert r.stages["start"].epochs == r.stages["vat"].epochs == 7


def test_seed_and_device_are_options_of_every_recipe():
    assert at(Request(TINY, seed="7"), "seed") == (7, "--seed")
    assert at(Request(TINY, seed=8), "seed") == (8, "--seed")
    assert at(Request(TINY, compute="cpu"), "compute") == ("cpu", "--device")


@pytest.mark.parametrize(
    ("text", "scales"),
    [("0,1e-1,2", [0, 0.1, 2]), ("0.5", [0.5]), ("[0, 4]", [0, 4]), (" 1 , 2 ", [1, 2])],
)
def test_a_list_is_given_with_commas(text, scales):
    assert at(Request(TINY, {"scales": text}), "stages.evaluate.variation_scales")[0] == scales


@pytest.mark.parametrize("folder", ["/data/a: b", "08", "null.d", "[x", "~/#1"])
def test_a_path_is_taken_as_it_stands(folder):
    assert at(Request(TINY, {"data-dir": folder}), "data.dir")[0] == folder


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data.dir=null", None),
        ("data.dir=", None),
        ("data.download=true", True),
        ("stages.vat.from=null", None),
        ("stages.evaluate.of=[vat]", ["vat"]),
        ("stages.evaluate.variation_scales.1=8", 8),
        ("device.weights={bits: 2, clamp: magnitude}", {"bits": 2, "clamp": "magnitude"}),
        ("title=a = b", "a = b"),
    ],
)
def test_any_place_can_be_set(text, value):
    found, origin = at(Request(TINY, sets=[text]), text.partition("=")[0])
    assert origin == f"--set {text}"
    assert value.items() <= found.items() if isinstance(value, dict) else found == value


def test_setting_a_place_leaves_its_neighbours():
    r = resolve(Request(TINY, sets=["device.weights.clamp=magnitude"])).recipe
    assert r.device.weights.bits == 1 and r.device.weights.clamp == "magnitude"


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("net.steps", "expected place=value, for example --set net.steps=5"),
        ("net.stesp=5", "net.stesp: there is no 'stesp' here; did you mean 'steps'?"),
        ("stages.vta.epochs=5", "stages.vta.epochs: there is no 'vta' here; did you mean 'vat'?"),
        ("stages.vat.of=5", "stages.vat.of: there is no 'of' here"),
        ("stages.vat.epochs.x=5", "there is no 'x' here; set stages.vat.epochs as a whole"),
        ("stages.evaluate.of.7=vat", "there is no '7' here"),
        ("device.on.0=fc1", "there is no '0' here; set device.on as a whole"),  # the default has no items in the file
        ("=3", "there is no '' here"),
        ("options.quant.help=x", "this belongs to the recipe file; change it there"),
        ("smoke.x=1", "this belongs to the recipe file; change it there"),
        ("net=3", "net: expected a mapping, found 3"),
        ("stages.vat=3", "stages.vat: expected a mapping, found 3"),
        ("stages=3", "stages: expected a mapping, found 3"),
        ("stages.vat.do=prune", 'stages.vat.do: found text "prune"'),
        ("net.width=[", "not valid YAML"),
        ("net={steps: 1, steps: 2}", "steps: this key is written twice"),
    ],
)
def test_a_wrong_set_is_explained(text, says):
    first, *_ = refused(Request(TINY, sets=[text]))
    assert first.startswith(f"--set {text}: ") and says in first


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("quant", "5", "--quant: found 5; it can be 1, 2, 3, 4, 8"),
        ("quant", "1.0", "--quant: device.weights.bits: expected a whole number, found 1.0"),
        ("quant", "1,2", "--quant: found 1,2; it can be 1, 2, 3, 4, 8"),
        ("scales", "0,x", '--scales: stages.evaluate.variation_scales.1: expected a number, found text "x"'),
        ("scales", "-1", "--scales: stages.evaluate.variation_scales.0: found -1; it must be at least 0"),
        ("scales", "[0", "--scales: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("scales", "", "--scales: stages.evaluate.variation_scales.0: expected a number, found null"),
        ("start-epochs", "0", "--start-epochs: stages.start.epochs: found 0; it must be at least 1"),
        ("steps", "99", "--steps: net.steps: found 99; it must be at most 64"),
    ],
)
def test_a_wrong_option_is_explained(option, text, says):
    assert refused(Request(TINY, {option: text})) == [says]


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ("-1", "found -1; it must be at least 0"),
        ("one", 'expected a whole number, found text "one"'),
        ("1.5", "expected a whole number, found 1.5"),
        (str(2**63), f"found {2**63}; it must be below {2**63}"),
        ("", "expected a whole number, found null"),
    ],
)
def test_a_wrong_seed_is_explained(seed, says):
    assert refused(Request(TINY, seed=seed)) == [f"--seed: seed: {says}"]


def test_everything_is_reported_at_once():
    request = Request(
        TINY,
        {"quant": "5", "steps": "x", "scales": "["},
        ["stages.vat.lrr=1", "nonsense", "device.on=[convs]", "stages.evaluate.of=[vat, vatt]", "net.width=0"],
        "-1",
        "tpu",
    )
    found = refused(request)
    starts = ["--quant", "--scales", "--set stages.vat.lrr=1", "--set nonsense", "--seed", "--device", "--steps",
              "--set net.width=0", "--set device.on=[convs]", "--set stages.evaluate.of=[vat, vatt]"]  # fmt: skip
    for start in starts:
        assert sum(m.startswith(start + ":") for m in found) == 1, start
    assert len(found) == len(starts)


def test_a_mistake_is_not_reported_again_by_what_follows_from_it(file):
    text = SMALL.replace("bits: 1", "bit: 1").replace("do: train", "do: trian")
    found = refused(Request(file(text)))
    assert [m.split(": ")[1] for m in found] == ["device.weights.bit", "stages.a.do"]


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        (("epochs: 2", "from: e"), "stages.a.from", "no earlier stage has a network 'e'"),
        (("epochs: 2", "from: b"), "stages.a.from", "no earlier stage has a network 'b'"),
        (("of: [a]", "of: [A]"), "stages.e.of", "no earlier stage has a network 'A'; there is a"),
        (("of: [a]", "of: [a, a]"), "stages.e", "a at scale 0 is measured already, by stage 'e'"),
        (("[a]}", "[a]}\n  f: {do: evaluate, of: [a]}"), "stages.f", "a at scale 0 is measured already, by stage 'e'"),
        (
            ("[a]}", "[a]}\n  x: {do: account, of: a}\n  y: {do: account, of: a}"),
            "stages.y",
            "a run has one table of energy, and stage 'x' writes it",
        ),
        (("epochs: 2", "run: x"), "stages.a.run", "there is no 'run' here"),
        (("train, epochs: 2", "load"), "stages.a.run", "give one with --from RUN"),
        (("  e:", "  a/e:"), "stages.a/e", "a stage's name is also a folder's"),
        (("{weights", "{on: [cnv*], weights"), "device.on.0", "no layer is named like 'cnv*'; this network has conv1"),
        (("{weights", "{on: [conv*, conv1], weights"), "device.on.1", "'conv*' before it already takes every layer"),
        (("bits: 1", "bits: 5"), "device.weights.bits", "5 is not one of 1, 2, 3, 4, 8 (card rram_65nm_asu"),
        (("{bits: 1}", "{}"), "device.weights.bits", "nothing is given; it must be one of 1, 2, 3, 4, 8"),
        (("{weights", "{card: rram_65nm, weights"), "device.card", "did you mean 'rram_65nm_asu'?"),
        (("{weights", "{card: horowitz_45nm, weights"), "device.card", "says nothing about weights"),
        (("[a]}", "[a]}\n  x: {do: account, of: a, card: ideal}"), "stages.x.card", "card ideal: gives no prices"),
        (("[a]}", "[a]}\n  x: {do: account, of: a, card: my.yaml}"), "stages.x.card", "there is no such file"),
        (("title: t", "title: t\ndata: {limit: 40}"), "stages.a.batch_size", "128 is more than data.limit, 40"),
        (("title: t", "title: t\nsmoke: {net.stesp: 1}"), "smoke.net.stesp", "there is no place 'net.stesp'"),
        (("title: t", "title: t\nfrom_replaces: b"), "from_replaces", "there is no stage 'b'"),
        (
            ("title: t", "title: t\noptions: {x: {sets: [net.stesp], help: h}}"),
            "options.x.sets",
            "there is no place 'net.stesp' in this recipe",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_its_place(file, change, place, says):
    text = SMALL.replace(*change, 1)
    assert text != SMALL
    path = file(text)
    (message,) = refused(Request(path))
    origin, found, rest = message.split(": ", 2)
    assert origin.startswith(f"{path}:") and origin[len(path) + 1 :].isdecimal() and found == place and says in rest


def test_a_card_without_a_price_is_refused_before_anything_runs(file, tmp_path):
    card = tmp_path / "cheap.yaml"
    price = "{add_fp32: {pJ: 1, source: x, evidence: assumed}}"
    card.write_text(f"title: t\ncovers: [synapse]\nnode_nm: 45\nprices: {price}\n")
    (message,) = refused(Request(TINY, sets=[f"stages.account.card={card}"]))
    assert "stages.account.card: card cheap: there is no price for 'mult_fp32', which layers (synapse) need" in message
    assert refused(Request(TINY, sets=["stages.account.card=horowitz_45nm+loihi"]))[0].count("do not add up") == 1
    whole = Request(TINY, sets=["stages.account.card=horowitz_45nm+loihi", "stages.account.to_node_nm=45"])
    assert resolve(whole).recipe.stages["account"].card == "horowitz_45nm+loihi"


def test_mistakes_in_a_users_card_are_shown_with_both_places(file, tmp_path):
    card = tmp_path / "broken.yaml"
    card.write_text("title: t\nweights:\n  cell: rrma\n")
    found = refused(Request(TINY, sets=[f"device.card={card}"]))
    assert len(found) > 1 and all(m.startswith(f"--set device.card={card}: device.card: {card}:") for m in found)
    assert any(f"{card}:3: weights.cell" in m for m in found)


@pytest.mark.parametrize("card", ["ternary", "ideal"])
def test_a_card_without_bits_says_what_to_type_and_then_runs(card):
    (message,) = refused(Request("vat", {"card": card}))
    assert message.startswith("recipes/vat.yaml:") and message.endswith(": --set device.weights.bits=null")
    assert at(Request("vat", {"card": card}, ["device.weights.bits=null"]), "device.card")[0] == card


def test_a_profile_that_a_recipe_lacks_is_refused(file):
    found = refused(Request(file(SMALL), smoke=True, faithful=True))
    assert [m.split(": ")[0] for m in found] == ["--smoke", "--faithful"] and "does not offer it" in found[0]


def test_a_profile_that_is_no_mapping_is_refused(file):
    for block in ("[1]", "3", "{3: 4}"):
        assert any("smoke" in m for m in refused(Request(file(SMALL + f"smoke: {block}\n"), smoke=True)))


@pytest.mark.parametrize("text", ["", "- a\n", "3\n"])
def test_a_recipe_is_a_mapping(file, text):
    assert "a recipe is a mapping with title and stages" in refused(Request(file(text)))[0]


def test_an_unknown_recipe_suggests_the_nearest():
    assert refused(Request("vatt")) == ["recipe: there is no 'vatt'; did you mean 'vat'?"]
    assert refused(Request("no/vat.yaml")) == ["no/vat.yaml: there is no such recipe file"]


# --- whatever is written ------------------------------------------------------------------------------------------

PLACES = [p for text in (
    "title", "options", "options.quant", "options.quant.sets", "options.quant.choices", "smoke", "faithful", "net",
    "net.width", "net.name", "data", "data.limit", "data.dir", "device", "device.card", "device.on", "device.weights",
    "device.weights.bits", "device.weights.clamp", "stages", "stages.start", "stages.start.do", "stages.start.epochs",
    "stages.vat.from", "stages.vat.lr", "stages.evaluate.of", "stages.evaluate.variation_scales", "stages.account.card",
    "stages.account.of", "stages.new", "seed", "compute", "new", "from_replaces", "stages.vat.redraw",
    "stages.vat.sram", "stages.evaluate.adapt",
) for p in [place_of(text)]]  # fmt: skip
WORDS = [
    "train",
    "recover",
    "load",
    "evaluate",
    "vat",
    "conv*",
    "net.name",
    "stages.vat.epochs",
    "1e-3",
    "null",
    "",
    "digits",
    "=",
]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["do", "of", "from", "run", "sets", "help", "bits", "x", 1]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([*WORDS, "[", "{a: 1}", "3", "[1, x]"])), max_size=2),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_file_says_the_answer_is_a_recipe_or_a_list_of_mistakes(changes, sets, smoke):
    document = parse_yaml("\n".join(TINY_LINES), "f.yaml")
    for place, value in changes:
        above = value_at(document.data, place[:-1])
        if isinstance(above, dict):
            above[place[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.yaml"
        path.write_text(yaml.safe_dump(document.data, sort_keys=False))
        texts = [f"{dotted(place)}={text}" for place, text in sets]
        try:
            command = recipe_command("my", recipe_document(str(path))[1], lambda *_: None)
            r = resolve(Request(str(path), sets=texts, smoke=smoke))
            assert command.params and parse_yaml(shown(r), "shown").data
        except ConfigError as e:
            assert e.messages and all(m and "\n" not in m for m in e.messages)


# --- from a finished run ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "vat-1"
    (folder / "vat").mkdir(parents=True)
    parent = resolve(Request(TINY, {"quant": "4"}, ["data.limit=160"]))
    (folder / "recipe.yaml").write_text(shown(parent), encoding="utf-8")
    return folder


@pytest.mark.parametrize("inside", ["", "vat"])
def test_a_runs_network_data_and_device_are_taken(run, inside):
    r = resolve(Request("vat", from_run=str(run / inside)))
    parent = resolve(Request(TINY, {"quant": "4"}, ["data.limit=160"])).recipe
    assert (r.recipe.net, r.recipe.data, r.recipe.device) == (parent.net, parent.data, parent.device)
    assert r.recipe.stages["baseline"].run == str(run / inside)
    assert r.document.where(("net", "width")) == f"--from {run / inside}"


def test_options_win_over_a_run(run):
    request = Request("vat", {"quant": "2", "batch-size": "16"}, from_run=str(run))
    assert at(request, "device.weights.bits") == (2, "--quant")
    assert at(request, "stages.vat.batch_size")[0] == 16


@pytest.mark.parametrize(
    "name", [n for n in recipe_names() if n not in ("evaluate", "pattern", "decolle", "bitnet", "convert")]
)
@pytest.mark.parametrize("profile", ["smoke", "faithful"])
def test_profiles_pass_over_a_stage_that_is_loaded(run, name, profile):
    plain = resolve(Request(name)).recipe
    if getattr(plain, profile):
        r = resolve(Request(name, from_run=str(run), **{profile: True})).recipe
        first, *_ = r.stages.values()
        assert first.do == "load"


def test_an_option_that_has_nothing_left_to_set_is_refused(run):
    found = refused(Request("vat", {"baseline-epochs": "3"}, from_run=str(run)))
    assert found == ["--baseline-epochs: sets only stages.baseline.epochs, of a stage that is taken from a run"]


@pytest.mark.parametrize("name", ["sram-recover", "sram-prune"])
def test_a_run_stands_for_the_stage_that_it_replaces_and_those_before_it_vanish(run, name):
    r = resolve(Request(name, from_run=str(run)))
    plain = resolve(Request(name)).recipe
    stages = r.recipe.stages
    assert list(stages) == [n for n in plain.stages if n != "baseline"] and next(iter(stages)) == "vat"
    assert stages["vat"].model_dump() == {"do": "load", "run": str(run)}
    for stage in stages:
        if stage != "vat" and not stage.startswith("evaluate"):
            assert stages[stage] == plain.stages[stage]
        if stage.startswith("evaluate"):
            assert stages[stage].of == [n for n in plain.stages[stage].of if n != "baseline"]
    assert stages["evaluate-vat"].of == ["vat"]
    assert r.document.where(("stages", "vat")) == f"--from {run}"


@pytest.mark.parametrize("name", ["sram-recover", "sram-prune"])
@pytest.mark.parametrize("option", ["baseline-epochs", "vat-epochs"])
def test_an_option_of_stages_that_vanished_alone_is_refused_in_one_line(run, name, option):
    stage = option.removesuffix("-epochs")
    found = refused(Request(name, {option: "3"}, from_run=str(run)))
    assert found == [f"--{option}: sets only stages.{stage}.epochs, of a stage that is taken from a run"]


def test_an_option_of_other_stages_too_sets_these(run):
    r = resolve(Request("sram-recover", {"var-scale": "4"}, from_run=str(run)))
    scales = {n: s.variation_scale for n, s in r.recipe.stages.items() if hasattr(s, "variation_scale")}
    assert scales == {"recover": 4, "recover-chip": 4}
    assert r.recipe.stages["evaluate"].variation_scales == r.recipe.stages["evaluate-vat"].variation_scales == [4]
    assert r.recipe.stages["vat"].do == "load" and "baseline" not in r.document.data["stages"]


@pytest.mark.parametrize("name", ["sram-recover", "sram-prune"])
@pytest.mark.parametrize("profiles", [("smoke",), ("faithful",), ("smoke", "faithful")], ids=" ".join)
def test_profiles_pass_over_stages_that_vanished_and_set_the_others(run, name, profiles):
    r = resolve(Request(name, from_run=str(run), **dict.fromkeys(profiles, True)))
    assert "baseline" not in r.recipe.stages and r.recipe.stages["vat"].model_dump() == {"do": "load", "run": str(run)}
    data = r.recipe.model_dump(by_alias=True)
    for place, value in getattr(r.recipe, profiles[-1]).items():
        if not place.startswith(("stages.baseline.", "stages.vat.", "net.")):
            assert value_at(data, place_of(place)) == value, place
    assert r.recipe.net == resolve(Request(TINY)).recipe.net  # the run's


def test_setting_a_stage_that_vanished_is_refused(run):
    (message,) = refused(Request("sram-recover", sets=["stages.baseline.epochs=3"], from_run=str(run)))
    assert "there is no 'baseline' here" in message


def test_without_a_run_nothing_is_replaced():
    r = resolve(Request("sram-recover", {"baseline-epochs": "3", "vat-epochs": "4"}, faithful=True)).recipe
    assert r.from_replaces == "vat"
    assert [s.do for s in r.stages.values()][:3] == ["train", "train", "recover"]
    assert (r.stages["baseline"].epochs, r.stages["vat"].epochs, r.stages["vat"].start) == (3, 4, None)


CHAIN = """\
title: t
options:
  first: {sets: [stages.a.epochs], help: h}
  both: {sets: [stages.a.epochs, stages.d.epochs], help: h}
smoke: {stages.a.epochs: 1, stages.b.epochs: 1, stages.d.epochs: 1}
device: {weights: {bits: 1}}
from_replaces: c
stages:
  a: {do: train, epochs: 9}
  b: {do: train, from: a, epochs: 9}
  c: {do: train, from: b, epochs: 9}
  d: {do: train, from: c, epochs: 9}
  e: {do: evaluate, of: [a, b, c, d]}
  f: {do: evaluate, of: [b, d], variation_scales: [4]}
"""


def test_all_stages_before_the_one_replaced_vanish_from_every_list(run, file):
    path = file(CHAIN)
    r = resolve(Request(path, from_run=str(run), smoke=True)).recipe
    assert list(r.stages) == ["c", "d", "e", "f"]
    assert (r.stages["e"].of, r.stages["f"].of) == (["c", "d"], ["d"])
    assert r.stages["d"].epochs == 1
    r = resolve(Request(path, {"both": "5"}, from_run=str(run))).recipe
    assert r.stages["d"].epochs == 5
    assert refused(Request(path, {"first": "5"}, from_run=str(run))) == [
        "--first: sets only stages.a.epochs, of a stage that is taken from a run"]  # fmt: skip
    assert list(resolve(Request(path)).recipe.stages) == list("abcdef")


def test_without_from_replaces_it_is_the_first_stage(run, file):
    r = resolve(Request(file(CHAIN.replace("from_replaces: c\n", "")), from_run=str(run))).recipe
    assert list(r.stages) == list("abcdef") and r.stages["a"].do == "load" and r.stages["b"].do == "train"


def test_a_stage_that_rests_on_one_that_vanished_is_refused(run, file):
    (message,) = refused(Request(file(CHAIN.replace("from: c, ", "from: b, ")), from_run=str(run)))
    assert "stages.d.from: no earlier stage has a network 'b'" in message
    text = CHAIN + "  g: {do: account, of: a}\n"
    (message,) = refused(Request(file(text), from_run=str(run)))
    assert "stages.g.of: no earlier stage has a network 'a'" in message


def test_a_run_cannot_replace_a_stage_that_is_not_there(run, file):
    found = refused(Request(file(CHAIN.replace("from_replaces: c", "from_replaces: x")), from_run=str(run)))
    assert any("from_replaces: there is no stage 'x'" in m for m in found)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    assert "this is no run folder" in refused(Request("vat", from_run=str(tmp_path / "x")))[0]
    assert "this is no run folder" in refused(Request("vat", from_run=str(tmp_path / "missing")))[0]
    for text in ("", "[1]", "net: 3"):
        (tmp_path / "x" / "recipe.yaml").write_text(text)
        (message,) = refused(Request("vat", from_run=str(tmp_path / "x")))
        assert message.endswith("is not a run's recipe: it has no block 'net'")


# --- shown again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        Request("vat"),
        Request("vat", {"quant": "2", "var-scales": "0,1e-5"}, ["title=a # b", "data.dir='1e3'"], seed=5, smoke=True),
        Request("vat", faithful=True, compute="cpu"),
        Request(TINY, {"data-dir": "a\nb"}),
        Request("vat", {"card": "ideal"}, ["device.weights.bits=null"]),
        Request("sram-recover", {"shift-bit": "-1,0,1", "adapt": "0,5"}, smoke=True),
        Request("sram-prune", {"start": "recover"}, faithful=True),
    ],
    ids=["vat", "options", "faithful", "tiny", "ideal", "ensemble", "prune"],
)
def test_what_show_prints_resolves_to_the_same_recipe(file, request_):
    first = resolve(request_)
    text = shown(first)
    again = resolve(Request(file(text)))
    assert again.recipe == first.recipe and again.name == "my"
    assert resolve(Request(file(shown(again)))).recipe == first.recipe


@pytest.mark.parametrize("name", ["vat", "sram-recover", "sram-prune"])
def test_what_show_prints_of_a_run_that_is_continued_resolves_without_from(run, file, name):
    first = resolve(Request(name, from_run=str(run)))
    path = file(shown(first))
    assert resolve(Request(path)).recipe == first.recipe
    smoked = resolve(Request(path, smoke=True)).recipe
    assert smoked.stages == resolve(Request(name, from_run=str(run), smoke=True)).recipe.stages
    assert refused(Request(path, {"baseline-epochs": "3"})) == [
        "--baseline-epochs: sets only stages.baseline.epochs, of a stage that is taken from a run"]  # fmt: skip


def test_show_tells_where_each_value_came_from(run):
    lines = shown(resolve(Request("vat", {"quant": "2"}, ["seed=3"], smoke=True))).splitlines()
    told = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in lines if "  # " in line}
    assert told["bits"] == "--quant" and told["seed"] == "--set seed=3" and told["steps"] == "--smoke"
    assert told["leak"] == "default" and told["name"].startswith("recipes/vat.yaml:")
    start = next(i for i, line in enumerate(lines) if line.startswith("seed"))
    for line in [line for line in lines[start:] if "do: " not in line]:
        assert "  # " in line or line.endswith(":"), line


@given(st.text())
def test_any_text_survives_being_shown(text):
    assert parse_yaml(f"a: {_flow(text)}  # origin\n", "f").data == {"a": text}
    assert parse_yaml(f"a: {_flow([text, {text: text}])}\n", "f").data == {"a": [text, {text: text}]}
    assert "\n" not in _flow(text)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_any_scalar_survives_being_shown_also_to_other_readers(value):
    assert parse_yaml(f"a: {_flow(value)}", "f").data == {"a": value} == yaml.safe_load(f"a: {_flow(value)}")


def test_precision_and_checkpoint_layers_are_options_of_every_recipe():
    assert at(Request(TINY, precision="bf16"), "precision") == ("bf16", "--precision")
    assert at(Request(TINY, checkpoint_layers=True), "checkpoint_layers") == (True, "--checkpoint-layers")
    assert resolve(Request(TINY)).recipe.precision == "float32"


@pytest.mark.parametrize("name", ["bitnet", "pattern"])
def test_precision_is_refused_where_it_means_nothing(name):
    with pytest.raises(ConfigError, match="precision: found bf16.*leave it out"):
        resolve(Request(name, precision="bf16"))
    with pytest.raises(ConfigError, match="checkpoint_layers: is for networks of BNTT layers"):
        resolve(Request(name, checkpoint_layers=True))
