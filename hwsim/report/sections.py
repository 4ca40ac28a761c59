"""What a report says of a network's counts: energy, sparsity, rates, weights, spikes, metrics, memory, prices.

Each function gives the parts of a section (`page.py`), and puts the same numbers into `files` (name → CSV).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hwsim.device.pricelist import Prices
from hwsim.report import distribution, neurobench, provenance, sparsity
from hwsim.report.action import Definitions
from hwsim.report.energy import COLUMNS as ENERGY
from hwsim.report.figures import raster_figure, rate_figure, sparsity_figure, weight_figure
from hwsim.report.footprint import FOOTPRINT_COLUMNS, footprint_rows
from hwsim.report.page import Column, Html, figure, folded, table
from hwsim.report.plot import accuracy_figure, energy_figure
from hwsim.report.table import csv_bytes
from hwsim.report.trace import Counts

NJ = 1e-3
"""What is nJ of a pJ."""
Files = dict[str, bytes]


class Counted(NamedTuple):
    """What was counted: the run, what its figures are of, and the counts."""

    run_id: str
    of: str
    counts: Counts


def accuracy(rows: Sequence[dict], of: str) -> list[str]:
    """Of the rows of accuracy.csv."""
    chips = max(r["chips"] for r in rows)
    adapted = [f", adapted ({r['adapt_batches']})" if r["adapt_batches"] else "" for r in rows]
    drawn = [{**r, "network": f"{r['network']}{a}"} for r, a in zip(rows, adapted, strict=True)]
    columns = [
        Column(k, _PERCENT[k], 100, ".2f") if k in _PERCENT else Column(k, k.replace("_", " "))
        for k in rows[0]
        if k != "adapt_batches" or any(adapted)
    ]
    drawing = accuracy_figure(drawn, f"{of}: mean over {chips} chips, band: 95 % interval")
    return [
        "Test accuracy over chips; a chip is one draw of the card's variation. The interval is of the mean over chips. "
        "Scale 0 is without variation, and its scatter is that of the spike coding.",
        figure(drawing, "Accuracy over the scale of variation."),
        table(rows, columns),
    ]


_PERCENT = {
    "mean": "mean (%)", "std": "s.d. (%)", "ci95_low": "95 % from", "ci95_high": "to", "minimum": "lowest (%)",
}  # fmt: skip


def energy(priced: Sequence[tuple[Prices, list[dict]]], of: str, network: str, files: Files) -> list[str]:
    """Of the rows of energy.csv by each card."""
    files["energy"] = csv_bytes((r for _, rows in priced for r in rows), ENERGY)
    images = priced[0][1][0]["samples"] if priced[0][1] else 0
    figures = [
        figure(energy_figure(rows, f"{of}: prices of {p.name}"), f"Energy by layer and component, prices of {p.name}.")
        for p, rows in priced
        if rows
    ]
    cards = {c.name: c for p, _ in priced for c in p.cards}
    return [
        f"Energy of one image in nJ: counts times prices, mean of {images} test images; network {network}, without "
        "variation. Phase ann_inference is the ordinary network of the same shape. Phase static is power times the "
        "time base and is not added to the others. An empty field is a component that a card does not cover: it is "
        "left out, not free.",
        _by(priced, ("phase", "component"), totals=True),
        *figures,
        folded("by layer", _by(priced, ("layer", "phase", "component"), totals=False)),
        *(f"{c.name} ({c.title}) covers {', '.join(c.covers)}. {c.includes}" for c in cards.values()),
    ]


def _by(priced: Sequence[tuple[Prices, list[dict]]], keys: tuple[str, ...], totals: bool) -> Html:
    """Energy by these keys, a column a card."""
    out: dict[tuple, dict] = {}
    for i, (_, rows) in enumerate(priced):
        for r in rows:
            if (r["layer"] == "TOTAL") == totals:
                row = out.setdefault(tuple(r[k] for k in keys), {k: r[k] for k in keys})
                row[str(i)] = row.get(str(i), 0.0) + r["energy_pj"]
    phases = list(dict.fromkeys(r["phase"] for r in out.values()))
    # The sum of a phase stands below its components, whichever card has which.
    ordered = sorted(out.values(), key=lambda r: (phases.index(r["phase"]), r["component"] == "all"))
    return table(ordered, [*keys, *(Column(str(i), f"{p.name} (nJ)", NJ) for i, (p, _) in enumerate(priced))])


def activity(counted: Counted, files: Files) -> dict[str, list[str]]:
    """Sparsity, firing rates, weights and spikes, a section each."""
    run_id, of, counts = counted
    rows = sparsity.sparsity_rows(counts, run_id)
    rates, weights = list(distribution.rate_rows(counts, run_id)), list(distribution.weight_rows(counts, run_id))
    files |= {
        "sparsity": csv_bytes(rows, sparsity.COLUMNS), "firing-rates": csv_bytes(rates, distribution.RATES),
        "weight-levels": csv_bytes(weights, distribution.WEIGHTS),
        "raster": csv_bytes(distribution.raster_rows(counts, run_id), distribution.RASTER),
    }  # fmt: skip
    first = set(counts.one_member)
    of_one = " Shown: the first network of the ensemble." if len(first) < len(counts.layers) else ""
    short = {name: name.partition("@")[0] for name in first}
    raster = {short[name]: spikes for name, (_, spikes) in distribution.raster(counts).items() if name in first}
    rates, weights = (
        [{**r, "layer": short[r["layer"]]} for r in each if r["layer"] in first] for each in (rates, weights)
    )
    drawing = sparsity_figure(rows, f"{of}: sparsity, mean of {counts.images} images")
    out = {}
    out["Sparsity"] = [
        "Fraction of the neurons without a spike, and of the inputs of a layer that are zero (pooled inputs are "
        "averages of spikes). Gray: a layer without neurons, or a step at which no input arrives.",
        figure(drawing, "Sparsity by layer and time step."),
        folded("by layer and step", table(rows, sparsity.COLUMNS[1:])),
    ]
    if rates:
        out["Firing rates"] = [
            f"Spikes of each neuron a step, mean of {counts.images} images.{of_one}",
            figure(rate_figure(rates, f"{of}: neurons by firing rate"), "Neurons by firing rate, layer by layer."),
        ]
    out["Weights"] = [
        f"Weights as the arrays are asked to hold them, without variation.{of_one}",
        figure(weight_figure(weights, f"{of}: weights by value"), "Weights by value, array by array."),
        table(_arrays(counts), _ARRAYS),
    ]
    if raster:
        out["Spikes of one image"] = [
            f"The first test image; of each layer at most {distribution.NEURONS} neurons, evenly spaced.{of_one}",
            figure(raster_figure(raster, f"{of}: spikes at the first test image"), "Spikes by neuron and time step."),
        ]
    return out


_ARRAYS = ("layer", "array", "bits", "on_cells", "weights", "distinct", "zero_fraction")


def _arrays(counts: Counts) -> list[dict]:
    return [
        dict(zip(_ARRAYS, (name, h.component, h.bits, h.cells, layer.weights, h.distinct, 1 - h.density), strict=True))
        for name, layer in counts.layers.items()
        for h in layer.held
    ]


def metrics(counted: Counted, files: Files) -> list[str]:
    """NeuroBench's metrics."""
    rows = neurobench.metric_rows(counted.counts, counted.run_id)
    files["metrics"] = csv_bytes(rows, neurobench.COLUMNS)
    total = [{**r, "meaning": neurobench.METRICS[r["metric"]][1]} for r in rows if r["layer"] == "TOTAL"]
    layers: dict[str, dict] = {}
    for r in rows:
        layers.setdefault(r["layer"], {"layer": r["layer"]})[r["metric"]] = r["value"]
    return [
        "NeuroBench's metrics by its names and definitions, over all images; weights are those that are held.",
        table(total, ("metric", "value", "unit", "meaning")),
        folded("by layer", table(list(layers.values()), ("layer", *neurobench.METRICS))),
    ]


