"""Figure of networks whose answer is a rate: accuracy and ties over time steps, and the zeros of every layer."""

from collections.abc import Sequence

from hwsim.report.plot import canvas, png


def curve_figure(curve: Sequence[dict], activity: Sequence[dict], title: str) -> bytes:
    """Left: accuracy by step with its 95 % interval over images, with ties counted wrong (dashed), and the share of
    images with ties (dotted), a color a network; a line marks the steps of the training. Right: the share of zeros in
    each layer's spikes by step, of the last network.

    curve, activity: rows of curve.csv and activity.csv. Returns a PNG.
    """
    figure = canvas(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    networks = list(dict.fromkeys(r["network"] for r in curve))
    for network in networks:
        own = [r for r in curve if r["network"] == network]
        x = [r["timestep"] for r in own]
        color = left.plot(x, [100 * r["accuracy"] for r in own], lw=1.4, label=network)[0].get_color()
        low, high = ([100 * r[c] for r in own] for c in ("ci95_low", "ci95_high"))
        left.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        wrong, ties = ([100 * r[c] for r in own] for c in ("accuracy_ties_wrong", "ties_fraction"))
        left.plot(x, wrong, color=color, ls="--", lw=1, label="ties counted wrong")
        left.plot(x, ties, color=color, ls=":", lw=1, label="images with ties")
    left.axvline(curve[0]["trained_steps"], color="0.5", lw=0.8, label="steps of the training")
    left.set_ylabel("test images (%)")
    left.legend(fontsize=7)
    shown = [r for r in activity if r["network"] == networks[-1]]
    for layer in dict.fromkeys(r["layer"] for r in shown):
        own = [r for r in shown if r["layer"] == layer]
        right.plot([r["timestep"] for r in own], [100 * r["zeros_fraction"] for r in own], lw=1.2, label=layer)
    right.set_ylabel("zeros in a layer's spikes, before pooling (%)")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.set_xlabel("time step")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return png(figure)
