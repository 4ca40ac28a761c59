"""Layers that learn from a readout of their own at every time step (DECOLLE): bits, accesses and arithmetic.

Such a layer multiplies its weights with traces P of its inputs, codes of several bits, and so has multiplications (MAC)
where other layers add at spikes. Its readout is fixed and random, and a layer of its own here. A layer of n inputs, N
neurons, F of them behind the pooling, O biases, w weights with biases; K classes; T steps, V of them vote. Of the
training (`Learned`): s steps at which a recording formed errors, u updates, c changed weights, g gradients and e errors
that are not 0, e1 at the scores, e2 at the features, all by recording that was shown; m multiplications of a step in
which everything is active (`LayerCounts.dense`).

| variable | bits | when | accesses of a recording |
|---|---|---|---|
| spikes | n, or events | always | T written and read |
| membrane_trace (P) | n pb | always | T read twice and written; learning: s read |
| synaptic_trace (Q) | n qb | always | T read and written |
| decay | 2 n 32: both decays of every input | always | T read |
| weights, bias_weights | w wb | always | T read; learning: c written, one by one |
| refractory (R) | N rfb | always | T read and written |
| potential (U) | N ub | always | V written and read; learning: s read |
| weights (of the readout) | K F sb | always | V read |
| score | K ab | always | V written and read; learning: s read |
| feedback | K F sb | learning | s read |
| error | (K + F + N) eb | learning | s written and read |
| gradient | w (pb + eb + ceil(log2(batch places))) | learning | s written, s - u read; u read twice |
| master | w gb | learning | u read; c written, one by one |

Without widths (floating point) every number has 32 bits; gradients are then read once at an update.

| phase | synapse | neuron arithmetic |
|---|---|---|
| inference, forward | MAC: of P codes that are not 0; readout: K a feature code that is not 0 | as every neuron, and |
| | | 3 mult, 1 add an input and step; 1 add an input that arrives |
| error | e1 F MAC (readout) | e2 mult; s 2 F add; readout: s 2 K add |
| gradient | e m/N MAC: an error meets the synapses of a mean neuron | e add |
| update | | g mult; u w + g + c add |

Additions count comparisons too: the search for the largest error or gradient that normalizes them, and that with a
random number, which decides a step. Not counted: pooling, look-up of sigmoids, random numbers, shifts. Errors and
gradients of a network without Learned are taken to be never 0, every step that votes to learn, and every weight to
change. Sources: access table of local learning after Schaefer and Joshi, ICONS 2020.
"""

from hwsim.config import ConfigError
from hwsim.report.action import Definitions
from hwsim.report.learned import Learned
from hwsim.report.trace import Counts, LayerCounts

Move = tuple[str, str, float, int]
"""(variable, ways: read, write or both, bursts an image, bits a burst)."""
DECAY_BITS = 32
"""Bits of a decay: a float32, or a whole number over 2^32."""


def check_rule(counts: Counts, definitions: Definitions) -> None:
    """Raise `ConfigError` if a network that learns locally is to learn by backpropagation through time."""
    if definitions.rule == "bptt" and any(layer.traced for layer in counts.layers.values()):
        raise ConfigError(["rule: found bptt, but this network learns from local errors; take local, or inference"])


def is_local(layer: LayerCounts) -> bool:
    """Whether a layer learns locally, or is the readout of one that does."""
    return layer.traced is not None or layer.readout is not None


def learning_of(layer: LayerCounts) -> Learned:
    """What training left; of a network without it, the most that one recording could have caused."""
    if layer.learned is not None:
        return layer.learned
    if layer.readout is not None:
        votes = layer.readout.votes
        return Learned(1, votes, votes, 0, 0, 0, 0, scores=votes * layer.outputs, features=votes * layer.inputs)
    assert layer.traced is not None
    votes, every = layer.traced.votes, layer.weights + layer.traced.biases
    return Learned(
        1, votes, votes, every, votes * every, votes * every, votes * layer.neurons, votes * every,
        features=votes * layer.traced.features,
    )  # fmt: skip


