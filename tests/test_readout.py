"""What outputs over time say: accuracy by step, latency, leaving early."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.readout import Seen, exit_rows, latency_rows, step_rows, suiting_margins, tables, wilson


def seen(correct, margins, ann=None, images=None) -> Seen:
    correct, margins = np.array(correct, dtype=bool), np.array(margins, dtype=float)
    ann = np.ones(correct.shape[1], dtype=bool) if ann is None else np.array(ann)
    return Seen(correct, margins, ann, images or correct.shape[1])


TWO = seen([[0, 1], [1, 1], [1, 0]], [[0.0, 2.0], [1.0, 3.0], [5.0, 1.0]], [True, False])


def test_every_step_has_its_accuracy_and_mean_margin():
    rows = step_rows(TWO)
    assert [r["timestep"] for r in rows] == [1, 2, 3]
    assert [r["accuracy"] for r in rows] == [0.5, 1.0, 0.5]
    assert [r["mean_margin"] for r in rows] == [1.0, 2.0, 3.0]
    assert all(r["ann_accuracy"] == 0.5 and r["ci95_low"] < r["accuracy"] + 1e-9 <= r["ci95_high"] + 1e-9 for r in rows)


def test_images_that_a_dropped_batch_held_count_as_wrong():
    rows = step_rows(seen([[1, 1]], [[1.0, 1.0]], images=4))
    assert rows[0]["accuracy"] == 0.5 and rows[0]["images"] == 4


def test_an_image_leaves_at_the_first_step_whose_margin_suffices_or_at_the_last():
    by_margin = {r["margin"]: r for r in exit_rows(TWO, [4.0, 2.0, 0.5])}
    assert list(by_margin) == [0.5, 2.0, 4.0]
    # 0.5: steps 2 and 1; 2: steps 3 and 1; 4: steps 3 and 3 (never for the second).
    assert [by_margin[m]["mean_steps"] for m in (0.5, 2.0, 4.0)] == [1.5, 2.0, 3.0]
    assert [by_margin[m]["accuracy"] for m in (0.5, 2.0, 4.0)] == [1.0, 1.0, 0.5]
    assert [by_margin[m]["left_early_fraction"] for m in (0.5, 2.0, 4.0)] == [1.0, 0.5, 0.0]


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8))
def test_a_larger_margin_never_leaves_earlier(seed, T, N):
    random = np.random.default_rng(seed)
    some = seen(random.random((T, N)) < 0.5, random.random((T, N)))
    steps = [r["mean_steps"] for r in exit_rows(some, [0.1, 0.4, 0.7, 2.0])]
    assert steps == sorted(steps) and steps[-1] == T


def test_margins_that_suit_span_what_was_seen():
    margins = suiting_margins(np.array([[0.0, 0.01], [0.5, 8.0]]))
    assert margins == sorted(margins) and margins[-1] == 8.0 and margins[0] < 0.02 and len(margins) == 25
    assert suiting_margins(np.zeros((2, 2))) == [1.0]


def test_latency_is_the_first_step_that_reaches_a_target_and_the_one_from_which_it_stays():
    rows = {r["target"]: r for r in latency_rows([0.1, 0.9, 0.6, 0.9, 0.95], 0.95, 1)}
    assert rows["90 %"] == {
        "target": "90 %", "accuracy": 0.9, "first_timestep": 2, "stays_from_timestep": 4, "useful_steps": 1,
    }  # fmt: skip
    assert rows["50 %"]["first_timestep"] == rows["50 %"]["stays_from_timestep"] == 2
    assert rows["ann - 0 points"]["first_timestep"] == 5
    assert rows["98 %"]["first_timestep"] == rows["98 %"]["stays_from_timestep"] == rows["98 %"]["useful_steps"] == ""
    lost = latency_rows([0.9, 0.2], 0.5, 0)
    assert all(r["stays_from_timestep"] == "" for r in lost if r["accuracy"] > 0.2)


def test_the_stages_margins_are_taken_where_given():
    stage = Convert(**{"from": "x"}, margins=[3.0, 1.0])
    assert [r["margin"] for r in tables(TWO, stage, 0)["exits"]] == [1.0, 3.0]
    assert len(tables(TWO, Convert(**{"from": "x"}), 0)["exits"]) > 3


@given(st.integers(1, 500), st.integers(0, 500))
def test_the_interval_holds_the_share_and_lies_within_zero_and_one(images, correct):
    correct = min(correct, images)
    low, high = wilson(correct, images)
    assert 0 <= low <= correct / images + 1e-12 and correct / images <= high + 1e-12 <= 1 + 1e-12


def test_the_interval_agrees_with_scipys():
    from scipy.stats import binomtest

    for correct, images in ((0, 10), (7, 10), (350, 360)):
        theirs = binomtest(correct, images).proportion_ci(0.95, "wilson")
        assert wilson(correct, images) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
