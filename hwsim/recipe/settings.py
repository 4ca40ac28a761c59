"""Everything that a recipe can say. The sentence under each field is what `--help` and the JSON Schema print.

Order of authority: default here < recipe file < run given with `--from` < profile (`--smoke`, `--faithful`) < option <
`--set`. What a card may be asked is checked in `resolve.py`, together with everything else, before anything runs.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from hwsim.config import Settings
from hwsim.device.card import WeightSettings
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.coding_settings import Attack, Exit, Published
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.net_settings import BITNETS as BITNETS
from hwsim.recipe.net_settings import ORDINARY as ORDINARY
from hwsim.recipe.net_settings import Encoding, Net
from hwsim.report.action import Definitions

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Data(Settings):
    """The data set."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet"] = "digits"
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
    """Layers whose weights lie on the device, as patterns of names, `!` before those that do not; others are ideal."""
    weights: WeightSettings = WeightSettings()
    """How a weight is quantized and varied."""


class Train(Settings):
    """Train a network, or train one further."""

    @property
    def members(self) -> list[tuple[int | None, int | None]]:
        """(chip, shift) of each network that this stage trains: one, for any chip."""
        return [(None, None)]

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
    optimizer: Literal["sgd", "adam"] = "sgd"
    """How a gradient changes the weights."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decays of Adam's two averages."""
    weight_decay: NotNegative = 1e-4
    """L2 coefficient on every parameter."""
    schedule: Literal["drops", "cosine"] = "drops"
    """drops: the learning rate falls at `drop_at`; cosine: along half a cosine from `lr` to 0 at the end."""
    drop_at: list[Fraction] = [0.5, 0.7, 0.9]
    """Fractions of the epochs after which the learning rate is multiplied by `drop_factor`."""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of a learning-rate drop."""
    drop_rule: Literal["crossing", "equality"] = "crossing"
    """Drop when a fraction is passed, or, like the reference, only when an epoch equals it in floating point."""
    validation_chips: Count = 4
    """Chips over which the validation accuracy is averaged after each epoch; the best epoch's weights are kept."""
    redraw: Literal["batch", "chip"] = "batch"
    """When a chip is drawn: batch (anew for every batch) or chip (once, and kept)."""
    gradient: Literal["straight-through", "xnor", "xnor-imagenet"] = "straight-through"
    """Gradient of a weight on the device: as it comes, or rewritten as XNOR-Net's, whose ImageNet code scales it."""
    weights: Literal["device", "float"] = "device"
    """What is trained: weights as the device holds them, or plain numbers, an ordinary network."""
    center: bool = False
    """Center the weights on the device over their inputs and clamp them to [-1, 1] before every batch, as XNOR-Net."""
    decay_until: Fraction = 1.0
    """Share of the epochs after which the weight decay is 0."""


class Codings(Published):
    """Train a network for each input coding, number of steps and seed; measure their accuracy and energy."""

    do: Literal["codings"] = "codings"
    """The verb of this stage."""
    encodings: Annotated[list[Encoding], Field(min_length=1)] = ["poisson", "direct"]
    """Input codings; each in place of net.encode."""
    steps: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1)] = [1, 2, 4, 8]
    """Time steps T; each in place of net.steps."""
    seeds: Count = 3
    """Networks of each kind: seeds from the recipe's own upwards. Intervals are over them."""
    chips: Count = 1
    """Chips that each network's accuracy is averaged over; each draws cells and spikes anew."""
    variation_scale: NotNegative = 0.0
    """Scale of the card's sigmas on these chips; 0 measures the weights as programmed."""
    train: Train = Train()
    """How each network is trained."""


class SramSettings(Settings):
    """The SRAM part of a hybrid layer."""

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Bits of one SRAM word."""
    quantizer: Literal["twos-complement", "xnor", "none"] = "twos-complement"
    """Grid of the words: twos-complement has a zero and the RRAM's full scale; xnor: the reference's; none: float."""
    shift_bits: Annotated[list[Annotated[int, Field(ge=-8, le=8)]], Field(min_length=1)] = [0]
    """Shift of the SRAM word before it is added, left + and right -; several make an ensemble, a network each."""
    halved: bool = False
    """Divide the sum of both parts by two, as the reference does."""


class Prune(Settings):
    """Group lasso and masks by magnitude on the SRAM part of all layers on the device but the first of them."""

    group: Count = 16
    """Consecutive input channels of one group (with one output channel and the whole kernel)."""
    ratio: Positive = 1.0
    """A group's norm is penalized up to this many times the layer's mean norm."""
    lamda: NotNegative = 1e-4
    """Coefficient of the penalty."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Weights (or norms of groups) up to this share of the layer's largest are masked."""
    by: Literal["element", "group"] = "element"
    """What a mask takes: single weights, as the reference, or whole groups."""
    first: bool = False
    """Mask the first layer too (it is never penalized)."""
    fixed_from: Fraction = 0.7
    """Share of the epochs after which masks stay, the penalty ends, epochs may be kept; 1: never, the reference."""


