"""The figure of a sweep: what the networks reach over the swept values, and below it what a sample costs."""

import textwrap
from collections.abc import Sequence

from hwsim.report.plot import canvas, png

UNITS = (("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))
"""Unit of energy → how many pJ it has, largest first."""


def sweep_figure(rows: Sequence[dict], title: str) -> bytes:
    """A column of panels for each axis: above accuracy or loss with its 95 % interval over seeds, below energy.

    rows: `hwsim.recipe.sweep.SUMMARY`. A network that an axis leaves alone is a dashed line, the mean over its runs.
    Returns a PNG.
    """
    names = list(dict.fromkeys(r["axis"] for r in rows))
    priced = any(r["energy_pj_mean"] != "" for r in rows)
    figure = canvas(1.2 + 3.4 * len(names), 6.0 if priced else 3.4)
    panels = figure.subplots(2 if priced else 1, len(names), squeeze=False, sharex="col", sharey="row")
    most = max((r["energy_pj_mean"] for r in rows if r["energy_pj_mean"] != ""), default=0.0)
    unit, size = next(((u, n) for u, n in UNITS if most >= n), UNITS[-1])
    color = {c: f"C{i}" for i, c in enumerate(dict.fromkeys(_curve(r) for r in rows))}
    for column, name in enumerate(names):
        own = [r for r in rows if r["axis"] == name]
        values = list(dict.fromkeys(r["point"] for r in own))
        for axes, what, scale in ((panels[0][column], "result", None), (panels[-1][column], "energy_pj", 1 / size)):
            if what == "energy_pj" and not priced:
                continue
            for curve in dict.fromkeys(_curve(r) for r in own):
                _draw(axes, [r for r in own if _curve(r) == curve], values, what, scale, curve, color[curve])
            axes.grid(alpha=0.3)
        panels[-1][column].set_xticks(range(len(values)), values)
        panels[-1][column].set_xlabel(name)
    measure = rows[0]["measure"]
    panels[0][0].set_ylabel("test accuracy (%)" if measure == "accuracy" else "loss")
    panels[0][0].legend(fontsize=7)
    if priced:
        panels[1][0].set_ylabel(f"energy a sample ({unit})")
        panels[1][0].set_ylim(bottom=0)
    figure.suptitle(textwrap.fill(title, 20 + 42 * len(names)), fontsize=10)
    return png(figure)


def _curve(row: dict) -> str:
    return row["stage"] + (f" at {row['at']:g}" if row["at"] != "" else "")


def _draw(axes, rows: list[dict], values: list[str], what: str, scale: float | None, label: str, color: str) -> None:
    if what == "result":
        scale = 100.0 if rows[0]["measure"] == "accuracy" else 1.0
        keys = ("mean", "ci95_low", "ci95_high")
    else:
        keys = ("energy_pj_mean", "energy_pj_ci95_low", "energy_pj_ci95_high")
        if any(r[keys[0]] == "" for r in rows):
            return
    assert scale is not None
    x = [values.index(r["point"]) for r in rows]
    mean, low, high = ([scale * r[k] for r in rows] for k in keys)
    if not rows[0]["varied"]:
        axes.axhline(sum(mean) / len(mean), color=color, ls="--", lw=1, label=label)
        return
    axes.plot(x, mean, marker="o", ms=4, color=color, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
