"""Tables, figures and sentences of a run of integer networks."""

import math

from hwsim.recipe import decolle, pattern
from hwsim.recipe.checkpoint import load_arrays
from hwsim.recipe.evaluate import interval
from hwsim.recipe.folder import Folder, read_stage
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.settings import Account, Recipe
from hwsim.recipe.summary import energy_sentences
from hwsim.recipe.tracefile import load_trace
from hwsim.report import energy, sparsity
from hwsim.report.footprint import (
    FOOTPRINT_COLUMNS,
    decolle_bits,
    footprint_rows,
    in_32_bits,
    law_layers,
    law_widths,
)
from hwsim.report.plot import energy_figure
from hwsim.report.table import csv_bytes
from hwsim.report.trace import Counts

ACCURACY = (
    "stage", "layer", "repeats", "mean", "std", "ci95_low", "ci95_high", "minimum", "recordings",
)  # fmt: skip


def write_tables(folder: Folder, recipe: Recipe, name: str, results) -> None:
    """Write every CSV, figure and summary.md of a run from its stages' rows and files."""
    of_kind = {kind: [n for n, s in recipe.stages.items() if isinstance(s, kind)] for kind in (Pattern, Decolle)}
    losses, metrics = ([r for r in results.metrics if r["stage"] in names] for names in of_kind.values())
    accuracy = accuracy_rows(metrics)
    tables = {
        "loss.csv": (losses, pattern.LOSS), "metrics.csv": (metrics, decolle.metric_columns(metrics)),
        "accuracy.csv": (accuracy, ACCURACY), "energy.csv": (results.energy, energy.COLUMNS),
        "sparsity.csv": (results.sparsity, sparsity.COLUMNS),
    }  # fmt: skip
    for file, (rows, columns) in tables.items():
        if rows:
            folder.write(file, csv_bytes(rows, columns))
    from hwsim.report.integer_figures import footprint_figure, learning_figure, loss_figure, rasters_figure

    if losses:
        folder.write("loss.png", loss_figure(losses, recipe.title))
    for stage in of_kind[Pattern]:
        here = folder.stage(stage)
        rasters, _ = load_arrays(here / next(iter(read_stage(here)["files"])))
        rasters = {k: v for k, v in rasters.items() if not k.startswith("net.")}
        folder.write(f"rasters-{stage}.png", rasters_figure(rasters, f"{stage}: target and output"))
    if metrics:
        folder.write("learning.png", learning_figure(metrics, recipe.title))
    if results.energy:
        card = results.energy[0]["card"]
        folder.write("energy.png", energy_figure(results.energy, f"{name}: energy a presentation, prices of {card}"))
    out = [f"# {name}: {recipe.title}\n", *(f"* {row['says']}" for row in headlines(recipe, results.metrics))]
    for stage, said in recipe.stages.items():
        if isinstance(said, Account):
            counts = load_trace(folder.stage(stage))
            own, wide = footprints(counts, said)
            folder.write("footprint.csv", csv_bytes(own, FOOTPRINT_COLUMNS))
            folder.write(
                "footprint.png", footprint_figure({said.of: own, "32 bits": wide}, f"{name}: memory, rule {said.rule}")
            )
            out.append(f"* {said.of}: {saving(own[-1]['bits'], wide[-1]['bits'])}")
            if any(layer.traced for layer in counts.layers.values()):
                widths, sizes = law_widths(counts), law_layers(counts)
                bits, full = (decolle_bits(sizes, w, counts.classes) for w in (widths, dict.fromkeys(widths, 32)))
                out.append(f"* {said.of}: as published (no decays, spikes, sums of gradients): {saving(bits, full)}")
    folder.write("summary.md", "\n".join([*out, *energy_sentences(results.energy), ""]).encode())


def footprints(counts: Counts, stage: Account) -> tuple[list[dict], list[dict]]:
    """Bits of every variable of a network by a stage's definitions, as it is and with 32 bits for every number."""
    wide = stage.definitions.model_copy(update={"state_bits": None, "arithmetic": "fp32"})
    return footprint_rows(counts, stage.definitions), footprint_rows(in_32_bits(counts), wide)


def saving(bits: int, full: int) -> str:
    """How much memory a network takes, and how much less than with 32 bits everywhere."""
    return f"{bits} bits of memory, {100 * (1 - bits / full):.2f} % less than with 32 bits for every number ({full})"


def accuracy_rows(metrics: list[dict]) -> list[dict]:
    """Test accuracy of each layer at the epoch that was best on validation, over repeats."""
    chosen: dict[tuple[str, int], dict] = {}
    for row in metrics:
        if row["is_best"]:
            chosen[row["stage"], row["repeat"]] = row
    out = []
    for stage in dict.fromkeys(stage for stage, _ in chosen):
        rows = [row for (of, _), row in chosen.items() if of == stage]
        layers = [k for k in rows[0] if k.startswith("test_accuracy")]
        for layer in range(1, len(layers) + 1):
            each = [row[f"test_accuracy{layer}"] for row in rows]
            n, mean, std, low, high, minimum = interval(each)
            out.append({
                "stage": stage, "layer": layer, "repeats": n, "mean": mean, "std": std, "ci95_low": low,
                "ci95_high": high, "minimum": minimum, "recordings": rows[0]["test_recordings"],
            })  # fmt: skip
    return out


def headlines(recipe: Recipe, rows: list[dict]) -> list[dict]:
    """For each stage its result, and a sentence that says it."""
    out = []
    for name, stage in recipe.stages.items():
        own = [r for r in rows if r["stage"] == name]
        if isinstance(stage, Pattern):
            first, last = own[0], own[-1]
            says = (
                f"{name}: van Rossum distance {first['loss']:.1f} at epoch 1, {last['loss']:.1f} at epoch "
                f"{last['epoch']} ({100 * (1 - last['loss'] / first['loss']):.1f} % less)"
            )
            out.append({"stage": name, "epoch": last["epoch"], "loss": last["loss"], "says": says})
        if isinstance(stage, Decolle):
            best = [r for r in accuracy_rows(own)][-1]
            some = best["repeats"] > 1
            spread = f" [{100 * best['ci95_low']:.2f}, {100 * best['ci95_high']:.2f}] over {best['repeats']} seeds"
            says = (
                f"{name}: {100 * best['mean']:.2f} %{spread if some else ''} of {best['recordings']} test recordings, "
                f"layer {best['layer']}"
            )
            out.append({**{k: v for k, v in best.items() if not _is_nan(v)}, "says": says})
    return out


def _is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)
