"""The tables and figures of a finished run, and the sentence for each comparison that its intervals allow.

Gains are differences chip by chip: networks of one shape meet the same chips. Intervals are over chips (and spike
coding); one training run a network, so they say nothing about other training seeds.
"""

from hwsim.recipe.bitnet_summary import curve_sentences, write_curves
from hwsim.recipe.coding_summary import coding_sentences, write_codings
from hwsim.recipe.convert_summary import conversion_sentences, write_conversion
from hwsim.recipe.folder import Folder
from hwsim.recipe.recover import SRAM_COLUMNS
from hwsim.recipe.results import ACCURACY, GAINS, accuracy_rows, gain_rows, label, stage_of
from hwsim.recipe.settings import Evaluate, Recipe, Recover
from hwsim.report.energy import COLUMNS as ENERGY_COLUMNS
from hwsim.report.sparsity import COLUMNS as SPARSITY_COLUMNS
from hwsim.report.sparsity import LEVELS
from hwsim.report.table import csv_bytes

METRICS = (
    "stage", "chip", "shift_bit", "epoch", "lr", "train_loss", "validation_loss", "validation_accuracy", "is_best",
    "eligible",
)  # fmt: skip
CHIPS = ("stage", "network", "adapt_batches", "variation_scale", "chip", "accuracy", "images")


def write_tables(folder: Folder, recipe: Recipe, name: str, results) -> None:
    """Write every CSV, figure and summary.md of a run from its stages' rows."""
    tables = {
        "metrics.csv": (results.metrics, METRICS), "chips.csv": (results.chips, CHIPS),
        "accuracy.csv": (accuracy_rows(results.chips), ACCURACY),
        "gains.csv": (gain_rows(results.chips, recipe), GAINS),
        "energy.csv": (results.energy, ENERGY_COLUMNS), "sparsity.csv": (results.sparsity, SPARSITY_COLUMNS),
        "levels.csv": (results.levels, LEVELS), "sram.csv": (results.sram, SRAM_COLUMNS),
    }  # fmt: skip
    for file, (rows, columns) in tables.items():
        if rows:
            folder.write(file, csv_bytes(rows, columns))
    from hwsim.report.plot import accuracy_figure, energy_figure

    weights = recipe.device.weights
    bits = f"{weights.bits} bit" if weights.bits else recipe.device.card
    of = f"{recipe.net.name} on {recipe.data.name}, {bits}"
    rows = accuracy_rows(results.chips)
    if rows:
        chips = max(r["chips"] for r in rows)
        over = {r["chips"]: "" if r["chips"] == chips else f", {r['chips']} of them" for r in rows}
        named = [{**r, "network": label(r) + over[r["chips"]]} for r in rows]
        folder.write("accuracy.png", accuracy_figure(named, f"{of}: mean over {chips} chips, band: 95 % interval"))
    if results.energy:
        card = results.energy[0]["card"]
        folder.write("energy.png", energy_figure(results.energy, f"{of}: energy an image, prices of {card}"))
    write_curves(folder, f"{recipe.net.name} on {recipe.data.name}", results.curves)
    write_conversion(folder, f"{recipe.net.name} on {recipe.data.name}", results.conversion)
    write_codings(folder, f"{recipe.net.name} on {recipe.data.name}", results.timing)
    folder.write("summary.md", summary(recipe, name, results).encode())


def summary(recipe: Recipe, name: str, results) -> str:
    """summary.md: accuracy, gains in words, levels in use, energy."""
    out = [f"# {name}: {recipe.title}\n"]
    rows = accuracy_rows(results.chips)
    if rows:
        stage = next(s for s in recipe.stages.values() if isinstance(s, Evaluate))
        draws = recipe.net.encode == "poisson" and not (recipe.net.is_ordinary or recipe.net.is_bitnet)
        out.append(
            f"Test accuracy in percent over {stage.chips} chips: mean [95 % interval], lowest chip. Scale 0 is without "
            f"variation{'; its scatter is that of the spike coding' if draws else ''}.\n"
        )
        scales = list(dict.fromkeys(r["variation_scale"] for r in rows))
        out.append("| network | " + " | ".join(f"scale {s:g}" for s in scales) + " |")
        out.append("|---" * (len(scales) + 1) + "|")
        for network in dict.fromkeys(map(label, rows)):
            cells = [_cell(r, stage.chips) for s in scales for r in rows
                     if label(r) == network and r["variation_scale"] == s]  # fmt: skip
            out.append(f"| {network} | " + " | ".join(cells) + " |")
        out += ["", *sentences(rows, gain_rows(results.chips, recipe), recipe)]
    out += curve_sentences(results.curves, recipe)
    out += conversion_sentences(results.conversion, recipe)
    out += coding_sentences(results.timing, recipe)
    out += sram_sentences(results.sram, results.metrics, recipe)
    if results.levels:
        for part in dict.fromkeys(r["part"] for r in results.levels):
            rows = [r for r in results.levels if r["part"] == part]
            used = ", ".join(f"{r['layer']} {r['levels_used']}" for r in rows)
            of = "" if part == "synapse" else f"{part.upper()}, "
            out.append(f"\nDistinct weight values in use ({of}{rows[0]['bits']} bit): {used}.")
    out += energy_sentences(results.energy)
    return "\n".join(out) + "\n"


