"""BITnet6 and v101: the published numbers, gradients of every memory, sizes of images, counts for accounting."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hwsim.config import ConfigError
from hwsim.device.store import Rram, draw, place
from hwsim.network.arrivals import joined
from hwsim.network.bitnet import LAYERS, PLANS, Bitnet, build, rates
from hwsim.network.bitnet_neuron import SURROGATES
from hwsim.network.bitnet_stepwise import stepwise_counts

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bitnet.json").read_text(encoding="utf-8"))["net"]
X, TARGET = torch.tensor(GOLDEN["x"]), torch.tensor([GOLDEN["target"]])
MEMORIES = [("S1", "full", None), ("S1", "segments", 4), ("S1", "segments", None), ("S1", "bits", 4),
            ("S1", "bits", None), ("S2", "full", None), ("S2", "two-pass", None), ("S2", "two-pass", 4),
            ("S2", "segments", 5), ("S2", "bits", 6), ("S3", "full", None), ("S3", "segments", 1),
            ("S3", "segments", 4), ("S3", "bits", 1), ("S3", "bits", 4)]  # fmt: skip


def published(name: str = "bitnet6", **settings) -> Bitnet:
    """The golden file's network."""
    net = build(name, width=GOLDEN["fs"], channels=3, size=(32, 32), classes=3, steps=GOLDEN["steps"], **settings)
    net.load_state_dict({k.replace(".layer.", "."): torch.tensor(v) for k, v in GOLDEN["params"].items()})
    return net


def small(seed: int = 1, name: str = "bitnet6", steps: int = 7, size: int = 12, **settings) -> Bitnet:
    """A network with active layers: twice the usual weights."""
    g = torch.Generator().manual_seed(seed)
    more = {"width": 1 / 16, "channels": 2, "classes": 5, **settings}
    net = build(name, size=(size, size), steps=steps, generator=g, **more)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


def batch(seed: int = 2, images: int = 3, size: int = 12, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, size, size, generator=g), torch.randint(5, (images,), generator=g)


def gradients(net: Bitnet, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    (loss,) = net.losses(x, y)
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}


