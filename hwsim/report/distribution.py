"""How firing rates and weights are distributed, and which neurons fired at one image: rows of a report's CSV files."""

from collections.abc import Iterator

import numpy as np

from hwsim.report.trace import Counts

RATES = ("run_id", "layer", "rate_above", "rate_to", "neurons", "neurons_fraction")
WEIGHTS = ("run_id", "layer", "array", "bits", "weight", "bin_width", "weights", "weights_fraction")
RASTER = ("run_id", "layer", "timestep", "neuron")
BINS = 50
"""Bins of a firing rate between 0 and 1; a neuron that never fired is in none of them."""
LEVELS, WEIGHT_BINS = 256, 64
"""Values of an array that are told one by one (8 bits have so many), and the bins of one that holds more."""
NEURONS = 100
"""Neurons of a layer that a raster shows at most, evenly spaced among all."""


def rate_rows(counts: Counts, run_id: str) -> Iterator[dict]:
    """Rows of report-firing-rates.csv: neurons of a layer by their spikes a step, over all images and steps.

    The first row of a layer is the silent neurons, rate 0 to 0; then BINS bins, above one edge and up to the next.
    """
    for name, layer in counts.layers.items():
        if not layer.neurons:
            continue
        # Bin 0 is no spike, bin i is above (i - 1)/BINS and up to i/BINS; whole numbers, so that edges are exact.
        bins = -(-layer.spikes_N * BINS // (counts.images * counts.steps))
        for i, neurons in enumerate(np.bincount(bins, minlength=BINS + 1).tolist()):
            values = (run_id, name, max(i - 1, 0) / BINS, i / BINS, neurons, neurons / layer.neurons)
            yield dict(zip(RATES, values, strict=True))


def weight_rows(counts: Counts, run_id: str) -> Iterator[dict]:
    """Rows of report-weight-levels.csv: how many weights of an array hold each value.

    Of an array with more than LEVELS values: how many lie in each of WEIGHT_BINS bins around `weight`, bin_width wide
    (else 0).
    """
    for name, layer in counts.layers.items():
        for held in layer.held:
            levels, at, width = held.levels, held.weights_at, 0.0
            if len(levels) > LEVELS:
                at, edges = np.histogram(levels, WEIGHT_BINS, weights=at)
                levels, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
            for level, weights in zip(levels.tolist(), at.astype(int).tolist(), strict=True):
                values = (run_id, name, held.component, held.bits, level, width, weights, weights / at.sum().item())
                yield dict(zip(WEIGHTS, values, strict=True))


def raster(counts: Counts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer → (numbers of at most NEURONS neurons [n], their spikes at the first image [T, n])."""
    out = {}
    for name, layer in counts.layers.items():
        if layer.neurons:
            shown = np.arange(min(layer.neurons, NEURONS)) * layer.neurons // min(layer.neurons, NEURONS)
            out[name] = shown, counts.raster[name][:, shown]
    return out


def raster_rows(counts: Counts, run_id: str) -> Iterator[dict]:
    """Rows of report-raster.csv: the spikes of `raster`, time steps from 1, neurons from 0 in the order C, H, W."""
    for name, (shown, spikes_TN) in raster(counts).items():
        for t, n in np.argwhere(spikes_TN).tolist():
            yield dict(zip(RASTER, (run_id, name, t + 1, int(shown[n])), strict=True))
