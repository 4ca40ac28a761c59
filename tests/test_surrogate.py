"""The step of a neuron and the derivative that stands in for it."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.network.surrogate import TRIANGLE_SLOPE, triangle_step

GOLDEN = Path(__file__).parent / "golden"
BNTT = json.loads((GOLDEN / "bntt.json").read_text(encoding="utf-8"))["surrogate"]
RRAM = json.loads((GOLDEN / "rram_sram_network.json").read_text(encoding="utf-8"))["surrogate"]


def step_and_gradient(v: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    v = v.requires_grad_()
    s = triangle_step(v)
    s.backward(upstream)
    return s.detach(), v.grad


def test_step_and_gradient_match_golden_of_bntt():
    s, grad = step_and_gradient(torch.tensor(BNTT["u"]), torch.tensor(BNTT["g"]))
    assert s.tolist() == BNTT["spike"]
    torch.testing.assert_close(grad, torch.tensor(BNTT["du"]), rtol=3e-7, atol=0)


def test_step_and_gradient_match_golden_of_the_hybrid_network():
    v = torch.tensor(RRAM["v"])
    s, grad = step_and_gradient(v, torch.ones_like(v))
    assert s.tolist() == RRAM["spike"]
    torch.testing.assert_close(grad, torch.tensor(RRAM["grad"]), rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_is_strict(dtype):
    zero = torch.zeros((), dtype=dtype)
    above = zero.nextafter(torch.ones((), dtype=dtype))
    assert triangle_step(torch.stack([-above, zero, above])).tolist() == [0, 0, 1]


@given(st.floats(-3, 3), st.floats(-10, 10))
def test_the_derivative_is_a_triangle_of_height_three_tenths(v, upstream):
    s, grad = step_and_gradient(torch.tensor(v, dtype=torch.float64), torch.tensor(upstream, dtype=torch.float64))
    assert s.item() == (v > 0)
    assert grad.item() == pytest.approx(upstream * 0.3 * max(0.0, 1 - abs(v)), rel=1e-14, abs=1e-300)


def test_the_height_is_the_one_of_the_published_codes():
    assert TRIANGLE_SLOPE == 0.3
