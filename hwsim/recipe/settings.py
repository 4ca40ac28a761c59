"""Everything that a recipe can say. The sentence under each field is what `--help` and the JSON Schema print.

Order of authority: default here < recipe file < run given with `--from` < profile (`--smoke`, `--faithful`) < option <
`--set`. What a card may be asked is checked in `resolve.py`, together with everything else, before anything runs.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from hwsim.config import Settings
from hwsim.device.card import WeightSettings

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Net(Settings):
    """The network."""

    name: Literal["vgg5", "vgg9", "vgg11", "vgg19"] = "vgg5"
    """Plan of layers."""
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Multiplies the number of channels of every layer."""
    steps: Annotated[int, Field(ge=1, le=64)] = 20
    """Simulation time steps T; each has its own BNTT statistics."""
    encode: Literal["poisson", "direct", "repeat"] = "poisson"
    """Input coding: signed Poisson spikes, the first layer's current computed once, or the image at every step."""
    leak: Fraction = 0.95
    """What a membrane keeps of itself from one step to the next."""
    threshold: Positive = 1.0
    """Firing threshold of every neuron."""


class Data(Settings):
    """The data set."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"] = "digits"
    """Data set; digits needs no files, the others lie in their official layouts in `dir`."""
    dir: str | None = None
    """Folder of the data sets; without it $HWSIM_DATA, else the user's cache folder."""
    download: bool = False
    """Fetch the official archives where they are missing."""
    limit: Count | None = None
    """Use at most this many training images, and of validation and test the same share."""
    augment: Literal["none", "crop", "crop-flip"] = "none"
    """What is done to training images: shift within a padded frame, and mirror."""


class Device(Settings):
    """What holds the weights."""

    card: str = "rram_65nm_asu"
    """Device card: a name that `hwsim device` lists, or a YAML file."""
    on: Annotated[list[str], Field(min_length=1)] = ["conv*"]
    """Layers whose weights lie on the device, as patterns of layer names; the others are ideal."""
    weights: WeightSettings = WeightSettings()
    """How a weight is quantized and varied."""


class Train(Settings):
    """Train a network, or train one further. The optimizer is SGD with the reference's settings."""

    do: Literal["train"] = "train"
    """The verb of this stage."""
    start: str | None = Field(None, alias="from")
    """Earlier stage whose network this one continues; null starts from fresh weights."""
    variation_scale: NotNegative = 1.0
    """Multiplies every sigma of the card while this stage trains; 0 trains without variation."""
    epochs: Count = 100
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Training images a batch; the last, incomplete batch of an epoch is left out."""
    lr: Positive = 0.1
    """Learning rate of the first epoch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 1e-4
    """L2 coefficient on every parameter."""
    drop_at: list[Fraction] = [0.5, 0.7, 0.9]
    """Fractions of the epochs after which the learning rate is multiplied by `drop_factor`."""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of a learning-rate drop."""
    drop_rule: Literal["crossing", "equality"] = "crossing"
    """Drop when a fraction is passed, or, like the reference, only when an epoch equals it in floating point."""
    validation_chips: Count = 4
    """Chips over which the validation accuracy is averaged after each epoch; the best epoch's weights are kept."""


class Load(Settings):
    """Take a trained network from a finished run."""

    do: Literal["load"] = "load"
    """The verb of this stage."""
    run: str | None = None
    """Run folder, or a stage's folder in it; `--from` sets it."""


class Evaluate(Settings):
    """Measure accuracy on the test set over many chips."""

    do: Literal["evaluate"] = "evaluate"
    """The verb of this stage."""
    of: Annotated[list[str], Field(min_length=1)]
    """Stages whose networks are measured."""
    chips: Count = 25
    """Chips, each drawn once and held for the whole test set."""
    variation_scales: Annotated[list[NotNegative], Field(min_length=1)] = [0.0, 1.0]
    """Scales of the card's sigmas at which to measure; 0 is without variation."""
    batch_size: Count = 256
    """Test images a batch; it does not change the result unless `redraw` is batch."""
    redraw: Literal["chip", "batch"] = "chip"
    """chip holds a drawn chip for the whole test set; batch draws anew for every batch, as the reference does."""
    drop_last: bool = False
    """Leave out the last, incomplete test batch and average over batches, as the reference does."""


class Account(Settings):
    """Count what a network does on the test set and price it."""

    do: Literal["account"] = "account"
    """The verb of this stage."""
    of: str
    """Stage whose network is counted."""
    card: str = "horowitz_45nm"
    """Card of prices."""
    samples: Count = 1000
    """Test images to count over (at most all)."""
    synapses: Literal["inbounds", "fanout"] = "inbounds"
    """What an input event costs: the synapses that exist, or k x k also where padding has none (published formula)."""
    pooled: Literal["mac", "ac"] = "mac"
    """How an input that is no spike but an average of spikes is priced: as a multiplication, or as an addition."""


Stage = Annotated[Train | Load | Evaluate | Account, Field(discriminator="do")]


class Option(Settings):
    """A command-line option of a recipe."""

    sets: Annotated[list[str], Field(min_length=1)]
    """Places that the option sets."""
    choices: list[Any] | None = None
    """Values to offer; without it everything that the place allows."""
    help: str
    """One line for --help."""


class Recipe(Settings):
    """A recipe: settings that its stages share, the stages in order, and the options that it offers."""

    title: str
    """What it shows, in a line."""
    time: str = "not measured"
    """How long it takes, and on what machine."""
    expected: str = "not stated"
    """The result to expect."""
    options: dict[str, Option] = {}
    """Command-line options."""
    smoke: dict[str, Any] = {}
    """Place → value: what `--smoke` changes so that everything runs in seconds."""
    faithful: dict[str, Any] = {}
    """Place → value: what `--faithful` changes to do as the reference does."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1234
    """Seed of initial weights, batches and chips."""
    compute: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    net: Net = Net()
    """The network."""
    data: Data = Data()
    """The data set."""
    device: Device = Device()
    """What holds the weights."""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    """The stages, in order."""
