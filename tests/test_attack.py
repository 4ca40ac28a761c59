"""Attacks: the hidden gradient of Poisson spikes, what a pixel may change, FGSM and PGD on networks that are known."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hwsim.network.attack import Ball, fgsm, gradient_of, pgd
from hwsim.network.encode import encode, poisson_spikes, poisson_spikes_expected
from hwsim.network.vgg_bntt import VggBntt, build

MEAN, STD = (0.4, 0.5), (0.2, 0.25)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(coding: str, norm: str = "none") -> VggBntt:
    return build(
        "vgg5", width=1 / 16, channels=2, size=(8, 8), classes=3, steps=4, coding=coding, norm=norm, leak=0.5,
        leak_rule="complement", gain=6.0, generator=seeded(1),
    ).double()  # fmt: skip


def valid_images(n: int = 4) -> torch.Tensor:
    pixels = torch.rand(n, 2, 8, 8, generator=seeded(2), dtype=torch.float64)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


LABELS = torch.tensor([0, 1, 2, 1])


# ----------------------------------------------------------------------------------------- the expectation's gradient


def test_expected_spikes_are_the_spikes():
    x, u = torch.randn(3, 4, generator=seeded(0)), torch.rand(5, 3, 4, generator=seeded(1))
    assert torch.equal(poisson_spikes_expected(x, u), poisson_spikes(x, u))
    one, other = (encode(x[:, None, None], 5, "poisson", seeded(2), expected=e) for e in (True, False))
    assert torch.equal(one, other)


@given(st.floats(-4, 4), st.integers(1, 5))
def test_the_expectations_gradient_is_half_within_two_and_sums_over_steps(value, steps):
    x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    u = torch.rand(steps, 1, generator=seeded(steps), dtype=torch.float64)
    weights = torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    (weights * poisson_spikes_expected(x, u)).sum().backward()
    assert x.grad.item() == (0.5 * weights.sum().item() if abs(value) < 2 else 0.0)


def test_the_expectations_gradient_is_the_slope_of_the_mean_of_many_draws():
    # Monte Carlo with common random numbers: (mean spike at x + h - mean spike at x - h) / 2 h.
    u = torch.rand(200_000, 1, generator=seeded(5), dtype=torch.float64)
    x = torch.tensor([-2.6, -1.7, -0.9, -0.3, 0.2, 0.8, 1.5, 2.4], dtype=torch.float64)
    h = 0.05
    slope = (poisson_spikes(x + h, u).mean(0) - poisson_spikes(x - h, u).mean(0)) / (2 * h)
    free = x.clone().requires_grad_()
    poisson_spikes_expected(free, u[:1]).sum().backward()
    # A slope's standard error is at most sqrt(0.05 / 200,000) / 0.1 = 0.005.
    torch.testing.assert_close(slope, free.grad, rtol=0, atol=0.02)


def test_the_gradient_through_a_linear_readout_is_that_of_the_expected_logits():
    # A linear map of the spikes: its mean gradient over draws is known exactly.
    x = torch.tensor([[0.5, -1.0, 3.0]], dtype=torch.float64)[:, :, None, None]
    w = torch.tensor([2.0, -1.0, 4.0], dtype=torch.float64)
    free = x.clone().requires_grad_()
    (encode(free, 3, "poisson", seeded(0), expected=True).flatten(2) @ w).mean(0).sum().backward()
    assert free.grad.flatten().tolist() == [1.0, -0.5, 0.0]


def test_the_naive_gradient_of_poisson_spikes_is_zero_and_an_image_stays():
    net, x = network("poisson"), valid_images()
    naive = gradient_of(net, draws=2, coding=seeded(0), expected=False)
    assert torch.equal(naive(x, LABELS), torch.zeros_like(x))
    assert torch.equal(fgsm(x, LABELS, naive, Ball(0.1, MEAN, STD)), x)
    assert gradient_of(net, draws=2, coding=seeded(0))(x, LABELS).abs().max() > 0


def test_the_gradient_is_averaged_over_the_draws():
    net, x = network("poisson"), valid_images()
    one = gradient_of(net, draws=1, coding=(coding := seeded(3)))
    separate = [one(x, LABELS) for _ in range(3)]
    assert coding.initial_seed() == 3 and not torch.equal(separate[0], separate[1])
    together = gradient_of(net, draws=3, coding=seeded(3))(x, LABELS)
    torch.testing.assert_close(together, sum(separate) / 3)


@pytest.mark.parametrize("norm", ["none", "bntt"])
def test_the_direct_gradient_is_autograds_in_evaluation_mode(norm):
    net = network("direct", norm)
    if norm == "bntt":
        for _ in range(3):
            net(valid_images())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    found = gradient_of(net, draws=5, coding=None)(valid_images(), LABELS)
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    x = valid_images().requires_grad_()
    F.cross_entropy(net.eval()(x)[0], LABELS).backward()
    torch.testing.assert_close(found, x.grad)
    assert found.abs().max() > 0


# --------------------------------------------------------------------------------------------------- what is allowed


def pixels(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@given(st.floats(0.001, 0.5), st.integers(0, 1000), st.integers(1, 4), st.floats(0.05, 1.0), st.booleans())
def test_an_attacked_image_stays_within_eps_and_valid(eps, seed, iterations, alpha, random):
    ball, x = Ball(eps, MEAN, STD), valid_images()

    def gradient(x, y):
        return torch.randn(x.shape, generator=seeded(seed), dtype=x.dtype)

    start = seeded(seed) if random else None
    for moved in (
        fgsm(x, LABELS, gradient, ball),
        pgd(x, LABELS, gradient, ball, iterations=iterations, alpha_share=alpha, start=start),
    ):
        assert pixels(moved).min() >= -1e-7 and pixels(moved).max() <= 1 + 1e-7
        assert (pixels(moved) - pixels(x)).abs().max() <= eps + 1e-7


def test_fgsm_moves_every_pixel_by_eps_of_its_channel_against_its_sign():
    x = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    moved = fgsm(x, LABELS[:1], lambda x, y: torch.tensor([[[[3.0, -0.1]], [[0.0, 2.0]]]]), Ball(0.1, MEAN, STD))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.5, -0.5, 0.0, 0.4], dtype=torch.float64))


def test_fgsm_stops_at_black_and_white():
    x = torch.full((1, 2, 1, 1), 0.0, dtype=torch.float64)
    up = fgsm(x, LABELS[:1], lambda x, y: torch.ones_like(x), Ball(0.9, MEAN, STD))
    down = fgsm(x, LABELS[:1], lambda x, y: -torch.ones_like(x), Ball(0.9, MEAN, STD))
    torch.testing.assert_close(pixels(up).flatten(), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(pixels(down).flatten(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-7)


def test_pgd_takes_its_steps_and_turns_back_where_the_gradient_turns():
    x, ball = torch.zeros(1, 2, 1, 1, dtype=torch.float64), Ball(0.08, MEAN, STD)

    def towards(goal):  # the loss grows towards a point within the ball
        return lambda x, y: goal - x

    steps = [pgd(x, LABELS[:1], towards(10.0), ball, iterations=n, alpha_share=0.25) for n in (1, 2, 4, 7)]
    share = [round((s / ball.radius(x)).mean().item(), 6) for s in steps]
    assert share == [0.25, 0.5, 1.0, 1.0]
    near = pgd(x, LABELS[:1], towards(0.1 * ball.radius(x)), ball, iterations=2, alpha_share=0.25)
    torch.testing.assert_close(near, torch.zeros_like(near))


def test_the_random_start_lies_anywhere_within_eps():
    x, ball = torch.zeros(50, 2, 8, 8, dtype=torch.float64), Ball(0.1, MEAN, STD)
    started = pgd(x, LABELS, lambda x, y: torch.zeros_like(x), ball, iterations=1, alpha_share=0.25, start=seeded(0))
    share = started / ball.radius(x)
    assert share.min() < -0.99 and share.max() > 0.99 and abs(share.mean()) < 0.02


@pytest.mark.parametrize("attack", [fgsm, lambda *a: pgd(*a, iterations=3, alpha_share=0.3, start=seeded(0))])
def test_eps_zero_leaves_the_images(attack):
    x = valid_images()
    assert attack(x, LABELS, lambda x, y: torch.ones_like(x), Ball(0.0, MEAN, STD)) is x


def test_attacks_raise_the_loss_and_pgd_no_less_than_a_random_change():
    net, x = network("direct"), valid_images()
    gradient, ball = gradient_of(net, draws=1, coding=None), Ball(16 / 255, MEAN, STD)

    def loss(x):
        with torch.no_grad():
            return F.cross_entropy(net.eval()(x)[0], LABELS).item()

    random = pgd(x, LABELS, lambda x, y: torch.zeros_like(x), ball, iterations=1, alpha_share=1, start=seeded(1))
    strong = pgd(x, LABELS, gradient, ball, iterations=10, alpha_share=0.25)
    assert loss(fgsm(x, LABELS, gradient, ball)) > loss(x)
    assert loss(strong) > max(loss(x), loss(random))
