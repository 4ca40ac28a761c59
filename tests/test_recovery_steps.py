"""Optimizer steps of recovery and pruning against a computation of its own, in float64, step by step as published.

The training loop runs as it stands, on a small network and a data set of two batches. The computation beside it takes
from it only what is drawn: the order and the spikes of the images, and each chip's normals. Two convolutions, time step
by time step, nothing folded.

    1 save   2 quantize in place   3 mask   4 forward, the RRAM part varied   5 backward   6 restore   7 lasso   8 SGD
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwsim.data.image import ImageData, Split
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Rram, place
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.checkpoint import load_tensors
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator as derived
from hwsim.recipe.recover import begin
from hwsim.recipe.settings import Prune, Recover, SramSettings
from hwsim.recipe.train import train

LAYERS = ("conv1", "conv2", "conv3")
POOLED = ("conv1", "conv3")
BATCH, STEPS, LEAK, EPS, CLASSES = 4, 2, 0.95, 1e-4, 3
SIGMA = {1: 0.08164, 2: 0.12542, 4: 0.34597}


def images(n: int) -> Split:
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % CLASSES)


DATA = ImageData("noise", images(2 * BATCH), images(BATCH), None, CLASSES, (0.5,), (0.25,), "")


class Watched(VggBntt):
    """Writes down what was drawn for each batch, and masters, masks and loss that met it."""

    def __init__(self, seed: int):
        super().__init__(
            (4, "A", 6, 4, "A"), 5, channels=1, size=(8, 8), classes=CLASSES, steps=STEPS, leak=LEAK,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        self.seen = []

    def losses(self, x, y, coding=None):
        before = coding.get_state()
        for loss in super().losses(x, y, coding):
            after = coding.get_state()
            coding.set_state(before)
            spikes = self.encode(x, coding)
            assert torch.equal(coding.get_state(), after)
            layers = {name: self.get_submodule(name) for name in LAYERS}
            self.seen.append({
                "x": spikes.double().numpy(), "y": y, "loss": loss.item(),
                "z": {n: None if m.z is None else m.z.double().numpy() for n, m in layers.items()},
                "mask": {n: None if m.mask is None else m.mask.numpy().copy() for n, m in layers.items()},
                "master": {n: p.detach().double().numpy().copy() for n, p in self.named_parameters()},
            })  # fmt: skip
            yield loss


# ----------------------------------------------------------------------------- the computation beside it, in float64


def grid_of_levels(w, bits):
    """The published grid, +-1/m ... +-1."""
    n, m = 2**bits - 1, 2 ** (bits - 1)
    q = 2 * (np.rint((w + 1) / 2 * n) / n - 0.5)
    return np.rint(q * m) / m


def even_levels(w, bits):
    """(levels -1 ... 1 that are evenly spaced in tanh(w), their scale)."""
    if bits == 1:
        return np.where(w >= 0, 1.0, -1.0), np.abs(w).mean()
    n, t = 2**bits - 1, np.tanh(w)
    return 2 * np.rint((t / np.abs(t).max() + 1) / 2 * n) / n - 1, np.abs(w).max()


def varied_and_clamped(w, z, sigma):
    """The published spread: clamped to the smallest and the largest of the signed weights."""
    moved = w * np.exp(sigma * z)
    size = np.abs(moved)
    size = np.where(size > w.max(), w.max(), size)
    size = np.where(size < w.min(), w.min(), size)
    return size * np.where(moved < 0, -1, 1)


def lasso_gradient(w, p: Prune):
    """lamda ([a_j < ratio mean] + ratio K/G) w/a_j of one layer, group by group."""
    out, O, I = np.zeros_like(w), *w.shape[:2]  # noqa: E741
    groups = [(o, slice(i, i + p.group)) for o in range(O) for i in range(0, I, p.group)]
    norms = [math.sqrt((w[group] ** 2).sum()) for group in groups]
    cap = p.ratio * sum(norms) / len(norms)
    capped = sum(a > cap for a in norms)
    for group, a in zip(groups, norms, strict=True):
        if a:
            out[group] = p.lamda * ((a < cap) + p.ratio * capped / len(norms)) * w[group] / a
    return out


def mask_of(w, p: Prune, first: bool):
    if first:
        return np.abs(w) > p.threshold * np.abs(w).max() if p.first else np.ones(w.shape, bool)
    if p.by == "element":
        return np.abs(w) > p.threshold * np.abs(w).max()
    O, I, *k = w.shape  # noqa: E741
    norm = np.sqrt((w.reshape(O, I // p.group, p.group, *k) ** 2).sum((2, 3, 4)))
    return np.broadcast_to((norm > p.threshold * norm.max()).repeat(p.group, 1)[:, :, None, None], w.shape)


def rewritten(words, g):
    """XNOR-Net's gradient, filter by filter."""
    out, inputs, n = np.zeros_like(g), g.shape[1], g[0].size
    for o in range(len(g)):
        m = np.where(np.abs(words[o]) > 1, 0, np.abs(words[o]).sum() / n)
        across = np.sign(words[o]) * (np.sign(words[o]) * g[o]).sum() / n
        out[o] = (m * g[o] + across) * (1 - 1 / inputs) * n
    return out


