"""Stage exit: answers before the last step, for all images at a step that BNTT's scales tell, or for each by its lead.

One pass over the images gives the outputs and the counted energy of every step; each rule then says when to stop:

    fixed           after so many steps
    scales-first    before the first step t at which max over layers of g_l(t) < threshold         (for all images)
    scales-suffix   before the first such step after which it stays so                             (for all images)
    margin          when the first summed output leads the second by a margin                      (each image)

with g_l(t) the mean over channels of |gain| of layer l's BNTT at step t; at least one step is run. The answer is the
largest of the outputs summed so far. No rule looks at the test images: scales are weights, margins are judged on the
validation images, where the chosen threshold of a rule is its fastest that loses at most `tolerance`.

Energy: synapses by the published formula (`codings.py`), from what each image's events were up to its last step.
Source of the scales' rule: BNTT, arXiv 2010.01729 (its threshold is 0.1); it is in no published code.

T steps, B batch, N images, L layers, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch

from hwsim.config import RunError
from hwsim.data.image import ImageData, Split, batches, normalize
from hwsim.device.pricelist import Prices
from hwsim.device.store import clear
from hwsim.network.layer import BNTT
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe import network
from hwsim.recipe.coding_settings import Exit
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.randomness import generator
from hwsim.recipe.readout import suiting_margins, wilson
from hwsim.report.trace import Counts

EXITS = (
    "stage", "network", "rule", "threshold", "exit_step", "accuracy", "ci95_low", "ci95_high", "mean_steps",
    "left_early_fraction", "energy_pj", "energy_saved_fraction", "validation_accuracy", "validation_mean_steps",
    "is_chosen", "steps", "images",
)  # fmt: skip
SCALES = ("stage", "network", "layer", "timestep", "mean_scale")
PUBLISHED_THRESHOLD = 0.1


@dataclass(frozen=True, eq=False)
class Seen:
    """Of N images after each of T steps: right answers, leads of the first summed output, pJ spent so far; [T, N]."""

    correct_TN: np.ndarray
    leads_TN: np.ndarray
    energy_TN: np.ndarray


@torch.no_grad()
def seen(
    net: VggBntt, split: Split, data: ImageData, coding: torch.Generator, prices: Prices, *, pooled: str,
    batch_size: int,
) -> Seen:  # fmt: skip
    """Run all images of a split for all steps. prices: of arithmetic in float32."""
    net.eval()
    device = next(net.parameters()).device
    correct, leads, energy = [], [], []
    for images, labels in batches(split, batch_size):
        x = normalize(images, data.mean, data.std, device)
        outputs_TBK, trace = net.over_time(net.encode(x, coding), account=[])
        sums_TBK = outputs_TBK.cumsum(0)
        first, second = sums_TBK.topk(2, dim=2).values.unbind(2)
        correct.append((sums_TBK.argmax(2) == labels.to(device)).cpu().numpy())
        leads.append((first - second).cpu().numpy())
        energy.append(step_energy(trace, net.steps, len(x), prices, pooled).cumsum(0))
    return Seen(*(np.concatenate(parts, 1) for parts in (correct, leads, energy)))


def step_energy(trace: dict[str, dict], steps: int, images: int, prices: Prices, pooled: str) -> np.ndarray:
    """pJ of the synapses at each step for each image, [T, B], of a batch's trace (with `account`).

    A spike costs an addition, another value (an average of spikes too, unless `pooled` is ac) a multiplication more,
    times the synapses of the published formula.
    """
    counts = Counts(steps)
    counts.add(trace, images)
    add, mult = (prices.of(f"{what}_fp32").pJ for what in ("add", "mult"))
    total = np.zeros((steps, images))
    for name, here in trace.items():
        unit, fractional = (np.asarray(here[f"{kind}_TB"], dtype=np.float64) for kind in ("unit", "fractional"))
        times = add if here["parts"] and pooled == "ac" else add + mult
        fan_out = counts.layers[name].fan_out("fanout").item()
        total[: len(unit)] += fan_out * (unit * add + fractional * times)  # computed once: at the first step
    return total


def scales_of(net: VggBntt) -> dict[str, np.ndarray]:
    """BNTT layer → mean over channels of |gain| at each step, [T]; empty without BNTT."""
    return {
        name: layer.weight.detach().abs().mean(1).double().cpu().numpy()
        for name, layer in net.named_modules()
        if isinstance(layer, BNTT)
    }


def exit_step(scales_LT: np.ndarray, threshold: float, *, suffix: bool) -> int:
    """Steps that are run by the scales' rule: those before the first step of which all layers' scales are below.

    suffix: of which, and of all later steps. T if there is none; at least 1.

    >>> scales = np.array([[0.05, 0.9, 0.5, 0.05, 0.2, 0.01]])
    >>> exit_step(scales, 0.1, suffix=False), exit_step(scales, 0.1, suffix=True)
    (1, 5)
    >>> exit_step(scales[:, 1:], 0.1, suffix=False)
    2
    """
    below_T = scales_LT.max(0) < threshold
    if suffix:
        below_T = np.logical_and.accumulate(below_T[::-1])[::-1]
    return max(1, int(below_T.argmax())) if below_T.any() else len(below_T)


def leaving(leads_TN: np.ndarray, margin: float) -> np.ndarray:
    """Steps that each image runs, [N]: until its lead is at least `margin`, else all."""
    leaves = leads_TN >= margin
    return np.where(leaves.any(0), leaves.argmax(0) + 1, len(leaves))


def changes(scales_LT: np.ndarray) -> list[float]:
    """Thresholds just above each step's largest scale: all at which an exit step changes, and the published one."""
    above = {float(f"{m * (1 + 1e-5):.6g}") for m in scales_LT.max(0)}
    return sorted({PUBLISHED_THRESHOLD, *above})


