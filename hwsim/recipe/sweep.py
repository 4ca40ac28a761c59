"""A recipe at many settings of its options, one option at a time, over several seeds.

Every point is an ordinary run, found again when it is finished; all points are resolved before the first of them runs,
so a mistake in one costs nothing.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsim.config import ConfigError, nearest
from hwsim.fields import place_of
from hwsim.recipe.evaluate import interval
from hwsim.recipe.execute import execute, reached
from hwsim.recipe.progress import Progress
from hwsim.recipe.resolve import Request, Resolved, recipe_document, resolve
from hwsim.recipe.settings import Account

COLUMNS = ("axis", "point", "seed", "stage", "varied", "at", "measure", "value", "energy_pj", "run")
"""Columns of one row a network and run. varied: 1 where the axis sets something of this stage. energy_pj: of the
stage that the recipe counts, a sample, without static energy."""
SUMMARY = (
    "axis", "point", "stage", "varied", "at", "measure", "seeds", "mean", "std", "ci95_low", "ci95_high",
    "energy_pj_mean", "energy_pj_ci95_low", "energy_pj_ci95_high",
)  # fmt: skip
EVERYWHERE = "precision"
"""An option that every recipe has and a sweep may vary."""


@dataclass(frozen=True)
class Axis:
    """Options that are set to the same value, and the values."""

    options: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in a figure: ab=eb."""
        return "=".join(self.options)


def axis(text: str) -> Axis:
    """An axis from its text. Raises `ConfigError` for one without options or values, or with a value given twice.

    >>> axis("ab,eb=4,6,8")
    Axis(options=('ab', 'eb'), values=('4', '6', '8'))
    """
    left, _, right = text.partition("=")
    options, values = ([part.strip() for part in side.split(",") if part.strip()] for side in (left, right))
    if not options or not values:
        raise ConfigError([f"--vary {text}: expected OPTION=VALUE,VALUE or OPTION,OPTION=VALUE,VALUE, as in wb=2,4,8"])
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise ConfigError([f"--vary {text}: {twice[0]} stands twice"])
    return Axis(tuple(options), tuple(values))


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    axis: Axis
    value: str
    seed: int
    resolved: Resolved


def points(base: Request, axes: Sequence[Axis], seeds: int) -> list[Point]:
    """Every run of a sweep: axis by axis, value by value, with seeds from the recipe's own upwards.

    Raises `ConfigError` with a line for everything that cannot be.
    """
    name, document = recipe_document(base.name)
    declared = document.data.get("options") or {}
    mistakes = []
    for a in axes:
        for option in a.options:
            if option == EVERYWHERE:
                if base.precision is not None:
                    mistakes.append(f"--vary {a.name}: --{option} is given beside it; leave one of the two out")
            elif option not in declared:
                mistakes.append(f"--vary {a.name}: recipe {name} has no option --{option}{nearest(option, declared)}")
            elif option in base.options:
                mistakes.append(f"--vary {a.name}: --{option} is given beside it; leave one of the two out")
    if seeds < 1:
        mistakes.append(f"--seeds: found {seeds}; it must be at least 1")
    if mistakes:
        raise ConfigError(mistakes)
    out = []
    for a in axes:
        for value in a.values:
            try:
                first = resolve(_request(base, a, value, base.seed)).recipe.seed
                for seed in range(first, first + seeds):
                    out.append(Point(a, value, seed, resolve(_request(base, a, value, seed))))
            except ConfigError as e:
                mistakes += [f"at {a.name} {value}: {m}" for m in e.messages]
    if mistakes:
        raise ConfigError(mistakes)
    return out


def _request(base: Request, axis: Axis, value: str, seed: str | int | None) -> Request:
    options = {**base.options, **{option: value for option in axis.options if option != EVERYWHERE}}
    precision = value if EVERYWHERE in axis.options else base.precision
    return dataclasses.replace(base, options=options, precision=precision, seed=seed)


def sweep(every: Sequence[Point], runs: Path, progress: Progress) -> Iterator[list[dict]]:
    """Do the points in turn; yields the rows (`COLUMNS`) of each."""
    for number, point in enumerate(every, 1):
        started = time.monotonic()
        results = execute(point.resolved, runs, Progress(quiet=True))
        recipe = point.resolved.recipe
        counted = {s.of for s in recipe.stages.values() if isinstance(s, Account)}
        pj = energy_of(results.energy)
        found = reached(point.resolved, results)
        said = ", ".join(f"{r['stage']} {r['measure']} {r['value']:.4g}" for r in found)
        progress.say(
            f"{number} of {len(every)}: {point.axis.name} {point.value}, seed {point.seed}: {said} "
            f"({time.monotonic() - started:.0f} s)"
        )
        one = {"axis": point.axis.name, "point": point.value, "seed": point.seed}
        yield [
            {**one, **row, "varied": int(_varies(point, row["stage"])),
             "energy_pj": pj if row["stage"] in counted and results.energy else ""}
            for row in found
        ]  # fmt: skip


def energy_of(rows: Sequence[dict]) -> float:
    """Energy of a sample, in pJ, from rows of energy.csv: all layers and phases, but neither static energy nor that of
    the network that does not spike.
    """
    left_out = ("static", "ann_inference")
    return sum(r["energy_pj"] for r in rows if r["layer"] != "TOTAL" and r["phase"] not in left_out)


def _varies(point: Point, network: str) -> bool:
    """Whether the point's options set anything of this network's stage, or of what all stages share."""
    data, stage = point.resolved.document.data, network.partition("/")[0].partition(",")[0]
    for option in point.axis.options:
        if option == EVERYWHERE:
            return True
        for place in map(place_of, data["options"][option]["sets"]):
            if place[0] != "stages" or place[1] == stage:
                return True
    return False


def summary(rows: Sequence[dict]) -> list[dict]:
    """Rows of `SUMMARY`: means over seeds with 95 % intervals (t), which one seed does not have."""
    grouped: dict[tuple, list[dict]] = {}
    for r in rows:
        grouped.setdefault((r["axis"], r["point"], r["stage"], r["varied"], r["at"], r["measure"]), []).append(r)
    out = []
    for key, own in grouped.items():
        result = interval([r["value"] for r in own])
        pj = [r["energy_pj"] for r in own if r["energy_pj"] != ""]
        energy = interval(pj) if pj else None
        prices = (energy.mean, energy.low, energy.high) if energy else ("", "", "")
        values = (*key, result.n, result.mean, result.std, result.low, result.high, *prices)
        out.append(dict(zip(SUMMARY, values, strict=True)))
    return out
