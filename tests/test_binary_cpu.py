"""Convolutions with binary weights, by population counts: exact in every shape, and where they are used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.store import Rram, Ternary, draw, place
from hwsim.network import binary_cpu, bits_cpu, conv_cpu, convolution, events_cpu, lif
from hwsim.network.binary_ir import COUNTS
from hwsim.network.layer import BNTT, Conv2d, Linear
from hwsim.network.recompute import recomputed
from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vector_ir import LANES
from hwsim.network.vgg_bntt import build


def whole(low, high, shape, g):
    return torch.randint(low, high + 1, shape, generator=g).float()


def signs(shape, g, zeros=False):
    return whole(-1, 1, shape, g) if zeros else 2 * whole(0, 1, shape, g) - 1


def case(N, C, K, H, W, k=3, parts=1, zeros=False, seed=0):
    """(inputs, signs, sizes): inputs are `parts` times what a layer would get."""
    g = torch.Generator().manual_seed(seed)
    low = -1 if parts == 1 and C <= events_cpu.MOST_SIGNED else 0
    return whole(low, parts, (N, C, H, W), g), signs((K, C, k, k), g, zeros), torch.rand(K, generator=g) + 0.1


def bits_of(weight):
    """The bits of a weight, however little there is to do."""
    return binary_cpu.binary(weight, (2**24, 1, 5, 5), (0, 0))


def counted(x, weight, padding, parts=1):
    binary = bits_of(weight)
    words = events_cpu.packed(x, 1.0)[None] if parts == 1 else bits_cpu.planes(x / parts, parts)
    return binary_cpu.convolution(words, binary, (padding, padding), parts)


@settings(max_examples=80, deadline=None)
@given(
    N=st.integers(1, 3), C=st.integers(1, 150), blocks=st.integers(1, 6), H=st.integers(1, 11), W=st.integers(1, 45),
    k=st.sampled_from([1, 3, 5]), padding=st.integers(0, 2), parts=st.sampled_from(bits_cpu.PARTS),
    zeros=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_currents_are_the_whole_numbers_times_the_size_rounded_once(N, C, blocks, H, W, k, padding, parts, zeros, seed):
    H, W = max(H, k - 2 * padding), max(W, k - 2 * padding)
    x, sign, size = case(N, C, blocks * LANES, H, W, k, parts, zeros, seed)
    want = F.conv2d(x.double(), sign.double(), padding=padding)
    assert torch.equal(want, want.round())
    got = counted(x, sign, padding, parts)
    assert torch.equal(got.double() * parts, want)
    scaled = counted(x, sign * size[:, None, None, None], padding, parts)
    assert torch.equal(scaled, size[:, None, None] / parts * want.float())
    assert scaled.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("channels", [1023, 2080])
def test_many_words_do_not_overflow_a_count(channels):
    x, w = torch.ones(2, channels, 3, 3), torch.ones(LANES, channels, 3, 3)
    assert float(counted(x, w, 1)[1, -1, 1, 1]) == 9 * channels
    assert float(counted(4 * x, -w, 1, 4)[0, 0, 0, 0]) == -4 * channels


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 63), channel=st.integers(0, 39), value=st.integers(1, 4))
def test_one_input_meets_its_nine_neighbours_and_no_other(place, channel, value):
    x = torch.zeros(3, 40, 8, 8)
    x[1, channel, place // 8, place % 8] = value
    sign = signs((2 * LANES, 40, 3, 3), torch.Generator().manual_seed(place))
    assert torch.equal(counted(x, sign, 1, 4) * 4, F.conv2d(x, sign, padding=1))


def test_a_weight_is_binary_where_each_filter_has_one_size():
    _, sign, size = case(1, 40, 2 * LANES, 1, 1)
    weight = sign * size[:, None, None, None]
    found = bits_of(weight)
    assert torch.equal(torch.from_numpy(found.size), size) and not found.has_zeros
    weight[3, 5, 0, 1] = weight[4] = 0
    found = bits_of(weight)
    assert found.has_zeros and found.size[4] == 0 and found.size[3] == size[3]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (5, 31, 1, 1), (31, 39, 2, 2)])
@pytest.mark.parametrize("value", [0.25, 1.0000001, float("nan"), float("inf")])
def test_a_filter_of_two_sizes_is_not_binary(place, value):
    weight = signs((32, 40, 3, 3), torch.Generator().manual_seed(1))
    assert bits_of(weight) is not None
    weight[place] = value
    assert bits_of(weight) is None
    weight[place[0]] = value
    assert (bits_of(weight) is None) == (value in (float("inf"),) or value != value)


@pytest.mark.parametrize("channel", [3, 38])
@pytest.mark.parametrize("value", [-0.25, 0.3, 1.25, 2.0, float("nan"), float("inf")])
def test_an_input_that_is_no_average_of_spikes_has_no_planes(value, channel):
    x = torch.zeros(2, 40, 4, 4)
    x[1, 7, 2, 2] = 0.75
    found = bits_cpu.planes(x, 4)
    assert found.shape == (3, 2, 4, 4, 2) and found.count_nonzero() == 2
    assert found[:, 1, 2, 2, 0].tolist() == [128, 128, 0]
    x[1, channel, 3, 3] = value
    assert all(bits_cpu.planes(x, parts) is None for parts in bits_cpu.PARTS)


def test_density_is_the_share_of_inputs_that_fired():
    x, _, _ = case(3, 45, LANES, 7, 5)
    assert bits_cpu.density(events_cpu.packed(x, 1.0), 45) == pytest.approx(float(x.mean()), abs=1e-7)


# ------------------------------------------------------------------------------------------------------- in the layer


def calls(monkeypatch) -> list[str]:
    """Which kernels a layer calls, in order."""
    out: list[str] = []
    for module, name in (
        (binary_cpu, "convolution"), (events_cpu, "convolution"), (events_cpu, "weight_gradient"),
        (conv_cpu, "convolution"), (conv_cpu, "weight_gradient"),
    ):  # fmt: skip
        real, what = getattr(module, name), f"{module.__name__.rpartition('.')[2]}.{name}"

        def noted(*args, real=real, what=what):
            out.append(what)
            return real(*args)

        monkeypatch.setattr(module, name, noted)
    return out


def binary_layer(*sizes, store=None) -> Conv2d:
    torch.manual_seed(0)
    conv = Conv2d(*sizes)
    place(torch.nn.Sequential(conv), {"*": store or Rram(bits=1)})
    return conv


def relative(got, want):
    return float((got.detach().double() - want).abs().max() / want.pow(2).mean().sqrt())


AVERAGES = "binary_cpu" if COUNTS else "conv_cpu"


@pytest.mark.parametrize(
    ("inputs", "density", "parts", "expected"),
    [
        (64, 0.25, 1, ["binary_cpu.convolution", "conv_cpu.convolution", "events_cpu.weight_gradient"]),
        (64, 0.005, 1, ["events_cpu.convolution", "conv_cpu.convolution", "events_cpu.weight_gradient"]),
        (64, 0.9, 1, ["binary_cpu.convolution", "conv_cpu.convolution", "conv_cpu.weight_gradient"]),
        (64, 0.2, 4, [f"{AVERAGES}.convolution", "conv_cpu.convolution", "conv_cpu.weight_gradient"]),
        (3, 0.4, 1, ["binary_cpu.convolution", "events_cpu.weight_gradient"]),
    ],
)
def test_a_binary_layer_is_counted_and_gives_autograds_gradients(inputs, density, parts, expected, monkeypatch):
    called = calls(monkeypatch)
    conv = binary_layer(inputs, 64)
    g = torch.Generator().manual_seed(0)
    x = ((torch.rand(4, 40, inputs, 8, 8, generator=g) < density).float() / parts).requires_grad_()
    y = conv(x, parts)
    grad = torch.randn(y.shape, generator=g)
    y.backward(grad)
    assert called == expected
    x64 = x.detach().double().flatten(0, 1).requires_grad_()
    w64 = conv.store.held(conv.weight.detach()).double().requires_grad_()
    want = F.conv2d(x64, w64, padding=1)
    want.backward(grad.double().flatten(0, 1))
    assert relative(y.flatten(0, 1), want.detach()) < (1e-6 if "binary" in called[0] else 1e-4)
    assert relative(x.grad.flatten(0, 1), x64.grad) < 1e-4
    assert relative(conv.weight.grad, w64.grad) < 1e-4


def spikes(*shape, density=0.25):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(5)) < density).float()


@torch.no_grad()
def test_cells_with_spread_are_not_counted_and_ternary_ones_are(monkeypatch):
    called, x = calls(monkeypatch), spikes(4, 16, 64, 16, 16)
    conv = binary_layer(64, 64, store=Rram(bits=1, sigma=0.1))
    conv(x, 1)
    draw(torch.nn.Sequential(conv), torch.Generator().manual_seed(0))
    conv(x, 1)
    assert called == ["binary_cpu.convolution", "events_cpu.convolution"]
    called.clear()
    conv = binary_layer(64, 64, store=Ternary())
    held = conv.store.held(conv.weight)
    assert 0.01 < float((held == 0).float().mean()) < 0.9
    assert relative(conv(x, 1).flatten(0, 1), F.conv2d(x.flatten(0, 1).double(), held.double(), padding=1)) < 1e-6
    assert called == ["binary_cpu.convolution"]


@torch.no_grad()
def test_little_work_other_inputs_and_other_numbers_are_left_to_the_other_ways(monkeypatch):
    called = calls(monkeypatch)
    conv = binary_layer(64, 64)
    conv(spikes(1, 2, 64, 8, 8), 1)  # too little
    conv(spikes(4, 16, 64, 16, 16))  # any real input
    conv(0.3 * spikes(4, 16, 64, 16, 16), 1)  # no spikes
    monkeypatch.setattr(lif, "forced", "reference")
    conv(spikes(4, 16, 64, 16, 16), 1)
    monkeypatch.setattr(lif, "forced", "auto")
    conv.double()(spikes(4, 16, 64, 16, 16).double(), 1)
    assert called == ["conv_cpu.convolution"]


@pytest.mark.parametrize(("images", "counts"), [(16, 2), (2, 0)])
def test_computed_again_the_currents_of_a_binary_layer_are_the_same_bits(images, counts, monkeypatch):
    monkeypatch.setattr(binary_cpu, "_LEAST_WORK", 2**26)
    x, found = spikes(3, images, 64, 16, 16), []
    for way in ("kept", "again"):
        conv, neuron = binary_layer(64, 64), BNTT(3, 64)
        if way == "kept":
            out, _ = neuron(conv(x, 1), leak=0.9, threshold=1.0)
        else:
            called = calls(monkeypatch)
            out, _ = recomputed(conv, neuron, x, 1, steps=3, signed=False, leak=0.9, threshold=1.0)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        found.append((out, conv.weight.grad, neuron.weight.grad))
    assert called.count("binary_cpu.convolution") == counts and called.count("events_cpu.convolution") == 2 - counts
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_a_binary_linear_layer_is_counted_where_no_gradient_is_wanted(bias, monkeypatch):
    called = calls(monkeypatch)
    torch.manual_seed(0)
    fc = Linear(300, 64, bias=bias)
    place(torch.nn.Sequential(fc), {"*": Rram(bits=1)})
    x = torch.randint(0, 5, (30, 37, 300), generator=torch.Generator().manual_seed(5)).float() / 4
    plain = fc(x, 4)
    assert called == []
    with torch.no_grad():
        y = fc(x, 4)
        assert called == ["binary_cpu.convolution"]
        fc(x)
    assert called == ["binary_cpu.convolution"]
    want = F.linear(x.double(), fc.store.held(fc.weight).double(), None if fc.bias is None else fc.bias.double())
    assert relative(y, want.detach()) < 1e-6 and relative(plain, want.detach()) < 1e-4


class Watched(StepwiseVgg):
    """The published loop, which notes how near any membrane came to its threshold."""

    nearest = float("inf")

    def _fire(self, u):
        self.nearest = min(self.nearest, float((u / self.threshold - 1).abs().min()))
        return super()._fire(u)


@torch.no_grad()
def test_the_spikes_of_a_binary_network_are_those_of_the_loop_in_float64(monkeypatch):
    monkeypatch.setattr(binary_cpu, "_LEAST_WORK", 0)
    g = torch.Generator().manual_seed(3)
    net = build("vgg5", width=0.5, channels=3, size=(8, 8), classes=10, steps=4, generator=g)
    held = place(net, {"*": Rram(bits=1)})
    for name in held:  # a power of two, as it was held: sums of float64 and float32 are of the same weights
        weight = net.get_submodule(name).weight
        weight.copy_((2 * (weight >= 0) - 1) / 16)
    for module in net.modules():
        if isinstance(module, BNTT):
            module.momentum = 1.0
            module.weight.uniform_(0.8, 1.2, generator=g)
    x = net.encode(torch.randn(3, 3, 8, 8, generator=g), g)
    net.run(x)  # statistics with which neurons fire
    net.eval()
    loop = Watched(net).double().eval()
    logits, by_step = loop(x.double())
    assert 1e-5 < loop.nearest < 1  # no membrane within rounding of its threshold
    seen = []
    for _, name, _ in net.blocks:
        net.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(out[0]))
    called = calls(monkeypatch)
    found, _ = net.run(x)
    assert called == ["binary_cpu.convolution"] * 4
    for i, (spikes_TBCHW, (_, _, pool)) in enumerate(zip(seen, net.blocks, strict=True)):
        for t, wanted in enumerate(by_step):
            want = F.avg_pool2d(wanted[i], 2) if pool else wanted[i]
            assert torch.equal(spikes_TBCHW[t].double(), want)
    assert 0.05 < float(seen[-1].mean()) < 0.9
    torch.testing.assert_close(found.double(), logits, rtol=1e-6, atol=1e-7)


def test_forward_says_which_spikes_serve_the_backward_pass():
    conv = binary_layer(64, 64)
    held = conv.store.held(conv.weight.detach())
    for density, kept in ((0.2, True), (0.6, False)):
        x = spikes(64, 64, 16, 16, density=density)
        y, words = convolution.forward(x, held, (1, 1), 1, "float32")
        assert (words is not None) == kept
        if kept:
            assert torch.equal(convolution.again(words, held), y)
