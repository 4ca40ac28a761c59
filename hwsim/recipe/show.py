"""A resolved recipe as YAML: every value with where it came from, and runnable again as it stands."""

from typing import Any

import yaml

from hwsim.config import Document
from hwsim.recipe.resolve import Resolved


def shown(resolved: Resolved) -> str:
    """The recipe file that does the same; a comment behind each value names its origin."""
    data = resolved.recipe.model_dump(by_alias=True)
    head = (
        f"# hwsim recipe {resolved.name}, resolved. Run it again: save this as my.yaml, then hwsim recipe ./my.yaml\n"
    )
    return head + "".join(_lines(data, (), resolved.document, 0))


def _lines(data: dict, place: tuple, document: Document, depth: int) -> list[str]:
    out = []
    for key, value in data.items():
        here = (*place, key)
        pad = "  " * depth + _scalar(key) + ":"
        if isinstance(value, dict) and value and here[0] not in ("smoke", "faithful"):
            out += [pad + "\n", *_lines(value, here, document, depth + 1)]
        else:
            out.append(f"{pad} {_scalar(value)}{_origin(here, document)}\n")
    return out


def _origin(place: tuple, document: Document) -> str:
    if place[0] in ("title", "time", "expected", "options", "smoke", "faithful") or place[-1] == "do":
        return ""
    return f"  # {document.origins.get(place) or _enclosing(place, document) or 'default'}"


def _enclosing(place: tuple, document: Document) -> str | None:
    """A value that came in with a whole block (a stage set by --from, say) has its block's origin."""
    for end in range(len(place) - 1, 0, -1):
        origin = document.origins.get(place[:end], "")
        if origin.startswith("--"):
            return origin
    return None


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("...").strip()
