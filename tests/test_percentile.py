"""Percentiles of streams: exactly numpy's, in memory that does not grow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.network.percentile import Percentile

NUMBERS = st.one_of(
    st.floats(0, 2**100, width=32), st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0**-149, 2.0**-126, 3.4e38])
)


def streamed(x: torch.Tensor, q: float, first: int = 7, second: int = 3) -> float:
    p = Percentile(q)
    for part in x.split(first):
        p.count(part)
    for part in x.flip(0).split(second):  # the second pass may come in another order and other batches
        p.refine(part)
    return p.value


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.floats(0.001, 100))
def test_it_is_numpys_percentile(values, q):
    x = torch.tensor(values, dtype=torch.float32)
    wanted = float(np.percentile(x.double().numpy(), q))
    assert streamed(x, q) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("q", [50.0, 95.0, 99.7, 99.9, 100.0])
def test_it_is_numpys_percentile_of_many_activations(q):
    x = torch.relu(torch.randn(50_001, generator=torch.Generator().manual_seed(1)))
    assert streamed(x, q, 6_000, 4_444) == pytest.approx(float(np.percentile(x.double().numpy(), q)), rel=1e-12)


def test_ranks_in_two_bins_are_both_found():
    x = torch.tensor([1.0, 1000.0])
    assert streamed(x, 25.0) == 1 + 0.25 * 999


def test_memory_does_not_grow_with_the_numbers():
    p = Percentile(99.0)
    sizes = []
    for n in (1_000, 100_000):
        x = torch.rand(n, generator=torch.Generator().manual_seed(n))
        p.count(x)
        sizes.append(p._upper.numel())
    assert sizes == [2**15, 2**15] and p.n == 101_000
    for n in (1_000, 100_000):
        p.refine(torch.rand(n, generator=torch.Generator().manual_seed(n)))
    assert sum(c.numel() for c in p._lower.values()) <= 2 * 2**16


@pytest.mark.parametrize("q", [0.0, -1.0, 100.1, float("nan")])
def test_a_percentile_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        Percentile(q)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_numbers_without_a_place_are_refused(bad):
    with pytest.raises(ValueError, match="negative or not finite"):
        Percentile(50.0).count(torch.tensor([1.0, bad]))


def test_no_numbers_have_no_percentile():
    with pytest.raises(ValueError, match="of no numbers"):
        _ = Percentile(50.0).value


@pytest.mark.parametrize("second", [[1.0, 2.0], [1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 3.0]])
def test_a_second_pass_that_shows_other_numbers_is_noticed(second):
    p = Percentile(90.0)
    p.count(torch.tensor([1.0, 2.0, 3.0]))
    p.refine(torch.tensor(second))
    with pytest.raises(ValueError, match="other numbers than the first"):
        _ = p.value
