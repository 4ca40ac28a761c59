"""Integer formats: values and codes on golden vectors and against each other."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.device import integer as values
from hwsim.device import integer_codes as codes

GOLDEN = json.loads((Path(__file__).parent / "golden" / "integer.json").read_text())
FRAC = 40
"""Fractional bits at which the golden inputs, float32 numbers above 1e-5, are exact."""


def f32(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float32)


def close(found: torch.Tensor, expected) -> None:
    torch.testing.assert_close(found, f32(expected).reshape(found.shape), rtol=1e-5, atol=1e-9)


def cases(name: str) -> list:
    return [(name, int(bits), value) for bits, value in GOLDEN[name]["expected"].items()]


def exact(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = f32(GOLDEN[name]["x"])
    return x, codes.fixed_point(x, FRAC)


@pytest.mark.parametrize(("name", "bits", "expected"), cases("clip"))
def test_clip_matches_golden(name, bits, expected):
    close(values.clip(f32(GOLDEN[name]["x"]), bits), expected)


@pytest.mark.parametrize(("name", "bits", "expected"), cases("quant"))
def test_quant_matches_golden_in_values_and_codes(name, bits, expected):
    x, n = exact(name)
    close(values.quant(x, bits), expected)
    close(codes.quant_code(n, FRAC, bits) * values.step_of(bits), expected)


@pytest.mark.parametrize(("name", "bits", "expected"), cases("quant01") + cases("quant_sig"))
def test_quant01_matches_golden_in_values_and_codes(name, bits, expected):
    x, n = exact(name)
    close(values.quant01(x, bits), expected)
    close(codes.code01(n, FRAC, bits) * 2.0**-bits, expected)
    assert values.quant_sig is values.quant01


@pytest.mark.parametrize(("name", "bits", "expected"), cases("quant11"))
def test_quant11_matches_golden_in_values_and_codes(name, bits, expected):
    x, n = exact(name)
    close(values.quant11(x, bits), expected)
    close(codes.code11(n, FRAC, bits) / (2 ** (bits - 1) - 1), expected)


@pytest.mark.parametrize(("name", "bits", "expected"), cases("quant_u"))
def test_quant_u_matches_golden_in_values_and_codes(name, bits, expected):
    x, n = exact(name)
    close(values.quant_u(x, bits), expected)
    close(codes.membrane_code(n, FRAC, bits) * 8 / (2 ** (bits - 1) - 1), expected)


@pytest.mark.parametrize("name", GOLDEN["quant_w"]["expected"])
def test_quant_w_matches_golden_in_values_and_codes(name):
    bits, scale = (int(part.strip("wbscale")) for part in name.split("_"))
    x, n = exact("quant_w")
    expected = GOLDEN["quant_w"]["expected"][name]
    close(values.quant_w(x, bits, scale), expected)
    close(codes.weight_code(n, FRAC, bits) * values.step_of(bits) / scale, expected)


@pytest.mark.parametrize("bits", [6, 8])
def test_quant_act_matches_golden_in_values_and_codes_with_its_mask(bits):
    name = f"quant_act_ab{bits}"
    x, n = exact(name)
    y, mask = values.quant_act(x, bits)
    close(y, GOLDEN[name]["expected_y"])
    assert mask.tolist() == GOLDEN[name]["expected_mask"]
    k, inside = codes.act_code(n, FRAC, bits)
    close(k * values.step_of(bits), GOLDEN[name]["expected_y"])
    assert inside.tolist() == GOLDEN[name]["expected_mask"]


def test_quant_generic_rounds_to_the_published_width_or_to_its_own():
    here = GOLDEN["quant_generic_cb10_ab6"]
    x, n = exact("quant_generic_cb10_ab6")
    for round_bits, key in ((6, "expected_y"), (10, "expected_y_if_fixed")):
        y, mask = values.quant_generic(x, 10, round_bits)
        close(y, here[key])
        k, inside = codes.generic_code(n, FRAC, 10, round_bits)
        close(k * values.step_of(round_bits), here[key])
        assert mask.tolist() == inside.tolist() == here["expected_mask"]


def test_shift_matches_golden():
    here = GOLDEN["shift"]
    for dtype in (torch.float32, torch.float64):
        assert values.shift(torch.tensor(here["x"], dtype=dtype)).tolist() == here["expected"]


@pytest.mark.parametrize("case", GOLDEN["quant_err"]["cases"], ids=lambda c: f"eb{c['eb']}")
def test_quant_err_matches_golden_in_values_and_codes(case):
    x = f32(case["x"])
    close(values.quant_err(x, case["eb"]), case["expected"])
    assert values.shift(x.abs().amax()).item() == case["alpha"]
    k = codes.error_code(codes.fixed_point(x, FRAC + 6), case["eb"])
    close(k * values.step_of(case["eb"]), case["expected"])


@pytest.mark.parametrize("name", ["quant_grad_a", "quant_grad_b", "quant_grad_e", "quant_grad_all_zero"])
def test_quant_grad_matches_golden_in_values_and_codes(name):
    here = GOLDEN[name]
    p, x, u = here["params"], f32(here["x"]), f32(here["u"])
    found = values.quant_grad(x, p["gb"], random_bits=p["rb"], rate=p["lr"], weight_mult=p["weight_mult"], uniform=u)
    close(found, here["expected"])
    n = codes.fixed_point(x, 34)
    steps = codes.gradient_steps(n, random_bits=p["rb"], rate=p["lr"], uniform=u)
    assert steps.tolist() == here.get("expected_integer_steps", here["expected"])


def every_uniform(random_bits: int) -> torch.Tensor:
    """Uniforms of twice the resolution of the random number, in the middle of their cells."""
    n = 2**random_bits
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("case", range(4))
def test_stochastic_rounding_goes_up_with_the_published_probability(case):
    k, expected = (GOLDEN["stoch_round_probability"][a][case] for a in ("k", "expected"))
    u = every_uniform(16)
    n = torch.full_like(u, k / 2**15)
    n[n == 0] = 1e-12  # a fraction that rounds to 0, of a number that is not 0
    assert values.stochastic_round(n, 16, uniform=u).mean().item() == expected


@pytest.mark.parametrize("k", [0, 1, 7, 100, 127, 128])
def test_unbiased_stochastic_rounding_goes_up_with_its_fraction(k):
    u = every_uniform(8)
    n = torch.full_like(u, 2 + k / 128)
    assert values.stochastic_round(n, 8, uniform=u, unbiased=True).mean().item() == 2 + k / 128
    whole = torch.cat([torch.full((len(u),), 2 * 128 + k), torch.tensor([256])])
    steps = codes.gradient_steps(whole, random_bits=8, uniform=torch.cat([u, torch.tensor([0.5])]), unbiased=True)
    size = 2 ** round(torch.log2(torch.tensor(256.0 + k)).item())
    assert steps[:-1].double().mean().item() == pytest.approx((256 + k) / size, abs=1 / 128)


def test_without_random_bits_the_uniform_itself_decides():
    n, u = torch.tensor([0.3, 0.3, -1.3]), torch.tensor([0.29, 0.31, 0.29])
    assert values.stochastic_round(n, None, uniform=u).tolist() == [1, 0, -2]


def test_first_scales_match_golden():
    for bits, e in GOLDEN["iscas_init_scale"]["expected"].items():
        assert values.init_scale(int(bits), 784) == (e["scale"], pytest.approx(e["init_range"]))
    for name, e in GOLDEN["decolle_conv_scale"]["expected"].items():
        bits = int(name.split("_")[1])
        expected = (e["scale"], pytest.approx(e["L"]), pytest.approx(max(e["bias_L"], e["L_min"])))
        assert values.conv_init_scale(bits, e["fan_in"]) == expected
    for name, e in GOLDEN["decolle_readout_scale"]["expected"].items():
        features, bits = map(int, name.split("_"))
        assert values.readout_init_scale(bits, features) == e["scale"]


def test_ranges_of_first_convolution_weights_never_fall_below_the_smallest_step():
    assert values.conv_init_scale(2, 10**6) == (1024.0, 0.75, 0.75)


def test_a_rate_enters_as_a_float32_number():
    x, u = torch.tensor([1.0]), torch.tensor([0.1])  # 0.1 in float32 is above 0.1
    assert values.quant_grad(x, 8, random_bits=None, rate=0.1, uniform=u).item() == 2**-7


def test_small_states_never_decay():
    for name, p, k in (("alpha_.75", 3, 2), ("beta_.875", 7, 3)):
        n = torch.arange(200)
        stuck = n[codes.rne_shift(p * n, k) == n]
        assert stuck.tolist() == GOLDEN["iscas_dead_zone"]["expected"][name]


def test_fire_codes_match_golden():
    for bits, expected in GOLDEN["iscas_fire_code"]["expected"].items():
        assert codes.fire_code(0.9, int(bits)) == expected


def test_a_width_of_none_switches_every_quantizer_off():
    x = torch.tensor([-3.3, 0.1234567, 77.7])
    for f in (values.clip, values.quant, values.quant_w, values.quant01, values.quant11, values.quant_u):
        assert torch.equal(f(x, None), x)
    assert torch.equal(values.quant_err(x, None), x)
    assert torch.equal(values.quant_grad(x, None), x)
    assert torch.equal(values.quant_w(x, None, 16.0), x)
    for y, mask in (values.quant_act(x, None), values.quant_generic(x, None, None)):
        assert torch.equal(y, x) and bool(mask.all())


# --- codes against values, and against fractions -------------------------------------------------------------------

whole = st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=40).map(torch.tensor)
widths = st.integers(1, 16)


@given(whole, st.integers(-8, 20))
def test_rne_shift_is_round_half_to_even(n, k):
    expected = [round(Fraction(v) / Fraction(2) ** k) for v in n.tolist()]
    assert codes.rne_shift(n, k).tolist() == expected
    assert codes.rne_shift(n, torch.tensor(k)).tolist() == expected


@given(whole, st.integers(0, 24), widths)
def test_codes_of_signed_numbers_equal_the_values(n, frac, bits):
    x = n.double() * 2.0**-frac
    step = values.step_of(bits)
    assert torch.equal(codes.quant_code(n, frac, bits) * step, values.quant(x, bits))
    assert torch.equal(codes.weight_code(n, frac, bits) * step, values.quant_w(x, bits))
    y, mask = values.quant_act(x, bits)
    k, inside = codes.act_code(n, frac, bits)
    assert torch.equal(k * step, y) and torch.equal(mask, inside)
    assert int(k.abs().max()) <= codes.largest_code(bits)


@given(whole, st.integers(0, 24), widths, widths)
def test_codes_of_the_generic_quantizer_equal_the_values(n, frac, clip_bits, round_bits):
    y, mask = values.quant_generic(n.double() * 2.0**-frac, clip_bits, round_bits)
    k, inside = codes.generic_code(n, frac, clip_bits, round_bits)
    assert torch.equal(k * values.step_of(round_bits), y) and torch.equal(mask, inside)


@given(whole, st.integers(0, 24), st.integers(2, 12))
def test_codes_of_unsigned_numbers_and_membranes_equal_the_values(n, frac, bits):
    x, s = n.double() * 2.0**-frac, 2 ** (bits - 1) - 1
    assert torch.equal(codes.code01(n, frac, bits) * 2.0**-bits, values.quant01(x, bits))
    assert torch.equal(codes.code11(n, frac, bits).double(), (values.quant11(x, bits) * s).round())
    assert torch.equal(codes.membrane_code(n, frac, bits).double(), (values.quant_u(x, bits) * s / 8).round())


@given(whole, widths, st.integers(-30, 30), st.sampled_from([torch.float32, torch.float64]))
def test_codes_of_errors_equal_the_values_in_any_unit(n, bits, unit, dtype):
    x = (n.double() * 2.0**unit).to(dtype)
    expected = values.quant_err(x, bits)
    assert torch.equal((codes.error_code(n, bits) * values.step_of(bits)).to(dtype), expected)
    assert torch.equal(codes.error_code(-n, bits), -codes.error_code(n, bits))


@given(
    whole, st.integers(2, 12), st.integers(2, 24), st.sampled_from([1.0, 0.1, 0.5, 2.0, 0.003]), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_steps_of_gradients_equal_the_values(n, bits, random_bits, rate, unbiased, seed):
    u = torch.rand(n.shape, generator=torch.Generator().manual_seed(seed))
    how = {"random_bits": random_bits, "rate": rate, "uniform": u, "unbiased": unbiased}
    steps = codes.gradient_steps(n, **how)
    assert torch.equal(steps * values.step_of(bits), values.quant_grad(n.double() / 128, bits, **how))
    assert bool((steps[n == 0] == 0).all())
    assert int(steps.abs().max()) <= rate * 2**0.5 + 1


@given(st.integers(1, 2**52))
def test_the_normalizer_is_the_power_of_two_next_in_the_logarithm(m):
    e = int(values.shift_exponent(torch.tensor(m)))
    # 2^(e - 1/2) <= m < 2^(e + 1/2), squared so that it is exact
    assert Fraction(2) ** (2 * e - 1) <= m * m < Fraction(2) ** (2 * e + 1)


@given(st.integers(-126, 127))
def test_powers_of_two_are_exact(e):
    assert values.power_of_two(torch.tensor(e), torch.float32).item() == 2.0**e
    assert values.power_of_two(torch.tensor(e), torch.float64).item() == 2.0**e


@given(st.floats(1e-6, 64))
def test_a_rate_is_the_float32_number_next_to_it(rate):
    number, k = codes.rate_code(rate)
    assert Fraction(number, 2**k) == Fraction(torch.tensor(rate, dtype=torch.float32).item())
    assert k == 0 or number % 2 == 1


def test_a_generator_draws_what_its_uniforms_would_be():
    x = torch.linspace(-1, 1, 101)
    u = torch.rand(101, generator=torch.Generator().manual_seed(5))
    drawn = values.quant_grad(x, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, values.quant_grad(x, 8, uniform=u))
    n = (x * 100).round().long()
    drawn = codes.gradient_steps(n, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, codes.gradient_steps(n, uniform=u))


def test_randomness_must_be_given_once_and_fit():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="either `uniform` or `generator`"):
        values.quant_grad(x, 8)
    with pytest.raises(ValueError, match="either `uniform` or `generator`"):
        values.quant_grad(x, 8, uniform=x, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"shape \(2,\) for a tensor of shape \(3,\)"):
        values.quant_grad(x, 8, uniform=torch.ones(2))


def test_only_multiples_of_the_step_become_fixed_point():
    with pytest.raises(ValueError, match="multiples of 2\\^-3"):
        codes.fixed_point(torch.tensor([0.1]), 3)
    with pytest.raises(ValueError, match="below 2\\^59"):
        codes.fixed_point(torch.tensor([2.0**60]), 3)


def test_empty_tensors_pass():
    none = torch.zeros(0)
    assert values.quant_err(none, 8).shape == values.quant_grad(none, 8, uniform=none).shape == (0,)
    assert codes.error_code(none.long(), 8).shape == codes.gradient_steps(none.long(), uniform=none).shape == (0,)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_codes():
    generator = torch.Generator().manual_seed(0)
    n = torch.randint(-(2**20), 2**20, (4096,), generator=generator)
    u = torch.rand(4096, generator=generator)
    x = n.float() / 2**14
    for bits in (1, 2, 6, 8, 12):
        for f in (values.clip, values.quant, values.quant_err, values.quant01):
            assert torch.equal(f(x.cuda(), bits).cpu(), f(x, bits))
        assert torch.equal(codes.error_code(n.cuda(), bits).cpu(), codes.error_code(n, bits))
        assert torch.equal(codes.act_code(n.cuda(), 14, bits)[0].cpu(), codes.act_code(n, 14, bits)[0])
    for bits in (2, 4, 6, 8):
        assert torch.equal(values.quant11(x.cuda(), bits).cpu(), values.quant11(x, bits))
        assert torch.equal(values.quant_u(x.cuda(), bits).cpu(), values.quant_u(x, bits))
    for rate in (1.0, 0.1):
        on_gpu = values.quant_grad(x.cuda(), 8, rate=rate, uniform=u.cuda())
        assert torch.equal(on_gpu.cpu(), values.quant_grad(x, 8, rate=rate, uniform=u))
        on_gpu = codes.gradient_steps(n.cuda(), rate=rate, uniform=u.cuda())
        assert torch.equal(on_gpu.cpu(), codes.gradient_steps(n, rate=rate, uniform=u))