def energy_sentences(rows: list[dict]) -> list[str]:
    """Energy an image of each phase, by component, and of the ordinary network of the same shape."""
    totals = [r for r in rows if r["layer"] == "TOTAL"]
    if not totals:
        return []
    out = [f"\nEnergy in nJ an image by {totals[0]['card']} (mean of {totals[0]['samples']} test images):\n"]
    phases = list(dict.fromkeys(r["phase"] for r in totals))
    names = ("ordinary network" if p == "ann_inference" else p for p in phases)
    out += ["| component | " + " | ".join(names) + " |", "|---" * (len(phases) + 1) + "|"]
    components = [c for c in dict.fromkeys(r["component"] for r in totals) if c != "all"]
    for component in (*components, "all"):
        of = {r["phase"]: f"{r['energy_pj'] / 1000:.4g}" for r in totals if r["component"] == component}
        out.append(f"| {component} | " + " | ".join(of.get(p, "") for p in phases) + " |")
    return out


def sentences(accuracy: list[dict], gains: list[dict], recipe: Recipe) -> list[str]:
    """For each scale, what variation costs the reference and whether training with variation wins it back."""
    out = []
    of = {(r["network"], r["adapt_batches"], r["variation_scale"]): r for r in accuracy}
    for g in gains:
        scale, adapt, stage = g["variation_scale"], g["adapt_batches"], stage_of(recipe, g["network"])
        if scale == 0 or (stage.variation_scale not in (1.0, scale)):
            continue
        reference, clean = of[g["reference"], adapt, scale], of.get((g["reference"], adapt, 0.0))
        both = f", both adapted ({adapt})" if adapt else ""
        text = (
            f"* scale {scale:g}: `{g['network']}` against `{g['reference']}`{both}: {100 * g['gain_mean']:+.2f} points "
        )
        if g["verdict"] == "no_interval":
            alone = isinstance(stage, Recover) and stage.redraw == "chip" and stage.fixed_chips == 1
            option = "--fixed-chips" if alone else "--chips"
            out.append(text + f"on one chip, which gives no interval; use {option} 2 or more.")
            continue
        text += (
            f"(95 % of the difference chip by chip: {100 * g['gain_ci95_low']:+.2f} to "
            f"{100 * g['gain_ci95_high']:+.2f}); "
        )
        text += {
            "apart_above": "it wins, the two intervals are apart.",
            "apart_below": "it loses, the two intervals are apart.",
            "overlap": f"{_paired(g)} the two intervals overlap.",
        }[g["verdict"]]
        if g["verdict"] != "apart_above" and clean is not None:
            text += _why(of[g["network"], adapt, scale], reference, clean)
        out.append(text)
    return out


def _paired(g: dict) -> str:
    """What the difference on the same chips says where the networks' own intervals overlap."""
    if g["gain_ci95_low"] > 0:
        return "ahead chip by chip, but"
    return "behind chip by chip, but" if g["gain_ci95_high"] < 0 else "no clear difference,"


def _why(mine: dict, reference: dict, clean: dict) -> str:
    lost = clean["mean"] - reference["mean"]
    width = (reference["ci95_high"] - reference["ci95_low"]) / 2
    if lost <= 2 * width:
        cost = f"{100 * lost:.2f} points" if lost > 0 else "nothing"
        return f" Variation costs `{reference['network']}` {cost} here: there is little to win back."
    if max(mine["mean"], reference["mean"]) < 0.5:
        return f" The variation is more than training absorbs: both networks fail ({100 * mine['mean']:.1f} % remains)."
    return (
        f" Variation costs `{reference['network']}` {100 * lost:.2f} points here, and chips differ by "
        f"{100 * reference['std']:.2f} points (s.d.)."
    )


def sram_sentences(sram: list[dict], metrics: list[dict], recipe: Recipe) -> list[str]:
    """For each recovery: how often the parent was kept, and how much of the SRAM is zero (without the first layer)."""
    out = []
    for name in dict.fromkeys(r["stage"] for r in sram):
        stage = stage_of(recipe, name)
        if not isinstance(stage, Recover):
            continue
        best = [r for r in metrics if r["stage"] == name and r["is_best"]]
        last = {(r["chip"], r["shift_bit"]): r["epoch"] for r in best}
        kept = sum(epoch == 0 for epoch in last.values())
        rows = [r for r in sram if r["stage"] == name]
        rows = [r for r in rows if r["layer"] != rows[0]["layer"]]
        weights, groups = sum(r["weights"] for r in rows), sum(r["groups"] or 0 for r in rows)
        zeros = sum(r["weights"] * r["zero_fraction"] for r in rows) / weights if weights else 0.0
        text = f"\n`{name}`: {100 * zeros:.1f} % of the SRAM words are zero"
        if groups:
            zero_groups = sum(r["groups"] * r["zero_groups_fraction"] for r in rows if r["groups"]) / groups
            text += f", {100 * zero_groups:.1f} % of the groups of {rows[0]['group']} input channels"
        text += f" ({'pruned' if stage.prune else 'not pruned'}; without the first layer)."
        if kept:
            what = "on the validation images no epoch was better than the parent, which was kept"
            text += f" {what} ({kept} of {len(last)} networks)." if len(last) > 1 else f" {what}."
        out.append(text)
    return out


def _cell(r: dict, chips: int) -> str:
    over = f" over {r['chips']}" if r["chips"] != chips else ""
    spread = f" [{100 * r['ci95_low']:.2f}, {100 * r['ci95_high']:.2f}], {100 * r['minimum']:.2f}"
    return f"{100 * r['mean']:.2f}{spread if r['chips'] > 1 else ''}{over}"
