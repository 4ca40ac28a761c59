"""Figures of a run, drawn from the rows of its CSV files. matplotlib is imported when a figure is drawn."""

import io
from collections.abc import Sequence


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def _png(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def accuracy_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy over the scale of variation, a line a network, its 95 % interval over chips as a band.

    rows: of accuracy.csv (network, variation_scale, chips, mean, ci95_low, ci95_high, minimum). Returns a PNG.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    networks = list(dict.fromkeys(r["network"] for r in rows))
    scales = sorted({r["variation_scale"] for r in rows})
    place = {s: i for i, s in enumerate(scales)}  # evenly spaced: scales double
    for network in networks:
        own = sorted((r for r in rows if r["network"] == network), key=lambda r: r["variation_scale"])
        x = [place[r["variation_scale"]] for r in own]
        line = axes.plot(x, [100 * r["mean"] for r in own], marker="o", ms=4, label=network)[0]
        low, high = ([100 * r[c] for r in own] for c in ("ci95_low", "ci95_high"))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
    axes.set_xlabel("variation scale (multiplies the card's sigma)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def energy_figure(rows: Sequence[dict], title: str) -> bytes:
    """Energy an image by layer, additions and multiplications stacked, beside the ordinary network of the same shape.

    rows: of energy.csv. Returns a PNG.
    """
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    layers = [n for n in dict.fromkeys(r["layer"] for r in rows) if n != "TOTAL"]
    bars = (("inference", "ac", "spiking: additions (AC)", -0.2), ("inference", "mac", "spiking: multiplications (MAC)",
    -0.2),
            ("ann_inference", "mac", "same shape, not spiking (MAC)", 0.2))  # fmt: skip
    bottom = dict.fromkeys(layers, 0.0)
    for phase, action, label, offset in bars:
        nj = dict.fromkeys(layers, 0.0)
        for r in rows:
            if r["phase"] == phase and r["action"] == action and r["layer"] in nj:
                nj[r["layer"]] += r["energy_pj"] / 1000
        base = [bottom[n] if phase == "inference" else 0.0 for n in layers]
        heights = [nj[n] for n in layers]
        axes.bar([i + offset for i in range(len(layers))], heights, 0.38, bottom=base, label=label)
        if phase == "inference":
            bottom = {n: b + h for n, b, h in zip(layers, base, heights, strict=True)}
    axes.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 8 else 0)
    axes.set_ylabel("energy an image (nJ)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return _png(figure)
