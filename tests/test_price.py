"""Prices: each form by hand, what a card may not say, and cards that complete each other."""

import math

import pytest
import yaml
from counted import prices
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import CardError, ConfigError, Document, check
from hwsim.device.card import load_card
from hwsim.device.price import Price, StaticPower, interpolated, scaled
from hwsim.device.pricelist import Prices
from hwsim.device.schema import Card

CITED = {"source": "s", "evidence": "assumed"}
MACRO = {"word_bits": 8, "pJ_by_kib": {1: 1.0, 4: 4.0, 16: 8.0}}


def price(**form) -> Price:
    return Price(**form, **CITED)


# ---------------------------------------------------------------------------------------------------------------- forms


def test_one_number_is_the_price_whatever_is_moved():
    assert [price(pJ=2.5).at(bits, kib) for bits, kib in ((0, 0), (7, 3.0))] == [2.5, 2.5]
    assert price(pJ=0).at() == 0


def test_a_price_by_bit_is_times_the_bits_in_whole_bursts():
    assert [price(pJ_per_bit=0.5).at(bits) for bits in (0, 1, 7, 64)] == [0, 0.5, 3.5, 32]
    burst = price(pJ_per_bit=0.5, burst_bits=32)
    assert [burst.at(bits) for bits in (0, 1, 32, 33)] == [0, 16, 16, 32]


def test_a_price_by_the_bits_of_a_weight_knows_these_and_no_others():
    table = price(pJ_by_bits={2: 1.5, 4: 3.0})
    assert [table.at(2), table.at(4, 9.0)] == [1.5, 3.0]
    with pytest.raises(KeyError):
        table.at(3)


def test_a_price_by_width_is_straight_between_its_points_and_in_proportion_beyond():
    law = price(pJ_by_width={64: 0.2, 1024: 3.1})
    assert [law.at(b) for b in (0, 16, 64, 1024, 2048)] == pytest.approx([0, 0.05, 0.2, 3.1, 6.2])
    assert law.at(544) == pytest.approx((0.2 + 3.1) / 2)
    assert price(pJ_by_width={8: 0.03}).at(12) == pytest.approx(0.045)


def test_a_macro_is_interpolated_in_logarithms_and_held_at_its_ends():
    at = [price(by_capacity=MACRO).at(8, kib) for kib in (0.1, 1, 2, 4, 8, 16, 1000)]
    # Straight log-log: from 1 to 4 KiB proportional, from 4 to 16 KiB with the root of the capacity.
    assert at == pytest.approx([1, 1, 2, 4, 4 * math.sqrt(2), 8, 8], rel=1e-12)
    assert interpolated({8: 10.0}, 99) == interpolated({8: 10.0}, 1) == 10


def test_a_transfer_takes_whole_words():
    at = [price(by_capacity=MACRO).at(bits, 4) for bits in (0, 1, 8, 9, 16, 17)]
    assert at == [0, 4, 4, 8, 8, 12]


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.01, 1e3)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
       st.floats(0.01, 1e5))  # fmt: skip
def test_interpolation_goes_through_the_points_and_stays_between_them(points, x):
    table = dict(points)
    for at, value in points:
        assert interpolated(table, at) == pytest.approx(value, rel=1e-9)
    assert min(table.values()) * (1 - 1e-9) <= interpolated(table, x) <= max(table.values()) * (1 + 1e-9)


def test_the_survey_of_converters_by_hand():
    fit = {"samples_per_s": 1e9, "fom_intercept_dB": 302.7387, "fom_slope_dB": 6.46079, "fom_cap_dB": 180.1416}
    # ln 1e9 = 20.7233: FOM 168.850 dB; 8 bits are 49.92 dB: 10^(-11.893)/2 J.
    assert price(adc_survey=fit).at(8) == pytest.approx(0.640, rel=1e-3)
    # Below 1.7e8 samples a second the figure of merit is at its cap, so the rate no longer matters.
    slow = [price(adc_survey={**fit, "samples_per_s": f}).at(8) for f in (1e6, 1e8)]
    assert slow == [pytest.approx(0.0475, rel=2e-3)] * 2
    # A bit more is four times the energy, but for the survey's 6.02.
    assert price(adc_survey=fit).at(9) / price(adc_survey=fit).at(8) == pytest.approx(10**0.602)


