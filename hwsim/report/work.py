"""The work of layers and neurons in arithmetic: synaptic operations, neuron updates, learning.

Counts are per image. A network of n_l neurons and w_l weights a layer, T steps, events e_l (inputs that are not zero),
K classes, s(e) the synapses that events reach by the chosen definition.

| phase | synapse | neuron arithmetic |
|---|---|---|
| inference, forward | s(e): AC for a spike, MAC for another value | 2 mult, 3 add a neuron and step; 1 add a spike |
| error (bptt) | T s(all) MAC, not for the first layer | 3 mult, 1 add a neuron and step |
| gradient (bptt) | s(e) inbounds: AC for a spike, MAC for another value | |
| error (local) | K AC a spike, K MAC a neuron and step | 1 mult a neuron and step |
| gradient (local) | T s(all) MAC: the trace of an input is never zero | 2 mult, 2 add an input and step |
| update | | 2 mult, 2 add a weight: once an image (bptt), every step (local) |
| ann_inference | s(all) MAC | 1 add and 1 comparison a neuron |

A neuron's update: leak u and scale I (2 mult), add offset and current, compare with the threshold (3 add), subtract the
threshold at a spike (1 add). One that only integrates adds its current and compares (2 add; `LayerCounts.update`).
Backwards: surrogate, leak and scale (3 mult), add what comes through time (1 add). A weight's update: momentum and
learning rate (2 mult), two additions, of which the second only where a weight changes if training was counted
(`Learned`). Learning counts one image an update. Layers that learn locally by themselves (DECOLLE) have the arithmetic
of `local.py`.

An operation is as wide as its operands, and a sum of synapses wide enough never to overflow: weight and input bits and
ceil(log2(inputs of a neuron)). Only prices by width see it (`arithmetic: int`).
"""

from collections.abc import Iterator
from math import prod

from hwsim.report import local
from hwsim.report.action import Action, Definitions
from hwsim.report.footprint import STATE_BITS
from hwsim.report.organization import code_bits
from hwsim.report.trace import Held, LayerCounts

ANALOG_BITS = 32
"""Bits of an input that is neither a spike nor an average of spikes: a float32."""


def input_bits(layer: LayerCounts) -> int:
    """Bits of an input that is no spike: an average of n spikes is one of n + 1 values; a code says its own."""
    return layer.widths.get("input") or layer.parts.bit_length() or ANALOG_BITS


