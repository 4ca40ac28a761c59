"""XNOR-Net's binary weights and their training: golden vectors of the published code, and the formula by itself."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import CardError, ConfigError
from hwsim.device.card import WeightSettings, card_store, load_card
from hwsim.device.quantize import binary, centered, levels, xnor_gradient
from hwsim.device.store import Ideal, Rram, Ternary, draw, place
from hwsim.network.vgg15 import build
from hwsim.recipe.xnor import IMAGENET_SCALE, center_weights, rewrite_gradients

GOLDEN = json.loads((Path(__file__).parent / "golden" / "conversion.json").read_text())
CONV, LINEAR = (
    {k: torch.tensor(v) for k, v in GOLDEN[f"xnor_binarise_{kind}"].items() if k != "what"}
    for kind in ("conv", "linear")
)


@pytest.mark.parametrize("golden", [CONV, LINEAR], ids=["conv", "linear"])
def test_centering_matches_golden_and_is_kept(golden):
    torch.testing.assert_close(centered(golden["W"]), golden["latent"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("golden", [CONV, LINEAR], ids=["conv", "linear"])
def test_binary_weights_match_golden(golden):
    level, scale = binary(golden["latent"])
    torch.testing.assert_close(scale.flatten(), golden["alpha"], rtol=2e-7, atol=0)
    torch.testing.assert_close(level * scale, golden["binary"], rtol=2e-7, atol=0)
    assert torch.equal(level == 0, golden["latent"] == 0)


def test_an_exact_zero_stays_zero_and_counts_in_the_scale():
    assert (CONV["binary"][1, :, 0, 0] == 0).all()
    level, scale = binary(torch.tensor([[0.0, 0.5]]))
    assert level.tolist() == [[0.0, 1.0]] and scale.item() == 0.25


def test_the_rewritten_gradient_matches_golden_in_both_scalings():
    mine = xnor_gradient(CONV["latent"], CONV["grad_in"])
    torch.testing.assert_close(mine, CONV["grad_out"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine * IMAGENET_SCALE, CONV["grad_out_imagenet_util"], rtol=1e-5, atol=1e3)
    linear = xnor_gradient(LINEAR["latent"], LINEAR["grad_in"]) * IMAGENET_SCALE
    torch.testing.assert_close(linear, LINEAR["grad_out"], rtol=1e-5, atol=1e3)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 5), st.sampled_from([(), (3, 3), (1, 2)]))
def test_the_rewritten_gradient_is_that_of_scale_and_sign_times_its_factor(seed, outputs, inputs, kernel):
    # d/dL of sum g alpha(L) sign(L) is g-weighted: alpha by its own derivative, sign by the straight-through estimator.
    g = torch.Generator().manual_seed(seed)
    L = (torch.rand(outputs, inputs, *kernel, generator=g, dtype=torch.float64) * 2 - 1).requires_grad_()
    grad = torch.randn(L.shape, generator=g, dtype=torch.float64)
    n, over = L[0].numel(), tuple(range(1, L.dim()))
    alpha = L.abs().sum(over, keepdim=True) / n
    sign = torch.sign(L).detach()
    (through_alpha,) = torch.autograd.grad((alpha * sign * grad).sum(), L)
    wanted = (through_alpha + alpha.detach() * grad) * (1 - 1 / inputs) * n
    torch.testing.assert_close(xnor_gradient(L.detach(), grad), wanted, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 2**31))
def test_centered_weights_lie_within_one_and_sum_to_zero_where_nothing_was_cut(seed):
    w = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.2
    L = centered(w)
    assert float(L.abs().max()) <= 1
    uncut = (L.abs() < 1).all(1)
    assert float(L.sum(1)[uncut].abs().max()) < 1e-12


def small(**spread) -> torch.nn.Module:
    net = build("vgg6-abr", width=0.125, channels=1, size=(8, 8), classes=4)
    place(net, {"conv1": Ideal(), "conv*": Rram(1, "binary", **spread), "fc1": Rram(1, "binary", **spread)})
    return net


def test_training_centers_and_rewrites_the_layers_on_the_device_alone():
    net = small()
    before = {n: m.weight.detach().clone() for n, m in net.layers.items()}
    center_weights(net)
    changed = [n for n, m in net.layers.items() if not torch.equal(m.weight, before[n])]
    assert changed == ["conv2", "conv3", "conv4", "fc1"]
    (loss,) = net.losses(torch.randn(4, 1, 8, 8), torch.arange(4), torch.Generator().manual_seed(0))
    loss.backward()
    plain = {n: m.weight.grad.clone() for n, m in net.layers.items()}
    with torch.no_grad():
        net.conv3.weight[0, 0, 0, 0] = 0  # the scale counts it, so that what the cells hold would not do
    rewrite_gradients(net, IMAGENET_SCALE)
    for name, layer in net.layers.items():
        wanted = plain[name] if name not in changed else xnor_gradient(layer.weight, plain[name]) * IMAGENET_SCALE
        torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-6, atol=0)


def test_binary_cells_hold_scale_times_sign_and_spread_around_it():
    net = small(sigma=0.1)
    conv = net.conv2
    level, scale = binary(conv.weight.detach())
    assert torch.equal(conv.store.read(conv).detach(), level * scale)
    assert torch.equal(conv.store.full_scale(conv.weight.detach()), scale)
    draw(net, torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv.store.read(conv).detach(), level * torch.exp(0.1 * conv.z) * scale)
    assert net.conv1.z is None and net.fc2.z is None


def test_binary_weights_have_one_bit():
    with pytest.raises(ConfigError, match="binary weights have 1 bit, found 2"):
        Rram(2, "binary")
    with pytest.raises(CardError, match="binary weights have 1 bit, found 4"):
        card_store(load_card("rram_65nm_asu"), WeightSettings(bits=4, quantizer="binary"))
    with pytest.raises(ValueError, match="a sign has 1"):
        binary(torch.ones(1, 1), 2)
    store = card_store(load_card("rram_65nm_asu"), WeightSettings(bits=1, quantizer="binary"))
    assert isinstance(store, Rram) and not isinstance(store, Ternary) and store.sigma == 0.08164
    assert levels("binary", 1) == [-1.0, 1.0]
