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

A neuron's update: leak u and scale I (2 mult), add offset and current, compare with the threshold (3 add), subtract
the threshold at a spike (1 add). Backwards: surrogate, leak and scale (3 mult), add what comes through time (1 add). A
weight's update: momentum and learning rate (2 mult), two additions. Learning counts one image an update.
"""

from collections.abc import Iterator

from hwsim.report.action import Action, Definitions
from hwsim.report.trace import Held, LayerCounts

ANALOG_BITS = 32
"""Bits of an input that is neither a spike nor an average of spikes: a float32."""


def input_bits(layer: LayerCounts) -> int:
    """Bits of an input that is no spike: an average of n spikes is one of n + 1 values."""
    return layer.parts.bit_length() or ANALOG_BITS


def synapse_actions(
    name: str, layer: LayerCounts, held: Held, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """Additions and multiplications that inputs cause on one of a layer's arrays (phase inference or forward)."""
    ac, mac = (layer.operations(e, definitions.synapses, held) for e in (layer.unit, layer.fractional))
    if layer.parts and definitions.pooled == "ac":
        ac, mac = ac + mac, 0
    about = _about(layer, held, images)
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
    yield from _arithmetic(name, phase, 2 * updates, 3 * updates + spikes, definitions, len(layer.spikes_T))


def learning_actions(
    name: str, layer: LayerCounts, definitions: Definitions, images: int, *, is_first: bool, classes: int
) -> Iterator[Action]:
    """Error, gradient and update of a layer by the rule bptt or local."""
    local, d = definitions.rule == "local", definitions
    steps = len(layer.spikes_T)
    everything, held = layer.steps * layer.dense("inbounds"), layer.held[0]
    about = {"timesteps": steps, "weight_bits": held.bits, "input_bits": ANALOG_BITS}
    updates = layer.neurons * steps
    if local and layer.neurons:
        spikes = int(layer.spikes_T.sum()) / images
        yield _ac(name, "error", "synapse", classes * spikes, d, **about)
        yield _mac(name, "error", "synapse", classes * updates, d, **about)
        yield from _arithmetic(name, "error", updates, 0, d, steps)
    elif not local:
        if not is_first:
            yield _mac(name, "error", "synapse", everything, d, **about)
        if layer.neurons:
            yield from _arithmetic(name, "error", 3 * updates, updates, d, steps)
    if local:
        yield _mac(name, "gradient", "synapse", everything, d, **about)
        inputs = 2 * layer.inputs * layer.steps
        yield from _arithmetic(name, "gradient", inputs, inputs, d, steps)
    else:
        ac, mac = (layer.operations(e, "inbounds") / images for e in (layer.unit, layer.fractional))
        yield _ac(name, "gradient", "synapse", ac, d, **about)
        if mac:
            yield _mac(name, "gradient", "synapse", mac, d, **about)
    times = 2 * layer.weights * (steps if local else 1)
    yield from _arithmetic(name, "update", times, times, d, steps)


def ann_actions(name: str, layer: LayerCounts, definitions: Definitions) -> Iterator[Action]:
    """(Synaptic and neuron arithmetic of) the ordinary network of the same shape: dense, once an image."""
    synapses = "inbounds" if definitions.synapses == "effective" else definitions.synapses
    about = {"timesteps": 1, "weight_bits": ANALOG_BITS, "input_bits": ANALOG_BITS, "input_density": 1.0}
    count = layer.dense(synapses)
    yield _mac(name, "ann_inference", "synapse", count, definitions, **about, weight_density=1.0)
    if layer.neurons:
        yield from _arithmetic(name, "ann_inference", 0, 2 * layer.neurons, definitions, 1)


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


def _ac(layer: str, phase: str, component: str, count: float, definitions: Definitions, **about) -> Action:
    return Action(layer, phase, component, "ac", (f"add_{definitions.arithmetic}",), count, **about)


def _mac(layer: str, phase: str, component: str, count: float, definitions: Definitions, **about) -> Action:
    elements = (f"mult_{definitions.arithmetic}", f"add_{definitions.arithmetic}")
    return Action(layer, phase, component, "mac", elements, count, **about)


def _arithmetic(
    layer: str, phase: str, mult: float, add: float, definitions: Definitions, steps: int
) -> Iterator[Action]:
    for action, count in (("mult", mult), ("add", add)):
        if count:
            element = f"{action}_{definitions.arithmetic}"
            yield Action(layer, phase, "neuron_arithmetic", action, (element,), count, timesteps=steps)
