"""The figure of a speed report: how much faster and smaller each contestant is than the published way."""

from collections.abc import Sequence

from hwsim.report.plot import canvas, png

RATIOS = (("speed", "times as fast as the yardstick"), ("memory", "of the yardstick's memory"))


def speed_figure(rows: Sequence[dict], title: str) -> bytes:
    """A line of dots for each measure: left speed, right memory, relative to the first contestant; bars are targets.

    rows: measure, way, speed, memory (ratios; nan where not measured), speed_target, memory_target ("" where there is
    none) of every contestant, the yardstick of each measure first. Returns a PNG.
    """
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    ways = list(dict.fromkeys(r["way"] for r in rows))
    place = {m: len(measures) - 1 - i for i, m in enumerate(measures)}
    figure = canvas(10.0, 1.6 + 0.34 * len(measures))
    from matplotlib.ticker import FuncFormatter, LogLocator

    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, (what, label) in zip(panels, RATIOS, strict=True):
        for i, way in enumerate(ways):
            own = [r for r in rows if r["way"] == way]
            color = f"C{i % 10}"
            mark = "os^Dv"[i // 10 % 5]
            axes.plot([r[what] for r in own], [place[r["measure"]] for r in own], mark, color=color, ms=6, label=way)
            aims = [r for r in own if r[f"{what}_target"] != ""]
            x, y = [r[f"{what}_target"] for r in aims], [place[r["measure"]] for r in aims]
            axes.plot(x, y, "|", color=color, ms=16, mew=2)
        axes.axvline(1.0, color="0.6", lw=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    panels[0].set_yticks([place[m] for m in measures], measures, fontsize=8)
    panels[0].plot([], [], "|", color="0.3", ms=12, mew=2, label="target")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=7)
    figure.suptitle(title, fontsize=10)
    return png(figure)
