"""Device cards: YAML files that say how a weight is held and what each action costs, every number with its source.

A card is looked up by name among the shipped ones (folder `devices/`) or read from a user's path. `card_store` turns a
card and a recipe's `WeightSettings` into a store, and refuses what the card does not cover; `device_table` shows a
card's levels. What a card may say is in `schema.py`. Reading a card does not import torch.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hwsim.config import CardError, ConfigError, Settings, check, nearest, parse_yaml, shipped
from hwsim.device.schema import Card, Price

if TYPE_CHECKING:
    from hwsim.device.store import Store

__all__ = ["Card", "Price", "WeightSettings", "card_names", "card_store", "device_table", "load_card", "summary"]


class WeightSettings(Settings):
    """How a recipe wants a card's cells to be used."""

    bits: int | None = Field(default=None, ge=1)
    """Bits held by one RRAM weight; null for ternary and ideal cells."""
    quantizer: Literal["dorefa", "xnor", "ternary", "binary"] | None = None
    """Rounding of the master weight; null is the card's own. xnor is the reference's fixed grid."""
    clamp: Literal["none", "magnitude", "signed"] = "none"
    """Limit of the spread: none, magnitude (within the on/off ratio) or signed (the reference's, trap B2)."""
    on_off_ratio: float = Field(default=350.0, gt=1)
    """Largest over smallest conductance, used by clamp magnitude; 350 stands commented out in the reference."""
    variant: str | None = None
    """Which of the card's tables of spread by level; null is the card's own choice."""


def card_names() -> list[str]:
    """The names of the shipped cards."""
    return sorted(f.stem for f in shipped("devices").glob("*.yaml"))


