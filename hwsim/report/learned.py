"""What a layer that learns leaves for accounting beside its inputs and spikes: how often, with how many errors.

Whole numbers that were counted while the network was trained, so that learning is priced as it happened.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Learned:
    """Sums over a training of one layer.

    recordings: samples that were shown, in all epochs. steps: over them, the time steps at which errors were formed.
    updates: times that all weights were updated, once for a batch. weights: with biases. changes: stored weights that
    an update changed, over all updates; drawn: those for which it drew a step that is not 0. errors: of neurons, not 0.
    gradients: gradients that are not 0 before rounding, if that was counted. scores, features: errors at the classes
    and at the inputs of a layer's own readout, not 0.
    """

    recordings: int
    steps: int
    updates: int
    weights: int
    changes: int
    drawn: int
    errors: int
    gradients: int | None = None
    scores: int = 0
    features: int = 0

    @property
    def changed_share(self) -> float:
        """Stored weights that change, of all that an update might change: p_upd."""
        return self.changes / (self.updates * self.weights)

    @property
    def shared(self) -> int:
        """Steps of recordings that share an update: samples of a batch, or time steps."""
        return -(-self.steps // self.updates)


@dataclass(frozen=True)
class Traced:
    """A layer that multiplies its weights with traces of its inputs (DECOLLE), and how it learns.

    arrived: inputs that are not 0, over all samples and steps; what the weights meet are the traces. features: neurons
    behind the pooling, which its readout reads. votes: steps of a sample at which it does. biases: their number.
    """

    arrived: int
    features: int
    votes: int
    biases: int


@dataclass(frozen=True)
class Readout:
    """A fixed readout with which the layer `of` votes and learns; the same number of weights carries errors back."""

    of: str
    votes: int


KINDS = {"learned": Learned, "traced": Traced, "readout": Readout}


def as_plain(value: Learned | Traced | Readout | None) -> dict[str, Any] | None:
    """As plain data, for a file."""
    return None if value is None else asdict(value)


def of_plain(kind: str, value: dict[str, Any] | None) -> Any:
    """What `as_plain` was given; None of a file that is older than this."""
    return None if value is None else KINDS[kind](**value)
