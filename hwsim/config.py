"""YAML in, strict frozen settings out; every mistake of a file is reported at once.

Here live the errors that a user can mend (`UserError` and its kinds), the YAML reader that remembers lines, and the
check of a document against a pydantic model. What the settings *are* is said where they are used: `device/card.py`,
`recipe/settings.py`; how a place of a document finds its field: `fields.py`.

A message reads: ``file:line: place: what was found, what is allowed; nearest name``.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic_core import ErrorDetails

from hwsim.fields import Place, dotted, fields, model_at, real_place


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints it without a traceback and exits with code 2."""


class ConfigError(UserError):
    """One or more mistakes in settings; `messages` holds one line each, `places` where `check` found them."""

    def __init__(self, messages: list[str], places: Sequence[Place] = ()):
        self.messages, self.places = messages, list(places)
        super().__init__("\n".join(messages))


class CardError(UserError):
    """A device card that is missing, incomplete, or asked for something that it does not cover."""


class PlaceError(UserError):
    """Stores that cannot be put under a network's layers."""


class DataError(UserError):
    """A data set that is missing, truncated or not what it should be."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used."""


class Settings(pydantic.BaseModel):
    """Base of every settings model: unknown keys are errors, types are not coerced, numbers are finite, all frozen."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Document:
    """A YAML document as plain data, and for its places where each value came from (``file:line`` or an option)."""

    def __init__(self, data: Any, source: str, origins: dict[Place, str] | None = None, twice: Sequence[str] = ()):
        self.data, self.source, self.origins = data, source, origins or {}
        self.twice = list(twice)
        """A message for every key that is written twice in one mapping; `check` reports them with all else."""

    def where(self, place: Place) -> str:
        """Where a place, or the nearest enclosing place that is known, came from."""
        for end in range(len(place), -1, -1):
            if origin := self.origins.get(place[:end]):
                return origin
        return self.source

    def set(self, place: Place, value: Any, origin: str) -> None:
        """Put a value at a place, making missing mappings on the way; `origin` is named in messages about it.

        Inside something that is no mapping nothing is set: `check` has that to report.
        """
        here = self.data
        for i, step in enumerate(place):
            if isinstance(here, dict):
                here.setdefault(step, {})
            elif not (isinstance(here, list) and isinstance(step, int) and step < len(here)):
                return
            if i < len(place) - 1:
                here = here[step]
        here[place[-1]] = value
        for known in [p for p in self.origins if p[: len(place)] == place]:
            del self.origins[known]
        self.origins[place] = origin


# YAML 1.2's core schema: only true and false are booleans (so that `on:` stays a word), 1e-3 is a number, 010 is ten.
class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"_|\.(?=[in])", "", node.value, flags=re.IGNORECASE)),
)


def parse_yaml(text: str, source: str) -> Document:
    """Read one YAML document. `source` names it in messages: a file, or an option (``--set …``), which has no lines.

    Raises `ConfigError` if it is not valid YAML.
    """
    origins: dict[Place, str] = {}
    twice: list[str] = []

    def at(mark: yaml.Mark | None) -> str:
        return source if mark is None or source.startswith("--") else f"{source}:{mark.line + 1}"

    def build(node: yaml.Node, place: Place, above: tuple[yaml.Node, ...] = ()) -> Any:
        origins.setdefault(place, at(node.start_mark))
        if node in above:
            raise ConfigError([f"{at(node.start_mark)}: not valid YAML: this anchor contains itself"])
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*place, i), above) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            out: dict = {}
            for key_node, child in node.value:
                here = at(key_node.start_mark)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise ConfigError([f"{here}: not valid here: a key must be a word or a number"])
                key = scalar(key_node)
                if key in out:
                    twice.append(f"{here}: {dotted((*place, key))}: this key is written twice; keep one of them")
                origins[(*place, key)] = here
                out[key] = build(child, (*place, key), above)
            return out
        return scalar(node)

    def scalar(node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node)
        except ValueError:
            kind = node.tag.rpartition(":")[2]
            raise ConfigError([f"{at(node.start_mark)}: not valid YAML: {node.value} is no {kind}"]) from None

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else build(node, ())
    except yaml.YAMLError as e:
        problem = getattr(e, "problem", None) or getattr(e, "reason", None) or e
        raise ConfigError([f"{at(getattr(e, 'problem_mark', None))}: not valid YAML: {problem}"]) from None
    return Document(data, source, origins, twice)


def read_yaml(path: Path, source: str | None = None) -> Document:
    """`parse_yaml` of a file; `source` is what messages call it, without one its path."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), source or str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError([f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}"]) from None


