"""Train the pattern network of a stage: resumable, with its loss, densities and rasters as rows and files."""

from pathlib import Path
from typing import NamedTuple

import torch

from hwsim.data.pattern import PatternData, load_pattern
from hwsim.network.pattern import LAYERS, PatternNet, train_pattern
from hwsim.network.pattern_rule import PatternRule
from hwsim.recipe.account import IDEAL_BITS, array
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.integer_settings import Pattern
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.learned import Learned
from hwsim.report.organization import code_bits
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
    tensors, about = load_tensors(weights)
    net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    x = data.input_TI.to(trainer.device, torch.uint8).contiguous()
    _, trace = net(x, account=account.window_rows)
    counts = Counts(stage.steps)
    counts.add(trace, 1)
    bits = stage.widths("wb")["wb"] or IDEAL_BITS
    for layer, weight in zip(LAYERS, net.used(), strict=True):
        here = counts.layers[layer]
        here.held = [array("synapse", weight.T, bits, cells=False)]
        here.normalized, here.widths = False, _widths(net.rule, here.outputs)
        here.learned = learned(about["rows"], layer, here.weights, here.outputs, stage.steps)
    return counts


def learned(rows: list[dict], layer: str, weights: int, neurons: int, steps: int) -> Learned:
    """What training did to a layer, from its rows: shares of the weights, or of an error a neuron and step."""

    def total(name: str, of: int) -> int:
        return sum(round(row[f"{layer}_{name}"] * of) for row in rows)

    changes, drawn = total("update_share", weights), total("gradient_density", weights)
    errors, epochs = total("error_density", neurons * steps), len(rows)
    return Learned(epochs, epochs * steps, epochs, weights, changes, drawn, errors)


def _widths(rule: PatternRule, outputs: int) -> dict[str, int]:
    """Bits by variable of a layer, 32 for a number in floating point.

    A membrane is two states; the tape holds a code, three masks of clipping and the spike; two errors go back through
    time, with two bits for growth. Source: access table of the ISCAS 2020 rule.
    """
    out = {"momentum": 0 if rule.update == "sgd" else 64, "membrane": 64, "error_state": 64}
    if rule.ab is not None:
        out |= {"membrane": 2 * rule.ab, "accumulator": rule.ab, "tape": rule.ab + 4}
    if rule.eb is not None:
        out |= {"error": rule.eb, "error_state": 2 * (rule.eb + 2), "gradient": rule.eb + code_bits(rule.steps)}
        out |= {"input_error": rule.eb + (rule.wb or IDEAL_BITS) + code_bits(outputs)}
    else:
        out |= dict.fromkeys(("error", "gradient", "input_error"), IDEAL_BITS)
    return out | {"master": IDEAL_BITS if rule.gb is None else rule.master_bits}