def load_card(name_or_path: str | Path) -> Card:
    """A shipped card by name, or a user's card by path (anything with a folder in it or ending in .yaml or .yml).

    Raises `CardError` when there is none, and `ConfigError` with one line for every mistake in the file.
    """
    text = str(name_or_path)
    path = Path(text)
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or path.name != text:
        file = path
        if not path.is_file():
            raise CardError(f"device card {path}: there is no such file; shipped cards: {', '.join(card_names())}")
    else:
        if text not in card_names():
            raise CardError(f"device card '{text}': there is no such card{nearest(text, card_names())}")
        file = shipped("devices") / f"{text}.yaml"
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CardError(f"device card {file}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    card = check(Card, parse_yaml(content, str(path) if file is path else f"devices/{text}.yaml"))
    card._name = path.stem if file is path else text
    return card


def summary() -> list[dict[str, str]]:
    """One row for every shipped card: name, title, which blocks it has, sources."""
    rows = []
    for card in map(load_card, card_names()):
        blocks = {
            "weights": [card.weights] if card.weights else [], "state": [card.state] if card.state else [],
            "prices": list((card.prices or {}).values()),
        }  # fmt: skip
        sources = dict.fromkeys(b.source for cited in blocks.values() for b in cited)
        has = ", ".join(k for k, cited in blocks.items() if cited)
        rows.append({"name": card.name, "title": card.title, "blocks": has, "source": "; ".join(sources)})
    return rows


def card_store(card: Card, settings: WeightSettings, scale: float = 1.0) -> "Store":
    """The store that a card and a recipe's settings describe; sigmas are the card's times the scale.

    scale: multiplies every sigma on the card; 0 is no spread (in the reference 0 meant 1, trap B12).

    Raises `CardError` when the card does not cover the request or the request contradicts itself, `ConfigError` with
    one line each when there are several such problems.
    """
    from hwsim.device.store import Ideal, Rram, Ternary  # torch

    problems = _problems(card, settings)
    if not (math.isfinite(scale) and scale >= 0):
        problems.append(f"scale: {scale} is not a number of at least 0")
    if problems:
        raise CardError(problems[0]) if len(problems) == 1 else ConfigError(problems)
    weights = card.weights
    use = {"clamp": settings.clamp, "on_off_ratio": settings.on_off_ratio}
    if weights.cell == "ideal":
        return Ideal()
    if weights.cell == "ternary":
        return Ternary(sigma=weights.sigma_ln * scale, **use)
    quantizer = settings.quantizer or weights.quantizer
    if weights.variants is None:
        return Rram(settings.bits, quantizer, sigma=weights.sigma_ln_by_bits[settings.bits] * scale, **use)
    table = weights.variants[settings.variant or weights.default_variant].rows_by_bits[settings.bits]
    rows = tuple((r.level_from, r.level_to, r.sigma_ln * scale) for r in table) if scale else None
    return Rram(settings.bits, quantizer, rows=rows, **use)


def device_table(
    card: Card, bits: int | None = None, *, quantizer: str | None = None, variant: str | None = None
) -> list[dict]:
    """One row for every level a card's cells may be asked to hold; no rows for ideal cells.

    level: in units of full conductance.   lower, upper: the decision boundaries around it (None at the ends), in the
    unit `boundary_unit`.   sigma_ln: spread there, None if no row or more than one covers it (`note` says which).
    row_from, row_to: limits of |level| for that sigma.   source, evidence: of sigma.

    Raises what `card_store` raises.
    """
    from hwsim.device.quantize import BOUNDARY_UNITS, decision_boundaries, levels  # torch
    from hwsim.device.variation import rows_holding

    # Not validated, so that card_store says in the card's words what is wrong.
    store = card_store(card, WeightSettings.model_construct(bits=bits, quantizer=quantizer, variant=variant))
    weights = card.weights
    if weights.cell == "ideal":
        return []
    quantizer = quantizer or weights.quantizer
    cited = weights if weights.variants is None else weights.variants[variant or weights.default_variant]
    edges = [None, *decision_boundaries(quantizer, bits), None]
    rows = []
    for i, level in enumerate(levels(quantizer, bits)):
        held = rows_holding(level, getattr(store, "rows", None) or [(None, None, store.sigma)])
        low, high, sigma = held[0] if len(held) == 1 else (None, None, None)
        each = " and ".join(f"{s:g} in [{a or 0:g}, {1 if b is None else b:g}]" for a, b, s in held)
        note = f"held {len(held)} times: sigma {each}" if held else "dropped: held as 0"
        rows.append({
            "level": level, "lower": edges[i], "upper": edges[i + 1], "boundary_unit": BOUNDARY_UNITS[quantizer],
            "sigma_ln": sigma, "row_from": low, "row_to": high, "source": cited.source, "evidence": cited.evidence,
            "note": note if len(held) != 1 else "" if level else "0 stays 0: the spread is a factor",
        })  # fmt: skip
    return rows


def _problems(card: Card, settings: WeightSettings) -> list[str]:
    """One line for everything in the settings that the card does not cover."""
    at, weights, bits = "device.weights", card.weights, settings.bits
    if weights is None:
        return [f"device.card: {card.name} says nothing about weights, only prices; choose a card that has weights"]
    if weights.cell != "rram":
        own = {"bits": None, "variant": None, "quantizer": weights.quantizer}
        what = {"ideal": "holds the weight itself", "ternary": "holds ternary weights"}[weights.cell]
        return [
            f"{at}.{field}: {getattr(settings, field)} does not go with card {card.name}, which {what}; set it to null"
            for field, value in own.items()
            if getattr(settings, field) not in (None, value)
        ]
    out = []
    quantizer = settings.quantizer or weights.quantizer
    if quantizer not in ("dorefa", "xnor", "binary"):
        out.append(
            f"{at}.quantizer: {quantizer} does not go with card {card.name}, which holds bits; use dorefa or xnor"
        )
    if quantizer == "binary" and bits != 1:
        out.append(f"{at}.bits: binary weights have 1 bit, found {bits}; use 1, or another quantizer")
    table = weights.sigma_ln_by_bits
    if weights.variants is None and settings.variant is not None:
        out.append(f"{at}.variant: card {card.name} has no variants, found '{settings.variant}'; set it to null")
    if weights.variants is not None:
        variant = settings.variant or weights.default_variant
        if variant not in weights.variants:
            there = nearest(variant, weights.variants)
            return [*out, f"{at}.variant: card {card.name} has no variant '{variant}'{there}"]
        table = weights.variants[variant].rows_by_bits
        if quantizer == "xnor":
            out.append(
                f"{at}.quantizer: card {card.name} gives sigma by level on the grid (2k - n)/n, n = 2^bits - 1; "
                "levels of xnor, k/2^(bits - 1), lie between rows and would be dropped or doubled (trap B3); use dorefa"
            )
        if settings.clamp != "none":
            out.append(f"{at}.clamp: {settings.clamp} does not go with sigma by level (card {card.name}); use none")
    if bits not in table:
        found = "nothing is given; it must be" if bits is None else f"{bits} is not"
        return [
            *out,
            f"{at}.bits: {found} one of {', '.join(map(str, table))} (card {card.name} gives sigma for these)",
        ]
    if weights.variants is not None and not weights.variants[variant].defect:
        out += _uncovered(card, variant, bits)
    return out


def _uncovered(card: Card, variant: str, bits: int) -> list[str]:
    """Levels of the dorefa grid that a variant's rows skip or name twice: held as 0 or doubled (trap B3)."""
    from hwsim.device.quantize import levels  # torch
    from hwsim.device.variation import rows_holding

    rows = [(r.level_from, r.level_to, r.sigma_ln) for r in card.weights.variants[variant].rows_by_bits[bits]]
    times = {level: len(rows_holding(level, rows)) for level in levels("dorefa", bits) if level > 0}
    return [
        f"card {card.name}: weights.variants.{variant}.rows_by_bits.{bits}: level {level:.4g} lies in {n} rows; "
        "it must lie in exactly one, or the variant must state its defect"
        for level, n in times.items()
        if n != 1
    ]
