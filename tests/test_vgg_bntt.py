"""BNTT VGGs folded over time: against published numbers, the same network step by step, and one written out here."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hwsim.config import ConfigError
from hwsim.device.store import Rram, draw, place
from hwsim.network.encode import poisson_spikes
from hwsim.network.layer import BNTT
from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import PLANS, VggBntt, build

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "bntt.json").read_text(encoding="utf-8"))["bntt_vgg9_scaled"]
COUNTS = json.loads((FOLDER / "rram_sram_network.json").read_text(encoding="utf-8"))["arch_param_counts"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ published numbers


def stacked(golden: dict, suffix: str = ".weight") -> dict[str, torch.Tensor]:
    """The reference's bntt<l>.<t>.<name>, one tensor a step, as bntt<l>.<name> [T, C]; the rest as it is."""
    out: dict = {}
    for key, value in golden.items():
        name, *step, kind = key.split(".")
        if step:
            out.setdefault(f"{name}.{kind}", []).append(value)
        else:
            out[key] = value
    return {k: torch.tensor(v) for k, v in out.items()}


@pytest.fixture
def published(backend) -> tuple[VggBntt, torch.Tensor]:
    """The golden network, and its input spikes."""
    net = VggBntt(
        (2, 2, "A", 3, 3, "A", 4, 4, 4, "A"), 6, channels=3, size=(8, 8), classes=3, steps=GOLDEN["T"],
        leak=GOLDEN["leak"],
    )  # fmt: skip
    missing = net.load_state_dict(stacked(GOLDEN["params"]), strict=False)
    assert missing.unexpected_keys == []
    assert all("running" in k or "tracked" in k for k in missing.missing_keys)
    x, r = torch.tensor(GOLDEN["x_times_8"]) / 8, torch.tensor(GOLDEN["r_times_128"]) / 128
    return net, poisson_spikes(x, r)


def spikes(trace: dict) -> dict[str, list[int]]:
    return {name: here["spikes"].tolist() for name, here in trace.items() if "spikes" in here}


def test_training_pass_matches_golden(published):
    net, x = published
    fc1_spikes = []
    net.bntt_fc.register_forward_hook(lambda module, given, result: fc1_spikes.append(result[0].detach()))
    logits, trace = net.run(x)
    assert spikes(trace) == GOLDEN["spikes"]
    assert torch.equal(fc1_spikes[0].flatten(2), torch.tensor(GOLDEN["fc1_spikes_per_step"], dtype=torch.float32))
    torch.testing.assert_close(logits, torch.tensor(GOLDEN["logits_train"]), rtol=0, atol=1e-6)
    loss = F.cross_entropy(logits, torch.tensor(GOLDEN["labels"]))
    assert loss.item() == pytest.approx(GOLDEN["loss"], abs=1e-6)
    for name, expected in stacked(GOLDEN["running_stats_after"]).items():
        torch.testing.assert_close(net.get_buffer(name), expected, rtol=1e-6, atol=1e-7)


def test_every_gradient_matches_golden(published):
    net, x = published
    F.cross_entropy(net.run(x)[0], torch.tensor(GOLDEN["labels"])).backward()
    expected = stacked(GOLDEN["grads"])
    assert {name for name, _ in net.named_parameters()} == set(expected)
    for name, p in net.named_parameters():
        # The reference itself is float32: its own float64 rerun differs by up to 2.3e-8.
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=5e-8)


def test_one_optimizer_step_matches_golden(published):
    net, x = published
    optimizer = torch.optim.SGD(net.parameters(), 0.3, 0.9, weight_decay=1e-4)
    F.cross_entropy(net.run(x)[0], torch.tensor(GOLDEN["labels"])).backward()
    optimizer.step()
    expected = GOLDEN["after_one_step"]
    assert len(expected) == 3
    for name, value in expected.items():
        layer, *step, _ = name.split(".")
        found = net.get_parameter(f"{layer}.weight")
        torch.testing.assert_close(found[int(step[0])] if step else found, torch.tensor(value), rtol=1e-6, atol=2e-8)


