"""A recipe file, a profile and the options of a command line → one checked `Recipe`, with where each value came from.

Everything that can be wrong with settings is found here, before anything runs, and reported at once: what a single
place may hold by the settings models, what does not go together in `contradictions.py`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from hwsim.config import ConfigError, Document, check, nearest, parse_yaml, read_yaml, shipped
from hwsim.fields import Place, dotted, field_at, fields, members, model_at, place_of, value_at
from hwsim.recipe.contradictions import contradictions
from hwsim.recipe.settings import Recipe

INTEGER = ("pattern", "decolle")
"""What stages of integer networks do."""


@dataclass
class Request:
    """What a command line asks of a recipe."""

    name: str
    """Recipe name or file."""
    options: dict[str, str | bool] = field(default_factory=dict)
    """Option of the recipe → its text, or True for a flag."""
    sets: list[str] = field(default_factory=list)
    """`place=value` texts of `--set`."""
    seed: str | int | None = None
    compute: str | None = None
    precision: str | None = None
    checkpoint_layers: bool = False
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
    return name, read_yaml(shipped("recipes") / f"{name}.yaml", f"recipes/{name}.yaml")


def resolve(request: Request) -> Resolved:
    """Apply run, profiles, options and `--set` to the recipe file, in this order, and check the result."""
    name, document = recipe_document(request.name)
    if not isinstance(document.data, dict):
        raise ConfigError([f"{document.source}: a recipe is a mapping with title and stages"])
    mistakes: list[str] = []
    if request.from_run:
        _take_run(document, request.from_run)
    profiles = [p for p in ("smoke", "faithful") if getattr(request, p)]
    for profile in profiles:
        block = document.data.get(profile)
        if not block:
            mistakes.append(f"--{profile}: {document.source} has no block '{profile}'; this recipe does not offer it")
        for place, value in block.items() if isinstance(block, dict) else ():
            of_run = request.from_run and place_of(place)[0] == "net"  # the run's network stays as it is
            if not of_run and not _is_loaded(document.data, place_of(place)):
                _set(document, place_of(place), value, f"--{profile}", mistakes)
    for option, text in request.options.items():
        _apply_option(document, option, text, mistakes)
    if request.seed is not None:
        for value in _values([str(request.seed)], "--seed", mistakes):
            document.set(("seed",), value, "--seed")
    if request.compute is not None:
        document.set(("compute",), request.compute, "--device")
    if request.precision is not None:
        document.set(("precision",), request.precision, "--precision")
    if request.checkpoint_layers:
        document.set(("checkpoint_layers",), True, "--checkpoint-layers")
    for text in request.sets:
        place, equals, value_text = text.partition("=")
        if not equals:
            mistakes.append(f"--set {text}: expected place=value, for example --set net.steps=5")
            continue
        for value in _values([value_text], f"--set {text}", mistakes):
            _set(document, place_of(place), value, f"--set {text}", mistakes)
    recipe, bad = _checked(document, mistakes)
    if recipe is not None:
        for place, problem in contradictions(recipe, document.data, profiles):
            if not _follows(place, bad, document.data):
                mistakes.append(f"{document.where(place)}: {dotted(place)}: {problem}")
    if recipe is None or mistakes:
        raise ConfigError(mistakes)
    return Resolved(name, recipe, document)


def _is_loaded(data: Any, place: Place) -> bool:
    """Whether a place lies in a stage that a run stands for: profiles and options have nothing to set there."""
    if place[0] != "stages" or len(place) < 3 or not isinstance(data.get("stages"), dict):
        return False
    replaced = data.get("from_replaces")
    gone = place[1] not in data["stages"] and value_at(data, ("stages", str(replaced), "do")) == "load"
    return gone or value_at(data, (*place[:2], "do")) == "load"


def _follows(place: Place, bad: Sequence[Place], data: Any) -> bool:
    """Whether a problem at a place only follows from a bad one: inside, around, missing beside it (bits by bit)."""
    missing = value_at(data, place) is None
    return any(
        place[: len(b)] == b or b[: len(place)] == place or (missing and b[:-1] == place[:-1] and b[:-1]) for b in bad
    )


def _values(texts: Sequence[str], origin: str, mistakes: list[str]) -> list:
    """The texts as YAML values, or nothing if one of them is no YAML (its mistake is noted)."""
    try:
        documents = [parse_yaml(text, origin) for text in texts]
    except ConfigError as e:
        mistakes += e.messages
        return []
    mistakes += [m for d in documents for m in d.twice]
    return [d.data for d in documents]


def _set(document: Document, place: Place, value: Any, origin: str, mistakes: list[str]) -> None:
    """Set a place that exists; the first step that does not is the mistake."""
    text = dotted(place)
    if place[0] in ("options", "smoke", "faithful"):
        mistakes.append(f"{origin}: {text}: this belongs to the recipe file; change it there")
        return
    for end, step in enumerate(place):
        owner = model_at(Recipe, document.data, place[:end])
        here = value_at(document.data, place[:end])
        known = fields(owner) if owner else range(len(here)) if isinstance(here, list) else here
        known = known if isinstance(known, dict | range) else ()
        if step not in known:
            hint = nearest(str(step), known) or f"; set {dotted(place[:end])} as a whole"
            mistakes.append(f"{origin}: {text}: there is no '{step}' here{hint}")
            return
    document.set(place, value, origin)


def _apply_option(document: Document, option: str, text: str | bool, mistakes: list[str]) -> None:
    declared, origin = document.data["options"][option], f"--{option}"
    places = [p for p in map(place_of, declared["sets"]) if not _is_loaded(document.data, p)]
    if not places:
        mistakes.append(f"{origin}: sets only {', '.join(declared['sets'])}, of a stage that is taken from a run")
    for place in places:
        found = field_at(Recipe, document.data, place)
        if found is None:
            continue  # `contradictions` says so
        kinds = members(found.annotation)
        is_list = any("list" in str(k) for k in kinds)
        if text is True:
            values = [True]
        elif str in kinds:  # a path may look like YAML
            values = [None if text == "null" and type(None) in kinds else text]
        else:
            parts = str(text).split(",") if is_list and not str(text).lstrip().startswith("[") else [str(text)]
            trouble: list[str] = []
            values = _values([p.strip() for p in parts], origin, trouble)
            if trouble:
                mistakes += trouble
                return
        value = values if is_list and not isinstance(values[0], list) else values[0]
        choices = declared.get("choices")
        if choices and any(v not in choices for v in (value if isinstance(value, list) else [value])):
            mistakes.append(f"{origin}: found {text}; it can be {', '.join(map(str, choices))}")
            return
        document.set(place, value, origin)


def _take_run(document: Document, run: str) -> None:
    """`--from RUN`: network, data and device of the run become this recipe's, and a stage of it loads the weights."""
    origin, folder = f"--from {run}", Path(run)
    file = next((f / "recipe.yaml" for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)
    if file is None:
        raise ConfigError([f"{origin}: this is no run folder; one has a recipe.yaml and lies in runs/, see `ls runs`"])
    parent = read_yaml(file).data
    stages = document.data.get("stages")
    if isinstance(stages, dict) and any(isinstance(s, dict) and s.get("do") in INTEGER for s in stages.values()):
        raise ConfigError([f"{origin}: an integer network starts from no other run; leave --from out"])
    for block in ("net", "data", "device"):
        values = value_at(parent, (block,))
        if not isinstance(values, dict):
            raise ConfigError([f"{origin}: {file} is not a run's recipe: it has no block '{block}'"])
        for key, value in values.items():
            document.set((block, key), value, origin)
    if not isinstance(stages, dict) or not stages:
        return
    name = document.data.get("from_replaces") or next(iter(stages))
    if name in stages:
        for before in list(stages)[: list(stages).index(name)]:
            del stages[before]
            for stage in stages.values():  # nor is it measured
                if isinstance(stage, dict) and isinstance(stage.get("of"), list):
                    stage["of"] = [n for n in stage["of"] if n != before]
        document.set(("stages", name), {"do": "load", "run": run}, origin)


def _checked(document: Document, mistakes: list[str]) -> tuple[Recipe | None, list[Place]]:
    """(recipe, no places), or its sound part, if there is one, and the places that are bad (their mistakes are noted).

    The sound part lacks every bad value, and stages without their verb or network: what does not go together in the
    rest is reported in the same breath.
    """
    try:
        return check(Recipe, document), []
    except ConfigError as e:
        mistakes += [m for m in e.messages if m not in mistakes]
        bad = e.places
    data = copy.deepcopy(document.data)
    data.update(title="")
    for place in bad:
        if place[0] == "stages" and len(place) > 2 and place[2] in ("do", "of"):
            place = place[:2]
        while place and isinstance(place[-1], int):
            place = place[:-1]
        above = value_at(data, place[:-1])
        if isinstance(above, dict):
            above.pop(place[-1] if place else None, None)
    try:
        return Recipe.model_validate(data), bad
    except pydantic.ValidationError:
        return None, bad
