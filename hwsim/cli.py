"""The command line. Options of a recipe come from its YAML; torch is imported only by commands that compute.

Exit codes: 0 done, 1 a defect of hwsim (with traceback), 2 something the user can mend (one line each), 130
interrupted.
"""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import click

from hwsim import __version__

MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
"""System errors that are the surroundings' matter: full disk, missing permission."""


def main() -> None:
    """Run the command line and turn mistakes into one line each."""
    try:
        code = cli.main(prog_name="hwsim", standalone_mode=False)
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; finished epochs are kept, the same command goes on from there", err=True)
        code = 130
    except OSError as e:
        if e.errno not in MENDABLE:
            raise
        click.echo(
            f"{e.filename or 'writing'}: {e.strerror}; nothing finished is lost, mend it and repeat the command",
            err=True,
        )
        code = 2
    except Exception as e:
        lines = _mendable(e)
        if lines is None:
            raise
        click.echo(lines, err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _mendable(e: Exception) -> str | None:
    """The message of an error that a user can mend, or None for a defect."""
    from hwsim.config import UserError

    if isinstance(e, UserError):
        return str(e)
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
        from hwsim.recipe.resolve import recipe_document

        _, document = recipe_document(name)
        return _recipe_command(name, document)

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


_COMMON = [
    click.Option(
        ["--set", "sets"], multiple=True, metavar="PLACE=VALUE", help="Set any place of the recipe; may be repeated."
    ),
    click.Option(["--seed"], metavar="N", help="Seed of initial weights, batches and chips."),
    click.Option(["--device", "compute"], metavar="auto|cpu|cuda", help="Where to compute."),
    click.Option(["--runs"], default="runs", show_default=True, metavar="DIR", help="Folder of the runs."),
    click.Option(
        ["--from", "from_run"], metavar="RUN", help="Start from a finished run's network in place of the first stage."
    ),
    click.Option(["--smoke"], is_flag=True, help="Make everything tiny, to see that it runs."),
    click.Option(["--faithful"], is_flag=True, help="Do as the reference code does, defects included."),
    click.Option(["--show"], is_flag=True, help="Print the resolved recipe, runnable again, and stop."),
    click.Option(["--quiet"], is_flag=True, help="Print only the result."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
]


def _recipe_command(name: str, document) -> click.Command:
    """The command of a recipe document."""
    from hwsim.config import ConfigError

    declared = document.data.get("options") if isinstance(document.data, dict) else None
    options = {}
    for option, how in (declared if isinstance(declared, dict) else {}).items():
        if not isinstance(how, dict) or not isinstance(how.get("sets"), list) or not how["sets"]:
            raise ConfigError(
                [f"{document.where(('options', option))}: options.{option}: needs sets: [place, …] and help"]
            )
        if option in {o.name for o in _COMMON} | {"set", "device", "from", "json"}:
            raise ConfigError(
                [f"{document.where(('options', option))}: options.{option}: every recipe has --{option} already"]
            )
        options[option] = _option(option, how, document)

    def run(**values: Any) -> None:
        given = {o: values[v.name] for o, v in options.items() if values[v.name] not in (None, False)}
        _run(name, {o: _parsed(o, v, declared[o], document) for o, v in given.items()}, values)

    data = document.data if isinstance(document.data, dict) else {}
    time, expected = data.get("time", "not measured"), data.get("expected", "not stated")
    about = f"{data.get('title', name)}\n\nTime: {time}. Expected: {expected}."
    return click.Command(
        name, params=[*options.values(), *_COMMON], callback=run, help=about, short_help=data.get("title")
    )


def _option(name: str, how: dict, document) -> click.Option:
    from hwsim.config import field_at
    from hwsim.recipe.resolve import place_of
    from hwsim.recipe.settings import Recipe

    place = place_of(how["sets"][0])
    found = field_at(Recipe, document.data, place)
    if found is not None and found.annotation is bool:
        return click.Option([f"--{name}"], is_flag=True, help=how.get("help"))
    default: Any = document.data
    for step in place:
        default = default.get(step) if isinstance(default, dict) else None
    if default is None and found is not None and not found.is_required():
        default = found.get_default(call_default_factory=True)
    choices = how.get("choices") or _literals(found.annotation if found else None)
    text = how.get("help", "") + (f"  [default: {_spoken(default)}]" if default is not None else "")
    return click.Option([f"--{name}"], metavar="|".join(map(str, choices)) if choices else "VALUE", help=text)


def _literals(annotation: Any) -> list:
    from typing import Literal, get_args, get_origin

    members = [annotation, *get_args(annotation)]
    return [a for m in members if get_origin(m) is Literal for a in get_args(m)]


def _spoken(value: Any) -> str:
    return (
        ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, list) else str(value)
    )


def _parsed(name: str, text: Any, how: dict, document) -> Any:
    """An option's text as a value: a YAML scalar, or a list where the place holds one."""
    from hwsim.config import field_at, parse_yaml
    from hwsim.recipe.resolve import place_of
    from hwsim.recipe.settings import Recipe

    if text is True:
        return True
    found = field_at(Recipe, document.data, place_of(how["sets"][0]))
    if found is not None and "list" in str(found.annotation):
        return [parse_yaml(part.strip(), f"--{name}").data for part in text.split(",")]
    return parse_yaml(text, f"--{name}").data


def _run(name: str, options: dict[str, Any], values: dict[str, Any]) -> None:
    from hwsim.config import parse_yaml
    from hwsim.recipe.resolve import Request, resolve

    seed = None if values["seed"] is None else parse_yaml(values["seed"], "--seed").data
    request = Request(
        name,
        options,
        list(values["sets"]),
        seed,
        values["compute"],
        values["from_run"],
        values["smoke"],
        values["faithful"],
    )
    resolved = resolve(request)
    from hwsim.recipe.show import shown

    if values["show"]:
        click.echo(shown(resolved), nl=False)
        return
    from hwsim.recipe.progress import Progress
    from hwsim.recipe.run import Run
    from hwsim.recipe.summary import ACCURACY, accuracy_rows, headline
    from hwsim.report.table import aligned

    results = Run(resolved, Path(values["runs"]), Progress(values["quiet"])).execute()
    rows, best = accuracy_rows(results.chips), headline(resolved.recipe, results)
    if values["as_json"]:
        click.echo(json.dumps({**best, "accuracy": rows}, indent=1))
        return
    if rows and not values["quiet"]:
        click.echo(aligned(rows, ACCURACY))
    if rows:
        click.echo(
            f"{best['network']} at scale {best['variation_scale']:g}: {100 * best['mean']:.2f} % "
            f"[{100 * best['ci95_low']:.2f}, {100 * best['ci95_high']:.2f}] over {best['chips']} chips"
        )
    click.echo(f"{results.folder / 'summary.md'}")


@cli.command()
@click.argument("card", required=False)
@click.option("--bits", type=int, help="Bits held by one weight.")
@click.option("--quantizer", help="Rounding of the weights, in place of the card's own.")
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

    click.echo(json.dumps((Recipe if what == "recipe" else Card).model_json_schema(), indent=1))


@cli.command()
@click.argument("recipe_name", required=False, metavar="[RECIPE]")
@click.option("--set", "sets", multiple=True, metavar="PLACE=VALUE", help="As in hwsim recipe.")
@click.option("--device", "compute", metavar="auto|cpu|cuda", help="Where to compute.")
def doctor(recipe_name: str | None, sets: tuple[str, ...], compute: str | None) -> None:
    """Versions, device, backend and why; with RECIPE also the memory that a run of it needs."""
    from hwsim.doctor import examine

    click.echo(examine(recipe_name, list(sets), compute))


@cli.command()
@click.option("--net", default="vgg9", show_default=True, help="Network.")
@click.option("--width", default=1.0, show_default=True, help="Multiplies the channels of every layer.")
@click.option("--size", default=32, show_default=True, help="Side of the input image.")
@click.option("--steps", default=20, show_default=True, help="Time steps T.")
@click.option("--batch", default=16, show_default=True, help="Images a batch.")
@click.option("--samples", default=7, show_default=True, help="Timed training steps of each variant.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the table here.")
def bench(csv_file: Path | None, **settings: Any) -> None:
    """Time and peak memory of a training step: the published loop, folded plain torch, and the fast backend."""
    from hwsim.bench import bench as measure

    click.echo(measure(csv_file=csv_file, **settings))