def fired(v):
    """[v > 0], with the triangle's slope 0.3 max(0, 1 - |v|)."""
    slope = (0.3 * (1 - v.abs()).clamp(min=0)).detach()
    return (v > 0).double() + slope * v - (slope * v).detach()


def normalized(x, gain):
    """One step of BNTT with the batch's own statistics. x: [B, C] or [B, C, H, W]."""
    over = [0, *range(2, x.dim())]
    mean, var = x.mean(over, keepdim=True), x.var(over, keepdim=True, correction=0)
    return gain.reshape(1, -1, *[1] * (x.dim() - 2)) * (x - mean) / torch.sqrt(var + EPS)


def loss_of(x_TBCHW, y, rram, words, others, shift, halved):
    """(loss, distance of the nearest membrane from its threshold). rram, words: what the cells of each layer hold."""
    membranes, nearest, output = {}, math.inf, 0.0

    def neuron(name, current, gain):
        nonlocal nearest
        before = LEAK * membranes.get(name, 0.0) + normalized(current, gain)
        nearest = min(nearest, float((before - 1).detach().abs().min()))
        s = fired(before - 1)
        membranes[name] = before - (before > 1).double()
        return s

    for t in range(STEPS):
        h = torch.tensor(x_TBCHW[t])
        for i, name in enumerate(LAYERS, 1):
            total = F.conv2d(h, rram[name], padding=1) + 2.0**shift * F.conv2d(h, words[name], padding=1)
            h = neuron(name, total / 2 if halved else total, others[f"bntt{i}.weight"][t])
            if name in POOLED:
                h = F.avg_pool2d(h, 2)
        h = neuron("fc1", h.flatten(1) @ others["fc1.weight"].T, others["bntt_fc.weight"][t])
        output = output + h @ others["fc2.weight"].T
    return F.cross_entropy(output / STEPS, y), nearest


def step_by_step(masters: dict, rram_masters: dict, seen: list[dict], stage: Recover, bits: int, faithful: bool):
    """Masters, velocities, loss and masks after each batch that was seen; masters are changed in place."""
    p, sram, out = stage.prune, stage.sram, []
    velocity = {n: np.zeros_like(v) for n, v in masters.items()}
    per_epoch = len(DATA.train) // BATCH
    kept, fixed_from = {}, stage.epochs
    if p and p.fixed_from < 1:
        fixed_from = min(math.ceil(p.fixed_from * stage.epochs), stage.epochs - 1)
    shift_of_adder = sram.shift_bits[0] if sram.quantizer != "twos-complement" else 0
    for number, drawn in enumerate(seen):
        epoch = number // per_epoch
        prunes = p is not None and epoch < fixed_from
        if p is not None and (prunes or (epoch == fixed_from and number % per_epoch == 0)):
            kept = {n: mask_of(masters[f"{n}.weight"], p, n == LAYERS[0]) for n in LAYERS}
        if p is not None and epoch == fixed_from and number % per_epoch == 0:
            for n in LAYERS:
                masters[f"{n}.weight"] *= kept[n]
        saved = {n: masters[f"{n}.weight"].copy() for n in LAYERS}  # 1
        held, words = {}, {}
        for n in LAYERS:
            z = drawn["z"][n]
            if faithful:
                held[n] = varied_and_clamped(grid_of_levels(rram_masters[n], bits), z, SIGMA[bits])
                words[n] = grid_of_levels(saved[n], sram.bits)  # 2
            else:
                level, scale = even_levels(rram_masters[n], bits)
                held[n] = level * np.exp(SIGMA[bits] * z) * scale
                unit, m = scale * 2.0 ** sram.shift_bits[0], 2 ** (sram.bits - 1)
                words[n] = np.clip(np.rint(saved[n] / unit * m), -m, m - 1) / m * unit  # 2
            if p is not None:
                words[n] = words[n] * kept[n]  # 3
        leaf = {n: torch.tensor(w, requires_grad=True) for n, w in words.items()}
        others = {n: torch.tensor(w, requires_grad=True) for n, w in masters.items() if not n.startswith("conv")}
        rram = {n: torch.tensor(w) for n, w in held.items()}
        loss, nearest = loss_of(drawn["x"], drawn["y"], rram, leaf, others, shift_of_adder, sram.halved)  # 4
        loss.backward()  # 5
        gradient = {n: t.grad.numpy() for n, t in others.items()}
        for n in LAYERS:
            g = leaf[n].grad.numpy()
            g = rewritten(words[n], g) if stage.gradient == "xnor" else g
            masters[f"{n}.weight"] = saved[n]  # 6
            if prunes and n != LAYERS[0]:
                g = g + lasso_gradient(saved[n], p)  # 7
            gradient[f"{n}.weight"] = g
        for n in masters:  # 8
            velocity[n] = stage.momentum * velocity[n] + gradient[n] + stage.weight_decay * masters[n]
            masters[n] = masters[n] - stage.lr * velocity[n]
        out.append({
            "loss": loss.item(), "nearest": nearest, "mask": kept, "master": dict(masters), "velocity": dict(velocity),
        })  # fmt: skip
    return out