def test_static_power_of_a_device_of_bits_and_of_macros():
    assert StaticPower(mW=3.0, **CITED).milliwatt(1e9) == 3
    assert StaticPower(nW_per_bit=50.0, **CITED).milliwatt(2) == pytest.approx(2 * 8192 * 50e-6)
    macros = StaticPower(mW_by_kib={1: 0.5, 4: 2.0}, **CITED)
    # Proportional between the two; above the largest as many macros as hold it.
    assert [macros.milliwatt(kib) for kib in (0.1, 1, 2, 4, 4.1, 12)] == pytest.approx([0.5, 0.5, 1, 2, 4, 6])


def test_scaling_by_the_node_is_linear_quadratic_or_cubic():
    assert [scaled(45, 22.5, s) for s in ("linear", "quadratic", "cubic")] == [0.5, 0.25, 0.125]
    assert scaled(28, 28, "cubic") == 1


# -------------------------------------------------------------------------------------------------------------- refusal


def refused(**said) -> str:
    """What is said about a card with such a price of ac."""
    card = {"title": "t", "covers": ["synapse"], "node_nm": 45, "prices": {"ac": {**CITED, **said}}}
    card["prices"]["ac"] = {k: v for k, v in card["prices"]["ac"].items() if v is not None}
    with pytest.raises(ConfigError) as e:
        check(Card, Document(card, "mine.yaml"))
    return str(e.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"pJ": -1}, r"prices.ac.pJ: found -1"),
        ({"pJ": math.nan}, "prices.ac.pJ: found"),
        ({"pJ": "1 pJ"}, "prices.ac.pJ: expected a number, found text"),
        ({"pJ_per_bit": -0.1}, "prices.ac.pJ_per_bit: found -0.1"),
        ({"pJ_by_bits": {2: -1}}, "prices.ac.pJ_by_bits.2: found -1"),
        ({"pJ_by_bits": {0: 1}}, "prices.ac.pJ_by_bits"),
        ({"pJ_by_bits": {}}, "prices.ac.pJ_by_bits"),
        ({"by_capacity": {"word_bits": 0, "pJ_by_kib": {8: 1}}}, "prices.ac.by_capacity.word_bits: found 0"),
        ({"by_capacity": {"word_bits": 8, "pJ_by_kib": {0: 1}}}, "prices.ac.by_capacity.pJ_by_kib"),
        ({"by_capacity": {"word_bits": 8, "pJ_by_kib": {8: -1}}}, "prices.ac.by_capacity.pJ_by_kib.8"),
        ({"by_capacity": {"pJ_by_kib": {8: 1}}}, "prices.ac.by_capacity.word_bits: this is missing"),
        ({"pJ": 1, "source": None}, "prices.ac.source: this is missing"),
        ({"pJ": 1, "source": " "}, "prices.ac.source: found"),
        ({"pJ": 1, "evidence": None}, "prices.ac.evidence: this is missing"),
        ({"pJ": 1, "evidence": "guessed"}, 'prices.ac.evidence: found text "guessed"'),
        ({"value": 1}, "there is no 'value' here"),
        ({}, "give one of pJ, pJ_per_bit, pJ_by_bits, pJ_by_width, by_capacity, adc_survey; found none of these"),
        ({"pJ": 1, "pJ_per_bit": 1}, "found pJ, pJ_per_bit"),
        ({"pJ": 1, "burst_bits": 8}, "burst_bits goes with pJ_per_bit"),
        ({"pJ": 1, "node_nm": 0}, "prices.ac.node_nm: found 0"),
    ],
    ids=lambda v: str(v)[:60] if isinstance(v, dict) else "",
)  # fmt: skip
def test_a_wrong_price_is_refused_with_its_place(said, message):
    assert message in refused(**said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "found none of these"),
        ({"mW": 1, "nW_per_bit": 1}, "found mW, nW_per_bit"),
        ({"mW": -1}, "static.memory.mW: found -1"),
        ({"mW_by_kib": {8: -1}}, "static.memory.mW_by_kib.8: found -1"),
        ({"mW": 1}, "static.device gives mW, static.memory nW_per_bit or mW_by_kib"),
    ],
)
def test_a_wrong_static_power_is_refused_with_its_place(said, message):
    card = {"title": "t", "covers": ["memory"], "node_nm": 45, "prices": {"memory_read": {"pJ": 1, **CITED}},
            "static": {"memory": {**CITED, **said}}}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        check(Card, Document(card, "mine.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covers": []}, "prices and covers"),
        ({"prices": None}, "a card needs weights"),
        ({"node_nm": None}, "prices belong to a technology node: give node_nm"),
        ({"covers": ["crossbar"]}, "a card that covers crossbar says how in its crossbar block"),
        ({"covers": ["synapses"]}, 'covers.0: found text "synapses"'),
        ({"step_time_us": 0}, "step_time_us: found 0"),
    ],
)
def test_a_card_says_what_it_prices_and_of_which_node(change, message):
    card = {"title": "t", "covers": ["synapse"], "node_nm": 45, "prices": {"ac": {"pJ": 1, **CITED}}} | change
    with pytest.raises(ConfigError, match=message):
        check(Card, Document({k: v for k, v in card.items() if v is not None}, "mine.yaml"))


