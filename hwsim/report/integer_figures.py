"""Figures of integer networks: loss over epochs, rasters beside their target, accuracy over epochs, memory."""

from collections.abc import Sequence

import numpy as np

from hwsim.report.plot import canvas, png


def loss_figure(rows: Sequence[dict], title: str) -> bytes:
    """Van Rossum distance over epochs, a line a stage. rows: of loss.csv. Returns a PNG."""
    figure = canvas(6.4, 4.0)
    axes = figure.subplots()
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = [r for r in rows if r["stage"] == stage]
        axes.plot([r["epoch"] for r in own], [r["loss"] for r in own], label=stage, lw=1.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel("van Rossum distance")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def rasters_figure(rasters: dict[str, np.ndarray], title: str) -> bytes:
    """The target raster, and the output at several epochs: a dot a spike, time to the right. Returns a PNG.

    rasters: `target` and `raster<epoch>`, [T, O].
    """
    epochs = sorted(int(k.removeprefix("raster")) for k in rasters if k.startswith("raster"))
    shown = {"target": rasters["target"]} | {f"epoch {e}": rasters[f"raster{e}"] for e in epochs}
    figure = canvas(2.3 * len(shown), 2.7)
    for axes, (name, raster) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.imshow(raster.T, cmap="Greys", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("time step", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("output neuron", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def learning_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy of the last layer over epochs, training dotted and validation solid, a color a stage; mean of repeats.

    rows: of metrics.csv. Returns a PNG.
    """
    figure = canvas(6.4, 4.0)
    axes = figure.subplots()
    for i, stage in enumerate(dict.fromkeys(r["stage"] for r in rows)):
        own = [r for r in rows if r["stage"] == stage]
        named = "validation_accuracy"
        last = max(int(k.removeprefix(named)) for k in own[0] if k.startswith(named))
        epochs = sorted({r["epoch"] for r in own})
        for what, style in (("validation", "-"), ("train", ":")):
            means = [100 * np.mean([r[f"{what}_accuracy{last}"] for r in own if r["epoch"] == e]) for e in epochs]
            axes.plot(epochs, means, style, color=f"C{i}", marker="o", ms=3, label=f"{stage}, {what}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy of the last layer (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def footprint_figure(networks: dict[str, Sequence[dict]], title: str) -> bytes:
    """Memory of networks side by side, by variable. networks: name → rows of footprint.csv. Returns a PNG."""
    totals = {
        name: {r["variable"]: r["kib"] for r in rows if r["layer"] == "TOTAL" and r["variable"] != "all"}
        for name, rows in networks.items()
    }
    variables = sorted(next(iter(totals.values())), key=lambda v: -max(of[v] for of in totals.values()))
    figure = canvas(6.4, 4.2)
    axes = figure.subplots()
    high = 0.8 / len(totals)
    for i, (name, of) in enumerate(totals.items()):
        places = [n + i * high for n in range(len(variables))]
        axes.barh(places, [of[v] for v in variables], high, label=f"{name}: {sum(of.values()):.0f} KiB")
    axes.set_yticks([n + 0.4 - high / 2 for n in range(len(variables))], [v.replace("_", " ") for v in variables])
    axes.invert_yaxis()
    axes.set_xlabel("memory (KiB)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)
    return png(figure)
