"""What outputs that grow over time say: accuracy at every step, steps until an accuracy, and when to stop early.

T steps, N images. Steps are counted from 1.
"""

import math
from dataclasses import dataclass

import numpy as np

from hwsim.recipe.convert_settings import Convert

STEPS = ("stage", "timestep", "accuracy", "ci95_low", "ci95_high", "mean_margin", "ann_accuracy", "images")
EXITS = ("stage", "margin", "accuracy", "ci95_low", "ci95_high", "mean_steps", "left_early_fraction", "images")
LATENCY = ("stage", "target", "accuracy", "first_timestep", "stays_from_timestep", "useful_steps")
BELOW_POINTS = (10, 5, 2, 1, 0.5, 0)
"""Targets: the ordinary network's accuracy less so many points."""
PERCENTS = (50, 80, 90, 95, 98, 99)
"""Targets: these accuracies, in percent."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Of the simulated images: right answers and leads of the first output, [T, N]; the ordinary network's answers [N].

    images: how many were asked for; those that a dropped last batch held count as wrong.
    """

    correct_TN: np.ndarray
    margins_TN: np.ndarray
    ann_N: np.ndarray
    images: int

    @property
    def ann_accuracy(self) -> float:
        """Accuracy of the ordinary network on the images that were simulated."""
        return float(self.ann_N.mean())


def tables(seen: Seen, stage: Convert, delay: int) -> dict[str, list[dict]]:
    """Rows of steps.csv, exits.csv and latency.csv. delay: steps before the first signal reaches the output."""
    steps = step_rows(seen)
    margins = stage.margins or suiting_margins(seen.margins_TN)
    accuracy_T = [r["accuracy"] for r in steps]
    return {
        "steps": steps, "exits": exit_rows(seen, margins),
        "latency": latency_rows(accuracy_T, seen.ann_accuracy, delay),
    }  # fmt: skip


def step_rows(seen: Seen) -> list[dict]:
    """Accuracy after every step."""
    rows = []
    for t, (correct, margin) in enumerate(zip(seen.correct_TN, seen.margins_TN, strict=True)):
        low, high = wilson(int(correct.sum()), seen.images)
        rows.append({
            "timestep": t + 1, "accuracy": int(correct.sum()) / seen.images, "ci95_low": low, "ci95_high": high,
            "mean_margin": float(margin.mean()), "ann_accuracy": seen.ann_accuracy, "images": seen.images,
        })  # fmt: skip
    return rows


def exit_rows(seen: Seen, margins: list[float]) -> list[dict]:
    """What leaving at the first step whose margin is at least a threshold costs and saves, for each threshold.

    An image whose lead never suffices answers at the last step.
    """
    T, N = seen.margins_TN.shape
    rows = []
    for margin in sorted(margins):
        leaves = seen.margins_TN >= margin
        at_N = np.where(leaves.any(0), leaves.argmax(0), T - 1)
        correct = int(seen.correct_TN[at_N, np.arange(N)].sum())
        low, high = wilson(correct, seen.images)
        rows.append({
            "margin": float(margin), "accuracy": correct / seen.images, "ci95_low": low, "ci95_high": high,
            "mean_steps": float(at_N.mean()) + 1, "left_early_fraction": float((at_N < T - 1).mean()),
            "images": seen.images,
        })  # fmt: skip
    return rows


def suiting_margins(margins_TN: np.ndarray, number: int = 25) -> list[float]:
    """Margins from those that nearly any lead exceeds to the largest that was seen, in even ratios."""
    leads = margins_TN[margins_TN > 0]
    if not len(leads):
        return [1.0]
    low, high = float(np.quantile(leads, 0.001)), float(leads.max())
    return sorted({float(f"{m:.3g}") for m in np.geomspace(low, high, number)})


def latency_rows(accuracy_T: list[float], ann_accuracy: float, delay: int) -> list[dict]:
    """For each target the first step that reaches it and the step from which it is kept; "" if never.

    useful_steps: first step less the delay of the pipeline.
    """
    targets = [(f"ann - {p:g} points", ann_accuracy - p / 100) for p in BELOW_POINTS]
    targets += [(f"{p:g} %", p / 100) for p in PERCENTS]
    rows = []
    for name, target in targets:
        reached = [a >= target - 1e-12 for a in accuracy_T]
        first = reached.index(True) + 1 if any(reached) else ""
        lost = [t + 1 for t, r in enumerate(reached) if not r]
        stays = (max(lost, default=0) + 1) if reached[-1] else ""
        useful = max(first - delay, 0) if first != "" else ""
        values = {"target": name, "accuracy": target, "first_timestep": first}
        rows.append({**values, "stays_from_timestep": stays, "useful_steps": useful})
    return rows


def wilson(correct: int, images: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which is honest near 0 and 1 too.

    >>> [round(v, 4) for v in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    z, p = 1.959963984540054, correct / images
    middle, half = p + z * z / (2 * images), z * math.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    scale = 1 + z * z / images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
