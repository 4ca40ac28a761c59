"""Windows of recordings as tensors: the reference's numbers, a slow loop over events, starts, jitter, batches."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import DataError
from hwsim.data.event_stream import Events
from hwsim.data.recording import held
from hwsim.data.windows import MODES, Window, batches, bin_events, check_windows, cut, jitter_ms, start_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "event.json").read_text())


def recording(n=50, length_ms=40, seed=0, label=0, sensor=(12, 9)):
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 1000 * length_ms, n))
    x, y, p = (random.integers(0, high, n) for high in (*sensor, 2))
    return held(f"r{seed}", label, Events(t, x, y, p), length_ms)


def test_binning_matches_the_golden_vector():
    golden = GOLDEN["event_binning"]
    samples, window = [], Window(golden["T"], ds=golden["ds"], mode="counts")
    for rows, start in zip(golden["events"], golden["start"], strict=True):
        t, x, y, p = np.array(rows).T
        whole = held("golden", 0, Events(1000 * t, x, y, p)).between_ms(start, golden["T"])
        samples.append(Events(whole.t_us - 1000 * start, whole.x, whole.y, whole.p))
    # The second sample's list has one number more than events in its window.
    jitter = [torch.tensor(j[: len(e)]) for j, e in zip(golden["jitter"], samples, strict=True)]
    x_TBCXY = bin_events(samples, window, (128, 128), jitter)
    x_BCXYT = x_TBCXY.permute(1, 2, 3, 4, 0)
    found = [[*place, x_BCXYT[tuple(place)].item()] for place in x_BCXYT.nonzero().tolist()]
    assert sorted(found) == sorted(golden["expected"])
    binary = bin_events(samples, replace(window, mode=0), (128, 128), jitter)
    assert torch.equal(binary, (x_TBCXY > 0).to(torch.uint8))


def test_jitter_is_cut_towards_zero_as_in_the_golden_vector():
    golden = GOLDEN["jitter_truncation"]
    assert jitter_ms(torch.tensor(golden["z"])).tolist() == golden["expected"]


def test_jitter_moves_four_and_a_half_percent_of_the_events(generator):
    moved = jitter_ms(torch.randn(200_000, generator=generator))
    assert 0.044 < (moved != 0).float().mean() < 0.047 and set(moved.tolist()) <= {-2, -1, 0, 1, 2}


def slow_loop(samples, window, sensor, jitter):
    """The same tensor, one event after the other."""
    C, X, Y = window.shape_CXY(sensor)
    counts = Counter()
    for b, (events, moves) in enumerate(zip(samples, jitter, strict=True)):
        for t, x, y, p, move in zip(events.t_us, events.x, events.y, events.p, moves, strict=True):
            ms = min(max(int(t) // 1000 + int(move), 0), window.steps * window.step_ms - 1)
            counts[ms // window.step_ms, b, int(p), int(x) // window.ds, int(y) // window.ds] += 1
    out = np.zeros((window.steps, len(samples), C, X, Y), int)
    for t in range(window.steps):
        for b in range(len(samples)):
            for x in range(X):
                for y in range(Y):
                    off, on = counts[t, b, 0, x, y], counts[t, b, 1, x, y]
                    sign = (on > off) - (on < off)
                    values = {0: (off > 0, on > 0), 1: (off != 0, on != 0), 2: (sign,), 3: (sign, sign)}
                    out[t, b, :, x, y] = values.get(window.mode, (off, on))
    return out


@given(st.data())
def test_windows_equal_a_slow_loop_over_the_events(data):
    sensor = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    window = Window(
        data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)),
        data.draw(st.sampled_from(MODES)),
    )  # fmt: skip
    samples, jitter = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        n = data.draw(st.integers(0, 12))

        def many(high, n=n, low=0):
            return data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

        samples.append(Events(many(1000 * window.length_ms - 1), many(sensor[0] - 1), many(sensor[1] - 1), many(1)))
        jitter.append(torch.tensor(many(2, low=-2), dtype=torch.int64))
    found = bin_events(samples, window, sensor, jitter)
    assert np.array_equal(found.numpy(), slow_loop(samples, window, sensor, jitter))
    assert found.shape[2:] == window.shape_CXY(sensor) and found.is_contiguous()


@given(st.integers(0, 30), st.integers(1, 25), st.integers(0, 3000), st.integers(0, 3000))
def test_a_stretch_of_a_recording_holds_the_events_of_its_milliseconds(start, length, zero, first):
    r = recording(200, 40)
    r = replace(r, zero_us=zero, start_us=zero + first, stop_us=30_500)
    want = [
        int(t) - zero for t in r.store.t_us
        if zero + first <= t < 30_500 and start <= (t - zero) // 1000 < start + length
    ]  # fmt: skip
    assert r.between_ms(start, length).t_us.tolist() == want


def test_the_axes_are_the_cameras_x_and_y_which_an_image_has_transposed():
    x_TBCXY = bin_events([Events([0], [8], [4], [1])], Window(1), (16, 8))
    assert x_TBCXY.shape == (1, 1, 2, 4, 2) and x_TBCXY[0, 0, 1, 2, 1] == 1 and x_TBCXY.sum() == 1


def test_an_event_outside_the_window_or_sensor_is_refused():
    for events, message in (
        (Events([5000], [0], [0], [0]), r"millisecond 5, allowed are 0\.\.4"),
        (Events([-1], [0], [0], [0]), "millisecond -1"),
        (Events([0], [8], [0], [0]), r"x 8, allowed are 0\.\.7"),
        (Events([0], [0], [9], [0]), "y 9"),
    ):
        with pytest.raises(DataError, match=f"sample 1 has an event at {message}"):
            bin_events([Events([0], [7], [7], [0]), events], Window(5), (8, 8))


def test_a_window_longer_than_a_recording_is_refused_with_what_fits():
    recordings = [recording(length_ms=40), recording(length_ms=23, seed=1)]
    check_windows(recordings, Window(11, step_ms=2))
    with pytest.raises(DataError) as e:
        check_windows(recordings, Window(12, step_ms=2), "test recordings")
    assert "12 steps of 2 ms is longer than 1 of 2 test recordings; the shortest, r1, lasts 23 ms" in str(e.value)
    assert "at most 11 steps" in str(e.value)
    with pytest.raises(DataError, match="longer than 1 of 2"):
        batches(recordings, Window(12, step_ms=2), (12, 9), 2)
    ((x, _),) = batches(recordings, Window(12, step_ms=2, short="pad"), (12, 9), 2)
    assert len(x) == 12


@pytest.mark.parametrize("length, starts", [(10, {0}), (11, {0}), (12, {0, 1}), (14, {0, 1, 2, 3})])
def test_random_starts_go_from_zero_to_the_last_millisecond_less_the_window(length, starts, generator):
    r, window = recording(length_ms=length), Window(10, start="random")
    found = Counter(start_of(r, window, generator) for _ in range(400))
    assert set(found) == starts and min(found.values()) > 0.6 * 400 / len(starts)
    assert start_of(r, Window(10), None) == 0


def test_batches_hold_every_recording_once_with_its_label(generator):
    recordings = [recording(seed=i, label=i % 3) for i in range(7)]
    window = Window(20, ds=1, mode="counts")
    want = [bin_events([cut(r, window)], window, (12, 9))[:, 0] for r in recordings]
    found = list(batches(recordings, window, (12, 9), 3, generator, shuffle=True))
    assert [len(y) for _, y in found] == [3, 3, 1]
    seen = []
    for x, y in found:
        for i in range(len(y)):
            (which,) = [k for k, w in enumerate(want) if torch.equal(w, x[:, i])]
            assert y[i] == recordings[which].label and y.dtype == torch.int64
            seen.append(which)
    assert sorted(seen) == list(range(7)) and seen != sorted(seen)
    assert [len(y) for _, y in batches(recordings, window, (12, 9), 3, drop_last=True)] == [3, 3]
    assert torch.equal(torch.cat([x for x, _ in batches(recordings, window, (12, 9), 3)], 1), torch.stack(want, 1))


def test_the_same_generator_gives_the_same_batches_and_another_others():
    recordings = [recording(seed=i) for i in range(6)]
    window = Window(20, ds=1, start="random", jitter=True)

    def all_of(seed):
        g = torch.Generator().manual_seed(seed)
        return torch.cat([x for x, _ in batches(recordings, window, (12, 9), 4, g, shuffle=True)], 1)

    assert torch.equal(all_of(1), all_of(1)) and not torch.equal(all_of(1), all_of(2))


def test_jitter_keeps_every_event_inside_the_window():
    r, window = recording(3000, 20), Window(20, ds=1, mode="counts")
    g = torch.Generator().manual_seed(0)
    ((plain, _),) = batches([r], window, (12, 9), 1)
    ((moved, _),) = batches([r], replace(window, jitter=True), (12, 9), 1, g)
    assert plain.sum() == moved.sum() == 3000 and not torch.equal(plain, moved)
    assert torch.equal(plain.sum(0), moved.sum(0)), "only times change"


def test_random_choices_without_a_generator_and_useless_batches_are_refused():
    for window, more in ((Window(9, jitter=True), {}), (Window(9, start="random"), {}), (Window(9), {"shuffle": True})):
        with pytest.raises(DataError, match="needs a generator"):
            batches([recording()], window, (12, 9), 1, **more)
    with pytest.raises(DataError, match="batch_size is 0"):
        batches([recording()], Window(9), (12, 9), 0)
    with pytest.raises(DataError, match="1 recordings do not fill one batch of 2"):
        batches([recording()], Window(9), (12, 9), 2, drop_last=True)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step_ms": 0}, {"ds": 0}, {"mode": 4}, {"mode": "raw"}])
def test_an_impossible_window_is_refused(wrong):
    with pytest.raises(DataError, match="window: "):
        Window(**{"steps": 5} | wrong)


def test_batches_are_read_when_they_are_asked_for():
    reads = []

    class Store:
        def between(self, start_us, stop_us):
            reads.append((start_us, stop_us))
            return Events([], [], [], [])

    recordings = [replace(recording(), store=Store(), stop_us=10**9) for _ in range(4)]
    found = batches(recordings, Window(10), (12, 9), 2)
    assert reads == []
    next(found)
    assert reads == [(0, 10_000)] * 2


@pytest.mark.gpu
def test_windows_on_cuda_equal_those_on_the_cpu():
    for mode in MODES:
        window = Window(20, ds=2, mode=mode)
        ((a, _),) = batches([recording(2000)], window, (12, 9), 1)
        ((b, y),) = batches([recording(2000)], window, (12, 9), 1, device="cuda")
        assert b.is_cuda and y.is_cuda and torch.equal(a, b.cpu())
