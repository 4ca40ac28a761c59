"""Figures of input codings side by side: accuracy and energy over time steps, early exit, attacks."""

from collections.abc import Sequence

from hwsim.report.plot import canvas, png


def codings_figure(summary: Sequence[dict], layers: Sequence[dict], title: str) -> bytes:
    """Accuracy and energy an image over T, a color a coding, with 95 % intervals over seeds (dashed: the ordinary
    network of the same shape); right: energy by layer at the largest T, multiplications hatched.

    summary, layers: rows of codings-summary.csv and codings-layers.csv. Returns a PNG.
    """
    figure = canvas(11.0, 3.9)
    accuracy, energy, by_layer = figure.subplots(1, 3)
    names = list(dict.fromkeys(r["encode"] for r in summary))
    steps = sorted({r["steps"] for r in summary})
    panels = ((accuracy, "accuracy", 100.0), (energy, "energy_pj", 1e-3))
    for i, name in enumerate(names):
        own = sorted((r for r in summary if r["encode"] == name), key=lambda r: r["steps"])
        x = [steps.index(r["steps"]) for r in own]
        for axes, what, scale in panels:
            mean, low, high = ([scale * r[f"{what}_{k}"] for r in own] for k in ("mean", "ci95_low", "ci95_high"))
            axes.plot(x, mean, marker="o", ms=4, color=f"C{i}", label=name)
            axes.fill_between(x, low, high, color=f"C{i}", alpha=0.2, lw=0)
    energy.axhline(summary[0]["ann_energy_pj"] / 1000, color="0.4", ls="--", lw=1, label="same shape, not spiking")
    energy.set_yscale("log")
    for axes, label in ((accuracy, "test accuracy (%)"), (energy, "energy of the synapses, an image (nJ)")):
        axes.set_xticks(range(len(steps)), steps)
        axes.set_xlabel("time steps T")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    _layer_bars(by_layer, layers, names, max(steps))
    figure.suptitle(title, fontsize=10)
    return png(figure)


def _layer_bars(axes, layers: Sequence[dict], names: list[str], steps: int) -> None:
    shown = [r for r in layers if r["steps"] == steps]
    places = list(dict.fromkeys(r["layer"] for r in shown))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        own = [r for r in shown if r["encode"] == name]
        seeds = len({r["seed"] for r in own})
        base = [0.0] * len(places)
        x = [p + (i + 0.5) * width - 0.4 for p in range(len(places))]
        for action, look in (("ac", {}), ("mac", {"hatch": "////", "alpha": 0.55})):
            part = [r for r in own if r["action"] == action]
            nj = [sum(r["energy_pj"] for r in part if r["layer"] == p) / seeds / 1000 for p in places]
            axes.bar(x, nj, width, bottom=base, color=f"C{i}", label=f"{name}, {action.upper()}", **look)
            base = [b + h for b, h in zip(base, nj, strict=True)]
    axes.set_xticks(range(len(places)), places, rotation=45 if len(places) > 6 else 0)
    axes.set_xlabel(f"layer, at T = {steps}")
    axes.set_ylabel("energy an image (nJ)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7)


def early_exit_figure(rows: Sequence[dict], scales: Sequence[dict], title: str) -> bytes:
    """Accuracy over mean steps and over energy, a line a rule, its chosen threshold a star; right: BNTT's scales.

    rows, scales: of early-exit.csv and scales.csv, of one network. Returns a PNG.
    """
    figure = canvas(11.0, 3.9)
    by_steps, by_energy, of_scales = figure.subplots(1, 3)
    for i, rule in enumerate(dict.fromkeys(r["rule"] for r in rows)):
        own = sorted((r for r in rows if r["rule"] == rule), key=lambda r: r["mean_steps"])
        for axes, key, scale in ((by_steps, "mean_steps", 1.0), (by_energy, "energy_pj", 1e-3)):
            x, y = [scale * r[key] for r in own], [100 * r["accuracy"] for r in own]
            look = {"ls": "--", "color": "0.5"} if rule == "fixed" else {"color": f"C{i}"}
            axes.plot(x, y, marker="o", ms=3, lw=1.2, label=rule, **look)
            for r in own:
                if r["is_chosen"]:
                    axes.plot(scale * r[key], 100 * r["accuracy"], marker="*", ms=11, color=look["color"])
    by_steps.set_xlabel("mean steps an image")
    by_energy.set_xlabel("energy of the synapses, an image (nJ)")
    by_steps.legend(fontsize=7, title="star: chosen on validation", title_fontsize=7)
    for axes in (by_steps, by_energy):
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
    for layer in dict.fromkeys(r["layer"] for r in scales):
        own = [r for r in scales if r["layer"] == layer]
        of_scales.plot([r["timestep"] for r in own], [r["mean_scale"] for r in own], lw=1.2, label=layer)
    if scales:
        of_scales.set_xlabel("time step")
        of_scales.set_ylabel("mean scale of BNTT")
        of_scales.set_ylim(0, 1.1 * max(r["mean_scale"] for r in scales) or 1)
        of_scales.grid(alpha=0.3)
        of_scales.legend(fontsize=7)
    else:
        of_scales.remove()
    figure.suptitle(title, fontsize=10)
    return png(figure)


_LOOK = {"exact": "-", "expectation": "-", "naive": ":", "transfer": "--"}


def attack_figure(rows: Sequence[dict], title: str) -> bytes:
    """Accuracy over the size of the change, a panel a method, a color a network: solid by its own gradient (through
    Poisson spikes the expectation's) with its 95 % interval, dotted by the naive one, dashed with another network's
    images.

    rows: of attack-summary.csv. Returns a PNG.
    """
    methods = list(dict.fromkeys(r["method"] for r in rows))
    networks = list(dict.fromkeys(r["network"] for r in rows))
    figure = canvas(1.0 + 4.4 * len(methods), 4.2)
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for axes, method in zip(panels, methods, strict=True):
        for i, name in enumerate(networks):
            mine = [r for r in rows if r["method"] == method and r["network"] == name]
            for kind, made_on in dict.fromkeys((r["gradient"], r["made_on"]) for r in mine):
                own = [r for r in mine if (r["gradient"], r["made_on"]) == (kind, made_on)]
                own.sort(key=lambda r: r["eps_255"])
                x, y = [r["eps_255"] for r in own], [100 * r["accuracy_mean"] for r in own]
                said = f"from {made_on}" if kind == "transfer" else kind
                axes.plot(x, y, _LOOK[kind], marker="o", ms=3, lw=1.3, color=f"C{i}", label=f"{name}: {said}")
                if kind in ("exact", "expectation"):
                    low, high = ([100 * r[k] for r in own] for k in ("ci95_low", "ci95_high"))
                    axes.fill_between(x, low, high, color=f"C{i}", alpha=0.12, lw=0)
        axes.set_title(method.upper(), fontsize=9)
        axes.set_xlabel("eps (steps of 1/255)")
        axes.grid(alpha=0.3)
        axes.set_ylim(-2, 102)
    panels[0].set_ylabel("accuracy on attacked images (%)")
    panels[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return png(figure)
