"""What a recipe can say about how networks answer over time steps."""

from typing import Annotated, Literal

from pydantic import Field

from hwsim.config import Settings

Count = Annotated[int, Field(ge=1)]


class Curve(Settings):
    """Accuracy, ties and sparsity of BITnets at every step, up to more steps than they were trained with."""

    do: Literal["curve"] = "curve"
    """The verb of this stage."""
    of: Annotated[list[str], Field(min_length=1)]
    """Stages whose networks are measured, as programmed, without variation."""
    times: Count = 4
    """How many times the steps of the training the simulation lasts."""
    select_first: bool = True
    """Count the first step's output spikes too; the reference can leave them out."""
    batch_size: Count = 256
    """Test images a batch; it does not change the result."""
