"""What a recipe can say about integer networks: stages that train on one pattern, or on events with local errors.

Bit widths are numbers, `card` (what the device card's state block says) or `none` (that quantizer is off).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hwsim.config import CardError, Settings
from hwsim.device.card import load_card

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=24)] | Literal["card", "none"]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Profile = Literal["release", "paper", "fixed"]


class Integer(Settings):
    """What both kinds of integer networks have."""

    card: str
    """Device card whose state block gives the widths that are not given."""
    profile: Profile = "fixed"
    """release: the published code; paper: the runs of the paper; fixed: with the traps mended."""
    epochs: Count
    """Passes over the training data."""
    wb: Width = "card"
    """Bits of a weight in the forward pass."""
    ab: Width = "card"
    """Bits of activations: the pattern net's states, DECOLLE's readout."""
    gb: Width = "card"
    """Bits of a gradient: a weight changes in steps of 2^(1 - gb)."""
    eb: Width = "card"
    """Bits of an error."""
    rb: Width = "card"
    """Bits of the random number that rounds a gradient."""

    def widths(self, *names: str) -> dict[str, int | None]:
        """Bits by name; None is off. Raises `CardError` if the card is asked and says nothing."""
        state = load_card(self.card).state
        out: dict[str, int | None] = {}
        for name in names:
            given = getattr(self, name)
            if given == "card":
                if state is None or name not in state.bits:
                    raise CardError(f"card {self.card}: its state block has no bits for '{name}'; give them, or none")
                given = state.bits[name]
            out[name] = None if given == "none" else given
        return out


class Pattern(Integer):
    """Train the integer pattern network: it answers one spike raster with another."""

    WIDTHS: ClassVar[tuple[str, ...]] = ("wb", "ab", "gb", "eb", "rb")

    do: Literal["pattern"] = "pattern"
    """The verb of this stage."""
    card: str = "int_iscas2020"
    """Device card whose state block gives the widths that are not given."""
    epochs: Count = 1000
    """Presentations of the pattern, an update each."""
    inputs: Count = 700
    """Input neurons."""
    hidden: Count = 400
    """Hidden neurons."""
    outputs: Count = 250
    """Output neurons: columns of the target raster."""
    steps: Count = 250
    """Time steps T: rows of the rasters."""
    target: str = "smiley"
    """smiley (drawn), or a file: picture, .npy raster, or .npz with input and target."""
    alpha: Share = 0.75
    """Share of the synapse state that is left after a step."""
    beta: Share = 0.875
    """Share of the membrane that is left after a step."""
    kernel: Share | None = None
    """Decay of the van Rossum kernel a step; null is the profile's."""
    optimizer: Literal["sgd", "adamax"] | None = None
    """How weights change; null is the profile's."""
    rate: Positive | None = None
    """Scales the probability of a step; null is the profile's."""
    snapshots: list[Count] = [1, 10, 100, 1000]
    """Epochs whose output raster is kept for the figure; the last epoch always is."""
    backend: Literal["auto", "integer", "integer-torch", "float"] = "auto"
    """integer codes or their float emulation; auto takes integers where all widths are set."""

    def rule(self):
        """The network's `PatternRule`. Raises `ConfigError` with a line for everything that cannot be."""
        from hwsim.network.pattern_rule import PatternRule  # torch

        same = ("inputs", "hidden", "outputs", "steps", "alpha", "beta", "profile", "kernel", "optimizer", "rate")
        return PatternRule(**{k: getattr(self, k) for k in same}, **self.widths(*self.WIDTHS))


class Events(Settings):
    """Recordings of events, and the windows cut from them."""

    name: Literal["shapes", "nmnist", "poker-dvs", "slow-poker", "gesture"] = "shapes"
    """The data set; shapes is made here, the others are files."""
    dir: str | None = None
    """Folder of the data sets; null is $HWSIM_DATA, or ./data."""
    split: Literal["clean", "seed", "folds"] = "clean"
    """clean never has related recordings on two sides; seed is the reference's shuffle, which leaks (trap B21)."""
    limit: Count | None = None
    """Training recordings to use at most, and the same share of the others."""
    steps: Count | None = None
    """Time steps of a window; null is the data set's."""
    test_steps: Count | None = None
    """The same for validation and test."""
    step_ms: Count | None = None
    """Milliseconds a step; null is the data set's."""
    ds: Count | None = None
    """Pixels that become one, in x and in y; null is the data set's."""
    mode: Literal[0, 1, 2, 3, "counts"] = 0
    """What a pixel's events become; 0: any makes a 1, two channels."""
    short: Literal["refuse", "pad"] = "refuse"
    """A recording shorter than its window is refused, or followed by silence."""
    chunk_ms: Count = 500
    """Milliseconds of a recording of slow-poker."""
    variant: str = "on"
    """Which events of poker-dvs."""


