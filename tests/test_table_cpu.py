"""Convolutions of the signed spikes of few channels by a table of patterns, against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.network import events_cpu, table_cpu
from hwsim.network.vector_ir import LANES


def spikes(N, C, H, W, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (N, C, H, W), generator=g).float()


def words(x):
    return events_cpu.packed(x, 1.0)[..., 0]


@pytest.mark.parametrize(
    ("N", "C", "K", "H", "W"),
    [(3, 3, 64, 8, 8), (2, 1, 32, 5, 7), (1, 2, LANES, 1, 9), (4, 3, 7 * LANES, 6, 3), (1, 3, 4 * LANES, 1, 1)],
)
def test_it_equals_the_convolution_in_float64(N, C, K, H, W):
    x = spikes(N, C, H, W)
    w = torch.randn(K, C, 3, 3, generator=torch.Generator().manual_seed(1))
    y = table_cpu.convolution(words(x), w)
    want = F.conv2d(x.double(), w.double(), padding=1)
    # Up to 27 float32 additions of numbers of size 1: 27 half units in the last place of a sum of at most 27 or so.
    assert (y.double() - want).abs().max() < 27 * 2**-24 * 32
    assert y.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(channel=st.integers(0, 2), h=st.integers(0, 4), w=st.integers(0, 5), sign=st.sampled_from([-1.0, 1.0]))
def test_one_spike_adds_its_weights_around_it_and_nowhere_else(channel, h, w, sign):
    x = torch.zeros(2, 3, 5, 6)
    x[1, channel, h, w] = sign
    weight = torch.arange(16 * 3 * 9, dtype=torch.float32).reshape(16, 3, 3, 3) + 1
    assert torch.equal(table_cpu.convolution(words(x), weight), F.conv2d(x, weight, padding=1))


def test_silence_gives_zeros_also_in_used_buffers():
    w = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    x = spikes(64, 3, 16, 16)
    assert table_cpu.convolution(words(x), w).any()
    assert not table_cpu.convolution(words(torch.zeros_like(x)), w).any()


@pytest.mark.parametrize("channels", [table_cpu.MOST, table_cpu.MOST + 1])
def test_few_channels_take_the_table_and_more_go_event_by_event(channels, monkeypatch):
    taken = []
    real = table_cpu.convolution
    monkeypatch.setattr(table_cpu, "convolution", lambda *a: taken.append(1) or real(*a))
    x = spikes(4, channels, 8, 8)
    w = torch.randn(32, channels, 3, 3, generator=torch.Generator().manual_seed(1))
    y = events_cpu.convolution(events_cpu.packed(x, 1.0), w)
    assert len(taken) == (channels == table_cpu.MOST)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1), rtol=1e-5, atol=1e-5)
