"""Conversion into spikes: golden vectors of the published code, its schedule by a loop of our own, what is refused."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_vgg15 import images, tiny

from hwsim.config import ConfigError, RunError
from hwsim.device.store import Ideal, Rram, draw, place
from hwsim.device.threshold import Unsigned
from hwsim.network import spiking
from hwsim.network.convert import filter_scales, percentiles, set_thresholds, unsupported
from hwsim.network.integrate import integrate_and_fire
from hwsim.network.spiking import Spiking
from hwsim.network.vgg15 import Vgg15, build
from hwsim.network.vgg_bntt import VggBntt

GOLDEN = json.loads((Path(__file__).parent / "golden" / "conversion.json").read_text())
NORMALIZED = GOLDEN["tiny_net"]["percentile_normalisation"]
SIMULATED = GOLDEN["spiking_simulation"]["one_step_T5"]
LAYERS = {"1": "conv1", "5": "conv2", "8": "conv3", "11": "fc1"}


def of(net: Vgg15, steps: int, one_step: bool = True, q: float = 99.7, x: torch.Tensor | None = None) -> Spiking:
    out = Spiking(net, steps=steps, one_step=one_step)
    set_thresholds(out, percentiles(net, q, lambda: [images() if x is None else x]))
    return out


def random_net(seed: int, **settings) -> Vgg15:
    plan = {"plan": (3, 4, "A", 5, "A"), "hidden": 7, "channels": 2, "size": (6, 5), "classes": 3} | settings
    net = Vgg15(**plan, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        net.fc1.weight.mul_(30)
    return net


# --- the neuron -----------------------------------------------------------------------------------------------------


def test_the_neuron_matches_golden():
    golden = GOLDEN["if_layer_scalar"]
    current = torch.tensor(golden["current"])[:, None]
    spikes, v = integrate_and_fire(current, None, 1.0)
    assert torch.equal(spikes[:, 0], torch.tensor(golden["spike"]).float())
    assert torch.equal(v[0], torch.tensor(golden["v_after"])[-1])
    assert spikes.sum((1, 2)).cumsum(0).tolist() == golden["total_spikes_attribute"][1:]
    for t, wanted in enumerate(golden["v_after"]):
        assert torch.equal(integrate_and_fire(current[: t + 1], None, 1.0)[1][0], torch.tensor(wanted))


def test_a_neuron_at_threshold_fires_once_however_large_its_membrane_is():
    spikes, v = integrate_and_fire(torch.tensor([[1.0, 5.0, 0.99]])[:, None], None, 1.0)
    assert spikes.flatten().tolist() == [1, 1, 0] and v.flatten().tolist() == pytest.approx([0, 4, 0.99])


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5))
def test_what_went_in_is_what_was_fired_and_what_is_left(seed, first, second):
    x = torch.randn(first + second, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    theta = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    spikes, v = integrate_and_fire(x, None, theta)
    torch.testing.assert_close(spikes.sum(0) * theta + v, x.sum(0))
    one, kept = integrate_and_fire(x[:first], None, theta)
    before = kept.clone()
    two, end = integrate_and_fire(x[first:], kept, theta)
    assert torch.equal(torch.cat([one, two]), spikes) and torch.equal(end, v) and torch.equal(kept, before)


def test_a_constant_current_need_not_be_repeated():
    x = torch.randn(1, 2, 3, 4, 4).contiguous(memory_format=torch.contiguous_format)
    once, v = integrate_and_fire(x, None, 1.0, steps=9)
    each, w = integrate_and_fire(x.expand(9, -1, -1, -1, -1), None, 1.0)
    assert torch.equal(once, each) and torch.equal(v, w)


# --- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", list(NORMALIZED))
def test_percentiles_and_scales_match_golden(q):
    net, golden = tiny(), NORMALIZED[q]
    found = percentiles(net, float(q), lambda: images().split(4))
    assert list(found.values()) == pytest.approx(golden["lambda_per_ReLU"], rel=3e-7)
    out = Spiking(net, steps=5, one_step=True)
    set_thresholds(out, found)
    thetas = [float(out.get_submodule(f"threshold_{n}")()[0]) for n in out.pooled]
    assert [1 / t for t in thetas] == pytest.approx(golden["weight_scale_applied"][:-1], rel=1e-6)
    for (name, layer), theirs in zip(net.layers.items(), golden.get("normalised_weights", []), strict=False):
        scale = 1 / thetas[list(out.pooled).index(name)] if name in out.pooled else 1.0
        torch.testing.assert_close(layer.weight.detach() * scale, torch.tensor(theirs), rtol=1e-6, atol=1e-7)


def test_batches_of_any_size_give_the_same_percentiles():
    net, x = random_net(1), torch.randn(23, 2, 6, 5)
    fives, ones = (list(percentiles(net, 99.0, lambda n=n: x.split(n)).values()) for n in (5, 1))
    assert fives == pytest.approx(ones, rel=2e-6)


def test_dropout_is_off_in_calibration_unless_asked_and_then_repeats_itself():
    net, x = random_net(2), torch.randn(40, 2, 6, 5)
    net.train()
    off = percentiles(net, 99.0, lambda: [x])
    on = percentiles(net, 99.0, lambda: [x], lambda: torch.Generator().manual_seed(3))
    assert net.training and off["conv1"] == on["conv1"] and off["fc1"] != on["fc1"]
    assert on == percentiles(net, 99.0, lambda: [x], lambda: torch.Generator().manual_seed(3))
    assert off == percentiles(net.eval(), 99.0, lambda: [x]) and not net.training


def test_a_silent_layer_is_explained():
    net = random_net(3)
    with torch.no_grad():
        net.conv2.weight.fill_(-1.0)
    with pytest.raises(RunError, match="conv2, conv3, fc1: the percentile of the activations is 0.*raise --percentile"):
        of(net, 5, x=torch.randn(8, 2, 6, 5))


def test_a_scale_that_collapses_to_zero_is_explained():
    net = random_net(4)
    place(net, {"conv3": Rram(1, "binary")})
    with torch.no_grad():
        net.conv3.weight[2] = 0
    with pytest.raises(RunError, match="conv3: the scale of 1 filters is 0 \\(the first is 2\\)"):
        of(net, 5, x=torch.randn(8, 2, 6, 5))


@pytest.mark.parametrize("q", [0.0, 100.5, -3.0])
def test_a_percentile_outside_its_range_is_explained(q):
    with pytest.raises(ConfigError, match="above 0 and at most 100"):
        percentiles(tiny(), q, lambda: [images()])


def test_diverged_activations_are_explained():
    with pytest.raises(RunError, match="negative or not finite.*diverged"):
        percentiles(tiny(), 99.0, lambda: [images() * float("inf")])


def test_layers_without_a_spiking_counterpart_are_named():
    net = VggBntt((4, "A"), 8, channels=1, size=(4, 4), classes=2, steps=3)
    assert unsupported(net) == ["bntt1 (BNTT)", "bntt_fc (BNTT)"]
    assert unsupported(tiny()) == []
    assert unsupported(torch.nn.Sequential(torch.nn.Linear(2, 2))) == ["0 (has a bias)"]
    with pytest.raises(ConfigError, match=r"no spiking counterpart for bntt1 \(BNTT\).*take vgg6-abr"):
        percentiles(net, 99.0, lambda: [torch.zeros(1, 1, 4, 4)])


# --- simulation -----------------------------------------------------------------------------------------------------


def test_one_step_simulation_matches_golden():
    net, x = tiny(), images()[:2]
    out = of(net, 5)
    sums, trace, v = out._simulate(out.encode(x), [64], every_step=True)
    torch.testing.assert_close(sums, torch.tensor(SIMULATED["summed_output_input_current_per_step"]), rtol=0, atol=0)
    assert sums.argmax(2).tolist() == SIMULATED["prediction_per_step"]
    per_step = next(value for key, value in SIMULATED.items() if key.startswith("spikes_per_layer"))
    for theirs, name in LAYERS.items():
        golden = torch.tensor(per_step[theirs])
        assert torch.equal(trace[name]["spikes"], golden.flatten(1).sum(1))
        assert torch.equal(trace[name]["raster"], golden[:, 0].flatten(1).bool())
        counts = torch.tensor(SIMULATED["spike_count_over_T_per_neuron"][theirs])
        assert torch.equal(trace[name]["spikes_N"], counts.flatten(1).sum(0).long())
        theta = out.get_submodule(f"threshold_{name}")()
        mine = v[name] / theta.reshape(-1, *[1] * (v[name].dim() - 2))
        torch.testing.assert_close(mine, torch.tensor(SIMULATED["final_v"][theirs]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out(x)[0], sums[-1] / 5)


def as_published(net: Vgg15, thetas: dict[str, torch.Tensor], x: torch.Tensor, steps: int):
    """(outputs [T, B, K], spikes a layer [T, ...]): one node a layer and average, each reads its source's last step."""
    nodes = [(n, kind) for n, pools in net.pooled.items() for kind in (["through"] if pools else []) + ["neuron"]]
    v, out = {}, torch.zeros(len(x), 3)
    outs, spikes = [], {n: [] for n in net.pooled}
    last: dict = {}
    for _ in range(steps):
        now, source = {"image": x}, "image"
        for name, kind in nodes:
            key, before = f"{name} {kind}", last.get(source)
            source = key
            if before is None:
                if kind == "neuron":
                    spikes[name].append(None)
                continue
            pools = net.pooled[name]
            current = before
            if kind == "through" or not pools:
                before = before.flatten(1) if name == "fc1" else before
                current = net.get_submodule(name)(before[None])[0]
            if kind == "through":
                now[key] = current
                continue
            current = F.avg_pool2d(current, 2) if pools else current
            theta = thetas[name].reshape(-1, *[1] * (current.dim() - 2))
            v[name] = v.get(name, 0) + current
            s = (v[name] >= theta).float()
            v[name] = v[name] - s * theta
            now[key] = s
            spikes[name].append(s)
        if "fc1 neuron" in last:
            out = out + net.fc2(last["fc1 neuron"][None])[0]
        outs.append(out)
        last = now
    return torch.stack(outs), spikes


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 5, 6])
def test_the_pipeline_is_the_published_schedule(seed):
    net, x = random_net(seed), torch.randn(4, 2, 6, 5)
    out = of(net, 19, one_step=False, q=99.0, x=x)
    thetas = {n: out.get_submodule(f"threshold_{n}")() for n in out.pooled}
    wanted, spikes = as_published(net, thetas, x, 19)
    sums, trace, _ = out._simulate(out.encode(x), [], every_step=True)
    torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-5)
    assert out.delay == 7 and out.delays == {"conv1": 1, "conv2": 3, "conv3": 5, "fc1": 6}
    for name, each in spikes.items():
        assert trace[name]["spikes"].tolist() == [0 if s is None else int(s.sum()) for s in each]
    assert wanted.abs().max() > 0 and len(sums) == 19


