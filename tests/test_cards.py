"""Device cards: sources, numbers that matter, and requests that a card refuses."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwsim.config import CardError, ConfigError, Document, check, read_yaml
from hwsim.device.card import (
    Card,
    WeightSettings,
    card_names,
    card_store,
    device_table,
    load_card,
    summary,
)
from hwsim.device.schema import Cited
from hwsim.device.store import Ideal, Rram, Ternary

DEVICES = Path(__file__).parents[1] / "devices"
FILES = sorted(DEVICES.rglob("*.yaml"))
GOLDEN = json.loads((Path(__file__).parent / "golden" / "device.json").read_text(encoding="utf-8"))


def blocks(value):
    """Every cited block inside a card."""
    if isinstance(value, Cited):
        yield value
    children = value.values() if isinstance(value, dict) else vars(value).values() if hasattr(value, "__dict__") else ()
    for child in children:
        yield from blocks(child)


def numbers(data, place=()):
    """The place of every number in a card's YAML."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        yield place
    for key, child in items:
        yield from numbers(child, (*place, key))


def changed(data, place, factor):
    if not place:
        return data * factor
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[place[0]] = changed(data[place[0]], place[1:], factor)
    return copy


def outputs(card: Card):
    """Everything that a card says of weights: tables, what cells hold."""
    out, w, z = [], torch.linspace(-1, 1, 64), torch.linspace(2, -1, 64)
    widths = card.weights.sigma_ln_by_bits or {None: None}
    for variant in card.weights.variants or {None: None}:
        if variant:
            widths = card.weights.variants[variant].rows_by_bits
        for bits in widths:
            try:
                store = card_store(card, WeightSettings(bits=bits, variant=variant))
                shape = store.noise_shape((64,))
                out.append(store.held(w, None if shape is None else z.expand(shape)).tolist())
                table = device_table(card, bits, variant=variant)
                out.append([{k: v for k, v in r.items() if k.startswith(("sigma", "row_", "note"))} for r in table])
            except (CardError, ConfigError) as e:
                out.append(str(e))
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_card_loads_and_every_block_cites_a_source(path):
    card = load_card(path.stem)
    cited = list(blocks(card))
    assert cited
    assert all(b.source.strip() and b.evidence for b in cited)
    assert card.name == path.stem


@pytest.mark.parametrize("path", [f for f in FILES if load_card(f.stem).weights], ids=lambda p: p.stem)
def test_every_number_of_a_cell_matters(path):
    """Those of prices: test_energy_laws.py; of arrays: test_crossbar.py."""
    data = read_yaml(path).data
    before = outputs(check(Card, Document(data, path.name)))
    places = [p for p in numbers(data) if p[0] == "weights"]
    assert places or path.stem == "ideal"
    for place in places:
        try:
            after = outputs(check(Card, Document(changed(data, place, 0.9), path.name)))
        except ConfigError as e:
            assert "is above level_to" in str(e), place
            continue
        assert after != before, place


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_block_may_lose_its_source_or_evidence(path):
    data = read_yaml(path).data

    def cited(value, place=()):
        if isinstance(value, dict):
            if "source" in value:
                yield place
            for k, v in value.items():
                yield from cited(v, (*place, k))

    def without(value, place, key):
        if not place:
            return {k: v for k, v in value.items() if k != key}
        return {**value, place[0]: without(value[place[0]], place[1:], key)}

    found = list(cited(data))
    assert found
    for place in found:
        for key in ("source", "evidence"):
            with pytest.raises(ConfigError, match=f"{'.'.join(place)}.{key}: this is missing"):
                check(Card, Document(without(data, place, key), path.name))


def test_shipped_cards_are_the_files():
    assert FILES
    assert card_names() == [f.stem for f in FILES]
    assert [row["name"] for row in summary()] == card_names()
    assert all(row["title"] and row["blocks"] and row["source"] for row in summary())


def test_global_sigmas_are_the_references():
    weights = load_card("rram_65nm_asu").weights
    assert {str(b): s for b, s in weights.sigma_ln_by_bits.items()} == GOLDEN["dev_param"]["table"]


@pytest.mark.parametrize("case", GOLDEN["dev_param"]["cases"])
def test_effective_sigma_is_the_references_but_scale_zero_is_none(case):
    scale = 0.0 if case["no_var"] else float(case["var_scale"])
    store = card_store(load_card("rram_65nm_asu"), WeightSettings(bits=case["bits"]), scale)
    # Trap B12: the reference takes scale 0 for 1.
    want = 0.0 if scale == 0 else case["sigma"]
    assert store.sigma == pytest.approx(want, rel=1e-12)
    assert (store.noise_shape((3,)) is None) == (want == 0)


def test_a_scale_that_is_no_number_of_at_least_zero_is_refused():
    for wrong in (-1.0, math.nan):
        with pytest.raises(CardError, match="scale: .* is not a number of at least 0"):
            card_store(load_card("rram_65nm_asu"), WeightSettings(bits=2), wrong)


