"""Memory accesses: bursts of bits that lie one after the other, counted exactly from the trace, per image.

An action is one burst of `bits` from or to the memory of one variable, whose capacity is `kib` (`footprint.py` has the
variables and widths). A price law turns bits into accesses of a port. T steps, S steps at which inputs arrive (1 for a
layer that is computed once an image), R rows and O columns of weights (`organization.py`), b bits a weight, V visits of
rows by inputs that are not zero, padding excluded, z(row) stored weights of a row, n inputs, N neurons, P places.

Forward, an array (`weight_actions`), whatever `Definitions.synapses` takes for an operation:

| organization | weight_read | index_read | accumulator or readout, read and write |
|---|---|---|---|
| row, crossbar, functional | V of O b | | V of O numbers |
| pb-bmp | V of z(row) b | V of a pointer, V of O | V z(row) of one number |
| pb-csr | V of z(row) b | V of two pointers, V of z(row) column numbers | V z(row) of one number |
| column | S O of R b, whatever the inputs | | in a register |
| any, rule local | T of all, streamed past stationary inputs | T of all | in a register |

Sums that wait in memory are also read T times by the neurons and cleared S times (a readout once); a column's sum is
stored only for a current that serves several steps, or for a readout, which is read and written every step. Of a hybrid
layer's two arrays each has sums of its own.

Forward, a layer (`state_actions`): inputs are written once and read once, in the chosen code, and counted where they
arrive: averages are formed on the way to the next layer. membrane read and write, T of N numbers. norm_read, T of 2 O
(BNTT's scale and offset of a step). bptt: tape_write, T of N. local: trace read and write and decay_read, T of 2 n;
potential_write, T of N.

Layers that learn locally by themselves (DECOLLE) have the accesses of `local.py` instead of all of these but the
inputs'. Learning (`learning_actions`) counts one update an image, errors that are never zero, and no burn-in:

| phase, rule bptt | bursts |
|---|---|
| error | tape_read T of N; error_state read and write T of N; error_write T of N; error_read T of N to hand it down |
| error, hand down | row: S R O of b; column, crossbar: S O of R b; functional: S V of O b, V with every input active |
| | pb-bmp: one bit and one stored weight at a time, all pointers a place; pb-csr: transposed index from end to end |
| | input_error read and write of each sum; then read S, cleared S of n |
| gradient | inputs read again; error_read T of N; gradient read and write V of z(row) (O if zeros are stored) |
| update | gradient read and cleared, master and momentum read and written, weight_write: one of all; |
| | where training was counted, master and weights are written one by one, those that changed |

| phase, rule local | bursts |
|---|---|
| error | feedback_read 2 T of K N; potential_read T of N; error_write T of N |
| gradient | trace_read T of n (P); error_read T of N; gradient_write T of all |
| update | as bptt, T times (gradient is not cleared) |

Not counted: gain of BNTT and its gradient, random numbers, instructions. The first layer hands no error down. A layer
without neurons has one error an image, that of the mean over time. Sources: access patterns of Schaefer et al., ISCAS
2020 and ICONS 2020, adapted to what the trace of a network with BNTT holds.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hwsim.report import footprint, local
from hwsim.report.action import Action, Definitions
from hwsim.report.footprint import arithmetic_bits, kib, value_bits, width
from hwsim.report.local import Move
from hwsim.report.organization import (
    bursts,
    code_bits,
    everywhere,
    is_sparse,
    organization_of,
    shape,
    transposed_index_bits,
    visits,
)
from hwsim.report.trace import Held, LayerCounts

__all__ = [
    "ann_actions", "break_even", "code", "event_bits", "kib", "learning_actions", "state_actions", "weight_actions",
]  # fmt: skip


def event_bits(layer: LayerCounts, definitions: Definitions) -> int:
    """Bits of one address event: ceil(log2 n), at least 1, and for an input that is no plain spike its value.

    Of an average of p spikes ceil(log2 p) more (it is not zero), of a signed input 1, of an analog one its number.
    """
    value = code_bits(layer.parts) + layer.signed if layer.parts else arithmetic_bits(definitions)
    if layer.traced is not None:
        value = value_bits(layer, definitions) - 1
    return max(1, code_bits(layer.inputs)) + value


def break_even(layer: LayerCounts, definitions: Definitions) -> float:
    """Fraction of active inputs at which events take as many bits as a bitmap: 1/ceil(log2 n) for plain spikes."""
    return value_bits(layer, definitions) / event_bits(layer, definitions)


def code(layer: LayerCounts, definitions: Definitions, images: int) -> tuple[str, float, int]:
    """(bitmap or events, bursts an image, bits a burst) of a layer's inputs.

    bitmap: every input has its place, one burst a step. events: one burst an input that is not zero. shorter: of these
    the one with fewer bits over the whole trace. Both use a buffer of the bitmap's size.
    """
    arrived = layer.traced.arrived if layer.traced else int(layer.unit.sum() + layer.fractional.sum())
    events = arrived / images
    each, whole = event_bits(layer, definitions), layer.inputs * value_bits(layer, definitions)
    chosen = definitions.spike_code
    if chosen == "shorter":
        chosen = "events" if events * each < layer.steps * whole else "bitmap"
    return ("events", events, each) if chosen == "events" else ("bitmap", layer.steps, whole)


def weight_actions(
    name: str, layer: LayerCounts, held: Held, definitions: Definitions, images: int, phase: str
) -> Iterator[Action]:
    """Reads of one digital array and of its index, and accesses of its sums (the first table above)."""
    sizes, organization = footprint.array_bits(layer, held, definitions), organization_of(layer, definitions)
    rows, columns, stored = shape(layer, held)
    sums = "accumulator" if layer.neurons else "readout"
    number = width(layer, sums, definitions)
    steps, word = len(layer.spikes_T), layer.outputs * number
    moves: list[Move] = []
    if definitions.rule == "local" or local.is_local(layer):
        times = layer.readout.votes if layer.readout else steps
        moves += [(k, "read", times, sizes.get(k, 0)) for k in ("weights", "index")]
    elif organization == "column":
        moves.append(("weights", "read", layer.steps * columns, rows * held.bits))
        if not layer.neurons:
            moves.append((sums, "both", layer.steps, word))
        elif layer.steps < steps:
            moves += [(sums, "write", layer.steps, word), (sums, "read", steps, word)]
    else:
        met = visits(layer, layer.unit + layer.fractional)
        for z, n in bursts(met, layer, held, organization).items():
            moves.append(("weights", "read", n / images, z * held.bits))
            if organization == "pb-csr":
                moves.append(("index", "read", n / images, z * code_bits(columns)))
            wide, times = (1, n * z) if is_sparse(organization) else (z, n)
            moves.append((sums, "both", times / images, wide * number))
        if is_sparse(organization):
            total, pointer = int(met.sum()) / images, code_bits(stored + 1)
            moves += [("index", "read", total, columns)] if organization == "pb-bmp" else []
            moves.append(("index", "read", total, pointer * (1 if organization == "pb-bmp" else 2)))
        moves.append((sums, "read", steps if layer.neurons else 1, word))
        moves.append((sums, "write", layer.steps if layer.neurons else 1, word))
    yield from _actions(name, phase, sizes, moves, layer, images, held)


def state_actions(name: str, layer: LayerCounts, definitions: Definitions, images: int, phase: str) -> Iterator[Action]:
    """Inputs, membranes and what a rule of learning keeps in the forward pass: once a layer."""
    d, steps, sizes = definitions, len(layer.spikes_T), footprint.layer_bits(layer, definitions)
    _, count, bits = code(layer, d, images)
    moves: list[Move] = [] if layer.readout else [("spikes", "both", count, bits)]
    if local.is_local(layer):
        yield from _actions(name, phase, sizes, moves + local.forward_moves(layer, d), layer, images)
        return
    neurons = {k: layer.neurons * width(layer, k, d) for k in ("membrane", "potential", "tape")}
    moves.append(("membrane", "both", steps, neurons["membrane"]))
    if d.rule == "local":
        moves += [("trace", "both", steps, sizes["trace"]), ("decay", "read", steps, sizes["decay"])]
        moves.append(("potential", "write", steps, neurons["potential"]))
    elif layer.neurons and layer.normalized:
        moves.append(("norm", "read", steps, 2 * layer.weight_shape[0] * width(layer, "norm", d)))
    if d.rule == "bptt":
        moves.append(("tape", "write", steps, neurons["tape"]))
    yield from _actions(name, phase, sizes, moves, layer, images)


def learning_actions(
    name: str, layer: LayerCounts, definitions: Definitions, images: int, *, is_first: bool, classes: int
) -> Iterator[Action]:
    """Error, gradient and update of a layer by the rule bptt or local (the last two tables above).

    All arrays of a layer hand errors down; the last one learns (of a hybrid layer the SRAM part).
    """
    d, learned = definitions, layer.held[-1]
    steps = len(layer.spikes_T)
    sizes = footprint.layer_bits(layer, d, is_first=is_first, classes=classes)
    arrays = {h.component: footprint.array_bits(layer, h, d) for h in layer.held}
    own = sizes | arrays[learned.component]
    if local.is_local(layer):
        for phase, moves in local.learning_moves(layer, d).items():
            yield from _actions(name, phase, own, moves, layer, images, None if phase == "error" else learned)
        return
    number = {k: width(layer, k, d) for k in ("error", "error_state", "input_error", "gradient", "master", "momentum")}
    errors = (steps if layer.neurons else 1, layer.outputs * number["error"])
    stored = footprint.stored_weights(layer, learned, d)
    if d.rule == "local":
        back: list[Move] = [
            ("feedback", "read", 2 * steps, sizes.get("feedback", 0) // 2),
            ("potential", "read", steps, sizes.get("potential", 0)), ("error", "write", steps, errors[1]),
        ]  # fmt: skip
        along: list[Move] = [
            ("trace", "read", steps, sizes["trace"] // 2), ("error", "read", steps, errors[1]),
            ("gradient", "write", steps, stored * number["gradient"]),
        ]  # fmt: skip
    else:
        tape, carried = layer.neurons * width(layer, "tape", d), layer.neurons * number["error_state"]
        back = [("tape", "read", steps, tape), ("error_state", "both", steps, carried)]
        back.append(("error", "write", *errors))
        _, count, bits = code(layer, d, images)
        along = [("spikes", "read", count, bits), ("error", "read", *errors)]
        met = visits(layer, layer.unit + layer.fractional)
        for z, n in bursts(met, layer, learned, organization_of(layer, d)).items():
            along.append(("gradient", "both", n / images, z * number["gradient"]))
        if not is_first:
            whole = layer.inputs * number["input_error"]
            back += [("error", "read", *errors), ("input_error", "read", layer.steps, whole)]
            back.append(("input_error", "write", layer.steps if layer.neurons else 1, whole))
            for held in layer.held:
                moves = _handed_down(layer, held, d)
                yield from _actions(name, "error", sizes | arrays[held.component], moves, layer, images, held)
    yield from _actions(name, "error", own, back, layer, images)
    yield from _actions(name, "gradient", own, along, layer, images, learned)
    times, ways = (steps, "read") if d.rule == "local" else (1, "both")
    update: list[Move] = [("gradient", ways, times, stored * number["gradient"])]
    update.append(("momentum", "both", times, stored * number["momentum"]))
    if d.rule == "bptt" and layer.learned:
        changes = layer.learned.changes / layer.learned.recordings
        update.append(("master", "read", times, stored * number["master"]))
        update += [("master", "write", changes, number["master"]), ("weights", "write", changes, learned.bits)]
    else:
        update.append(("master", "both", times, stored * number["master"]))
        update.append(("weights", "write", times, own.get("weights", 0)))
    yield from _actions(name, "update", own, update, layer, images, learned)


def _handed_down(layer: LayerCounts, held: Held, definitions: Definitions) -> list[Move]:
    """Transposed reads of an array, and accesses of the sums that they are added to, for errors that are not zero.

    Errors are taken one after the other; where connectivity is computed (functional) all errors of a place together,
    with a register for the sum over outputs.
    """
    organization, number = organization_of(layer, definitions), width(layer, "input_error", definitions)
    rows, columns, stored = shape(layer, held)
    passes = layer.steps if layer.neurons else 1
    met = everywhere(layer)
    inputs = layer.weight_shape[1]
    if organization == "functional":
        reads: list[Move] = [("weights", "read", passes * int(met.sum()), columns * held.bits)]
        sums = (passes * int(met.sum()) // inputs, inputs * number)
    elif is_sparse(organization):
        at = int((met * held.nonzero_CKK).sum())
        reads = [("weights", "read", passes * at, held.bits)]
        if organization == "pb-bmp":
            reads.append(("index", "read", passes * layer.places, rows * code_bits(stored + 1)))
            reads.append(("index", "read", passes * int(met.sum()) * columns, 1))
        else:
            reads.append(("index", "read", passes * layer.places, transposed_index_bits(rows, columns, stored)))
        sums = (passes * at, number)
    else:
        alone = organization == "row"
        reads = [("weights", "read", passes * columns * (rows if alone else 1), held.bits * (1 if alone else rows))]
        sums = (passes * columns, rows * number)
    return [*reads, ("input_error", "both", *sums)]


def ann_actions(name: str, layer: LayerCounts, definitions: Definitions, *, in_memory: bool = True) -> Iterator[Action]:
    """The ordinary network of the same shape on the same machine: every input active once, weights dense.

    Inputs and weights are numbers of the chosen arithmetic. Weights lie as the spiking network's, but zeros are stored;
    inputs visit rows, or columns are read, as there. No membranes. in_memory: False if the weights lie on a crossbar.
    """
    dense = {"pb-bmp": "row", "pb-csr": "row"}.get(definitions.linear_organization, definitions.linear_organization)
    machine = definitions.model_copy(
        update={"rule": "inference", "linear_organization": dense, "conv_organization": "functional",
                "spike_code": "bitmap"}
    )  # fmt: skip
    ones = np.ones((layer.weight_shape[1], *layer.image), dtype=np.int64)
    one = np.array([layer.inputs])
    all_CKK = np.full(layer.weight_shape[1:], layer.weight_shape[0], dtype=np.int64)
    bits = arithmetic_bits(definitions)
    held = Held("synapse", bits, False, all_CKK, np.empty(0), np.empty(0), layer.weight_shape[0], 0)
    active = replace(
        layer, parts=0, unit=0 * ones, fractional=ones, unit_T=0 * one, fractional_T=one, spikes_T=0 * one, held=[held],
        traced=None, readout=None,
    )  # fmt: skip
    if in_memory:
        yield from weight_actions(name, active, held, machine, 1, "ann_inference")
    sizes = {"activation": layer.inputs * bits}
    yield from _actions(name, "ann_inference", sizes, [("activation", "both", 1, layer.inputs * bits)], active, 1)


def _actions(
    name: str, phase: str, sizes: dict[str, int], moves: list[Move], layer: LayerCounts, images: int,
    held: Held | None = None,
) -> Iterator[Action]:  # fmt: skip
    """Actions of moves; those that move nothing are left out. sizes: variable → bits of its memory."""
    about = {"timesteps": layer.steps}
    if held is not None:
        events = int(layer.unit.sum() + layer.fractional.sum())
        about |= {"weight_bits": held.bits, "weight_density": held.density}
        about["input_density"] = events / (images * layer.inputs * layer.steps)
    for variable, ways, count, bits in moves:
        if not count or not bits:
            continue
        for way in ("read", "write") if ways == "both" else (ways,):
            action, elements = f"{variable.removesuffix('s')}_{way}", (f"memory_{way}",)
            yield Action(name, phase, "memory", action, elements, count, bits, sizes[variable] / 8192, **about)