@pytest.mark.parametrize(("one_step", "first"), [(False, 20), (True, 0)])
def test_the_first_signal_leaves_vgg15_when_published(one_step, first):
    net = build("vgg15", width=1 / 64, channels=3, size=(32, 32), classes=2)
    with torch.no_grad():
        for layer in net.layers.values():
            layer.weight.fill_(1.0)
    out = Spiking(net, steps=22, one_step=one_step)
    sums = out.outputs(torch.ones(1, 3, 32, 32))
    assert int((sums.abs().sum((1, 2)) > 0).float().argmax()) == first


def test_too_few_steps_for_the_pipeline_are_explained():
    with pytest.raises(ConfigError, match="7 steps, but in a pipeline the first signal reaches the output at step 8"):
        Spiking(tiny(), steps=7, one_step=False)
    assert Spiking(tiny(), steps=8, one_step=False).effective_steps == 1


@pytest.mark.parametrize("one_step", [True, False])
def test_segments_of_time_change_nothing(monkeypatch, one_step):
    net, x = random_net(7), torch.randn(3, 2, 6, 5)
    out = of(net, 17, one_step, q=99.0, x=x)
    whole = out._simulate(out.encode(x), [8], every_step=True)
    monkeypatch.setitem(spiking.BUFFER, "cpu", 4 * x.shape[0] * 3 * 30)
    parts = out._simulate(out.encode(x), [8], every_step=True)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-6, atol=1e-6)
    for name, here in whole[1].items():
        for key, value in here.items():
            other = parts[1][name][key]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other), (name, key)
            elif key == "windows":
                assert all(torch.equal(value[rows], other[rows]) for rows in value)
            else:
                assert value == other


