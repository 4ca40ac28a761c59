"""energy = counts x prices: one row a layer, phase, component and action, per image.

Which work is counted depends on what the cards cover: arithmetic (`work.py`), memory accesses (`memory.py`), crossbars
(`crossbar.py`), passes over organized memories, or operations as neuromorphic chips count them. Layers on crossbars are
counted there where a card has crossbars, else as arithmetic. What no card covers is not in the table. The ordinary
network of the same shape stands beside it (phase ann_inference) where a card can price it.
"""

from collections.abc import Iterator

from hwsim.config import CardError
from hwsim.device.pricelist import Prices
from hwsim.report import crossbar, local, memory, organization, work
from hwsim.report.action import Action, Definitions
from hwsim.report.trace import Counts, Held, LayerCounts

COLUMNS = (
    "run_id", "layer", "phase", "component", "action", "count", "unit_energy_pj", "energy_pj", "share", "weight_bits",
    "input_bits", "timesteps", "samples", "input_density", "weight_density", "card", "card_hash", "source", "evidence",
)  # fmt: skip
SYNAPTIC = ("synapse", "rram", "sram")
"""Components of synaptic arithmetic: weights in one place, or in one of a hybrid layer's two."""


def energy_rows(counts: Counts, prices: Prices, definitions: Definitions, run_id: str) -> list[dict]:
    """Rows of energy.csv. TOTAL rows are the sums of a phase's rows, by component and of all.

    Raises `CardError` that names card, action and layers if an action that occurs has no price.
    """
    found = list(actions(counts, prices, definitions))
    absent: dict[str, list[str]] = {}
    unfit: dict[str, list[str]] = {}
    for a in found:
        for element, bits in a.parts:
            try:
                if prices.of(element, bits, a.kib) is None:
                    absent.setdefault(element, []).append(a.layer)
            except CardError as e:
                unfit.setdefault(str(e), []).append(a.layer)
    if absent or unfit:
        lines = [prices.missing(element, layers) for element, layers in absent.items()]
        lines += [f"{why} (needed by {', '.join(dict.fromkeys(layers))})" for why, layers in unfit.items()]
        raise CardError("\n".join(lines))
    rows = [_row(a, prices) for a in found]
    rows += static_rows(counts, prices, definitions)
    out = []
    for phase in dict.fromkeys(r["phase"] for r in rows):
        part = [r for r in rows if r["phase"] == phase]
        total = sum(r["energy_pj"] for r in part)
        for r in (*part, *_totals(part, prices)):
            r["share"] = r["energy_pj"] / total if total else 0.0
            here = {"run_id": run_id, "samples": counts.images, "card_hash": prices.hash, **r}
            out.append({c: here.get(c, "") for c in COLUMNS})
    return out


def unpriced(prices: Prices, definitions: Definitions) -> list[str]:
    """What is missing whatever the network does: a message for each price that the cards' own `covers` demand."""
    needs = {
        "synapse": ("add", "mult"), "neuron_arithmetic": ("add", "mult"), "synop": ("synop",),
        "neuron": ("neuron_update",), "memory": ("memory_read", "memory_write"),
    }  # fmt: skip
    wanted = {}
    for component in sorted(prices.covers & set(needs)):
        for element in needs[component]:
            full = f"{element}_{definitions.arithmetic}" if element in ("add", "mult") else element
            wanted.setdefault(full, []).append(f"layers ({component})")
    return [prices.missing(e, where) for e, where in wanted.items() if prices.of(e, 8, 1.0) is None]


def actions(counts: Counts, prices: Prices, definitions: Definitions) -> Iterator[Action]:
    """Everything that the cards cover: the network's own work, learning if the rule says so, the ordinary network.

    Raises `CardError` if the rule is one of learning and the cards price inference only, `ConfigError` for a rule by
    which the network cannot learn.
    """
    local.check_rule(counts, definitions)
    covers, images = prices.covers, counts.images
    learns = definitions.rule != "inference"
    if learns and not covers & {"synapse", "memory", "organization"}:
        raise CardError(
            f"card {prices.name}: prices inference, not learning ({definitions.rule}); take a card that covers "
            "synapse, memory or organization, or complete it with one, as --card A+B"
        )
    phase = "forward" if learns else "inference"
    for name, layer in counts.layers.items():
        for held in layer.held:
            yield from _on_an_array(name, layer, held, prices, definitions, images, phase)
        if "neuron" in covers:
            yield from work.update_actions(name, layer, phase)
        elif "neuron_arithmetic" in covers:
            yield from work.neuron_actions(name, layer, definitions, images, phase)
        if "memory" in covers:
            yield from memory.state_actions(name, layer, definitions, images, phase)
    if learns:
        for name, layer in counts.layers.items():
            learning = {"is_first": name in counts.first, "classes": counts.classes}
            if covers & {"synapse", "crossbar"}:
                for a in work.learning_actions(name, layer, definitions, images, **learning):
                    if a.component != "neuron_arithmetic" or a.component in covers:
                        yield a
            if "memory" in covers:
                yield from memory.learning_actions(name, layer, definitions, images, **learning)
    for name in counts.one_member:
        layer = counts.layers[name]
        if layer.readout and name != counts.one_member[-1]:
            continue  # an ordinary network has one readout
        on_crossbar = _on_crossbar(layer.held[0], prices, definitions)
        if on_crossbar:
            yield from crossbar.ann_actions(name, layer, layer.held[0], prices.crossbar)
        for a in work.ann_actions(name, layer, definitions):
            if a.component in covers and not (on_crossbar and a.component == "synapse"):
                yield a
        if "memory" in covers:
            yield from memory.ann_actions(name, layer, definitions, in_memory=not on_crossbar)