# -------------------------------------------------------------------------------------------------------- several cards


def test_of_cards_together_the_later_price_counts_and_all_that_they_cover():
    first = {"covers": ["synapse"], "prices": {"add_fp32": 1.0, "mult_fp32": 2.0}, "step_time_us": 5.0}
    second = {"covers": ["neuron"], "prices": {"add_fp32": 7.0, "neuron_update": 3.0}}
    both, other_way = prices(first, second), prices(second, first)
    assert [both.of(e).pJ for e in ("add_fp32", "mult_fp32", "neuron_update")] == [7, 2, 3]
    assert [both.of(e).card for e in ("add_fp32", "mult_fp32")] == ["card1", "card0"]
    assert other_way.of("add_fp32").pJ == 1
    assert both.covers == {"synapse", "neuron"} and both.name == "card0+card1"
    assert both.of("memory_read") is None
    assert (both.step_time_us, other_way.step_time_us) == (5, 5)
    assert both.hash == "+".join(c.hash for c in both.cards)


def test_of_cards_with_arrays_the_later_arrays_count():
    named = "rram_crossbar_isaac", "rram_crossbar_neurram"
    isaac, neurram = (load_card(n) for n in named)
    assert Prices([isaac, neurram], 32).crossbar == neurram.crossbar
    assert Prices([neurram, isaac], 32).crossbar == isaac.crossbar


def test_of_cards_with_leaking_memories_the_later_leaks():
    memory = {"covers": ["memory"], "prices": {"memory_read": 1.0, "memory_write": 1.0}}
    leaks = [{**memory, "static": {"memory": {"nW_per_bit": n, **CITED}}} for n in (10.0, 20.0)]
    chip = {"covers": ["neuron"], "prices": {"neuron_update": 1.0}, "static": {"device": {"mW": 1.0, **CITED}}}
    found = [(where, p.nW_per_bit or p.mW) for _, where, p in prices(leaks[0], chip, leaks[1]).static]
    assert sorted(found) == [("device", 1.0), ("memory", 20.0)]


def test_cards_of_several_nodes_are_refused_unless_they_are_scaled():
    at = [
        {"covers": ["synapse"], "node_nm": n, "prices": {f"{a}_fp32": 8.0}} for n, a in ((40.0, "add"), (20.0, "mult"))
    ]
    with pytest.raises(CardError) as e:
        prices(*at)
    assert str(e.value) == (
        "card card0+card1: card0: prices.add_fp32 of 40 nm and card1: prices.mult_fp32 of 20 nm do not add up; scale "
        "them to one node with --to-node NM (and --scaling linear, quadratic or cubic), or take cards of one node"
    )
    for scaling, factor in (("linear", 2), ("quadratic", 4), ("cubic", 8)):
        both = prices(*at, to_node_nm=20.0, scaling=scaling)
        assert [both.of("add_fp32").pJ, both.of("mult_fp32").pJ] == [8 / factor, 8]
        assert both.of("add_fp32").source == f"source of add_fp32; x {1 / factor:g}, 40 to 20 nm, {scaling}"
        assert both.of("mult_fp32").source == "source of mult_fp32"
    upward = prices(*at, to_node_nm=40.0, scaling="quadratic")
    assert upward.of("mult_fp32").pJ == 32


