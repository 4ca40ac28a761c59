"""MLP, VGG5 and VGG9 without normalization: published numbers, every leak convention, the same network written out."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import ConfigError
from hwsim.network.lif import LEAK_RULES, convention, lif
from hwsim.network.vgg_bntt import PLANS, VggBntt, build
from hwsim.recipe.net_settings import Net

FOLDER = Path(__file__).parent / "golden"
PUBLISHED = json.loads((FOLDER / "rate_vs_direct.json").read_text(encoding="utf-8"))
GOLDEN, SCALAR = PUBLISHED["VGG5_Direct"], PUBLISHED["lif_scalar"]
RULE = {"plain": "plain", "lam_keeps": "complement", "lam_weights_input": "swapped"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ published numbers


@pytest.fixture
def published(backend) -> VggBntt:
    kwargs = GOLDEN["kwargs"]
    net = VggBntt(
        (2, "A", 3, 3, "A"), 6, channels=kwargs["input_dim"], size=(kwargs["img_size"],) * 2,
        classes=kwargs["num_cls"], steps=kwargs["num_steps"], coding="direct", leak=kwargs["leak_mem"], norm="none",
        leak_rule="complement",
    )  # fmt: skip
    net.load_state_dict({k: torch.tensor(v) for k, v in GOLDEN["params"].items()})
    return net


def test_the_published_direct_vgg5_is_met_with_ties_that_do_not_fire(published):
    logits, trace = published(torch.tensor(GOLDEN["x"]))
    counts = [here["spikes"].tolist() for here in trace.values() if "spikes" in here]
    assert counts == GOLDEN["spike_count_per_layer_per_step(whole batch)"]
    torch.testing.assert_close(logits, torch.tensor(GOLDEN["logits"]), rtol=0, atol=1e-6)
    loss = F.cross_entropy(logits, torch.tensor(GOLDEN["labels"]))
    assert loss.item() == pytest.approx(GOLDEN["loss"], abs=1e-6)
    loss.backward()
    for name, p in published.named_parameters():
        torch.testing.assert_close(p.grad, torch.tensor(GOLDEN["grads"][name]), rtol=1e-5, atol=5e-8)


@pytest.mark.parametrize("run", SCALAR["runs"], ids=lambda r: f"{r['mode']}-{r['lambda']}")
def test_every_leak_convention_matches_the_published_neuron(run, backend):
    keep, drive = convention(RULE[run["mode"]], run["lambda"])
    x = torch.tensor(SCALAR["current"]).view(-1, 1, 1, 1, 1).requires_grad_()
    spikes, count = lif(x, leak=keep, drive=drive, threshold=run["theta"])
    assert spikes.flatten().tolist() == run["spike"] and count.tolist() == run["spike"]
    (spikes.flatten() * torch.arange(1, len(x) + 1)).sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(run["grad_current"]), rtol=1e-6, atol=1e-7)


def test_numbers_of_weights_are_the_published_ones():
    for name, size, channels, weights in (
        ("mlp", 28, 1, 635_200), ("vgg5", 32, 3, 8_621_760), ("vgg9", 32, 3, 5_938_880),
    ):  # fmt: skip
        with torch.device("meta"):
            net = build(name, channels=channels, size=(size, size), classes=10, steps=2, norm="none")
        assert sum(p.numel() for p in net.parameters()) == weights


@pytest.mark.parametrize(
    "name, encode, norm, gain, rule",
    [
        ("mlp", "poisson", "none", 2, "complement"), ("mlp", "direct", "none", 2, "complement"),
        ("vgg5", "direct", "none", 3, "complement"), ("vgg5", "poisson", "none", 4, "complement"),
        ("vgg9", "direct", "none", 5, "swapped"), ("vgg9", "poisson", "none", 5, "swapped"),
        ("vgg9", "poisson", "bntt", 2, "plain"), ("vgg11", "poisson", "bntt", 2, "plain"),
    ],
)  # fmt: skip
def test_reference_stands_for_the_published_gain_and_leak(name, encode, norm, gain, rule):
    net = Net(name=name, encode=encode, norm=norm, gain="reference", leak_rule="reference")
    assert (net.initial_gain, net.rule) == (gain, rule)
    assert Net(name=name, gain=1.5, leak_rule="swapped").initial_gain == 1.5


def test_p_and_d_are_words_for_codings():
    assert Net(encode="p") == Net(encode="poisson") and Net(encode="d").encode == "direct"


# ------------------------------------------------------------------------------------- the same network, written out


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, g):
        return 0.3 * (1 - ctx.saved_tensors[0].abs()).clamp(min=0) * g


def integrate(v, current, leak, rule):
    if rule == "plain":
        return leak * v + current
    return leak * v + (1 - leak) * current if rule == "complement" else (1 - leak) * v + leak * current


def written_out(weights: dict, plan, x_TBCHW, steps, leak, rule, threshold):
    """Time outside, layers inside, as the published code runs; (logits, spikes of each layer and step)."""
    v, total, spikes = {}, 0.0, {}
    for t in range(steps):
        x = x_TBCHW[t] if len(x_TBCHW) > 1 else x_TBCHW[0]

        def fire(name, current, t=t):
            v[name] = integrate(v.get(name, torch.zeros_like(current)), current, leak, rule)
            s = _Step.apply(v[name] / threshold - 1)
            v[name] = v[name] - threshold * s.detach()
            spikes.setdefault(name, []).append(int(s.sum()))
            return s

        number = 0
        for item in plan:
            if item == "A":
                x = F.avg_pool2d(x, 2)
            else:
                number += 1
                x = fire(f"conv{number}", F.conv2d(x, weights[f"conv{number}.weight"], padding=1))
        x = fire("fc1", F.linear(x.flatten(1), weights["fc1.weight"]))
        total = total + F.linear(x, weights["fc2.weight"])
    return total / steps, spikes


CASES = [
    # name, image, T, coding, leak, rule, threshold
    ("vgg5", (8, 8), 3, "poisson", 0.5, "complement", 1.0),
    ("vgg5", (7, 9), 4, "direct", 0.7, "swapped", 0.8),
    ("vgg9", (9, 8), 2, "direct", 0.75, "swapped", 1.0),
    ("vgg9", (8, 8), 3, "poisson", 0.6, "plain", 1.1),
    ("mlp", (5, 6), 4, "direct", 0.5, "complement", 1.0),
    ("mlp", (5, 6), 3, "poisson", 0.9, "plain", 0.9),
    ("mlp", (4, 4), 3, "repeat", 0.25, "swapped", 0.7),
]


def small(name, size, steps, coding, leak, rule, threshold, gain=6.0) -> VggBntt:
    return build(
        name, width=1 / 32, channels=3, size=size, classes=5, steps=steps, coding=coding, leak=leak, leak_rule=rule,
        threshold=threshold, norm="none", gain=gain, generator=seeded(1),
    ).double()  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[3]}-{c[5]}")
def test_folded_time_gives_the_spikes_and_gradients_of_the_network_written_out(case, backend):
    net = small(*case)
    x, y = torch.randn(4, 3, *case[1], generator=seeded(2), dtype=torch.float64), torch.tensor([0, 3, 4, 1])
    events = net.encode(x, seeded(3))
    weights = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    width = [i if isinstance(i, str) else 0 for i in PLANS[case[0]][0]]
    expected, counts = written_out(weights, width, events, case[2], case[4], case[5], case[6])
    logits, trace = net.run(events)
    F.cross_entropy(logits, y).backward()
    F.cross_entropy(expected, y).backward()
    assert {n: h["spikes"].tolist() for n, h in trace.items() if "spikes" in h} == counts
    assert min(map(sum, counts.values())) > 0
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, weights[name].grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "vgg5"])
def test_direct_coding_computes_the_first_layer_once_and_changes_nothing(name, backend):
    results, calls = [], []
    x = torch.randn(3, 3, 8, 8, generator=seeded(4), dtype=torch.float64)
    for coding in ("direct", "repeat"):
        net = small(name, (8, 8), 5, coding, 0.5, "complement", 1.0)
        first = net.fc1 if name == "mlp" else net.conv1
        first.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
        logits, trace = net(x)
        results.append((logits, [h["spikes"].tolist() for h in trace.values() if "spikes" in h]))
    assert calls == [1, 5]
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("coding, parts, steps", [("direct", 0, 1), ("repeat", 0, 3), ("poisson", 1, 3)])
def test_the_first_layer_of_the_mlp_counts_pixels_as_analog_and_spikes_as_spikes(coding, parts, steps):
    net = small("mlp", (4, 4), 3, coding, 0.5, "plain", 1.0)
    _, trace = net(torch.ones(2, 3, 4, 4, dtype=torch.float64), seeded(0), account=[])
    here = trace["fc1"]
    assert here["parts"] == parts and here["signed"] and here["unit_TB"].shape == (steps, 2)
    assert int(here["fractional"].sum()) == (0 if parts else steps * 2 * 48)
    assert (int(here["unit"].sum()) > 0) == (parts == 1)


@pytest.mark.parametrize("norm", ["none", "bntt"])
@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_the_outputs_over_time_have_the_logits_as_mean_and_the_same_trace(norm, coding):
    net = build("vgg5", width=1 / 16, channels=1, size=(8, 8), classes=4, steps=3, coding=coding, norm=norm, gain=6.0,
                generator=seeded(0))  # fmt: skip
    events = net.encode(torch.randn(2, 1, 8, 8, generator=seeded(1)), seeded(2))
    outputs, trace = net.over_time(events, account=[])
    logits, other = net.run(events, account=[])
    assert outputs.shape == (3, 2, 4)
    torch.testing.assert_close(outputs.mean(0), logits)
    assert trace["fc1"]["spikes"].tolist() == other["fc1"]["spikes"].tolist()
    for name, here in trace.items():
        assert torch.equal(here["unit_TB"].sum(1), here["unit_T"]), name
        assert torch.equal(here["fractional_TB"].sum(1), here["fractional_T"]), name
        assert torch.equal(here["spikes_TB"].sum(1), here["spikes"]), name


@pytest.mark.parametrize("name, size, channels", [("vgg5", 28, 1), ("vgg9", 28, 1), ("mlp", 32, 3), ("mlp", 8, 1)])
def test_sizes_follow_from_the_image_where_the_published_code_assumes_them(name, size, channels):
    net = build(name, width=1 / 64, channels=channels, size=(size, size), classes=7, steps=1, norm="none")
    assert net(torch.zeros(1, channels, size, size), seeded(0))[0].shape == (1, 7)


def test_an_image_too_small_for_the_plan_is_refused():
    with pytest.raises(ConfigError, match="it needs 8x8 pixels, the data have 7x28"):
        build("vgg9", channels=1, size=(7, 28), classes=2, steps=1, norm="none")


def test_bntt_with_a_convention_drives_by_its_factor(backend):
    plain, swapped = (
        build("vgg5", width=1 / 16, channels=1, size=(8, 8), classes=4, steps=2, leak=0.25, leak_rule=rule,
              generator=seeded(0)).double()
        for rule in ("plain", "swapped")
    )  # fmt: skip
    for name, module in plain.named_modules():
        if name.startswith("bntt"):
            module.weight.data *= 0.25
    plain.leak = 0.75
    x = torch.randn(4, 1, 8, 8, generator=seeded(1), dtype=torch.float64)
    a, b = (net(x, seeded(2)) for net in (plain, swapped))
    assert torch.equal(a[0], b[0]) and int(a[1]["conv1"]["spikes"].sum()) > 0
    F.cross_entropy(b[0], torch.tensor([0, 1, 2, 3])).backward()
    F.cross_entropy(a[0], torch.tensor([0, 1, 2, 3])).backward()
    torch.testing.assert_close(swapped.bntt1.weight.grad, 0.25 * plain.bntt1.weight.grad)


def test_gain_scales_the_initial_bounds_and_nothing_else():
    two, six = (
        build("mlp", channels=1, size=(8, 8), classes=4, steps=1, norm="none", gain=g, generator=seeded(0))
        for g in (2.0, 6.0)
    )
    torch.testing.assert_close(six.fc1.weight, 3 * two.fc1.weight)
    assert two.fc1.weight.abs().max() <= 2 * (6 / (64 + 800)) ** 0.5


@pytest.mark.parametrize("rule, drive, update", [("plain", 1.0, (1, 2)), ("complement", 0.5, (2, 2))])
def test_a_neuron_without_normalization_has_no_parameters_and_its_own_arithmetic(rule, drive, update):
    net = small("vgg5", (8, 8), 2, "direct", 0.5, rule, 1.0)
    assert sorted(net.state_dict()) == ["conv1.weight", "conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"]
    assert net.drive == drive and net.update == update


@pytest.mark.parametrize("word", ["norm", "leak_rule"])
def test_unknown_words_are_refused(word):
    with pytest.raises(ValueError, match="found 'other'; it can be"):
        build("mlp", channels=1, size=(8, 8), classes=2, steps=1, **{word: "other"})


@given(st.floats(0, 1), st.sampled_from(LEAK_RULES))
def test_conventions_are_one_neuron_with_other_numbers(leak, rule):
    keep, drive = convention(rule, leak)
    assert leak in ((keep, drive) if rule == "swapped" else (keep,))
    assert keep + drive == pytest.approx(1.0 if rule != "plain" else 1.0 + leak)
    if leak == 0.5:
        assert convention("complement", leak) == convention("swapped", leak)


@given(st.integers(1, 6), st.floats(0, 1), st.sampled_from(LEAK_RULES), st.integers(0, 10**6))
def test_no_normalization_changes_no_bit_of_the_driven_current(steps, leak, rule, seed):
    x = 3 * torch.randn(steps, 2, 3, 2, 2, generator=seeded(seed))
    keep, drive = convention(rule, leak)
    spikes, count = lif(x, leak=keep, drive=drive, threshold=1.0)
    v, expected = torch.zeros(2, 3, 2, 2), []
    for t in range(steps):
        v = keep * v + x[t] * drive
        s = (v / 1.0 - 1 > 0).float()
        v = v - 1.0 * s
        expected.append(s)
    assert torch.equal(spikes, torch.stack(expected)) and count.tolist() == [int(s.sum()) for s in expected]