def test_evaluation_matches_golden(published):
    net, x = published
    net.run(x)
    logits, trace = net.eval().run(x)
    assert spikes(trace) == GOLDEN["spikes_eval"]
    torch.testing.assert_close(logits, torch.tensor(GOLDEN["logits_eval"]), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------- the same, step by step

NETS = [
    # plan, image, steps, coding, leak, threshold; odd sides lose a row at a pool
    ("vgg5", (8, 8), 3, "poisson", 0.95, 1.0),
    ("vgg5", (11, 9), 4, "direct", 0.5, 0.7),
    ("vgg5", (4, 5), 1, "poisson", 0.95, 1.0),
    ("vgg9", (13, 9), 3, "repeat", 0.99, 1.3),
    ("vgg9", (8, 8), 2, "poisson", 0.8, 0.6),
    ("vgg11", (17, 19), 2, "poisson", 0.9, 0.8),
    ("vgg11", (32, 32), 1, "direct", 0.95, 1.0),
    ("vgg19", (33, 35), 2, "poisson", 0.95, 0.7),
    ("vgg19", (32, 32), 2, "direct", 1.0, 0.5),
    ("convolution after a global average", (5, 3), 3, "poisson", 0.9, 0.6),
]


def small(plan: str, size, steps, coding, leak, threshold) -> VggBntt:
    settings = {
        "channels": 3, "size": size, "classes": 5, "steps": steps, "coding": coding, "leak": leak,
        "threshold": threshold, "generator": seeded(1),
    }  # fmt: skip
    if plan in PLANS:
        net = build(plan, width=1 / 32, **settings).double()
    else:
        net = VggBntt((4, "G", 6), 8, **settings).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "bntt" in name:
                p.uniform_(0.7, 1.6, generator=seeded(2))
    return net


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a fraction of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-300))


def with_statistics_of(net: VggBntt, x_TBCHW: torch.Tensor) -> None:
    """Let running statistics be those of one batch; fresh ones would leave the deep layers silent."""
    bntts = [module for module in net.modules() if isinstance(module, BNTT)]
    for bntt in bntts:
        bntt.momentum = 1.0
    net.train().run(x_TBCHW)
    for bntt in bntts:
        del bntt.momentum


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("settings", NETS, ids=lambda s: f"{s[0]}-{s[1][0]}x{s[1][1]}-T{s[2]}-{s[3]}")
def test_folding_time_changes_nothing(settings, training, backend):
    net = small(*settings)
    x, y = torch.randn(4, 3, *settings[1], generator=seeded(3), dtype=torch.float64), torch.tensor([0, 3, 4, 1])
    spikes_in = net.encode(x, seeded(4))
    if not training:
        with_statistics_of(net, spikes_in)
    net.train(training)
    plain = StepwiseVgg(net)
    logits, trace = net.run(spikes_in)
    expected, spikes_out = plain(spikes_in)
    F.cross_entropy(logits, y).backward()
    F.cross_entropy(expected, y).backward()

    counts = torch.tensor([[int(s.sum()) for s in step] for step in spikes_out]).T.tolist()
    assert list(spikes(trace).values()) == counts
    assert min(map(sum, counts)) > 0
    assert apart(logits, expected) <= 1e-12
    pairs = [(net.get_submodule(conv), plain.convs[i]) for i, (conv, _, _) in enumerate(net.blocks)]
    for layer, other in [*pairs, (net.fc1, plain.fc1), (net.fc2, plain.fc2)]:
        assert apart(layer.weight.grad, other.weight.grad) <= 1e-12
    bntts = [(net.get_submodule(bntt), plain.norms[i]) for i, (_, bntt, _) in enumerate(net.blocks)]
    for bntt, norms in [*bntts, (net.bntt_fc, plain.norm_fc)]:
        assert apart(bntt.weight.grad, torch.stack([norm.weight.grad for norm in norms])) <= 1e-12
        for name in ("running_mean", "running_var"):
            assert apart(getattr(bntt, name), torch.stack([getattr(norm, name) for norm in norms])) <= 1e-12