def test_settings_reach_the_store():
    settings = WeightSettings(bits=4, quantizer="xnor", clamp="signed", on_off_ratio=20.0)
    assert card_store(load_card("rram_65nm_asu"), settings) == Rram(4, "xnor", 0.34597, "signed", 20.0, None)
    settings = WeightSettings(clamp="magnitude", on_off_ratio=20.0)
    assert card_store(load_card("ternary"), settings, 2.0) == Ternary(0.16328, "magnitude", 20.0)
    assert card_store(load_card("ideal"), WeightSettings()) == Ideal()


def test_a_store_and_a_recipe_have_the_same_defaults():
    for field in ("clamp", "on_off_ratio"):
        default = WeightSettings.model_fields[field].default
        assert getattr(Rram, field) == getattr(Ternary, field) == default


def test_rows_are_scaled_and_vanish_at_scale_zero():
    card = load_card("rram_65nm_asu_bitwise")
    assert card_store(card, WeightSettings(bits=2), 2.0).rows == (
        (None, 0.4, 0.552),
        (0.9, None, 0.207),
    )
    assert card_store(card, WeightSettings(bits=2), 0.0) == Rram(bits=2)


def test_reference_rows_are_those_of_the_golden_file_and_say_what_is_wrong():
    variant = load_card("rram_65nm_asu_bitwise").weights.variants["reference"]
    rows = {str(b): [[r.level_from, r.level_to, r.sigma_ln] for r in rs] for b, rs in variant.rows_by_bits.items()}
    assert rows == GOLDEN["device_variation_bbb"]["rows"]
    assert "B3" in variant.defect


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rows_cover_every_level_that_the_quantizer_produces_once(variant, bits):
    store = card_store(load_card("rram_65nm_asu_bitwise"), WeightSettings(bits=bits, variant=variant))
    # Through the float32 arithmetic: without spread in the draw, every level must come back as it was.
    w = torch.linspace(-1, 1, 4001)
    assert torch.equal(store.held(w, torch.zeros(4001)), store.held(w))
    assert all(
        r["sigma_ln"] is not None and r["note"] == "" for r in device_table(load_card("rram_65nm_asu_bitwise"), bits)
    )


def test_table_shows_levels_boundaries_and_sigma():
    rows = device_table(load_card("rram_65nm_asu"), 2, quantizer="xnor")
    assert [r["level"] for r in rows] == [-1.0, -0.5, 0.5, 1.0]
    assert [r["upper"] for r in rows] == pytest.approx([-2 / 3, 0, 2 / 3, None])
    assert [r["lower"] for r in rows[1:]] == [r["upper"] for r in rows[:-1]]
    assert {r["sigma_ln"] for r in rows} == {0.12542} and {r["boundary_unit"] for r in rows} == {"w"}
    assert len(device_table(load_card("rram_65nm_asu"), 8)) == 256
    assert [r["level"] for r in device_table(load_card("ternary"))] == [-1, 0, 1]
    assert device_table(load_card("ideal")) == []


def test_table_shows_what_the_reference_rows_drop_and_double():
    rows = device_table(load_card("rram_65nm_asu_bitwise"), 4, variant="reference")
    notes = {round(r["level"] * 15): r["note"] for r in rows if r["level"] > 0}
    assert [k for k, note in notes.items() if "dropped" in note] == [5, 7]
    assert [k for k, note in notes.items() if "2 times" in note] == [9, 11, 13, 15]
    assert len(device_table(load_card("rram_65nm_asu_bitwise"), 4)) == 16


def refused(card: str, **settings) -> list[str]:
    with pytest.raises((CardError, ConfigError)) as e:
        card_store(load_card(card), WeightSettings(**settings))
    lines = str(e.value).splitlines()
    assert isinstance(e.value, CardError if len(lines) == 1 else ConfigError)
    return lines


def test_bits_that_the_card_does_not_know_are_refused():
    # Trap B13.
    gives = "(card rram_65nm_asu gives sigma for these)"
    assert refused("rram_65nm_asu", bits=5) == [f"device.weights.bits: 5 is not one of 1, 2, 3, 4, 8 {gives}"]
    assert refused("rram_65nm_asu") == [
        f"device.weights.bits: nothing is given; it must be one of 1, 2, 3, 4, 8 {gives}"
    ]
    assert refused("rram_65nm_asu_bitwise", bits=8) == [
        "device.weights.bits: 8 is not one of 1, 2, 3, 4 (card rram_65nm_asu_bitwise gives sigma for these)"
    ]


def test_all_problems_of_one_request_are_reported_at_once():
    lines = refused("rram_65nm_asu", bits=5, quantizer="ternary", variant="a")
    assert [line.split(":")[0] for line in lines] == [f"device.weights.{f}" for f in ("quantizer", "variant", "bits")]


