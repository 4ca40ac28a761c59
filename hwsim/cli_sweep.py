"""The command that runs a recipe at many settings: sweep."""

from pathlib import Path
from typing import Any

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("recipe")
@click.option(
    "--vary", "varied", multiple=True, required=True, metavar="OPTION=V,V",
    help="Option of the recipe and its values; A,B=… sets both alike. Several --vary: each by itself.",
)  # fmt: skip
@click.option("--seeds", default=1, show_default=True, help="Seeds at each value, from the recipe's own upwards.")
@click.option(
    "--out", default="sweep", show_default=True, metavar="NAME",
    help="Write NAME.csv (a row a run), NAME-summary.csv (means with intervals) and NAME.png.",
)  # fmt: skip
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THE RECIPE]...")
def sweep(recipe: str, varied: tuple[str, ...], seeds: int, out: str, options: tuple[str, ...]) -> None:
    """Run RECIPE at several values of its options, each over several seeds: a table and a figure.

    \b
    hwsim sweep pattern --vary wb=1,2,3,5,8 --vary ab,eb=4,6,8,12 --seeds 3 --epochs 400

    Finished points are found again, so an interrupted sweep goes on, and a longer one adds to a shorter one.
    """
    from hwsim.recipe.options import ASKED, recipe_command
    from hwsim.recipe.resolve import Request, recipe_document
    from hwsim.recipe.sweep import COLUMNS, SUMMARY, axis, points, summary
    from hwsim.recipe.sweep import sweep as over

    asked: dict[str, Any] = {}

    def take(name: str, given: dict[str, str | bool], values: dict[str, Any]) -> None:
        asked.update(given=given, values=values)

    recipe_command(recipe, recipe_document(recipe)[1], take).main(
        list(options), prog_name=f"hwsim sweep {recipe}", standalone_mode=False
    )
    if not asked:  # its --help was asked for
        return
    values = asked["values"]
    if values["show"] or values["as_json"]:
        raise click.UsageError("--show and --json belong to one run: hwsim recipe")
    common = {k: values[k] for k in ASKED}
    every = points(Request(recipe, asked["given"], list(values["sets"]), **common), [axis(v) for v in varied], seeds)
    from hwsim.recipe.checkpoint import write_whole
    from hwsim.recipe.progress import Progress
    from hwsim.report.sweep_figure import sweep_figure
    from hwsim.report.table import aligned, csv_bytes

    table, short, figure = Path(f"{out}.csv"), Path(f"{out}-summary.csv"), Path(f"{out}.png")
    rows: list[dict] = []
    for new in over(every, Path(values["runs"]), Progress(values["quiet"])):
        rows += new
        write_whole(table, csv_bytes(rows, COLUMNS))
    means = summary(rows)
    write_whole(short, csv_bytes(means, SUMMARY))
    write_whole(figure, sweep_figure(means, f"{every[0].resolved.recipe.title}; band: 95 % interval over {seeds} seeds"
                                     if seeds > 1 else every[0].resolved.recipe.title))  # fmt: skip
    if not values["quiet"]:
        click.echo(aligned(means, [c for c in SUMMARY if c not in ("varied", "std")]))
    click.echo(f"{table}, {short}, {figure}")