class Recover(Train):
    """Freeze a trained network's weights in RRAM, add an SRAM part to each, and train that."""

    do: Literal["recover"] = "recover"
    """The verb of this stage."""
    sram: SramSettings = SramSettings()
    """The SRAM part."""
    init: Literal["rram", "zeros", "residual", "sram", "xavier"] = "rram"
    """First SRAM weights: the RRAM's masters, zeros, what the cells miss (residual), those of `init_run`, or random."""
    init_run: str | None = None
    """Run whose weights the SRAM begins with, for init sram; it may hold other bits."""
    loads: Literal["all_but_convs", "statistics"] = "all_but_convs"
    """What else comes from the parent: everything, or the BNTT statistics alone, as in the reference (trap B1)."""
    fixed_chips: Count = 5
    """With redraw chip: how many chips are recovered, each with SRAM weights of its own."""
    keep_parent: bool = True
    """Keep the parent (SRAM all zero) where no epoch is better on the validation images."""
    prune: Prune | None = None
    """Prune the SRAM part while it trains; null does not."""

    @property
    def members(self) -> list[tuple[int | None, int | None]]:
        """(chip or None, shift_bit) of each network that this stage trains."""
        chips = range(self.fixed_chips) if self.redraw == "chip" else [None]
        return [(chip, shift) for chip in chips for shift in self.sram.shift_bits]


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
    adapt: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Training batches that estimate each chip's BNTT statistics anew; 0 leaves them. Several stand side by side."""
    adapt_batch_size: Annotated[int, Field(ge=2)] = 64
    """Training images in one of these batches."""
    drop_last: bool = False
    """Leave out the last, incomplete test batch and average over batches, as the reference does."""
    spikes: Literal["per-chip", "shared"] = "per-chip"
    """Input spikes: per-chip (intervals hold the coding's scatter too), or shared by all chips: cells alone differ."""


class Account(Definitions):
    """Count what a network does on the test set and price it; the counts are kept, so that others may price them."""

    do: Literal["account"] = "account"
    """The verb of this stage."""
    of: str
    """Stage whose network is counted."""
    card: str = "horowitz_45nm"
    """Card of prices, or several that complete each other, CARD+CARD."""
    samples: Count = 1000
    """Test images to count over (at most all)."""
    window_rows: list[Count] = [64, 128, 256]
    """Heights of crossbars for which windows without an active input are counted."""

    @property
    def definitions(self) -> Definitions:
        """How the work is counted."""
        return Definitions(**{name: getattr(self, name) for name in Definitions.model_fields})


Stage = Annotated[
    Train | Recover | Load | Convert | Codings | Evaluate | Curve | Exit | Attack | Account | Pattern | Decolle,
    Field(discriminator="do"),
]


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
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Numbers that are multiplied in convolutions; states, statistics and weights stay float32. tf32: CUDA only."""
    statistics: Literal["synchronised", "local"] = "synchronised"
    """BNTT statistics where several processes share a batch (torchrun): of the whole batch, or of each one's share."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Replay training steps from a CUDA graph where that is possible; off launches every kernel by itself."""
    checkpoint_layers: bool = False
    """Keep only the spikes of each layer for the backward pass and compute its currents again: less memory, slower."""
    check_memory: bool = True
    """Refuse to run where less memory is free than `hwsim doctor` says that the run needs."""
    net: Net = Net()
    """The network."""
    data: Data = Data()
    """The data set."""
    device: Device = Device()
    """What holds the weights."""
    from_replaces: str | None = None
    """Stage whose network `--from` takes from a run, without those before it; null is the first stage."""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    """The stages, in order."""

    @property
    def is_integer(self) -> bool:
        """Whether its stages train integer networks, to which net, data and device do not apply."""
        return any(isinstance(s, Pattern | Decolle) for s in self.stages.values())