# ------------------------------------------------------------------------ the same once more, without the package


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, above):
        ctx.save_for_backward(above)
        return torch.where(above > 0, 1.0, 0.0).to(above.dtype)

    @staticmethod
    def backward(ctx, g):
        (above,) = ctx.saved_tensors
        return torch.where(above.abs() < 1, 0.3 * (1 - above.abs()) * g, 0 * g)


def written_out(weights: dict, statistics: dict | None, x_TBCHW, leak, threshold):
    """conv1, pool, conv2, conv3, pool, fc1, fc2 as a loop over time in float64.

    statistics None: the batch's own, and (mean, unbiased variance) by layer and step are given back.
    Returns (logits, spikes by layer and step, statistics).
    """
    membrane, counts, found, total = {}, {}, {}, 0.0
    for t, x in enumerate(x_TBCHW):
        for layer in ("1", "2", "3", "_fc"):
            if layer == "_fc":
                current = x.flatten(1) @ weights["fc1.weight"].T
            else:
                current = F.conv2d(x, weights[f"conv{layer}.weight"], padding=1)
            over = [d for d in range(current.ndim) if d != 1]
            n = current.numel() // current.shape[1]
            shape = [1, -1] + [1] * (current.ndim - 2)
            if statistics is None:
                mean = current.mean(over)
                var = (current - mean.view(shape)).square().mean(over)
                found[layer, t] = (mean.detach(), var.detach() * n / (n - 1))
            else:
                mean, var = statistics[layer, t]
            gain = weights[f"bntt{layer}.weight"][t]
            y = gain.view(shape) * (current - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-4)
            membrane[layer] = leak * membrane.get(layer, 0.0) + y
            s = Fire.apply(membrane[layer] / threshold - 1)
            membrane[layer] = membrane[layer] - threshold * s.detach()
            counts.setdefault("fc1" if layer == "_fc" else f"conv{layer}", []).append(int(s.sum()))
            x = F.avg_pool2d(s, 2) if layer in ("1", "3") else s
        total = total + x @ weights["fc2.weight"].T
    return total / len(x_TBCHW), counts, found


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("leak, threshold", [(0.95, 1.0), (0.6, 0.7)])
def test_the_network_is_its_equations_written_out(leak, threshold, training, backend):
    net = VggBntt(
        (4, "A", 5, 6, "A"), 9, channels=2, size=(9, 10), classes=3, steps=4, leak=leak, threshold=threshold,
        generator=seeded(5),
    ).double()  # fmt: skip
    x, labels = 1.5 * torch.randn(3, 2, 9, 10, generator=seeded(6), dtype=torch.float64), torch.tensor([2, 0, 1])
    u = torch.rand(4, *x.shape, generator=seeded(7), dtype=torch.float64)
    events = torch.where(2 * u <= x.abs(), torch.sign(x), 0 * x)
    weights = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}

    expected, counts, batch = written_out(weights, None, events, leak, threshold)
    if training:
        running = {k: (0.1 * mean, 0.9 + 0.1 * var) for k, (mean, var) in batch.items()}
    else:
        running = {k: (mean + 0.1, 0.8 * var) for k, (mean, var) in batch.items()}
        for (layer, t), (mean, var) in running.items():
            bntt = net.eval().get_submodule(f"bntt{layer}")
            bntt.running_mean[t], bntt.running_var[t] = mean, var
        expected, counts, _ = written_out(weights, running, events, leak, threshold)
    logits, trace = net.run(poisson_spikes(x, u))
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()

    assert spikes(trace) == counts
    assert min(map(sum, counts.values())) > 0
    assert apart(logits, expected) <= 1e-12
    for name, p in net.named_parameters():
        assert apart(p.grad, weights[name].grad) <= 1e-12
    for (layer, t), (mean, var) in running.items():
        bntt = net.get_submodule(f"bntt{layer}")
        assert apart(bntt.running_mean[t], mean) <= 1e-12
        assert apart(bntt.running_var[t], var) <= 1e-12