@torch.no_grad()
def test_outputs_approach_the_ordinary_networks():
    net, x = random_net(8), torch.randn(6, 2, 6, 5)
    lambdas = percentiles(net, 100.0, lambda: [x])
    gaps = []
    for steps in (20, 400):
        out = Spiking(net, steps=steps, one_step=True)
        set_thresholds(out, lambdas)
        gaps.append(float((out(x)[0] * lambdas["fc1"] - net(x)[0]).abs().max() / net(x)[0].abs().max()))
    assert gaps[1] < 0.05 < gaps[0]


def test_a_trace_has_what_accounting_needs():
    net, x = random_net(9), torch.randn(3, 2, 6, 5)
    _, trace = of(net, 12, False, 99.0, x)(x, account=[16])
    assert list(trace) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert len(trace["conv1"]["fractional_T"]) == 1 and trace["conv1"]["parts"] == 0  # computed once an image
    for before, name in zip(list(trace), list(trace)[1:], strict=False):
        here = trace[name]
        assert len(here["spikes"]) == len(here["raster"]) == len(here["unit_T"]) == 12 and here["parts"] == 1
        assert not here["fractional"].any() and int(here["unit"].sum()) == int(here["unit_T"].sum())
        assert int(here["unit_T"].sum()) <= int(trace[before]["spikes"].sum())
    assert trace["fc2"]["neurons"] == 0 and trace["fc1"]["neurons"] == 7


