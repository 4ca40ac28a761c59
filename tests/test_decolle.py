"""One DECOLLE layer: golden vectors, an independent computation, autograd, what the profiles do, refused settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwsim.config import ConfigError
from hwsim.network.decolle import build, vote
from hwsim.network.decolle_arithmetic import Real, Whole
from hwsim.network.decolle_cpu import FusedLayer, available
from hwsim.network.decolle_layer import Layer, gradient_gain
from hwsim.network.decolle_rule import WIDTHS, DecolleRule, remarks
from hwsim.network.decolle_step import StepLayer
from hwsim.network.decolle_stepwise import PublishedLayer
from hwsim.network.decolle_trace import LayerTrace

GOLDEN = json.loads((Path(__file__).parent / "golden" / "decolle.json").read_text())
SMALL = {
    "image": (6, 6), "classes": 3, "channels": (4,), "kernel": 3, "padding": 1, "pooling": (2,), "burn_in": 2,
    "weight_mult": 2.0**-12,
}  # fmt: skip
NONE = dict.fromkeys(WIDTHS)


@pytest.fixture(autouse=True)
def no_autograd():
    with torch.no_grad():
        yield


def golden_layer(name: str) -> Layer:
    g = GOLDEN[name]
    p = g["params"]
    widths = {w: p[w] for w in WIDTHS}
    rule = DecolleRule(
        image=tuple(p["inp_shape"][1:]), inputs=p["inp_shape"][0], classes=p["K"], channels=(p["out_channels"],),
        kernel=p["kernel"], padding=p["padding"], pooling=(p["pooling"],), weight_mult=p["wm"], profile="release",
        pq_cap=p["cap"], tau_ref=p["tau_ref_ms"], l1=p["l1"], l2=p["l2"], dropout=p["dropout"], **widths,
    )  # fmt: skip
    layer = Layer(rule, rule.plan()[0])
    layer.scale, layer.readout_scale = p["scale"], p["rscale"]
    for own, name_, unit in (("weight", "W_over_wm_x512", 512), ("bias", "b_over_wm_x512", 512),
                             ("readout", "Wr_x32", 32), ("feedback", "Wfa_x32", 32), ("tau_syn", "tau_syn_ms", 1),
                             ("tau_mem", "tau_mem_ms", 1)):  # fmt: skip
        getattr(layer, own).copy_(torch.tensor(g[name_]) / unit)
    return layer


def start(layer: Layer, how: str, batch: int = 2, steps: int = 40):
    trace = LayerTrace(layer.plan, steps)
    if how == "fused":
        return FusedLayer(layer, batch, trace)
    if how in ("float32", "float64"):
        return PublishedLayer(layer, batch, getattr(torch, how))
    return StepLayer(layer, batch, Whole() if how == "codes" else Real(layer.rule.is_integer), trace)


def state(own, name: str) -> torch.Tensor:
    """P, Q, U, e3 ... of any implementation, [B, C, H, W], in codes where there are codes."""
    x = getattr(own, name)
    if isinstance(own, FusedLayer):
        if name in ("P", "Q"):
            C, H, W = own.plan.shape
            x = x.reshape(-1, H, W, C)
        x = torch.from_numpy(np.ascontiguousarray(x))
        return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
    return x


def published_codes(own: PublishedLayer, layer: Layer) -> dict[str, torch.Tensor]:
    """The values of the published form, divided by the distance of two codes."""
    n, rule = StepLayer(layer, 1, Real(False), LayerTrace(layer.plan, 1)).n, layer.rule
    return {"P": own.P / n.unit_p, "Q": own.Q / n.unit_q, "U": own.U / n.unit_u, "e": 2.0 ** (rule.eb - 1)}


def close(found, expected, rtol=1e-5, atol=1e-7) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=rtol, atol=atol)


def same(found: torch.Tensor, expected) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert torch.equal(found.double().reshape(expected.shape), expected)


def test_full_scales_match_golden():
    for name in ("decolle_conv_a", "decolle_conv_float"):
        c, expected = golden_layer(name).constants(), GOLDEN[name]["constants"]
        close(torch.tensor([c.full_p, c.full_q, c.full_r]), [expected[f"{k}_scale"] for k in "PQR"])


@pytest.mark.parametrize("how", ["codes", "float", "fused"])
def test_codes_of_three_steps_and_an_update_match_golden(how):
    g, layer = GOLDEN["decolle_conv_a"], golden_layer("decolle_conv_a")
    own = start(layer, how)
    x = own.prepare(torch.tensor([s["x"] for s in g["steps"]], dtype=torch.float32))
    for t, expected in enumerate(g["steps"]):
        out = own.forward(x[t], t)
        for name in ("P", "Q", "U"):
            same(state(own, name), expected[f"{name}_code"])
        same(out.permute(0, 3, 1, 2) if how == "fused" else out, expected["S_pooled"])
        best = own.scores(None)
        close(torch.as_tensor(own.y) / 2.0**6, expected["readout"])
        assert best.tolist() == expected["pred_without_dropout"]
    b = g["backward"]
    own.scores(torch.tensor(b["dropout_mask"]))
    loss = own.learn(torch.tensor(b["onehot"]), 1.0, 2, None, (torch.tensor(b["uW"]), torch.tensor(b["ub"])))
    close(torch.tensor(loss), b["part1"] + b["part2"] + b["part3"])
    same(torch.as_tensor(own.e1) / 32, b["e1"])
    same(state(own, "e3") / 32, b["e3"])
    if how != "fused":
        same(own.e2 / 32, b["e2"])
        close(own.gw.double() * own.n.unit_p / 32, b["gW_unquantised"])
        close(own.gb.double() / 32, b["gb_unquantised"])
    own.finish()
    same(layer.weight * 512, b["W_after_over_wm_x512"])
    same(layer.bias * 512, b["b_after_over_wm_x512"])
    drawn = [*torch.tensor(b["GW_steps"]).flatten().tolist(), *b["Gb_steps"]]
    assert own.trace.steps[2] == np.count_nonzero(drawn) > 20
    assert own.trace.errors[2] == np.count_nonzero(b["e3"])


@pytest.mark.parametrize("how", ["float32", "float64"])
@pytest.mark.parametrize("name", ["decolle_conv_a", "decolle_conv_float"])
def test_values_of_three_steps_and_a_gradient_match_golden(name, how):
    g, layer = GOLDEN[name], golden_layer(name)
    own = start(layer, how)
    for expected in g["steps"]:
        out = own.forward(torch.tensor(expected["x"], dtype=own.dtype))
        for key, found in {
            "V": own.V, "U": own.U, "S": own.S, "R_used_in_U": own.R_used, "R_after": own.R, "S_pooled": out,
            "A_pooled_sigmoid": own.A, "readout": own.y,
        }.items():  # fmt: skip
            close(found, expected[key], atol=1e-6)
        if name == "decolle_conv_a":
            for key, unit in (("P", layer.constants().full_p / 2**12), ("Q", layer.constants().full_q / 2**10)):
                close(getattr(own, key) / unit, expected[f"{key}_code"])
        else:
            close(own.P, expected["P"], rtol=1e-4)
    b = g["backward"]
    close(own.scores(torch.tensor(b["dropout_mask"])), b["readout_after_dropout"], atol=1e-6)
    given = (torch.tensor(b["uW"]), torch.tensor(b["ub"])) if "uW" in b else None
    own.learn(torch.tensor(b["onehot"]), 1.0 if given else 0.0, None, given)
    close(torch.tensor([own.part1, own.part2, own.part3]), [b["part1"], b["part2"], b["part3"]])
    for key, found in (("e1", own.e1), ("e2", own.e2), ("gU", own.gU), ("e3", own.e3)):
        close(found, b[key], rtol=1e-4, atol=1e-6)
    close(own.gW, b["gW_unquantised"], rtol=1e-4, atol=1e-4)
    close(own.gb, b["gb_unquantised"], rtol=1e-4, atol=1e-6)


def test_the_float_backend_without_widths_matches_golden():
    g, layer = GOLDEN["decolle_conv_float"], golden_layer("decolle_conv_float")
    own = start(layer, "float")
    assert own.a.dtype == torch.float32
    for t, expected in enumerate(g["steps"]):
        own.forward(torch.tensor(expected["x"], dtype=torch.float32), t)
        close(own.P, expected["P"], rtol=1e-4, atol=1e-4)
        close(own.U, expected["U"], rtol=1e-4, atol=1e-5)
        best = own.scores(None)
        close(own.y, expected["readout"], rtol=1e-4, atol=1e-5)
        assert best.tolist() == expected["pred_without_dropout"]
    b = g["backward"]
    own.scores(torch.tensor(b["dropout_mask"]))
    before = layer.weight.clone()
    loss = own.learn(torch.tensor(b["onehot"]), 1e-6, 2, None)
    assert loss == pytest.approx(b["part1"] + b["part2"] + b["part3"], rel=1e-4)
    close(own.gw, b["gW_unquantised"], rtol=1e-3, atol=1e-3)
    own.finish()
    moved = torch.tensor(b["gW_unquantised"]) * 1e-6 / GOLDEN["decolle_conv_float"]["params"]["wm"]
    close(before - layer.weight, moved, rtol=1e-2, atol=1e-6)


def quiet_layer(rfb: int, profile: str = "release") -> Layer:
    """One neuron that does not fire: its bias is -1."""
    rule = DecolleRule(
        image=(1, 1), inputs=1, classes=2, kind="dense", channels=(1,), rfb=rfb, weight_mult=1.0, profile=profile
    )
    layer = Layer(rule, rule.plan()[0])
    layer.tau_syn.fill_(6.0)
    layer.tau_mem.fill_(9.0)
    layer.bias.fill_(-1.0)
    return layer


@pytest.mark.parametrize("rfb", [2, 3, 4, 6])
@pytest.mark.parametrize("how", ["codes", "float", "fused", "float32"])
def test_refractoriness_after_one_spike_matches_golden(rfb, how):
    # With 8 bits the golden course passes exact ties (90 x 0.65 = 58.5), which float32 decides by chance.
    layer = quiet_layer(rfb)
    own = start(layer, how, batch=1)
    used = []
    if how == "float32":
        own.R.fill_(1.0)
        for _ in range(12):
            own.forward(torch.zeros(1, 1, 1, 1))
            used.append(own.R_used.item())
    else:
        own.R[:] = round(1 / own.n.unit_r)
        x = own.prepare(torch.zeros(12, 1, 1, 1, 1))
        for t in range(12):
            used.append(own.n.gamma / 2**32 * own.R.item() * own.n.unit_r)
            own.forward(x[t], t)
            assert own.trace.spikes[t] == 0
    close(torch.tensor(used), GOLDEN["refractory_decay"]["expected"][str(rfb)], rtol=1e-5)


@pytest.mark.parametrize("rfb", [1, 2, 3, 8])
@pytest.mark.parametrize("how", ["codes", "float", "fused"])
def test_only_the_fixed_profile_lets_refractoriness_fade_to_nothing(rfb, how):
    for profile, fades in (("fixed", True), ("release", False), ("paper", False)):
        own = start(quiet_layer(rfb, profile), how, batch=1)
        own.R[:] = 2**rfb
        x = own.prepare(torch.zeros(40, 1, 1, 1, 1))
        for t in range(40):
            own.forward(x[t], t)
        assert (own.R.item() == 0) == fades


def test_a_spike_adds_to_refractoriness_in_the_fixed_profile_even_with_one_bit():
    for how in ("codes", "float", "fused"):
        layer = quiet_layer(1, "fixed")
        layer.bias.zero_()
        own = start(layer, how, batch=1)
        own.forward(own.prepare(torch.zeros(1, 1, 1, 1, 1))[0], 0)
        assert own.trace.spikes[0] == 1 and own.R.item() == 1


def test_the_vote_matches_golden():
    g = GOLDEN["mode_vote"]
    assert vote(torch.tensor(g["hist"]), 4).tolist() == g["expected"]


def test_first_weights_are_zero_in_release_and_on_the_grid_in_fixed():
    drawn = {}
    for profile in ("release", "paper", "fixed"):
        layer = build(torch.Generator().manual_seed(1), profile=profile, **SMALL).layers[0]
        drawn[profile] = layer.weight
        assert not layer.readout.eq(0).all() and layer.readout.abs().max() < 1
    assert not drawn["release"].any() and not drawn["paper"].any()
    codes = drawn["fixed"] * 2**7
    assert torch.equal(codes, codes.round()) and codes.count_nonzero() > 60
    assert codes.abs().max() <= max(1 / 18**0.5, 1.5 / 2**7) * 2**7 + 0.5


def test_without_wb_first_weights_are_drawn_alike_in_every_profile():
    released, fixed = (
        build(torch.Generator().manual_seed(1), profile=p, wb=None, **SMALL).layers[0] for p in ("release", "fixed")
    )
    assert torch.equal(released.weight, fixed.weight) and released.weight.abs().max() <= 1 / 18**0.5
    assert released.scale == 1.0 and released.bias.abs().max() > 1


@pytest.mark.parametrize("sb", [2, 6, None])
def test_feedback_has_the_signs_of_the_readout_but_other_sizes(sb):
    layer = build(torch.Generator().manual_seed(2), sb=sb, **SMALL).layers[0]
    counted = (layer.readout != 0) & (layer.feedback != 0)
    assert counted.sum() > 20
    assert torch.equal(layer.readout[counted].sign(), layer.feedback[counted].sign())
    assert not torch.equal(layer.readout.abs(), layer.feedback.abs())
    if sb == 2:
        assert (layer.feedback[layer.readout == 0] < 0).any()


def test_time_constants_are_drawn_for_every_input_in_their_range():
    layer = build(torch.Generator().manual_seed(2), tau_syn=(6.0, 7.0), tau_mem=(20.0, 30.0), **SMALL).layers[0]
    for tau, low, high in ((layer.tau_syn, 6, 7), (layer.tau_mem, 20, 30)):
        assert tau.shape == (2, 6, 6) and tau.min() >= low and tau.max() <= high and tau.unique().numel() > 60


def lockstep(rule: DecolleRule, how: str, steps: int = 8, batch: int = 3):
    """Pairs (step, ours, published in float64) of the same layer on the same inputs, masks and uniforms."""
    plan = rule.plan()[0]
    layer, twin = (Layer(rule, plan, torch.Generator().manual_seed(3)) for _ in range(2))
    ours, theirs = start(layer, how, batch), start(twin, "float64", batch)
    if isinstance(ours, StepLayer) and not rule.is_integer:
        ours = StepLayer(layer, batch, Real(False, torch.float64), LayerTrace(plan, 40))
    g = torch.Generator().manual_seed(4)
    x = (torch.rand(steps, batch, *plan.shape, generator=g) < 0.2).float()
    target = F.one_hot(torch.arange(batch) % rule.classes, rule.classes)
    inputs = ours.prepare(x)
    for t in range(steps):
        ours.forward(inputs[t], t)
        theirs.forward(x[t].double())
        if t < 2:
            continue
        mask = torch.rand(batch, rule.classes, generator=g) >= rule.dropout
        ours.scores(mask)
        theirs.scores(mask)
        words = [torch.randint(0, 65536, s, generator=g) for s in (layer.weight.shape, layer.bias.shape)]
        given = tuple((w.float() + 0.5) / 65536 for w in words)
        rate = rule.rate(0)
        loss = ours.learn(target, rate, t, None, given), theirs.learn(target, rate, None, given)
        yield t, ours, theirs, loss


@pytest.mark.parametrize("how", ["codes", "float", "fused"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"profile": "release"}, {"profile": "paper", "dropout": 0.3}, {"wb": 3, "gb": 6, "rb": 5, "lr": 0.25},
        {"pooling": (3,)}, {"pooling": (1,), "eb": 1}, {"kind": "dense", "channels": (9,)}, {"l1": 30.0, "l2": 900.0},
        {"wb": 8, "gb": 5, "ab": 3, "sig": 8, "ub": 9, "pb": 15}, {"l1": 4.5, "l2": 1000.0, "dropout": 0.99},
    ],
)  # fmt: skip
def test_learning_steps_equal_an_independent_float64_computation(settings, how):
    rule = DecolleRule(**{**SMALL, **settings})
    for _, ours, theirs, loss in lockstep(rule, how):
        n, errors = ours.n, 2.0 ** (rule.eb - 1)
        for name, found, unit in (("P", theirs.P, n.unit_p), ("Q", theirs.Q, n.unit_q), ("U", theirs.U, n.unit_u)):
            close(state(ours, name), found / unit, rtol=0, atol=1e-6)
        close(torch.as_tensor(ours.y), theirs.y * 2**rule.ab, rtol=0, atol=1e-6)
        close(torch.as_tensor(ours.e1), theirs.e1 * errors, rtol=0, atol=1e-6)
        close(state(ours, "e3"), theirs.e3 * errors, rtol=0, atol=1e-6)
        # The factor p/(1 - p) has 16 fraction bits.
        assert loss[0] == pytest.approx(loss[1], rel=1e-5)
        ours.finish()
        same(ours.layer.weight, theirs.W / rule.weight_mult)
        same(ours.layer.bias, theirs.b / rule.weight_mult)


@pytest.mark.parametrize("none", [*WIDTHS, "all"])
def test_a_width_of_none_removes_that_rounding_and_nothing_else(none):
    settings = {**SMALL, **(NONE if none == "all" else {none: None}), "lr_sgd": 1e-7}
    for _, ours, theirs, loss in lockstep(DecolleRule(**settings), "float"):
        n = ours.n
        for found, expected in ((ours.P, theirs.P / n.unit_p), (ours.U, theirs.U / n.unit_u), (ours.R, None)):
            if expected is not None:
                close(found, expected, rtol=1e-6, atol=1e-6)
        assert loss[0] == pytest.approx(loss[1], rel=1e-6)
        ours.finish()
        close(ours.layer.weight, theirs.W / ours.rule.weight_mult, rtol=1e-5, atol=1e-6)
    codes = {"pb": ours.P, "qb": ours.Q, "rfb": ours.R, "ub": ours.U, "wb": ours.w_code, "eb": ours.e3}
    for name, x in codes.items():
        assert torch.equal(x, x.round()) == (none not in (name, "all"))


@pytest.mark.parametrize("cap", [1.0, 0.5])
def test_a_cap_limits_traces_with_and_without_widths(cap):
    for widths in ({}, {"pb": None, "qb": None}):
        rule = DecolleRule(**SMALL, pq_cap=cap, **widths)
        layer = Layer(rule, rule.plan()[0], torch.Generator().manual_seed(3))
        layer.tau_syn.fill_(7.5)
        layer.tau_mem.fill_(20.0)
        own = StepLayer(layer, 1, Real(False), LayerTrace(layer.plan, 300))
        for t in range(300):
            own.forward(torch.ones(1, *layer.plan.shape), t)
        c = layer.constants()
        for x, unit, full in ((own.P, own.n.unit_p, c.full_p), (own.Q, own.n.unit_q, c.full_q)):
            largest = (x * unit).max().item() / full
            assert largest == pytest.approx(cap, rel=0.02)


def test_the_local_gradient_is_that_of_autograd():
    rule = DecolleRule(**{**SMALL, **NONE, "l1": 0.3, "l2": 50.0, "dropout": 0.3})
    layer = Layer(rule, rule.plan()[0], torch.Generator().manual_seed(5))
    layer.feedback.copy_(layer.readout)
    own = StepLayer(layer, 4, Real(False, torch.float64), LayerTrace(layer.plan, 9))
    g = torch.Generator().manual_seed(6)
    for t in range(9):
        refractory = own.n.gamma / 2.0**32 * own.R
        own.forward((torch.rand(4, *layer.plan.shape, generator=g) < 0.3).double(), t)
    mask = torch.rand(4, 3, generator=g) >= 0.3
    target = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).double()
    own.scores(mask)
    with torch.enable_grad():
        w = (layer.weight.double() * rule.weight_mult).requires_grad_()
        b = (layer.bias.double() * rule.weight_mult).requires_grad_()
        U = F.conv2d(own.P, w, b, padding=1) - refractory
        A = F.max_pool2d(torch.sigmoid(U), 2)
        o = A.flatten(1) @ layer.readout.double().T
        # The published rule leaves out the 1/2 of y = (o + 1)/2.
        y = ((o.detach() + 1) / 2 + (o - o.detach())) * mask
        assert U.mean() < 0.1
        loss = (y - target).square().mean()
        loss = loss + rule.l1 * 20 * F.relu(A + 0.01).mean() + rule.l2 * 0.1 * F.relu(0.1 - U.mean())
        gw, gb = torch.autograd.grad(loss, (w, b))
    found = own.learn(target, 1e-9, 8, None)
    assert found == pytest.approx(loss.item(), rel=1e-9)
    # The l1 term is kept with 24 fraction bits.
    torch.testing.assert_close(own.gw, gw, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(own.gb, gb, rtol=1e-5, atol=1e-12)


def test_products_beyond_float32_are_exact():
    x = torch.full((1, 60, 5, 5), 4095.0, dtype=torch.float64)
    x[0, 0, 2, 2] = 4094
    w = torch.full((1, 60, 3, 3), 127.0, dtype=torch.float64)
    w[0, 0, 1, 1] = 126
    expected = Whole().conv(x.long(), w.long(), 1)
    assert expected.max() > 2**24 and torch.equal(Real(True).conv(x, w, 1).long(), expected)
    e = torch.full((1, 1, 5, 5), 31.0, dtype=torch.float64).expand(1, 1, 5, 5) * 127
    gradient = Whole().conv_gradient(x.long(), w.long(), e.long(), 1)
    assert gradient.max() > 2**23 and torch.equal(Real(True).conv_gradient(x, w, e, 1).long(), gradient)


def test_a_gradient_is_normalized_in_the_unit_of_p():
    for unit, rate in ((1.0, 1.0), (29.895, 1.0), (26.9, 0.3), (0.7, 8.0)):
        u, g, k = gradient_gain(unit, rate)
        n = 12345
        e = round(np.log2(n * u))
        expected = rate * n * unit / 2 ** round(np.log2(n * unit))
        assert n * g / 2 ** (e + k) == pytest.approx(expected, rel=1e-6)


def test_rates_halve_or_fall_to_a_fifth_where_the_published_loop_does():
    rule = DecolleRule(**SMALL, lr_div=3)
    assert [rule.rate(e) for e in range(6)] == [1, 1, 0.5, 0.5, 0.5, 0.25]
    sgd = DecolleRule(**SMALL, gb=None, lr_div=2, lr_sgd=1.0)
    assert [round(sgd.rate(e), 6) for e in range(4)] == [1, 0.2, 0.2, 0.04]
    assert DecolleRule(profile="paper").halving == 60 and DecolleRule(profile="paper").cap == 0.75
    assert DecolleRule(**SMALL, lr_div=0).rate(1000) == 1.0


def test_the_published_network_has_the_published_sizes_and_scales():
    plans = DecolleRule().plan()
    assert [p.out for p in plans] == [(64, 30, 30), (128, 13, 13), (128, 11, 11)]
    assert [p.features for p in plans] == [14400, 21632, 3200]
    net = build(torch.Generator().manual_seed(0))
    assert [layer.readout_scale for layer in net.layers] == [256, 256, 128]
    assert [layer.scale for layer in build(torch.Generator(), wb=4).layers] == [2, 8, 16]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ub": 2}, ["ub", "cannot represent the threshold", "3 or more"]),
        ({"wb": 0}, ["wb", "found 0", "from 1 to 16", "none"]),
        ({"sb": 2, "beta": 2.0}, ["sb", "beta 2"]),
        ({"tau_syn": (0.5, 4.0)}, ["tau_syn", "above 1 ms"]),
        ({"tau_ref": 1.0}, ["tau_ref"]),
        ({"dropout": 1.0}, ["dropout", "below 1"]),
        ({"dropout": 0.0, "profile": "paper"}, ["dropout", "fixed"]),
        ({"pq_cap": 1.5}, ["pq_cap"]),
        ({"image": (6, 6), "kernel": 7, "padding": 0}, ["image", "6 x 6", "layer 1"]),
        ({"pooling": (2,)}, ["pooling", "3 layers"]),
        ({"profile": "old"}, ["profile", "release"]),
        ({"lr": 0.0}, ["lr", "above 0"]),
        ({"channels": ()}, ["channels"]),
    ],
)
def test_settings_that_cannot_be_are_explained_in_one_line(settings, words):
    with pytest.raises(ConfigError) as e:
        DecolleRule(**settings)
    assert len(e.value.messages) == 1 and "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


def test_every_mistake_is_reported_at_once():
    with pytest.raises(ConfigError) as e:
        DecolleRule(wb=99, qb=-1, classes=0)
    assert len(e.value.messages) == 3


def test_remarks_name_what_the_published_profiles_do():
    assert remarks(DecolleRule()) == []
    said = " ".join(remarks(DecolleRule(profile="release")))
    assert "zero" in said and "never decays" in said and "dropped in tests" in said
    assert "never decays" not in " ".join(remarks(DecolleRule(profile="release", rfb=None)))


def test_the_fast_backend_says_why_it_is_not_taken():
    cpu = torch.device("cpu")
    assert available(DecolleRule(), torch.device("cuda"))[1] == "the device is cuda"
    assert available(DecolleRule(eb=None), cpu)[1] == "a width is none"
    assert available(DecolleRule(wb=9), cpu)[1] == "wb is above 8"