class Decolle(Integer):
    """Train DECOLLE on events: local errors at every layer, weights change at every step."""

    WIDTHS: ClassVar[tuple[str, ...]] = ("wb", "qb", "pb", "rfb", "sb", "gb", "eb", "ub", "ab", "sig", "rb")

    do: Literal["decolle"] = "decolle"
    """The verb of this stage."""
    card: str = "int_icons2020"
    """Device card whose state block gives the widths that are not given."""
    epochs: Count = 10
    """Passes over the training recordings."""
    repeats: Count = 1
    """Networks to train, each with its own seed; the interval is over them."""
    batch_size: Count = 72
    """Recordings a batch."""
    events: Events = Events()
    """The recordings."""
    pb: Width = "card"
    """Bits of the membrane trace P."""
    qb: Width = "card"
    """Bits of the synaptic trace Q."""
    rfb: Width = "card"
    """Bits of the refractory state R."""
    ub: Width = "card"
    """Bits of the membrane U."""
    sb: Width = "card"
    """Bits of the fixed readout and its feedback."""
    sig: Width = "card"
    """Bits of a pooled sigmoid that enters the readout."""
    kind: Literal["conv", "dense"] = "conv"
    """conv: convolutions; dense: fully connected layers."""
    channels: Annotated[list[Count], Field(min_length=1)] = [64, 128, 128]
    """Output channels, or neurons, of each layer."""
    kernel: Count = 7
    """Rows and columns of a kernel."""
    padding: Annotated[int, Field(ge=0)] = 2
    """Padding on each side."""
    pooling: list[Count] = [2, 1, 2]
    """Size of the max-pooling behind each layer."""
    pq_cap: Positive | None = None
    """Full scale of P and Q, as a share of the response to an input that is always on; null is the profile's."""
    lr: Positive = 1.0
    """Scales the probability of a step of a weight."""
    lr_sgd: Positive = 1e-9
    """Learning rate where gb is none."""
    lr_div: Annotated[int, Field(ge=0)] | None = None
    """Epochs after which the rate falls; 0 never, null the profile's."""
    beta: Positive = 1.5
    """Steps of a weight that the first weights span at least."""
    l1: Annotated[float, Field(ge=0)] = 0.001
    """Regularizer of activity (inert where eb is set, trap B14)."""
    l2: Annotated[float, Field(ge=0)] = 0.001
    """Regularizer of silence (inert where eb is set)."""
    dropout: Share = 0.5
    """Probability that a class score is dropped, a step."""
    tau_mem: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [5.0, 35.0]
    """Steps: bounds of the time constants of P."""
    tau_syn: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [5.0, 10.0]
    """Steps: bounds of the time constants of Q."""
    tau_ref: Positive = 1 / 0.35
    """Steps: time constant of the refractory state."""
    weight_mult: Positive = 4e-5
    """What a weight of 1 is worth."""
    lc_ampl: Positive = 0.5
    """Range of the readout's weights."""
    burn_in: Annotated[int, Field(ge=0)] = 50
    """Steps that neither learn nor vote."""
    backend: Literal["auto", "fused", "float", "codes"] = "auto"
    """fused kernels, float emulation, or integer codes in torch; auto is the fastest that the settings allow."""

    def rule(self, image: tuple[int, int], inputs: int, classes: int):
        """The network's `DecolleRule` for these events. Raises `ConfigError` for everything that cannot be."""
        from hwsim.network.decolle_rule import DecolleRule  # torch

        same = (
            "kind", "kernel", "padding", "profile", "pq_cap", "lr", "lr_sgd", "lr_div", "beta", "l1", "l2", "dropout",
            "tau_ref", "weight_mult", "lc_ampl", "burn_in",
        )  # fmt: skip
        lists = {k: tuple(getattr(self, k)) for k in ("channels", "pooling", "tau_mem", "tau_syn")}
        sizes = {"image": image, "inputs": inputs, "classes": classes}
        return DecolleRule(**sizes, **lists, **{k: getattr(self, k) for k in same}, **self.widths(*self.WIDTHS))
