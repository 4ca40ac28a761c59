"""Sparsity of activity and of weights, by layer and time step."""

from hwsim.report.trace import Counts, LayerCounts

COLUMNS = ("run_id", "layer", "timestep", "neurons", "spikes", "zeros_fraction", "inputs", "nonzero_inputs")
LEVELS = ("layer", "part", "bits", "levels_used", "weights")


def sparsity_rows(counts: Counts, run_id: str) -> list[dict]:
    """Rows of sparsity.csv: per layer and step (from 1), an image's neurons, spikes, and inputs that are not zero."""
    return [
        _sparsity(name, layer, t, counts, run_id) for name, layer in counts.layers.items() for t in range(counts.steps)
    ]


def level_rows(counts: Counts) -> list[dict]:
    """Rows of levels.csv: distinct weights in use, by layer on a device and array."""
    return [
        {"layer": name, "part": h.component, "bits": h.bits, "levels_used": h.distinct, "weights": layer.weights}
        for name, layer in counts.layers.items()
        for h in layer.held
        if any(other.cells for other in layer.held)
    ]


def _sparsity(name: str, layer: LayerCounts, t: int, counts: Counts, run_id: str) -> dict:
    spikes = int(layer.spikes_T[t]) / counts.images
    # A layer that is computed once an image has its inputs at the first step only.
    arrived = t < layer.steps
    nonzero = int(layer.unit_T[t] + layer.fractional_T[t]) / counts.images if arrived else 0.0
    zeros = 1 - spikes / layer.neurons if layer.neurons else ""
    values = (run_id, name, t + 1, layer.neurons, spikes, zeros, layer.inputs if arrived else 0, nonzero)
    return dict(zip(COLUMNS, values, strict=True))
