"""Layers whose currents are computed again for the backward pass: bit for bit the ordinary path, for less memory."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import nn

from hwsim.device.store import Rram, draw, place
from hwsim.network import recompute
from hwsim.network.layer import BNTT, Conv2d, Lif, Linear
from hwsim.network.recompute import recomputed
from hwsim.network.vgg_bntt import VggBntt, build

NEURON = {"leak": 0.9, "threshold": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def events(parts: int, *shape: int, signed: bool = False, density: float = 0.3) -> torch.Tensor:
    """Multiples of 1/parts from 0 on, spikes of both signs, or real numbers for parts 0; memory channels-last."""
    T, B, C, H, W = shape
    u = torch.rand(T, B, H, W, C, generator=seeded(1))
    if parts == 0:
        x = u - 0.5
    elif signed:
        x = (u < density / 2).float() - (u > 1 - density / 2).float()
    else:
        x = (u * parts / (1 - density) - parts * density / (1 - density)).clamp(min=0).ceil() / parts
    return x.permute(0, 1, 4, 2, 3)


def ordinary(layer, neuron, x, parts, *, steps, signed, **settings):
    current = layer(x, parts) if isinstance(layer, Conv2d) else layer(x)[..., None, None]
    return neuron(current.expand(steps, *current.shape[1:]), **settings)


def everything(way, layer, neuron, x, **settings) -> dict[str, torch.Tensor]:
    """Spikes, counts, gradients and running statistics of a pass forward and back."""
    layer, neuron = copy.deepcopy(layer), copy.deepcopy(neuron)
    x = x.clone().requires_grad_()
    spikes, count = way(layer, neuron, x, **settings)
    spikes.backward(torch.randn(spikes.shape, generator=seeded(2), dtype=spikes.dtype))
    found = {"spikes": spikes.detach(), "count": count, "x": x.grad, "weight": layer.weight.grad}
    return found | {n: p.grad for n, p in neuron.named_parameters()} | dict(neuron.named_buffers())


def assert_same(layer, neuron, x, parts, *, steps, signed=False, pool=1, drive=1.0) -> dict[str, torch.Tensor]:
    settings = {"parts": parts, "steps": steps, "signed": signed, "pool": pool, "drive": drive, **NEURON}
    wanted = everything(ordinary, layer, neuron, x, **settings)
    found = everything(recomputed, layer, neuron, x, **settings)
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name
    assert 0 < wanted["spikes"].mean() < 1 and wanted["x"].abs().sum() > 0 and wanted["weight"].abs().sum() > 0
    return found


KINDS = {"spikes": (1, False), "signed spikes": (1, True), "averages": (4, False), "real": (0, False)}
SHAPES = {"torch": (3, 2, 5, 4, 7, 6), "fast": (4, 8, 32, 64, 16, 16)}
"""T, B, channels in and out, H, W; fast: what events_cpu and conv_cpu take."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pool", [1, 2])
def test_a_convolution_and_its_neuron_are_the_ordinary_ones(shape, kind, pool, dtype, backend):
    (T, B, inputs, outputs, H, W), (parts, signed) = SHAPES[shape], KINDS[kind]
    x = events(parts, T, B, inputs, H, W, signed=signed).to(dtype)
    torch.manual_seed(3)
    layer, neuron = Conv2d(inputs, outputs).to(dtype), BNTT(T, outputs).to(dtype)
    assert_same(layer, neuron, x, parts, steps=T, signed=signed, pool=pool)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_every_kernel_that_density_chooses_is_run_again(density):
    x = events(1, *SHAPES["fast"][:3], *SHAPES["fast"][4:], density=1 - density)
    assert abs(float(x.mean()) - density) < 0.05
    torch.manual_seed(3)
    assert_same(Conv2d(32, 64), BNTT(4, 64), x, 1, steps=4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("neuron", [BNTT, Lif])
@pytest.mark.parametrize("training", [True, False])
def test_so_they_are_in_every_precision_with_and_without_normalization(precision, neuron, training, backend):
    x = events(1, 3, 4, 8, 6, 6)
    torch.manual_seed(3)
    layer = Conv2d(8, 16, precision=precision)
    made = (BNTT(3, 16) if neuron is BNTT else Lif()).train(training)
    found = assert_same(layer, made, x, 1, steps=3, drive=0.7)
    assert ("running_mean" in found) == (neuron is BNTT)


@pytest.mark.parametrize("parts, inputs", [(1, 40), (4, 40), (9, 40), (0, 40), (256, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_layer_and_its_neuron_are_the_ordinary_ones(parts, inputs, dtype, backend):
    x = events(parts, 3, 4, inputs, 1, 1).to(dtype).flatten(2)
    torch.manual_seed(3)
    assert_same(Linear(inputs, 16).to(dtype), BNTT(3, 16).to(dtype), x, parts, steps=3)


@pytest.mark.parametrize("neuron", [BNTT, Lif])
def test_one_current_serves_all_steps(neuron, backend):
    x = events(0, 1, 4, 3, 6, 6)
    torch.manual_seed(3)
    assert_same(Conv2d(3, 8), BNTT(5, 8) if neuron is BNTT else Lif(), x, 0, steps=5, pool=2)


def test_one_step_is_a_step(backend):
    torch.manual_seed(3)
    assert_same(Conv2d(3, 8), BNTT(1, 8), events(1, 1, 4, 3, 6, 6), 1, steps=1)


@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
@pytest.mark.parametrize("name", ["vgg5", "vgg11", "mlp"])
@pytest.mark.parametrize("norm", ["bntt", "none"])
def test_a_network_takes_the_same_steps(name, coding, norm, backend):
    def trained(checkpoint_layers: bool) -> dict[str, torch.Tensor]:
        net = build(name, width=0.05, channels=3, size=(36, 36), classes=4, steps=3, coding=coding, norm=norm,
                    checkpoint_layers=checkpoint_layers, generator=seeded())  # fmt: skip
        place(net, {"conv*": Rram(bits=4, sigma=0.1)} if name != "mlp" else {"fc1": Rram(bits=4, sigma=0.1)})
        optimizer, chips, coins = torch.optim.SGD(net.parameters(), 0.1), seeded(5), seeded(6)
        x, y = torch.randn(4, 3, 36, 36, generator=seeded(7)), torch.arange(4)
        for _ in range(2):
            draw(net, chips)
            for loss in net.losses(x, y, coins):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        logits, trace = net(x, coins)
        return net.state_dict() | {"logits": logits} | {
            f"{layer} {what}": torch.as_tensor(v) for layer, here in trace.items() for what, v in here.items()
        }  # fmt: skip

    wanted, found = trained(False), trained(True)
    assert wanted.keys() == found.keys()
    for key in wanted:
        assert torch.equal(found[key], wanted[key]), key
    assert any(int(n.sum()) for key, n in found.items() if "spikes" in key)


# ---------------------------------------------------------------------------------------------------- what is kept


def kept(compute) -> int:
    """Bytes that autograd keeps for the backward pass of a computation, without parameters."""
    held: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, nn.Parameter):
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        result = compute()
    assert result is not None
    return sum(held.values())


@pytest.mark.parametrize("kind, bits", [("spikes", 1), ("averages", 8), ("real", 32)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_keeps_its_input_in_bits_or_bytes_and_no_current(shape, kind, bits, backend):
    (T, B, inputs, outputs, H, W), (parts, signed) = SHAPES[shape], KINDS[kind]
    x, layer, neuron = events(parts, T, B, inputs, H, W), Conv2d(inputs, outputs), BNTT(T, outputs)
    given = {"steps": T, "signed": signed, **NEURON}
    found = kept(lambda: recomputed(layer, neuron, x, parts, **given))
    shared = 4 * layer.weight.numel() + 2 * 4 * T * outputs
    assert found <= -(-bits * x.numel() // 8) + shared
    plain = kept(lambda: ordinary(layer, neuron, x, parts, **given))
    assert plain >= 4 * T * B * outputs * H * W  # it sees what the ordinary path keeps


def test_signed_spikes_take_a_byte_at_most(backend):
    x, layer, neuron = events(1, 3, 4, 3, 8, 8, signed=True), Conv2d(3, 8), BNTT(3, 8)
    found = kept(lambda: recomputed(layer, neuron, x, 1, steps=3, signed=True, **NEURON))
    assert found <= 4 * 3 * 4 * 64 + 4 * layer.weight.numel() + 2 * 4 * 3 * 8


def test_no_float_spikes_live_between_layers(monkeypatch, backend):
    """A layer's input dies when the layer has kept it in bits: when the next layer begins its own spikes are alone."""
    net = build("vgg9", width=0.1, channels=3, size=(16, 16), classes=4, steps=3, checkpoint_layers=True)
    born: list[weakref.ref] = []
    forward = recompute._Layer.currents

    def watched(self, x, weight):
        assert sum(r() is not None for r in born) <= 1
        born.append(weakref.ref(x.untyped_storage()))
        return forward(self, x, weight)

    monkeypatch.setattr(recompute._Layer, "currents", watched)
    logits, _ = net(torch.randn(2, 3, 16, 16), seeded())
    assert len(born) == 8 and logits.requires_grad


def test_evaluation_keeps_nothing_and_takes_the_ordinary_path(monkeypatch):
    net = build("vgg5", width=0.05, channels=3, size=(8, 8), classes=4, steps=2, checkpoint_layers=True).eval()
    monkeypatch.setattr("hwsim.network.vgg_bntt.recomputed", None)
    with torch.no_grad():
        assert net(torch.randn(2, 3, 8, 8), seeded())[0].shape == (2, 4)


def test_statistics_move_once():
    torch.manual_seed(3)
    neuron = BNTT(2, 4)
    spikes, _ = recomputed(Conv2d(3, 4), neuron, events(1, 2, 4, 3, 6, 6), 1, steps=2, signed=False, **NEURON)
    spikes.sum().backward()
    assert neuron.num_batches_tracked.tolist() == [1, 1]


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=2)))
def test_only_gradients_that_are_asked_for_are_made(needs, backend):
    for layer, x in ((Conv2d(3, 4), events(1, 2, 4, 3, 6, 6)), (Linear(12, 4), events(1, 2, 4, 12, 1, 1).flatten(2))):
        x.requires_grad_(needs[0]), layer.weight.requires_grad_(needs[1])
        neuron = BNTT(2, 4)
        recomputed(layer, neuron, x, 1, steps=2, signed=False, **NEURON)[0].sum().backward()
        assert (x.grad is not None, layer.weight.grad is not None) == needs
        assert neuron.weight.grad is not None


def test_a_layer_with_a_bias_is_refused():
    with pytest.raises(ValueError, match="found a layer with a bias"):
        recomputed(Conv2d(3, 4, bias=True), Lif(), events(1, 2, 4, 3, 6, 6), 1, steps=2, signed=False, **NEURON)


def test_a_second_backward_pass_over_a_kept_graph_gives_the_same(backend):
    net = VggBntt((4, "A"), 5, channels=2, size=(6, 6), classes=3, steps=2, checkpoint_layers=True, generator=seeded())
    (loss,) = net.losses(torch.randn(3, 2, 6, 6, generator=seeded(1)), torch.arange(3), seeded(2))
    first, second = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
