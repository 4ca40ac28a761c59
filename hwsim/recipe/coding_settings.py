"""What a recipe can say about input codings side by side: their energy, when to stop early, attacks."""

from typing import Annotated, Literal

from pydantic import Field

from hwsim.config import Settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Published(Settings):
    """A stage that prices synapses by the published formula: dense operations of a layer times density of its input."""

    card: str = "horowitz_45nm"
    """Card of arithmetic prices."""
    pooled: Literal["mac", "ac"] = "mac"
    """How an input that is an average of spikes is priced: as a multiplication, or pushed through as additions."""
    samples: Count = 1000
    """Test images to count operations over (at most all)."""


class Exit(Published):
    """Stop before the last step: by the scales of BNTT for all images, by the lead of the first output for each."""

    do: Literal["exit"] = "exit"
    """The verb of this stage."""
    of: Annotated[list[str], Field(min_length=1)]
    """Stages whose networks are measured, as programmed, without variation."""
    scales: list[NotNegative] | None = None
    """Thresholds of the layers' mean scales; null is 0.1, as published, and all at which the exit step changes."""
    margins: list[Positive] | None = None
    """Leads of the summed outputs at which an image leaves; null is 25 that suit the validation images."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Accuracy on the validation images that a rule may lose; its fastest threshold within that is the chosen one."""
    batch_size: Count = 128
    """Images a batch; it does not change the result but for the spike coding that is drawn."""


class Attack(Settings):
    """Attack the pixels of test images: FGSM and PGD, on the network itself and from another."""

    do: Literal["attack"] = "attack"
    """The verb of this stage."""
    of: Annotated[list[str], Field(min_length=1)]
    """Stages whose networks are attacked; of a stage codings all."""
    methods: Annotated[list[Literal["fgsm", "pgd"]], Field(min_length=1)] = ["fgsm", "pgd"]
    """One step of eps, or several of alpha within eps."""
    eps_255: Annotated[list[Annotated[float, Field(ge=0, le=255)]], Field(min_length=1)] = [0.0, 8.0, 16.0, 32.0]
    """Largest change of a pixel, in steps of 1/255; 0 leaves the images."""
    iterations: Count = 7
    """Steps of PGD."""
    alpha_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Step alpha of PGD, as a share of eps."""
    random_start: bool = True
    """Begin PGD at a random point within eps."""
    draws: Count = 8
    """Spike codings over which a gradient through Poisson spikes is averaged."""
    images: Count = 200
    """Test images, the first ones (at most all)."""
    chips: Count = 1
    """Chips that are attacked, each with its own cells; the attacker knows them."""
    variation_scale: NotNegative = 0.0
    """Scale of the card's sigmas on these chips; 0 attacks the weights as programmed."""
    batch_size: Count = 100
    """Images a batch."""
