"""The pattern network: golden vectors, one arithmetic against the others, autograd, learning, messages."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.config import ConfigError
from hwsim.data.pattern import load_pattern
from hwsim.device.integer_codes import fixed_point
from hwsim.network import pattern_cpu
from hwsim.network.pattern import PatternNet, choose, emulation_type, train_pattern
from hwsim.network.pattern_rule import SLOPE, THRESHOLD, PatternRule, dyadic
from hwsim.network.pattern_stepwise import Codes, Values, van_rossum
from hwsim.report.trace import Counts

GOLDEN = json.loads((Path(__file__).parent / "golden" / "pattern.json").read_text())
SMALL = PatternRule(inputs=40, hidden=24, outputs=20, steps=30, wb=2, profile="paper", kernel=0.75)
ALL = ("integer", "integer-torch", "float")


def seeded(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seeds) % 2**31)


def sample(rule: PatternRule, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(rule.steps, rule.inputs, generator=g) < 0.3
    y = torch.rand(rule.steps, rule.outputs, generator=g) < 0.2
    return x.byte(), y.byte()


def net_of(rule: PatternRule, backend: str = "auto", seed: int = 1) -> PatternNet:
    return PatternNet(rule, generator=torch.Generator().manual_seed(seed), backend=backend)


def uniforms(epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + epoch)


# --- golden vectors ------------------------------------------------------------------------------------------------

FORWARD = GOLDEN["iscas_layer_fwd_a"]
FRAC = 25
"""Fractional bits at which the currents of the golden layer, float32 numbers, are exact."""


@pytest.mark.parametrize("arithmetic", [Values, Codes])
def test_layer_matches_golden_forward_and_backward(arithmetic):
    run = arithmetic(replace(SMALL, ab=FORWARD["params"]["ab"], eb=FORWARD["params"]["eb"]))
    one = 1 if arithmetic is Codes else 2**7
    H = torch.tensor(FORWARD["H"])
    tape = run.neurons(fixed_point(H, FRAC) if arithmetic is Codes else H, FRAC, keep=True)
    assert (tape.z * one).tolist() == FORWARD["z_code"]
    assert tape.spikes.tolist() == FORWARD["s"]
    assert [(state * one).tolist() for state in tape.after] == [FORWARD["mem_code"], FORWARD["syn_code"]]
    for mask, name in ((tape.inside_z, "mask_z"), (tape.inside_mem, "mask_mem"), (tape.inside_syn, "mask_syn")):
        assert mask.tolist() == FORWARD[name]
    # The golden gradient is dL/dH before the last quantizer, which renormalizes it.
    before = run.error
    run.error = lambda g: g if g.dim() == 2 else before(g)
    gradient = run.backward(torch.tensor(FORWARD["backward"]["gs"]), tape)
    expected = next(v for k, v in FORWARD["backward"].items() if k not in ("desc", "gs"))
    torch.testing.assert_close(gradient.float() / (128 if arithmetic is Codes else 1), torch.tensor(expected))


@pytest.mark.parametrize("function", [van_rossum, pattern_cpu.van_rossum], ids=["torch", "numba"])
def test_van_rossum_matches_golden(function):
    here = GOLDEN["van_rossum"]
    x, y = (torch.tensor(here[k]).byte() for k in ("x", "y"))
    loss, gradient = function(x, y, 0.75, 5e-3)
    assert loss.item() == pytest.approx(here["expected_loss"], rel=1e-5)
    torch.testing.assert_close(gradient, torch.tensor(here["expected_grad"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [van_rossum, pattern_cpu.van_rossum], ids=["torch", "numba"])
def test_equal_rasters_have_loss_and_gradient_zero(function):
    x = torch.ones(5, 3, dtype=torch.uint8)
    loss, gradient = function(x, x, 0.75, 5e-3)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros(5, 3))


@pytest.mark.parametrize("backend", ALL)
def test_two_training_steps_match_golden(backend):
    here = GOLDEN["iscas_two_layer_step"]
    p, e = here["params"], here["expected"]
    rule = PatternRule(
        inputs=5, hidden=4, outputs=3, steps=8, wb=p["wb"], ab=p["ab"], gb=p["gb"], eb=p["eb"], rb=p["rb"],
        rate=p["lr"], profile="paper", kernel=0.75, optimizer="adamax",
    )  # fmt: skip
    assert rule.scale(0) == rule.scale(1) == 0
    net = net_of(rule, backend)
    net.set_weights([torch.tensor(here["W1"]), torch.tensor(here["W2"])])
    x, y = torch.tensor(here["X"]).byte(), torch.tensor(here["Y"]).byte()
    u = [torch.tensor(here[k]) for k in ("u1", "u2")]

    run = net.backend.arithmetic
    used = net.used()
    unit = 1 if backend == "float" else 4
    assert [(w / unit).tolist() for w in used] == [e["q1"], e["q2"]]
    torch.testing.assert_close(run.currents(x, used[0]).float() / unit, torch.tensor(e["H1"]))
    tapes = [run.forward(x, used[0], 0)]
    tapes.append(run.forward(tapes[0].spikes, used[1], 1))
    for tape, n in zip(tapes, "12", strict=True):
        assert tape.spikes.tolist() == e[f"s{n}"]
        assert (tape.z * (2**7 if backend == "float" else 1)).tolist() == e[f"z{n}_code"]
        kept = run.forward(x if n == "1" else tapes[0].spikes, used[int(n) - 1], int(n) - 1, keep=True)
        for state, name in zip(kept.after, ("mem", "syn"), strict=True):
            assert (state * (2**7 if backend == "float" else 1)).tolist() == e[f"{name}{n}_code"]
    loss, gs2 = net.backend.loss(tapes[1].spikes, y, 0.75, 5e-3)
    assert loss.item() == pytest.approx(e["loss"], rel=1e-5)
    torch.testing.assert_close(gs2, torch.tensor(e["gs2"]), rtol=1e-5, atol=1e-6)
    size = 1 if backend == "float" else 128
    E2 = run.backward(gs2, tapes[1])
    assert (E2 / size).tolist() == e["E2"]
    gs1 = run.hidden_gradient(E2, used[1]) / (size * unit)
    torch.testing.assert_close(gs1, torch.tensor(e["gs1"]))
    E1 = run.backward(gs1, tapes[0])
    assert (E1 / size).tolist() == e["E1"]
    gradients = run.gradient(x, E1), run.gradient(tapes[0].spikes, E2)
    for g, n, uniform in zip(gradients, "12", u, strict=True):
        assert (g / size).tolist() == e[f"gW{n}_unquantised"]
        assert (run.change(g, uniform) * 128).tolist() == e[f"G{n}_steps"]

    assert net.step(x, y, u)[0] == pytest.approx(e["loss"], rel=1e-5)
    for w, name in zip(net.weights(), ("W1_after", "W2_after"), strict=True):
        torch.testing.assert_close(w, torch.tensor(e[name]), rtol=1e-5, atol=1e-6)
    second = here["second_step"]
    loss, trace, spikes = net.step(x, y, [1 - 0.999 * v for v in u])
    assert loss == pytest.approx(second["loss"], rel=1e-5)
    assert spikes.tolist() == second["s2"]
    assert trace["hidden"]["gradient_density"] == trace["output"]["gradient_density"] == 0
    for w, name in zip(net.weights(), ("W1_after", "W2_after"), strict=True):
        torch.testing.assert_close(w, torch.tensor(second[name]), rtol=1e-5, atol=1e-6)


def test_descent_subtracts_the_steps():
    here = GOLDEN["iscas_two_layer_step"]
    run = Values(replace(SMALL, wb=3))
    w = torch.tensor(here["W1"])
    after, nonzero = run.descend(w, torch.tensor(here["expected"]["gW1_unquantised"]), torch.tensor(here["u1"]))
    steps = torch.tensor(here["expected"]["G1_steps"])
    torch.testing.assert_close(after, w - steps / 128)
    assert nonzero == int(steps.count_nonzero())


# --- one arithmetic against the others -----------------------------------------------------------------------------


def same_run(rule: PatternRule, backends, epochs: int) -> None:
    """Losses, traces, rasters and master weights of the backends are equal in every epoch."""
    nets = [net_of(rule, b) for b in backends]
    x, y = sample(rule)
    runs = [train_pattern(n, x, y, epochs=epochs, generator=uniforms, snapshots=range(epochs + 1)) for n in nets]
    before, fired = nets[0].weights(), 0
    for rows in zip(*runs, strict=True):
        fired += int(rows[0]["raster"].sum())
        for row, net in zip(rows, nets, strict=True):
            assert row["loss"] == rows[0]["loss"]
            assert torch.equal(row["raster"], rows[0]["raster"])
            for layer, trace in row["trace"].items():
                first = rows[0]["trace"][layer]
                assert torch.equal(trace["spikes"], first["spikes"])
                assert all(trace[k] == first[k] for k in trace if k != "spikes")
            for a, b in zip(net.weights(), nets[0].weights(), strict=True):
                assert torch.equal(a, b)
    assert all(not torch.equal(a, b) for a, b in zip(before, nets[0].weights(), strict=True))
    assert fired > epochs


@pytest.mark.parametrize("profile", ["fixed", "release"])
def test_integers_and_float_emulation_agree_over_a_training_of_200_epochs(profile):
    # Of fewer inputs the first weights of `release`, scaled for 784, make no spikes.
    rule = replace(SMALL, profile=profile, kernel=None, inputs=200, hidden=100, steps=20)
    same_run(rule, ("integer", "float"), 200)


@pytest.mark.slow
@pytest.mark.parametrize(
    "widths, optimizer", [((2, 8, 8, 8), "sgd"), ((3, 12, 8, 12), "sgd"), ((5, 6, 8, 6), "adamax")], ids=str
)
def test_all_backends_agree_over_a_training_of_300_epochs(widths, optimizer):
    wb, ab, gb, eb = widths
    rule = PatternRule(inputs=60, hidden=70, outputs=30, steps=50, wb=wb, ab=ab, gb=gb, eb=eb, optimizer=optimizer)
    same_run(rule, ALL, 300)


rules = st.builds(
    PatternRule,
    inputs=st.sampled_from([1, 7, 33]), hidden=st.sampled_from([1, 9, 70]), outputs=st.sampled_from([1, 8]),
    steps=st.sampled_from([5, 12]), wb=st.integers(1, 16), ab=st.integers(5, 16), gb=st.integers(2, 16),
    eb=st.integers(1, 16), rb=st.integers(2, 24), alpha=st.sampled_from([0.75, 0.5, 0.0, 0.8125]),
    beta=st.sampled_from([0.875, 0.96875, 0.5]), profile=st.sampled_from(["release", "paper", "fixed"]),
    optimizer=st.sampled_from(["sgd", "adamax"]), rate=st.sampled_from([1.0, 0.1, 8.0]),
)  # fmt: skip


@settings(max_examples=40)
@given(rules)
def test_all_backends_agree_for_any_widths_and_sizes(rule):
    nets = [net_of(rule, b) for b in ALL]
    x, y = sample(rule)
    x |= 1  # so that even one input makes spikes
    for epoch in (1, 2, 3):
        rows = [n.step(x, y, n.draw(uniforms(epoch))) for n in nets]
        for net, (loss, _, spikes) in zip(nets, rows, strict=True):
            assert loss == rows[0][0] and torch.equal(spikes, rows[0][2])
            assert all(torch.equal(a, b) for a, b in zip(net.weights(), nets[0].weights(), strict=True))


@settings(max_examples=40)
@given(
    st.sampled_from([1, 2, 5, 12]), st.sampled_from([5, 6, 8, 12]), st.sampled_from([1, 2, 6, 8, 16]),
    st.sampled_from([0.75, 0.0, 0.8125]), st.sampled_from([0.875, 0.5]), st.integers(0, 2**20),
)  # fmt: skip
def test_kernels_leave_the_same_tape_errors_gradients_and_steps(wb, ab, eb, alpha, beta, seed):
    rule = PatternRule(inputs=50, hidden=70, outputs=9, steps=25, wb=wb, ab=ab, eb=eb, alpha=alpha, beta=beta)
    kernels, torch_codes = pattern_cpu.Kernels(rule), Codes(rule)
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(25, 50, generator=g) < 0.3).byte()
    w = torch.randint(-(2 ** (wb - 1)) + (wb > 1), 2 ** (wb - 1) + (wb == 1), (50, 70), generator=g).to(torch.int16)
    one, two = (run.forward(x, w, 0) for run in (kernels, torch_codes))
    for field in ("spikes", "z", "inside_z", "inside_mem", "inside_syn"):
        assert torch.equal(getattr(one, field).long(), getattr(two, field).long()), field
    signal = torch.randn(25, 70, generator=g) * torch.logspace(-6, 3, 25)[:, None]
    E, same = kernels.backward(signal, one), torch_codes.backward(signal, two)
    assert torch.equal(E.long(), same) and bool(E.any())
    gradient = kernels.gradient(x, E)
    assert torch.equal(gradient.long(), torch_codes.gradient(x, same))
    u = torch.rand(50, 70, generator=g)
    assert torch.equal(kernels.steps(gradient, u).long(), torch_codes.steps(gradient.long(), u))


@given(st.integers(0, 2**20), st.sampled_from([0.75, 0.875, 0.3]))
def test_both_van_rossum_functions_agree_bit_for_bit(seed, kernel):
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(40, 9, generator=g) < 0.3 for _ in range(2))
    for a, b in zip(van_rossum(x, y, kernel, 5e-3), pattern_cpu.van_rossum(x, y, kernel, 5e-3), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_threads_changes_nothing():
    rule = replace(SMALL, hidden=150)
    x, y = sample(rule)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        net = net_of(rule)
        rows = list(train_pattern(net, x, y, epochs=5, generator=uniforms))
        results.append(([r["loss"] for r in rows], net.weights()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["integer", "float"])
def test_a_gpu_gives_the_same_codes(backend):
    x, y = sample(SMALL)
    here, there = net_of(SMALL), PatternNet(SMALL, generator=seeded(0), device="cuda", backend=backend)
    there.set_weights(here.weights())
    for epoch in range(1, 21):
        a = here.step(x, y, here.draw(uniforms(epoch)))
        b = there.step(x.cuda(), y.cuda(), [u.cuda() for u in there.draw(uniforms(epoch))])
        assert a[0] == pytest.approx(b[0], rel=1e-6) and torch.equal(a[2], b[2].cpu())
        assert all(torch.equal(v, w.cpu()) for v, w in zip(here.weights(), there.weights(), strict=True))


# --- the rule ------------------------------------------------------------------------------------------------------


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad / (SLOPE * z.abs() + 1) ** 2


def test_without_widths_the_gradient_is_the_one_of_autograd():
    rule = replace(SMALL, wb=None, ab=None, gb=None, eb=None, rb=None, profile="fixed")
    run = Values(rule, torch.float64)
    x, y = sample(rule)
    masters = [w.double().requires_grad_() for w in net_of(rule).weights()]
    s = x.double()
    for layer in (0, 1):
        H = s @ (masters[layer] / 2.0 ** rule.scale(layer))
        mem = syn = torch.zeros(H.shape[1], dtype=torch.float64)
        spikes = []
        for t in range(rule.steps):
            out = _Spike.apply(mem - THRESHOLD)
            mem, syn = rule.beta * mem + syn - out.detach(), rule.alpha * syn + H[t]
            spikes.append(out)
        s = torch.stack(spikes)
    filtered, D = torch.zeros(rule.outputs, dtype=torch.float64), []
    for t in range(rule.steps):
        filtered = 0.75 * filtered + s[t] - y[t]
        D.append(filtered)
    loss = (torch.stack(D).square().sum() / rule.tau_s).sqrt()
    loss.backward()

    used = [run.weights(w.detach(), layer) for layer, w in enumerate(masters)]
    hidden = run.forward(x, used[0], 0)
    output = run.forward(hidden.spikes, used[1], 1)
    assert int(output.spikes.sum()) > 20
    assert torch.equal(output.spikes, s.byte())
    found, g = van_rossum(output.spikes, y, 0.75, rule.tau_s)
    assert found.item() == pytest.approx(loss.item())
    E2 = run.backward(g, output)
    E1 = run.backward(run.hidden_gradient(E2, used[1]), hidden)
    for layer, gradient in enumerate((run.gradient(x, E1), run.gradient(hidden.spikes, E2))):
        expected = masters[layer].grad * 2.0 ** rule.scale(layer)  # the source does not divide gradients by the scale
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_an_input_reaches_the_hidden_spikes_after_two_steps_and_the_output_after_four():
    rule = replace(SMALL, wb=8, profile="fixed")
    net = net_of(rule)
    net.set_weights([torch.full(s, 0.9921875) for s in rule.shapes])
    x = torch.ones(rule.steps, rule.inputs, dtype=torch.uint8)
    _, trace = net(x)
    assert trace["hidden"]["spikes"].nonzero()[0].item() == 2
    assert trace["output"]["spikes"].nonzero()[0].item() == 4


def test_profiles_differ_as_the_table_says():
    release, paper, fixed = (PatternRule(profile=p) for p in ("release", "paper", "fixed"))
    assert [r.scale(0) for r in (release, paper, fixed)] == [4, 4, 4]
    assert [r.scale(1) for r in (release, paper, fixed)] == [4, 3, 3]
    assert [r.vr_kernel for r in (release, paper, fixed)] == [0.75, 0.875, 0.75]
    assert replace(release, alpha=0.5).vr_kernel == 0.5 and replace(fixed, alpha=0.5).vr_kernel == 0.75
    assert replace(paper, kernel=0.25).vr_kernel == 0.25
    assert [r.update for r in (release, paper, fixed)] == ["adamax", "sgd", "sgd"]
    assert [r.step_rate for r in (release, paper, fixed)] == [0.1, 1.0, 1.0]
    assert [r.unbiased for r in (release, paper, fixed)] == [False, False, True]
    assert [replace(r, wb=None).divides() for r in (release, paper, fixed)] == [False, False, True]
    assert [replace(r, ab=10).master_bits for r in (release, paper, fixed)] == [10, 10, 8]
    # The published code rounds first weights to ab bits; corrected, to gb bits.
    for rule, bits in ((release, 6), (paper, 6), (fixed, 10)):
        w = replace(rule, ab=6, gb=10).first_weights(0, torch.Generator().manual_seed(0))
        assert torch.equal(w, (w * 2 ** (bits - 1)).round() / 2 ** (bits - 1))
        assert not torch.equal(w, (w * 2 ** (bits - 2)).round() / 2 ** (bits - 2))
        assert w.abs().max() == 0.75


def test_integers_store_codes_of_the_master_weights_and_adamax_leaves_the_grid():
    x, y = sample(SMALL)
    for optimizer, on_grid in (("sgd", True), ("adamax", False)):
        net = net_of(replace(SMALL, optimizer=optimizer))
        list(train_pattern(net, x, y, epochs=3, generator=uniforms))
        assert net.weight1.is_floating_point() is not on_grid
        w = net.weights()[0] * 128
        assert torch.equal(w, w.round()) is on_grid


def test_weights_are_clipped_to_the_range_of_their_width():
    x, y = sample(SMALL)
    for backend in ("integer", "float"):
        for wb, limit in ((1, 1.0), (2, 0.5), (4, 0.875)):
            net = net_of(replace(SMALL, wb=wb, gb=4, profile="fixed", rate=8.0), backend)
            list(train_pattern(net, x, y, epochs=5, generator=uniforms))
            assert max(w.abs().max().item() for w in net.weights()) > limit
            net(x)
            assert max(w.abs().max().item() for w in net.weights()) == limit


def test_float_emulation_takes_float64_where_float32_would_round():
    assert emulation_type(PatternRule()) == torch.float32
    assert emulation_type(PatternRule(wb=6, ab=12, eb=12, gb=12)) == torch.float32
    assert emulation_type(PatternRule(wb=12, ab=16, eb=16)) == torch.float64
    assert emulation_type(PatternRule(wb=None)) == torch.float32


def test_uniforms_are_drawn_for_the_second_layer_first():
    net = net_of(SMALL)
    one, two = net.draw(seeded(3))
    g = seeded(3)
    assert torch.equal(two, torch.rand(24, 20, generator=g)) and torch.equal(one, torch.rand(40, 24, generator=g))


# --- learning ------------------------------------------------------------------------------------------------------


def learn(rule: PatternRule, epochs: int, seed: int = 0) -> list[float]:
    data = load_pattern(
        steps=rule.steps, inputs=rule.inputs, outputs=rule.outputs, input_generator=seeded(seed, 1),
        target_generator=seeded(seed, 2),
    )  # fmt: skip
    rows = train_pattern(net_of(rule, seed=seed), data.input_TI, data.target_TO, epochs=epochs, generator=uniforms)
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("bits", [8, None])
def test_a_small_net_learns_a_small_smiley(bits):
    rule = PatternRule(inputs=150, hidden=120, outputs=40, steps=60, wb=bits and 2, ab=bits, gb=bits, eb=bits,
                       rb=bits and 16)  # fmt: skip
    losses = learn(rule, 150 if bits else 50)
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, expected",
    [
        (PatternRule(profile="paper", kernel=0.75), (5621, 5423, 5126, 5045)),
        (PatternRule(profile="paper", kernel=0.75, rate=0.1), (5621, 5603, 5413, 5342)),
        (PatternRule(profile="release"), (5462, 5273, 5141, 5051)),
        (PatternRule(profile="fixed"), (5621, 5423, 5126, 5045)),
    ],
    ids=["paper", "paper-rate-0.1", "release", "fixed"],
)
def test_the_loss_falls_as_in_the_recreation_of_the_published_runs(rule, expected):
    losses = learn(rule, 201)
    for epoch, value in zip((1, 11, 101, 201), expected, strict=True):
        # Another sample, other draws: between seeds plain descent differs by 1 %, Adamax by 3 %.
        assert losses[epoch - 1] == pytest.approx(value, rel=0.05 if rule.update == "adamax" else 0.025)


@pytest.mark.slow
def test_the_kernels_are_at_least_five_times_as_fast_as_the_published_way():
    rule = PatternRule()
    x, y = sample(rule)
    seconds = {}
    for backend, epochs in (("float", 3), ("integer", 9)):
        net = net_of(rule, backend)
        net.step(x, y, net.draw(uniforms(0)))
        times = []
        for epoch in range(epochs):
            start = time.perf_counter()
            net.step(x, y, net.draw(uniforms(epoch)))
            times.append(time.perf_counter() - start)
        seconds[backend] = min(times)
    assert seconds["float"] > 5 * seconds["integer"]


# --- rows and traces -----------------------------------------------------------------------------------------------


def test_a_row_holds_loss_trace_and_the_asked_rasters():
    x, y = sample(SMALL)
    rows = list(train_pattern(net_of(SMALL), x, y, epochs=4, generator=uniforms, snapshots=(1, 4)))
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]
    assert ["raster" in r for r in rows] == [True, False, False, True]
    first = rows[0]
    assert first["raster"].shape == y.shape
    assert torch.equal(first["trace"]["output"]["spikes"], first["raster"].sum(1))
    assert first["loss"] == van_rossum(first["raster"], y, 0.75, 5e-3)[0].item()
    hidden, output = first["trace"]["hidden"], first["trace"]["output"]
    assert hidden["input_density"] == x.float().mean().item()
    assert output["input_density"] == pytest.approx(hidden["spikes"].sum().item() / (30 * 24))
    for here in (hidden, output):
        assert 0 < here["weight_density"] < 1 and 0 < here["error_density"] < 1
        assert 0 < here["update_share"] <= here["gradient_density"] < 1


def test_update_shares_count_the_stored_weights_that_change():
    x, y = sample(SMALL)
    net = net_of(SMALL)
    net(x)
    before = net.weights()
    _, trace, _ = net.step(x, y, net.draw(uniforms(1)))
    net(x)
    for a, b, layer in zip(before, net.weights(), ("hidden", "output"), strict=True):
        assert trace[layer]["update_share"] == (a != b).double().mean().item()


def test_the_trace_of_a_forward_pass_can_be_accounted():
    x, _ = sample(SMALL)
    net = net_of(SMALL)
    spikes, trace = net(x, account=(16,))
    counts = Counts(SMALL.steps)
    counts.add(trace, 1)
    hidden, output = counts.layers["hidden"], counts.layers["output"]
    assert hidden.weight_shape == (24, 40) and output.weight_shape == (20, 24)
    assert hidden.unit.sum() == x.sum() and output.unit.sum() == hidden.spikes_T.sum()
    assert output.spikes_T.sum() == spikes.sum() and (counts.raster["output"] == spikes.bool().numpy()).all()
    assert len(hidden.windows[16]) == 3 and hidden.neurons == 24


def test_a_resumed_training_ends_with_the_same_weights():
    x, y = sample(SMALL)
    for optimizer in ("sgd", "adamax"):
        rule = replace(SMALL, optimizer=optimizer)
        whole, first, second = net_of(rule), net_of(rule), net_of(rule, seed=9)
        list(train_pattern(whole, x, y, epochs=12, generator=uniforms))
        list(train_pattern(first, x, y, epochs=5, generator=uniforms))
        second.load_state_dict(first.state_dict())
        assert [r["epoch"] for r in train_pattern(second, x, y, epochs=12, generator=uniforms)] == [*range(6, 13)]
        for name, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("there", ["integer-torch", "float"])
def test_a_training_goes_on_with_another_backend(there):
    x, y = sample(SMALL)
    for first, second in (("integer", there), (there, "integer")):
        one, two = net_of(SMALL, first), net_of(SMALL, second, seed=9)
        list(train_pattern(one, x, y, epochs=3, generator=uniforms))
        two.load_state_dict(one.state_dict())
        losses = [[r["loss"] for r in train_pattern(n, x, y, epochs=6, generator=uniforms)] for n in (one, two)]
        assert losses[0] == losses[1] and len(losses[0]) == 3


def test_an_input_without_spikes_trains_nothing_and_breaks_nothing():
    x, y = sample(SMALL)
    for backend in ALL:
        net = net_of(SMALL, backend)
        before = net.weights()[0].clamp(-0.5, 0.5)
        _, trace, _ = net.step(torch.zeros_like(x), y, net.draw(uniforms(0)))
        assert trace["hidden"]["gradient_density"] == 0
        assert torch.equal(net.weights()[0], before)


# --- choices and messages ------------------------------------------------------------------------------------------


def test_the_backend_follows_from_widths_device_and_numba(monkeypatch):
    assert (b := choose(PatternRule())).name == "integer" and "numba" in b.reason
    assert (b := choose(PatternRule(eb=None))).name == "float" and "(eb)" in b.reason and "float32" in b.reason
    assert (b := choose(PatternRule(), "cuda")).name == "integer-torch" and "CPU" in b.reason
    assert (b := choose(PatternRule(), asked="float")).name == "float" and "asked for" in b.reason
    monkeypatch.delattr("hwsim.network.pattern_cpu")
    monkeypatch.setitem(sys.modules, "hwsim.network.pattern_cpu", None)
    assert (b := choose(PatternRule())).name == "integer-torch" and "numba" in b.reason


@pytest.mark.parametrize(
    "mistake, message",
    [
        ({"ab": 4}, "ab: 4 bits can never fire: the largest membrane code is 7, a spike needs 8"),
        ({"ab": 17}, "ab: found 17; it must be from 5 to 16"),
        ({"wb": 0}, "wb: found 0; it must be from 1 to 16, or none"),
        ({"rb": 25}, "rb: found 25"),
        ({"steps": 4}, "steps: found 4; it must be at least 5: an output spike needs the first four"),
        ({"hidden": 0}, "hidden: found 0; it must be at least 1"),
        ({"alpha": 1.0}, "alpha: found 1; it must be at least 0 and below 1"),
        ({"rate": 0.0}, "rate: found 0; it must be above 0"),
        ({"tau_s": -1.0}, "tau_s: found -1; it must be above 0"),
        ({"profile": "papers"}, "profile: found 'papers'; there is release, paper, fixed"),
        ({"optimizer": "adam"}, "optimizer: found 'adam'; there is sgd, adamax"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_mistakes_in_a_rule_are_explained(mistake, message):
    with pytest.raises(ConfigError) as e:
        PatternRule(**mistake)
    assert message in str(e.value)


def test_all_mistakes_of_a_rule_are_reported_at_once():
    with pytest.raises(ConfigError) as e:
        PatternRule(ab=3, steps=1, beta=2.0)
    assert len(e.value.messages) == 3


def test_what_integers_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="backend: integers need all five widths, gb is none"):
        choose(PatternRule(gb=None), asked="integer")
    with pytest.raises(ConfigError, match=r"alpha: 0.9 is no multiple of 1/1024.*take 0.900391"):
        choose(PatternRule(alpha=0.9))
    assert choose(PatternRule(alpha=0.9), asked="float").name == "float"
    with pytest.raises(ConfigError, match="there is no 'integr'; did you mean 'integer'"):
        choose(PatternRule(), asked="integr")
    assert dyadic(0.0, "alpha") == (0, 0) and dyadic(0.96875, "beta") == (31, 5)


def test_rasters_of_another_size_are_refused_before_training():
    x, y = sample(SMALL)
    for a, b, message in (
        (x[:-1], y, "input raster is 29x40, the network has 30 steps x 40 neurons"),
        (x, y[:, 1:], "target raster is 30x19, the network has 30 steps x 20 neurons"),
    ):
        with pytest.raises(ConfigError, match=message):
            next(train_pattern(net_of(SMALL), a, b, epochs=1, generator=uniforms))
