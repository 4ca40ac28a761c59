"""The command line. Options of a recipe come from its YAML; torch is imported only by commands that compute.

Exit codes: 0 done, 1 a defect of hwsim (with traceback), 2 something the user can mend (one line each), 130
interrupted, 141 nobody reads the output any more (`| head`).
"""

import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hwsim import __version__
from hwsim.cli_bench import bench, doctor
from hwsim.cli_energy import describe, energy, footprint, report
from hwsim.cli_sweep import sweep

MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENOENT,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOMEM,
}  # fmt: skip
"""System errors that are the surroundings' matter: full disk, missing permission, a folder that is not there."""


def main() -> None:
    """Run the command line and turn mistakes into one line each."""
    # torch then asks for huge pages: large tensors cost a fifth less time. Set before torch is imported, or not at all.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to stop
    from hwsim.recipe.progress import listen

    listen()
    if _is_one_of_several():
        from hwsim.recipe.ranks import end_together

        sys.exit(end_together(_ended))
    code, say = _ended()
    say()
    sys.exit(code)


def _is_one_of_several() -> bool:
    """Whether this process was started together with others, by torchrun or as it does."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and os.environ.get("WORLD_SIZE", "1") != "1"


def _ended() -> tuple[int, Callable[[], None]]:
    """Run the command line: the exit code, and what says what went wrong. Raises what is a defect."""
    try:
        code = cli.main(prog_name="hwsim", standalone_mode=False)
    except click.ClickException as e:
        return e.exit_code, e.show
    except (KeyboardInterrupt, click.Abort):
        return 130, _saying("interrupted; finished epochs are kept, the same command goes on from there")
    except SystemExit as e:  # click's answer to a pipe that nobody reads, and its end after shell completion
        code = e.code if "_HWSIM_COMPLETE" in os.environ else 141
    except OSError as e:
        if e.errno not in MENDABLE:
            raise
        again = "nothing finished is lost, mend it and repeat the command"
        return 2, _saying(f"{e.filename or 'writing'}: {e.strerror}; {again}")
    except Exception as e:
        lines = _mendable(e)
        if lines is None:
            raise
        return 2, _saying(lines)
    return code if isinstance(code, int) else 0, _saying("")


def _saying(text: str) -> Callable[[], None]:
    return lambda: click.echo(text, err=True) if text else None


def _mendable(e: Exception) -> str | None:
    """The message of an error that a user can mend, or None for a defect."""
    from hwsim.config import UserError

    if isinstance(e, UserError):
        return str(e)
    if isinstance(e, MemoryError) or "DefaultCPUAllocator" in str(e):
        return "the memory is full; lower --batch-size, --width or --steps"
    if type(e).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full; lower --batch-size, --width or --steps, or use --device cpu"
    if type(e).__name__ == "SafetensorError" and "os error 28" in str(e).lower():
        return "no space left on device; nothing finished is lost, mend it and repeat the command"
    return None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hwsim")
def cli() -> None:
    """Hardware-aware simulation of RRAM/SRAM neuromorphic accelerators.

    \b
    hwsim recipe                 what there is to run
    hwsim recipe vat --quant 1   variation-aware training, 1-bit RRAM
    hwsim device                 what there is to run it on
    """


class _Recipes(click.Group):
    """Each recipe, shipped or a YAML file, is a command whose options stand in the recipe."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from hwsim.recipe.resolve import recipe_names

        return recipe_names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from hwsim.recipe.options import recipe_command
        from hwsim.recipe.resolve import recipe_document

        return recipe_command(name, recipe_document(name)[1], _run)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        return args[0], self.get_command(ctx, args[0]), args[1:]


@cli.group(cls=_Recipes, invoke_without_command=True)
@click.pass_context
def recipe(ctx: click.Context) -> None:
    """Run a recipe: hwsim recipe NAME|FILE [options]. Without a name: list them."""
    if ctx.invoked_subcommand is not None:
        return
    from hwsim.recipe.resolve import recipe_document, recipe_names

    for name in recipe_names():
        data = recipe_document(name)[1].data
        click.echo(f"{name:12} {data['title']}")
        click.echo(f"{'':12} time: {data.get('time', 'not measured')}; expected: {data.get('expected', 'not stated')}")
    click.echo("\nhwsim recipe NAME --help lists a recipe's options; hwsim recipe NAME runs it.")


def _run(name: str, options: dict[str, str | bool], values: dict[str, Any]) -> None:
    """Resolve a recipe and do what the common options (`values`) want with it."""
    from hwsim.recipe.options import ASKED
    from hwsim.recipe.resolve import Request, resolve

    asked = {k: values[k] for k in ASKED}
    resolved = resolve(Request(name, options, list(values["sets"]), **asked))
    if values["show"]:
        from hwsim.recipe.show import shown

        click.echo(shown(resolved), nl=False)
        return
    from hwsim.recipe.execute import execute
    from hwsim.recipe.progress import Progress
    from hwsim.recipe.ranks import joined

    ranks = joined()
    results = execute(resolved, Path(values["runs"]), Progress(values["quiet"] or not ranks.is_first), ranks)
    if resolved.recipe.is_integer:
        _say_integer(resolved.recipe, results, values)
    else:
        _say(resolved.recipe, results, values)
    if not values["as_json"]:
        click.echo(f"{results.folder / 'summary.md'}")


