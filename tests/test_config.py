"""YAML in, strict settings out; messages that say where, what was found, and what is allowed."""

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from hwsim.config import ConfigError, Document, Settings, check, content_hash, nearest, parse_yaml, read_yaml
from hwsim.fields import field_at, model_at, place_of, real_place, value_at
from hwsim.recipe.settings import Evaluate, Recipe, Train


class Inner(Settings):
    rate: float = Field(1.0, gt=0)
    kind: Literal["red", "blue"] = "red"
    on: list[str] = ["a"]


class Outer(Settings):
    epochs: int = Field(ge=1)
    name: str = "x"
    fast: bool = False
    inner: Inner = Inner()


def messages(text: str, model=Outer) -> list[str]:
    with pytest.raises(ConfigError) as e:
        check(model, parse_yaml(text, "f.yaml"))
    assert str(e.value).splitlines() == e.value.messages
    return e.value.messages


def value(text: str):
    return parse_yaml(f"a: {text}", "f.yaml").data["a"]


# --- reading YAML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("1E+2", 100.0), (".5", 0.5), ("1.", 1.0), ("010", 10), ("08", 8), ("1_000", 1000), ("-7", -7)],
)
def test_numbers_are_read_as_people_write_them(text, number):
    found = value(text)
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "1:30", "2020-01-01", "0x1f", "v1"])
def test_only_true_and_false_are_booleans_and_only_numbers_are_numbers(word):
    assert value(word) == word


def test_true_false_and_null_are_what_they_say():
    assert parse_yaml("[true, False, null, ~, '']", "f").data == [True, False, None, None, ""]
    assert value(".inf") == float("inf") and value("-.INF") == -float("inf") and value(".nan") != value(".nan")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab:#-,1 "),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab:1", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(json_like)
def test_json_is_read_as_json(data):
    document = parse_yaml(json.dumps(data), "f.yaml")
    assert document.data == data and not document.twice


