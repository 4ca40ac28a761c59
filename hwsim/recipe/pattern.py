"""Train the pattern network of a stage: resumable, with its loss, densities and rasters as rows and files."""

from pathlib import Path
from typing import NamedTuple

import torch

from hwsim.data.pattern import PatternData, load_pattern
from hwsim.network.pattern import LAYERS, PatternNet, train_pattern
from hwsim.recipe.account import IDEAL_BITS, array
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.integer_settings import Pattern
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.trace import Counts

NUMBERS = ("input_density", "weight_density", "error_density", "gradient_density", "update_share")
LOSS = ("stage", "epoch", "loss", *(f"{layer}_{n}" for layer in LAYERS for n in ("spikes", *NUMBERS)))
"""Columns of loss.csv: van Rossum distance before the epoch's update, and what the layers did in it."""
SAVE_EVERY = 100
"""Epochs between two saves of a training that may be interrupted."""


class Trainer(NamedTuple):
    """What every stage of a run trains with."""

    seed: int
    device: torch.device
    progress: Progress


def checked(stage: Pattern, trainer: Trainer) -> PatternData:
    """The stage's input and target rasters.

    Raises `ConfigError` for settings that cannot be, `DataError` for a target that is missing or does not fit.
    """
    stage.rule()
    sizes = {"steps": stage.steps, "inputs": stage.inputs, "outputs": stage.outputs}
    draws = {f"{what}_generator": generator(trainer.seed, "pattern", what) for what in ("input", "target")}
    return load_pattern(stage.target, **sizes, **draws)


def described(stage: Pattern, data: PatternData) -> str:
    """The network and its pattern in a few words."""
    return f"{stage.inputs}-{stage.hidden}-{stage.outputs}, T = {stage.steps}, {data.name}, profile {stage.profile}"


def network(stage: Pattern, trainer: Trainer) -> PatternNet:
    """The stage's network with its first weights."""
    first = generator(trainer.seed, "initial weights")
    return PatternNet(stage.rule(), generator=first, device=str(trainer.device), backend=stage.backend)


def train(name: str, stage: Pattern, trainer: Trainer, key: str, folder: Path, data: PatternData) -> list[dict]:
    """Train the network of stage `name` in its folder, from where an interrupted training stopped; its rows.

    Leaves weights.safetensors: the network's buffers, and the rasters `input`, `target` and `raster<epoch>`.
    """
    net = network(stage, trainer)
    trainer.progress.say(f"{name}: {net.backend.name} ({net.backend.reason})")
    rasters = {"input": data.input_TI, "target": data.target_TO}
    rows: list[dict] = []
    partial = folder / "resume.safetensors"
    if partial.exists():
        tensors, about = load_tensors(partial)
        if about["key"] == key:
            rows, rasters = about["rows"], {k: v for k, v in tensors.items() if not k.startswith("net.")}
            net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
            trainer.progress.say(f"{name}: goes on after epoch {int(net.epoch)}")

    def save(path: Path) -> None:
        state = {f"net.{k}": v for k, v in net.state_dict().items()}
        save_tensors(path, state | rasters, {"key": key, "rows": rows})

    def uniforms(epoch: int) -> torch.Generator:
        return generator(trainer.seed, "rounding", epoch)

    shown = {*stage.snapshots, stage.epochs}
    course = train_pattern(
        net, data.input_TI, data.target_TO, epochs=stage.epochs, generator=uniforms, snapshots=sorted(shown)
    )
    with trainer.progress.task(name, stage.epochs - len(rows)) as advance:
        for row in course:
            rows.append(_row(row))
            if "raster" in row:
                rasters[f"raster{row['epoch']}"] = row["raster"]
            if row["epoch"] % SAVE_EVERY == 0 and row["epoch"] < stage.epochs:
                save(partial)
            advance(1)
    save(folder / "weights.safetensors")
    return rows


def _row(row: dict) -> dict:
    out = {"epoch": row["epoch"], "loss": row["loss"]}
    for layer in LAYERS:
        here = row["trace"][layer]
        out |= {f"{layer}_spikes": int(here["spikes"].sum()), **{f"{layer}_{n}": here[n] for n in NUMBERS}}
    return out


def count(stage: Pattern, trainer: Trainer, weights: Path, data: PatternData, account: Account) -> Counts:
    """What the trained network does on its pattern."""
    net = network(stage, trainer)
    tensors, _ = load_tensors(weights)
    net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    x = data.input_TI.to(trainer.device, torch.uint8).contiguous()
    _, trace = net(x, account=account.window_rows)
    counts = Counts(stage.steps)
    counts.add(trace, 1)
    bits = stage.widths("wb")["wb"] or IDEAL_BITS
    for layer, weight in zip(LAYERS, net.used(), strict=True):
        counts.layers[layer].held = [array("synapse", weight.T, bits, cells=False)]
    return counts
