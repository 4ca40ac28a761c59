"""Laws of spread: golden vectors, clamps and their known faults."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.quantize import levels
from hwsim.device.variation import CLAMPS, lognormal, lognormal_by_level, rows_holding

GOLDEN = json.loads((Path(__file__).parent / "golden" / "device.json").read_text(encoding="utf-8"))
GLOBAL, BY_LEVEL = GOLDEN["device_variation_global"], GOLDEN["device_variation_bbb"]
OUT = {"signed": "out", "magnitude": "out_fixed", "none": "out_unclamped"}
ROWS = [(None, 0.4, 0.276), (0.9, None, 0.1035)]

lists = st.lists(st.integers(-64, 64), min_size=1, max_size=30).map(lambda k: torch.tensor(k) / 32)
quick = settings(max_examples=60, deadline=None)


def normals_for(w: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("case", GLOBAL["cases"], ids=lambda c: f"{c['bits']}bit-x{c['var_scale']}")
def test_lognormal_matches_the_reference(case, clamp):
    held = lognormal(torch.tensor(case["w"]), torch.tensor(GLOBAL["z"]), case["sigma"], clamp, 350.0)
    torch.testing.assert_close(held, torch.tensor(case[OUT[clamp]]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", BY_LEVEL["cases"], ids=lambda c: f"{c['bits']}bit-{c['grid'].split()[0]}")
def test_lognormal_by_level_matches_the_reference(case):
    rows = BY_LEVEL["rows"].get(str(case["bits"]), [])
    held = lognormal_by_level(torch.tensor(case["w"]), torch.tensor(case["z"]), rows)
    torch.testing.assert_close(held, torch.tensor(case["out"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_no_spread_returns_the_weight_untouched_and_unclamped(clamp):
    w = torch.tensor([-1.0, 0.25, 0.75])
    assert lognormal(w, torch.ones(3), 0.0, clamp, 2.0) is w


def test_signed_cuts_negatives_beyond_the_largest_positive():
    held = lognormal(torch.tensor([-1.0, 0.75, 0.25, -0.5]), torch.zeros(4), 1e-12, "signed", 350.0)
    assert held.tolist() == [-0.75, 0.75, 0.25, -0.5]


def test_signed_flips_an_all_negative_tensor():
    held = lognormal(torch.tensor([-1.0, -0.5]), torch.zeros(2), 0.1, "signed", 350.0)
    assert held.tolist() == [0.5, 0.5]


def test_signed_has_a_lower_limit_on_an_all_positive_tensor_only():
    z = torch.tensor([0.0, -40.0])
    assert lognormal(torch.tensor([1.0, 0.5]), z, 0.1, "signed", 350.0)[1] == 0.5
    assert lognormal(torch.tensor([-1.0, 0.5]), z, 0.1, "signed", 350.0)[1] < 0.01


def test_magnitude_holds_every_cell_within_the_on_off_ratio():
    w = torch.tensor([-1.0, -1.0, 0.5, 0.5, 0.0])
    held = lognormal(w, torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0]), 2.0, "magnitude", 10.0)
    assert held.tolist() == pytest.approx([-1.0, -0.1, 1.0, 0.1, 0.0])


@quick
@given(lists, st.sampled_from(["none", "magnitude"]))
def test_sound_clamps_keep_every_sign(w, clamp):
    assert torch.equal(lognormal(w, normals_for(w), 0.3, clamp, 350.0).sign(), w.sign())


@quick
@given(lists)
def test_magnitude_treats_both_signs_alike(w):
    z = normals_for(w)
    assert torch.equal(lognormal(-w, z, 0.3, "magnitude", 350.0), -lognormal(w, z, 0.3, "magnitude", 350.0))


@quick
@given(lists, st.sampled_from(CLAMPS), st.sampled_from([0.125, 4.0]))
def test_lognormal_scales_with_the_weight(w, clamp, factor):
    z = normals_for(w)
    # 256 is a power of two, so the products are exact
    assert torch.equal(lognormal(w * factor, z, 0.3, clamp, 256.0), lognormal(w, z, 0.3, clamp, 256.0) * factor)


def test_one_bit_noise_is_one_sided_with_a_clamp_and_not_without():
    w = torch.ones(20_000) - 2 * (torch.arange(20_000) % 2)
    z = normals_for(w)
    for clamp in ("signed", "magnitude"):
        factor = lognormal(w, z, 0.08164, clamp, 350.0) / w
        assert factor.max() <= 1
        assert (factor == 1).float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert factor.mean().item() == pytest.approx(0.9690, abs=0.002)
    assert (lognormal(w, z, 0.08164, "none", 350.0) / w).mean().item() == pytest.approx(1.0033, abs=0.003)


def test_a_level_in_no_row_is_dropped_and_in_two_rows_doubled():
    held = lognormal_by_level(
        torch.tensor([0.2, 0.5, 0.9]), torch.zeros(3), [(None, 0.3, 0.1), (0.8, None, 0.1), (0.9, None, 0.2)]
    )
    assert held.tolist() == pytest.approx([0.2, 0.0, 1.8])


def test_rows_share_one_draw_or_take_one_each():
    w = torch.tensor([1 / 3, -1.0])
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    each = lognormal_by_level(w, z, ROWS)
    assert each.tolist() == pytest.approx([torch.tensor(0.276).exp().item() / 3, -torch.tensor(0.05175).exp().item()])
    assert torch.equal(lognormal_by_level(w, torch.tensor([1.0, 0.5]), ROWS), each)


def test_rows_holding_includes_the_limits_and_ignores_the_sign():
    assert rows_holding(-0.4, ROWS) == ROWS[:1]
    assert rows_holding(0.9, ROWS) == ROWS[1:]
    assert rows_holding(0.5, ROWS) == []


def test_normals_that_only_broadcast_are_refused():
    with pytest.raises(ValueError, match="z: shape"):
        lognormal(torch.ones(4, 3), torch.zeros(3), 0.1, "none", 350.0)
    with pytest.raises(ValueError, match="z: shape"):
        lognormal_by_level(torch.ones(4, 3), torch.zeros(3, 4, 3), ROWS)


def test_an_unknown_clamp_is_refused():
    with pytest.raises(ValueError, match="'top' is not one of none, magnitude, signed"):
        lognormal(torch.ones(2), torch.zeros(2), 0.1, "top", 350.0)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_no_law_looks_at_a_tensors_values_or_changes_it(clamp):
    w = torch.empty(4, 3, device="meta")
    assert lognormal(w, w, 0.1, clamp, 350.0).shape == (4, 3)
    assert lognormal_by_level(w, w, ROWS).shape == (4, 3)
    w, z = torch.linspace(-1, 1, 6), torch.ones(6)
    before = w.clone(), z.clone()
    lognormal(w, z, 0.1, clamp, 350.0), lognormal_by_level(w, z, ROWS)
    assert torch.equal(w, before[0]) and torch.equal(z, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_laws_keep_the_weights_type(dtype):
    w = torch.tensor(levels("dorefa", 2)).to(dtype)
    assert lognormal(w, torch.ones(4), 0.1, "magnitude", 350.0).dtype == dtype
    assert lognormal_by_level(w, torch.ones(4), ROWS).dtype == dtype


@quick
@given(lists, st.sampled_from(CLAMPS))
def test_laws_can_be_differentiated(w, clamp):
    w = w.clone().requires_grad_()
    lognormal(w, normals_for(w), 0.3, clamp, 350.0).sum().backward()
    assert torch.isfinite(w.grad).all()
