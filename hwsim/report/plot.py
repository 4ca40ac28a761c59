"""Figures of a run, drawn from the rows of its CSV files. matplotlib is imported when a figure is drawn."""

import io
from collections.abc import Sequence


def canvas(width: float, height: float):
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def png(figure) -> bytes:
    """A figure as the bytes of a PNG, the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def accuracy_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy over the scale of variation, a line a network, its 95 % interval over chips as a band.

    rows: of accuracy.csv (network, variation_scale, chips, mean, ci95_low, ci95_high, minimum). Returns a PNG.
    """
    figure = canvas(6.4, 4.2)
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
    return png(figure)


def energy_figure(rows: Sequence[dict], title: str) -> bytes:
    """Energy an image by layer, components stacked; hatched beside it the ordinary network of the same shape.

    rows: of energy.csv. Phases of learning are added up; static energy, which has another time base, is left out.
    Returns a PNG.
    """
    figure = canvas(6.4, 3.8)
    axes = figure.subplots()
    rows = [r for r in rows if r["layer"] != "TOTAL" and r["phase"] != "static"]
    layers, components = (list(dict.fromkeys(r[k] for r in rows)) for k in ("layer", "component"))
    color = {c: f"C{i}" for i, c in enumerate(components)}
    both = {r["phase"] == "ann_inference" for r in rows}
    for is_ann in sorted(both):
        base = [0.0] * len(layers)
        for component in components:
            part = [r for r in rows if r["component"] == component and (r["phase"] == "ann_inference") == is_ann]
            if not part:
                continue
            nj = [sum(r["energy_pj"] for r in part if r["layer"] == layer) / 1000 for layer in layers]
            label = f"same shape, not spiking: {component}" if is_ann else component
            look = {"alpha": 0.45, "hatch": "///"} if is_ann else {}
            aside = (0.2 if is_ann else -0.2) if len(both) > 1 else 0.0
            place = [i + aside for i in range(len(layers))]
            axes.bar(place, nj, 0.38, bottom=base, label=label, color=color[component], **look)
            base = [b + h for b, h in zip(base, nj, strict=True)]
    axes.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 8 else 0)
    axes.set_ylabel("energy an image (nJ)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return png(figure)