def _say(recipe, results, values: dict[str, Any]) -> None:
    """What the image networks of a run have reached."""
    from hwsim.recipe.results import ACCURACY, accuracy_rows, headline
    from hwsim.report.table import aligned

    rows, best = accuracy_rows(results.chips), headline(recipe, results.chips, results.folder)
    if values["as_json"]:
        click.echo(json.dumps({**_finite(best), "accuracy": [_finite(r) for r in rows]}, indent=1))
        return
    if rows and not values["quiet"]:
        click.echo(aligned(rows, ACCURACY))
    if rows:
        low, high, chips = best["ci95_low"], best["ci95_high"], best["chips"]
        over = f" [{100 * low:.2f}, {100 * high:.2f}] over {chips} chips" if chips > 1 else " on one chip"
        click.echo(f"{best['network']} at scale {best['variation_scale']:g}: {100 * best['mean']:.2f} %{over}")


def _say_integer(recipe, results, values: dict[str, Any]) -> None:
    """What the integer networks of a run have reached."""
    from hwsim.recipe.integer_summary import headlines

    rows = headlines(recipe, results.metrics)
    if values["as_json"]:
        click.echo(json.dumps({"results": [_finite(r) for r in rows]}, indent=1))
        return
    for row in rows:
        click.echo(row["says"])


def _finite(row: dict) -> dict:
    """JSON has no nan: what cannot be known (the spread of one chip) is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


@cli.command()
@click.argument("card", required=False)
@click.option("--bits", type=int, help="Bits held by one weight.")
@click.option(
    "--quantizer",
    type=click.Choice(["dorefa", "xnor", "ternary"]),
    help="Rounding of the weights, in place of the card's own.",
)
@click.option("--variant", help="Which of the card's tables of spread.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def device(card: str | None, bits: int | None, quantizer: str | None, variant: str | None, as_json: bool) -> None:
    """Device cards: list them, or show CARD's levels, decision boundaries, spreads and prices."""
    from hwsim.device.card import load_card, summary
    from hwsim.device.show import described

    if card is None:
        rows = summary()
        click.echo(json.dumps(rows, indent=1) if as_json else "\n".join(_listed(rows)))
        return
    tables = described(load_card(card), bits, quantizer, variant)
    if as_json:
        click.echo(json.dumps({title: rows for title, rows in tables if not isinstance(rows, str)}, indent=1))
        return
    from hwsim.report.table import aligned

    for title, rows in tables:
        click.echo(f"{title}\n{rows if isinstance(rows, str) else aligned(rows)}\n")


def _listed(rows: list[dict]) -> list[str]:
    out = [f"{r['name']:24} {r['title']}\n{'':24} {r['blocks']}; source: {r['source']}" for r in rows]
    return [*out, "\nhwsim device CARD --bits B shows levels, boundaries and sigmas."]


@cli.command()
@click.argument("what", type=click.Choice(["recipe", "device"]))
def schema(what: str) -> None:
    """JSON Schema of a recipe or a device card, so that an editor completes and checks YAML."""
    from hwsim.device.card import Card
    from hwsim.recipe.settings import Recipe

    made = (Recipe if what == "recipe" else Card).model_json_schema()
    click.echo(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **made}, indent=1))


for command in (energy, footprint, describe, report, sweep, bench, doctor):
    cli.add_command(command)


@cli.command(name="import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--data", help="Data set that it was trained on.")
@click.option("--data-dir", help="Folder of the data sets.")
@click.option("--net", help="Of a BITnet: bitnet6 or bitnet6-v101, which have the same tensors.")
@click.option("--steps", type=click.IntRange(1), help="Of a BITnet: time steps T.")
@click.option("--quant", type=int, help="Bits held by one RRAM weight.")
@click.option("--leak", type=float, help="Leak of the membrane (--leak_mem).")
@click.option("--sram-bit", type=int, help="Bits of one SRAM word, of a hybrid network.")
@click.option("--shift-bit", type=int, help="Shift of the SRAM word.")
@click.option("--halved/--not-halved", default=None, help="Whether the sum is divided by two (not with --sram_init0).")
@click.option("--threshold", type=float, help="Mask the SRAM part as --swp --th did; its checkpoints hold no masks.")
def import_(file: Path, runs: Path, **given: Any) -> None:
    """A .pth.tar checkpoint of the reference codes becomes a run that --from takes.

    What the options leave open is read from the file's name, where it is of the reference's scheme.
    """
    from hwsim.recipe.adopt import adopt

    folder, notes = adopt(file, runs, given)
    for note in notes:
        click.echo(f"{file}: {note}", err=True)
    click.echo(f"{folder}\nhwsim recipe evaluate --from {folder} tests it")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here.")
@click.option("--networks", help="Only these networks, with commas.")
def compare(runs: tuple[Path, ...], csv_file: Path | None, networks: str | None) -> None:
    """Several runs in one table, with the settings in which they differ."""
    from hwsim.recipe.checkpoint import write_whole
    from hwsim.recipe.compare import compare as together
    from hwsim.report.table import aligned, csv_bytes

    rows, columns = together(runs, networks.split(",") if networks else ())
    if csv_file is not None:
        write_whole(csv_file, csv_bytes(rows, columns))
    click.echo(aligned(rows, columns))