def exit_rows(test: Seen, validation: Seen, scales_LT: np.ndarray | None, stage: Exit) -> list[dict]:
    """Rows of `EXITS` without names: each rule at each threshold."""
    T = len(test.correct_TN)
    rules: list[tuple[str, float]] = [("fixed", t + 1) for t in range(T)]
    if scales_LT is not None:
        for threshold in sorted(stage.scales) if stage.scales is not None else changes(scales_LT):
            rules += [("scales-first", threshold), ("scales-suffix", threshold)]
    rules += [("margin", m) for m in sorted(stage.margins or suiting_margins(validation.leads_TN))]
    full = float(validation.correct_TN[-1].mean())
    rows = []
    for rule, threshold in rules:
        static = None
        if rule == "fixed":
            static = int(threshold)
        elif rule != "margin":
            static = exit_step(scales_LT, threshold, suffix=rule == "scales-suffix")
        of_test, of_validation = (
            np.full(s.leads_TN.shape[1], static) if static else leaving(s.leads_TN, threshold)
            for s in (test, validation)
        )
        rows.append({
            "rule": rule, "threshold": float(threshold), "exit_step": static or "", **_result(test, of_test),
            **{f"validation_{k}": v for k, v in _result(validation, of_validation).items() if k in _JUDGED},
        })  # fmt: skip
    for name in dict.fromkeys(r["rule"] for r in rows):
        _choose([r for r in rows if r["rule"] == name], full - stage.tolerance)
    return rows


_JUDGED = ("accuracy", "mean_steps")


def _result(of: Seen, steps_N: np.ndarray) -> dict:
    T, N = of.correct_TN.shape
    at = steps_N - 1, np.arange(N)
    correct, energy = int(of.correct_TN[at].sum()), float(of.energy_TN[at].mean())
    low, high = wilson(correct, N)
    return {
        "accuracy": correct / N, "ci95_low": low, "ci95_high": high, "mean_steps": float(steps_N.mean()),
        "left_early_fraction": float((steps_N < T).mean()), "energy_pj": energy,
        "energy_saved_fraction": 1 - energy / max(float(of.energy_TN[-1].mean()), 1e-300), "steps": T, "images": N,
    }  # fmt: skip


def _choose(rows: list[dict], least: float) -> None:
    """Mark the fastest row of a rule whose validation accuracy is at least `least`."""
    fits = [r for r in rows if r["validation_accuracy"] >= least - 1e-12]
    best = min(fits, key=lambda r: (r["validation_mean_steps"], -r["validation_accuracy"]), default=None)
    for r in rows:
        r["is_chosen"] = int(r is best)


def exits(work: Work, name: str, stage: Exit, trained: dict[str, Trained]) -> dict[str, list[dict]]:
    """Rows of `EXITS` and `SCALES` for every network of the stage. Raises `RunError` for a stage with several."""
    tables: dict[str, list[dict]] = {"early-exit": [], "scales": []}
    prices, data, seed = Prices.load(stage.card), work.data, work.recipe.seed
    for of in stage.of:
        if len(trained[of].members) > 1:
            raise RunError(f"'{of}' has {len(trained[of].members)} networks; take a stage that has one")
        net = network.trained(work.recipe, data, work.device, trained[of], trained[of].members[0], 0.0)
        clear(net)
        looks = (("test", data.test.first(stage.samples)), ("validation", data.validation))
        test, validation = (
            seen(
                net, split, data, generator(seed, "batches", what, 0, device=work.device), prices,
                pooled=stage.pooled, batch_size=stage.batch_size,
            )
            for what, split in looks
        )  # fmt: skip
        scales = scales_of(net)
        stacked = np.stack(list(scales.values())) if scales else None
        about = {"stage": name, "network": of}
        rows = exit_rows(test, validation, stacked, stage)
        tables["early-exit"] += [{**about, **row} for row in rows]
        tables["scales"] += [
            {**about, "layer": layer, "timestep": t + 1, "mean_scale": float(g)}
            for layer, values in scales.items()
            for t, g in enumerate(values)
        ]
        for r in rows:
            if r["is_chosen"]:
                work.progress.say(
                    f"{name}: {of}, {r['rule']} at {r['threshold']:g}: {100 * r['accuracy']:.2f} % after "
                    f"{r['mean_steps']:.2f} of {r['steps']} steps, {100 * r['energy_saved_fraction']:.1f} % less energy"
                )
    return tables