def test_a_price_may_be_of_another_node_than_its_card():
    with pytest.raises(CardError, match="card0: prices.a of 45 nm and card0: prices.b of 90 nm do not add up"):
        prices({"prices": {"a": 1.0, "b": {"pJ": 8.0, "node_nm": 90.0}}})
    mixed = prices({"prices": {"a": 1.0, "b": {"pJ": 8.0, "node_nm": 90.0}}}, to_node_nm=45.0)
    assert [mixed.of("a").pJ, mixed.of("b").pJ] == [1, 1]


def test_prices_of_an_unknown_node_stand_alone_and_are_not_scaled():
    unknown = {"node_nm": None, "includes": "Of an unknown node.", "prices": {"a": 1.0}}
    assert prices(unknown).of("a").pJ == 1
    with pytest.raises(
        CardError, match="card0: prices.a of an unknown node and card1: prices.b of 45 nm do not add up"
    ):
        prices(unknown, {"prices": {"b": 1.0}})
    with pytest.raises(CardError, match="card card0: prices.a is of an unknown node and cannot be scaled"):
        prices(unknown, to_node_nm=45.0).of("a")


def test_the_survey_of_converters_completes_a_card_of_any_node_and_is_never_scaled():
    alone, bound = prices("rram_crossbar_isaac"), prices("rram_crossbar_isaac+adc_survey")
    assert alone.of("adc_conversion", 8).card == "rram_crossbar_isaac"
    assert bound.of("adc_conversion", 8).card == "adc_survey"
    at_8, at_7 = (bound.of("adc_conversion", bits).pJ for bits in (8, 7))
    assert at_8 == pytest.approx(0.640, rel=1e-3) and at_8 > at_7
    for to in (16.0, 32.0, 65.0):
        assert prices("rram_crossbar_isaac+adc_survey", to_node_nm=to).of("adc_conversion", 8).pJ == at_8
    with pytest.raises(CardError, match=r"adc_survey: covers nothing alone.*take it as CARD\+adc_survey"):
        prices("adc_survey")


def test_a_card_without_prices_and_one_that_is_not_there_are_refused():
    with pytest.raises(CardError, match="card ideal: gives no prices; take a card that does"):
        prices("ideal")
    with pytest.raises(CardError, match="card ideal: gives no prices"):
        prices("horowitz_45nm+ideal")
    with pytest.raises(CardError, match="did you mean 'horowitz_45nm'"):
        prices("horowitz_45nm+horowits_45nm")


def test_bits_that_a_law_does_not_know_are_refused_by_name():
    table = prices({"prices": {"pass": {"pJ_by_bits": {2: 1.0, 4: 2.0}}}})
    with pytest.raises(CardError, match=r"card card0: prices.pass is given for 2, 4 bits, not for 3; take a network"):
        table.of("pass", 3)


def test_a_missing_price_names_card_action_layers_and_the_nearest():
    message = prices("horowitz_45nm").missing("add_fp23", ["conv1", "conv1", "fc1"])
    start = "card horowitz_45nm: there is no price for 'add_fp23', which conv1, fc1 need; did you mean 'add_fp"
    assert message.startswith(start)
    assert "; add prices.add_fp23: {pJ: …, source: …, evidence: …}" in message


def test_prices_are_horowitzs():
    found = prices("horowitz_45nm")
    pJ = {e: found.of(e).pJ for e in ("add_int8", "add_int32", "add_fp16", "add_fp32")}
    assert pJ == {"add_int8": 0.03, "add_int32": 0.1, "add_fp16": 0.4, "add_fp32": 0.9}
    pJ = {e: found.of(e).pJ for e in ("mult_int8", "mult_int32", "mult_fp16", "mult_fp32")}
    assert pJ == {"mult_int8": 0.2, "mult_int32": 3.1, "mult_fp16": 1.1, "mult_fp32": 3.7}
    assert [found.of("memory_read", 64, kib).pJ for kib in (8, 32, 1024)] == [10, 20, 100]
    assert "10.1109/ISSCC.2014.6757323" in found.of("mult_int8").source


def test_a_card_of_ones_own_is_found_by_its_path(tmp_path):
    mine = {"title": "t", "covers": ["neuron"], "node_nm": 45, "prices": {"neuron_update": {"pJ": 2, **CITED}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    both = prices(f"horowitz_45nm+{tmp_path / 'mine.yaml'}")
    assert both.name == "horowitz_45nm+mine" and both.of("neuron_update") == (2, "s", "assumed", "mine")
