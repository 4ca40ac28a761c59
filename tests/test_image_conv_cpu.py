"""Convolutions of few channels on the CPU: against float64, at every border, and where they are used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.network import image_conv_cpu
from hwsim.network.layer import Conv2d, _fast

SHAPES = [(4, 1, 32, 16, 16), (9, 3, 64, 11, 13), (40, 7, 24, 5, 6), (1100, 2, 8, 1, 1), (3, 1, 16, 1, 400)]


def case(N, C, K, H, W, kind="spikes", seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (N, C, H, W), generator=g).float()
    x = torch.randn(N, C, H, W, generator=g) if kind == "analog" else x
    return x, 0.1 * torch.randn(K, C, 3, 3, generator=g), torch.randn(N, K, H, W, generator=g)


def relative(got, want):
    return float((got.detach().double() - want).abs().max() / want.pow(2).mean().sqrt())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["spikes", "analog"])
def test_forward_and_weight_gradient_equal_float64(shape, kind):
    x, w, g = case(*shape, kind=kind)
    w64 = w.double().requires_grad_()
    y = F.conv2d(x.double(), w64, padding=1)
    y.backward(g.double())
    assert image_conv_cpu.fits(x, w, (1, 1))
    out = image_conv_cpu.convolution(x, w)
    assert out.permute(0, 2, 3, 1).is_contiguous()
    assert relative(out, y.detach()) < 1e-5
    assert relative(image_conv_cpu.weight_gradient(x, g), w64.grad) < 1e-4
    if kind == "spikes":
        assert torch.equal(image_conv_cpu.weight_gradient(x, g), image_conv_cpu.weight_gradient(x.to(torch.int8), g))


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 63), channel=st.integers(0, 2))
def test_one_number_meets_its_nine_neighbours_and_no_other(place, channel):
    x = torch.zeros(16, 3, 8, 8)
    x[5, channel, place // 8, place % 8] = -2.0
    w = torch.arange(16 * 3 * 9, dtype=torch.float32).reshape(16, 3, 3, 3) / 64
    assert torch.equal(image_conv_cpu.convolution(x, w), F.conv2d(x, w, padding=1))
    g = torch.arange(16 * 16 * 64, dtype=torch.float32).reshape(16, 16, 8, 8) / 64
    want = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), padding=1)
    assert torch.equal(image_conv_cpu.weight_gradient(x, g).double(), want)


def test_the_input_gradient_of_few_outputs_equals_float64():
    x, w, g = case(9, 16, 3, 12, 12)
    x64 = x.double().requires_grad_()
    F.conv2d(x64, w.double(), padding=1).backward(g.double())
    assert relative(image_conv_cpu.input_gradient(g, w), x64.grad) < 1e-5


def test_the_result_does_not_depend_on_the_number_of_threads():
    x, w, g = case(40, 3, 64, 12, 12, kind="analog")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((image_conv_cpu.convolution(x, w), image_conv_cpu.weight_gradient(x, g)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("inputs, outputs", [(1, 32), (3, 16), (16, 3)])
def test_a_layer_takes_this_way_and_gives_autograds_gradients(inputs, outputs):
    conv = Conv2d(inputs, outputs)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (4, 5, inputs, 12, 12), generator=g).float().requires_grad_()
    y = conv(x, 1)
    grad = torch.randn(y.shape, generator=g)
    y.backward(grad)
    x64, w64 = x.detach().double().flatten(0, 1).requires_grad_(), conv.weight.detach().double().requires_grad_()
    want = F.conv2d(x64, w64, padding=1)
    want.backward(grad.double().flatten(0, 1))
    assert relative(y.flatten(0, 1), want.detach()) < 1e-5
    assert relative(x.grad.flatten(0, 1), x64.grad) < 1e-5
    assert relative(conv.weight.grad, w64.grad) < 1e-4
    few = inputs < 8
    assert (_fast(x.flatten(0, 1), conv.weight, (1, 1)) is image_conv_cpu) == few
