"""energy = counts x prices, one row a layer and action, per image.

An input of size 1 (a spike) costs one addition for every synapse it reaches (AC). Any other nonzero input, analog or an
average of spikes, costs a multiplication and an addition (MAC), or for averages an addition if the recipe says so. The
ordinary network of the same shape stands beside it: one MAC for every synapse of every input (phase ann_inference).
Membrane updates, memory and converters are not in these two actions.
"""

from typing import NamedTuple

from hwsim.device.card import Card
from hwsim.report.trace import Counts, LayerCounts

COLUMNS = (
    "run_id", "layer", "phase", "component", "action", "count", "unit_energy_pj", "energy_pj", "share", "weight_bits",
    "input_bits", "timesteps", "samples", "input_density", "weight_density", "card", "card_hash", "source", "evidence",
)  # fmt: skip
SPARSITY_COLUMNS = ("run_id", "layer", "timestep", "neurons", "spikes", "zeros_fraction", "inputs", "nonzero_inputs")

ANALOG_BITS = 32
"""Bits of an input that is neither a spike nor an average of spikes: a float32."""


class Held(NamedTuple):
    """How an array holds a layer's weights: bits a weight, the fraction that is not zero, what it is called."""

    bits: int
    density: float
    component: str = "synapse"


def energy_rows(
    counts: Counts, card: Card, held: dict[str, tuple[Held, ...]], *, run_id: str, synapses: str, pooled: str
) -> list[dict]:
    """Rows of energy.csv. Counts are per image; TOTAL rows are the sums of a phase's rows.

    held: layer → the arrays that hold it; of two (a hybrid layer's RRAM and SRAM) an input event reads both.

    Raises `CardError` if the card has no price for an action that occurs.
    """
    rows = []
    for name, layer in counts.layers.items():
        ac, mac = layer.operations(layer.unit, synapses), layer.operations(layer.fractional, synapses)
        if layer.parts and pooled == "ac":
            ac, mac = ac + mac, 0
        events = int(layer.unit.sum() + layer.fractional.sum())
        density = events / (counts.images * layer.inputs * len(layer.unit))
        common = {"layer": name, "timesteps": len(layer.unit), "input_density": density}
        bits = layer.parts.bit_length() or ANALOG_BITS  # an average of n spikes is one of n + 1 values
        for array in held[name]:
            rows.append(_row(card, array, "inference", "ac", ac / counts.images, 1, common))
            if mac:
                rows.append(_row(card, array, "inference", "mac", mac / counts.images, bits, common))
    for name, layer in counts.layers.items():
        common = {"layer": name, "timesteps": 1, "input_density": 1.0}
        dense = Held(ANALOG_BITS, 1.0)
        rows.append(_row(card, dense, "ann_inference", "mac", layer.dense(synapses), ANALOG_BITS, common))
    out = []
    for phase in ("inference", "ann_inference"):
        part = [r for r in rows if r["phase"] == phase]
        total = {"layer": "TOTAL", "phase": phase, "component": "all", "action": "all",
                 "count": sum(r["count"] for r in part), "energy_pj": sum(r["energy_pj"] for r in part)}  # fmt: skip
        for r in (*part, total):
            r["share"] = r["energy_pj"] / total["energy_pj"] if total["energy_pj"] else 0.0
            here = {"run_id": run_id, "samples": counts.images, "card": card.name, "card_hash": card.hash, **r}
            out.append({c: here.get(c, "") for c in COLUMNS})
    return out


def _row(card: Card, held: Held, phase: str, action: str, count: float, input_bits: int, common: dict) -> dict:
    price = card.price(action)
    return {
        **common, "phase": phase, "component": held.component, "action": action, "count": count,
        "unit_energy_pj": price.pJ, "energy_pj": count * price.pJ, "weight_bits": held.bits, "input_bits": input_bits,
        "weight_density": held.density, "source": price.source, "evidence": price.evidence,
    }  # fmt: skip


def sparsity_rows(counts: Counts, run_id: str) -> list[dict]:
    """Rows of sparsity.csv: per layer and step (from 1), an image's neurons, spikes, and inputs that are not zero."""
    return [
        _sparsity(name, layer, t, counts, run_id) for name, layer in counts.layers.items() for t in range(counts.steps)
    ]


def _sparsity(name: str, layer: LayerCounts, t: int, counts: Counts, run_id: str) -> dict:
    spikes = int(layer.spikes_T[t]) / counts.images
    # A layer that is computed once an image has its inputs at the first step only.
    arrived = t < len(layer.unit)
    nonzero = int(layer.unit[t].sum() + layer.fractional[t].sum()) / counts.images if arrived else 0.0
    zeros = 1 - spikes / layer.neurons if layer.neurons else ""
    values = (run_id, name, t + 1, layer.neurons, spikes, zeros, layer.inputs if arrived else 0, nonzero)
    return dict(zip(SPARSITY_COLUMNS, values, strict=True))