# -------------------------------------------------------------------------------------------------------------- cases


def recover(quantizer: str, bits: int, shift: int, halved: bool, prune: dict | None = None, **more) -> Recover:
    sram = SramSettings(bits=bits, quantizer=quantizer, shift_bits=[shift], halved=halved)
    more = {"lr": 0.1, "weight_decay": 1e-2, "drop_at": [], "epochs": 1, "init": "rram"} | more
    return Recover(
        **{"from": "vat"}, sram=sram, batch_size=BATCH, validation_chips=1, keep_parent=False,
        prune=None if prune is None else Prune(**{"group": 2, "lamda": 0.02, "threshold": 0.4} | prune), **more,
    )  # fmt: skip


FOREVER = {"fixed_from": 1.0}
FAITHFUL = {
    "reference": (2, recover("xnor", 4, 0, True, FOREVER, loads="statistics")),
    "shift-left": (2, recover("xnor", 2, 1, True, FOREVER | {"first": True})),
    "shift-right": (4, recover("xnor", 4, -3, True, FOREVER | {"ratio": 0.5})),
    "no-pruning": (1, recover("xnor", 1, -1, True)),
    "not-halved": (2, recover("xnor", 2, 0, False, FOREVER, init="zeros")),
    "xnor-gradient": (2, recover("xnor", 2, 1, True, FOREVER, gradient="xnor")),
    "fixed-masks": (4, recover("xnor", 4, 0, True, {"fixed_from": 0.5}, epochs=2)),
}
CORRECTED = {
    "default": (2, recover("twos-complement", 4, 0, False, {"fixed_from": 0.5}, epochs=2)),
    "shift-left": (2, recover("twos-complement", 3, 1, False, FOREVER | {"ratio": 0.5})),
    "shift-right": (4, recover("twos-complement", 4, -2, False, FOREVER | {"first": True})),
    "by-group": (1, recover("twos-complement", 4, 0, False, FOREVER | {"by": "group", "threshold": 0.9})),
    "no-pruning": (2, recover("twos-complement", 4, 1, False, init="zeros")),
    "residual": (2, recover("twos-complement", 4, 0, False, FOREVER, init="residual", epochs=2)),
    "xnor-gradient": (4, recover("twos-complement", 4, -1, False, FOREVER, gradient="xnor")),
    "one-chip": (4, recover("twos-complement", 4, 0, False, FOREVER, redraw="chip")),
}
CASES = [
    pytest.param(bits, stage, faithful, id=f"{kind}-{name}")
    for kind, cases, faithful in (("faithful", FAITHFUL, True), ("corrected", CORRECTED, False))
    for name, (bits, stage) in cases.items()
]


