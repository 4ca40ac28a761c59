"""Train one network of a stage: a stage has one, or one for each chip that it keeps and each shift that it tries."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hwsim.data.image import ImageData
from hwsim.device.store import load
from hwsim.recipe import network
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.load import Member, Trained
from hwsim.recipe.progress import Progress
from hwsim.recipe.ranks import ALONE, Ranks
from hwsim.recipe.recover import as_parent, begin, sram_rows
from hwsim.recipe.settings import Prune, Recipe, Recover, Train
from hwsim.recipe.train import train


@dataclass(frozen=True)
class Work:
    """What all stages of a run share."""

    recipe: Recipe
    data: ImageData
    device: torch.device
    progress: Progress
    ranks: Ranks = ALONE

    def tensors(self, member: Member) -> dict[str, torch.Tensor]:
        """A trained network's tensors, on the device."""
        return {k: v.to(self.device) for k, v in load_tensors(member.weights, member.sha256)[0].items()}


def train_member(
    work: Work, name: str, stage: Train, key: str, folder: Path, parent: Trained | None, chip: int | None,
    shift: int | None, other: Trained | None = None,
) -> dict:  # fmt: skip
    """Train stage `name`'s network for a chip and shift; its weights go to `folder`, and where they are there, done.

    other: network that the SRAM part begins with. Returns file, chip, shift_bit, rows of metrics.csv and of sram.csv.
    """
    shifts = {s for _, s in stage.members}
    own = ("" if chip is None else f"-chip{chip}") + (f"-shift{shift:+d}" if len(shifts) > 1 else "")
    which = {"chip": "" if chip is None else chip, "shift_bit": "" if shift is None else shift}
    made = {"file": f"weights{own}.safetensors", "chip": chip, "shift_bit": shift}
    path = folder / made["file"]
    about = work.ranks.first(lambda: load_tensors(path)[1] if path.exists() else {})
    if about.get("key") == key:  # of an interrupted stage whose later networks are missing
        return {**made, "rows": about["rows"], "sram_rows": about["sram_rows"]}
    tensors = work.tensors(parent.member(chip, shift)) if parent else None
    net = _first(work, stage, tensors, parent is not None and parent.masked, chip, shift, other)
    keeps = isinstance(stage, Recover) and stage.keep_parent and stage.prune is None
    best, rows = train(
        net, work.data, stage, name=name + own, key=key, seed=work.recipe.seed,
        epochs_before=parent.epochs if parent else 0, augmentation=work.recipe.data.augment,
        resume=folder / f"resume{own}.safetensors", progress=work.progress, chip=chip or 0,
        fallback=(lambda: as_parent(net, tensors)) if keeps else None, ranks=work.ranks,
        statistics=work.recipe.statistics, cuda_graphs=work.recipe.cuda_graphs,
    )  # fmt: skip
    sram = []
    if isinstance(stage, Recover):
        load(net, best)
        sram = sram_rows(net, (stage.prune or Prune()).group)
    rows, sram = ([{**row, **which} for row in part] for part in (rows, sram))
    work.ranks.first(lambda: save_tensors(path, best, {"key": key, "rows": rows, "sram_rows": sram}))
    return {**made, "rows": rows, "sram_rows": sram}


def _first(
    work: Work, stage: Train, tensors: dict[str, torch.Tensor] | None, is_masked: bool, chip: int | None,
    shift: int | None, other: Trained | None,
) -> network.Network:  # fmt: skip
    """The network that a stage begins with, on its stores. tensors: its parent's; is_masked: that one is pruned."""
    recipe, recovers = work.recipe, isinstance(stage, Recover)
    net = network.fresh(recipe, work.data, work.device, *(["sram"] if recovers else []))
    if not recovers:
        if stage.weights == "device":
            network.place_stores(net, recipe, network.store(recipe, stage.variation_scale))
        if tensors:
            load(net, tensors)
        return net
    masked = "revivable" if stage.prune else "fixed" if is_masked else "no"
    held = network.store(recipe, stage.variation_scale, stage.sram, shift, masked)
    network.place_stores(net, recipe, held)
    begin(net, tensors, stage, chip, recipe.seed, work.tensors(other.members[0]) if other else None)
    return net
