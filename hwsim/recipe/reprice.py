"""Price a finished run's counts again: by other cards and other definitions, without the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsim.config import ConfigError, Document, check, read_yaml
from hwsim.device.pricelist import Prices
from hwsim.recipe.settings import Account, Recipe
from hwsim.recipe.tracefile import counted_stage, load_trace
from hwsim.report.action import Definitions
from hwsim.report.energy import energy_rows
from hwsim.report.footprint import footprint_rows


def repriced(run: Path, cards: Sequence[str], given: dict[str, Any]) -> tuple[list[dict], Definitions, list[Prices]]:
    """(rows of energy.csv, card after card; the definitions; the prices) of a run, or of one of its stages.

    cards: CARD or CARD+CARD each; none is the run's own. given: definitions that differ from the run's own; None stays.

    Raises `ConfigError` for a definition that cannot be, `CardError` for a card that does not fit, `RunError` for a run
    that has counted nothing.
    """
    stage, own, definitions = _defined(run, given)
    named = list(cards) or [own.card]
    if twice := [c for i, c in enumerate(named) if c in named[:i]]:
        raise ConfigError([f"--card {twice[0]}: named twice; name each card once"])
    counts = load_trace(stage)
    prices = [Prices.load(c, definitions.to_node_nm, definitions.scaling) for c in named]
    names = [p.name for p in prices]
    if twice := [n for i, n in enumerate(names) if n in names[:i]]:
        raise ConfigError(
            [f"--card: two cards are named {twice[0]}; rename a file, so that a table can tell them apart"]
        )
    rows = [row for p in prices for row in energy_rows(counts, p, definitions, stage.parent.name)]
    return rows, definitions, prices


def footprint(run: Path, given: dict[str, Any]) -> tuple[list[dict], Definitions]:
    """(rows of `footprint.footprint_rows`, the definitions) of a finished run. Raises as `repriced` does."""
    stage, _, definitions = _defined(run, given)
    return footprint_rows(load_trace(stage), definitions), definitions


def _defined(run: Path, given: dict[str, Any]) -> tuple[Path, Account, Definitions]:
    """(the stage that counted, its settings, its definitions with those given in their place)."""
    stage = counted_stage(run.resolve())
    recipe = check(Recipe, read_yaml(stage.parent / "recipe.yaml"))
    own = recipe.stages[stage.name]
    chosen = {k: v for k, v in given.items() if v is not None}
    origins = {(k,): f"--{k.removesuffix('_nm').replace('_', '-')}" for k in chosen}
    merged = {**own.definitions.model_dump(), **chosen}
    return stage, own, check(Definitions, Document(merged, str(run), origins))


def side_by_side(rows: list[dict]) -> list[dict]:
    """Energy in nanojoule an image: a row for each phase and component, a column a card."""
    totals = [r for r in rows if r["layer"] == "TOTAL"]
    cards = list(dict.fromkeys(r["card"] for r in totals))
    out = []
    for phase in dict.fromkeys(r["phase"] for r in totals):
        here = [r for r in totals if r["phase"] == phase]
        components = dict.fromkeys(r["component"] for r in here if r["component"] != "all")
        for component in (*components, "all"):
            of = {r["card"]: r["energy_pj"] / 1000 for r in here if r["component"] == component}
            out.append({"phase": phase, "component": component, **{c: of.get(c, "") for c in cards}})
    return out