def test_rows_by_level_refuse_the_grid_and_the_clamp_that_they_do_not_fit():
    lines = refused("rram_65nm_asu_bitwise", bits=2, quantizer="xnor", clamp="signed")
    assert "trap B3" in lines[0] and "use dorefa" in lines[0]
    assert lines[1].startswith("device.weights.clamp: signed does not go with sigma by level")


def test_contradictions_are_refused():
    assert "bits: 2 does not go with card ternary" in refused("ternary", bits=2)[0]
    assert "quantizer: dorefa does not go with card ternary" in refused("ternary", quantizer="dorefa")[0]
    assert "bits: 2 does not go with card ideal" in refused("ideal", bits=2)[0]
    assert "did you mean" in refused("rram_65nm_asu_bitwise", bits=2, variant="referenz")[0]
    assert "only prices" in refused("horowitz_45nm", bits=2)[0]
    with pytest.raises(CardError, match="quantizer: foo does not go with card rram_65nm_asu"):
        device_table(load_card("rram_65nm_asu"), 2, quantizer="foo")


def test_rows_that_skip_or_repeat_a_level_are_refused_unless_the_variant_says_so(tmp_path):
    text = (
        (DEVICES / "rram_65nm_asu_bitwise.yaml").read_text(encoding="utf-8").replace("level_to: 0.4,", "level_to: 0.3,")
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CardError, match=r"card mine: weights.variants.a.rows_by_bits.2: level 0.3333 lies in 0 rows"):
        card_store(load_card(tmp_path / "mine.yaml"), WeightSettings(bits=2))
    assert card_store(load_card(tmp_path / "mine.yaml"), WeightSettings(bits=2, variant="reference")).rows
    (tmp_path / "mine.yaml").write_text(text.replace("level_to: 0.3,", "level_to: 1.0,"), encoding="utf-8")
    with pytest.raises(CardError, match=r"weights.variants.a.rows_by_bits.2: level 1 lies in 2 rows"):
        card_store(load_card(tmp_path / "mine.yaml"), WeightSettings(bits=2))


@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "text", "null"])
def test_a_price_is_a_finite_number_of_at_least_zero(tmp_path, value):
    path = tmp_path / "mine.yaml"
    head = "title: t\ncovers: [neuron]\nnode_nm: 45\nprices:\n"
    path.write_text(f"{head}  neuron_update: {{pJ: {value}, source: s, evidence: assumed}}\n", encoding="utf-8")
    place = "prices.neuron_update" if value == "null" else "prices.neuron_update.pJ"
    with pytest.raises(ConfigError, match=rf"mine.yaml:5: {place}: "):
        load_card(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("title: t\n", "a card needs weights, state or prices"),
        ("title: t\nprices: {}\n", "prices: found"),
        (
            "title: t\nweights: {cell: rram, quantizer: dorefa, source: s, evidence: assumed}\n",
            "wants either sigma_ln_by",
        ),
        ("title: t\nweights: {cell: ideal, sigma_ln: 0.1, source: s, evidence: assumed}\n", "ideal wants no spread"),
        (
            "title: t\nweights: {cell: ternary, sigma_ln: 0.1, source: s, evidence: assumed}\n",
            "wants quantizer: ternary",
        ),
        ("title: t\nweights: {cell: ideal, source: ' ', evidence: assumed}\n", "weights.source"),
        ("title: t\nweights: {cell: ideal, source: s, evidence: guessed}\n", 'weights.evidence: found text "guessed"'),
        ("title: t\nweight: {}\n", "there is no 'weight' here; did you mean 'weights'"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path, body, message):
    path = tmp_path / "mine.yaml"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError) as e:
        load_card(str(path))
    assert message in str(e.value)


def test_a_missing_card_names_the_nearest():
    with pytest.raises(CardError, match="there is no such card; did you mean 'rram_65nm_asu'"):
        load_card("rram_65nm_as")
    with pytest.raises(CardError, match="there is no such file; shipped cards: .*ternary"):
        load_card("folder/mine.yaml")


def test_the_hash_follows_the_numbers_and_not_the_layout(tmp_path):
    path = tmp_path / "ternary.yaml"
    text = (DEVICES / "ternary.yaml").read_text(encoding="utf-8")
    path.write_text("# another comment\n" + text, encoding="utf-8")
    assert load_card(path).hash == load_card("ternary").hash
    path.write_text(text.replace("0.08164", "0.08165"), encoding="utf-8")
    assert load_card(path).hash != load_card("ternary").hash


def test_reading_cards_does_not_import_torch():
    code = "import sys; from hwsim.device.card import summary; summary(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DEVICES.parent).returncode == 0


@pytest.mark.parametrize("model", [Card, WeightSettings])
def test_json_schema_has_a_sentence_for_every_field(model):
    schema = model.model_json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    fields = [(m["title"], k, f) for m in models for k, f in m["properties"].items()]
    assert len(fields) >= 5
    for title, key, field in fields:
        assert field.get("description", "").endswith((".", "…")), (title, key)