def bits(layer: LayerCounts, definitions: Definitions) -> dict[str, int]:
    """Variable → bits of what a layer has beside the array of its weights."""
    learns, w = definitions.rule != "inference", widths(layer, definitions)
    if layer.readout is not None:
        out = {"score": layer.outputs * w["score"]}
        return out | ({"feedback": layer.weights * w["weight"], "error": layer.outputs * w["error"]} if learns else {})
    assert layer.traced is not None
    n, features = layer.inputs, layer.traced.features
    out = {
        "spikes": n * w["spike"], "membrane_trace": n * w["membrane_trace"],
        "synaptic_trace": n * w["synaptic_trace"], "decay": 2 * n * DECAY_BITS,
        "bias_weights": layer.traced.biases * w["weight"],
        "refractory": layer.neurons * w["refractory"], "potential": layer.neurons * w["potential"],
    }  # fmt: skip
    if learns:
        every = layer.weights + layer.traced.biases
        out |= {"error": (features + layer.neurons) * w["error"]}
        out |= {"gradient": every * w["gradient"], "master": every * w["master"]}
    return out


STATES = ("membrane_trace", "synaptic_trace", "refractory", "potential")


def widths(layer: LayerCounts, definitions: Definitions) -> dict[str, int]:
    """Bits of every number of a layer: its own, 32 for what has none; `state_bits` for states where that is set."""
    out = {"spike": 1} | dict.fromkeys((*STATES, "score", "error", "gradient", "master"), 32) | layer.widths
    if definitions.state_bits is not None:
        out |= dict.fromkeys(STATES, definitions.state_bits)
    return out | {"weight": layer.held[0].bits}


def forward_moves(layer: LayerCounts, definitions: Definitions) -> list[Move]:
    """Accesses of a recording in the forward pass, but for those of inputs and weights."""
    size = bits(layer, definitions)
    if layer.readout is not None:
        return [("score", "both", layer.readout.votes, size["score"])]
    assert layer.traced is not None
    steps, votes = len(layer.spikes_T), layer.traced.votes
    moves: list[Move] = [(k, "both", steps, size[k]) for k in ("membrane_trace", "synaptic_trace", "refractory")]
    moves += [(k, "read", steps, size[k]) for k in ("decay", "membrane_trace", "bias_weights")]
    return [*moves, ("potential", "both", votes, size["potential"])]


def learning_moves(layer: LayerCounts, definitions: Definitions) -> dict[str, list[Move]]:
    """Phase → accesses of a recording."""
    size, w, learned = bits(layer, definitions), widths(layer, definitions), learning_of(layer)
    steps, updates, changes = (x / learned.recordings for x in (learned.steps, learned.updates, learned.changes))
    if layer.readout is not None:
        read: list[Move] = [(k, "read", steps, size[k]) for k in ("score", "error", "feedback")]
        return {"error": [*read, ("error", "write", steps, size["error"])]}
    assert layer.traced is not None
    features, neurons = layer.traced.features * w["error"], layer.neurons * w["error"]
    scans = 2 if rounds(layer) else 1
    return {
        "error": [
            ("potential", "read", steps, size["potential"]), ("error", "write", steps, features),
            ("error", "read", steps, features), ("error", "write", steps, neurons),
        ],
        "gradient": [
            ("membrane_trace", "read", steps, size["membrane_trace"]), ("error", "read", steps, neurons),
            ("gradient", "write", steps, size["gradient"]), ("gradient", "read", steps - updates, size["gradient"]),
        ],
        "update": [
            ("gradient", "read", scans * updates, size["gradient"]), ("master", "read", updates, size["master"]),
            ("master", "write", changes, w["master"]), ("weights", "write", changes, w["weight"]),
        ],
    }  # fmt: skip


def rounds(layer: LayerCounts) -> bool:
    """Whether gradients are normalized by the largest and rounded to steps."""
    return "master" in layer.widths


def forward_arithmetic(layer: LayerCounts, images: int) -> tuple[float, float]:
    """(multiplications, additions) of the traces of a recording."""
    if layer.traced is None:
        return 0, 0
    each = layer.inputs * len(layer.spikes_T)
    return 3 * each, each + layer.traced.arrived / images


def learning_arithmetic(layer: LayerCounts) -> dict[str, tuple[float, float, float]]:
    """Phase → (MAC in synapses, multiplications, additions) of a recording."""
    learned = learning_of(layer)
    per = 1 / learned.recordings
    if layer.readout is not None:
        return {"error": (learned.scores * layer.inputs * per, 0, 2 * layer.outputs * learned.steps * per)}
    assert layer.traced is not None
    searched = 2 * layer.traced.features * learned.steps
    gradients = learned.gradients if learned.gradients is not None else learned.updates * learned.weights
    adds = learned.changes
    if rounds(layer):
        adds += learned.updates * learned.weights + gradients
    return {
        "error": (0, learned.features * per, searched * per),
        "gradient": (learned.errors * layer.dense("inbounds") / layer.neurons * per, 0, learned.errors * per),
        "update": (0, gradients * per, adds * per),
    }
