"""Figures of networks that answer over time: accuracy by step, and what leaving early costs and saves."""

from collections.abc import Sequence

from hwsim.report.plot import canvas, png


def steps_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy over time steps, a line a network, band: 95 % interval over images; dashed: the ordinary network.

    rows: of steps.csv. Returns a PNG.
    """
    figure = canvas(6.4, 4.2)
    axes = figure.subplots()
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = [r for r in rows if r["stage"] == stage]
        x = [r["timestep"] for r in own]
        line = axes.plot(x, [100 * r["accuracy"] for r in own], label=stage, lw=1.4)[0]
        low, high = ([100 * r[c] for r in own] for c in ("ci95_low", "ci95_high"))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
        before = 100 * own[-1]["ann_accuracy"]
        axes.axhline(before, color=line.get_color(), ls="--", lw=0.9, label=f"{stage} before conversion")
    axes.set_xlabel("time step")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def exits_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy over the mean number of steps as the margin at which images leave grows; and both over the margin.

    rows: of exits.csv. Returns a PNG.
    """
    figure = canvas(9.0, 3.8)
    trade, by_margin = figure.subplots(1, 2)
    steps = by_margin.twinx()
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = sorted((r for r in rows if r["stage"] == stage), key=lambda r: r["margin"])
        accuracy, mean, margin = ([r[k] for r in own] for k in ("accuracy", "mean_steps", "margin"))
        line = trade.plot(mean, [100 * a for a in accuracy], marker="o", ms=3, lw=1.2, label=stage)[0]
        by_margin.plot(margin, [100 * a for a in accuracy], color=line.get_color(), lw=1.2)
        steps.plot(margin, mean, color=line.get_color(), lw=1.2, ls=":")
    trade.set_xlabel("mean steps an image")
    trade.set_ylabel("test accuracy (%)")
    trade.legend(fontsize=8)
    by_margin.set_xscale("log")
    by_margin.set_xlabel("margin at which an image leaves")
    by_margin.set_ylabel("test accuracy (%), solid")
    steps.set_ylabel("mean steps, dotted")
    for axes in (trade, by_margin):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return png(figure)
