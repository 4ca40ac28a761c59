"""NeuroBench's metrics: against slow loops over the tensors of a real network, by hand, against NeuroBench itself."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.account import held
from hwsim.report.neurobench import COLUMNS, METRICS, metric_rows, metrics
from hwsim.report.table import csv_bytes
from hwsim.report.trace import Counts, Held, LayerCounts

IMAGES, STEPS = 3, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(coding: str = "poisson") -> VggBntt:
    """A small network in evaluation mode, with statistics of some images and a third of its weights pruned."""
    net = VggBntt((2, 3, "A", 4, "A"), 6, channels=2, size=(6, 5), classes=3, steps=STEPS, coding=coding,
                  generator=seeded(1))  # fmt: skip
    with torch.no_grad():
        for i, name in enumerate(("conv1", "conv2", "conv3", "fc1", "fc2")):
            weight = net.get_submodule(name).weight
            weight[torch.rand(weight.shape, generator=seeded(20 + i)) < 0.3] = 0
    for seed in range(8):
        net(1.5 * torch.randn(6, 2, 6, 5, generator=seeded(seed)), seeded(seed))
    with torch.no_grad():
        for norm in (net.bntt3, net.bntt_fc):
            norm.weight *= 4  # so that the last layers have inputs
    return net.eval()


class Watched(StepwiseVgg):
    """The network step by step, with every input of a layer, output of a neuron, and membrane kept."""

    def __init__(self, net: VggBntt):
        super().__init__(net)
        self.layers = {f"conv{i + 1}": conv for i, conv in enumerate(self.convs)} | {"fc1": self.fc1, "fc2": self.fc2}
        self.inputs: dict[str, list] = {name: [] for name in self.layers}
        for name, layer in self.layers.items():
            layer.register_forward_pre_hook(lambda _, x, name=name: self.inputs[name].append(x[0]))
        self.membranes: list[torch.Tensor] = []

    def _fire(self, u):
        spikes, after = super()._fire(u)
        self.membranes.append(after)
        return spikes, after


def ran(coding: str = "poisson") -> tuple[Counts, Watched, list[list[torch.Tensor]]]:
    """(counts of a network, the same one step by step, its spikes [step][layer])."""
    net = network(coding)
    x = net.encode(1.5 * torch.randn(IMAGES, 2, 6, 5, generator=seeded(50)), seeded(9))
    counts, watched = Counts(STEPS), Watched(net)
    with torch.no_grad():
        counts.add(net.run(x, account=())[1], IMAGES)
        _, spikes = watched(x)
    for name, layer in counts.layers.items():
        layer.held = list(held(net.get_submodule(name)))
    return counts, watched, spikes


def reached(x_BC: torch.Tensor, layer: torch.nn.Module, dense: bool) -> int:
    """Synapses behind inputs, one by one: all, or those where neither input nor weight is zero."""
    weight, x = layer.weight.detach(), x_BC
    if weight.dim() == 2:  # a linear layer is a convolution of one pixel
        weight, x, padding = weight[:, :, None, None], x[:, :, None, None], (0, 0)
    else:
        padding = layer.padding
    outputs, _, kh, kw = weight.shape
    height, width = x.shape[2] + 2 * padding[0] - kh + 1, x.shape[3] + 2 * padding[1] - kw + 1
    active, there = (x != 0).tolist(), (weight != 0).tolist()
    total = 0
    for b, c, h, w in itertools.product(*map(range, x.shape)):
        for i, j in itertools.product(range(kh), range(kw)):
            if not (0 <= h + padding[0] - i < height and 0 <= w + padding[1] - j < width):
                continue  # no output there
            if dense:
                total += outputs
            elif active[b][c][h][w]:
                total += sum(there[o][c][i][j] for o in range(outputs))
    return total


def of(counts: Counts, layer: str = "TOTAL") -> dict[str, float]:
    return {r["metric"]: r["value"] for r in metric_rows(counts, "run") if r["layer"] == layer}


@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
def test_operations_are_what_a_loop_over_every_input_and_weight_counts(coding):
    counts, watched, _ = ran(coding)
    total = {"Effective_MACs": 0, "Effective_ACs": 0, "Dense": 0}
    for name, layer in watched.layers.items():
        calls = watched.inputs[name]
        assert len(calls) == STEPS
        calls = calls[:1] if coding == "direct" and name == "conv1" else calls  # computed once an image
        nonzero = sum(reached(x, layer, dense=False) for x in calls) / IMAGES
        dense = sum(reached(x, layer, dense=True) for x in calls) / IMAGES
        is_spiking = all(((x == 0) | (x.abs() == 1)).all() for x in calls)
        expected = {"Effective_MACs": 0 if is_spiking else nonzero, "Effective_ACs": nonzero if is_spiking else 0}
        expected["Dense"] = dense
        mine = of(counts, name)
        assert {k: mine[k] for k in expected} == expected, name
        assert 0 < nonzero < dense
        total = {k: total[k] + expected[k] for k in total}
    assert {k: of(counts)[k] for k in total} == pytest.approx(total, rel=1e-12)
    assert total["Effective_MACs"] > 0 and total["Effective_ACs"] > 0


def test_activation_sparsity_counts_every_step_neuron_and_image():
    counts, _, spikes = ran()
    every = [s for step in spikes for s in step]
    silent = sum(int((s == 0).sum()) for s in every)
    assert of(counts)["activation_sparsity"] == pytest.approx(silent / sum(s.numel() for s in every), rel=1e-12)
    first_only = sum(int((s[0] == 0).sum()) for s in every) / sum(s[0].numel() for s in every)
    assert of(counts)["activation_sparsity"] != pytest.approx(first_only, rel=1e-3)
    for i, name in enumerate(("conv1", "conv2", "conv3", "fc1")):
        mine = [step[i] for step in spikes]
        zeros = sum(int((s == 0).sum()) for s in mine) / sum(s.numel() for s in mine)
        assert of(counts, name)["activation_sparsity"] == pytest.approx(zeros, rel=1e-12)
    assert "activation_sparsity" not in of(counts, "fc2")


def test_parameters_footprint_and_zeros_are_those_of_the_modules():
    counts, watched, _ = ran()
    mine, parameters = of(counts), list(watched.parameters())
    assert mine["parameter_count"] == sum(p.numel() for p in parameters)
    numbers = [*parameters, *(b for b in watched.buffers() if b.is_floating_point())]
    assert mine["footprint"] == sum(n.numel() * n.element_size() for n in numbers)
    weights = [layer.weight for layer in watched.layers.values()]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert mine["connection_sparsity"] == pytest.approx(zeros, rel=1e-12) and zeros > 0.2


def changed(membranes: list[torch.Tensor], layers: int) -> int:
    """Membranes that a step changed; at the first step all of them."""
    total = 0
    for layer in range(layers):
        before = None
        for after in membranes[layer::layers]:
            total += after.numel() if before is None else int((after != before).sum())
            before = after
    return total


def test_membrane_updates_are_all_that_may_change():
    counts, watched, _ = ran()
    assert of(counts)["membrane_updates"] == sum(m.numel() for m in watched.membranes) / IMAGES
    assert changed(watched.membranes, 4) <= sum(m.numel() for m in watched.membranes)


def one_layer(**other) -> LayerCounts:
    """A linear layer of 2 inputs and 3 outputs, 4 images of 2 steps: input 0 has 5 spikes, input 1 none; 6 spikes."""
    held = Held("synapse", 4, True, np.array([3, 2]), np.array([-1.0, 0.0, 1.0]), np.array([2, 1, 3]), 3, 3)
    settings = {
        "weight_shape": (3, 2), "image": (), "padding": (), "stride": (), "neurons": 3, "parts": 1, "signed": False,
        "unit": np.array([5, 0]), "fractional": np.array([0, 0]), "unit_T": np.array([2, 3]),
        "fractional_T": np.array([0, 0]), "spikes_T": np.array([2, 4]), "spikes_N": np.array([6, 0, 0]),
        "held": [held],
    }  # fmt: skip
    return LayerCounts(**settings | other)


def test_by_hand():
    assert metrics([one_layer()], steps=2, images=4) == {
        "footprint": 6 * 4 / 8 + 3 * 2 * 3 * 4, "parameter_count": 6 + 2 * 3,
        "connection_sparsity": pytest.approx(1 / 6), "activation_sparsity": 1 - 6 / (4 * 2 * 3),
        "Effective_MACs": 0, "Effective_ACs": 5 * 3 / 4, "Dense": 2 * 6,
        "membrane_updates": 6,
    }  # fmt: skip


def test_one_value_that_is_no_spike_makes_a_layers_operations_multiplications():
    mixed = metrics([one_layer(fractional=np.array([0, 1]))], steps=2, images=4)
    assert (mixed["Effective_MACs"], mixed["Effective_ACs"]) == ((5 * 3 + 2) / 4, 0)


def test_a_hybrid_layer_counts_both_of_its_arrays():
    layer = one_layer()
    layer.held = [*layer.held, Held("sram", 8, False, np.array([0, 1]), np.array([0.0, 1.0]), np.array([5, 1]), 3, 2)]
    mine = metrics([layer], steps=2, images=4)
    assert mine["parameter_count"] == 12 + 6 and mine["footprint"] == 3 + 6 + 72
    assert mine["connection_sparsity"] == pytest.approx(6 / 12)
    assert mine["Effective_ACs"] == (5 * 3 + 5 * 0) / 4 and mine["Dense"] == 24
    assert mine["membrane_updates"] == 6


def test_no_spikes_are_full_sparsity_and_no_operations():
    silent = one_layer(unit=np.array([0, 0]), unit_T=np.zeros(2, int), spikes_T=np.zeros(2, int))
    mine = metrics([silent], steps=2, images=4)
    assert (mine["activation_sparsity"], mine["Effective_ACs"], mine["Effective_MACs"]) == (1, 0, 0)
    assert mine["Dense"] == 12


def test_a_layer_without_neurons_has_no_normalization_and_no_activations():
    mine = metrics([one_layer(neurons=0)], steps=2, images=4)
    assert "activation_sparsity" not in mine
    assert mine["footprint"] == 3 and mine["parameter_count"] == 6 and mine["membrane_updates"] == 0


def test_members_of_an_ensemble_add_up_and_every_metric_has_a_unit():
    together = Counts(2, 4)
    for name in ("a", "b"):
        together.beside(Counts(2, 4, {"fc1": one_layer()}, {"fc1": np.zeros((2, 3), bool)}), name)
    rows = metric_rows(together, "run")
    assert list(dict.fromkeys(r["layer"] for r in rows)) == ["fc1@a", "fc1@b", "TOTAL"]
    assert set(of(together)) == set(METRICS)
    one, both = of(together, "fc1@a"), of(together)
    for metric in METRICS:
        same = metric in ("connection_sparsity", "activation_sparsity")
        assert both[metric] == pytest.approx(one[metric] * (1 if same else 2)), metric
    assert csv_bytes(rows, COLUMNS).decode().splitlines()[0] == "run_id,layer,metric,value,unit"
    assert all(r["unit"] == METRICS[r["metric"]][0] for r in rows)


# ------------------------------------------------------------------------------------------------ NeuroBench's own tool


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
def test_neurobench_says_the_same(coding):
    """`pip install --no-deps neurobench snntorch`, best in an environment of its own; skipped without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("neurobench")
        from neurobench.hooks.layer import LayerHook
        from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
        from neurobench.metrics.workload import ActivationSparsity, MembraneUpdates, SynapticOperations
        from neurobench.models import TorchModel
    counts, watched, spikes = ran(coding)
    model, mine = TorchModel(watched), of(counts)
    assert ParameterCount()(model) == mine["parameter_count"]
    counters = 8 * sum(b.dtype == torch.int64 for b in watched.buffers())
    assert Footprint()(model) == mine["footprint"] + counters and counters == 8 * STEPS * 4
    assert ConnectionSparsity()(model) == round(mine["connection_sparsity"], 4)

    model.connection_hooks = [LayerHook(layer) for layer in watched.layers.values()]
    for name, hook in zip(watched.layers, model.connection_hooks, strict=True):
        hook.inputs = [(x,) for x in watched.inputs[name]]
    data = (torch.zeros(IMAGES), None)
    theirs = SynapticOperations()(model, None, data)
    if coding == "direct":  # their hooks see the first layer computed at each step
        for key, own in of(counts, "conv1").items():
            if key in theirs:
                theirs[key] -= (STEPS - 1) * own
    assert theirs == pytest.approx({k: mine[k] for k in theirs}, rel=1e-12)

    hooks = []
    for i in range(4):
        after = watched.membranes[i::4]
        hooks.append(SimpleNamespace(
            activation_outputs=[step[i] for step in spikes], layer=watched, pre_fire_mem_potential=[None, *after[:-1]],
            post_fire_mem_potential=after,
        ))  # fmt: skip
    model.activation_hooks = hooks
    assert ActivationSparsity()(model, None, data) == pytest.approx(mine["activation_sparsity"], rel=1e-12)
    theirs = MembraneUpdates()(model, None, data)
    assert theirs == changed(watched.membranes, 4) / IMAGES
    assert theirs <= mine["membrane_updates"]
    print(f"membrane updates: theirs {theirs}, ours {mine['membrane_updates']}")
