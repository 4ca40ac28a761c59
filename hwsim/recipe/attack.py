"""Stage attack: the accuracy that is left on attacked test images, for each network, attack and size of the change.

Every network is attacked by its own gradient (exact, or through Poisson spikes by the expectation), by the naive
gradient where that differs, which shows what robustness is only hidden gradients, and with the images that were made
against each other network of the same seed and device (transfer). It answers in evaluation mode, BNTT by its running
statistics, with spikes drawn anew, not those that the attacker saw.
"""

from dataclasses import dataclass

import torch

from hwsim.config import RunError
from hwsim.data.image import batches, normalize
from hwsim.device.store import clear, draw
from hwsim.network.attack import Ball, fgsm, gradient_of, pgd
from hwsim.recipe import network
from hwsim.recipe.coding_settings import Attack
from hwsim.recipe.codings import Point
from hwsim.recipe.evaluate import interval
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.randomness import generator
from hwsim.recipe.readout import wilson
from hwsim.recipe.settings import Recipe

ATTACKS = (
    "stage", "network", "encode", "steps", "seed", "chip", "variation_scale", "method", "gradient", "made_on",
    "eps_255", "draws", "iterations", "accuracy", "ci95_low", "ci95_high", "images", "largest_change_255",
)  # fmt: skip
SUMMARY = (
    "stage", "network", "encode", "steps", "method", "gradient", "made_on", "eps_255", "networks", "accuracy_mean",
    "ci95_low", "ci95_high",
)  # fmt: skip


@dataclass(frozen=True)
class Victim:
    """A network that is attacked; `recipe` has its coding, steps and seed."""

    name: str
    recipe: Recipe
    trained: Trained


def victims_of(
    recipe: Recipe, stage: Attack, trained: dict[str, Trained], grids: dict[str, list[Point]]
) -> list[Victim]:
    """The networks that a stage attacks. Raises `RunError` for a stage that has several for one chip."""
    out = []
    for of in stage.of:
        for point in grids.get(of, []):
            net = point.recipe.net
            out.append(Victim(f"{of}-{net.encode}-t{net.steps}", point.recipe, point.trained))
        if of not in grids:
            if len(trained[of].members) > 1:
                raise RunError(f"'{of}' has {len(trained[of].members)} networks; attack a stage that has one")
            out.append(Victim(of, recipe, trained[of]))
    return out


def attacks(work: Work, name: str, stage: Attack, victims: list[Victim]) -> dict[str, list[dict]]:
    """Rows of `ATTACKS`."""
    rows: list[dict] = []
    split = work.data.test.first(stage.images)
    seeds = list(dict.fromkeys(v.recipe.seed for v in victims))
    with work.progress.task(name, len(victims) * stage.chips * len(stage.methods) * len(split)) as advance:
        for seed in seeds:
            together = [v for v in victims if v.recipe.seed == seed]
            for chip in range(stage.chips):
                nets = {v.name: _on_chip(work, stage, v, chip) for v in together}
                made: dict[tuple, torch.Tensor] = {}
                for victim in together:
                    for method in stage.methods:
                        made |= _made(work, stage, victim, nets[victim.name], method, split, chip)
                        advance(len(split))
                for victim in together:
                    rows += [
                        {"stage": name, **_measured(work, stage, victim, nets[victim.name], split, chip, how, x)}
                        for how, x in made.items()
                        if how[2] == victim.name or how[1] != "naive"  # the naive gradient is not worth transferring
                    ]
    for row in summary_rows(rows):
        if row["eps_255"] == max(stage.eps_255):
            work.progress.say(
                f"{name}: {row['network']}, {row['method']} by {row['gradient']} gradient of {row['made_on']}, eps "
                f"{row['eps_255']:g}/255: {100 * row['accuracy_mean']:.2f} %"
            )
    return {"attack": rows}


