"""What a card says, as plain tables for the screen."""

from hwsim.config import CardError, UserError
from hwsim.device.card import Card, device_table


def described(
    card: Card, bits: int | None, quantizer: str | None, variant: str | None
) -> list[tuple[str, list[dict] | str]]:
    """(title, rows or text) of everything that a card says.

    Without `bits` a multi-bit card shows which bits it covers; with them every level with its decision boundaries and
    spread. Raises `CardError` for bits that the card does not cover.
    """
    out: list[tuple[str, list[dict] | str]] = [(card.name, card.title)]
    weights = card.weights
    asked = {"--bits": bits, "--quantizer": quantizer, "--variant": variant}
    given = [f"{o} {value}" for o, value in asked.items() if value is not None]
    if given and (weights is None or weights.cell == "ideal"):
        holds = "no weights, only prices" if weights is None else "the weights themselves"
        raise CardError(f"{given[0]}: card {card.name} holds {holds}; leave it out")
    if weights is not None:
        out.append(("source", f"{weights.source} ({weights.evidence}). {weights.note}".strip()))
        if weights.cell == "rram" and bits is None:
            if given:
                raise CardError(f"{given[0]}: needs the bits of a weight too; give --bits B")
            tables = {"": weights.sigma_ln_by_bits} if weights.variants is None else {
                f" of variant {n}": v.rows_by_bits for n, v in weights.variants.items()
            }  # fmt: skip
            for which, table in tables.items():
                rows = [{"bits": b, "sigma_ln": _spreads(table[b])} for b in table]
                out.append((f"spread of ln(factor){which}; --bits B shows the levels", rows))
        elif weights.cell == "ideal":
            out.append(("levels", "every weight is held as it is, without spread"))
        else:
            try:
                rows = device_table(card, bits, quantizer=quantizer, variant=variant)
            except UserError as e:
                text = str(e).replace("device.weights.", "--").replace("set it to null", "leave it out")
                raise CardError(text) from None
            unit = rows[0]["boundary_unit"]
            shown = [
                {"level": r["level"], "from": _edge(r["lower"]), "to": _edge(r["upper"]), "sigma_ln":
                _edge(r["sigma_ln"], ""),
                 "note": r["note"]} for r in rows
            ]  # fmt: skip
            if not any(r["note"] for r in shown):
                shown = [{k: v for k, v in r.items() if k != "note"} for r in shown]
            out.append((f"levels in units of full conductance; boundaries in {unit}", shown))
    if card.prices:
        rows = [{"action": a, "pJ": p.pJ, "evidence": p.evidence, "source": p.source} for a, p in card.prices.items()]
        out.append(("prices", rows))
    return out


def _spreads(entry) -> str | float:
    return entry if isinstance(entry, float) else ", ".join(f"{row.sigma_ln:g}" for row in entry)


def _edge(value: float | None, missing: str = "…") -> float | str:
    return missing if value is None else value