def _on_an_array(
    name: str, layer: LayerCounts, held: Held, prices: Prices, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """What the inputs of a layer do to one of its arrays."""
    covers = prices.covers
    if _on_crossbar(held, prices, definitions):
        yield from crossbar.crossbar_actions(name, layer, held, prices.crossbar, definitions, images, phase)
        return
    if "synop" in covers and "synapse" not in covers:
        yield from work.synop_actions(name, layer, held, definitions, images, phase)
    elif covers & {"synapse", "crossbar"}:  # beside a crossbar, digital layers occur and need a price
        yield from work.synapse_actions(name, layer, held, definitions, images, phase)
    if "memory" in covers:
        yield from memory.weight_actions(name, layer, held, definitions, images, phase)
    if "organization" in covers:
        yield from organization.organization_actions(name, layer, held, definitions, phase)


def _on_crossbar(held: Held, prices: Prices, definitions: Definitions) -> bool:
    return "crossbar" in prices.covers and (held.cells or (definitions.map_all and held.component != "sram"))


def static_rows(counts: Counts, prices: Prices, definitions: Definitions) -> list[dict]:
    """Energy of the power that flows all the time: power x T x the duration of a step.

    The duration is the definitions', else the card's; without one there are no rows. Memories: all variables of a
    layer (`footprint.py`) but weights on crossbars. Phase static, so that it is never added to dynamic energy. Leakage
    is not scaled to another node.
    """
    step_us = definitions.step_time_us or prices.step_time_us
    if step_us is None:
        return []
    seconds = counts.steps * step_us / 1e6
    base = f"{counts.steps} steps of {step_us:g} us"
    rows = []
    for card, where, power in prices.static:
        node = power.node_nm or card.node_nm
        of = f"{node:g} nm" if node else "an unknown node"
        scaled = "" if prices.to_node_nm in (None, node) else f"; not scaled, of {of}"
        places = {"all": 0.0}
        if where == "memory":
            places = {
                n: memory.kib(
                    layer, definitions, lambda h: not _on_crossbar(h, prices, definitions),
                    is_first=n in counts.first, classes=counts.classes,
                )
                for n, layer in counts.layers.items()
            }  # fmt: skip
        for layer, kib in places.items():
            milliwatt = power.milliwatt(kib) if kib or where == "device" else 0.0
            rows.append({
                "layer": layer, "phase": "static", "component": where, "action": "leakage", "count": seconds,
                "unit_energy_pj": milliwatt * 1e9, "energy_pj": milliwatt * 1e9 * seconds, "timesteps": counts.steps,
                "card": card.name, "source": f"{power.source}; time base: {base}{scaled}", "evidence": power.evidence,
            })  # fmt: skip
    return rows


def _row(a: Action, prices: Prices) -> dict:
    costs = [prices.of(element, bits, a.kib) for element, bits in a.parts]
    unit = sum(c.pJ for c in costs)
    said = {k: " + ".join(dict.fromkeys(getattr(c, k) for c in costs)) for k in ("card", "source", "evidence")}
    about = {k: getattr(a, k) for k in COLUMNS if k in Action._fields and k != "count"}
    return {**about, "count": a.count, "unit_energy_pj": unit, "energy_pj": a.count * unit, **said}


def _totals(rows: list[dict], prices: Prices) -> Iterator[dict]:
    """One row a component, and one of all."""
    for component in (*dict.fromkeys(r["component"] for r in rows), "all"):
        part = [r for r in rows if component in ("all", r["component"])]
        yield {
            "layer": "TOTAL", "phase": rows[0]["phase"], "component": component, "action": "all", "card": prices.name,
            "count": sum(r["count"] for r in part), "energy_pj": sum(r["energy_pj"] for r in part),
        }  # fmt: skip
