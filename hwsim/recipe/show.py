"""A resolved recipe as YAML: every value with where it came from, and runnable again as it stands."""

from typing import Any

import yaml

from hwsim.config import ConfigError, Document, parse_yaml
from hwsim.recipe.resolve import Resolved


def shown(resolved: Resolved) -> str:
    """The recipe file that does the same; a comment behind each value names its origin."""
    recipe = resolved.recipe
    data = recipe.model_dump(by_alias=True, exclude={"net", "data", "device"} if recipe.is_integer else None)
    head = (
        f"# hwsim recipe {resolved.name}, resolved. Run it again: save this as my.yaml, then hwsim recipe ./my.yaml\n"
    )
    return head + "".join(_lines(data, (), resolved.document, 0))


def _lines(data: dict, place: tuple, document: Document, depth: int) -> list[str]:
    out = []
    for key, value in data.items():
        here = (*place, key)
        pad = "  " * depth + _flow(key) + ":"
        if isinstance(value, dict) and value:
            out += [pad + "\n", *_lines(value, here, document, depth + 1)]
        elif not (value is None and here[0] == "options"):
            out.append(f"{pad} {_flow(value)}{_origin(here, document)}\n")
    return out


def _origin(place: tuple, document: Document) -> str:
    if place[0] in ("title", "time", "expected", "options", "smoke", "faithful") or place[-1] == "do":
        return ""
    origin = document.origins.get(place) or _enclosing(place, document) or "default"
    return f"  # {' '.join(origin.split())}"


def _enclosing(place: tuple, document: Document) -> str | None:
    """A value that came in with a whole block (a stage set by --from, say) has its block's origin."""
    for end in range(len(place) - 1, 0, -1):
        origin = document.origins.get(place[:end], "")
        if origin.startswith("--"):
            return origin
    return None


def _flow(value: Any) -> str:
    """A value on one line, as our own reader of YAML reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if not isinstance(value, str):
        return yaml.safe_dump(value).removesuffix("...\n").strip()
    try:
        is_plain = parse_yaml(f"[{value}]", "").data == [value]
        is_plain = is_plain and parse_yaml(f"{value}: {value}", "").data == {value: value}
    except ConfigError:
        is_plain = False
    return value if is_plain else '"' + "".join(map(_escaped, value)) + '"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
