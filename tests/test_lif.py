"""The neuron against published numbers, its equations written out, finite differences and itself on other threads."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hwsim.network
from hwsim.network import lif, lif_cpu
from hwsim.network.layer import BNTT, Conv2d
from hwsim.network.lif import choose, lif_bntt

GOLDEN = Path(__file__).parent / "golden"
SCALAR = json.loads((GOLDEN / "bntt.json").read_text(encoding="utf-8"))["lif_scalar"]
LAYER = json.loads((GOLDEN / "rram_sram_network.json").read_text(encoding="utf-8"))["lif_bntt_layer"]

EPS = 1e-4
BOUND = {"float64": 1e-12, "float32": 1e-5}
"""Largest error as a fraction of the largest value that the equations give in float64."""
MARGIN = {"float64": 1e-9, "float32": 2e-5}
"""No membrane of a compared case lies nearer to its threshold (in thresholds), so that rounding cannot flip a spike."""


@dataclass(frozen=True)
class Case:
    T: int = 3
    B: int = 2
    C: int = 4
    H: int = 4
    W: int = 4
    pool: int = 1
    training: bool = True
    leak: float = 0.95
    threshold: float = 1.0

    def __str__(self):
        mode = "training" if self.training else "evaluation"
        return f"T{self.T}-B{self.B}-C{self.C}-{self.H}x{self.W}-pool{self.pool}-{mode}-{self.leak}-{self.threshold}"

    @property
    def neuron(self) -> dict:
        return {"eps": EPS, "leak": self.leak, "threshold": self.threshold, "pool": self.pool}


CASES = [
    Case(),
    Case(pool=2),
    Case(training=False, threshold=0.7),
    Case(training=False, pool=2, leak=0.5),
    Case(T=1, B=1, H=5, W=2, pool=2),
    Case(T=5, H=1, W=1, B=7, leak=1.0),  # an fc layer
    Case(H=5, W=7, pool=2, threshold=1.3),
    Case(H=5, W=7, leak=0.0),
    Case(T=4, C=1, H=2, W=5, pool=2, training=False, leak=0.9, threshold=0.6),
    Case(T=6, C=19, H=3, W=3, pool=2, B=3),
]


def drawn(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Currents whose mean is two to three spreads, gains, a gradient of the output, and running statistics."""
    rng = np.random.default_rng(seed)
    T, B, C, H, W = case.T, case.B, case.C, case.H, case.W
    center = rng.uniform(2, 3, (T, 1, C, 1, 1)) * rng.choice([-1, 1], (T, 1, C, 1, 1))
    x = rng.standard_normal((T, B, C, H, W)) + center
    return {
        "x": x,
        "gain": 1 + 0.3 * rng.standard_normal((T, C)),
        "grad_out": rng.standard_normal((T, B, C, H // case.pool, W // case.pool)),
        "mean": center[:, 0, :, 0, 0] - 0.4 * rng.random((T, C)),
        "var": rng.uniform(0.5, 1.5, (T, C)),
    }


def membranes(case: Case, y: np.ndarray, resets: np.ndarray | None = None) -> np.ndarray:
    """v = pre / threshold - 1 of every step; `resets` are spikes to reset by in place of the neuron's own."""
    u, v = np.zeros_like(y[0]), np.empty_like(y)
    for t in range(case.T):
        pre = case.leak * u + y[t]
        v[t] = pre / case.threshold - 1
        u = pre - case.threshold * ((v[t] > 0) if resets is None else resets[t])
    return v


def normalized(case: Case, x, mean, var) -> tuple[np.ndarray, np.ndarray]:
    """(x - mean) / sqrt(var + eps) and 1 / sqrt(var + eps), with the batch's own statistics in training."""
    if case.training:
        mean, var = x.mean((1, 3, 4)), x.var((1, 3, 4))
    invstd = 1 / np.sqrt(var + EPS)
    return (x - spread(mean)) * spread(invstd), spread(invstd)


def spread(p_TC: np.ndarray) -> np.ndarray:
    return p_TC[:, None, :, None, None]


def pooled(s: np.ndarray, pool: int) -> np.ndarray:
    """Averages over pool x pool; an odd last row or column is left out."""
    h, w = s.shape[3] // pool, s.shape[4] // pool
    return s[..., : h * pool, : w * pool].reshape(*s.shape[:3], h, pool, w, pool).mean((4, 6))


def by_hand(case: Case, x, gain, grad_out, mean, var) -> tuple[dict[str, np.ndarray], float]:
    """All results in float64 from the equations with their derivatives written out; and the smallest |v|."""
    hat, invstd = normalized(case, x, mean, var)
    v = membranes(case, spread(gain) * hat)
    s = (v > 0).astype(float)
    g = np.zeros_like(x)
    h, w = grad_out.shape[3] * case.pool, grad_out.shape[4] * case.pool
    g[..., :h, :w] = np.repeat(np.repeat(grad_out, case.pool, 3), case.pool, 4) / case.pool**2
    dy, d = np.empty_like(x), 0.0
    for t in reversed(range(case.T)):
        d = g[t] * 0.3 * np.maximum(0, 1 - abs(v[t])) / case.threshold + case.leak * d
        dy[t] = d
    grad_x = spread(gain) * dy
    if case.training:
        grad_x -= grad_x.mean((1, 3, 4), keepdims=True) + hat * (grad_x * hat).mean((1, 3, 4), keepdims=True)
        mean, var = x.mean((1, 3, 4)), x.var((1, 3, 4))
    results = {
        "out": pooled(s, case.pool), "count": s.sum((1, 2, 3, 4)), "mean": mean, "var": var,
        "grad_x": grad_x * invstd, "grad_gain": (dy * hat).sum((1, 3, 4)),
    }  # fmt: skip
    return results, abs(v).min()


def computed(case: Case, inputs: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The same results from `lif_bntt`, on the backend in force."""
    x, gain, grad_out, mean, var = (torch.from_numpy(inputs[k]).to(dtype) for k in inputs)
    x, gain = x.requires_grad_(), gain.requires_grad_()
    running = () if case.training else (mean, var)
    out, count, mean, var = lif_bntt(x, gain, *running, **case.neuron)
    out.backward(grad_out)
    return {"out": out.detach(), "count": count, "mean": mean, "var": var, "grad_x": x.grad, "grad_gain": gain.grad}


def rounded(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs that float32 holds exactly."""
    return {k: v.astype(np.float32).astype(float) for k, v in inputs.items()}


def hold(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray], dtype: str) -> None:
    """Spikes and counts exactly, everything else within the bound."""
    errors = {}
    for name, value in expected.items():
        got = found[name]
        assert tuple(got.shape) == value.shape
        assert got.dtype == (torch.int64 if name == "count" else getattr(torch, dtype))
        errors[name] = abs(got.double().numpy() - value).max() / (abs(value).max() or 1)
    assert errors.pop("out") == 0
    assert errors.pop("count") == 0
    assert {k: e for k, e in errors.items() if not e <= BOUND[dtype]} == {}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_is_its_equations_written_out(case, dtype, backend):
    for seed in range(100):
        inputs = rounded(drawn(case, seed))
        expected, margin = by_hand(case, **inputs)
        if margin > MARGIN[dtype]:
            break
    assert margin > MARGIN[dtype]
    assert expected["count"].sum() > 0
    hold(computed(case, inputs, getattr(torch, dtype)), expected, dtype)


@settings(max_examples=60)
@given(
    st.builds(
        Case,
        T=st.integers(1, 5),
        B=st.integers(1, 3),
        C=st.integers(1, 5),
        H=st.integers(2, 6),
        W=st.integers(2, 6),
        pool=st.sampled_from([1, 2]),
        training=st.booleans(),
        leak=st.floats(0, 1),
        threshold=st.floats(0.3, 2),
    ),
    st.integers(0, 2**32),
)
def test_the_fast_backend_is_the_equations_for_any_shape(case, seed):
    inputs = drawn(case, seed)
    expected, margin = by_hand(case, **inputs)
    assume(margin > MARGIN["float64"])
    assert choose("cpu").name == "cpu"
    hold(computed(case, inputs), expected, "float64")


@pytest.mark.parametrize("case", [Case(B=2, H=3, W=3), Case(H=3, W=5, pool=2, threshold=1.3, leak=0.8)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_finite_differences_of_what_the_surrogate_integrates_to(case, training, backend):
    # Spikes are steps, so that differences of the network itself are 0 or infinite. The surrogate gradient is the true
    # gradient of another function: the step replaced by the surrogate's integral, resets held where they are.
    case = Case(**{**vars(case), "training": training})
    inputs = drawn(case, 3)
    hat, _ = normalized(case, inputs["x"], inputs["mean"], inputs["var"])
    resets = membranes(case, spread(inputs["gain"]) * hat) > 0

    def integral(v):
        return 0.3 * np.where(v < 0, np.maximum(0, 1 + v) ** 2, 2 - np.maximum(0, 1 - v) ** 2) / 2

    def smooth(x, gain):
        hat, _ = normalized(case, x, inputs["mean"], inputs["var"])
        v = membranes(case, spread(gain) * hat, resets)
        return (pooled(integral(v), case.pool) * inputs["grad_out"]).sum()

    found = computed(case, inputs)
    rng, h = np.random.default_rng(0), 1e-6
    for name in ("x", "gain"):
        for _ in range(8):
            direction = rng.standard_normal(inputs[name].shape)
            ends = [
                smooth(**{k: inputs[k] + (sign * h * direction if k == name else 0) for k in ("x", "gain")})
                for sign in (1, -1)
            ]
            slope = (found[f"grad_{name}"].numpy() * direction).sum()
            assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("run", SCALAR["runs"], ids=lambda r: f"leak{r['lambda']}")
def test_one_neuron_matches_golden(run, backend):
    x = torch.tensor(SCALAR["current"]).view(-1, 1, 1, 1, 1).requires_grad_()
    one, zero = torch.ones(len(x), 1), torch.zeros(len(x), 1)
    # With eps 0, mean 0 and variance 1 the normalization is the identity.
    s, count, _, _ = lif_bntt(x, one, zero, one, eps=0.0, leak=run["lambda"], threshold=run["theta"])
    (s.flatten() * torch.arange(1, len(x) + 1)).sum().backward()
    assert s.flatten().tolist() == run["spike"] == count.tolist()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(run["grad_current"]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", ["train_mode", "eval_mode"])
def test_one_layer_matches_golden(mode, backend):
    golden = LAYER[mode]
    conv, bntt = Conv2d(2, 3), BNTT(3, 3)
    conv.weight.data = torch.tensor(LAYER["W"])
    bntt.weight.data = torch.tensor(LAYER["gamma"])
    bntt.running_mean, bntt.running_var = torch.tensor(LAYER["running_mean"]), torch.tensor(LAYER["running_var"])
    bntt.train(mode == "train_mode")
    neuron = {"leak": LAYER["leak"], "threshold": LAYER["threshold"]}
    current = conv(torch.tensor(LAYER["x"], dtype=torch.float32), parts=1)
    assert torch.equal(current, torch.tensor(golden["current"]))

    spikes, count = bntt(current, **neuron)
    loss = (spikes * torch.tensor(LAYER["coef"])).sum()
    loss.backward()
    expected = torch.tensor(golden["spikes"])
    assert torch.equal(spikes, expected.float())
    assert count.tolist() == expected.sum((1, 2, 3, 4)).tolist()
    close = {"rtol": 1e-5, "atol": 2e-6}
    torch.testing.assert_close(loss, torch.tensor(golden["loss"]), **close)
    torch.testing.assert_close(conv.weight.grad, torch.tensor(golden["grad_W"]), **close)
    torch.testing.assert_close(bntt.weight.grad, torch.tensor(golden["grad_gamma"]), **close)
    torch.testing.assert_close(bntt.running_mean, torch.tensor(golden["running_mean_after"]), **close)
    torch.testing.assert_close(bntt.running_var, torch.tensor(golden["running_var_after"]), **close)

    bntt.running_mean, bntt.running_var = torch.tensor(LAYER["running_mean"]), torch.tensor(LAYER["running_var"])
    pooled_spikes, pooled_count = bntt(current.detach(), pool=2, **neuron)
    assert torch.equal(pooled_spikes, torch.tensor(golden["pooled"]))
    assert torch.equal(pooled_count, count)


@pytest.mark.parametrize("threshold", [1.0, 0.77])
def test_a_membrane_at_the_threshold_does_not_fire(threshold, backend):
    at = torch.full((1, 3, 2, 1, 1), threshold)
    one, zero = torch.ones(1, 2), torch.zeros(1, 2)
    counts = [
        lif_bntt(x, one, zero, one, eps=0.0, leak=0.9, threshold=threshold)[1].item()
        for x in (at, at.nextafter(torch.tensor(2.0)))
    ]
    assert counts == [0, 6]


@pytest.mark.parametrize("pool", [1, 2])
def test_backends_give_the_same_bits_for_the_same_statistics(pool, monkeypatch):
    case = Case(T=6, B=4, C=37, H=13, W=14, pool=pool, training=False, threshold=0.9)
    inputs = drawn(case, 1)
    found = computed(case, inputs, torch.float32)
    monkeypatch.setattr(lif, "forced", "reference")
    expected = computed(case, inputs, torch.float32)
    assert expected["count"].sum() > 10_000
    assert torch.equal(found["out"], expected["out"])
    assert torch.equal(found["count"], expected["count"])
    for name in ("grad_x", "grad_gain"):
        apart = (found[name] - expected[name]).abs().max() / expected[name].abs().max()
        assert apart < BOUND["float32"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [Case(T=4, B=5, C=24, H=7, W=6, pool=2), Case(T=4, B=64, C=9, H=1, W=1)], ids=str)
def test_the_number_of_threads_and_the_run_change_no_byte(case, dtype):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    inputs = drawn(case, 1)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        results.append(computed(case, inputs, dtype))
    assert all(torch.equal(results[0][k], other[k]) for other in results[1:] for k in results[0])


def test_count_holds_spikes_that_pooling_leaves_out(backend):
    case = Case(H=5, W=5, pool=2)
    x = torch.from_numpy(drawn(case, 0)["x"])
    gain = torch.ones(case.T, case.C, dtype=torch.float64)
    out, count, _, _ = lif_bntt(x, gain, **case.neuron)
    whole, same, _, _ = lif_bntt(x, gain, **{**case.neuron, "pool": 1})
    assert torch.equal(count, same)
    assert torch.equal(count.double(), whole.sum((1, 2, 3, 4)))
    assert torch.equal(4 * out.sum((1, 2, 3, 4)), whole[..., :4, :4].sum((1, 2, 3, 4)))


@pytest.mark.parametrize("training", [True, False])
def test_later_steps_do_not_reach_back(training, backend):
    # Fewer steps are the beginning of more steps: no statistics, membranes or counts flow backwards in time.
    long = Case(T=6, pool=2, training=training)
    short = Case(T=4, pool=2, training=training)
    inputs = drawn(long, 2)
    inputs["grad_out"][4:] = 0
    whole = computed(long, inputs)
    beginning = computed(short, {k: v[:4] for k, v in inputs.items()})
    for name, value in beginning.items():
        torch.testing.assert_close(whole[name][:4], value, rtol=1e-13, atol=1e-15)
        if name.startswith("grad"):
            assert whole[name][4:].count_nonzero() == 0


def test_currents_that_are_the_same_at_every_step_get_the_sum_of_the_gradients(backend):
    # Direct coding hands in one current that is expanded over time: stride 0.
    case = Case(T=4, C=6, pool=2)
    inputs = drawn(case, 5)
    once = torch.from_numpy(inputs["x"][:1]).requires_grad_()
    gain, grad_out = torch.from_numpy(inputs["gain"]), torch.from_numpy(inputs["grad_out"])
    out = lif_bntt(once.expand(4, -1, -1, -1, -1), gain, **case.neuron)[0]
    out.backward(grad_out)
    inputs["x"][:] = inputs["x"][:1]
    copied = computed(case, inputs)
    assert torch.equal(out, copied["out"])
    torch.testing.assert_close(once.grad[0], copied["grad_x"].sum(0), rtol=1e-12, atol=1e-15)


def test_how_currents_lie_in_memory_changes_nothing(backend):
    case = Case(C=5, H=6, W=7, pool=2)
    x = torch.from_numpy(drawn(case, 4)["x"])
    gain = torch.ones(case.T, case.C, dtype=torch.float64)
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    outs = [lif_bntt(form, gain, **case.neuron)[0] for form in (x, last, x.repeat(1, 1, 1, 1, 2)[..., :7])]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_statistics_survive_a_mean_far_from_zero():
    x = torch.randn(2, 40, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 1e4
    mean, var = lif_cpu.statistics(x)
    exact = x.double()
    assert (mean.double() / exact.mean((1, 3, 4)) - 1).abs().max() < 1e-7
    # E[x²] - E[x]² in float32 would lose every digit.
    assert (var.double() / exact.var((1, 3, 4), correction=0) - 1).abs().max() < 1e-6


def test_the_fast_backend_keeps_only_the_currents_for_the_backward_pass():
    kept = []
    x = torch.randn(5, 2, 8, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        lif_bntt(x, torch.ones(5, 8, requires_grad=True), eps=EPS, leak=0.9, pool=2)
    assert sum(kept) <= x.numel() + 5 * 5 * 8


def test_only_what_needs_a_gradient_gets_one(backend):
    case = Case()
    x, gain = torch.from_numpy(drawn(case, 0)["x"]), torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    out, count, mean, var = lif_bntt(x, gain, **case.neuron)
    assert not (count.requires_grad or mean.requires_grad or var.requires_grad)
    out.sum().backward()
    assert x.grad is None
    assert gain.grad.count_nonzero() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pool": 3}, "pool is 3; it can be 1 or 2"),
        ({"x": torch.zeros(3, 2, 4, 1, 5), "pool": 2}, "1x5 positions cannot be pooled over 2x2"),
        ({"gain": torch.ones(2, 4)}, r"gains of shape \(2, 4\), expected \(3, 4\)"),
        ({"gain": torch.ones(5, 4)}, r"gains of shape \(5, 4\), expected \(3, 4\)"),
        ({"mean": torch.zeros(3, 5), "var": torch.ones(3, 5)}, r"means of shape \(3, 5\), expected \(3, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, words, backend):
    call = {"x": torch.zeros(3, 2, 4, 5, 5), "gain": torch.ones(3, 4), "mean": None, "var": None, "pool": 1} | change
    with pytest.raises(ValueError, match=words):
        lif_bntt(call["x"], call["gain"], call["mean"], call["var"], eps=EPS, leak=0.9, pool=call["pool"])


def test_the_choice_of_a_backend_has_a_reason(monkeypatch):
    assert choose("cpu")[:2] == ("cpu", f"numba {numba.__version__}")
    assert choose("meta")[:2] == ("reference", "there is no kernel for device 'meta'")
    monkeypatch.setattr(lif, "forced", "reference")
    assert choose("cpu")[:2] == ("reference", "asked for")


def test_without_numba_plain_torch_runs_and_says_so(monkeypatch):
    monkeypatch.delattr(hwsim.network, "lif_cpu")
    monkeypatch.setitem(sys.modules, "hwsim.network.lif_cpu", None)
    monkeypatch.setattr(lif, "_chosen", lif._chosen.__wrapped__)  # the answer of before is remembered
    backend = choose("cpu")
    assert (backend.name, backend.module) == ("reference", None)
    assert backend.reason.startswith("numba cannot be imported")
    assert backend.reason.endswith("slow for large networks")
