"""Figures of a report: sparsity, firing rates, weights, spikes of one image. `plot.py` has accuracy and energy."""

import math
from collections.abc import Sequence

import numpy as np

from hwsim.report.distribution import BINS
from hwsim.report.plot import canvas, png

_COLOR = {"synapse": "C0", "rram": "C0", "sram": "C1"}


def sparsity_figure(rows: Sequence[dict], title: str) -> bytes:
    """Two maps, layer by time step: the share of neurons that are silent, and of inputs that are zero.

    rows: of sparsity.csv. Fields without neurons or inputs are gray. Returns a PNG.
    """
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    steps = max(r["timestep"] for r in rows)
    neurons, inputs = (np.full((len(layers), steps), np.nan) for _ in range(2))
    for r in rows:
        place = layers.index(r["layer"]), r["timestep"] - 1
        if r["neurons"]:
            neurons[place] = r["zeros_fraction"]
        if r["inputs"]:
            inputs[place] = 1 - r["nonzero_inputs"] / r["inputs"]
    figure = canvas(6.4, 1.5 + 0.24 * len(layers))
    panels = figure.subplots(1, 2, sharey=True)
    known = [v for v in (*neurons.flat, *inputs.flat) if not math.isnan(v)]
    low = math.floor(10 * min(known)) / 10 if known else 0.0
    for axes, values, what in zip(panels, (neurons, inputs), ("silent neurons", "zero inputs"), strict=True):
        axes.set_facecolor("0.85")
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=min(low, 0.9), vmax=1, interpolation="nearest")
        axes.set_title(what, fontsize=9)
        axes.set_xlabel("time step")
        every = max(1, math.ceil(steps / 8))
        axes.set_xticks(range(0, steps, every), range(1, steps + 1, every))
    panels[0].set_yticks(range(len(layers)), layers)
    figure.colorbar(image, ax=panels, label="fraction, mean of the images")
    figure.suptitle(title, fontsize=10)
    return png(figure)


def rate_figure(rows: Sequence[dict], title: str) -> bytes:
    """Histogram of the neurons of each layer by their firing rate; the silent ones are a bar left of 0.

    rows: of report-firing-rates.csv. Returns a PNG.
    """
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    figure, panels = _panels(len(layers))
    edges = np.arange(BINS + 1) / BINS
    highest = max((r["rate_to"] for r in rows if r["neurons"]), default=0.0)
    rarest = min(r["neurons_fraction"] for r in rows if r["neurons"])
    for axes, layer in zip(panels, layers, strict=True):
        silent, *own = (100 * r["neurons_fraction"] for r in rows if r["layer"] == layer)
        axes.stairs(own, edges, fill=True, color="C0")
        axes.stairs([silent], [-0.05, -0.02], fill=True, color="C3")
        axes.set_yscale("log")
        axes.set_title(f"{layer}\n{silent:.3g} % silent", fontsize=8)
        axes.set_xlim(-0.07, max(0.2, highest + 0.02))
        axes.set_ylim(50 * rarest, 110)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
    figure.supxlabel("firing rate: spikes a step, mean of the images (red: neurons that never fired)", fontsize=9)
    figure.supylabel("percent of the neurons", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def weight_figure(rows: Sequence[dict], title: str) -> bytes:
    """Histogram of the weights that each array holds: a bar a level, or bins where there are many.

    rows: of report-weight-levels.csv. Returns a PNG.
    """
    arrays = list(dict.fromkeys((r["layer"], r["array"]) for r in rows))
    figure, panels = _panels(len(arrays), share=False)
    for axes, (layer, array) in zip(panels, arrays, strict=True):
        own = [r for r in rows if (r["layer"], r["array"]) == (layer, array)]
        weight, share = (np.array([r[k] for r in own]) for k in ("weight", "weights_fraction"))
        if half := own[0]["bin_width"] / 2:
            what = f"in {len(own)} bins"
            axes.stairs(100 * share, [*(weight - half), weight[-1] + half], fill=True, color=_COLOR[array])
        else:
            gap = np.diff(weight).min() if len(own) > 1 else 0.1
            what = f"{len(own)} level{'s' if len(own) > 1 else ''}"
            span = max(np.ptp(weight), gap)
            width = min(max(0.6 * gap, 0.003 * span), 0.08 * span)
            axes.bar(weight, 100 * share, width, color=_COLOR[array])
        name = layer if array == "synapse" else f"{layer} {array}"
        axes.set_title(f"{name}\n{own[0]['bits']} bit, {what}", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=3)
        axes.locator_params(axis="y", nbins=4)
    figure.supxlabel("weight that is held", fontsize=9)
    figure.supylabel("percent of the weights", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def raster_figure(spikes: dict[str, np.ndarray], title: str) -> bytes:
    """Spikes of one image: layer → [T, n], layers one above the other, the first one on top. Returns a PNG."""
    total = sum(s.shape[1] for s in spikes.values())
    steps = max(len(s) for s in spikes.values())
    figure = canvas(6.4, min(11.0, 1.2 + 0.95 * len(spikes)))
    axes = figure.subplots()
    top, middles = 0, []
    for i, spikes_TN in enumerate(spikes.values()):
        n = spikes_TN.shape[1]
        t, neuron = np.nonzero(spikes_TN)
        axes.hlines(top + neuron + 0.5, t + 0.65, t + 1.35, color=f"C{i % 10}", lw=1.0)
        middles.append(top + n / 2)
        top += n
        axes.axhline(top, color="0.6", lw=0.6)
    axes.set_ylim(total, 0)
    axes.set_xlim(0.5, steps + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yticks(middles, [f"{name}\n({s.shape[1]})" for name, s in spikes.items()], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("layer (neurons shown)")
    axes.set_xlabel("time step")
    axes.set_title(title, fontsize=10)
    return png(figure)


def _panels(number: int, share: bool = True):
    """(figure, that many small axes, row by row)."""
    few = (4, 3) if number <= 12 else (6, 5)
    columns = number if number < 4 else min(few, key=lambda n: -number % n)  # the fewest empty places
    rows = math.ceil(number / columns)
    figure = canvas(6.4 if columns <= 4 else 9.6, 0.9 + 1.45 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axes in panels:
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in panels[number:]:
        axes.remove()
    return figure, panels[:number]
