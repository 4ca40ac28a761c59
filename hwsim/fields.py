"""Which field of the settings models governs a place of a document: what `--set`, options and messages look up.

A place is a path of keys and list positions, ``stages.vat.device.on.0`` in text.
"""

from typing import Any

import pydantic
from pydantic.fields import FieldInfo

Place = tuple[str | int, ...]


def dotted(place: Place) -> str:
    """A place as text: ``stages.vat.device.on.0``."""
    return ".".join(str(p) for p in place)


def place_of(text: Any) -> Place:
    """``stages.vat.on.0`` as steps.

    >>> place_of("device.on.0")
    ('device', 'on', 0)
    """
    return tuple(int(p) if p.isdecimal() else p for p in str(text).split("."))


def fields(model: type[pydantic.BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a settings model by the names that files use."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_at(model: type[pydantic.BaseModel], data: Any, place: Place) -> FieldInfo | None:
    """The field that governs a place of a document, or None where there is none."""
    owner = model_at(model, data, place[:-1])
    return None if owner is None else fields(owner).get(str(place[-1]))


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
            inner = [m.__args__[-1] for m in members(annotation) if getattr(m, "__args__", ())]
            if not inner:
                return None
            annotation = inner[0]
        data = value_at(data, (step,))
    return _model(annotation, data)


def value_at(data: Any, place: Place) -> Any:
    """The value at a place of plain data, or None where there is none."""
    for step in place:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def real_place(data: Any, place: Place) -> Place:
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


def members(annotation: Any) -> list:
    """A union's members (seen through Annotated), or the annotation alone."""
    origin = getattr(annotation, "__origin__", None)
    if origin is not None and hasattr(annotation, "__metadata__"):
        return members(origin)
    args = getattr(annotation, "__args__", ())
    if args and (str(origin) == "typing.Union" or type(annotation).__name__ == "UnionType"):
        return [m for a in args for m in members(a)]
    return [annotation]


def _model(annotation: Any, data: Any) -> type[pydantic.BaseModel] | None:
    models = [m for m in members(annotation) if isinstance(m, type) and issubclass(m, pydantic.BaseModel)]
    if len(models) > 1:  # a union of stages, told apart by their verb
        verb = data.get("do") if isinstance(data, dict) else None
        models = [m for m in models if m.model_fields["do"].default == verb]
    return models[0] if models else None
