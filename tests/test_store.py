"""Stores: what cells hold, how a chip is drawn, where stores are placed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hwsim.config import ConfigError, PlaceError, RunError
from hwsim.device.quantize import QUANTIZERS, dorefa, levels, ternary, xnor
from hwsim.device.store import Ideal, Rram, Ternary, add_cells, clear, draw, load, place
from hwsim.device.variation import lognormal

GOLDEN = json.loads((Path(__file__).parent / "golden" / "device.json").read_text(encoding="utf-8"))
OVERLAPPING = ((None, None, 0.1), (0.9, None, 0.2))
BY_LEVEL = ((None, 0.4, 0.276), (0.9, None, 0.1035))
STORES = [
    Ideal(),
    Rram(bits=1, sigma=0.08),
    Rram(bits=4, sigma=0.3, clamp="magnitude"),
    Rram(bits=2, quantizer="xnor", sigma=0.1, clamp="signed"),
    Rram(bits=2, rows=BY_LEVEL),
    Rram(bits=2, rows=OVERLAPPING),
    Rram(bits=8),
    Ternary(sigma=0.08),
]


class Layer(nn.Module):
    store = Ideal()

    def __init__(self, *shape: int, seed: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
        add_cells(self)


class Net(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        shape = shape or (8, 4, 3, 3)
        for i in range(1, 5):
            self.add_module(f"conv{i}", Layer(*shape, seed=i))
        self.norm = nn.BatchNorm2d(2)
        self.fc1, self.fc2 = Layer(10, 20, seed=8), Layer(5, 10, seed=9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ln_factor(layer: Layer) -> torch.Tensor:
    level = layer.store.held(layer.weight.detach())
    return (layer.store.read(layer).detach() / level).double().log()


@pytest.mark.parametrize(
    "case", GOLDEN["device_variation_global"]["cases"], ids=lambda c: f"{c['bits']}b-x{c['var_scale']}"
)
def test_held_with_xnor_and_signed_is_the_reference(case):
    master, z = torch.tensor(GOLDEN["xnor_quant"]["w"]), torch.tensor(GOLDEN["device_variation_global"]["z"])
    held = Rram(case["bits"], "xnor", sigma=case["sigma"], clamp="signed").held(master, z)
    torch.testing.assert_close(held, torch.tensor(case["out"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clamp", ["none", "magnitude", "signed"])
def test_the_scale_commutes_with_the_spread(clamp):
    w, z = torch.randn(500, generator=generator(1)), torch.randn(500, generator=generator(2))
    level, scale = dorefa(w, 3)
    held = Rram(bits=3, sigma=0.2, clamp=clamp).held(w, z)
    torch.testing.assert_close(held, lognormal(level * scale, z, 0.2, clamp, 350.0))


def test_one_bit_weights_scale_with_the_master_weight():
    w, z = torch.randn(100, generator=generator(1)), torch.randn(100, generator=generator(2))
    store = Rram(bits=1, sigma=0.2, clamp="magnitude")
    torch.testing.assert_close(store.held(w * 4, z), store.held(w, z) * 4)


def test_ternary_holds_its_levels_spread_and_scaled():
    w, z = torch.randn(200, generator=generator(1)), torch.randn(200, generator=generator(2))
    level, scale = ternary(w)
    held = Ternary(sigma=0.08).held(w, z)
    torch.testing.assert_close(held, level * torch.exp(0.08 * z) * scale)
    assert (held == 0).sum() == (level == 0).sum() > 0


@pytest.mark.parametrize("store", STORES, ids=repr)
def test_without_a_chip_a_layer_reads_what_it_was_programmed_to_hold(store):
    net = Net()
    place(net, {"conv*": store})
    draw(net, generator())
    clear(net)
    w = net.conv1.weight.detach()
    level, scale = {Ideal: lambda: (w, 1.0), Ternary: lambda: ternary(w)}.get(
        type(store), lambda: (xnor if store.quantizer == "xnor" else dorefa)(w, store.bits)
    )()
    assert torch.equal(net.conv1.store.read(net.conv1).detach(), level * scale)


@pytest.mark.parametrize("store", STORES, ids=repr)
def test_reading_twice_gives_the_same_weight_and_keeps_the_master(store):
    net = Net()
    place(net, {"*": store})
    draw(net, generator())
    before = net.conv2.weight.detach().clone()
    assert torch.equal(store.read(net.conv2), store.read(net.conv2))
    assert torch.equal(net.conv2.weight, before)


@pytest.mark.parametrize("store", STORES, ids=repr)
def test_gradient_reaches_the_master_weight_unchanged(store):
    layer = Layer(30, 40)
    layer.weight.data[0, 0] = 1.5
    layer.store = store
    draw(layer, generator())
    grad = torch.randn(30, 40, generator=generator(5))
    store.read(layer).backward(grad)
    want = grad.clone()
    if isinstance(store, Ternary):
        want[0, 0] = 0
    assert torch.equal(layer.weight.grad, want)


def test_state_dict_keys_do_not_depend_on_the_store():
    plain = Net().state_dict()
    for store in STORES:
        net = Net()
        place(net, {"*": store})
        draw(net, generator())
        state = net.state_dict()
        assert list(state) == list(plain)
        assert all(torch.equal(state[k], plain[k]) for k in plain)


def test_every_store_is_frozen_and_has_no_parameters():
    for store in STORES:
        assert not isinstance(store, nn.Module)
        with pytest.raises(dataclasses.FrozenInstanceError):
            store.sigma = 1.0


def test_noise_is_needed_only_where_something_spreads():
    shape = (8, 4)
    assert Ideal().noise_shape(shape) is None
    assert Rram(bits=2).noise_shape(shape) is None
    assert Ternary().noise_shape(shape) is None
    assert Rram(bits=2, rows=((None, None, 0.0),)).noise_shape(shape) is None
    assert Rram(bits=2, sigma=0.1).noise_shape(shape) == shape
    assert Ternary(sigma=0.1).noise_shape(shape) == shape


def test_rows_take_a_draw_each_only_where_they_overlap_on_a_level():
    assert Rram(bits=2, rows=BY_LEVEL).noise_shape((8, 4)) == (8, 4)
    assert Rram(bits=2, rows=OVERLAPPING).noise_shape((8, 4)) == (2, 8, 4)
    assert Rram(bits=2, rows=((None, 0.5, 0.1), (0.5, None, 0.2))).noise_shape((8, 4)) == (8, 4)


@pytest.mark.parametrize("store", [Rram(bits=4, sigma=0.34597), Rram(bits=1, sigma=0.08164)], ids=repr)
def test_ln_of_the_factor_is_normal_with_the_stores_sigma(store):
    net = Net(400, 500)
    place(net, {"conv*": store})
    draw(net, generator(3))
    x = ln_factor(net.conv1).flatten() / store.sigma
    n = x.numel()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.std() - 1) < 5 / (2 * n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert (x.abs() > 3).double().mean().item() == pytest.approx(0.0027, abs=0.0006)


def test_spread_at_each_level_is_that_levels_sigma():
    net = Net(300, 400)
    store = Rram(bits=2, rows=BY_LEVEL)
    place(net, {"conv*": store})
    draw(net, generator(4))
    level = dorefa(net.conv1.weight.detach(), 2)[0].abs()
    x = ln_factor(net.conv1)
    assert x[level < 0.5].std().item() == pytest.approx(0.276, rel=0.02)
    assert x[level > 0.5].std().item() == pytest.approx(0.1035, rel=0.03)


def test_cells_layers_and_chips_are_independent():
    net = Net(200, 200)
    place(net, {"conv*": Rram(bits=4, sigma=0.2)})
    g = generator(6)
    draw(net, g)
    first = [net.get_submodule(f"conv{i}").z.flatten() for i in range(1, 5)]
    draw(net, g)
    second = net.conv1.z.flatten()
    limit = 5 / first[0].numel() ** 0.5

    def correlation(a, b):
        return abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item())

    assert correlation(first[0], first[1]) < limit  # layers
    assert correlation(first[0][:-1], first[0][1:]) < limit  # neighbours
    assert correlation(first[0], first[0].view(200, 200).t().flatten()) < 1.5 * limit  # rows and columns
    assert correlation(first[0], second) < limit  # chips
    assert not torch.equal(first[0], second)


def test_same_seed_same_chip_and_two_seeds_two_chips():
    nets = [Net(), Net(), Net()]
    for net, seed in zip(nets, (7, 7, 8), strict=True):
        place(net, {"conv*": Rram(bits=2, sigma=0.1)})
        draw(net, generator(seed))
    for name in ("conv1", "conv4"):
        a, b, c = (net.get_submodule(name) for net in nets)
        assert torch.equal(a.store.read(a), b.store.read(b))
        assert not torch.equal(a.z, c.z)


def test_layers_without_spread_take_nothing_from_the_generator():
    one, two = Net(), Net()
    place(one, {"conv[13]": Rram(bits=2, sigma=0.1)})
    place(two, {"conv[13]": Rram(bits=2, sigma=0.1), "conv2": Rram(bits=2), "fc*": Ternary()})
    draw(one, generator(1)), draw(two, generator(1))
    assert torch.equal(one.conv3.z, two.conv3.z)
    assert two.conv2.z is None and two.fc1.z is None


def test_a_chip_is_drawn_in_float32_whatever_the_weights_type():
    net, double = Net(), Net().double()
    for n in (net, double):
        place(n, {"conv*": Rram(bits=2, sigma=0.1)})
        draw(n, generator(1))
    assert double.conv1.z.dtype == torch.float32 and torch.equal(net.conv1.z, double.conv1.z)
    assert double.conv1.store.read(double.conv1).dtype == torch.float64


def test_place_puts_the_first_store_that_matches_and_reports_it():
    net = Net()
    one, rest = Rram(bits=1), Rram(bits=4)
    placed = place(net, {"conv1": Ideal(), "conv[23]": one, "conv*": rest})
    assert placed == {"conv1": Ideal(), "conv2": one, "conv3": one, "conv4": rest}
    assert net.conv2.store is one and net.conv4.store is rest
    assert isinstance(net.fc1.store, Ideal)


def test_place_forgets_the_chip():
    net = Net()
    place(net, {"conv*": Rram(bits=2, sigma=0.1)})
    draw(net, generator())
    place(net, {"conv1": Rram(bits=2, sigma=0.2)})
    assert net.conv1.z is None and net.conv2.z is not None


def test_place_names_the_layers_when_nothing_matches_and_changes_nothing():
    net = Net()
    with pytest.raises(PlaceError) as e:
        place(net, {"conv*": Rram(bits=2), "convs.*": Ideal(), "norm": Ideal()})
    assert str(e.value).splitlines() == [
        "place: no layer is named like 'convs.*'; this network has conv1 … conv4, fc1, fc2",
        "place: no layer is named like 'norm'; this network has conv1 … conv4, fc1, fc2",
    ]
    assert isinstance(net.conv1.store, Ideal)


def test_place_refuses_a_pattern_that_comes_too_late():
    with pytest.raises(PlaceError, match=r"'conv\*' already takes every layer like 'conv1'; write 'conv1' before it"):
        place(Net(), {"conv*": Rram(bits=2), "conv1": Ideal()})


def test_contradictory_stores_are_refused_with_every_reason():
    with pytest.raises(ConfigError) as e:
        Rram(bits=0, quantizer="dorefo", sigma=-1.0, clamp="top", on_off_ratio=1.0)
    assert len(e.value.messages) == 5
    with pytest.raises(ConfigError, match="Rram.rows: rows replace sigma"):
        Rram(bits=2, sigma=0.1, rows=BY_LEVEL)
    with pytest.raises(ConfigError, match="Rram.rows: every sigma"):
        Rram(bits=2, rows=((None, None, float("nan")),))
    with pytest.raises(ConfigError, match="Ternary.sigma: nan is not a number"):
        Ternary(sigma=float("nan"))


def test_levels_of_a_store_are_those_of_its_quantizer():
    w = torch.randn(5000, generator=generator(2))
    assert sorted(Rram(bits=3).held(w).unique().tolist()) == pytest.approx(
        [v * w.abs().max().item() for v in levels("dorefa", 3)], rel=1e-6
    )


@pytest.mark.parametrize("store", STORES, ids=repr)
def test_full_scale_is_the_largest_weight_that_the_cells_can_be_asked_to_hold(store):
    w = torch.randn(5000, generator=generator(2))
    if not isinstance(store, Ideal) and getattr(store, "quantizer", "ternary") == "xnor":
        w = w.clamp(-1, 1)  # beyond that this grid goes on (trap B4)
    scale = store.full_scale(w)
    assert store.held(w).abs().max() == scale
    if isinstance(store, Rram):
        assert scale == QUANTIZERS[store.quantizer](w, store.bits)[1]


@pytest.mark.parametrize("store", STORES, ids=repr)
def test_no_store_looks_at_a_tensors_values(store):
    w = torch.empty(4, 3, device="meta")
    shape = store.noise_shape((4, 3))
    z = None if shape is None else torch.empty(shape, device="meta")
    assert store.held(w, z).shape == (4, 3)
    scale = store.full_scale(w)
    assert isinstance(scale, float) or scale.shape == ()


def trained(*parts: str) -> tuple[Net, dict[str, torch.Tensor]]:
    """A net whose conv2 has these parts, and a copy of its state."""
    net = Net()
    if "rram" in parts:
        net.conv2.rram = torch.randn(8, 4, 3, 3, generator=generator(40))
    if "mask" in parts:
        net.conv2.mask = torch.randn(8, 4, 3, 3, generator=generator(41)) > 0
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    return net, {k: t.clone() for k, t in net.state_dict().items()}


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(state[k], other[k]) for k in state)


KINDS = [(), ("rram",), ("mask",), ("rram", "mask")]


@pytest.mark.parametrize("had", KINDS, ids=str)
@pytest.mark.parametrize("parts", KINDS, ids=str)
def test_load_gives_a_net_the_parts_of_the_state_and_takes_away_those_that_it_lacks(parts, had):
    net, _ = trained(*had)
    _, state = trained(*parts)
    state = {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}
    load(net, state)
    assert same(net.state_dict(), state)
    assert (net.conv2.rram is not None, net.conv2.mask is not None) == ("rram" in parts, "mask" in parts)
    assert net.conv1.rram is net.conv1.mask is None
    assert all(p.requires_grad for p in net.parameters())
    assert not any(b.requires_grad for b in net.buffers())


def test_load_copies():
    net, _ = trained()
    _, state = trained("rram", "mask")
    kept = {k: t.clone() for k, t in state.items()}
    load(net, state)
    with torch.no_grad():
        for t in net.state_dict().values():
            t.zero_()
    assert same(state, kept)
    load(net, state)
    load(net, net.state_dict())
    assert same(net.state_dict(), kept)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("conv3.weight"), "conv3.weight (absent)"),
        (lambda s: s.update({"conv9.weight": torch.ones(1)}), "conv9.weight (not in the network)"),
        (lambda s: s.update({"conv9.rram": torch.ones(1)}), "conv9.rram (not in the network)"),
        (lambda s: s.update({"norm.mask": torch.ones(2)}), "norm.mask (not in the network)"),
        (lambda s: s.update({"conv3.weight": torch.ones(8)}), "conv3.weight (another shape)"),
        # One number would be broadcast over all weights.
        (lambda s: s.update({"conv2.rram": torch.ones(1)}), "conv2.rram (another shape)"),
        (lambda s: s.update({"conv2.mask": torch.ones(8, 4, 3, 1)}), "conv2.mask (another shape)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("conv")],
         "conv1.weight (absent), conv2.weight (absent), conv3.weight (absent) and 1 more"),
    ],
)  # fmt: skip
def test_load_refuses_another_networks_tensors_and_changes_nothing(damage, message):
    net, before = trained("rram")
    _, state = trained("rram", "mask")
    damage(state)
    with pytest.raises(RunError) as e:
        load(net, state)
    assert str(e.value) == f"load: these tensors are of another network: {message}"
    assert same(net.state_dict(), before)


def test_load_gives_parts_the_weights_type_and_masks_bool():
    _, state = trained("rram", "mask")
    net = Net().double()
    load(net, {**state, "conv2.mask": state["conv2.mask"].float()})
    assert net.conv2.rram.dtype == torch.float64
    assert torch.equal(net.conv2.rram, state["conv2.rram"].double())
    assert net.conv2.mask.dtype == torch.bool and torch.equal(net.conv2.mask, state["conv2.mask"])


def test_load_takes_a_single_layer_too():
    layer, other = Layer(2, 3), Layer(2, 3, seed=1)
    other.rram = torch.ones(2, 3)
    load(layer, other.state_dict())
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.rram, other.rram)


def test_parts_travel_with_the_layer_and_the_chip_is_never_saved():
    net, state = trained("rram", "mask")
    place(net, {"conv*": Rram(bits=2, sigma=0.1)})
    draw(net, generator())
    assert same(net.state_dict(), state)
    moved = net.to("meta").conv2
    assert moved.rram.is_meta and moved.mask.is_meta and moved.z.is_meta


def test_ternary_cells_learn_under_variation():
    # Trap B10: the reference cannot. The target has levels of 0.5; the layer begins with 0.25 at the same places.
    sign = torch.randint(-1, 2, (6, 12), generator=generator(1)).float()
    layer = Layer(6, 12)
    layer.weight.data.copy_(sign * 0.25)
    layer.store = Ternary(sigma=0.1)
    x = torch.randn(64, 12, generator=generator(2))

    def loss():
        return (x @ (layer.store.read(layer) - sign * 0.5).t()).square().mean()

    chips, losses = generator(3), []
    for _ in range(40):
        draw(layer, chips)
        before = loss()
        layer.weight.grad = None
        before.backward()
        assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().sum() > 0
        with torch.no_grad():
            layer.weight -= 0.2 * layer.weight.grad
            after = loss()  # on the same chip
        losses.append((before.item(), after.item()))
    assert losses[0][1] < 0.95 * losses[0][0]
    # With the target itself in the cells, this spread leaves a loss of 0.02.
    assert sum(before for before, _ in losses[-10:]) / 10 < 0.25 * losses[0][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("store", STORES, ids=repr)
def test_a_cpu_generator_gives_the_same_chip_on_cuda_without_waiting_for_it(store):
    cpu, gpu = Net(), Net().cuda()
    for net in (cpu, gpu):
        place(net, {"conv*": store})
        draw(net, generator(3))
    torch.cuda.set_sync_debug_mode("error")
    try:
        held = gpu.conv1.store.read(gpu.conv1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(held.cpu(), cpu.conv1.store.read(cpu.conv1), atol=1e-6, rtol=1e-5)
