"""Convolutions of spikes, event by event: against float64, in every shape, and where they are used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.network import conv_cpu, convolution, events_cpu, lif
from hwsim.network.layer import Conv2d
from hwsim.network.vector_ir import LANES

SHAPES = [
    (4, 32, 64, 16, 16), (3, 64, 32, 20, 18), (20, 40, 96, 7, 9), (2, 8, 16 * LANES, 24, 23), (30, 100, 64, 6, 6),
    (600, 33, 32, 1, 2), (2, 64, 192, 3, 200),
]  # fmt: skip


def case(N, C, K, H, W, density=0.25, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(N, C, H, W, generator=g) < density).float()
    return x, 0.1 * torch.randn(K, C, 3, 3, generator=g), torch.randn(N, K, H, W, generator=g)


def relative(got, want):
    return float((got.detach().double() - want).abs().max() / want.pow(2).mean().sqrt())


def gradients(x, w, g):
    x64, w64 = x.double(), w.double().requires_grad_()
    y = F.conv2d(x64, w64, padding=1)
    y.backward(g.double())
    return y.detach(), w64.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_forward_and_weight_gradient_equal_float64(shape, density):
    x, w, g = case(*shape, density=density)
    y, grad = gradients(x, w, g)
    bits = events_cpu.packed(x, 1.0)
    assert relative(events_cpu.convolution(bits, w), y) < 2e-5
    assert relative(events_cpu.weight_gradient(bits, g, shape[1]), grad) < 5e-5


def test_silence_gives_zeros_also_in_used_buffers():
    x, w, g = case(64, 64, 64, 16, 16, density=0.9)
    bits = events_cpu.packed(x, 1.0)
    del bits
    events_cpu.convolution(events_cpu.packed(x, 1.0), w)  # leaves numbers in the workspace
    events_cpu.weight_gradient(events_cpu.packed(x, 1.0), g, 64)
    none = events_cpu.packed(torch.zeros_like(x), 1.0)
    assert not events_cpu.convolution(none, w).any()
    assert not events_cpu.weight_gradient(none, g, 64).any()


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 63), channel=st.integers(0, 39), image=st.integers(0, 15))
def test_one_spike_meets_its_nine_neighbours_and_no_other(place, channel, image):
    x = torch.zeros(16, 40, 8, 8)
    x[image, channel, place // 8, place % 8] = 1.0
    w = torch.arange(64 * 40 * 9, dtype=torch.float32).reshape(64, 40, 3, 3) / 64
    bits = events_cpu.packed(x, 1.0)
    assert torch.equal(events_cpu.convolution(bits, w), F.conv2d(x, w, padding=1))
    g = torch.arange(16 * 64 * 64, dtype=torch.float32).reshape(16, 64, 8, 8) / 64
    want = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), padding=1)
    assert torch.equal(events_cpu.weight_gradient(bits, g, 40).double(), want)


def test_packing_sets_a_bit_for_each_one():
    x = torch.zeros(32, 40, 8, 8)
    x[3, 33, 2, 5] = x[3, 0, 2, 5] = x[31, 31, 7, 7] = 1
    bits = events_cpu.packed(x, 1.0)
    assert bits.shape == (32, 8, 8, 2) and bits.dtype == torch.int32
    assert bits[3, 2, 5].tolist() == [1, 2] and bits[31, 7, 7].tolist() == [-(2**31), 0]
    assert bits.count_nonzero() == 3


@pytest.mark.parametrize("value", [-1.0, 0.25, 2.0, float("nan"), 1.0000001])
def test_an_input_that_is_no_spike_is_not_packed(value):
    x, _, _ = case(4, 32, 64, 16, 16)
    x[3, 31, 15, 15] = value
    assert events_cpu.packed(x, 1.0) is None


def test_dense_spikes_are_not_packed():
    x, _, _ = case(4, 32, 64, 16, 16, density=0.5)
    share = float(x.mean())
    assert events_cpu.packed(x, share - 1e-3) is None
    assert events_cpu.packed(x, share + 1e-3) is not None


def test_the_result_does_not_depend_on_the_number_of_threads():
    x, w, g = case(40, 64, 64, 12, 12)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            bits = events_cpu.packed(x, 1.0)
            found.append((events_cpu.convolution(bits, w), events_cpu.weight_gradient(bits, g, 64)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("x", "w", "padding"),
    [
        ((4, 32, 16, 16), (64, 32, 5, 5), (2, 2)),  # another kernel
        ((4, 32, 16, 16), (64, 32, 3, 3), (0, 0)),  # no padding
        ((4, 32, 16, 16), (60, 32, 3, 3), (1, 1)),  # outputs fill no vector
        ((3, 32, 16, 16), (64, 32, 3, 3), (1, 1)),  # too little to be worth it
    ],
)
def test_other_shapes_are_left_to_torch(x, w, padding):
    assert events_cpu.fits(torch.zeros(4, 32, 16, 16), torch.zeros(64, 32, 3, 3), (1, 1))
    assert not events_cpu.fits(torch.zeros(x), torch.zeros(w), padding)
    assert not events_cpu.fits(torch.zeros(4, 32, 16, 16).double(), torch.zeros(64, 32, 3, 3).double(), (1, 1))


@pytest.mark.parametrize("shape", [(4, 1, 32, 16, 16), (9, 3, 64, 11, 13), (40, 8, 96, 5, 6), (3, 2, 32, 1, 400)])
def test_signed_spikes_of_few_channels_equal_float64(shape):
    _, w, g = case(*shape)
    N, C, _, H, W = shape
    x = torch.randint(-1, 2, (N, C, H, W), generator=torch.Generator().manual_seed(4)).float()
    y, grad = gradients(x, w, g)
    bits = events_cpu.packed(x, 0.1)  # however dense
    assert bits.shape == (N, H, W, 1)
    out = events_cpu.convolution(bits, w)
    assert out.permute(0, 2, 3, 1).is_contiguous()
    assert relative(out, y) < 2e-5
    assert relative(events_cpu.weight_gradient(bits, g, C), grad) < 5e-5


@pytest.mark.parametrize("value", [0.5, -2.0, float("nan")])
def test_an_analog_image_is_not_packed(value):
    x = torch.zeros(4, 3, 16, 16)
    x[3, 2, 15, 15] = value
    assert events_cpu.packed(x, 1.0) is None


# ------------------------------------------------------------------------------------------------------- in the layer


@pytest.mark.parametrize("inputs", [1, 3])
def test_the_first_layer_takes_signed_spikes_event_by_event(inputs, monkeypatch):
    called = calls(monkeypatch)
    conv = Conv2d(inputs, 32)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (4, 5, inputs, 12, 12), generator=g).float().requires_grad_()
    y = conv(x, 1)
    grad = torch.randn(y.shape, generator=g)
    y.backward(grad)
    assert called == ["events_cpu.convolution", "events_cpu.weight_gradient"]
    x64, w64 = x.detach().double().flatten(0, 1).requires_grad_(), conv.weight.detach().double().requires_grad_()
    want = F.conv2d(x64, w64, padding=1)
    want.backward(grad.double().flatten(0, 1))
    assert relative(y.flatten(0, 1), want.detach()) < 1e-5
    assert relative(x.grad.flatten(0, 1), x64.grad) < 1e-5
    assert relative(conv.weight.grad, w64.grad) < 1e-4


def calls(monkeypatch) -> list[str]:
    """Which fast convolutions a layer calls, in order."""
    out: list[str] = []
    for module, name in (
        (events_cpu, "convolution"), (events_cpu, "weight_gradient"), (conv_cpu, "convolution"),
        (conv_cpu, "weight_gradient"),
    ):  # fmt: skip
        real, what = getattr(module, name), f"{module.__name__.rpartition('.')[2]}.{name}"

        def noted(*args, real=real, what=what):
            out.append(what)
            return real(*args)

        monkeypatch.setattr(module, name, noted)
    return out


@pytest.mark.parametrize(
    ("density", "parts", "expected"),
    [
        (0.2, 1, ["events_cpu.convolution", "conv_cpu.convolution", "events_cpu.weight_gradient"]),
        (0.9, 1, ["conv_cpu.convolution", "conv_cpu.convolution", "conv_cpu.weight_gradient"]),
        (0.2, 4, ["conv_cpu.convolution", "conv_cpu.convolution", "conv_cpu.weight_gradient"]),
    ],
)
def test_a_layer_takes_the_way_for_its_input_and_gives_autograds_gradients(density, parts, expected, monkeypatch):
    called = calls(monkeypatch)
    conv = Conv2d(64, 64)
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(4, 16, 64, 8, 8, generator=g) < density).float() / parts
    x.requires_grad_()
    y = conv(x, parts)
    grad = torch.randn(y.shape, generator=g)
    y.backward(grad)
    assert called == expected
    x64 = x.detach().double().flatten(0, 1).requires_grad_()
    w64 = conv.weight.detach().double().requires_grad_()
    want = F.conv2d(x64, w64, padding=1)
    want.backward(grad.double().flatten(0, 1))
    assert relative(y.flatten(0, 1), want.detach()) < 1e-4
    assert relative(x.grad.flatten(0, 1), x64.grad) < 1e-4
    assert relative(conv.weight.grad, w64.grad) < 1e-4


def test_inference_takes_the_same_ways_and_the_reference_backend_none(monkeypatch):
    called = calls(monkeypatch)
    conv = Conv2d(64, 64)
    x = (torch.rand(4, 16, 64, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    with torch.no_grad():
        y = conv(x, 1)
        assert called == ["events_cpu.convolution"]
        conv(x)  # any real input
        monkeypatch.setattr(lif, "forced", "reference")
        plain = conv(x, 1)
    assert called == ["events_cpu.convolution"]
    assert relative(y, plain.double()) < 1e-4


def test_float64_goes_through_torch(monkeypatch):
    called = calls(monkeypatch)
    conv = Conv2d(64, 64).double()
    x = (torch.rand(4, 16, 64, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.2).double().requires_grad_()
    conv(x, 1).sum().backward()
    assert called == []
    assert convolution._fast(x.flatten(0, 1), conv.weight, conv.padding) is None


def test_spikes_are_kept_as_bits_for_the_backward_pass():
    conv = Conv2d(64, 64)
    x = (torch.rand(4, 16, 64, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.2).float().requires_grad_()
    y = conv(x, 1)
    kept = y.grad_fn.next_functions[0][0].saved_tensors[0]
    assert kept.dtype == torch.int32 and kept.numel() * 32 == x.numel()
