"""bf16 on the CPU: which factors it rounds, how much that costs, and where it is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.config import ConfigError
from hwsim.network import conv_cpu, events_cpu, matrix_ir, products_cpu
from hwsim.network.layer import Conv2d
from hwsim.network.vector_ir import LANES
from hwsim.recipe.compute import compute_device

multiplies = pytest.mark.skipif(not matrix_ir.PAIRS, reason="this processor does not multiply bf16")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(x):
    """The bits of numbers rounded to bf16."""
    return x.bfloat16().view(torch.int16).numpy()


@multiplies
@settings(max_examples=25, deadline=None)
@given(M=st.integers(1, 9), half=st.integers(1, 40), vectors=st.sampled_from([1, 2, 3, 4, 8]), seed=st.integers(0, 99))
def test_products_of_pairs_are_those_of_rounded_factors(M, half, vectors, seed):
    D, K = 2 * half, vectors * LANES
    a, b = random(3, M, D, seed=seed), random(3, D, K, seed=seed + 1)
    out = torch.empty(3, M, K)
    words = torch.from_numpy(halves(a)).view(torch.int32)
    products_cpu.PRODUCTS[products_cpu.widest(K)](words.numpy(), conv_cpu._paired(b).contiguous().numpy(), out.numpy())
    want = a.bfloat16().double() @ b.bfloat16().double()
    assert (out.double() - want).abs().max() <= 1e-6 * D * 16


@multiplies
@settings(max_examples=25, deadline=None)
@given(quarter=st.integers(1, 6), D=st.integers(1, 230), vectors=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_sums_of_pairs_add_to_what_is_there_whatever_their_depth(quarter, D, vectors, seed):
    M, K = quarter * max(4, LANES), vectors * LANES
    a, b, before = random(2, D, M, seed=seed), random(2, D, K, seed=seed + 1), random(2, M, K, seed=seed + 2)
    out = before.clone()
    products_cpu.PAIR_SUMS[products_cpu.widest(K)](halves(a), halves(b), out.numpy())
    want = before.double() + a.bfloat16().double().transpose(1, 2) @ b.bfloat16().double()
    assert (out.double() - want).abs().max() <= 1e-6 * (D + 1) * 16


@pytest.mark.parametrize("D", [1, 95, 96, 97, 300])
def test_sums_of_float32_add_to_what_is_there(D):
    a, b, before = random(2, D, 64), random(2, D, 32, seed=1), random(2, 64, 32, seed=2)
    out = before.clone()
    products_cpu.SUMS[products_cpu.widest(32)](a.numpy(), b.numpy(), out.numpy())
    assert (out.double() - before.double() - a.double().transpose(1, 2) @ b.double()).abs().max() < 1e-6 * (D + 1)


def errors(got, want):
    """(rms of the error, its mean, how it goes with the value) in units of the value's rms."""
    error, unit = (got.double() - want).flatten(), want.pow(2).mean().sqrt()
    along = (error * want.flatten()).mean() / unit**2
    return float(error.pow(2).mean().sqrt() / unit), float(error.mean() / unit), float(along)


@multiplies
def test_gradients_lose_three_percent_without_bias():
    x = (torch.rand(64, 64, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.25).float()
    w, g = 0.1 * random(64, 64, 3, 3, seed=1), random(64, 64, 8, 8, seed=2)
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    F.conv2d(x64, w64, padding=1).backward(g.double())
    for got, want, most in (
        (conv_cpu.input_gradient(g, w, True), x64.grad, 0.035),
        (conv_cpu.weight_gradient(x, g, True), w64.grad, 0.02),
    ):
        rms, mean, along = errors(got, want)
        n = want.numel()
        assert most / 8 < rms < most
        assert abs(mean) < 5 * rms / n**0.5
        assert abs(along) < 5 * rms / n**0.5 + 1e-3


@multiplies
def test_packed_spikes_and_the_spikes_themselves_have_one_weight_gradient():
    x = (torch.rand(33, 40, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.25).float()
    x = F.pad(x, (0, 0, 0, 0, 0, -40 % LANES))
    C, g = x.shape[1], random(33, 64, 8, 8)
    bits = events_cpu.packed(x, 1.0)
    assert torch.equal(events_cpu.unpacked(bits, C), x)
    for pairs in (False, True):
        assert torch.equal(conv_cpu.weight_gradient(bits, g, pairs, C), conv_cpu.weight_gradient(x, g, pairs))


@multiplies
@pytest.mark.parametrize("parts", [1, 4])
def test_a_bf16_layer_rounds_its_gradients_and_not_its_currents(parts):
    x = torch.randint(0, parts + 1, (2, 32, 64, 8, 8), generator=torch.Generator().manual_seed(3)) / parts
    x = (x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.3)).requires_grad_()
    plain, short = Conv2d(64, 64), Conv2d(64, 64, precision="bf16")
    short.load_state_dict(plain.state_dict())
    grad, found = random(2, 32, 64, 8, 8), []
    for layer in (plain, short):
        x.grad = None
        y = layer(x, parts)
        y.backward(grad)
        found.append((y.detach(), x.grad, layer.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    for exact, rounded in zip(found[0][1:], found[1][1:], strict=True):
        assert 0.002 < errors(rounded, exact.double())[0] < 0.04


@multiplies
def test_the_same_call_gives_the_same_bytes():
    g, w = random(32, 64, 16, 16), random(64, 64, 3, 3)
    assert torch.equal(conv_cpu.input_gradient(g, w, True), conv_cpu.input_gradient(g, w, True))
    assert torch.equal(conv_cpu.weight_gradient(g, g, True), conv_cpu.weight_gradient(g, g, True))


def test_a_processor_without_bf16_is_told_so(monkeypatch):
    monkeypatch.setattr(matrix_ir, "PAIRS", False)
    with pytest.raises(ConfigError, match="precision: this processor does not multiply bf16.*use float32"):
        compute_device("cpu", "bf16")
    assert compute_device("cpu", "float32").type == "cpu"


def test_tf32_is_of_cuda():
    with pytest.raises(ConfigError, match="precision: tf32 is a number format of CUDA devices"):
        compute_device("cpu", "tf32")
