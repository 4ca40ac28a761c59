"""Layers of folded networks: convolution and linear over a store, and BNTT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwsim.device.store import Ideal, Rram, Ternary, clear, draw
from hwsim.network.layer import BNTT, Conv2d, Linear

STORES = [
    Ideal(),
    Rram(bits=2, quantizer="xnor", sigma=0.12542, clamp="signed"),
    Rram(bits=4, sigma=0.34597),
    Rram(bits=2, rows=((None, 0.4, 0.276), (0.9, None, 0.1035))),
    Ternary(sigma=0.08),
]
NEURON = {"leak": 0.9, "threshold": 1.0}


def events(parts: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Whole multiples of 1/parts of both signs, or any numbers for parts 0."""
    generator = torch.Generator().manual_seed(seed)
    if parts == 0:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(-parts, parts + 1, shape, generator=generator).double() / parts


def saved(compute) -> list[torch.Tensor]:
    """What autograd keeps for the backward pass of a computation."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compute()
    return kept


SHAPES = {
    "small": (3, 2, 5, 4, 6, 7),  # T, B, input channels, output channels, H, W
    "many images": (9, 8, 2, 3, 4, 5),
    "many channels": (4, 9, 64, 64, 16, 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [1, 4, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_equals_plain_autograd(shape, parts, dtype):
    T, B, inputs, outputs, H, W = SHAPES[shape]
    x = events(parts, T, B, inputs, H, W).to(dtype)
    conv = Conv2d(inputs, outputs).to(dtype)
    upstream = events(0, T, B, outputs, H, W, seed=9).to(dtype)
    given = x.clone().requires_grad_()
    y = conv(given, parts)
    y.backward(upstream)
    exact, weight = x.double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    expected = F.conv2d(exact.flatten(0, 1), weight, padding=1).unflatten(0, (T, B))
    expected.backward(upstream.double())
    for found, right in ((y, expected), (given.grad, exact.grad), (conv.weight.grad, weight.grad)):
        assert found.dtype == dtype
        # One unit of float32 is 1.2e-7; up to 9 * 64 products are added, or all images for a weight.
        bound = 1e-12 if dtype == torch.float64 else 1e-5
        assert (found - right).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize("parts", [1, 4])
def test_only_the_gradient_that_is_asked_for_is_computed(parts):
    conv, x = Conv2d(3, 4), events(parts, 2, 2, 3, 5, 5).float().requires_grad_()
    conv.weight.requires_grad_(False)
    conv(x, parts).sum().backward()
    assert conv.weight.grad is None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 0), (5, 2)])
def test_other_kernels_equal_plain_autograd(kernel, padding):
    conv, x = Conv2d(2, 3, kernel, padding).double(), events(1, 2, 3, 2, 6, 5)
    y = conv(x, 1)
    y.square().sum().backward()
    weight = conv.weight.detach().clone().requires_grad_()
    expected = F.conv2d(x.flatten(0, 1), weight, padding=padding).unflatten(0, (2, 3))
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 4])
def test_events_are_kept_in_one_byte_each(parts):
    x, conv = events(parts, 4, 2, 16, 6, 6).float(), Conv2d(16, 2)
    kept = saved(lambda: conv(x, parts))
    assert sum(t.numel() * t.element_size() for t in kept) == x.numel() + 4 * conv.weight.numel()
    assert sum(t.numel() * t.element_size() for t in saved(lambda: conv(x))) > 4 * x.numel()


@pytest.mark.parametrize("parts", [1, 4, 0])
def test_evaluation_gives_the_numbers_of_training(parts):
    x, conv = events(parts, 2, 2, 3, 5, 5).float(), Conv2d(3, 2)
    trained = conv(x, parts)
    with torch.no_grad():
        assert torch.equal(conv(x, parts), trained)


def test_a_layer_does_to_every_step_what_torch_does():
    x = events(0, 3, 2, 4, 5, 6).float()
    conv, linear = Conv2d(4, 3), Linear(120, 7)
    plain_conv, plain_linear = nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.Linear(120, 7, bias=False)
    plain_conv.load_state_dict(conv.state_dict())
    plain_linear.load_state_dict(linear.state_dict())
    for step in range(3):
        torch.testing.assert_close(conv(x)[step], plain_conv(x[step]))
        torch.testing.assert_close(linear(x.flatten(2))[step], plain_linear(x.flatten(2)[step]))


@pytest.mark.parametrize("store", STORES, ids=repr)
@pytest.mark.parametrize("kind", [Conv2d, Linear])
def test_state_dict_is_that_of_torch_whatever_the_store(kind, store):
    layer = kind(3, 4)
    plain = nn.Conv2d(3, 4, 3, bias=False) if kind is Conv2d else nn.Linear(3, 4, bias=False)
    layer.store = store
    draw(layer, torch.Generator().manual_seed(0))
    found = layer.state_dict()
    assert list(found) == list(plain.state_dict()) == ["weight"]
    assert torch.equal(found["weight"], layer.weight)
    plain.load_state_dict(found)
    layer.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("store", STORES, ids=repr)
@pytest.mark.parametrize("kind, shape", [(Conv2d, (2, 2, 3, 5, 5)), (Linear, (2, 2, 3))])
def test_using_a_layer_changes_neither_weights_nor_chip_and_draws_nothing(kind, shape, store):
    layer, x = kind(3, 4), torch.randn(shape)
    layer.store = store
    draw(layer, torch.Generator().manual_seed(0))
    weight, z, state = layer.weight.detach().clone(), layer.z, torch.get_rng_state()
    first = layer(x)
    first.sum().backward()
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.weight, weight)
    assert layer.z is z
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("store", STORES[1:], ids=repr)
def test_a_layer_computes_with_what_its_cells_hold(store):
    conv, x = Conv2d(3, 4).double(), events(1, 2, 2, 3, 5, 5)
    conv.store = store
    draw(conv, torch.Generator().manual_seed(1))
    held = store.held(conv.weight.detach(), conv.z)
    torch.testing.assert_close(conv(x, 1), F.conv2d(x.flatten(0, 1), held, padding=1).unflatten(0, (2, 2)))
    chip = conv(x, 1)
    draw(conv, torch.Generator().manual_seed(2))
    assert not torch.equal(conv(x, 1), chip)
    clear(conv)
    assert conv.z is None
    programmed = store.held(conv.weight.detach())
    torch.testing.assert_close(conv(x, 1), F.conv2d(x.flatten(0, 1), programmed, padding=1).unflatten(0, (2, 2)))
    draw(conv, torch.Generator().manual_seed(1))
    assert torch.equal(conv(x, 1), chip)


def test_the_gradient_of_what_is_held_reaches_the_master_weight():
    conv, x = Conv2d(3, 4).double(), events(4, 2, 2, 3, 5, 5)
    conv.store = Rram(bits=2, sigma=0.3)
    draw(conv, torch.Generator().manual_seed(1))
    conv(x, 4).square().sum().backward()
    held = conv.store.held(conv.weight.detach(), conv.z).requires_grad_()
    F.conv2d(x.flatten(0, 1), held, padding=1).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, held.grad, rtol=1e-12, atol=1e-12)


def test_bntt_is_one_torch_batch_norm_a_step_without_offset(backend):
    steps, channels = 3, 4
    bntt = BNTT(steps, channels).double()
    norms = [nn.BatchNorm2d(channels, eps=1e-4, momentum=0.1).double() for _ in range(steps)]
    for batch in range(3):
        x = events(0, steps, 5, channels, 3, 2, seed=batch)
        bntt(x, **NEURON)
        for norm, step in zip(norms, x, strict=True):
            norm(step)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        expected = torch.stack([getattr(norm, name) for norm in norms])
        torch.testing.assert_close(getattr(bntt, name), expected, rtol=1e-13, atol=1e-15)

    # Evaluation normalizes with these; with a leak of 0 and no neuron after it, the spikes are those of y > threshold.
    bntt.eval()
    x, kept = events(0, steps, 5, channels, 3, 2, seed=7), copy.deepcopy(bntt.state_dict())
    s, count = bntt(x, leak=0.0, threshold=0.3)
    y = torch.stack([norm.eval()(step) for norm, step in zip(norms, x, strict=True)])
    assert torch.equal(s, (y > 0.3).double())
    assert count.tolist() == s.sum((1, 2, 3, 4)).tolist()
    assert all(torch.equal(v, kept[k]) for k, v in bntt.state_dict().items())


def test_bntt_has_gains_and_statistics_for_every_step_and_no_offset():
    bntt = BNTT(20, 7)
    shapes = {name: tuple(t.shape) for name, t in bntt.state_dict().items()}
    assert shapes == {
        "weight": (20, 7), "running_mean": (20, 7), "running_var": (20, 7), "num_batches_tracked": (20,),
    }  # fmt: skip
    assert [name for name, _ in bntt.named_parameters()] == ["weight"]
    assert (bntt.eps, bntt.momentum) == (1e-4, 0.1)
    assert torch.equal(bntt.weight, torch.ones(20, 7))


def test_one_value_a_channel_leaves_finite_statistics(backend):
    bntt = BNTT(2, 3)
    bntt(torch.randn(2, 1, 3, 1, 1), **NEURON)
    assert all(t.isfinite().all() for t in bntt.state_dict().values())


def test_bntt_of_other_steps_is_refused(backend):
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"gains of shape \(3, 4\), expected \(5, 4\)"):
            BNTT(3, 4).train(mode)(torch.randn(5, 2, 4, 3, 3), **NEURON)


@pytest.mark.parametrize("parts", [0, 1, 4])
def test_bf16_rounds_what_is_multiplied_and_nothing_else(parts, monkeypatch):
    """Outputs and both gradients are those of rounded factors, with float32 sums, to half a unit of bf16 (2^-9)."""
    monkeypatch.setattr("hwsim.network.lif.forced", "reference")
    g = torch.Generator().manual_seed(parts)
    conv = Conv2d(5, 7, precision="bf16")
    x = torch.randint(0, 5, (2, 3, 5, 6, 6), generator=g) / 4 if parts else torch.randn(2, 3, 5, 6, 6, generator=g)
    x = (x > 0.5).float() if parts == 1 else x
    x.requires_grad_()
    grad = torch.randn(2, 3, 7, 6, 6, generator=g)
    y = conv(x, parts)
    y.backward(grad)

    def rounded(a):
        return a.detach().bfloat16().double()

    exact_x, exact_w = (rounded(a).requires_grad_() for a in (x, conv.weight))
    exact_y = torch.nn.functional.conv2d(exact_x.flatten(0, 1), exact_w, padding=1).unflatten(0, (2, 3))
    exact_y.backward(rounded(grad))
    assert y.dtype == x.grad.dtype == conv.weight.grad.dtype == torch.float32
    for found, exact in ((y, exact_y), (x.grad, exact_x.grad), (conv.weight.grad, exact_w.grad)):
        assert (found.double() - exact).abs().max() <= 2**-8 * exact.abs().max()
    assert not torch.equal(y, Conv2d.forward(_with_weight(Conv2d(5, 7), conv.weight), x, parts))


def _with_weight(conv, weight):
    conv.weight = torch.nn.Parameter(weight.detach().clone())
    return conv


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision: found 'fp8'; it can be float32, tf32, bf16"):
        Conv2d(1, 1, precision="fp8")
