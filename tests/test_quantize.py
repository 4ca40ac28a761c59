"""Quantizers: levels, ties and gradients."""

import json
from pathlib import Path

import numpy as np
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
    twos_complement,
    xnor,
    xnor_gradient,
)

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "device.json").read_text(encoding="utf-8"))
GRADIENT = json.loads((FOLDER / "hybrid.json").read_text(encoding="utf-8"))["xnor_grad_rewrite"]
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


def rounded(k: int, divisor: int) -> int:
    """k/divisor to the nearest whole number, half to even, in whole numbers alone."""
    whole, rest = divmod(k, divisor)
    return whole + (2 * rest > divisor or (2 * rest == divisor and whole % 2 == 1))


@quick
@given(
    st.lists(st.integers(-(2**14), 2**14), min_size=1, max_size=40), st.sampled_from(range(1, 9)), st.integers(-6, 6)
)
def test_twos_complement_is_that_of_whole_numbers(ks, bits, exponent):
    # w = k/2^10 and F = 2^exponent, so w/F · m = k·m/2^(10 + exponent): nothing is rounded but the level.
    k, m = np.array(ks), 2 ** (bits - 1)
    level = twos_complement(torch.tensor(ks) / 2**10, bits, 2.0**exponent)
    code = (level.double().numpy() * m).astype(np.int64)
    assert (code / m == level.double().numpy()).all()
    wanted = np.array([rounded(int(v) * m, 2 ** (10 + exponent)) for v in k])
    assert (code == np.clip(wanted, -m, m - 1)).all()
    # The word's bits, read back: the sign bit counts -m.
    word = code & (2**bits - 1)
    assert (word - (word & m) * 2 == code).all()


@quick
@given(weights, st.sampled_from(range(1, 9)), st.floats(2**-6, 8, width=32))
def test_twos_complement_holds_the_nearest_level(w, bits, full_scale):
    m = 2 ** (bits - 1)
    level = twos_complement(w, bits, full_scale).double()
    inside = (w.double() / full_scale).clamp(-1, (m - 1) / m)
    assert ((level - inside).abs() <= 0.5 / m * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_twos_complement_has_every_level_once_and_zero_among_them(bits):
    m = 2 ** (bits - 1)
    grid = [k / m for k in range(-m, m)]
    assert twos_complement(torch.tensor(grid), bits, 1.0).tolist() == grid
    assert twos_complement(torch.linspace(-1.2, 1.2, 4801), bits, 1.0).unique().tolist() == grid
    assert 0.0 in grid and len(grid) == 2**bits


@pytest.mark.parametrize("full_scale", [0.0, 1e-3, 1.0, 300.0])
@pytest.mark.parametrize("bits", range(1, 9))
def test_twos_complement_keeps_zero_and_has_no_negative_zero(bits, full_scale):
    level = twos_complement(torch.tensor([0.0, -0.0, -1e-9, 1e-9]), bits, full_scale)
    assert level.tolist() == [0] * 4
    assert not torch.signbit(level).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_twos_complement_saturates_at_minus_one_and_a_step_below_one(bits):
    m = 2 ** (bits - 1)
    level = twos_complement(torch.tensor([-1e30, -1.0, 1.0, 1e30]), bits, 1.0)
    assert level.tolist() == [-1, -1, (m - 1) / m, (m - 1) / m]


def test_twos_complement_rounds_halves_to_even():
    assert (twos_complement(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]) / 4, 3, 1.0) * 4).tolist() == [-2, 0, 0, 2, 2]


@quick
@given(weights, st.sampled_from(range(1, 9)), st.floats(2**-10, 2**10, width=32))
def test_twos_complement_holds_what_it_held(w, bits, full_scale):
    level = twos_complement(w, bits, full_scale)
    assert torch.equal(twos_complement(level * full_scale, bits, full_scale), level)


@quick
@given(weights, st.sampled_from(range(1, 9)), st.floats(2**-6, 8, width=32), st.integers(-20, 20))
def test_twos_complement_is_homogeneous_in_weight_and_full_scale(w, bits, full_scale, exponent):
    w = torch.where(w.abs() > 1e-20, w, 0)  # so that no product is subnormal
    c = 2.0**exponent
    assert torch.equal(twos_complement(w * c, bits, full_scale * c), twos_complement(w, bits, full_scale))


def test_twos_complement_without_full_scale_is_zero():
    for zero in (0.0, torch.tensor(0.0)):
        assert torch.equal(twos_complement(torch.tensor([-3.0, 0.0, 2.0]), 4, zero), torch.zeros(3))


def test_twos_complement_takes_full_scale_as_number_or_tensor_of_any_type():
    w = torch.linspace(-1, 1, 9)
    wanted = twos_complement(w, 3, 0.5)
    for full_scale in (torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)):
        found = twos_complement(w, 3, full_scale)
        assert torch.equal(found, wanted) and found.dtype == torch.float32
    assert twos_complement(w.double(), 3, torch.tensor(0.5)).dtype == torch.float64


@pytest.mark.parametrize(("w", "out"), [("w", "out"), ("also_fp_w", "also_fp_out")])
def test_xnor_gradient_matches_the_reference_on_quantized_and_on_master_weights(w, out):
    found = xnor_gradient(torch.tensor(GRADIENT[w]), torch.tensor(GRADIENT["grad"]))
    torch.testing.assert_close(found, torch.tensor(GRADIENT[out]), atol=1e-5, rtol=1e-5)


def test_xnor_gradient_works_on_linear_layers_and_vanishes_with_one_input():
    w, g = torch.tensor([[0.5, -2.0], [0.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # Output 0: m = 1.25, A = (1 - 2)/2 = -0.5. Output 1: m = 0.5, A = 4/2 = 2, sign(0) = 0. All times (1 - 1/2) · 2.
    assert xnor_gradient(w, g).tolist() == [[1.25 * 1 - 0.5, 0.5], [0.5 * 3, 0.5 * 4 + 2]]
    assert torch.equal(xnor_gradient(w[:, :1], g[:, :1]), torch.zeros(2, 1))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", BITS)
def test_there_is_one_boundary_between_two_levels(quantizer, bits):
    bits = 1 if quantizer == "binary" else bits
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


@pytest.mark.parametrize("full_scale", [1.0, torch.empty((), device="meta")], ids=["number", "tensor"])
def test_neither_words_nor_rewritten_gradients_look_at_a_tensors_values(full_scale):
    w = torch.empty(4, 3, device="meta")
    assert twos_complement(w, 3, full_scale).shape == (4, 3)
    assert xnor_gradient(w, w).shape == (4, 3)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_words_on_cuda_are_those_of_the_cpu_and_nothing_waits():
    w, top = torch.linspace(-1, 1, 20001), torch.tensor(0.7)
    on, top_on = w.cuda(), top.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [twos_complement(on, 4, 0.7), twos_complement(on, 4, top_on), xnor_gradient(on[None], on[None])]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(f.cpu(), twos_complement(w, 4, top)) for f in found[:2])
