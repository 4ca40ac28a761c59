"""Stage codings: a network for each input coding, number of steps and seed, with its accuracy and its energy.

Every network is trained as a stage of its own, NAME-CODING-tT-seedS, under the key that a recipe of this one network
would have: what is finished is found again, here and from other recipes.

Energy is that of the synapses by the published formula, from counted inputs,

    E = sum over layers of A_l (events_l / inputs_l) (0.9 pJ a spike, 4.6 pJ another value)        by horowitz_45nm

with A_l the layer's dense operations and the events of all steps; a first layer that direct coding computes once an
image counts once. Neurons, memory and the adding of a held current at every step are not in it.

T steps.
"""

import math
from dataclasses import dataclass

from hwsim.device.pricelist import Prices
from hwsim.device.store import draw
from hwsim.recipe import network
from hwsim.recipe.account import count
from hwsim.recipe.evaluate import interval, measure
from hwsim.recipe.keys import fresh_key
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account, Codings, Recipe
from hwsim.report.action import Definitions
from hwsim.report.energy import SYNAPTIC, energy_rows

NETWORKS = (
    "stage", "encode", "steps", "seed", "accuracy", "validation_accuracy", "images", "chips", "variation_scale",
    "operations_ac", "operations_mac", "energy_pj", "ann_energy_pj", "samples",
)  # fmt: skip
LAYERS = ("stage", "encode", "steps", "seed", "layer", "action", "operations", "energy_pj", "input_density")
SUMMARY = (
    "stage", "encode", "steps", "seeds", "accuracy_mean", "accuracy_ci95_low", "accuracy_ci95_high", "energy_pj_mean",
    "energy_pj_ci95_low", "energy_pj_ci95_high", "ann_energy_pj", "energy_share_of_ann",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One network of the grid; `recipe` has its coding, steps and seed."""

    recipe: Recipe
    trained: Trained


def train_grid(run, name: str, stage: Codings, results) -> list[Point]:
    """The networks of stage `name`, trained or found, by coding, steps and seed."""
    out = []
    for encode in stage.encodings:
        for steps in stage.steps:
            for seed in range(run.recipe.seed, run.recipe.seed + stage.seeds):
                net = run.recipe.net.model_copy(update={"encode": encode, "steps": steps})
                recipe = run.recipe.model_copy(update={"net": net, "seed": seed})
                key = fresh_key(recipe, stage.train, run.data.checksum, run.device.type, run.ranks.count)
                trained = run.train(f"{name}-{encode}-t{steps}-seed{seed}", stage.train, recipe, key, results)
                out.append(Point(recipe, trained))
    return out


def measure_grid(work: Work, name: str, stage: Codings, grid: list[Point]) -> dict[str, list[dict]]:
    """Rows of `NETWORKS` and `LAYERS` for every network of the grid."""
    tables: dict[str, list[dict]] = {"codings": [], "codings-layers": []}
    prices = Prices.load(stage.card)
    with work.progress.task(name, len(grid) * stage.chips * len(work.data.test)) as advance:
        for point in grid:
            net, seed = point.recipe.net, point.recipe.seed
            about = {"stage": name, "encode": net.encode, "steps": net.steps, "seed": seed}
            accuracy = _accuracy(work, stage, point, advance)
            layers = published_rows(work, stage, point, prices)
            own = [r for r in layers if r["phase"] == "inference"]
            sums = {a: math.fsum(r["operations"] for r in own if r["action"] == a) for a in ("ac", "mac")}
            energy = {p: math.fsum(r["energy_pj"] for r in layers if r["phase"] == p) for p in _PHASES}
            tables["codings"].append({
                **about, "accuracy": accuracy, "validation_accuracy": _validation(point), "images": len(work.data.test),
                "chips": stage.chips, "variation_scale": stage.variation_scale, "operations_ac": sums["ac"],
                "operations_mac": sums["mac"], "energy_pj": energy["inference"],
                "ann_energy_pj": energy["ann_inference"], "samples": min(stage.samples, len(work.data.test)),
            })  # fmt: skip
            tables["codings-layers"] += [{**about, **{k: v for k, v in r.items() if k != "phase"}} for r in own]
    for row in summary_rows(tables["codings"]):
        work.progress.say(
            f"{name}: {row['encode']}, T = {row['steps']}: {100 * row['accuracy_mean']:.2f} % over {row['seeds']} "
            f"seeds, {row['energy_pj_mean'] / 1000:.4g} nJ an image"
        )
    return tables


_PHASES = ("inference", "ann_inference")


def _accuracy(work: Work, stage: Codings, point: Point, advance) -> float:
    """Test accuracy, mean of the stage's chips."""
    member, seed = point.trained.members[0], point.recipe.seed
    net = network.trained(point.recipe, work.data, work.device, point.trained, member, stage.variation_scale)
    found = []
    for chip in range(stage.chips):
        draw(net, generator(seed, "chips", chip))
        coding = generator(seed, "batches", "test", chip, device=work.device)
        found.append(measure(net, work.data.test, work.data, coding, batch_size=2 * stage.train.batch_size).accuracy)
        advance(len(work.data.test))
    return math.fsum(found) / len(found)


def _validation(point: Point) -> float:
    """Accuracy on the validation images of the epoch whose weights were kept."""
    from hwsim.recipe.folder import read_stage

    rows = read_stage(point.trained.folder)["rows"]
    return [r["validation_accuracy"] for r in rows if r["is_best"]][-1]


def published_rows(work: Work, stage, point: Point, prices: Prices) -> list[dict]:
    """Layer by layer the operations and pJ of an image, of the network and (phase ann_inference) its ordinary like."""
    net = network.trained(point.recipe, work.data, work.device, point.trained, point.trained.members[0], 0.0)
    asked = Account(of="", samples=stage.samples, window_rows=[])
    counts = count({"": net}, work.data, asked, point.recipe.seed)
    rows = energy_rows(counts, prices, Definitions(synapses="fanout", pooled=stage.pooled), "")
    return [
        {
            "phase": r["phase"], "layer": r["layer"], "action": r["action"], "operations": r["count"],
            "energy_pj": r["energy_pj"], "input_density": r["input_density"],
        }
        for r in rows
        if r["component"] in SYNAPTIC and r["layer"] != "TOTAL" and r["phase"] in _PHASES
    ]  # fmt: skip


def summary_rows(networks: list[dict]) -> list[dict]:
    """Rows of `SUMMARY`: means over seeds with 95 % intervals (t), which one seed does not have."""
    grouped: dict[tuple, list[dict]] = {}
    for r in networks:
        grouped.setdefault((r["stage"], r["encode"], r["steps"]), []).append(r)
    out = []
    for key, rows in grouped.items():
        accuracy, energy = (interval([r[k] for r in rows]) for k in ("accuracy", "energy_pj"))
        ann = rows[0]["ann_energy_pj"]
        values = (
            *key, accuracy.n, accuracy.mean, accuracy.low, accuracy.high, energy.mean, energy.low, energy.high, ann,
            energy.mean / ann,
        )  # fmt: skip
        out.append(dict(zip(SUMMARY, values, strict=True)))
    return out
