"""Tables, figure and sentences about BITnets over time."""

from hwsim.recipe.bitnet import TABLES
from hwsim.recipe.folder import Folder
from hwsim.recipe.settings import Recipe
from hwsim.report.table import csv_bytes


def write_curves(folder: Folder, of: str, tables: dict[str, list[dict]]) -> None:
    """Write a run's tables about time steps, and their figure; `of` names network and data."""
    from hwsim.report.bitnet_figures import curve_figure

    for name, columns in TABLES.items():
        if tables.get(name):
            folder.write(f"{name}.csv", csv_bytes(tables[name], columns))
    if tables.get("curve"):
        images = tables["curve"][0]["images"]
        folder.write("curve.png", curve_figure(tables["curve"], tables["activity"], f"{of}: {images} test images"))


def curve_sentences(tables: dict[str, list[dict]], recipe: Recipe) -> list[str]:
    """What each network reaches at its own steps and later, its ties, and the table of zeros by layer."""
    out = []
    for name in dict.fromkeys(r["network"] for r in tables.get("curve", [])):
        curve, layers = ([r for r in tables[t] if r["network"] == name] for t in ("curve", "layers"))
        trained = curve[0]["trained_steps"]
        last = curve[-1]
        own = next((r for r in curve if r["timestep"] == trained), last)
        surrogate = recipe.net.surrogate
        out.append(
            f"\n`{name}` over time (surrogate {surrogate}, hwsim's own; the author's gradient is not published):\n\n"
            "| steps | accuracy (ties to the lowest class) | ties counted wrong | images with ties |\n|---|---|---|---|"
        )
        for r in [own] if own is last else [own, last]:
            out.append(
                f"| {r['timestep']}{' (trained)' if r['timestep'] == trained else ''} | {100 * r['accuracy']:.2f} % "
                f"[{100 * r['ci95_low']:.2f}, {100 * r['ci95_high']:.2f}] | {100 * r['accuracy_ties_wrong']:.2f} % | "
                f"{100 * r['ties_fraction']:.2f} % |"
            )
        at = [r for r in layers if r["steps"] == trained]
        out.append(f"\nThe interval is over images. Zeros in percent over all test images and {trained} steps:\n")
        out.append("| | " + " | ".join(r["layer"] for r in at) + " |\n" + "|---" * (len(at) + 1) + "|")
        for what, key in (("spikes", "zeros_fraction"), ("behind the pool", "pooled_zeros_fraction")):
            out.append(f"| {what} | " + " | ".join(f"{100 * r[key]:.2f}" for r in at) + " |")
        macs = sum(r["operations"] for r in at if r["operation"] == "mac")
        acs = sum(r["operations"] for r in at if r["operation"] == "ac")
        out.append(f"\nAn image of {trained} steps: {acs:,.0f} additions (AC), and {macs:,.0f} MAC in `begin`, once.")
    return out