def memory(counted: Counted, definitions: Definitions, files: Files) -> list[str]:
    """Bits of every variable."""
    rows = footprint_rows(counted.counts, definitions)
    files["footprint"] = csv_bytes(rows, FOOTPRINT_COLUMNS)
    columns = ("variable", "bits", "kib")
    return [
        f"Memory of every variable that the network needs, for {definitions.rule} and by the organizations below.",
        table([r for r in rows if r["layer"] == "TOTAL"], columns),
        folded("by layer", table([r for r in rows if r["layer"] != "TOTAL"], FOOTPRINT_COLUMNS)),
    ]


def definitions_used(definitions: Definitions) -> list[str]:
    """Every choice that changes a number of the energy table."""
    fields = type(definitions).model_fields
    rows = [
        {"definition": k, "value": _said(v), "default": _said(fields[k].default), "meaning": fields[k].description}
        for k, v in definitions.model_dump().items()
    ]
    return [table(rows, ("definition", "value", "default", "meaning"))]


def prices(counted: Counted, used: Iterable[Prices], definitions: Definitions, files: Files) -> list[str]:
    """Every price that was used, with its source; a table for each of the cards (or cards together) side by side."""
    rows, parts = [], []
    for p in used:
        own = [{"prices": p.name, **r} for r in provenance.price_rows(counted.counts, p, definitions)]
        shown = [c for c in provenance.COLUMNS if c != "card" or len(p.cards) > 1]
        parts += [f"Prices of {p.name}, of one action:", table(own, shown)]
        rows += own
    files["prices"] = csv_bytes(rows, ("prices", *provenance.COLUMNS))
    about = "Where a price is a law (by capacity, by bits, …), these are the lowest and the highest that occurred."
    return [*parts, about]


def _said(value: object) -> str:
    """A setting's value as a recipe writes it."""
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