def test_backends_agree_in_float32(monkeypatch):
    # Each backend takes statistics in its own precision, so a membrane within rounding of the threshold could differ:
    # this network has none (the margin is checked by the equal counts in every layer and step).
    from hwsim.network import lif

    results = []
    for forced in ("auto", "reference"):
        monkeypatch.setattr(lif, "forced", forced)
        net = build("vgg5", width=1 / 8, channels=3, size=(16, 16), classes=10, steps=4, generator=seeded(1))
        logits, trace = net(torch.randn(4, 3, 16, 16, generator=seeded(2)), seeded(3))
        F.cross_entropy(logits, torch.tensor([1, 5, 7, 2])).backward()
        results.append((logits, spikes(trace), {k: p.grad for k, p in net.named_parameters()}))
    (logits, counts, grads), (logits_r, counts_r, grads_r) = results
    assert counts == counts_r
    assert apart(logits, logits_r) < 1e-6
    assert max(apart(grads[k], grads_r[k]) for k in grads) < 1e-4


# ------------------------------------------------------------------------------------------------ everything else


def test_the_same_training_step_gives_the_same_bytes(backend):
    def trained() -> dict[str, torch.Tensor]:
        net = build("vgg5", width=1 / 16, channels=1, size=(8, 8), classes=4, steps=3, generator=seeded(1))
        place(net, {"conv*": Rram(bits=2, sigma=0.1)})
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
        coding, chips = seeded(2), seeded(3)
        for batch in range(2):
            draw(net, chips)
            for loss in net.losses(torch.randn(6, 1, 8, 8, generator=seeded(batch)), torch.arange(6) % 4, coding):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return net.state_dict()

    first, again = trained(), trained()
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize("name", sorted(set(PLANS) - {"mlp"}))
def test_number_of_weights_matches_golden(name):
    with torch.device("meta"):
        net = build(name, channels=3, size=(32, 32), classes=10, steps=1)
    count = {k: p.numel() for k, p in net.named_parameters()}
    assert {
        "conv": sum(n for k, n in count.items() if k.startswith("conv")),
        "fc1": count["fc1.weight"],
        "fc2": count["fc2.weight"],
        "gamma_per_step": sum(n for k, n in count.items() if k.startswith("bntt")),
    } == COUNTS[name]


def test_initial_weights_are_uniform_within_xavier_bounds_of_gain_two():
    net = build("vgg9", width=1 / 4, channels=3, size=(32, 32), classes=10, steps=1, generator=seeded(0))
    for name, p in net.named_parameters():
        if "bntt" in name:
            continue
        field = p[0, 0].numel() if p.ndim == 4 else 1
        bound = 2 * (6 / (field * (p.shape[0] + p.shape[1]))) ** 0.5
        n, top = p.numel(), p.abs().max().item()
        assert bound * (1 - 20 / n) <= top <= bound
        # Five standard errors of the mean, and of the mean square, of n uniform numbers.
        assert abs(p.mean().item()) < 5 * bound / (3 * n) ** 0.5
        assert abs(p.square().mean().item() / bound**2 - 1 / 3) < 5 * (4 / 45 / n) ** 0.5


def test_initial_bounds_are_those_of_the_reference():
    # Spelled in the reference's specification for VGG9 at full width; the largest weight nearly reaches each.
    bounds = [0.1993, 0.1443, 0.1179, 0.1021, 0.0833, 0.0722, 0.0722, 0.0685, 0.1523]
    net = build("vgg9", channels=3, size=(32, 32), classes=10, steps=1, generator=seeded(0))
    names = [f"conv{i}" for i in range(1, 8)] + ["fc1", "fc2"]
    for name, bound in zip(names, bounds, strict=True):
        assert net.get_submodule(name).weight.abs().max().item() == pytest.approx(bound, rel=3e-3)


