"""The CPU's Winograd convolution against float64, and where it is used."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.network import conv_cpu, lif
from hwsim.network.layer import Conv2d


def case(N, C, K, H, W, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, C, H, W, generator=g), 0.1 * torch.randn(K, C, 3, 3, generator=g)


def relative(got, want):
    return float((got.double() - want).abs().max() / want.pow(2).mean().sqrt())


@pytest.mark.parametrize("shape", [(3, 16, 32, 4, 4), (2, 48, 16, 8, 12), (1, 16, 16, 16, 4), (9, 64, 64, 8, 8)])
def test_winograd_equals_the_convolution_in_float64(shape):
    x, w = case(*shape)
    # Largest error 1e-4 of the output's rms: F(4x4, 3x3) loses about a digit and a half against direct float32.
    assert relative(conv_cpu.convolution(x, w), F.conv2d(x.double(), w.double(), padding=1)) < 1e-4


@pytest.mark.parametrize("shape", [(3, 16, 32, 4, 8), (2, 48, 16, 8, 12)])
def test_the_input_gradient_equals_autograd_in_float64(shape):
    x, w = case(*shape)
    x64 = x.double().requires_grad_()
    y = F.conv2d(x64, w.double(), padding=1)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(grad.double())
    assert relative(conv_cpu.input_gradient(grad, w), x64.grad) < 1e-4


@pytest.mark.parametrize("shape", [(3, 16, 32, 4, 8), (2, 48, 16, 8, 12), (40, 64, 64, 8, 8)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int8])
def test_the_weight_gradient_equals_autograd_in_float64(shape, kind):
    N, C, K, H, W = shape
    x, w = case(*shape)
    x = (4 * x).round().to(kind)
    w64 = w.double().requires_grad_()
    y = F.conv2d(x.double(), w64, padding=1)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(grad.double())
    assert relative(conv_cpu.weight_gradient(x, grad), w64.grad) < 1e-4


def test_channels_that_fill_no_vector_are_refused():
    x, w = case(2, 20, 16, 8, 8)
    with pytest.raises(ValueError, match="20 channels"):
        conv_cpu.convolution(x, w)
    with pytest.raises(ValueError, match="20 channels"):
        conv_cpu.weight_gradient(x, torch.zeros(2, 16, 8, 8))


@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, 63), channel=st.integers(0, 15))
def test_every_place_of_the_image_is_met_once(place, channel):
    x = torch.zeros(1, 16, 8, 8)
    x[0, channel, place // 8, place % 8] = 1.0
    w = torch.arange(16 * 16 * 9, dtype=torch.float32).reshape(16, 16, 3, 3) / 256
    torch.testing.assert_close(conv_cpu.convolution(x, w), F.conv2d(x, w, padding=1), rtol=1e-5, atol=1e-4)


def test_chunks_do_not_change_a_bit(monkeypatch):
    x, w = case(12, 64, 64, 8, 8)
    whole = conv_cpu.convolution(x, w)
    monkeypatch.setattr(conv_cpu, "_CHUNK_BYTES", 2**18)
    one_by_one = conv_cpu.convolution(x, w)
    # The 36 products may be summed in another order for another number of tiles; nothing else may differ.
    np.testing.assert_allclose(one_by_one.numpy(), whole.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "w", "padding"),
    [
        (torch.empty(64, 64, 16, 16, dtype=torch.float64), torch.empty(64, 64, 3, 3), (1, 1)),
        (torch.empty(64, 64, 18, 16), torch.empty(64, 64, 3, 3), (1, 1)),
        (torch.empty(64, 3, 16, 16), torch.empty(64, 3, 3, 3), (1, 1)),
        (torch.empty(64, 64, 16, 16), torch.empty(64, 64, 5, 5), (1, 1)),
        (torch.empty(64, 64, 16, 16), torch.empty(64, 64, 3, 3), (0, 0)),
        (torch.empty(1, 64, 16, 16), torch.empty(64, 64, 3, 3), (1, 1)),
        (torch.empty(64, 64, 16, 16, device="meta"), torch.empty(64, 64, 3, 3), (1, 1)),
    ],
)
def test_other_shapes_types_and_devices_go_to_torch(x, w, padding):
    assert not conv_cpu.fits(x, w, padding)
    assert conv_cpu.fits(torch.empty(64, 64, 16, 16), torch.empty(64, 64, 3, 3), (1, 1))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_layer_that_takes_the_fast_way_has_torchs_gradients(parts, monkeypatch):
    g = torch.Generator().manual_seed(3)
    layer = Conv2d(64, 64)
    x = (torch.randint(0, parts + 1, (2, 64, 64, 8, 8), generator=g) / parts).requires_grad_()
    grad = torch.randn(2, 64, 64, 8, 8, generator=g)

    def gradients():
        layer.zero_grad()
        x.grad = None
        layer(x, parts).backward(grad)
        return x.grad.clone(), layer.weight.grad.clone()

    assert conv_cpu.fits(x.flatten(0, 1), layer.weight, layer.padding)
    fast = gradients()
    monkeypatch.setattr(lif, "forced", "reference")
    plain = gradients()
    assert not torch.equal(fast[0], plain[0])  # it did take the fast way
    assert relative(fast[0], plain[0].double()) < 1e-4
    torch.testing.assert_close(fast[1], plain[1], rtol=1e-4, atol=1e-3)


def test_the_same_call_gives_the_same_bytes():
    x, w = case(32, 64, 64, 16, 16)
    assert torch.equal(conv_cpu.convolution(x, w), conv_cpu.convolution(x, w))
