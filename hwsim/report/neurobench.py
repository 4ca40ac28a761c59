"""NeuroBench's metrics by their names and definitions (NeuroBench 2.3.0, arXiv 2304.04640), from exact counts.

With images M, steps T, spiking neurons N and their spikes S of a layer, weights w of which z are zero, b bits each, C
output channels, e inputs that are not zero (over all images and steps):

    footprint            sum of w b / 8 + 3 T C 4 bytes   weights as held; factor, mean and variance of BNTT, float32
    parameter_count      sum of w + T C                   weights (and biases), and the factors of BNTT if there is one
    connection_sparsity  sum z / sum w
    activation_sparsity  1 - sum S / sum M T N            every image counts (their issue 258: the first one of a batch)
    Effective_ACs        effective operations of e / M    of layers whose inputs are all -1, 0 or 1; else 0
    Effective_MACs       the same                         of all other layers; else 0
    Dense                T times the synapses             as if no input and no weight were zero; padding is none
    membrane_updates     sum of T N

Effective operations are those over weights that are not zero, padding excluded (`effective` of
`hwsim.report.action.Definitions`). The totals are over layers; of an ensemble over all its members. A hybrid layer
counts each of its two arrays like a layer of its own.

Where this differs from what their tool prints for a torch module that runs step by step:

* Weights are those that the hardware holds (after rounding), not the float masters; the footprint has their bits.
  Nothing is rounded to four decimals. Torch's own counter of batches (8 bytes a BNTT and step) is not in the footprint.
* Whether a layer's operations are ACs or MACs is decided for all images and steps together; they decide batch by batch
  and step by step, so that a batch whose pooled averages happen to be 0 or 1 moves to the ACs. The sum is the same.
* Inputs behind average pooling are values between 0 and 1: MACs, as theirs. A bias would not count, as theirs.
* A layer that is computed once an image (direct coding) counts once, T = 1; their hooks see as many calls as the model
  makes. The last layer reads spikes at each of the T steps, however the program adds them up.
* They leave out a membrane that kept its value. The trace has no membranes, so every neuron counts at every step, which
  is their upper bound; BNTT adds an offset at every step, and membranes keep their value only by coincidence.
"""

from collections.abc import Iterable

from hwsim.report.trace import Counts, LayerCounts

COLUMNS = ("run_id", "layer", "metric", "value", "unit")
FLOAT_BYTES = 4
"""Bytes of one of BNTT's numbers, a float32."""
METRICS = {
    "footprint": ("bytes", "memory of the weights at the bits that they are held in (zeros included) and of the "
                           "normalization: three float32 a channel and step"),
    "parameter_count": ("parameters", "weights, and one factor of the normalization a channel and step"),
    "connection_sparsity": ("fraction", "weights that are zero"),
    "activation_sparsity": ("fraction", "neurons and steps without a spike, over all images"),
    "Effective_MACs": ("operations an image", "synapses that inputs reach, without zero weights, zero inputs and "
                                              "padding: layers with an input other than -1, 0 and 1"),
    "Effective_ACs": ("operations an image", "the same of layers whose inputs are all -1, 0 or 1"),
    "Dense": ("operations an image", "the same as if no weight and no input were zero"),
    "membrane_updates": ("updates an image", "neurons times steps, an upper bound: they leave out membranes that keep "
                                             "their value"),
}  # fmt: skip
"""Metric → (unit, definition in words)."""


def metric_rows(counts: Counts, run_id: str) -> list[dict]:
    """Rows of report-metrics.csv: every metric of each layer, then of all (layer TOTAL).

    A layer without neurons has no activation_sparsity, nor has a network without any.
    """
    together = {name: [layer] for name, layer in counts.layers.items()} | {"TOTAL": list(counts.layers.values())}
    rows = []
    for name, layers in together.items():
        for metric, value in metrics(layers, counts.steps, counts.images).items():
            values = (run_id, name, metric, value, METRICS[metric][0])
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def metrics(layers: Iterable[LayerCounts], steps: int, images: int) -> dict[str, float]:
    """The metrics of some layers together, in the order of `METRICS`."""
    layers = list(layers)
    spiking = [layer for layer in layers if layer.neurons]
    held = [(layer, h) for layer in layers for h in layer.held]
    weights = [h.nonzero_CKK.size * h.outputs for _, h in held]
    biases = [(layer.traced.biases, layer.held[0].bits) for layer in layers if layer.traced]
    nonzero = sum(int(h.nonzero_CKK.sum()) for _, h in held)
    channels = sum(layer.weight_shape[0] for layer in spiking if layer.normalized)
    activations = images * steps * sum(layer.neurons for layer in spiking)
    spikes = sum(int(layer.spikes_T.sum()) for layer in spiking)
    effective = {True: 0, False: 0}
    for layer, h in held:
        effective[is_mac(layer)] += layer.operations(layer.unit + layer.fractional, "effective", h)
    out = {
        "footprint": sum(w * h.bits for w, (_, h) in zip(weights, held, strict=True)) / 8
        + sum(number * bits for number, bits in biases) / 8
        + 3 * FLOAT_BYTES * steps * channels,
        "parameter_count": sum(weights) + sum(number for number, _ in biases) + steps * channels,
        "connection_sparsity": 1 - nonzero / sum(weights),
        "activation_sparsity": 1 - spikes / activations if activations else None,
        "Effective_MACs": effective[True] / images,
        "Effective_ACs": effective[False] / images,
        "Dense": sum(layer.steps * layer.dense("inbounds") for layer, _ in held),
        "membrane_updates": steps * sum(layer.neurons for layer in spiking),
    }
    return {k: v for k, v in out.items() if v is not None}


def is_mac(layer: LayerCounts) -> bool:
    """Whether any input of a layer, over all images and steps, was other than -1, 0 and 1."""
    return bool(layer.fractional.any())
