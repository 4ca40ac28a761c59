"""Images to spikes: signed Poisson, direct and repeat coding."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.network.encode import ENCODINGS, encode, poisson_spikes

GOLDEN = Path(__file__).parent / "golden"
BNTT = json.loads((GOLDEN / "bntt.json").read_text(encoding="utf-8"))["poisson"]
RRAM = json.loads((GOLDEN / "rram_sram_network.json").read_text(encoding="utf-8"))["poisson"]


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return 1.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_poisson_matches_golden_of_bntt():
    x, r = torch.tensor(BNTT["x"]), torch.tensor(BNTT["r"])
    assert torch.equal(poisson_spikes(x, r), torch.tensor(BNTT["spike"]))


def test_poisson_matches_golden_of_the_hybrid_network():
    found = poisson_spikes(torch.tensor(RRAM["x"]), torch.tensor(RRAM["u"]))
    assert torch.equal(found, torch.tensor(RRAM["out"]))


def test_a_tie_fires_and_a_zero_never_does():
    x, u = torch.tensor([0.5, -0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.25000003, 0.0])
    assert poisson_spikes(x, u).tolist() == [1, -1, 0, 0]


@given(st.floats(-4, 4, width=32), st.floats(0, 1, exclude_max=True, width=32))
def test_a_spike_has_the_sign_of_the_image_and_size_one_or_zero(x, u):
    s = poisson_spikes(torch.tensor(x), torch.tensor(u)).item()
    assert s == (0 if 2 * u > abs(x) or x == 0 else 1 if x > 0 else -1)


def test_the_image_gets_no_gradient():
    x = image(50).requires_grad_()
    poisson_spikes(x, torch.full((50,), 0.2)).sum().backward()
    assert x.grad.count_nonzero() == 0


def test_rate_is_half_the_size_and_saturates_at_two(generator):
    x, n = torch.tensor([-3.0, -2.0, -1.2, -0.1, 0.0, 0.4, 1.0, 1.9, 2.5]), 40_000
    s = encode(x.view(1, 1, 3, 3), n, "poisson", generator).view(n, 9).double()
    rate = x.double().abs().clamp(max=2) / 2
    # Five standard errors of a mean of n draws; no scatter where the rate is 0 or 1.
    bound = 5 * torch.sqrt(rate * (1 - rate) / n)
    assert ((s.abs().mean(0) - rate).abs() <= bound + 1e-12).all()
    assert ((s.mean(0) - x.sign() * rate).abs() <= bound + 1e-12).all()


def test_steps_images_channels_and_pixels_are_drawn_independently(generator):
    # All values are 1, so every spike is a fair coin. Neighbors along every axis agree in half of the cases.
    s = encode(torch.ones(16, 4, 12, 12), 8, "poisson", generator)
    for axis in range(5):
        left, right = s.narrow(axis, 0, s.shape[axis] - 1), s.narrow(axis, 1, s.shape[axis] - 1)
        agree = (left == right).double()
        assert abs(agree.mean().item() - 0.5) < 5 * 0.5 / agree.numel() ** 0.5


def test_same_seed_same_spikes_and_going_on_gives_others():
    x = image(2, 3, 4, 4)
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = encode(x, 3, "poisson", a)
    assert torch.equal(first, encode(x, 3, "poisson", b))
    assert not torch.equal(first, encode(x, 3, "poisson", a))


def test_how_the_image_lies_in_memory_changes_nothing():
    x = image(2, 3, 4, 5)
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert torch.equal(
        encode(x, 2, "poisson", a), encode(x.contiguous(memory_format=torch.channels_last), 2, "poisson", b)
    )


def test_direct_is_the_image_once_and_repeat_is_it_at_every_step():
    x = image(2, 3, 4, 5)
    assert torch.equal(encode(x, 6, "direct"), x[None])
    repeated = encode(x, 6, "repeat")
    assert repeated.shape == (6, 2, 3, 4, 5)
    assert all(torch.equal(step, x) for step in repeated)


@pytest.mark.parametrize("how", ENCODINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_coding_keeps_the_type_and_the_shape_of_an_image(how, dtype, generator):
    out = encode(image(2, 3, 5, 4).to(dtype), 7, how, generator)
    assert out.shape == (1 if how == "direct" else 7, 2, 3, 5, 4)
    assert out.dtype == dtype


def test_an_unknown_coding_is_refused_and_not_taken_for_poisson():
    with pytest.raises(ValueError, match="found 'possion'; it can be poisson, direct, repeat"):
        encode(torch.zeros(1, 1, 2, 2), 2, "possion")