def _on_chip(work: Work, stage: Attack, victim: Victim, chip: int) -> network.Network:
    member = victim.trained.members[0]
    scale = stage.variation_scale
    net = network.trained(victim.recipe, work.data, work.device, victim.trained, member, scale).eval()
    if scale:
        draw(net, generator(victim.recipe.seed, "chips", chip))
    else:
        clear(net)
    return net


def _made(work: Work, stage: Attack, victim: Victim, net, method: str, split, chip: int) -> dict[tuple, torch.Tensor]:
    """(method, gradient, made on, eps in 1/255) → the attacked images of the split, for the gradients of a network."""
    seed, device = victim.recipe.seed, work.device
    kinds = {"expectation": True, "naive": False} if net.coding == "poisson" else {"exact": True}
    out = {}
    for kind, expected in kinds.items():
        for eps in stage.eps_255:
            ball = Ball(eps / 255, work.data.mean, work.data.std)
            purpose = (method, kind, f"{eps:g}", chip)
            coding = generator(seed, "batches", "attack coding", *purpose, device=device)
            start = generator(seed, "batches", "attack start", *purpose, device=device)
            gradient = gradient_of(net, draws=stage.draws, coding=coding, expected=expected)
            parts = []
            for images, labels in batches(split, stage.batch_size):
                x, y = normalize(images, work.data.mean, work.data.std, device), labels.to(device)
                if method == "fgsm":
                    parts.append(fgsm(x, y, gradient, ball))
                else:
                    parts.append(pgd(
                        x, y, gradient, ball, iterations=stage.iterations, alpha_share=stage.alpha_share,
                        start=start if stage.random_start else None,
                    ))  # fmt: skip
            out[method, kind, victim.name, eps] = torch.cat(parts)
    return out


@torch.no_grad()
def _measured(
    work: Work, stage: Attack, victim: Victim, net, split, chip: int, how: tuple, x_NCHW: torch.Tensor
) -> dict:
    """Row of a network on attacked images."""
    method, kind, made_on, eps = how
    seed, device = victim.recipe.seed, work.device
    coding = generator(seed, "batches", "attacked", chip, device=device)  # the same for all attacks
    labels = split.labels_N.to(device)
    parts = zip(x_NCHW.split(stage.batch_size), labels.split(stage.batch_size), strict=True)
    correct = int(sum((net(x, coding)[0].argmax(1) == y).sum() for x, y in parts))
    plain = normalize(split.images_NCHW[0 : len(split)], work.data.mean, work.data.std, device)
    std = torch.tensor(work.data.std, device=device)[:, None, None]
    low, high = wilson(correct, len(split))
    return {
        "network": victim.name, "encode": victim.recipe.net.encode, "steps": victim.recipe.net.steps, "seed": seed,
        "chip": chip, "variation_scale": stage.variation_scale, "method": method,
        "gradient": kind if made_on == victim.name else "transfer", "made_on": made_on, "eps_255": eps,
        "draws": stage.draws if kind == "expectation" else 1, "iterations": stage.iterations if method == "pgd" else 1,
        "accuracy": correct / len(split), "ci95_low": low, "ci95_high": high, "images": len(split),
        "largest_change_255": float(255 * ((x_NCHW - plain).abs() * std).max()),
    }  # fmt: skip


def summary_rows(rows: list[dict]) -> list[dict]:
    """Rows of `SUMMARY`: means over seeds and chips with 95 % intervals (t); of a single network over images."""
    grouped: dict[tuple, list[dict]] = {}
    for r in rows:
        grouped.setdefault(tuple(r[k] for k in SUMMARY[:8]), []).append(r)
    out = []
    for key, own in grouped.items():
        found = interval([r["accuracy"] for r in own])
        low, high = (own[0]["ci95_low"], own[0]["ci95_high"]) if found.n == 1 else (found.low, found.high)
        out.append(dict(zip(SUMMARY, (*key, found.n, found.mean, low, high), strict=True)))
    return out
