"""Pruning: the group lasso and its gradient, masks, the report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from hwsim.config import ConfigError
from hwsim.device.quantize import xnor
from hwsim.recipe.prune import (
    Sparsity,
    fix_masks,
    group_lasso,
    hybrid_layers,
    magnitude_mask,
    misfits,
    refresh_masks,
    sparsity,
    total,
    weight_groups,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prune.json").read_text(encoding="utf-8"))
MASK, LASSO, REPORT = GOLDEN["prune_mask"], GOLDEN["group_lasso"], GOLDEN["sparsity_report"]
LASSO_IDS = [f"ratio{case['ratio']}-{case['second']}" for case in LASSO["cases"]]


class Layer(nn.Module):
    """What pruning needs of a layer."""

    def __init__(self, weight: torch.Tensor, rram: torch.Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.store = None
        self.register_buffer("z", None)
        self.register_buffer("rram", rram)
        self.register_buffer("mask", None)


def uneven(shape, device=None) -> torch.Tensor:
    """Normals whose size differs from one output channel to the next, so that a mask by group parts them."""
    return torch.randn(shape, device=device) * torch.linspace(0.25, 1, shape[0], device=device).reshape(
        -1, *[1] * (len(shape) - 1)
    )


def network(hybrid=("conv1", "conv2", "fc1"), device=None) -> nn.ModuleDict:
    """Layers of 3, 8, 4 and 8 inputs."""
    shapes = {"conv1": (4, 3, 3, 3), "conv2": (2, 8, 3, 3), "fc1": (5, 4), "fc2": (6, 8)}
    weights = {name: uneven(shape, device) for name, shape in shapes.items()}
    return nn.ModuleDict({n: Layer(w, torch.ones_like(w) if n in hybrid else None) for n, w in weights.items()})


def numpy_groups(w: np.ndarray, group: int) -> dict[tuple[int, int], tuple]:
    """{(output, run): index of the group's weights}, written out by the definition."""
    return {
        (o, run): (o, slice(run * group, (run + 1) * group))
        for o in range(w.shape[0])
        for run in range(w.shape[1] // group)
    }


def numpy_lasso(w: np.ndarray, group: int, ratio: float, lamda: float) -> tuple[float, np.ndarray, float]:
    """(penalty, gradient by the formula, distance of the nearest norm from the cap) of one layer, in NumPy."""
    groups = numpy_groups(w, group)
    norms = {j: float(np.sqrt((w[at] ** 2).sum())) for j, at in groups.items()}
    cap = ratio * sum(norms.values()) / len(norms)
    capped = sum(a > cap for a in norms.values())
    gradient = np.zeros_like(w)
    for j, at in groups.items():
        if norms[j] > 0:
            gradient[at] = lamda * ((norms[j] < cap) + ratio * capped / len(norms)) * w[at] / norms[j]
    return lamda * sum(min(a, cap) for a in norms.values()), gradient, min(abs(a - cap) for a in norms.values())


@st.composite
def grouped(draw, zeros=True) -> tuple[torch.Tensor, int]:
    """(float64 weight of a convolution or linear layer, channels a group), some groups zero, sizes far apart."""
    outputs, runs, group = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    w = rng.standard_normal((outputs, runs, group, *kernel))
    w *= np.exp2(rng.integers(-3, 4, (outputs, runs) + (1,) * (w.ndim - 2)))
    if zeros:
        w *= rng.random((outputs, runs) + (1,) * (w.ndim - 2)) < 0.7
    return torch.tensor(w.reshape(outputs, runs * group, *kernel)), group


ratios = st.floats(0.1, 3.0)


def lasso_and_gradient(weights, **settings) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [w.clone().requires_grad_() for w in weights]
    penalty = group_lasso(leaves, **settings)
    return penalty.detach(), list(torch.autograd.grad(penalty, leaves))


# Groups.


def test_a_group_is_one_output_channel_a_run_of_inputs_and_all_kernel_places():
    w = torch.arange(2 * 6 * 3 * 3).reshape(2, 6, 3, 3)
    groups = weight_groups(w, 2)
    assert groups.shape == (2, 3, 18)
    for (o, run), at in numpy_groups(w.numpy(), 2).items():
        assert groups[o, run].tolist() == w.numpy()[at].ravel().tolist()


def test_groups_of_a_linear_layer_are_runs_of_its_inputs():
    assert weight_groups(torch.arange(8).reshape(2, 4), 2).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("group", [16, 2, 0, -1])
def test_groups_that_do_not_divide_the_inputs_are_refused(group):
    expected = re.escape(
        f"weight_groups: weight of shape (4, 3, 3, 3): groups of {group} do not divide 3 input channels"
    )
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        weight_groups(torch.zeros(4, 3, 3, 3), group)


def test_misfits_name_the_layer_its_channels_and_the_groups_that_fit():
    shapes = {"conv1": (8, 3, 3, 3), "conv2": (24, 8, 3, 3), "conv3": (4, 24, 3, 3), "fc1": (10, 36)}
    assert misfits(shapes, 8) == [
        "fc1: groups of 8 do not divide its 36 input channels; groups of 1, 2, 4 fit every layer after the first"
    ]
    assert [m.split(":")[0] for m in misfits(shapes, 16)] == ["conv2", "conv3", "fc1"]
    assert misfits(shapes, 4) == []
    assert len(misfits(shapes, 0)) == 3


def test_the_first_layer_alone_never_misfits():
    assert misfits({"conv1": (8, 3, 3, 3)}, 16) == []
    assert misfits({}, 16) == []


@given(st.lists(st.integers(1, 48), min_size=1, max_size=4), st.integers(1, 48))
def test_every_group_that_a_misfit_offers_fits(inputs, group):
    shapes = {"first": (1, 1)} | {f"fc{i}": (1, n) for i, n in enumerate(inputs)}
    messages = misfits(shapes, group)
    assert len(messages) == sum(n % group != 0 for n in inputs)
    for message in messages:
        offered = [int(g) for g in message.split("; groups of ")[1].split(" fit")[0].split(", ")]
        assert offered == [g for g in range(1, 49) if all(n % g == 0 for n in inputs)]
        assert all(misfits(shapes, g) == [] for g in offered)


# The penalty.


def golden_weights(case: dict) -> list[torch.Tensor]:
    return [torch.tensor(LASSO[case["second"]]), torch.tensor(LASSO["conv3"])]


@pytest.mark.parametrize("case", LASSO["cases"], ids=LASSO_IDS)
def test_lasso_matches_the_reference(case):
    settings = {"group": LASSO["group"], "ratio": case["ratio"], "lamda": case["lamda"]}
    weights = golden_weights(case)
    norms = torch.linalg.vector_norm(weight_groups(weights[0], LASSO["group"]), dim=2)
    torch.testing.assert_close(norms.flatten(), torch.tensor(case["group_norms_conv2"]), rtol=1e-6, atol=0)
    for weight, term in zip(weights, case["layer_terms"], strict=True):
        torch.testing.assert_close(group_lasso([weight], **settings | {"lamda": 1}).item(), term, rtol=1e-6, atol=0)
    torch.testing.assert_close(group_lasso(weights, **settings).item(), case["loss"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", LASSO["cases"], ids=LASSO_IDS)
def test_lasso_gradient_matches_the_reference_and_is_zero_where_it_divides_by_zero(case):
    assert case["grad_conv1"] is None
    weights = golden_weights(case)
    _, gradients = lasso_and_gradient(weights, group=LASSO["group"], ratio=case["ratio"], lamda=case["lamda"])
    undefined = 0
    for weight, gradient, name in zip(weights, gradients, ("grad_conv2", "grad_conv3"), strict=True):
        reference = torch.tensor(np.array(case[name], dtype=np.float64))  # reads "nan" too
        nan = reference.isnan()
        undefined += int(nan.sum())
        assert gradient.isfinite().all()
        assert (weight[nan] == 0).all() and (gradient[nan] == 0).all()
        torch.testing.assert_close(gradient[~nan].double(), reference[~nan], rtol=2e-6, atol=1e-11)
    assert undefined == (36 if case["second"] == "conv2" else 0)


@given(grouped(), ratios, st.floats(1e-4, 10))
def test_lasso_and_its_gradient_are_the_formulas(weight_and_group, ratio, lamda):
    weight, group = weight_and_group
    value, formula, kink = numpy_lasso(weight.numpy(), group, ratio, lamda)
    assume(kink > 1e-9 or not weight.any())
    penalty, (gradient,) = lasso_and_gradient([weight], group=group, ratio=ratio, lamda=lamda)
    np.testing.assert_allclose(penalty, value, rtol=1e-12)
    np.testing.assert_allclose(gradient, formula, rtol=1e-12)


@given(grouped(zeros=False), ratios, st.integers(0, 2**31))
def test_lasso_gradient_is_the_slope_of_the_penalty(weight_and_group, ratio, seed):
    weight, group = weight_and_group
    assume(numpy_lasso(weight.numpy(), group, ratio, 1)[2] > 1e-3)
    settings = {"group": group, "ratio": ratio, "lamda": 1.0}
    direction = torch.tensor(np.random.default_rng(seed).standard_normal(weight.shape))
    direction *= 1e-6 / direction.norm()
    _, (gradient,) = lasso_and_gradient([weight], **settings)
    difference = group_lasso([weight + direction], **settings) - group_lasso([weight - direction], **settings)
    torch.testing.assert_close(difference / 2e-6, (gradient * direction).sum() / 1e-6, rtol=1e-5, atol=1e-6)


@given(grouped(), ratios)
def test_weight_times_gradient_is_the_penalty(weight_and_group, ratio):
    """Euler's theorem: the penalty is homogeneous of degree one, also where groups are zero or on the cap."""
    weight, group = weight_and_group
    penalty, (gradient,) = lasso_and_gradient([weight], group=group, ratio=ratio, lamda=0.5)
    torch.testing.assert_close((weight * gradient).sum(), penalty, rtol=1e-12, atol=0)


@given(grouped(), ratios, st.integers(-8, 8))
def test_lasso_is_homogeneous(weight_and_group, ratio, power):
    weight, group = weight_and_group
    settings = {"group": group, "ratio": ratio, "lamda": 1e-4}
    once, (slope,) = lasso_and_gradient([weight], **settings)
    scaled, (same_slope,) = lasso_and_gradient([-(2.0**power) * weight], **settings)
    assert torch.equal(scaled, 2.0**power * once)
    assert torch.equal(same_slope, -slope)


@given(grouped())
def test_with_a_cap_that_nothing_reaches_it_is_the_plain_group_lasso(weight_and_group):
    weight, group = weight_and_group
    plain = sum(np.linalg.norm(weight.numpy()[at]) for at in numpy_groups(weight.numpy(), group).values())
    np.testing.assert_allclose(group_lasso([weight], group=group, ratio=1e6, lamda=0.25), 0.25 * plain, rtol=1e-12)


def test_a_norm_on_the_cap_counts_half():
    w = torch.tensor([[1.0], [3.0], [2.0]])  # mean 2; the last one ties, so K is 1.5 of 3
    _, (gradient,) = lasso_and_gradient([w], group=1, ratio=1.0, lamda=1.0)
    assert gradient.flatten().tolist() == [1.5, 0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3, 3)], ids=["linear", "convolution"])
def test_a_layer_of_zeros_has_no_penalty_and_no_gradient(dtype, shape):
    penalty, (gradient,) = lasso_and_gradient([torch.zeros(shape, dtype=dtype)], group=2, ratio=1.0, lamda=1.0)
    assert penalty == 0 and penalty.dtype == dtype
    assert torch.equal(gradient, torch.zeros(shape, dtype=dtype))


def test_a_zero_group_only_lowers_the_mean_of_the_others():
    w = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # norms 5 and 0; the cap 2.5 holds the first, its share is 1/2
    penalty, (gradient,) = lasso_and_gradient([w], group=2, ratio=1.0, lamda=1.0)
    assert penalty == 2.5
    torch.testing.assert_close(gradient, torch.tensor([[0.3, 0.4, 0.0, 0.0]]))


def test_each_layer_has_its_own_mean():
    small, large = torch.randn(2, 4), 100 * torch.randn(3, 8, 3, 3)
    settings = {"group": 4, "ratio": 0.7, "lamda": 0.1}
    both, gradients = lasso_and_gradient([small, large], **settings)
    alone = [lasso_and_gradient([w], **settings) for w in (small, large)]
    torch.testing.assert_close(both, alone[0][0] + alone[1][0])
    for gradient, (_, (expected,)) in zip(gradients, alone, strict=True):
        assert torch.equal(gradient, expected)


def test_without_layers_the_penalty_is_zero():
    penalty = group_lasso([], group=16, ratio=1.0, lamda=1.0)
    assert penalty.shape == () and penalty == 0


def test_steps_along_the_lasso_bring_the_smallest_groups_to_zero_first():
    w = torch.tensor([[0.01, 0.02], [1.0, 1.0], [2.0, 1.0]])
    for _ in range(50):
        _, (gradient,) = lasso_and_gradient([w], group=2, ratio=1.0, lamda=1e-3)
        w -= gradient
    norms = w.norm(dim=1)
    assert norms[0] < 2e-3 and norms[1] > 1.3 and norms[2] > 2.1


# Masks.


@pytest.mark.parametrize("case", MASK["cases"], ids=lambda case: f"threshold{case['th']}")
def test_mask_matches_the_reference(case):
    weight = torch.tensor(MASK["W_fp"])
    mask = magnitude_mask(weight, case["th"])
    assert mask.dtype == torch.bool
    assert torch.equal(mask.float(), torch.tensor(case["mask"]))
    assert mask.sum() == case["kept"]
    level, scale = xnor(weight, case["bits"])
    assert torch.equal(level * scale * mask, torch.tensor(case["out"]))


def test_a_weight_on_the_threshold_goes():
    assert magnitude_mask(torch.tensor([[0.5, -1.0, -0.5, 0.75]]), 0.5).tolist() == [[False, True, False, True]]
    assert magnitude_mask(torch.tensor([[0.5, -1.0, -0.5, 0.75]]), 0.5, "group", 1).tolist() == [
        [False, True, False, True]
    ]


@pytest.mark.parametrize("by", ["element", "group"])
@pytest.mark.parametrize("threshold", [0.0, 0.005])
@pytest.mark.parametrize("shape", [(2, 16), (2, 16, 3, 3)], ids=["linear", "convolution"])
def test_a_weight_of_zeros_keeps_nothing(by, threshold, shape):
    mask = magnitude_mask(torch.zeros(shape), threshold, by)
    assert mask.shape == shape and not mask.any()


@given(grouped(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["element", "group"]))
def test_a_higher_threshold_keeps_no_more(weight_and_group, a, b, by):
    weight, group = weight_and_group
    low, high = (magnitude_mask(weight, t, by, group) for t in sorted((a, b)))
    assert not (high & ~low).any()


@given(grouped(), st.floats(0, 0.999), st.sampled_from(["element", "group"]), st.integers(-8, 8))
def test_a_mask_keeps_the_largest_and_does_not_depend_on_scale_or_sign(weight_and_group, threshold, by, power):
    weight, group = weight_and_group
    mask = magnitude_mask(weight, threshold, by, group)
    assert mask.any() == weight.any()
    assert not (mask & (weight == 0)).any()
    assert torch.equal(magnitude_mask(-(2.0**power) * weight, threshold, by, group), mask)


@given(grouped(), st.floats(0, 1))
def test_by_group_a_whole_group_stays_where_its_norm_is_large_enough(weight_and_group, threshold):
    weight, group = weight_and_group
    w = weight.numpy()
    groups = numpy_groups(w, group)
    norms = {j: np.linalg.norm(w[at]) for j, at in groups.items()}
    limit = threshold * max(norms.values())
    assume(all(abs(a - limit) > 1e-9 or a == 0 for a in norms.values()))
    mask = magnitude_mask(weight, threshold, "group", group).numpy()
    for j, at in groups.items():
        assert mask[at].all() == mask[at].any() == (norms[j] > limit)


@given(grouped(), st.floats(0, 0.999), st.sampled_from(["element", "group"]))
def test_masking_again_masks_no_more(weight_and_group, threshold, by):
    weight, group = weight_and_group
    mask = magnitude_mask(weight, threshold, by, group)
    assert torch.equal(magnitude_mask(weight * mask, threshold, by, group), mask)


def test_an_unknown_kind_of_mask_is_refused():
    with pytest.raises(ConfigError, match="^magnitude_mask: by: 'row' is not one of element, group$"):
        magnitude_mask(torch.ones(2, 16), 0.1, "row")


# Networks.


def test_hybrid_layers_are_those_with_an_rram_part_in_order():
    assert list(hybrid_layers(network())) == ["conv1", "conv2", "fc1"]
    assert hybrid_layers(network(hybrid=[])) == {}
    assert hybrid_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == {}
    inner = nn.Sequential(network())
    assert hybrid_layers(inner)["0.conv2"] is inner[0]["conv2"]


@pytest.mark.parametrize("case", MASK["applies"], ids=lambda c: f"entry{c['index']}-noprune1-{c['noprune1']}")
def test_masks_are_put_where_the_reference_puts_them(case):
    """The reference's list holds SRAM and RRAM weights in turn; `first` is the opposite of noprune1."""
    layer, part = divmod(case["index"], 2)
    net = network()
    name = list(hybrid_layers(net))[layer]
    before = net[name].rram.clone()
    refresh_masks(net, 0.3, by="element", group=4, first=not case["noprune1"])
    if part == 0:
        applies = not net[name].mask.all()
        assert applies == case["applies"]
    assert torch.equal(net[name].rram, before)  # the RRAM part is never masked
    assert net["fc2"].mask is None


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("by", ["element", "group"])
def test_masks_are_those_of_the_present_weights_and_the_first_layer_has_no_groups(by, first):
    net = network()
    for _ in range(2):
        refresh_masks(net, 0.7, by=by, group=4, first=first)
        for name in ("conv2", "fc1"):
            expected = magnitude_mask(net[name].weight, 0.7, by, 4)
            assert torch.equal(net[name].mask, expected)
            assert not expected.all()
        conv1 = net["conv1"].weight
        assert torch.equal(net["conv1"].mask, magnitude_mask(conv1, 0.7) if first else torch.ones(conv1.shape) > 0)
        with torch.no_grad():
            for layer in net.values():
                layer.weight.copy_(uneven(layer.weight.shape))


def test_masks_travel_with_the_state_and_touch_no_weight():
    net = network()
    before = {name: layer.weight.detach().clone() for name, layer in net.items()}
    refresh_masks(net, 0.5, by="element", group=4, first=True)
    assert {n for n in net.state_dict() if n.endswith("mask")} == {"conv1.mask", "conv2.mask", "fc1.mask"}
    assert all(torch.equal(net[n].weight, w) for n, w in before.items())
    assert all(not layer.mask.requires_grad for layer in hybrid_layers(net).values())


def test_a_first_layer_that_was_masked_is_whole_again_without_first():
    net = network()
    refresh_masks(net, 0.5, by="element", group=4, first=True)
    assert not net["conv1"].mask.all()
    refresh_masks(net, 0.5, by="element", group=4, first=False)
    assert net["conv1"].mask.all()


@pytest.mark.parametrize("by", ["element", "group"])
def test_fixed_masks_zero_the_masked_master_weights_and_nothing_else(by):
    net = network()
    before = {name: layer.weight.detach().clone() for name, layer in net.items()}
    parameters = {name: layer.weight for name, layer in net.items()}
    refresh_masks(net, 0.7, by=by, group=4, first=True)
    fix_masks(net)
    for name, layer in net.items():
        expected = before[name] if layer.mask is None else before[name] * layer.mask
        assert layer.weight is parameters[name] and layer.weight.requires_grad and layer.weight.is_leaf
        assert torch.equal(layer.weight, expected)
    for layer in hybrid_layers(net).values():
        assert torch.equal(layer.weight != 0, layer.mask)
    masks = {name: layer.mask for name, layer in hybrid_layers(net).items()}
    refresh_masks(net, 0.7, by=by, group=4, first=True)
    assert all(torch.equal(layer.mask, masks[name]) for name, layer in hybrid_layers(net).items())


def test_fixing_without_masks_changes_nothing():
    net = network()
    before = {name: layer.weight.detach().clone() for name, layer in net.items()}
    fix_masks(net)
    assert all(torch.equal(net[n].weight, w) for n, w in before.items())


# The report.


def test_report_matches_the_reference():
    weights = [torch.tensor(LASSO[name]) for name in ("conv2", "conv3")]
    counts = total(sparsity(w * magnitude_mask(w, 0.3), REPORT["group"]) for w in weights)
    assert (counts.weights, counts.groups) == (252, 7)
    assert counts.element == REPORT["element_sparsity"]
    assert counts.group == REPORT["group_sparsity"]


@given(grouped(), st.floats(0, 1))
def test_report_counts_zeros_and_groups_of_nothing_but_zeros(weight_and_group, threshold):
    weight, group = weight_and_group
    held = weight * magnitude_mask(weight, threshold)
    counts = sparsity(held, group)
    w = held.numpy()
    groups = numpy_groups(w, group)
    assert counts == (w.size, (w == 0).sum(), len(groups), sum(not w[at].any() for at in groups.values()))
    assert counts.element == np.mean(w == 0)
    assert counts.group <= counts.element
    assert all(type(n) is int for n in counts)


def test_total_adds_layers_and_nothing_is_not_sparse():
    assert total([Sparsity(4, 3, 2, 1), Sparsity(6, 1, 3, 2)]) == Sparsity(10, 4, 5, 3)
    assert total([]) == Sparsity(0, 0, 0, 0)
    assert (total([]).element, total([]).group) == (0.0, 0.0)


# Devices.


@pytest.mark.parametrize("by", ["element", "group"])
def test_a_training_step_asks_no_tensor_for_its_value(by):
    """Tensors on "meta" have no values: `.item()`, `bool()` or a shape that depends on values would raise."""
    net = network(device="meta")
    for first in (False, True):
        refresh_masks(net, 0.5, by=by, group=4, first=first)
    weights = [layer.weight for layer in hybrid_layers(net).values()][1:]
    group_lasso(weights, group=4, ratio=1.0, lamda=1e-4).backward()
    fix_masks(net)
    assert all(w.grad.shape == w.shape for w in weights)
    assert all(layer.mask.device.type == "meta" for layer in hybrid_layers(net).values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        sparsity(weights[0], 4)


@pytest.mark.gpu
@pytest.mark.parametrize("by", ["element", "group"])
def test_cuda_agrees_with_the_cpu_and_does_not_wait(by):
    net = network()
    there = network().to("cuda")
    there.load_state_dict(net.state_dict())
    settings = {"group": 4, "ratio": 0.5, "lamda": 1e-2}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        refresh_masks(there, 0.5, by=by, group=4, first=True)
        penalty = group_lasso([there[n].weight for n in ("conv2", "fc1")], **settings)
        penalty.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    refresh_masks(net, 0.5, by=by, group=4, first=True)
    expected, gradients = lasso_and_gradient([net[n].weight.detach() for n in ("conv2", "fc1")], **settings)
    torch.testing.assert_close(penalty.detach().cpu(), expected)
    for name, gradient in zip(("conv2", "fc1"), gradients, strict=True):
        torch.testing.assert_close(there[name].weight.grad.cpu(), gradient)
        assert torch.equal(there[name].mask.cpu(), net[name].mask)
