"""What the chips of an evaluation say together: means with intervals, gains chip by chip, the one headline number."""

from pathlib import Path

from hwsim.recipe.evaluate import Interval, interval
from hwsim.recipe.settings import Account, Recipe, Recover, Train

ACCURACY = (
    "network", "adapt_batches", "variation_scale", "chips", "mean", "std", "ci95_low", "ci95_high", "minimum", "images",
)  # fmt: skip
GAINS = (
    "network", "reference", "adapt_batches", "variation_scale", "chips", "gain_mean", "gain_ci95_low", "gain_ci95_high",
    "verdict",
)  # fmt: skip

Group = tuple[str, int, float]
"""Network, batches it was adapted by, scale of variation."""


def label(row: dict) -> str:
    """What a row's network is called in a table: its name, and whether its BNTT was adapted to each chip."""
    return row["network"] + (f", adapted ({row['adapt_batches']})" if row["adapt_batches"] else "")


def accuracy_rows(chips: list[dict]) -> list[dict]:
    """Rows of accuracy.csv: one for each network, adaptation and scale."""
    out = []
    for (network, adapt, scale), rows in _grouped(chips).items():
        i = interval([r["accuracy"] for r in rows])
        values = (network, adapt, scale, i.n, i.mean, i.std, i.low, i.high, i.minimum, rows[0]["images"])
        out.append(dict(zip(ACCURACY, values, strict=True)))
    return out


def gain_rows(chips: list[dict], recipe: Recipe) -> list[dict]:
    """Rows of gains.csv: each network that met variation in training against each that did not, and against its parent
    where it was recovered, chip by chip and with the same adaptation.

    Chips are paired by number. verdict: apart_above or apart_below where the two networks' own 95 % intervals over
    these chips do not overlap, else overlap; no_interval where a single chip was measured.
    """
    groups = _grouped(chips)
    calm = [n for n, s in recipe.stages.items() if isinstance(s, Train) and s.variation_scale == 0]
    out = []
    for (network, adapt, scale), rows in groups.items():
        stage = stage_of(recipe, network)
        if not isinstance(stage, Train) or stage.variation_scale == 0:
            continue
        parent = [stage.start] if isinstance(stage, Recover) else []
        for reference in dict.fromkeys(calm + parent):
            if (reference, adapt, scale) not in groups:
                continue
            mine, theirs = ({r["chip"]: r["accuracy"] for r in g} for g in (rows, groups[reference, adapt, scale]))
            both = [(mine[chip], theirs[chip]) for chip in mine if chip in theirs]
            i = interval([a - b for a, b in both])
            verdict = _verdict(*(interval(list(each)) for each in zip(*both, strict=True)))
            values = (network, reference, adapt, scale, i.n, i.mean, i.low, i.high, verdict)
            out.append(dict(zip(GAINS, values, strict=True)))
    return out


def stage_of(recipe: Recipe, network: str):
    """The stage that has made a network; "recover/shift+1" is one of stage recover."""
    return recipe.stages[network.partition("/")[0]]


def _verdict(mine: Interval, theirs: Interval) -> str:
    if min(mine.n, theirs.n) < 2:
        return "no_interval"
    return "apart_above" if mine.low > theirs.high else "apart_below" if mine.high < theirs.low else "overlap"


def _grouped(chips: list[dict]) -> dict[Group, list[dict]]:
    out: dict[Group, list[dict]] = {}
    for row in chips:
        out.setdefault((row["network"], row["adapt_batches"], row["variation_scale"]), []).append(row)
    return out


def headline(recipe: Recipe, chips: list[dict], folder: Path) -> dict:
    """The one number that people want: the accuracy of the network that the recipe is about, at the scale it is for.

    That network is the one that `account` counts, else the last one measured (of an ensemble the whole).
    """
    rows = accuracy_rows(chips)
    if not rows:
        return {"run": str(folder)}
    networks = [n for n in dict.fromkeys(r["network"] for r in rows) if n in recipe.stages]
    counted = [s.of for s in recipe.stages.values() if isinstance(s, Account) and s.of in networks]
    network = [*networks, *counted][-1]
    stage = stage_of(recipe, network)
    wanted = stage.variation_scale if isinstance(stage, Train) else 1.0
    row = min(
        (r for r in rows if r["network"] == network),
        key=lambda r: (abs(r["variation_scale"] - wanted), r["variation_scale"], r["adapt_batches"]),
    )
    return {"run": str(folder), **row}
