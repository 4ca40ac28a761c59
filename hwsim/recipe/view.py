"""The networks of a stage as an evaluation sees them: which run together on a chip, and under what name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hwsim.data.image import ImageData
from hwsim.recipe import network
from hwsim.recipe.load import Member, Trained
from hwsim.recipe.settings import Recipe


@dataclass(frozen=True)
class View:
    """What is measured under one name: on each of its chips one network, or several whose logits are averaged."""

    name: str
    of: Trained
    shifts: tuple[int | None, ...]
    chips: tuple[int, ...]

    def members(self, chip: int) -> list[Member]:
        """The networks that run on a chip."""
        return [self.of.member(chip, shift) for shift in self.shifts]

    def networks(
        self, recipe: Recipe, data: ImageData, device: torch.device, variation_scale: float
    ) -> Callable[[int], list[nn.Module]]:
        """Chip → its networks, on their stores. One that is for any chip is built once."""
        built: dict[Member, nn.Module] = {}

        def on(chip: int) -> list[nn.Module]:
            wanted = self.members(chip)
            for member in [m for m in built if m not in wanted]:
                del built[member]
            for member in wanted:
                if member not in built:
                    built[member] = network.trained(recipe, data, device, self.of, member, variation_scale)
            return [built[m] for m in wanted]

        return on


def views(name: str, of: Trained, chips: int) -> list[View]:
    """How a stage's networks are measured over chips 0 … chips - 1 (those that it was trained for, if it has its own).

    An ensemble is measured as a whole under the stage's name, then each shift by itself as "name/shift+1".
    """
    own = tuple(c for c in range(chips) if of.chips is None or c in of.chips)
    shifts = of.shifts
    alone = [View(f"{name}/shift{s:+d}", of, (s,), own) for s in shifts] if len(shifts) > 1 else []
    return [View(name, of, tuple(shifts), own), *alone]