# --- cells ----------------------------------------------------------------------------------------------------------


def test_thresholds_are_stored_in_units_of_the_filters_scale():
    net, x = random_net(10), torch.randn(8, 2, 6, 5)
    place(net, {"conv2": Rram(1, "binary")})
    lambdas = percentiles(net, 99.0, lambda: [x])
    out = Spiking(net, steps=5, one_step=True)
    set_thresholds(out, lambdas)
    alpha = net.conv2.weight.detach().abs().mean((1, 2, 3))
    ratio = lambdas["conv2"] / lambdas["conv1"]
    torch.testing.assert_close(filter_scales(net.conv2), alpha)
    torch.testing.assert_close(out.threshold_conv2.weight.detach(), ratio / alpha)
    torch.testing.assert_close(out.threshold_conv2().detach(), torch.full((4,), ratio))
    assert torch.equal(out.threshold_conv1.unit, torch.ones(3))


def test_cells_of_thresholds_spread_with_the_chip_and_weights_meet_the_same_one():
    net, x = random_net(11), torch.randn(8, 2, 6, 5)
    place(net, {"conv2": Rram(1, "binary", sigma=0.2)})
    out = of(net, 5, x=x)
    exact = out.threshold_conv3().detach()
    place(out, {"threshold_*": Unsigned(8, sigma=0.3)})
    draw(out, torch.Generator().manual_seed(1))
    z = out.conv2.z.clone()
    stored = out.threshold_conv3.store.held(out.threshold_conv3.weight.detach()) * out.threshold_conv3.unit
    factor = torch.exp(0.3 * out.threshold_conv3.z)
    torch.testing.assert_close(out.threshold_conv3().detach(), stored * factor)
    assert not torch.allclose(exact, stored * factor)
    place(out, {"threshold_*": Ideal()})
    draw(out, torch.Generator().manual_seed(1))
    assert torch.equal(out.conv2.z, z)  # the ordinary network's chip too


@given(st.integers(1, 8), st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_stored_thresholds_are_positive_levels_close_to_what_was_asked(bits, values):
    theta = torch.tensor(values)
    held = Unsigned(bits).held(theta)
    n = 2**bits - 1
    codes = held / theta.max() * n
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert float(held.min()) > 0
    above = theta >= theta.max() / n
    assert float((held - theta)[above].abs().max()) <= float(theta.max()) / n / 2 * 1.001


def test_threshold_cells_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="bits.*0"):
        Unsigned(0)
    with pytest.raises(ConfigError, match="sigma"):
        Unsigned(4, sigma=-1.0)
    with pytest.raises(ConfigError, match="clamp"):
        Unsigned(4, clamp="some")