def synapse_actions(
    name: str, layer: LayerCounts, held: Held, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """Additions and multiplications that inputs cause on one of a layer's arrays (phase inference or forward)."""
    ac, mac = (layer.operations(e, definitions.synapses, held) for e in (layer.unit, layer.fractional))
    if layer.parts and definitions.pooled == "ac":
        ac, mac = ac + mac, 0
    about = _about(layer, held, images) | {"fan_in": prod(layer.weight_shape[1:])}
    yield _ac(name, phase, held.component, ac / images, definitions, **about, input_bits=1)
    if mac:
        yield _mac(name, phase, held.component, mac / images, definitions, **about, input_bits=input_bits(layer))


def neuron_actions(
    name: str, layer: LayerCounts, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """Arithmetic of a layer's neurons, all steps (phase inference or forward)."""
    if not layer.neurons:
        return
    updates, spikes = layer.neurons * len(layer.spikes_T), int(layer.spikes_T.sum()) / images
    mult, add = local.forward_arithmetic(layer, images)
    mult, add = mult + layer.update[0] * updates, add + layer.update[1] * updates + spikes
    bits = state_width(layer, definitions)
    decay = local.DECAY_BITS if layer.traced is not None else bits
    yield from _arithmetic(name, phase, mult, add, definitions, len(layer.spikes_T), bits, decay)


def learning_actions(
    name: str, layer: LayerCounts, definitions: Definitions, images: int, *, is_first: bool, classes: int
) -> Iterator[Action]:
    """Error, gradient and update of a layer by the rule bptt or local."""
    is_local, d = definitions.rule == "local", definitions
    steps = len(layer.spikes_T)
    everything, held = layer.steps * layer.dense("inbounds"), layer.held[0]
    error, sums = (layer.widths.get(k, ANALOG_BITS) for k in ("error", "gradient"))
    about = {"timesteps": steps, "weight_bits": held.bits, "input_bits": error, "fan_in": layer.outputs}
    if local.is_local(layer):
        for phase, (mac, mult, add) in local.learning_arithmetic(layer).items():
            if mac:
                yield _mac(name, phase, "synapse", mac, d, **about)
            yield from _arithmetic(name, phase, mult, add, d, steps, sums if phase == "update" else error)
        return
    updates = layer.neurons * steps
    if is_local and layer.neurons:
        spikes = int(layer.spikes_T.sum()) / images
        yield _ac(name, "error", "synapse", classes * spikes, d, **about)
        yield _mac(name, "error", "synapse", classes * updates, d, **about)
        yield from _arithmetic(name, "error", updates, 0, d, steps, error)
    elif not is_local:
        if not is_first:
            yield _mac(name, "error", "synapse", everything, d, **about)
        if layer.neurons:
            yield from _arithmetic(name, "error", 3 * updates, updates, d, steps, error)
    if is_local:
        yield _mac(name, "gradient", "synapse", everything, d, **about)
        inputs = 2 * layer.inputs * layer.steps
        yield from _arithmetic(name, "gradient", inputs, inputs, d, steps, state_width(layer, d))
    else:
        ac, mac = (layer.operations(e, "inbounds") / images for e in (layer.unit, layer.fractional))
        yield _ac(name, "gradient", "synapse", ac, d, **about, width=sums)
        if mac:
            yield _mac(name, "gradient", "synapse", mac, d, **about, width=sums)
    times = 2 * layer.weights * (steps if is_local else 1)
    adds: float = times
    if not is_local and layer.learned:
        adds = layer.weights + layer.learned.changes / layer.learned.recordings
    yield from _arithmetic(name, "update", times, adds, d, steps, sums)


def ann_actions(name: str, layer: LayerCounts, definitions: Definitions) -> Iterator[Action]:
    """(Synaptic and neuron arithmetic of) the ordinary network of the same shape: dense, once an image."""
    synapses = "inbounds" if definitions.synapses == "effective" else definitions.synapses
    about = {"timesteps": 1, "weight_bits": ANALOG_BITS, "input_bits": ANALOG_BITS, "input_density": 1.0}
    about |= {"width": ANALOG_BITS}
    count = layer.dense(synapses)
    yield _mac(name, "ann_inference", "synapse", count, definitions, **about, weight_density=1.0)
    if layer.neurons:
        yield from _arithmetic(name, "ann_inference", 0, 2 * layer.neurons, definitions, 1, ANALOG_BITS)


def synop_actions(
    name: str, layer: LayerCounts, held: Held, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """Synaptic operations as neuromorphic chips count them: one for each synapse that an event of any value reaches."""
    count = sum(layer.operations(e, definitions.synapses, held) for e in (layer.unit, layer.fractional))
    yield Action(name, phase, "synop", "synop", ("synop",), count / images, **_about(layer, held, images))


def update_actions(name: str, layer: LayerCounts, phase: str) -> Iterator[Action]:
    """Neuron updates as neuromorphic chips count them: every neuron at every step."""
    if layer.neurons:
        steps = len(layer.spikes_T)
        count = layer.neurons * steps
        yield Action(name, phase, "neuron", "neuron_update", ("neuron_update",), count, timesteps=steps)


def _about(layer: LayerCounts, held: Held, images: int) -> dict:
    events = int(layer.unit.sum() + layer.fractional.sum())
    density = events / (images * layer.inputs * layer.steps)
    return {
        "timesteps": layer.steps, "input_density": density, "weight_bits": held.bits, "weight_density": held.density,
    }  # fmt: skip


def state_width(layer: LayerCounts, definitions: Definitions) -> int:
    """Bits of the widest state of a layer's neurons, or of its traces."""
    if definitions.state_bits is not None:
        return definitions.state_bits
    names = ("membrane_trace", "synaptic_trace", "potential", "accumulator", "score")
    return max((layer.widths[k] for k in names if k in layer.widths), default=STATE_BITS)


def _ac(layer: str, phase: str, component: str, count: float, definitions: Definitions, **about) -> Action:
    return _sum(layer, phase, component, "ac", ("add",), count, definitions, **about)


def _mac(layer: str, phase: str, component: str, count: float, definitions: Definitions, **about) -> Action:
    return _sum(layer, phase, component, "mac", ("mult", "add"), count, definitions, **about)


def _sum(
    layer: str, phase: str, component: str, action: str, does: tuple[str, ...], count: float, definitions: Definitions,
    *, fan_in: int = 1, width: int | None = None, **about,
) -> Action:  # fmt: skip
    """A weight, or its product with an input, added to a sum; width: of the sum."""
    product = about["weight_bits"] * about["input_bits"]
    if width is None:
        width = about["weight_bits"] + (about["input_bits"] if action == "mac" else 0) + code_bits(fan_in)
    widths = (product, width)[2 - len(does) :]
    elements = tuple(f"{d}_{definitions.arithmetic}" for d in does)
    return Action(layer, phase, component, action, elements, count, widths=widths, **about)


def _arithmetic(
    layer: str, phase: str, mult: float, add: float, definitions: Definitions, steps: int, bits: int,
    factor: int | None = None,
) -> Iterator[Action]:  # fmt: skip
    """Neuron arithmetic on numbers of `bits` bits, multiplied with such of `factor` bits (as many without)."""
    for action, count, width in (("mult", mult, bits * (factor or bits)), ("add", add, bits)):
        if count:
            element = f"{action}_{definitions.arithmetic}"
            yield Action(layer, phase, "neuron_arithmetic", action, (element,), count, timesteps=steps, widths=(width,))
