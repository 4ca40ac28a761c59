"""A recipe as a command: the options that it declares, and those that every recipe has."""

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click
import pydantic

from hwsim.config import ConfigError, Document, check
from hwsim.fields import field_at, members, place_of, value_at
from hwsim.recipe.settings import Option, Recipe

COMMON = [
    click.Option(
        ["--set", "sets"], multiple=True, metavar="PLACE=VALUE", help="Set any place of the recipe; may be repeated."
    ),
    click.Option(["--seed"], metavar="N", help="Seed of initial weights, batches and chips."),
    click.Option(["--device", "compute"], metavar="auto|cpu|cuda", help="Where to compute."),
    click.Option(["--precision"], metavar="float32|tf32|bf16", help="Numbers that convolutions multiply."),
    click.Option(
        ["--checkpoint-layers"], is_flag=True, help="Compute currents again in the backward pass: less memory, slower."
    ),
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

ASKED = ("seed", "compute", "precision", "checkpoint_layers", "from_run", "smoke", "faithful")
"""Those of `COMMON` that change the recipe: fields of `resolve.Request`."""

Start = Callable[[str, dict[str, str | bool], dict[str, Any]], None]


def recipe_command(name: str, document: Document, start: Start) -> click.Command:
    """The command of a recipe document; run, it calls ``start(name, options given, common options)``.

    Raises `ConfigError` if the document's options are not what options can be.
    """
    data = document.data if isinstance(document.data, dict) else {}
    declared = _declared(data, document)
    options = {option: _option(i, option, how, document) for i, (option, how) in enumerate(declared.items())}

    def run(**values: Any) -> None:
        given = {o: values.pop(v.name) for o, v in options.items()}
        start(name, {o: v for o, v in given.items() if v not in (None, False)}, values)

    title = str(data.get("title", name))
    about = f"Time: {data.get('time', 'not measured')}. Expected: {data.get('expected', 'not stated')}."
    return click.Command(
        name, params=[*options.values(), *COMMON], callback=run, help=f"{title}\n\n{about}", short_help=title
    )


def _declared(data: dict, document: Document) -> dict[str, Option]:
    given = data.get("options") or {}
    try:
        declared = {str(o): Option.model_validate(how) for o, how in given.items()}
    except (pydantic.ValidationError, AttributeError):
        check(Recipe, document)  # says what is wrong, and with what else
        raise
    taken = {text for option in COMMON for text in option.opts if text.startswith("--")} | {"--help"}
    if both := [o for o in declared if f"--{o}" in taken]:
        raise ConfigError(
            [f"{document.where(('options', o))}: options.{o}: every recipe has --{o} already" for o in both]
        )
    return declared


def _option(number: int, name: str, how: Option, document: Document) -> click.Option:
    place = place_of(how.sets[0])
    found = field_at(Recipe, document.data, place)
    names = [f"--{name}", f"option_{number}"]
    if found is not None and found.annotation is bool:
        return click.Option(names, is_flag=True, help=how.help)
    default = value_at(document.data, place)
    if default is None and found is not None and not found.is_required():
        default = found.get_default(call_default_factory=True)
    choices = how.choices or _literals(found.annotation if found else None)
    text = how.help + (f"  [default: {_spoken(default)}]" if default is not None else "")
    return click.Option(names, metavar="|".join(map(str, choices)) if choices else "VALUE", help=text)


def _literals(annotation: Any) -> list:
    return [a for m in members(annotation) if get_origin(m) is Literal for a in get_args(m)]


def _spoken(value: Any) -> str:
    return (
        ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, list) else str(value)
    )
