"""Tables, figures and sentences about networks that a run has converted into spikes."""

from hwsim.recipe.folder import Folder
from hwsim.recipe.readout import EXITS, LATENCY, STEPS
from hwsim.recipe.settings import Recipe
from hwsim.report.table import csv_bytes

CONVERSION = (
    "stage", "layer", "percentile_value", "delay_steps", "threshold_min", "threshold_max", "scale_mean", "weights",
    "filters", "zero_weights", "weight_bits", "packed_bytes", "float32_bytes", "firing_rate",
)  # fmt: skip
INTEGER = ("stage", "images", "layers", "same_answer", "same_outputs")
TABLES = {"steps": STEPS, "exits": EXITS, "latency": LATENCY, "conversion": CONVERSION, "integer": INTEGER}


def write_conversion(folder: Folder, of: str, tables: dict[str, list[dict]]) -> None:
    """Write a run's tables and figures about conversion; `of` names network and data."""
    from hwsim.report.time_figures import exits_figure, steps_figure

    for name, columns in TABLES.items():
        if tables.get(name):
            folder.write(f"{name}.csv", csv_bytes(tables[name], columns))
    if tables.get("steps"):
        images = tables["steps"][0]["images"]
        over = f"{of}: {images} test images"
        folder.write("steps.png", steps_figure(tables["steps"], f"{over}, band: 95 % interval"))
        folder.write("exits.png", exits_figure(tables["exits"], f"{over}, leaving early by the outputs' margin"))


def conversion_sentences(tables: dict[str, list[dict]], recipe: Recipe) -> list[str]:
    """What each converted network reaches and when, what it takes in memory, what its integer form says."""
    out = []
    for name in dict.fromkeys(r["stage"] for r in tables.get("steps", [])):
        own = {k: [r for r in rows if r["stage"] == name] for k, rows in tables.items()}
        stage, last = recipe.stages[name], own["steps"][-1]
        how = "signals pass all layers within a step" if stage.one_step else "a pipeline"
        out.append(
            f"\n`{name}` ({stage.start} in spikes, {how}): {100 * last['accuracy']:.2f} % "
            f"[{100 * last['ci95_low']:.2f}, {100 * last['ci95_high']:.2f}] of {last['images']} test images after "
            f"{stage.time} steps, {100 * last['ann_accuracy']:.2f} % before conversion "
            f"(percentile {stage.percentile:g}; the interval is over images)."
        )
        out += _latency(own["latency"]) + _exits(own["exits"], last["accuracy"]) + _memory(own["conversion"])
        for r in own.get("integer", []):
            out.append(
                f"Whole numbers (AND, population count) in {r['layers']} layers: the same answer for "
                f"{r['same_answer']} of {r['images']} images, the same outputs for {r['same_outputs']}."
            )
    return out


def _latency(rows: list[dict]) -> list[str]:
    shown = [r for r in rows if r["first_timestep"] != ""]
    if not shown:
        return ["No target of latency.csv was reached."]
    out = ["", "| accuracy | first at step | kept from step |", "|---|---|---|"]
    return out + [
        f"| {r['target']} ({100 * r['accuracy']:.2f} %) | {r['first_timestep']} | {r['stays_from_timestep']} |"
        for r in shown
    ] + [""]  # fmt: skip


def _exits(rows: list[dict], full: float) -> list[str]:
    fits = [r for r in rows if r["accuracy"] >= full - 0.005]
    if not fits:
        return []
    best = min(fits, key=lambda r: r["mean_steps"])
    return [
        f"Leaving at a margin of {best['margin']:g} an image takes {best['mean_steps']:.1f} steps on average and "
        f"{100 * best['accuracy']:.2f} % are right."
    ]


def _memory(rows: list[dict]) -> list[str]:
    packed, floats = (sum(r[k] for r in rows) for k in ("packed_bytes", "float32_bytes"))
    zeros = sum(r["zero_weights"] for r in rows if r["weight_bits"] == 2)
    mask = f", {zeros} of them 0, whose layers have a mask plane" if zeros else ""
    binary = sum(r["weights"] for r in rows if r["weight_bits"] <= 2)
    if not binary:
        return []
    return [
        f"Memory of weights and thresholds: {packed:,} bytes, {floats / packed:.1f} times less than the "
        f"{floats:,} of float32 weights ({binary:,} binary weights{mask})."
    ]