def nearest(word: str, allowed) -> str:
    """``; did you mean 'epochs'?`` or, where nothing is near, the allowed names.

    >>> nearest("epoch", ["epochs", "optim"])
    "; did you mean 'epochs'?"
    >>> nearest("zebra", ["epochs", "optim"])
    '; there is epochs, optim'
    """
    names = [str(a) for a in allowed]
    match = difflib.get_close_matches(str(word), names, 1, 0.6)
    return f"; did you mean '{match[0]}'?" if match else f"; there is {', '.join(names)}" if names else ""


def check(model: type[pydantic.BaseModel], document: Document) -> Any:
    """The document as an instance of `model`, or a `ConfigError` with one line for every mistake in it."""
    try:
        value, errors = model.model_validate(document.data), []
    except pydantic.ValidationError as e:
        value, errors = None, e.errors()
    if not errors and not document.twice:
        return value
    places = [_place(document, error) for error in errors]
    lines = [_line(model, document, *each) for each in zip(places, errors, strict=True)]
    raise ConfigError([*document.twice, *lines], places)


def _place(document: Document, error: ErrorDetails) -> Place:
    place = tuple(p for p in error["loc"] if p != "[key]" and not str(p).startswith("function-"))
    place = real_place(document.data, place)
    return (*place, "do") if error["type"].startswith("union_tag") else place


def _line(model: type[pydantic.BaseModel], document: Document, place: Place, error: ErrorDetails) -> str:
    kind, found, about = error["type"], error["input"], error.get("ctx", {})
    owner = model_at(model, document.data, place[:-1])
    at = f"{document.where(place)}: {dotted(place) or 'document'}: "
    if kind == "extra_forbidden":
        return at + f"there is no '{place[-1]}' here{nearest(str(place[-1]), fields(owner) if owner else ())}"
    if kind == "missing":
        return at + "this is missing and has no default"
    if kind == "value_error":
        return at + str(about["error"])
    if kind == "invalid_key" or "[key]" in error["loc"]:
        return at + f"a key here must be text, found {_shown(place[-1])}; put it in quotes"
    if kind == "union_tag_not_found":
        return at + "this is missing; it says what the stage does: train, load, evaluate, account"
    if kind == "union_tag_invalid":
        return at + _choice(about["tag"], about["expected_tags"])
    if kind in ("literal_error", "enum"):
        return at + _choice(found, about["expected"])
    if kind.endswith("_type") or kind.endswith("_parsing"):
        hint = "; take the quotes off" if isinstance(found, str) and _NUMBER.match(found) else ""
        return at + f"expected {_expected(error)}, found {_shown(found)}{hint}"
    bounds = {"greater_than": "above {gt}", "greater_than_equal": "at least {ge}", "less_than": "below {lt}",
              "less_than_equal": "at most {le}", "finite_number": "finite"}  # fmt: skip
    if kind in bounds:
        bound = {k: f"{v:g}" if isinstance(v, float) else v for k, v in about.items()}
        return at + f"found {_shown(found)}; it must be {bounds[kind].format(**bound)}"
    if kind == "too_short":
        return at + f"found {_shown(found)}; at least {about['min_length']} must be given"
    return at + f"found {_shown(found)}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _choice(found: Any, expected: str) -> str:
    allowed = [a.strip("' ") for a in re.split(r", | or ", expected)]
    return f"found {_shown(found)}{nearest(str(found), allowed)} (allowed: {', '.join(allowed)})"


def _expected(error: ErrorDetails) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "string": "text",
        "bool": "true or false",
        "dict": "a mapping",
        "list": "a list",
        "model": "a mapping",
        "model_attributes": "a mapping",
        "none_required": "nothing (null)",
    }
    return words.get(error["type"].removesuffix("_type").removesuffix("_parsing"), error["msg"])


def _shown(value: Any) -> str:
    kind = {str: "text", bool: "", int: "", float: "", list: "the list", dict: "the mapping", type(None): ""}
    text = json.dumps(value, default=str)
    return f"{kind.get(type(value), '')} {text if len(text) <= 80 else text[:77] + '...'}".strip()


def shipped(folder: str) -> Path:
    """The folder `devices` or `recipes`, in a wheel, an editable install or a bare checkout."""
    installed = Path(__file__).parent / folder
    return installed if installed.is_dir() else Path(__file__).parent.parent / folder


def content_hash(value: Any) -> str:
    """Sixteen hexadecimal digits that name a JSON-like value by its content.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