def test_the_generator_decides_the_initial_weights():
    settings = {"width": 1 / 32, "channels": 1, "size": (8, 8), "classes": 3, "steps": 1}
    a, b, c = (build("vgg5", **settings, generator=seeded(s)).conv2.weight for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_width_scales_every_layer_and_keeps_one_channel():
    half, least = (build("vgg9", width=w, channels=3, size=(32, 32), classes=10, steps=2) for w in (1 / 16, 1e-9))
    assert [half.get_submodule(c).out_channels for c, _, _ in half.blocks] == [4, 4, 8, 8, 16, 16, 16]
    assert (half.fc1.out_features, half.fc2.out_features) == (64, 10)
    assert [least.get_submodule(c).out_channels for c, _, _ in least.blocks] == [1] * 7
    assert least.fc1.out_features == 1


@pytest.mark.parametrize("name, size, needs", [("vgg9", (7, 32), "8x8"), ("vgg19", (28, 28), "32x32"),
                                               ("vgg5", (8, 3), "4x4"), ("vgg11", (8, 8), "16x16")])  # fmt: skip
def test_an_image_too_small_for_the_plan_is_refused_with_sizes(name, size, needs):
    with pytest.raises(ConfigError) as caught:
        build(name, channels=1, size=size, classes=2, steps=1)
    (message,) = caught.value.messages
    assert f"needs {needs} pixels, the data have {size[0]}x{size[1]}" in message


@pytest.mark.parametrize("name, size", [("vgg9", (8, 8)), ("vgg5", (4, 4)), ("vgg11", (16, 16)), ("vgg19", (32, 32))])
def test_the_smallest_image_that_a_plan_allows_runs(name, size, backend):
    net = build(name, width=1 / 64, channels=1, size=size, classes=2, steps=2)
    loss = next(iter(net.losses(torch.randn(2, 1, *size), torch.tensor([0, 1]))))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("training", [True, False])
def test_direct_coding_is_repeat_coding_with_the_first_layer_computed_once(training, backend):
    results = []
    x, labels = torch.randn(4, 3, 8, 8, generator=seeded(2), dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    for coding in ("direct", "repeat"):
        net = small("vgg5", (8, 8), 4, coding, 0.9, 0.8)
        with_statistics_of(net, net.encode(x))
        logits, trace = net.train(training)(x)
        F.cross_entropy(logits, labels).backward()
        results.append((logits, spikes(trace), [p.grad for p in net.parameters()]))
    (logits, counts, grads), (logits_r, counts_r, grads_r) = results
    assert counts == counts_r
    assert apart(logits, logits_r) <= 1e-12
    assert max(apart(a, b) for a, b in zip(grads, grads_r, strict=True)) <= 1e-12


def test_the_loss_is_cross_entropy_of_the_logits_and_comes_once_a_batch():
    net = small("vgg5", (8, 8), 3, "poisson", 0.95, 1.0)
    x, y = torch.randn(4, 3, 8, 8, generator=seeded(2), dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    losses = list(net.losses(x, y, seeded(3)))
    logits, _ = net(x, seeded(3))
    assert len(losses) == 1
    expected = -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[range(4), y].mean()
    torch.testing.assert_close(losses[0], expected, rtol=1e-12, atol=0)


def test_the_trace_counts_neurons_of_an_image_and_their_spikes():
    net = small("vgg5", (8, 6), 3, "poisson", 0.95, 1.0)
    _, trace = net(torch.randn(4, 3, 8, 6, dtype=torch.float64), seeded(3))
    assert {k: v.get("neurons") for k, v in trace.items()} == {
        "conv1": 2 * 48, "conv2": 4 * 12, "conv3": 4 * 12, "fc1": 32, "fc2": None,
    }  # fmt: skip
    for here in list(trace.values())[:-1]:
        assert here["spikes"].shape == (3,)
        assert 0 < here["spikes"].sum() < 3 * 4 * here["neurons"]


def test_names_of_the_state_dict_are_layer_names():
    net = build("vgg5", width=1 / 32, channels=1, size=(8, 8), classes=3, steps=2)
    place(net, {"conv*": Rram(bits=2, sigma=0.1)})
    before = list(net.state_dict())
    draw(net, seeded(0))
    assert list(net.state_dict()) == before
    bntt = ("weight", "running_mean", "running_var", "num_batches_tracked")
    layers = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bntt")] + ["fc1", "bntt_fc", "fc2"]
    assert sorted(before) == sorted(f"{n}.{p}" for n in layers for p in (bntt if "bntt" in n else ["weight"]))
