"""The tables and figures of a finished run, and the sentence for each comparison that its intervals allow.

Gains are differences chip by chip: networks of one shape meet the same chips. Intervals are over chips (and spike
coding); one training run a network, so they say nothing about other training seeds.
"""

from hwsim.recipe.evaluate import Interval, interval
from hwsim.recipe.folder import Folder
from hwsim.recipe.settings import Account, Evaluate, Recipe, Train
from hwsim.report.energy import COLUMNS as ENERGY_COLUMNS
from hwsim.report.energy import SPARSITY_COLUMNS
from hwsim.report.table import csv_bytes

METRICS = ("stage", "epoch", "lr", "train_loss", "validation_loss", "validation_accuracy", "is_best")
CHIPS = ("stage", "network", "variation_scale", "chip", "accuracy", "images")
ACCURACY = ("network", "variation_scale", "chips", "mean", "std", "ci95_low", "ci95_high", "minimum", "images")
GAINS = ("network", "reference", "variation_scale", "chips", "gain_mean", "gain_ci95_low", "gain_ci95_high", "verdict")
LEVELS = ("layer", "bits", "levels_used", "weights")


def write_tables(folder: Folder, recipe: Recipe, name: str, results) -> None:
    """Write every CSV, figure and summary.md of a run from its stages' rows."""
    tables = {
        "metrics.csv": (results.metrics, METRICS), "chips.csv": (results.chips, CHIPS),
        "accuracy.csv": (accuracy_rows(results.chips), ACCURACY),
        "gains.csv": (gain_rows(results.chips, recipe), GAINS),
        "energy.csv": (results.energy, ENERGY_COLUMNS), "sparsity.csv": (results.sparsity, SPARSITY_COLUMNS),
        "levels.csv": (results.levels, LEVELS),
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
        chips = rows[0]["chips"]
        folder.write("accuracy.png", accuracy_figure(rows, f"{of}: mean over {chips} chips, band: 95 % interval"))
    if results.energy:
        card = results.energy[0]["card"]
        folder.write("energy.png", energy_figure(results.energy, f"{of}: energy an image, prices of {card}"))
    folder.write("summary.md", summary(recipe, name, results).encode())


def accuracy_rows(chips: list[dict]) -> list[dict]:
    """Rows of accuracy.csv: one for each network and scale."""
    out = []
    for (network, scale), rows in _grouped(chips).items():
        i = interval([r["accuracy"] for r in rows])
        values = (network, scale, i.n, i.mean, i.std, i.low, i.high, i.minimum, rows[0]["images"])
        out.append(dict(zip(ACCURACY, values, strict=True)))
    return out


def gain_rows(chips: list[dict], recipe: Recipe) -> list[dict]:
    """Rows of gains.csv: each network trained with variation against each trained without, chip by chip.

    Chips are paired by number. verdict: apart_above or apart_below where the two networks' own 95 % intervals do not
    overlap, else overlap; no_interval where a single chip was measured.
    """
    groups = _grouped(chips)
    trained = {n: s.variation_scale for n, s in recipe.stages.items() if isinstance(s, Train)}
    out = []
    for (network, scale), rows in groups.items():
        for reference in trained:
            if not trained.get(network) or trained[reference] or (reference, scale) not in groups:
                continue
            mine, theirs = ({r["chip"]: r["accuracy"] for r in g} for g in (rows, groups[reference, scale]))
            i = interval([mine[chip] - theirs[chip] for chip in mine if chip in theirs])
            verdict = _verdict(interval([*mine.values()]), interval([*theirs.values()]))
            values = (network, reference, scale, i.n, i.mean, i.low, i.high, verdict)
            out.append(dict(zip(GAINS, values, strict=True)))
    return out


def _verdict(mine: Interval, theirs: Interval) -> str:
    if min(mine.n, theirs.n) < 2:
        return "no_interval"
    return "apart_above" if mine.low > theirs.high else "apart_below" if mine.high < theirs.low else "overlap"


def _grouped(chips: list[dict]) -> dict[tuple[str, float], list[dict]]:
    out: dict[tuple[str, float], list[dict]] = {}
    for row in chips:
        out.setdefault((row["network"], row["variation_scale"]), []).append(row)
    return out


def headline(recipe: Recipe, results) -> dict:
    """The one number that people want: the accuracy of the network that the recipe is about, at the scale it is for.

    That network is the one that `account` counts, else the last one measured.
    """
    rows = accuracy_rows(results.chips)
    if not rows:
        return {"run": str(results.folder)}
    networks = list(dict.fromkeys(r["network"] for r in rows))
    counted = [s.of for s in recipe.stages.values() if isinstance(s, Account) and s.of in networks]
    network = [*networks, *counted][-1]
    stage = recipe.stages[network]
    wanted = stage.variation_scale if isinstance(stage, Train) else 1.0
    row = min(
        (r for r in rows if r["network"] == network),
        key=lambda r: (abs(r["variation_scale"] - wanted), r["variation_scale"]),
    )
    return {"run": str(results.folder), **row}


def summary(recipe: Recipe, name: str, results) -> str:
    """summary.md: accuracy, gains in words, levels in use, energy."""
    out = [f"# {name}: {recipe.title}\n"]
    rows = accuracy_rows(results.chips)
    if rows:
        stage = next(s for s in recipe.stages.values() if isinstance(s, Evaluate))
        out.append(
            f"Test accuracy in percent over {stage.chips} chips: mean [95 % interval], lowest chip. Scale 0 is without "
            "variation; its scatter is that of the spike coding.\n"
        )
        scales = list(dict.fromkeys(r["variation_scale"] for r in rows))
        out.append("| network | " + " | ".join(f"scale {s:g}" for s in scales) + " |")
        out.append("|---" * (len(scales) + 1) + "|")
        for network in dict.fromkeys(r["network"] for r in rows):
            cells = [_cell(r) for s in scales for r in rows if r["network"] == network and r["variation_scale"] == s]
            out.append(f"| {network} | " + " | ".join(cells) + " |")
        out += ["", *sentences(rows, gain_rows(results.chips, recipe), recipe)]
    if results.levels:
        used = ", ".join(f"{r['layer']} {r['levels_used']}" for r in results.levels)
        out.append(f"\nDistinct weight values in use ({results.levels[0]['bits']} bit): {used}.")
    if results.energy:
        total = {r["phase"]: r for r in results.energy if r["layer"] == "TOTAL"}
        ours, ann = (total[p]["energy_pj"] / 1000 for p in ("inference", "ann_inference"))
        ratio = f", {ann / ours:.2f} times as much" if ours else ""
        out.append(
            f"\nEnergy an image by {total['inference']['card']}, synaptic operations only: {ours:.4g} nJ; the network "
            f"of the same shape without spikes: {ann:.4g} nJ{ratio}."
        )
    return "\n".join(out) + "\n"


def sentences(accuracy: list[dict], gains: list[dict], recipe: Recipe) -> list[str]:
    """For each scale, what variation costs the reference and whether training with variation wins it back."""
    out = []
    of = {(r["network"], r["variation_scale"]): r for r in accuracy}
    for g in gains:
        scale, stage = g["variation_scale"], recipe.stages[g["network"]]
        if scale == 0 or (stage.variation_scale not in (1.0, scale)):
            continue
        reference, clean = of[g["reference"], scale], of.get((g["reference"], 0.0))
        text = f"* scale {scale:g}: `{g['network']}` against `{g['reference']}`: {100 * g['gain_mean']:+.2f} points "
        if g["verdict"] == "no_interval":
            out.append(text + "on one chip, which gives no interval; use --chips 2 or more.")
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
            text += _why(of[g["network"], scale], reference, clean)
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


def _cell(r: dict) -> str:
    if r["chips"] == 1:
        return f"{100 * r['mean']:.2f}"
    return f"{100 * r['mean']:.2f} [{100 * r['ci95_low']:.2f}, {100 * r['ci95_high']:.2f}], {100 * r['minimum']:.2f}"
