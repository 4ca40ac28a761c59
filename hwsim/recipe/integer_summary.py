"""Tables, figures and sentences of a run of integer networks."""

import math

from hwsim.recipe import decolle, pattern
from hwsim.recipe.checkpoint import load_arrays
from hwsim.recipe.evaluate import interval
from hwsim.recipe.folder import Folder, read_stage
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.settings import Recipe
from hwsim.recipe.summary import energy_sentences
from hwsim.report import energy, sparsity
from hwsim.report.plot import energy_figure
from hwsim.report.table import csv_bytes

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
    from hwsim.report.integer_figures import learning_figure, loss_figure, rasters_figure

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
    folder.write("summary.md", "\n".join([*out, *energy_sentences(results.energy), ""]).encode())


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
