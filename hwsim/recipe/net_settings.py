"""What a recipe can say about its network, and what the words of the published codes stand for."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hwsim.config import Settings

SHORT = {"p": "poisson", "d": "direct"}
"""The published code's words for input codings."""
Encoding = Annotated[
    Literal["poisson", "direct", "repeat"],
    BeforeValidator(lambda word: SHORT.get(word, word) if isinstance(word, str) else word),
]

ORDINARY = ("vgg6-abr", "vgg9-abr", "vgg15")
"""Networks without time (`network/vgg15.py`)."""
BITNETS = ("bitnet6", "bitnet6-v101")
"""Networks of clamped integrate-and-fire neurons (`network/bitnet.py`)."""


class Net(Settings):
    """The network."""

    name: Literal[
        "vgg5", "vgg9", "vgg11", "vgg19", "mlp", "vgg6-abr", "vgg9-abr", "vgg15", "bitnet6", "bitnet6-v101"
    ] = "vgg5"  # fmt: skip
    """Plan of layers."""
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Multiplies the number of channels of every layer; of a bitnet its feature scale fs."""
    steps: Annotated[int, Field(ge=1, le=1024)] = 20
    """Simulation time steps T; each has its own BNTT statistics."""
    encode: Encoding = "poisson"
    """Input coding: signed Poisson spikes (or p), the first layer's current computed once (direct or d), or the image
    at every step."""
    leak: Annotated[float, Field(ge=0, le=1)] = 0.95
    """What a membrane keeps of itself from one step to the next."""
    threshold: Annotated[float, Field(gt=0)] = 1.0
    """Firing threshold of every neuron."""
    norm: Literal["bntt", "none"] = "bntt"
    """Normalization of the currents: BNTT, with statistics for each step, or none."""
    leak_rule: Literal["plain", "complement", "swapped", "reference"] = "plain"
    """How leak acts on membrane v and current I: leak v + I; leak v + (1 - leak) I; swapped, (1 - leak) v + leak I; or
    what the published code of this network has."""
    gain: Annotated[float, Field(gt=0)] | Literal["reference"] = 2.0
    """Gain of the initial weights; reference: 2 with BNTT and for mlp, else vgg9 5, vgg5 4 for Poisson and 3 direct."""
    surrogate: Literal["S1", "S2", "S3"] = "S2"
    """Gradient of a bitnet's spikes; all three are hwsim's own, the author's (bddi) is not published."""
    memory: Literal["auto", "full", "two-pass", "segments", "bits"] = "auto"
    """How a bitnet's training remembers its steps; auto: two-pass for S2, bits for S1 and S3."""
    segment: Annotated[int, Field(ge=1)] | None = None
    """Steps that a bitnet's training runs at once; null needs the least memory."""

    @property
    def is_bitnet(self) -> bool:
        """Whether it is a BITnet: direct coded, without leak and BNTT, threshold 1."""
        return self.name in BITNETS

    @property
    def is_ordinary(self) -> bool:
        """Whether it is a network without time, which stage convert makes a spiking one of."""
        return self.name in ORDINARY

    @property
    def in_time(self) -> str:
        """How it runs over time, in words; nothing of a network without time."""
        if self.is_bitnet:
            return f", T = {self.steps}, direct, surrogate {self.surrogate} (hwsim's own), memory {self.memory}"
        if self.is_ordinary:
            return ""
        bare = "" if self.norm == "bntt" else f", no normalization, leak {self.leak:g} ({self.rule})"
        return f", T = {self.steps}, {self.encode}{bare}"

    @property
    def rule(self) -> str:
        """The leak convention, `reference` resolved: the published VGG9 without BNTT swaps what MLP and VGG5 do."""
        if self.leak_rule != "reference":
            return self.leak_rule
        if self.norm == "bntt":
            return "plain"
        return "swapped" if self.name == "vgg9" else "complement"

    @property
    def initial_gain(self) -> float:
        """The gain of the initial weights, `reference` resolved."""
        if self.gain != "reference":
            return self.gain
        if self.norm == "bntt" or self.name == "mlp":
            return 2.0
        return 5.0 if self.name == "vgg9" else 4.0 if self.encode == "poisson" else 3.0
