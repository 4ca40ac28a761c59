"""What a recipe can say about the conversion of a trained network into spikes."""

from typing import Annotated, Literal

from pydantic import Field

from hwsim.config import Settings

Count = Annotated[int, Field(ge=1)]


class Convert(Settings):
    """Convert a trained network into a spiking one, and see how it answers over time."""

    do: Literal["convert"] = "convert"
    """The verb of this stage."""
    start: str = Field(alias="from")
    """Earlier stage whose network is converted."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.7
    """Percentile of a layer's activations, zeros included, that becomes its threshold."""
    norm: Count = 128
    """Training images, the first ones, whose activations are looked at (at most all)."""
    time: Count = 80
    """Time steps T of the simulation."""
    one_step: bool = False
    """A signal passes all layers within a step; else, as published, each layer and average delays it by one."""
    batch_size: Count = 100
    """Images a batch, in calibration and simulation."""
    eval_size: Count | None = None
    """Test images to simulate; null is all."""
    threshold_bits: Annotated[int, Field(ge=1, le=8)] | None = None
    """Bits of the device's cells that hold the thresholds, with their spread; null holds them digitally."""
    margins: list[Annotated[float, Field(gt=0)]] | None = None
    """Leads of the first output over the second at which an image may leave early; null is 25 that suit the network."""
    verify: Annotated[int, Field(ge=0)] = 16
    """Test images on which the integer form is run beside the floats; 0 leaves it out."""
    dropout: bool = False
    """Leave dropout on while activations are looked at, as the reference does."""
    augment: Literal["none", "crop", "crop-flip"] = "none"
    """What is done to calibration and test images; the reference crops and flips both."""
    drop_last: bool = False
    """Leave out the last, incomplete test batch and count its images as wrong, as the reference does."""
