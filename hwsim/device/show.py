"""What a card says, as plain tables for the screen."""

from hwsim.config import CardError, UserError
from hwsim.device.card import Card, device_table
from hwsim.device.cited import Cited
from hwsim.device.price import Price, StaticPower


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
    if card.state is not None:
        rows = [{"state": k, "bits": v} for k, v in card.state.bits.items()]
        out += [("states", rows), ("source", f"{card.state.source} ({card.state.evidence}). {card.state.note}".strip())]
    if card.prices:
        node = f"{card.node_nm:g} nm" if card.node_nm else "unknown node"
        out.append((f"prices of {', '.join(card.covers)} ({node})", card.includes))
        out.append(("dynamic energy", [_cited(action, _law(p), p) for action, p in card.prices.items()]))
    if card.crossbar:
        own = {k: v for k, v in card.crossbar.model_dump().items() if k not in Cited.model_fields}
        rows = [{"setting": k, "value": v} for k, v in own.items() if v is not None]
        cited = f"{card.crossbar.source} ({card.crossbar.evidence}). {card.crossbar.note}".strip()
        out += [("arrays", rows), ("source of the arrays", cited)]
    if card.static:
        out.append(("static power", [_cited(where, _power(p), p) for where, p in card.static.items()]))
    return out


def _cited(name: str, price: str, cited: Cited) -> dict:
    said = {"evidence": cited.evidence, "source": cited.source, "note": cited.note}
    return {"action": name, "price": price, **said}


def _law(p: Price) -> str:
    """A price in words, with its unit."""
    if p.pJ is not None:
        return f"{p.pJ:g} pJ"
    if p.pJ_per_bit is not None:
        return f"{p.pJ_per_bit:g} pJ a bit"
    if p.pJ_by_width is not None:
        return "pJ by width in bits: " + ", ".join(f"{b}: {pJ:g}" for b, pJ in p.pJ_by_width.items())
    if p.pJ_by_bits is not None:
        return "pJ by bits: " + ", ".join(f"{b}: {pJ:g}" for b, pJ in p.pJ_by_bits.items())
    if p.by_capacity is not None:
        table = ", ".join(f"{kib:g}: {pJ:g}" for kib, pJ in p.by_capacity.pJ_by_kib.items())
        return f"pJ an access of {p.by_capacity.word_bits} bits, by KiB: {table}"
    rates = ", ".join(f"{bits}: {p.adc_survey.at(bits):.3g}" for bits in (4, 6, 8, 10))
    return f"pJ by resolution at {p.adc_survey.samples_per_s:g} samples a second: {rates}"


def _power(p: StaticPower) -> str:
    if p.mW is not None:
        return f"{p.mW:g} mW"
    if p.nW_per_bit is not None:
        return f"{p.nW_per_bit:g} nW a bit"
    return "mW of a macro, by KiB: " + ", ".join(f"{kib:g}: {mW:g}" for kib, mW in p.mW_by_kib.items())


def _spreads(entry) -> str | float:
    return entry if isinstance(entry, float) else ", ".join(f"{row.sigma_ln:g}" for row in entry)


def _edge(value: float | None, missing: str = "…") -> float | str:
    return missing if value is None else value
