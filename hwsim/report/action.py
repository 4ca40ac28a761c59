"""What is counted: the actions of an accelerator, and the definitions by which they are counted."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from hwsim.config import Settings
from hwsim.device.price import Scaling


class Definitions(Settings):
    """How work is counted; every choice that changes a number of the energy table."""

    synapses: Literal["inbounds", "effective", "fanout"] = "inbounds"
    """What an input event costs: the synapses that exist; of these the ones that are not zero; or what the published
    formula takes (zeros and padding counted)."""
    pooled: Literal["mac", "ac"] = "mac"
    """How an input that is no spike but an average of spikes is priced: as a multiplication, or as an addition."""
    arithmetic: Literal["fp32", "fp16", "int32", "int8", "int"] = "fp32"
    """Number format of additions and multiplications; int: whole numbers, each as wide as the network's own."""
    state_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    """Bits of a membrane potential, and of every other state, in memory; null is the network's own, 32 without."""
    linear_organization: Literal["row", "column", "crossbar", "pb-bmp", "pb-csr"] = "row"
    """How a linear layer's weights lie in memory."""
    conv_organization: Literal["functional", "pb-bmp", "pb-csr"] = "functional"
    """How a convolution's weights lie in memory."""
    spike_code: Literal["bitmap", "events", "shorter"] = "bitmap"
    """How spikes travel between layers: a bit a neuron, an address a spike, or for each layer the shorter of these."""
    rule: Literal["inference", "bptt", "local"] = "inference"
    """What the network does: inference, or learning by backpropagation through time or by local errors."""
    skip_zero_windows: bool = True
    """Whether a crossbar is left alone when no input of it is active."""
    map_all: bool = False
    """Count every layer on the crossbar, with the bits of those that lie on RRAM; else those that do."""
    step_time_us: Annotated[float, Field(gt=0)] | None = None
    """Microseconds of a time step, the time base of static energy; null is the card's, or no static energy."""
    to_node_nm: Annotated[float, Field(gt=0)] | None = None
    """Technology node to which prices are scaled; null leaves them, and refuses cards of several nodes."""
    scaling: Scaling = "cubic"
    """How dynamic energy falls with the node: linear (one voltage), cubic (voltage falls too), or quadratic."""


class Action(NamedTuple):
    """An action that a network's work takes an accelerator, and how often an image needs it.

    elements: the prices that one action adds up, in the words of a card; often one, and `action` itself.
    bits: what one action moves, resolves or is done on; kib: capacity of the memory that it goes to (laws need them).
    widths: bits that each element is as wide as, where they differ; a multiplication: its operands', multiplied.
    """

    layer: str
    phase: str
    component: str
    action: str
    elements: tuple[str, ...]
    count: float
    bits: int = 0
    kib: float = 0.0
    weight_bits: int | str = ""
    input_bits: int | str = ""
    timesteps: int | str = ""
    input_density: float | str = ""
    weight_density: float | str = ""
    widths: tuple[int, ...] = ()

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Each element with its bits."""
        return list(zip(self.elements, self.widths or (self.bits,) * len(self.elements), strict=True))
