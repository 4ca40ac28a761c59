"""Quantizers: levels, ties and gradients."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.quantize import (
    BOUNDARY_UNITS,
    QUANTIZERS,
    decision_boundaries,
    dorefa,
    levels,
    straight_through,
    ternarize,
    ternary,
    xnor,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "device.json").read_text(encoding="utf-8"))
BITS = [1, 2, 3, 4, 8]

weights = st.lists(st.floats(-4, 4, width=32, allow_subnormal=False), min_size=1, max_size=40).map(torch.tensor)
dyadic_weights = st.lists(st.integers(-256, 256), min_size=1, max_size=40).map(lambda k: torch.tensor(k) / 64)
some_bits = st.sampled_from(BITS)
quick = settings(max_examples=60, deadline=None)


def on_grid(level: torch.Tensor, quantizer: str, bits: int) -> bool:
    return bool(torch.isin(level, torch.tensor(levels(quantizer, bits))).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("which", ["w", "edge"])
def test_xnor_matches_the_reference_exactly(which, bits):
    level, scale = xnor(torch.tensor(GOLDEN["xnor_quant"][which]), bits)
    assert torch.equal(level, torch.tensor(GOLDEN["xnor_quant"][f"out_{which}"][str(bits)]))
    assert scale == 1.0


@pytest.mark.parametrize("bits", BITS)
def test_xnor_levels_are_those_of_the_reference(bits):
    assert levels("xnor", bits) == GOLDEN["xnor_quant"]["levels_inside_pm1"][str(bits)]


def test_xnor_zero_rounds_down_at_one_bit_and_up_above():
    assert [xnor(torch.zeros(1), b)[0].item() for b in BITS] == [-1.0, 0.5, 0.25, 0.125, 1 / 128]


@quick
@given(weights, some_bits)
def test_xnor_quantizes_its_own_levels_to_themselves(w, bits):
    level, _ = xnor(w.clamp(-1, 1), bits)
    assert on_grid(level, "xnor", bits)
    assert torch.equal(xnor(level, bits)[0], level)


def test_xnor_at_two_bits_uses_one_magnitude_on_freshly_initialized_weights():
    w = torch.empty(64, 64, 3, 3).uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    assert sorted(xnor(w, 2)[0].unique().tolist()) == [-0.5, 0.5]
    assert len(dorefa(w, 2)[0].unique()) == 4


@quick
@given(weights, some_bits)
def test_dorefa_levels_lie_on_the_grid_and_within_one(w, bits):
    level, scale = dorefa(w, bits)
    assert on_grid(level, "dorefa", bits)
    assert level.abs().max() <= 1
    assert scale.shape == () and scale >= 0


@quick
@given(weights, st.sampled_from([2, 3, 4, 8]))
def test_dorefa_puts_the_largest_weight_on_full_conductance_and_keeps_its_size(w, bits):
    w[0] = 4.5
    level, scale = dorefa(w, bits)
    assert level[0] == 1
    assert (level * scale)[0] == 4.5


@quick
@given(dyadic_weights, some_bits)
def test_dorefa_is_monotone(w, bits):
    level, _ = dorefa(w.sort().values, bits)
    assert (level.diff() >= 0).all()


@quick
@given(weights, st.sampled_from([1, 2, 3]))
def test_dorefa_quantizes_its_own_levels_to_themselves_up_to_three_bits(w, bits):
    level, _ = dorefa(w, bits)
    assert torch.equal(dorefa(level, bits)[0], level)


def test_dorefa_moves_a_four_bit_level_because_tanh_is_not_the_identity():
    level = torch.tensor([5 / 15, 1.0])
    assert dorefa(level, 4)[0][0] == torch.tensor(7 / 15)


def test_dorefa_rounds_where_its_boundaries_say():
    for bits in (2, 3, 4):
        grid = levels("dorefa", bits)
        for j, edge in enumerate(decision_boundaries("dorefa", bits)):
            around = torch.tensor([edge - 0.01, edge + 0.01], dtype=torch.float64) * torch.tanh(
                torch.tensor(1.0).double()
            )
            level, _ = dorefa(torch.cat([torch.atanh(around), torch.ones(1).double()]), bits)
            assert level[:2].tolist() == pytest.approx(grid[j : j + 2])


def test_dorefa_zero_rounds_up_to_the_smallest_positive_level():
    for bits in BITS:
        assert dorefa(torch.tensor([0.0, -0.0, 1.0]), bits)[0][:2].tolist() == pytest.approx([1 / (2**bits - 1)] * 2)


def test_dorefa_at_one_bit_is_sign_times_mean_magnitude():
    level, scale = dorefa(torch.tensor([-0.5, 0.0, 0.25, 0.25]), 1)
    assert level.tolist() == [-1, 1, 1, 1]
    assert scale == 0.25


@pytest.mark.parametrize("bits", BITS)
def test_all_zero_weights_stay_zero_and_finite(bits):
    for level, scale in (dorefa(torch.zeros(3, 2), bits), ternary(torch.zeros(3, 2))):
        assert torch.isfinite(level).all() and scale == 0
        assert torch.equal(level * scale, torch.zeros(3, 2))
    assert torch.equal(ternary(torch.zeros(3))[0], torch.zeros(3))


def test_ternary_matches_the_reference_forward_and_backward():
    golden = GOLDEN["ternary_layer"]
    x = torch.tensor(golden["x"], requires_grad=True)
    level, scale = ternary(x.detach())
    assert scale.item() == pytest.approx(golden["scale"], rel=1e-5)
    torch.testing.assert_close(level * scale, torch.tensor(golden["out"]), atol=1e-6, rtol=1e-5)
    assert torch.equal(level, torch.tensor(golden["out"]).sign())
    straight_through(x, level * scale, pass_within=1.0).backward(torch.tensor(golden["grad_out"]))
    assert torch.equal(x.grad, torch.tensor(golden["grad_in"]))


def test_ternary_drops_a_weight_exactly_at_the_negative_threshold_but_counts_it():
    level, scale = ternary(torch.tensor([1.25, 0.0625, -0.0625, -0.0]))
    assert level.tolist() == [1, 1, 0, 0]
    assert scale.item() == pytest.approx((1.25 + 0.0625 + 0.0625) / 3)


@quick
@given(dyadic_weights, st.sampled_from([0.25, 2.0, 8.0]))
def test_ternary_follows_the_size_of_the_weights(w, factor):
    level, scale = ternary(w)
    bigger, bigger_scale = ternary(w * factor)
    assert torch.equal(bigger, level) and torch.equal(bigger_scale, scale * factor)
    assert on_grid(level, "ternary", 0)


@pytest.mark.parametrize("case", GOLDEN["ternarize_const_thresholds"]["cases"], ids=lambda c: f"{c['lo']}..{c['hi']}")
def test_ternarize_matches_the_reference(case):
    x = torch.tensor(GOLDEN["ternarize_const_thresholds"]["x"])
    assert torch.equal(ternarize(x, case["lo"], case["hi"]), torch.tensor(case["out"]))


def test_ternarize_takes_the_limits_themselves():
    assert ternarize(torch.tensor([0.25, 0.125, -0.125]), -0.125, 0.25).tolist() == [1, 0, -1]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", BITS)
def test_there_is_one_boundary_between_two_levels(quantizer, bits):
    grid, edges = levels(quantizer, bits), decision_boundaries(quantizer, bits)
    assert len(grid) == len(edges) + 1
    assert grid == sorted(grid) and edges == sorted(edges)
    assert quantizer in BOUNDARY_UNITS
    if quantizer != "dorefa":
        middles = [a + 1e-4 for a in [edges[0] - 2e-4, *edges]]
        args = () if quantizer == "ternary" else (bits,)
        level, _ = QUANTIZERS[quantizer](torch.tensor([*middles, 1.0]), *args)
        assert level[:-1].tolist() == grid


def test_unknown_quantizer_has_no_levels():
    for table in (levels, decision_boundaries):
        with pytest.raises(KeyError):
            table("dorefo", 2)


@quick
@given(weights)
def test_straight_through_returns_the_level_exactly_and_the_gradient_unchanged(w):
    w = w.clone().requires_grad_()
    level, scale = ternary(w.detach())
    held = level * scale
    out = straight_through(w, held)
    assert torch.equal(out, held)
    assert len(out.detach().unique()) <= 3
    grad = torch.arange(1.0, len(w) + 1)
    out.backward(grad)
    assert torch.equal(w.grad, grad)


def test_straight_through_blocks_the_gradient_at_and_beyond_the_limit_only_when_asked():
    w = torch.tensor([-1.5, -1.0, -0.999, 0.5, 1.0, 2.0], requires_grad=True)
    straight_through(w, torch.ones(6), pass_within=1.0).sum().backward()
    assert w.grad.tolist() == [0, 0, 1, 1, 0, 0]


def test_straight_through_gives_the_held_weight_no_gradient():
    w, held = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    (straight_through(w, held) ** 2).sum().backward()
    assert held.grad is None
    assert w.grad.tolist() == [2, 2]


def test_straight_through_refuses_another_shape():
    with pytest.raises(ValueError, match=r"weight has shape \(2,\), held \(2, 2\)"):
        straight_through(torch.zeros(2), torch.zeros(2, 2))


@pytest.mark.parametrize("quantize", [lambda w: xnor(w, 3), lambda w: dorefa(w, 1), lambda w: dorefa(w, 3), ternary])
def test_no_quantizer_looks_at_a_tensors_values(quantize):
    # On a meta tensor every wait for the device (item, bool, index by mask) is an error.
    level, scale = quantize(torch.empty(4, 3, device="meta"))
    assert level.shape == (4, 3) and (level * scale).shape == (4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantizers_keep_the_weights_type_and_leave_it_alone(dtype):
    w = torch.linspace(-1, 1, 9, dtype=dtype)
    before = w.clone()
    for quantize in (lambda w: xnor(w, 3), lambda w: dorefa(w, 1), lambda w: dorefa(w, 3), ternary):
        level, scale = quantize(w)
        assert (level * scale).dtype == dtype
        assert torch.equal(w, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", BITS)
def test_levels_on_cuda_are_the_same_numbers_as_on_the_cpu(bits):
    w = torch.linspace(-1, 1, 20001)
    for quantizer in (xnor, dorefa):
        level = quantizer(w.cuda(), bits)[0].cpu()
        assert on_grid(level, quantizer.__name__, bits)
        assert (level != quantizer(w, bits)[0]).sum() <= 4  # tanh may differ in its last bit at a boundary
