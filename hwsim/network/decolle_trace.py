"""What a DECOLLE network leaves for accounting: whole numbers by layer and step, summed over the samples of batches."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hwsim.network.decolle_rule import LayerPlan


class Seen(NamedTuple):
    """Where a layer is active at a step, bool. traces_BCHW: its P; fired_BOYX: its neurons, before pooling;
    features_BF: the sigmoids that its readout reads (after rounding), at a step that votes.
    """

    traces_BCHW: Tensor
    fired_BOYX: Tensor
    features_BF: Tensor | None


@dataclass
class LayerTrace:
    """Counts of one layer, each an int64 array [T].

    Of all steps: `inputs` input spikes (nonzero inputs), `spikes` before pooling, `pooled` behind it, `p`, `q` nonzero
    codes of the traces. Of steps that learn, 0 in others: `scores` nonzero errors at the class scores (e1), `features`
    at the readout's input (e2), `errors` at the membrane (e3), `gradients` nonzero gradients, `steps` weights and
    biases for which a nonzero step was drawn, `updates` those whose stored master changed. `learned`: 1 for each batch
    that learned at the step.
    """

    plan: LayerPlan
    steps_T: int
    samples: int = 0
    weights: int = 0
    """Weights and biases of the layer."""
    nonzero_weights: int = 0
    """Weights (without biases) that are not zero in the forward pass, at the end."""
    inputs: np.ndarray = field(init=False)
    spikes: np.ndarray = field(init=False)
    pooled: np.ndarray = field(init=False)
    p: np.ndarray = field(init=False)
    q: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)
    features: np.ndarray = field(init=False)
    errors: np.ndarray = field(init=False)
    gradients: np.ndarray = field(init=False)
    steps: np.ndarray = field(init=False)
    updates: np.ndarray = field(init=False)
    learned: np.ndarray = field(init=False)

    def __post_init__(self):
        for f in fields(self):
            if not f.init:
                setattr(self, f.name, np.zeros(self.steps_T, np.int64))

    def add(self, other: "LayerTrace") -> None:
        """Add another batch of as many steps."""
        self.samples += other.samples
        self.weights, self.nonzero_weights = other.weights, other.nonzero_weights
        for f in fields(self):
            if not f.init:
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def shares(self) -> dict[str, float]:
        """Fractions of 1: spike densities, nonzero traces and errors, p_upd (updates per weight and learning step).

        Densities are averages over all steps, those of errors and gradients over the steps that learned; `gradient` and
        `p_step` are per weight and learning step. NaN where nothing learned.
        """
        plan, everywhere = self.plan, self.samples * self.steps_T
        inputs, outputs = int(np.prod(plan.shape)), int(np.prod(plan.out))
        batches = self.learned.sum()
        # A batch's samples are not kept apart: all batches that learned do so at the same steps.
        learning = self.samples * np.count_nonzero(self.learned)
        out: dict[str, Any] = {
            "input": self.inputs.sum() / (everywhere * inputs),
            "spike": self.spikes.sum() / (everywhere * outputs),
            "pooled": self.pooled.sum() / (everywhere * plan.features),
            "p": self.p.sum() / (everywhere * inputs),
            "q": self.q.sum() / (everywhere * inputs),
            "weight": self.nonzero_weights / int(np.prod(plan.weight_shape)),
            "feature_error": _over(self.features.sum(), learning * plan.features),
            "error": _over(self.errors.sum(), learning * outputs),
            "gradient": _over(self.gradients.sum(), batches * self.weights),
            "p_step": _over(self.steps.sum(), batches * self.weights),
            "p_upd": _over(self.updates.sum(), batches * self.weights),
        }
        return {k: float(v) for k, v in out.items()}


def _over(count, of) -> float:
    return count / of if of else float("nan")
