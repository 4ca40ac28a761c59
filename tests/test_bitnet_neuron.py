"""The neuron of BITnet: its forward pass, its invariants, and the three gradients that are hwsim's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hwsim.network.bitnet_memory import pack, unpack
from hwsim.network.bitnet_neuron import SURROGATES, Rewound, fire, or_pool, refire

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bitnet.json").read_text(encoding="utf-8"))["neuron"]


def drives(seed: int, steps: int, neurons: int, grid: int = 0) -> torch.Tensor:
    """[T, 1, N] within -0.5..1.5, on a grid of 1/grid where one is given, so that ties and bounds are met."""
    g = torch.Generator().manual_seed(seed)
    f = torch.rand(steps, 1, neurons, generator=g, dtype=torch.float64) * 2 - 0.5
    return (f * grid).round() / grid if grid else f


# --- forward --------------------------------------------------------------------------------------------------------


def test_spikes_and_membranes_are_those_of_the_published_code():
    f, m = torch.tensor(GOLDEN["drive"])[:, None], torch.zeros(1, 8)
    for t, drive in enumerate(f):
        s, m = fire(drive[None], m, 1)
        assert s[0, 0].tolist() == GOLDEN["spike"][t] and m[0].tolist() == GOLDEN["state"][t]
    at_once, last = fire(f, torch.zeros(1, 8), 5)
    assert at_once[:, 0].tolist() == GOLDEN["spike"] and last[0].tolist() == GOLDEN["state"][-1]


@pytest.mark.parametrize(("drive", "spikes"), [(1.0, [1, 1, 1]), (0.5, [0, 1, 0]), (-3.0, [0, 0, 0]), (9.0, [1, 1, 1])])
def test_a_neuron_at_threshold_fires_and_drives_are_clamped(drive, spikes):
    s, _ = fire(torch.full((1, 1, 1), drive), torch.zeros(1, 1), 3)
    assert s.flatten().tolist() == spikes


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0, 2, 3, 16]))
def test_the_sum_of_spikes_is_the_floor_of_the_summed_drive_and_membranes_stay_below_one(seed, steps, grid):
    f = drives(seed, steps, 50, grid)
    codes = (f.clamp(0, 1) * 2**30).round().to(torch.int64)  # whole numbers: exact
    s, m = fire(codes.double() / 2**30, torch.zeros(1, 50, dtype=torch.float64), steps)
    assert torch.equal(s.sum(0).to(torch.int64), codes.sum(0) // 2**30)
    assert bool((m >= 0).all()) and bool((m < 1).all())
    assert set(s.unique().tolist()) <= {0.0, 1.0}


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 11))
def test_two_runs_of_steps_are_one(seed, steps, first):
    f, zero = drives(seed, steps, 20).float(), torch.zeros(1, 20)
    first = min(first, steps - 1)
    s, m = fire(f, zero, steps)
    a, between = fire(f[:first], zero, first)
    b, after = fire(f[first:], between, steps - first)
    assert torch.equal(torch.cat([a, b]), s) and torch.equal(after, m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_membranes_are_float32_whatever_the_drive_is_in(dtype):
    drive = torch.full((1, 1, 1), 0.1, dtype=dtype, requires_grad=True)
    s, m = fire(drive, torch.zeros(1, 1), 200)
    assert s.dtype == m.dtype == torch.float32
    # A membrane of the drive's own precision would miss some of these.
    assert s.sum().item() == np.floor(200 * drive.item())
    s.sum().backward()
    assert drive.grad.dtype == dtype and drive.grad.item() == 200


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_are_the_golden_ones(surrogate):
    f = torch.tensor(GOLDEN["drive"])[:, None].requires_grad_()
    s, _ = fire(f, torch.zeros(1, 8), 5, surrogate)
    upstream = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 9))[:, None]
    s.backward(upstream)
    assert f.grad[:, 0].tolist() == GOLDEN["ours"][surrogate]


def test_without_a_gradient_of_spikes_the_membrane_carries_what_the_published_code_does():
    f = torch.tensor(GOLDEN["drive"])[:, None].requires_grad_()
    _, m = fire(f, torch.zeros(1, 8), 5, "S1")
    m.backward(torch.tensor([GOLDEN["through_state"]["weight"]]))
    assert f.grad[:, 0].tolist() == GOLDEN["through_state"]["ddrive"]


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, triangle):
        ctx.save_for_backward(c)
        ctx.triangle = triangle
        return torch.where(c < 1, 0.0, 1.0).to(c.dtype)

    @staticmethod
    def backward(ctx, g):
        (c,) = ctx.saved_tensors
        return g * torch.clamp(1 - torch.abs(c - 1), 0) if ctx.triangle else g, None


def by_autograd(f: torch.Tensor, m: torch.Tensor, surrogate: str) -> tuple[torch.Tensor, torch.Tensor]:
    spikes = []
    for drive in f:
        c = m + torch.clamp(drive, 0, 1)
        s = Spike.apply(c, surrogate == "S3")
        m = c - s if surrogate == "S2" else c - s.detach()
        spikes.append(s)
    return torch.stack(spikes), m


@pytest.mark.parametrize("surrogate", SURROGATES)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 9), grid=st.sampled_from([0, 2, 8]))
def test_the_backward_pass_is_that_of_plain_autograd(surrogate, seed, steps, grid):
    f, m = drives(seed, steps, 12, grid), drives(seed + 1, 1, 12)[0].clamp(0, 0.99)
    g, g_m = drives(seed + 2, steps, 12), drives(seed + 3, 1, 12)[0]
    found = []
    for way in (fire, by_autograd):
        a, b = f.clone().requires_grad_(), m.clone().requires_grad_()
        s, after = way(a, b, *((steps,) if way is fire else ()), surrogate)
        torch.autograd.backward([s, after], [g, g_m])
        found.append((s.detach(), after.detach(), a.grad, b.grad))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_constant_drive_gets_the_summed_gradient_of_all_steps(surrogate):
    f, g = drives(1, 1, 30), drives(2, 7, 30)
    once, spread = f.clone().requires_grad_(), f.expand(7, 1, 30).clone().requires_grad_()
    for drive in (once, spread):
        s, _ = fire(drive, torch.zeros(1, 30, dtype=torch.float64), 7, surrogate)
        s.backward(g)
    torch.testing.assert_close(once.grad, spread.grad.sum(0, keepdim=True), rtol=1e-13, atol=1e-13)


def test_S1_counts_a_drive_once_for_every_later_step_and_S2_once():
    for surrogate, wanted in (("S1", [5.0, 4.0, 3.0, 2.0, 1.0]), ("S2", [1.0] * 5)):
        f = torch.full((5, 1, 1), 0.3, requires_grad=True)
        fire(f, torch.zeros(1, 1), 5, surrogate)[0].sum().backward()
        assert f.grad.flatten().tolist() == wanted


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_neuron_run_backwards_gives_the_same_gradients_and_membranes(surrogate):
    f, m = drives(3, 8, 40), drives(4, 1, 40)[0].clamp(0, 0.99)
    g, g_m = drives(5, 8, 40), drives(6, 1, 40)[0]
    a, b = f.clone().requires_grad_(), m.clone().requires_grad_()
    s, after = fire(a, b, 8, surrogate)
    torch.autograd.backward([s, after], [g, g_m])
    c, back = f.clone().requires_grad_(), Rewound(after.detach() if surrogate == "S3" else None, g_m)
    given_back = refire(c, s.detach(), back, surrogate)
    given_back.backward(g)
    assert torch.equal(given_back, s)
    torch.testing.assert_close(c.grad, a.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back.carried, b.grad, rtol=1e-12, atol=1e-12)
    if surrogate == "S3":
        torch.testing.assert_close(back.membrane, m, rtol=0, atol=1e-14)


# --- pooling and bits -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 7))
def test_pooling_is_max_pool2d_with_the_gradient_to_the_first_maximum(seed, height, width):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(3, 2, 4, height, width, generator=g) < 0.4).float().requires_grad_()
    y = or_pool(x)
    wanted = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (3, 2))
    assert torch.equal(y, wanted)
    up = torch.randn(y.shape, generator=g)
    assert torch.equal(*(torch.autograd.grad(out, x, up, retain_graph=True)[0] for out in (y, wanted)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9))
def test_bits_give_the_spikes_back(seed, channels, side):
    g = torch.Generator().manual_seed(seed)
    s = (torch.rand(3 * 2, channels, side, side, generator=g) < 0.3).float()
    for form in (torch.contiguous_format, torch.channels_last):
        x = s.contiguous(memory_format=form).unflatten(0, (3, 2))
        bits = pack(x)
        assert bits.dtype == torch.uint8 and len(bits) == -(-x.numel() // 8)
        back = unpack(bits, x.shape, x.stride())
        assert torch.equal(back, x) and back.stride() == x.stride()
