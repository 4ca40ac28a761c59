"""Memory that a network needs: bits of every variable of a layer, by organization and rule, and a published formula.

Widths: weights have the bits of their array; membranes, accumulators, traces and the tape `state_bits`; errors,
gradients, master weights and analog inputs the bits of `arithmetic`; inputs the bits that tell their values apart. A
network with formats of its own says these widths (`LayerCounts.widths`), and `state_bits` replaces those of its states.

Variables of an array, b bits a weight, s stored weights (all, or those that are not zero where zeros are not stored):

| variable | bits | when |
|---|---|---|
| weights, index | as in `organization.py` | always |
| accumulator (readout of a layer without neurons) | outputs x state_bits | unless a column is summed in a register |
| gradient, master, momentum | s x arithmetic bits each | learning, the last array of the layer |

Variables of a layer of n inputs, N neurons, O outputs channels, T steps, K classes:

| variable | bits | when |
|---|---|---|
| spikes | n x bits of an input; all steps at once with bptt | always |
| membrane | N state_bits (with local: the refractory state) | always |
| norm | T 2 O state_bits: scale and offset of BNTT, a step and channel | with BNTT, not local |
| tape | T N state_bits: the current of every neuron and step | bptt |
| error | T N arithmetic bits (N of one step with local; one of the outputs without neurons) | learning |
| error_state | N arithmetic bits: the error that goes back through time | bptt |
| input_error | T n arithmetic bits: what the layer hands down | bptt, not the first layer |
| trace, decay | 2 n state_bits each: P and Q, and their decays, which differ by input | local |
| potential | N state_bits: U, kept until the errors of the step are there | local |
| feedback | 2 K N arithmetic bits: fixed readout and its way back | local |

Layers that learn locally by themselves (DECOLLE) have the variables of `local.py` instead of these.

T steps, K classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from hwsim.report import local
from hwsim.report.action import Definitions
from hwsim.report.organization import array_capacity, is_sparse, organization_of, shape
from hwsim.report.trace import Counts, Held, LayerCounts

FOOTPRINT_COLUMNS = ("layer", "array", "variable", "organization", "weight_bits", "weight_density", "bits", "kib")
_ARITHMETIC_BITS = {"fp32": 32, "fp16": 16, "int32": 32, "int8": 8, "int": 32}


def arithmetic_bits(definitions: Definitions) -> int:
    """Bits of a number in the chosen arithmetic; with int, of one of which the network does not say any."""
    return _ARITHMETIC_BITS[definitions.arithmetic]


STATE_BITS = 32
"""Bits of a state where neither the network nor the definitions say any."""
STATES = ("membrane", "accumulator", "readout", "norm", "tape", "trace", "decay", "potential")


def width(layer: LayerCounts, variable: str, definitions: Definitions) -> int:
    """Bits of one number of a variable (module docstring)."""
    if variable in STATES and definitions.state_bits is not None:
        return definitions.state_bits
    return layer.widths.get(variable, STATE_BITS if variable in STATES else arithmetic_bits(definitions))


def value_bits(layer: LayerCounts, definitions: Definitions) -> int:
    """Bits of one input where every input has its place: a spike 1, an average of p spikes ceil(log2(p + 1)).

    A sign is one bit more; an analog input is a number of the chosen arithmetic.
    """
    if layer.traced is not None:
        return local.widths(layer, definitions)["spike"]
    return layer.parts.bit_length() + layer.signed if layer.parts else arithmetic_bits(definitions)


def keeps_sums(layer: LayerCounts, definitions: Definitions) -> bool:
    """Whether sums of a layer wait in memory: of events, of a readout, or of a current that serves several steps.

    A column is read for one output after the other, so its sum stays in a register until the neuron takes it. The local
    rule sums each output in a register as well.
    """
    if definitions.rule == "local" or local.is_local(layer):
        return False
    is_column = organization_of(layer, definitions) == "column"
    return not is_column or not layer.neurons or layer.steps < len(layer.spikes_T)


def array_bits(layer: LayerCounts, held: Held, definitions: Definitions) -> dict[str, int]:
    """Variable → bits of one array (the first table above)."""
    weights, index = array_capacity(layer, held, definitions)
    out = {"weights": weights, "index": index}
    if keeps_sums(layer, definitions):
        sums = "accumulator" if layer.neurons else "readout"
        out[sums] = layer.outputs * width(layer, sums, definitions)
    if definitions.rule != "inference" and held is layer.held[-1] and not local.is_local(layer):
        stored = stored_weights(layer, held, definitions)
        out |= {k: stored * width(layer, k, definitions) for k in ("gradient", "master", "momentum")}
    return {k: v for k, v in out.items() if v}


def stored_weights(layer: LayerCounts, held: Held, definitions: Definitions) -> int:
    """Weights of an array that have a place in memory."""
    return shape(layer, held)[2] if is_sparse(organization_of(layer, definitions)) else layer.weights


def layer_bits(
    layer: LayerCounts, definitions: Definitions, *, is_first: bool = False, classes: int = 0
) -> dict[str, int]:
    """Variable → bits of what a layer has once, whatever holds its weights (the second table above)."""
    if local.is_local(layer):
        return {k: v for k, v in local.bits(layer, definitions).items() if v}
    steps, n, neurons = len(layer.spikes_T), layer.inputs, layer.neurons

    def of(variable: str) -> int:
        return width(layer, variable, definitions)

    out = {"spikes": n * value_bits(layer, definitions), "membrane": neurons * of("membrane")}
    if definitions.rule == "local":
        out |= {"trace": 2 * n * of("trace"), "decay": 2 * n * of("decay"), "potential": neurons * of("potential")}
        out |= {"error": layer.outputs * of("error"), "feedback": 2 * classes * neurons * of("feedback")}
    elif layer.normalized and neurons:
        out["norm"] = steps * 2 * layer.weight_shape[0] * of("norm")
    if definitions.rule == "bptt":
        out["spikes"] *= layer.steps
        out |= {"tape": steps * neurons * of("tape"), "error": (steps if neurons else 1) * layer.outputs * of("error")}
        out |= {"error_state": neurons * of("error_state")}
        out |= {"input_error": 0 if is_first else layer.steps * n * of("input_error")}
    return {k: v for k, v in out.items() if v}


def kib(
    layer: LayerCounts,
    definitions: Definitions,
    keep: Callable[[Held], bool] = lambda held: True,
    *,
    is_first: bool = False,
    classes: int = 0,
) -> float:
    """KiB of all memories of a layer; keep: whether an array is a memory (cells of a crossbar are not)."""
    bits = sum(layer_bits(layer, definitions, is_first=is_first, classes=classes).values())
    return (bits + sum(sum(array_bits(layer, h, definitions).values()) for h in layer.held if keep(h))) / 8192


def footprint_rows(counts: Counts, definitions: Definitions) -> list[dict]:
    """Bits of every variable of a run's network, and a TOTAL row of each variable and of all.

    Raises `ConfigError` for a rule by which the network cannot learn.
    """
    local.check_rule(counts, definitions)
    classes = list(counts.layers.values())[-1].outputs
    rows = []
    for name, layer in counts.layers.items():
        about = {"layer": name, "organization": organization_of(layer, definitions)}
        for held in layer.held:
            array = about | {"array": held.component, "weight_bits": held.bits, "weight_density": held.density}
            rows += [array | {"variable": k, "bits": v} for k, v in array_bits(layer, held, definitions).items()]
        others = layer_bits(layer, definitions, is_first=name in counts.first, classes=classes)
        rows += [{"layer": name, "variable": k, "bits": v} for k, v in others.items()]
    for variable in (*dict.fromkeys(r["variable"] for r in rows), "all"):
        part = [r["bits"] for r in rows if r["layer"] != "TOTAL" and variable in (r["variable"], "all")]
        rows.append({"layer": "TOTAL", "variable": variable, "bits": sum(part)})
    return [{c: (r | {"kib": r["bits"] / 8192}).get(c, "") for c in FOOTPRINT_COLUMNS} for r in rows]


PAIRS = ("membrane", "error_state")
"""Variables of two numbers where a network says their width; 32 bits each otherwise."""


def in_32_bits(counts: Counts) -> Counts:
    """The same network with weights and every number of 32 bits, spikes as they are: what a saving is measured by."""
    out = replace(counts, layers={})
    for name, layer in counts.layers.items():
        kept = {k: v for k, v in layer.widths.items() if k in ("spike", "momentum")}
        wide = {k: 64 if k in PAIRS else 32 for k in layer.widths} | kept
        out.layers[name] = replace(layer, widths=wide, held=[replace(h, bits=32) for h in layer.held])
    return out


class DecolleLayer(NamedTuple):
    """Numbers of variables of one layer of the published integer DECOLLE network.

    weights (with biases, if they are counted), inputs, neurons, features (pooled spikes, read out), output_errors:
    errors of neurons, kept beside those of features and classes.
    """

    weights: int
    inputs: int
    neurons: int
    features: int
    output_errors: int = 0


DECOLLE_PUBLISHED = (
    DecolleLayer(64 * 2 * 49, 2 * 1024, 1440, 1440),
    DecolleLayer(128 * 64 * 49, 64 * 225, 21632, 21632),
    DecolleLayer(128 * 128 * 49, 128 * 169, 3200, 3200),
)
"""As the published saving of 73.78 % counts them: 1440 stands for 14 400, neurons are the pooled ones, no biases."""
DECOLLE_CORRECTED = (
    DecolleLayer(64 * 2 * 49 + 64, 2 * 1024, 64 * 30 * 30, 64 * 15 * 15, 64 * 30 * 30),
    DecolleLayer(128 * 64 * 49 + 128, 64 * 225, 128 * 13 * 13, 128 * 13 * 13, 128 * 13 * 13),
    DecolleLayer(128 * 128 * 49 + 128, 128 * 169, 128 * 11 * 11, 128 * 5 * 5, 128 * 11 * 11),
)
"""With biases, refractory state and potential of every neuron before pooling, and the errors of these neurons."""
DECOLLE_WIDTHS = {"W": 8, "P": 12, "Q": 10, "R": 2, "U": 6, "S": 6, "A": 6, "G": 10, "E": 6}
"""Published bits: weights, traces P and Q, refractory state R, potential U, readout S, its output A, master weights G,
errors E."""


def decolle_bits(layers: Iterable[DecolleLayer], widths: dict[str, int], classes: int = 11) -> int:
    """Bits of all variables of DECOLLE, summed over layers of w weights, i inputs, n neurons, f features, K classes:

        w (W + G) + i (P + Q) + n (R + U) + 2 K f S + K A + (K + f + output_errors) E

    Source: Schaefer et al., ICONS 2020; the formula is in the history of its code, and 1 - quantized / 32-bit is the
    published saving. (P has 2^12 + 1 levels and U saturates at +-64, which would need more bits than it counts.)

    >>> decolle_bits(DECOLLE_PUBLISHED, DECOLLE_WIDTHS), decolle_bits(DECOLLE_PUBLISHED, dict.fromkeys("WPQRUSAGE", 32))
    (26462796, 100928576)
    """
    b = widths
    return sum(
        x.weights * (b["W"] + b["G"]) + x.inputs * (b["P"] + b["Q"]) + x.neurons * (b["R"] + b["U"])
        + 2 * classes * x.features * b["S"] + classes * b["A"] + (classes + x.features + x.output_errors) * b["E"]
        for x in layers
    )  # fmt: skip


def law_layers(counts: Counts) -> list[DecolleLayer]:
    """Sizes of a counted DECOLLE network, as `DECOLLE_CORRECTED` has those of the published one."""
    traced = [(x, x.traced) for x in counts.layers.values() if x.traced]
    return [DecolleLayer(x.weights + t.biases, x.inputs, x.neurons, t.features, x.neurons) for x, t in traced]


def law_widths(counts: Counts) -> dict[str, int]:
    """Bits of a counted DECOLLE network by the letters of `decolle_bits`; 32 where there is no width."""
    layers = list(counts.layers.values())
    layer, readout = (next(x for x in layers if getattr(x, kind)) for kind in ("traced", "readout"))
    names = {
        "P": "membrane_trace", "Q": "synaptic_trace", "R": "refractory", "U": "potential", "G": "master", "E": "error",
    }  # fmt: skip
    held = {"W": layer.held[0].bits, "S": readout.held[0].bits, "A": readout.widths.get("score", 32)}
    return held | {letter: layer.widths.get(name, 32) for letter, name in names.items()}
