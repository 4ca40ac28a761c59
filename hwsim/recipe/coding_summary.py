"""Tables, figures and sentences of the stages codings, exit and attack."""

from hwsim.recipe import attack, codings, exits
from hwsim.recipe.folder import Folder
from hwsim.recipe.settings import Attack, Codings, Exit, Recipe
from hwsim.report.table import csv_bytes

TABLES = {
    "codings": codings.NETWORKS, "codings-layers": codings.LAYERS, "codings-summary": codings.SUMMARY,
    "early-exit": exits.EXITS, "scales": exits.SCALES, "attack": attack.ATTACKS, "attack-summary": attack.SUMMARY,
}  # fmt: skip


def write_codings(folder: Folder, of: str, tables: dict[str, list[dict]]) -> None:
    """Write a run's tables about codings, exits and attacks, and their figures; `of` names network and data."""
    from hwsim.report.coding_figures import attack_figure, codings_figure, early_exit_figure

    tables = _with_summaries(tables)
    for name, columns in TABLES.items():
        if tables.get(name):
            folder.write(f"{name}.csv", csv_bytes(tables[name], columns))
    for stage, own in _by_stage(tables, "codings-summary"):
        layers = [r for r in tables["codings-layers"] if r["stage"] == stage]
        over = f"{of}: mean over {own[0]['seeds']} seeds, band: 95 % interval"
        folder.write(f"{stage}.png", codings_figure(own, layers, over))
    for stage, own in _by_stage(tables, "early-exit"):
        for network in dict.fromkeys(r["network"] for r in own):
            rows, scales = ([r for r in tables[t] if (r["stage"], r["network"]) == (stage, network)]
                            for t in ("early-exit", "scales"))  # fmt: skip
            folder.write(
                f"{stage}-{network}.png",
                early_exit_figure(rows, scales, f"{network}, {of}: {rows[0]['images']} test images"),
            )
    for stage, own in _by_stage(tables, "attack-summary"):
        images = tables["attack"][0]["images"]
        over = f"{of}: {images} test images, mean over {own[0]['networks']} networks, band: 95 % interval"
        folder.write(f"{stage}.png", attack_figure(own, over))


def _with_summaries(tables: dict[str, list[dict]]) -> dict[str, list[dict]]:
    made = {
        "codings-summary": codings.summary_rows(tables.get("codings", [])),
        "attack-summary": attack.summary_rows(tables.get("attack", [])),
    }
    return {**tables, **made}


def _by_stage(tables: dict[str, list[dict]], name: str) -> list[tuple[str, list[dict]]]:
    rows = tables.get(name, [])
    return [(stage, [r for r in rows if r["stage"] == stage]) for stage in dict.fromkeys(r["stage"] for r in rows)]


def coding_sentences(tables: dict[str, list[dict]], recipe: Recipe) -> list[str]:
    """What each coding reaches and costs, when each exit rule stops, what attacks leave."""
    tables = _with_summaries(tables)
    out = []
    for name, rows in _by_stage(tables, "codings-summary"):
        out += _codings(rows, recipe.stages[name], tables["codings"][0]["samples"])
    for name, rows in _by_stage(tables, "early-exit"):
        out += _exits(name, rows, recipe.stages[name])
    for name, rows in _by_stage(tables, "attack-summary"):
        out += _attacks(name, rows, recipe.stages[name], tables["attack"])
    return out


def _interval(r: dict, key: str) -> str:
    if r["seeds"] == 1:
        return f"{100 * r[f'{key}_mean']:.2f}"
    low, high = (100 * r[f"{key}_ci95_{end}"] for end in ("low", "high"))
    return f"{100 * r[f'{key}_mean']:.2f} [{low:.2f}, {high:.2f}]"


def _codings(rows: list[dict], stage: Codings, samples: int) -> list[str]:
    out = [
        f"\nTest accuracy in percent, mean of {stage.seeds} seeds [95 % interval], weights "
        f"{_cells(stage.variation_scale, stage.chips)}; energy in nJ an image of the synapses by the published formula "
        f"({stage.card}, {samples} test images, averages of spikes as {stage.pooled.upper()}), and its share of the "
        "ordinary network's:\n",
        "| T | coding | accuracy | energy | share |\n|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: r["steps"]):
        energy = f"{r['energy_pj_mean'] / 1000:.4g} | {100 * r['energy_share_of_ann']:.1f} %"
        out.append(f"| {r['steps']} | {r['encode']} | {_interval(r, 'accuracy')} | {energy} |")
    return out


def _cells(scale: float, chips: int) -> str:
    return f"with variation at scale {scale:g} on {chips} chips" if scale else "as programmed, without variation"


def _exits(name: str, rows: list[dict], stage: Exit) -> list[str]:
    out = []
    for network in dict.fromkeys(r["network"] for r in rows):
        own = [r for r in rows if r["network"] == network]
        full = next(r for r in own if r["rule"] == "fixed" and r["threshold"] == r["steps"])
        out.append(
            f"\n`{name}`, `{network}`: {100 * full['accuracy']:.2f} % of {full['images']} test images after all "
            f"{full['steps']} steps. Thresholds chosen on the validation images, where they may lose "
            f"{100 * stage.tolerance:g} points (all are in early-exit.csv):\n\n"
            "| rule | threshold | test accuracy [95 % over images] | mean steps | energy saved |\n|---|---|---|---|---|"
        )
        for r in own:
            if r["is_chosen"]:
                low, high = 100 * r["ci95_low"], 100 * r["ci95_high"]
                out.append(
                    f"| {r['rule']} | {r['threshold']:g} | {100 * r['accuracy']:.2f} [{low:.2f}, {high:.2f}] | "
                    f"{r['mean_steps']:.2f} | {100 * r['energy_saved_fraction']:.1f} % |"
                )
        for rule in dict.fromkeys(r["rule"] for r in own):
            if not any(r["is_chosen"] for r in own if r["rule"] == rule):
                out.append(f"\nNo threshold of the rule {rule} keeps the validation accuracy.")
    return out


def _attacks(name: str, rows: list[dict], stage: Attack, networks: list[dict]) -> list[str]:
    eps = sorted({r["eps_255"] for r in rows})
    seeds = list(dict.fromkeys(r["seed"] for r in networks))
    out = [
        f"\n`{name}`: accuracy in percent on {networks[0]['images']} attacked test images, in evaluation mode, weights "
        f"{_cells(stage.variation_scale, stage.chips)}; seeds {', '.join(map(str, seeds))}. eps in steps of 1/255; PGD "
        f"{stage.iterations} steps of {stage.alpha_share:g} eps; gradients through Poisson spikes averaged over "
        f"{stage.draws} draws. The naive gradient through Poisson spikes is zero: what it leaves is no robustness.\n",
        "| network | attack | gradient | " + " | ".join(f"eps {e:g}" for e in eps) + " |",
        "|---" * (3 + len(eps)) + "|",
    ]
    for key in dict.fromkeys(tuple(r[k] for k in ("network", "method", "gradient", "made_on")) for r in rows):
        own = {
            r["eps_255"]: r for r in rows if tuple(r[k] for k in ("network", "method", "gradient", "made_on")) == key
        }
        kind = f"transfer from {key[3]}" if key[2] == "transfer" else key[2]
        cells = " | ".join(f"{100 * own[e]['accuracy_mean']:.1f}" for e in eps)
        out.append(f"| {key[0]} | {key[1]} | {kind} | {cells} |")
    return out
