"""A recipe file, a profile and the options of a command line → one checked `Recipe`, with where each value came from.

Everything that can be wrong with settings is found here, before anything runs, and reported at once.
"""

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.config import (
    ConfigError,
    Document,
    check,
    dotted,
    field_at,
    fields,
    model_at,
    nearest,
    parse_yaml,
    read_yaml,
    shipped,
)
from hwsim.recipe.settings import Account, Evaluate, Load, Net, Recipe, Train


@dataclass
class Request:
    """What a command line asks of a recipe."""

    name: str
    """Recipe name or file."""
    options: dict[str, Any] = field(default_factory=dict)
    """Option of the recipe → value."""
    sets: list[str] = field(default_factory=list)
    """`place=value` texts of `--set`."""
    seed: int | None = None
    compute: str | None = None
    from_run: str | None = None
    smoke: bool = False
    faithful: bool = False


@dataclass
class Resolved:
    """A recipe that is ready to run."""

    name: str
    recipe: Recipe
    document: Document


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(p.stem for p in shipped("recipes").glob("*.yaml"))


def recipe_document(name: str) -> tuple[str, Document]:
    """(short name, document) of a shipped recipe or of a recipe file. Raises `ConfigError` if there is none."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError([f"{name}: there is no such recipe file"])
        return path.stem, read_yaml(path)
    if name not in recipe_names():
        raise ConfigError([f"recipe: there is no '{name}'{nearest(name, recipe_names())}"])
    return name, read_yaml(shipped("recipes") / f"{name}.yaml")


def resolve(request: Request) -> Resolved:
    """Apply run, profiles, options and `--set` to the recipe file, in this order, and check the result."""
    name, document = recipe_document(request.name)
    if not isinstance(document.data, dict):
        raise ConfigError([f"{document.source}: a recipe is a mapping with title and stages"])
    mistakes: list[str] = []
    if request.from_run:
        _take_run(document, request.from_run)
    for profile in [p for p in ("smoke", "faithful") if getattr(request, p)]:
        if not document.data.get(profile):
            mistakes.append(f"--{profile}: {document.source} has no block '{profile}'; this recipe does not offer it")
        for place, value in (document.data.get(profile) or {}).items():
            _set(document, place, value, f"--{profile}", mistakes)
    for option, value in request.options.items():
        _apply_option(document, option, value, mistakes)
    for place, value in (("seed", request.seed), ("compute", request.compute)):
        if value is not None:
            document.set((place,), value, f"--{'device' if place == 'compute' else place}")
    for text in request.sets:
        place, equals, value = text.partition("=")
        if not equals:
            mistakes.append(f"--set {text}: expected place=value, for example --set stages.vat.epochs=5")
            continue
        try:
            data = parse_yaml(value, f"--set {text}").data
        except ConfigError as e:
            mistakes += e.messages
            continue
        _set(document, place, data, f"--set {text}", mistakes)
    recipe = None
    try:
        recipe = check(Recipe, document)
    except ConfigError as e:
        mistakes += [m for m in e.messages if m not in mistakes]
    if recipe is not None:
        mistakes += _contradictions(recipe, document)
    if mistakes:
        raise ConfigError(mistakes)
    return Resolved(name, recipe, document)


def place_of(text: str) -> tuple[str | int, ...]:
    """``stages.vat.on.0`` as steps."""
    return tuple(int(p) if p.isdigit() else p for p in text.split("."))


def _set(document: Document, place: str, value: Any, origin: str, mistakes: list[str]) -> None:
    steps = place_of(place)
    for end in range(1, len(steps) + 1):  # the first step that does not exist is the mistake
        owner = model_at(Recipe, document.data, steps[: end - 1])
        known = fields(owner) if owner else document.data.get("stages") or {}
        if steps[end - 1] not in known:
            mistakes.append(
                f"{origin}: {place}: there is no '{steps[end - 1]}' here{nearest(str(steps[end - 1]), known)}"
            )
            return
        if field_at(Recipe, document.data, steps[: end + 1]) is None and end == len(steps) and owner is None:
            mistakes.append(f"{origin}: {place}: this is a whole block; set one of its places")
            return
        if isinstance(steps[end - 1], int):
            break
    document.set(steps, value, origin)


def _apply_option(document: Document, option: str, value: Any, mistakes: list[str]) -> None:
    declared = document.data["options"][option]
    choices = declared.get("choices")
    if choices and value not in choices:
        allowed = ", ".join(str(c) for c in choices)
        mistakes.append(f"--{option}: found {value}; it can be {allowed}")
        return
    for place in declared["sets"]:
        steps = place_of(place)
        found = field_at(Recipe, document.data, steps)
        wants_list = found is not None and "list" in str(found.annotation)
        document.set(steps, value if isinstance(value, list) or not wants_list else [value], f"--{option}")


def _take_run(document: Document, run: str) -> None:
    """`--from RUN`: the run's network, data and device become this recipe's, and its first stage loads the weights."""
    folder = Path(run)
    file = folder / "recipe.yaml" if (folder / "recipe.yaml").is_file() else folder.parent / "recipe.yaml"
    if not file.is_file():
        raise ConfigError(
            [f"--from {run}: this is no run folder; one has a recipe.yaml and lies in runs/, see `ls runs`"]
        )
    parent = read_yaml(file).data
    for block in ("net", "data", "device"):
        for key, value in (parent.get(block) or {}).items():
            document.set((block, key), value, f"--from {run}")
    stages = document.data.get("stages")
    if isinstance(stages, dict) and stages:
        document.set(("stages", next(iter(stages))), {"do": "load", "run": run}, f"--from {run}")


def _contradictions(recipe: Recipe, document: Document) -> list[str]:
    """Mistakes that involve more than one place."""
    out = []

    def say(place: tuple[str | int, ...], text: str) -> None:
        out.append(f"{document.where(place)}: {dotted(place)}: {text}")

    trained: list[str] = []
    for name, stage in recipe.stages.items():
        if isinstance(stage, Train) and stage.start is not None and stage.start not in trained:
            say(("stages", name, "from"), f"no earlier stage trains '{stage.start}'{nearest(stage.start, trained)}")
        if isinstance(stage, Load) and stage.run is None:
            say(("stages", name, "run"), "this stage takes a finished run; give one with --from RUN")
        named = stage.of if isinstance(stage, Evaluate) else [stage.of] if isinstance(stage, Account) else []
        for other in [n for n in named if n not in trained]:
            say(("stages", name, "of"), f"no earlier stage has a network '{other}'{nearest(other, trained)}")
        if isinstance(stage, Train | Load):
            trained.append(name)
        if isinstance(stage, Train) and recipe.data.limit and stage.batch_size > recipe.data.limit:
            say(
                ("stages", name, "batch_size"),
                f"{stage.batch_size} is more than data.limit, {recipe.data.limit}; no batch would be full",
            )
        if not name.replace("-", "").replace("_", "").isalnum():
            say(("stages", name), "a stage's name is also a folder's; use letters, digits, - and _")
    out += _card_mistakes(recipe, document)
    layers = layer_names(recipe.net)
    for i, pattern in enumerate(recipe.device.on):
        if not fnmatch.filter(layers, pattern):
            say(("device", "on", i), f"no layer is named like '{pattern}'; this network has {', '.join(layers)}")
    for option, declared in recipe.options.items():
        for place in declared.sets:
            if field_at(Recipe, document.data, place_of(place)) is None:
                say(("options", option, "sets"), f"there is no place '{place}' in this recipe")
    return out


def _card_mistakes(recipe: Recipe, document: Document) -> list[str]:
    from hwsim.device.card import card_store, load_card

    out = []
    try:
        card_store(load_card(recipe.device.card), recipe.device.weights)
    except ConfigError as e:
        out += [_located(document, m) for m in e.messages]
    except ValueError as e:
        out.append(f"{document.where(('device', 'card'))}: {e}")
    for name, stage in recipe.stages.items():
        if isinstance(stage, Account):
            try:
                if load_card(stage.card).prices is None:
                    out.append(
                        f"{document.where(('stages', name, 'card'))}: stages.{name}.card: {stage.card} gives no prices"
                    )
            except ValueError as e:
                out.append(f"{document.where(('stages', name, 'card'))}: {e}")
    return out


def _located(document: Document, message: str) -> str:
    """A card's message about a place, with where that place's value came from in front."""
    place = place_of(message.partition(":")[0])
    return f"{document.where(place)}: {message}"


def layer_names(net: Net) -> list[str]:
    """Names of the layers that can hold weights, without building the network."""
    from hwsim.network.vgg_bntt import PLANS

    convolutions = sum(isinstance(item, int) for item in PLANS[net.name][0])
    return [f"conv{i + 1}" for i in range(convolutions)] + ["fc1", "fc2"]
