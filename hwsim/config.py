"""YAML in, strict frozen settings out; every mistake of a file is reported at once.

Here live the errors that a user can mend (`UserError` and its kinds), the YAML reader that remembers lines, and the
check of a document against a pydantic model. What the settings *are* is said where they are used: `device/card.py`,
`recipe/settings.py`.

A message reads: ``file:line: place: what was found, what is allowed; nearest name``.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic_core import ErrorDetails


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints it without a traceback and exits with code 2."""


class ConfigError(UserError):
    """One or more mistakes in settings; `messages` holds one line each."""

    def __init__(self, messages: list[str]):
        self.messages = messages
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
    """Base of every settings model: unknown keys are errors, types are not coerced, values cannot change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Place = tuple[str | int, ...]


class Document:
    """A YAML document as plain data, and for its places where each value came from (``file:line`` or an option)."""

    def __init__(self, data: Any, source: str, origins: dict[Place, str] | None = None):
        self.data, self.source, self.origins = data, source, origins or {}

    def where(self, place: Place) -> str:
        """Where a place, or the nearest enclosing place that is known, came from."""
        for end in range(len(place), -1, -1):
            if origin := self.origins.get(place[:end]):
                return origin
        return self.source

    def set(self, place: Place, value: Any, origin: str) -> None:
        """Put a value at a place, making the mappings on the way; `origin` is named in messages about it."""
        here = self.data
        for step in place[:-1]:
            if not isinstance(here.get(step), dict):
                here[step] = {}
            here = here[step]
        here[place[-1]] = value
        for known in [p for p in self.origins if p[: len(place)] == place]:
            del self.origins[known]
        self.origins[place] = origin


# YAML 1.2's core schema: only true and false are booleans (so that `on:` stays a word), and 1e-3 is a number.
class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Document:
    """Read one YAML document. `source` names it in messages.

    Raises `ConfigError` on a syntax error or a key that is written twice in one mapping.
    """
    origins: dict[Place, str] = {}
    twice: list[str] = []

    def build(node: yaml.Node, place: Place) -> Any:
        origins.setdefault(place, f"{source}:{node.start_mark.line + 1}")
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*place, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            out: dict = {}
            for key_node, child in node.value:
                key = loader.construct_object(key_node)
                here = f"{source}:{key_node.start_mark.line + 1}"
                if key in out:
                    twice.append(f"{here}: {dotted((*place, key))}: this key is written twice; keep one of them")
                origins[(*place, key)] = here
                out[key] = build(child, (*place, key))
            return out
        return loader.construct_object(node)

    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        data = None if node is None else build(node, ())
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError([f"{at}: not valid YAML: {getattr(e, 'problem', None) or e}"]) from None
    finally:
        loader.dispose()
    if twice:
        raise ConfigError(twice)
    return Document(data, source, origins)


def read_yaml(path: Path) -> Document:
    """`parse_yaml` of a file."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError([f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}"]) from None


def dotted(place: Place) -> str:
    """A place as text: ``stages.vat.device.on.0``."""
    return ".".join(str(p) for p in place)


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
        return model.model_validate(document.data)
    except pydantic.ValidationError as e:
        raise ConfigError([_line(model, document, error) for error in e.errors()]) from None


def _line(model: type[pydantic.BaseModel], document: Document, error: ErrorDetails) -> str:
    place = tuple(p for p in error["loc"] if not (isinstance(p, str) and p.startswith("function-")))
    kind, found = error["type"], error["input"]
    place = _real_place(document.data, place)
    owner = model_at(model, document.data, place[:-1])
    at = f"{document.where(place)}: {dotted(place) or 'document'}: "
    if kind == "extra_forbidden":
        return at + f"there is no '{place[-1]}' here{nearest(str(place[-1]), fields(owner) if owner else ())}"
    if kind == "missing":
        return at + "this is missing and has no default"
    if kind == "value_error":
        return at + str(error["ctx"]["error"])
    if kind.endswith("_type") or kind.endswith("_parsing"):
        hint = "; take the quotes off" if isinstance(found, str) and _NUMBER.match(found) else ""
        return at + f"expected {_expected(error)}, found {_shown(found)}{hint}"
    if kind in ("literal_error", "enum"):
        allowed = [a.strip("' ") for a in re.split(r", | or ", error["ctx"]["expected"])]
        return at + f"found {_shown(found)}{nearest(str(found), allowed)} (allowed: {', '.join(allowed)})"
    return at + f"found {_shown(found)}; {error['msg'][0].lower()}{error['msg'][1:]}"


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


def _real_place(data: Any, place: Place) -> Place:
    """Drop the steps that pydantic adds for unions (the names of their members) from a place."""
    out: list[str | int] = []
    for i, step in enumerate(place):
        in_list = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if in_list or (isinstance(data, dict) and step in data):
            data = data[step]
        elif i < len(place) - 1 or not isinstance(data, dict):
            continue
        out.append(step)
    return tuple(out)


def model_at(model: type[pydantic.BaseModel], data: Any, place: Place) -> type[pydantic.BaseModel] | None:
    """The settings model that governs a place of a document, or None. `data` tells which stage a mapping is."""
    annotation: Any = model
    for step in place:
        owner = _model(annotation, data)
        if owner is not None:
            if step not in fields(owner):
                return None
            annotation = fields(owner)[str(step)].annotation
        else:
            inner = [m.__args__[-1] for m in _members(annotation) if getattr(m, "__args__", ())]
            if not inner:
                return None
            annotation = inner[0]
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            data = None
    return _model(annotation, data)


def _model(annotation: Any, data: Any) -> type[pydantic.BaseModel] | None:
    models = [m for m in _members(annotation) if isinstance(m, type) and issubclass(m, pydantic.BaseModel)]
    if len(models) > 1:  # a union of stages, told apart by their verb
        verb = data.get("do") if isinstance(data, dict) else None
        models = [m for m in models if m.model_fields["do"].default == verb]
    return models[0] if models else None


def fields(model: type[pydantic.BaseModel]) -> dict[str, pydantic.fields.FieldInfo]:
    """The fields of a settings model by the names that files use."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _members(annotation: Any) -> list:
    """A union's members (seen through Annotated), or the annotation alone."""
    origin = getattr(annotation, "__origin__", None)
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _members(origin)
    args = getattr(annotation, "__args__", ())
    if args and (str(origin) == "typing.Union" or type(annotation).__name__ == "UnionType"):
        return [m for a in args for m in _members(a)]
    return [annotation]


def field_at(model: type[pydantic.BaseModel], data: Any, place: Place) -> pydantic.fields.FieldInfo | None:
    """The field that governs a place of a document, or None where there is none."""
    owner = model_at(model, data, place[:-1])
    return None if owner is None else fields(owner).get(str(place[-1]))


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