@pytest.mark.parametrize(("bits", "stage", "faithful"), CASES)
def test_optimizer_steps_of_recovery_and_pruning_are_those_computed_step_by_step(
    bits, stage, faithful, tmp_path, backend
):
    rram = Rram(bits, "xnor", SIGMA[bits], "signed") if faithful else Rram(bits, sigma=SIGMA[bits])
    part = Sram(stage.sram.bits, stage.sram.quantizer)
    net, parent, (shift,) = Watched(seed=11), Watched(seed=22), stage.sram.shift_bits
    part = Masked(part, revivable=True) if stage.prune else part
    place(net, {"conv*": Hybrid(rram, part, shift, stage.sram.halved)})
    with torch.no_grad():
        for name in LAYERS:  # so that two bits of the published grid use all their levels
            parent.get_submodule(name).weight.mul_(2)
    begin(net, parent.state_dict(), stage, 0 if stage.redraw == "chip" else None, seed=1)
    masters = {n: p.detach().double().numpy().copy() for n, p in net.named_parameters()}
    rram_masters = {n: parent.get_submodule(n).weight.detach().double().numpy() for n in LAYERS}

    best, rows = train(
        net, DATA, stage, name="recover", key="k", seed=1, epochs_before=0, augmentation="none",
        resume=tmp_path / "resume.safetensors", progress=Progress(quiet=True),
    )  # fmt: skip

    assert len(net.seen) == 2 * stage.epochs
    expected = step_by_step(masters, rram_masters, net.seen, stage, bits, faithful)
    # float32 comes to the same spikes where no membrane is nearer to its threshold than it can be wrong.
    assert min(step["nearest"] for step in expected) > 1e-5
    for found, step in zip(net.seen, expected, strict=True):
        assert found["loss"] == pytest.approx(step["loss"], abs=2e-6)
        for name in LAYERS if stage.prune else ():
            assert np.array_equal(found["mask"][name], step["mask"][name])
    close = {"atol": 2e-6, "rtol": 2e-5}
    for found, step in zip(net.seen[1:], expected, strict=False):
        for name, value in step["master"].items():
            np.testing.assert_allclose(found["master"][name], value, **close)
    last = expected[-1]
    tensors = load_tensors(tmp_path / "resume.safetensors")[0]
    for name, value in last["master"].items():
        np.testing.assert_allclose(tensors[f"net.{name}"], value, **close)
        np.testing.assert_allclose(tensors[f"optimizer.momentum_buffer.{name}"], last["velocity"][name], **close)
    assert rows[-1]["train_loss"] == pytest.approx((expected[-2]["loss"] + last["loss"]) / 2, abs=2e-6)
    fixed = stage.prune is None or stage.prune.fixed_from < 1
    for name in LAYERS:
        assert np.array_equal(tensors[f"net.{name}.rram"].double().numpy(), rram_masters[name])
        mask = last["mask"][name] if fixed and stage.prune else None
        if stage.prune and not fixed:
            mask = mask_of(last["master"][f"{name}.weight"], stage.prune, name == LAYERS[0])
        assert (f"{name}.mask" in best) is (mask is not None)
        if mask is not None:
            assert np.array_equal(best[f"{name}.mask"], mask)
        assert name == LAYERS[0] or mask is None or 0.05 < mask.mean() < 0.95
    # The case is worth something: every parameter moved, by far more than the tolerance.
    start = net.seen[0]["master"]
    assert all(np.abs(last["master"][n] - start[n]).max() > 2e-4 for n in start)


def test_the_chip_and_the_images_of_each_batch_are_drawn_as_documented(tmp_path):
    # What the computation above takes from the loop comes from these generators and no other.
    stage, net, parent = recover("twos-complement", 4, 0, False), Watched(seed=11), Watched(seed=22)
    place(net, {"conv*": Hybrid(Rram(2, sigma=0.1), Sram(4))})
    begin(net, parent.state_dict(), stage, None, seed=1)
    train(
        net, DATA, stage, name="recover", key="k", seed=1, epochs_before=7, augmentation="none",
        resume=tmp_path / "resume.safetensors", progress=Progress(quiet=True),
    )  # fmt: skip
    chips, order = derived(1, "chips", "training", 7), torch.randperm(8, generator=derived(1, "batches", "order", 7))
    for number, seen in enumerate(net.seen):
        assert torch.equal(seen["y"], DATA.train.labels_N[order[BATCH * number :][:BATCH]])
        for name in LAYERS:
            shape = net.get_submodule(name).weight.shape
            assert np.array_equal(seen["z"][name], torch.randn(shape, generator=chips).double().numpy())