def test_places_know_their_lines():
    document = parse_yaml("a: 1\nb:\n  c: [1,\n    2]\n", "f.yaml")
    assert document.where(("b", "c")) == "f.yaml:3" and document.where(("b", "c", 1)) == "f.yaml:4"
    assert document.where(("b", "unknown", "deeper")) == "f.yaml:2"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: [1, 2\n", 3, "expected ',' or ']'"),
        ("a: 1\nb:\n\t- 1\n", 3, "cannot start any token"),
        ("a: 1\nb: 'x\n", 3, "unexpected end of stream"),
        ("a: 1\n b: 2\n", 2, "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: 1\nb: *c\n", 2, "found undefined alias"),
        ("a: 1\nb: &c [*c]\n", 2, "contains itself"),
        ("a: 1\n[b]: 2\n", 2, "a key must be a word or a number"),
        ("a: 1\nb: !!int abc\n", 2, "abc is no int"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_named_with_its_line(text, line, says):
    with pytest.raises(ConfigError) as e:
        parse_yaml(text, "f.yaml")
    (message,) = e.value.messages
    assert message.startswith(f"f.yaml:{line}: not valid") and says in message


def test_a_control_character_is_no_yaml():
    with pytest.raises(ConfigError, match=r"^f.yaml: not valid YAML: special characters"):
        parse_yaml("a: \x01", "f.yaml")


def test_an_option_has_no_line():
    with pytest.raises(ConfigError, match=r"^--set x=\[: not valid YAML"):
        parse_yaml("[", "--set x=[")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("title: Größe".encode("latin-1"))
    for name in ("latin.yaml", "missing.yaml", ""):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(tmp_path / name)


# --- checking -----------------------------------------------------------------------------------------------------


def test_unknown_key_suggests_the_nearest():
    (message,) = messages("epochs: 1\ninner: {rat: 2.0}\n")
    assert message == "f.yaml:2: inner.rat: there is no 'rat' here; did you mean 'rate'?"
    (message,) = messages("epochs: 1\nzebra: 2\n")
    assert message == "f.yaml:2: zebra: there is no 'zebra' here; there is epochs, name, fast, inner"


def test_all_errors_are_reported_at_once():
    text = "epochs: 0\nname: 3\nname: x\nfast: 1\ninner: {rate: 0, kind: green, on: a}\nmore: 1\n"
    found = messages(text)
    places = [m.split(": ")[1] for m in found]
    assert places == ["name", "epochs", "fast", "inner.rate", "inner.kind", "inner.on", "more"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs: '5'", 'epochs: expected a whole number, found text "5"; take the quotes off'),
        ("epochs: five", 'epochs: expected a whole number, found text "five"'),
        ("epochs: 5.0", "epochs: expected a whole number, found 5.0"),
        ("epochs: true", "epochs: expected a whole number, found true"),
        ("epochs:", "epochs: expected a whole number, found null"),
        ("epochs: 0", "epochs: found 0; it must be at least 1"),
        ("{epochs: 1, name: 3}", "name: expected text, found 3"),
        ("{epochs: 1, fast: yes}", 'fast: expected true or false, found text "yes"'),
        ("{epochs: 1, inner: 3}", "inner: expected a mapping, found 3"),
        ("{epochs: 1, inner: {rate: '1e-3'}}", 'rate: expected a number, found text "1e-3"; take the quotes off'),
        ("{epochs: 1, inner: {rate: -1}}", "inner.rate: found -1; it must be above 0"),
        ("{epochs: 1, inner: {rate: .inf}}", "inner.rate: found Infinity; it must be finite"),
        ("{epochs: 1, inner: {kind: rad}}", "found text \"rad\"; did you mean 'red'? (allowed: red, blue)"),
        ("{epochs: 1, inner: {on: [a, 2]}}", "inner.on.1: expected text, found 2"),
        ("{epochs: 1, 7: 2}", "7: a key here must be text, found 7; put it in quotes"),
        ("{}", "epochs: this is missing and has no default"),
        ("[1]", "document: expected a mapping, found the list [1]"),
        ("", "document: expected a mapping, found null"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(text, says):
    (message,) = messages(text)
    assert message.startswith("f.yaml") and message.endswith(says)


def test_a_key_that_is_written_twice_is_named_with_its_second_line():
    (message,) = messages("epochs: 1\nname: a\nname: b\n")
    assert message == "f.yaml:3: name: this key is written twice; keep one of them"


def test_long_values_are_shortened_in_messages():
    (message,) = messages(f"epochs: {'x' * 500}")
    assert len(message) < 160 and message.endswith("...")


def test_a_whole_number_may_stand_for_a_number():
    assert check(Outer, parse_yaml("{epochs: 1, inner: {rate: 2}}", "f")).inner.rate == 2.0


def test_the_verb_of_a_stage_is_explained():
    text = "title: t\nstages:\n  a: {{do: train}}\n  b: {{{}}}\n"
    (message,) = messages(text.format("do: evalaute, of: [a]"), Recipe)
    assert message.startswith("f.yaml:4: stages.b.do: found text \"evalaute\"; did you mean 'evaluate'?")
    (message,) = messages(text.format("of: [a]"), Recipe)
    assert message.startswith("f.yaml:4: stages.b.do: this is missing") and message.endswith("load, evaluate, account")
    (message,) = messages(text.format("do: evaluate"), Recipe)
    assert message == "f.yaml:4: stages.b.of: this is missing and has no default"
    (message,) = messages(text.format("do: evaluate, of: [a], epochs: 3"), Recipe)
    assert message.startswith("f.yaml:4: stages.b.epochs: there is no 'epochs' here")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Inner().rate = 2.0


# --- places -------------------------------------------------------------------------------------------------------

RECIPE = {"stages": {"a": {"do": "train"}, "e": {"do": "evaluate"}}}


def test_a_place_finds_its_field():
    assert field_at(Recipe, RECIPE, place_of("stages.a.from")).description == Train.model_fields["start"].description
    assert field_at(Recipe, RECIPE, place_of("stages.e.chips")).default == Evaluate.model_fields["chips"].default
    assert field_at(Recipe, {}, place_of("device.weights.bits")) is not None
    for text in ("stages.a.chips", "stages.x.epochs", "net.name.x", "nothing", "device.on.0.x"):
        assert field_at(Recipe, RECIPE, place_of(text)) is None, text
    assert model_at(Recipe, RECIPE, ("stages", "a")) is Train
    assert model_at(Recipe, RECIPE, ("stages",)) is None


def test_a_union_leaves_no_trace_in_a_place():
    assert real_place(RECIPE, ("stages", "a", "train", "epochs")) == ("stages", "a", "epochs")
    data = {"stages": {"train": {"do": "train", "on": ["x"]}}}
    assert real_place(data, ("stages", "train", "train", "on", 0)) == ("stages", "train", "on", 0)


def test_a_missing_value_is_none():
    assert value_at(RECIPE, ("stages", "a", "do")) == "train"
    assert value_at(RECIPE, ("stages", "a", "do", 3, "x")) is None
    assert value_at([1, 2], (5,)) is None


def test_a_value_that_is_set_has_its_origin():
    document = parse_yaml("a: {b: {c: 1, d: 2}}\nl: [1, {x: 2}]\n", "f.yaml")
    document.set(("a", "b"), {"c": 5}, "--set a.b")
    document.set(("l", 1, "x"), 3, "--set l.1.x")
    document.set(("new", "deep"), 4, "--set new.deep")
    assert document.data == {"a": {"b": {"c": 5}}, "l": [1, {"x": 3}], "new": {"deep": 4}}
    assert document.where(("a", "b", "c")) == "--set a.b" and document.where(("l", 1, "x")) == "--set l.1.x"
    assert document.where(("a",)) == "f.yaml:1"


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("x", ["alpha", "beta"]) == "; there is alpha, beta"
    assert nearest("x", []) == ""


@given(st.dictionaries(st.text(), json_like, max_size=4))
def test_a_content_hash_does_not_depend_on_order(data):
    assert content_hash(data) == content_hash(dict(reversed(data.items())))
    assert content_hash(data) != content_hash({**data, "another": 1, "key": 2})


def test_a_document_without_lines_names_its_source():
    assert Document({}, "somewhere").where(("a", "b")) == "somewhere"
