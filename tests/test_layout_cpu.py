"""Passes that move or shorten a layer's inputs: the same numbers as torch's, in the same order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.network import layout_cpu, lif
from hwsim.network.convolution import flat
from hwsim.network.layer import Linear


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    parts=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 9),
)
def test_bytes_hold_the_multiples_and_lie_as_the_input_does(shape, parts, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, shape, generator=g).float() / parts
    x = x.permute(torch.randperm(len(shape), generator=g).tolist())
    out = layout_cpu.in_bytes(x, parts)
    assert out.dtype == torch.int8 and torch.equal(out, (x * parts).to(torch.int8))
    assert [s for s, n in zip(out.stride(), x.shape, strict=True) if n > 1] == [
        s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1
    ]


def test_a_part_of_a_tensor_is_shortened_too():
    x = torch.arange(60.0).reshape(3, 4, 5)[:, 1:3, ::2]
    assert torch.equal(layout_cpu.in_bytes(x, 1), x.to(torch.int8))


@pytest.mark.parametrize("size", [1, 2**14 - 1, 2**14, 2**14 + 1, 5 * 2**14 + 3])
def test_every_element_is_shortened_once_whatever_the_size(size):
    x = torch.arange(size).remainder(5).float() / 4
    assert torch.equal(layout_cpu.in_bytes(x, 4), (x * 4).to(torch.int8))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 3), (1, 7, 16, 8, 8), (3, 2, 1, 4, 4), (2, 2, 6, 1, 1)])
def test_a_flat_image_counts_channels_first_and_so_does_its_gradient(shape):
    T, B, C, H, W = shape
    x = random(T, B, H, W, C).permute(0, 1, 4, 2, 3).requires_grad_()
    y = flat(x)
    assert torch.equal(y, x.flatten(2)) and y.is_contiguous()
    grad = random(*y.shape, seed=1)
    y.backward(grad)
    assert torch.equal(x.grad, grad.view(shape))


def test_the_gradient_of_a_flat_image_is_channels_last():
    x = random(2, 3, 4, 4, 8).permute(0, 1, 4, 2, 3).requires_grad_()
    grad = torch.autograd.grad(flat(x), x, random(2, 3, 128))[0]
    assert grad.permute(0, 1, 3, 4, 2).is_contiguous()


def test_the_order_has_the_right_derivative_in_float64():
    x = random(2, 4, 5, 3).double().permute(0, 3, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(layout_cpu.flat, (x,))


# ------------------------------------------------------------------------------------------------ in a linear layer


@pytest.mark.parametrize("parts", [1, 4])
def test_a_linear_layer_keeps_a_byte_an_input_and_has_the_gradients_of_float64(parts):
    x = (torch.randint(0, parts + 1, (3, 4, 32), generator=torch.Generator().manual_seed(0)) / parts).requires_grad_()
    layer = Linear(32, 10, bias=True)
    y = layer(x, parts)
    kept = y.grad_fn.next_functions[0][0].next_functions[0][0].saved_tensors[0]
    assert kept.dtype == torch.int8 and kept.numel() == x.numel()
    grad = random(3, 4, 10)
    y.backward(grad)
    x64, w64 = x.detach().double(), layer.weight.detach().double()
    torch.testing.assert_close(y.double(), x64 @ w64.t() + layer.bias.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), grad.double() @ w64, rtol=1e-5, atol=1e-5)
    want = grad.double().flatten(0, 1).t() @ x64.flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 1)))


def test_thirds_are_not_kept_in_bytes():
    x = (torch.randint(0, 10, (2, 3, 16), generator=torch.Generator().manual_seed(0)) / 9).requires_grad_()
    layer = Linear(16, 4)
    layer(x, 9).sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones(6, 4).t() @ x.detach().flatten(0, 1))


def test_a_bf16_linear_layer_rounds_its_gradients_and_not_its_currents(monkeypatch):
    x = (torch.randint(0, 5, (3, 16, 64), generator=torch.Generator().manual_seed(0)) / 4).requires_grad_()
    plain, short = Linear(64, 32), Linear(64, 32, precision="bf16")
    short.load_state_dict(plain.state_dict())
    grad, found = random(3, 16, 32), []
    for layer in (plain, short):
        x.grad = None
        y = layer(x, 4)
        y.backward(grad)
        found.append((y.detach(), x.grad, layer.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    w, g = plain.weight.detach().bfloat16().double(), grad.bfloat16().double().flatten(0, 1)
    for got, want in ((found[1][1].flatten(0, 1), g @ w), (found[1][2], g.t() @ x.detach().double().flatten(0, 1))):
        assert (got.double() - want).abs().max() < 2**-8 * want.abs().max()
    assert not torch.equal(found[0][1], found[1][1]) and not torch.equal(found[0][2], found[1][2])
    monkeypatch.setattr(lif, "forced", "reference")
    x.grad = None
    short(x, 4).backward(grad)
    torch.testing.assert_close(x.grad, found[0][1])  # the reference rounds nothing
