"""The commands that read what a finished run has counted: energy, footprint, describe, report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_RUN = click.argument("run", type=click.Path(path_type=Path))
_CSV = click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write this table.")


def _definitions(priced: bool) -> Callable:
    """Options for the definitions by which work is counted; priced: those of energy, else those of the footprint."""
    text = [("--rule", "inference, bptt or local.")]
    text += [("--linear-organization", "row, column, crossbar, pb-bmp or pb-csr: weights of linear layers.")]
    text += [("--conv-organization", "functional, pb-bmp or pb-csr: weights of convolutions.")]
    text += [("--spike-code", "bitmap, events or shorter.")]
    text += [("--arithmetic", "fp32, fp16, int32, int8, or int: as wide as the numbers.")]
    options = [click.option("--state-bits", type=int, help="Bits of a state; else the network's own, or 32.")]
    if priced:
        text += [("--synapses", "inbounds, effective (without zero weights) or fanout (as the published formula).")]
        text += [("--pooled", "mac or ac: how an average of spikes is priced.")]
        text += [("--scaling", "linear, quadratic or cubic in the node.")]
        skip, every = "--skip-zero-windows/--read-zero-windows", "--map-all/--map-rram"
        options += [
            click.option(skip, default=None, help="Crossbars without an active input."),
            click.option(every, default=None, help="Which layers lie on the crossbars of a card."),
            click.option("--step-time-us", type=float, help="Microseconds of a time step, for static energy."),
            click.option("--to-node", "to_node_nm", type=float, help="Scale every price to this node (nanometer)."),
        ]
    options += [click.option(name, help=words) for name, words in text]

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@_RUN
@click.option("--card", "cards", multiple=True, help="Card of prices, or CARD+CARD; may be given several times.")
@_definitions(priced=True)
@_CSV
def energy(run: Path, cards: tuple[str, ...], csv_file: Path | None, **given: Any) -> None:
    """Price the counts of a finished RUN, by one card or by several side by side, without running the network."""
    from hwsim.recipe.checkpoint import write_whole
    from hwsim.recipe.reprice import repriced, side_by_side
    from hwsim.report.energy import COLUMNS
    from hwsim.report.table import aligned, csv_bytes

    rows, definitions, prices = repriced(run, cards, given)
    if csv_file is not None:
        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    samples = rows[0]["samples"]
    click.echo(f"energy in nJ an image, mean of {samples} test images\n{aligned(side_by_side(rows))}\n")
    click.echo(_said(definitions))
    for card in {c.name: c for p in prices for c in p.cards}.values():
        click.echo(f"{card.name}: covers {', '.join(card.covers) or 'nothing alone'}. {card.includes}")


@click.command()
@_RUN
@_definitions(priced=False)
@_CSV
def footprint(run: Path, csv_file: Path | None, **given: Any) -> None:
    """Bits of every variable that the network of a finished RUN keeps in memory, by organization and rule."""
    from hwsim.recipe.checkpoint import write_whole
    from hwsim.recipe.reprice import footprint as bits
    from hwsim.report.footprint import FOOTPRINT_COLUMNS
    from hwsim.report.table import aligned, csv_bytes

    rows, definitions = bits(run, given)
    if csv_file is not None:
        write_whole(csv_file, csv_bytes(rows, FOOTPRINT_COLUMNS))
    click.echo(f"{aligned(rows, FOOTPRINT_COLUMNS)}\n\n{_said(definitions)}")


@click.command()
@_RUN
@click.option("--card", help="Card with crossbars; rram_crossbar_spikesim where none is named.")
@click.option("--map-all", is_flag=True, help="Every layer, not only those on resistive cells.")
@_CSV
def describe(run: Path, card: str | None, map_all: bool, csv_file: Path | None) -> None:
    """How the layers of a finished RUN lie on a card's crossbars: arrays, cells, converters, reads an image."""
    from hwsim.recipe.checkpoint import write_whole
    from hwsim.recipe.describe import CARD, COLUMNS
    from hwsim.recipe.describe import describe as mapped
    from hwsim.report.table import aligned, csv_bytes

    rows = mapped(run, card or CARD, map_all=map_all)
    if csv_file is not None:
        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    click.echo(f"{card or CARD}; reads and conversions an image, with empty windows skipped and (_all) not")
    click.echo(aligned(rows, COLUMNS))


@click.command()
@_RUN
@click.option("--card", "cards", multiple=True, help="Card of prices, or CARD+CARD; may be given several times.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="The page's file; without it report.html in the run's folder. Its tables are written beside it.",
)  # fmt: skip
@_definitions(priced=True)
def report(run: Path, cards: tuple[str, ...], out: Path | None, **given: Any) -> None:
    """Write a finished RUN as one HTML page, with its figures in it, and the same numbers as CSV files."""
    from hwsim.recipe.report import write_report

    click.echo("\n".join(map(str, write_report(run, cards, out, given))))


def _said(definitions) -> str:
    """The definitions that are not the defaults, in a line."""
    fields = type(definitions).model_fields
    changed = {k: v for k, v in definitions.model_dump().items() if v != fields[k].default}
    return "definitions: " + (", ".join(f"{k} {v}" for k, v in changed.items()) or "the defaults")