def by_autograd(net: Bitnet, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    counts, _ = stepwise_counts(net, x)
    wanted = torch.eye(counts.shape[1], dtype=counts.dtype)[y]
    loss = ((counts / net.steps - wanted) ** 2).mean()
    return dict(zip((n for n, _ in net.named_parameters()), torch.autograd.grad(loss, net.parameters()), strict=True))


def assert_close(found: dict, wanted: dict, most: float) -> None:
    for name, w in wanted.items():
        assert w.abs().max() > 0, name  # there is something to compare
        assert (found[name] - w).abs().max() <= most * w.abs().max(), name


# --- the published numbers ------------------------------------------------------------------------------------------


def test_every_spike_is_that_of_the_published_code():
    net = published()
    s, trace, state = net.over_time(net.encode(X))
    assert s.tolist() == GOLDEN["output"]
    for name, spikes in GOLDEN["spikes_per_layer_and_step"].items():
        here = trace[name]
        assert here["spikes"].tolist() == spikes
        zeros = 1 - sum(spikes) / (GOLDEN["steps"] * here["neurons"])
        assert zeros == pytest.approx(GOLDEN["zeros"][name], abs=1e-7)
    assert state[-1].tolist() == GOLDEN["state_of_mlp1"]
    assert rates(s).tolist() == GOLDEN["rates"] and net(X)[0].tolist() == GOLDEN["rates"]
    assert rates(s, select_first=False).tolist() == GOLDEN["rates_without_first"]
    every = stepwise_counts(net, X)[1]
    assert every[5][4].flatten().nonzero().flatten().tolist() == GOLDEN["layer4_at_step_5"]


def test_the_other_network_with_the_same_weights_gives_its_published_counts():
    net = published("bitnet6-v101")
    assert net.over_time(net.encode(X))[0].sum(0).tolist() == GOLDEN["counts_v101"]
    assert net.state_dict().keys() == published().state_dict().keys()


def test_the_loss_is_the_published_one():
    (loss,) = published().losses(X, TARGET)
    assert loss.item() == pytest.approx(GOLDEN["loss"], rel=1e-6)


@pytest.mark.parametrize(("surrogate", "memory", "segment"), MEMORIES)
def test_gradients_of_the_published_network_are_the_golden_ones(surrogate, memory, segment):
    found = gradients(published(surrogate=surrogate, memory=memory, segment=segment), X, TARGET)
    if surrogate in GOLDEN["ours"]:
        golden = GOLDEN["ours"][surrogate]
        wanted = {k.replace(".layer.", "."): torch.tensor(v) for k, v in golden.items()}
    else:
        wanted = by_autograd(published(surrogate=surrogate), X, TARGET)
    assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize(
    ("fs", "classes", "parameters"), [(4, 10, 25_701_130), (4, 200, 31_927_240), (5, 10, 40_052_170)]
)
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", PLANS)
def test_networks_have_the_published_number_of_parameters(name, size, fs, classes, parameters):
    with torch.device("meta"):
        net = build(name, width=fs, channels=3, size=(size, size), classes=classes, steps=1)
    assert sum(p.numel() for p in net.parameters()) == parameters


# --- memory that does not grow with the steps -------------------------------------------------------------------------


@pytest.mark.parametrize(("surrogate", "memory", "segment"), MEMORIES)
def test_every_memory_gives_the_gradient_of_plain_autograd_in_float64(surrogate, memory, segment):
    x, y = (t.double() if t.is_floating_point() else t for t in batch())
    net = small(surrogate=surrogate, memory=memory, segment=segment).double()
    counts = stepwise_counts(net, x)[0]
    assert 0 < counts.sum() < counts.numel() * net.steps
    assert torch.equal(net.counts(x).detach(), counts.detach())
    assert_close(gradients(net, x, y), by_autograd(net, x, y), 1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_two_hundred_steps_in_float32_give_the_gradient_of_plain_autograd(surrogate):
    x, y = batch(images=2, size=8)
    net = small(surrogate=surrogate, steps=200, size=8, width=1 / 32)
    assert net.memory == ("two-pass" if surrogate == "S2" else "bits") and net.segment == 1
    assert_close(gradients(net, x, y), by_autograd(net, x, y), 1e-5)


@pytest.mark.parametrize(("surrogate", "memory"), [("S2", "two-pass"), ("S1", "bits"), ("S3", "segments")])
def test_the_image_gets_its_gradient_too(surrogate, memory):
    x, y = batch()
    found = []
    for how in (memory, "full"):
        image = x.clone().requires_grad_()
        (loss,) = small(surrogate=surrogate, memory=how).losses(image, y)
        loss.backward()
        found.append(image.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * found[1].abs().max().item())


@pytest.mark.parametrize(
    ("surrogate", "memory", "as_in"),
    [("S2", "two-pass", 4), ("S1", "bits", 4), ("S3", "bits", 6), ("S1", "segments", 14)],
)
def test_forty_eight_steps_fit_into_what_few_take_in_one_graph(surrogate, memory, as_in):
    def peak(steps: int, how: str) -> int:
        net, (x, y) = small(surrogate=surrogate, memory=how, steps=steps, size=16), batch(images=16, size=16)
        (loss,) = net.losses(x, y)  # once, so that what is made on first use is no part of it
        loss.backward()
        with torch.profiler.profile(profile_memory=True) as profile:
            (loss,) = net.losses(x, y)
            loss.backward()
        now = most = 0
        for event in profile.profiler.kineto_results.events():
            now += event.nbytes() if event.name() == "[memory]" else 0
            most = max(most, now)
        return most

    few, many = peak(as_in, "full"), peak(48, memory)
    assert many < few < peak(48, "full") / 3


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_weights_on_a_device_learn_through_every_memory_alike(surrogate):
    x, y = batch()
    found = []
    for memory in ("full", "bits"):
        net = small(surrogate=surrogate, memory=memory)
        place(net, {"layer*": Rram(bits=4, sigma=0.2)})
        draw(net, torch.Generator().manual_seed(5))
        found.append(gradients(net, x, y))
    assert_close(*found, 1e-5)


@pytest.mark.parametrize(("surrogate", "memory"), [("S2", "two-pass"), ("S1", "bits"), ("S3", "segments")])
def test_under_autocast_membranes_stay_float32_and_both_passes_compute_alike(surrogate, memory):
    x, y = batch()
    found = []
    for how in (memory, "full"):
        net = small(surrogate=surrogate, memory=how)
        with torch.autocast("cpu", torch.bfloat16):
            (loss,) = net.losses(x, y)
            state = net.over_time(net.encode(x))[2]
        loss.backward()
        assert {m.dtype for m in state} == {torch.float32}
        found.append({name: p.grad for name, p in net.named_parameters()})
        assert {g.dtype for g in found[-1].values()} == {torch.float32}
    exact = gradients(small(surrogate=surrogate), x, y)
    assert_close(*found, 2e-2)  # sums of bfloat16 products in another order
    assert not torch.equal(found[0]["layer4.weight"], exact["layer4.weight"])  # autocast was on


def test_memory_that_does_not_go_with_the_surrogate_is_refused():
    with pytest.raises(ConfigError, match="two-pass goes with S2 alone"):
        small(surrogate="S1", memory="two-pass")


# --- time, images, counts ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_membranes():
    net, (x, _) = small(), batch()
    image = net.encode(x)
    whole, _, last = net.over_time(image, 9)
    first, _, state = net.over_time(image, 4)
    second, _, after = net.over_time(image, 5, state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(last, after, strict=True))
    with pytest.raises(ValueError, match="a state of 3 images for 2 images"):
        net.over_time(image[:, :2], 1, state)


def test_a_longer_run_begins_like_a_shorter_one():
    net, (x, _) = small(), batch()
    long, short = (net.over_time(net.encode(x), steps)[0] for steps in (28, 7))
    assert torch.equal(long[:7], short) and torch.equal(rates(short), net(x)[0])


@pytest.mark.parametrize(
    ("size", "name", "inputs"), [(32, "bitnet6", 16), (64, "bitnet6", 16), (64, "bitnet6-v101", 16),
                                 (28, "bitnet6", 9), (8, "bitnet6-v101", 1)]
)  # fmt: skip
def test_images_of_every_size_are_pooled_and_mlp1_takes_what_is_left(size, name, inputs):
    net = small(name=name, size=size, steps=2)
    assert net.mlp1.weight.shape[1] == inputs * net.layer4.weight.shape[0]
    x, _ = batch(size=size)
    assert net(x)[0].shape == (3, 5)
    every = stepwise_counts(net, x)[1]
    assert [s[0].numel() for s in every[0]] == net.neurons


def test_places_of_the_layers_are_those_of_the_plan():
    shapes = {name: [int(n / c) for n, c in zip(small(name=name, size=32).neurons, (4, 4, 8, 16, 32, 5), strict=True)]
              for name in PLANS}  # fmt: skip
    assert shapes["bitnet6"] == [1024, 1024, 256, 64, 64, 1]
    assert shapes["bitnet6-v101"] == [1024, 1024, 256, 256, 64, 1]


def test_an_image_that_cannot_be_pooled_and_a_scale_without_channels_are_explained():
    with pytest.raises(ConfigError, match=r"halves the image 3 times; it needs 8x8 pixels, the data have 7x7"):
        small(size=7)
    with pytest.raises(ConfigError, match=r"net.width: 0.01 leaves no channel of 64; take at least 1/64"):
        small(width=0.01)


def test_weights_begin_within_their_bound_and_fill_it():
    net = build("bitnet6", width=0.5, channels=3, size=(32, 32), classes=10, steps=1)
    for name in LAYERS:
        layer = net.get_submodule(name)
        bound = layer.weight[0].numel() ** -0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound
    same = [build("bitnet6", width=0.1, channels=1, size=(8, 8), classes=2, steps=1,
                  generator=torch.Generator().manual_seed(3)).state_dict() for _ in range(2)]  # fmt: skip
    assert all(torch.equal(same[0][k], same[1][k]) for k in same[0])


def test_counts_are_those_of_every_step_looked_at():
    net, (x, _) = small(steps=6), batch()  # segments of 4 and 2 steps
    _, trace = net(x, account=[8])
    every = stepwise_counts(net, x)[1]
    spikes = [torch.stack([step[i] for step in every]) for i in range(6)]
    inputs = x[None]
    for i, name in enumerate(LAYERS):
        here, s = trace[name], spikes[i]
        assert here["spikes"].tolist() == s.sum((1, *range(2, s.dim()))).tolist()
        assert here["neurons"] == s[0, 0].numel()
        assert torch.equal(here["spikes_N"], s.flatten(2).sum((0, 1)).long())
        assert torch.equal(here["raster"], s[:, 0].flatten(1) != 0)
        unit, fractional = (inputs.sum((0, 1)), None) if i else (None, (inputs != 0).sum((0, 1)))
        if i:
            assert torch.equal(here["unit"], unit.long()) and not here["fractional"].any()
            assert here["unit_T"].tolist() == inputs.flatten(1).sum(1).tolist() and here["parts"] == 1
        else:
            assert torch.equal(here["fractional"], fractional) and not here["unit"].any() and here["parts"] == 0
        assert here["signed"] == (i == 0) and len(here["unit_T"]) == (6 if i else 1)
        inputs = s
        if i < 5 and net.pools[i]:
            inputs = F.max_pool2d(s.flatten(0, 1), 2).unflatten(0, (6, 3))
        assert here["pooled_spikes"].tolist() == inputs.flatten(1).sum(1).tolist()
        assert here["pooled_neurons"] == inputs[0, 0].numel()
        inputs = inputs.flatten(2) if i == 4 else inputs


def test_windows_of_joined_counts_are_added_up():
    parts = [{"windows": {4: torch.tensor([1, 2])}, "spikes": torch.tensor([3]), "neurons": 7} for _ in range(2)]
    out = joined(parts)
    assert out["windows"][4].tolist() == [2, 4] and out["spikes"].tolist() == [3, 3] and out["neurons"] == 7
    assert parts[0]["windows"][4].tolist() == [1, 2]


def test_the_criterion_is_the_mean_squared_difference_to_one_hot():
    net, r, y = small(), torch.rand(4, 5), torch.tensor([0, 2, 4, 4])
    wanted = [((r[i] - torch.eye(5)[y[i]]) ** 2).mean().item() for i in range(4)]
    assert net.criterion(r, y).item() == pytest.approx(sum(wanted) / 4)
    assert net.criterion(r, y, reduction="sum").item() == pytest.approx(sum(wanted))


@pytest.mark.gpu
@pytest.mark.parametrize(("surrogate", "memory", "segment"), MEMORIES)
def test_cuda_gives_the_gradient_of_the_cpu(surrogate, memory, segment):
    x, y = (t.double() if t.is_floating_point() else t for t in batch())
    found = []
    for device in ("cpu", "cuda"):
        net = small(surrogate=surrogate, memory=memory, segment=segment).double().to(device)
        found.append({k: g.cpu() for k, g in gradients(net, x.to(device), y.to(device)).items()})
    assert_close(*found, 1e-10)
