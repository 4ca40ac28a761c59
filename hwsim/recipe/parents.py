"""What can only be checked with data and other runs at hand, and is checked before anything runs.

Batches must fill, networks that are taken from other runs must be this recipe's, groups must divide the layers.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from hwsim.config import ConfigError, RunError
from hwsim.data.image import ImageData
from hwsim.device.card import load_card
from hwsim.recipe import network
from hwsim.recipe.checkpoint import tensor_shapes
from hwsim.recipe.folder import read_stage
from hwsim.recipe.load import Trained, stage_folder, trained_before
from hwsim.recipe.prune import misfits
from hwsim.recipe.resolve import Resolved
from hwsim.recipe.settings import Codings, Evaluate, Load, Recover, SramSettings, Train


def before_running(
    resolved: Resolved, data: ImageData, processes: int = 1
) -> tuple[dict[str, Trained], dict[str, Trained]]:
    """(networks by the load stage that takes them, networks that a stage's SRAM part begins with).

    processes: how many share every training batch.
    Raises `ConfigError` with a line for everything that does not fit, `RunError` for a run that is missing or damaged.
    """
    recipe, document = resolved.recipe, resolved.document
    mistakes = [*_unfilled(resolved, data), *_unshared(resolved, processes)]
    if mistakes:
        raise ConfigError(mistakes)
    net = network.fresh(recipe, data, torch.device("cpu"))  # a plan that does not fit the images is found here
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    on_device = network.place_stores(net, recipe, network.store(recipe, 0.0))
    on_device = {name: shapes[f"{name}.weight"] for name in on_device}
    loaded: dict[str, Trained] = {}
    begun: dict[str, Trained] = {}
    for name, stage in recipe.stages.items():
        if isinstance(stage, Load):
            loaded[name], record = trained_before(name, stage.run, resolved, data, shapes)
            mistakes += _other_cells(name, resolved, record, loaded[name], list(on_device))
        if isinstance(stage, Recover) and stage.prune:
            where = _at(document, name, "prune", "group")
            mistakes += [f"{where}: {m}" for m in misfits(on_device, stage.prune.group)]
        if isinstance(stage, Recover) and stage.init == "sram":
            where = _at(document, name, "init_run")
            try:
                folder = stage_folder(Path(stage.init_run))
            except RunError as e:
                mistakes.append(f"{where}: {str(e).removeprefix('--from ')}")
                continue
            begun[name] = Trained.of_record(folder, read_stage(folder))
            mistakes += _lacking(where, folder, begun[name], on_device)
    if mistakes:
        raise ConfigError(mistakes)
    return loaded, begun


def _at(document, stage: str, *place: str) -> str:
    return f"{document.where(('stages', stage, *place))}: {'.'.join(('stages', stage, *place))}"


def _unfilled(resolved: Resolved, data: ImageData) -> Iterator[str]:
    images = len(data.train)
    for name, stage in resolved.recipe.stages.items():
        if isinstance(stage, Train) and stage.batch_size > images:
            yield (
                f"{_at(resolved.document, name, 'batch_size')}: {stage.batch_size} is more than the {images} training "
                f"images of {data.name}; no batch would be full"
            )
        if isinstance(stage, Evaluate) and max(stage.adapt) * stage.adapt_batch_size > images:
            most = images // stage.adapt_batch_size
            yield (
                f"{_at(resolved.document, name, 'adapt')}: {max(stage.adapt)} x {stage.adapt_batch_size} is more than "
                f"the {images} training images of {data.name}; take "
                f"{f'at most {most} batches, or ' if most else ''}a smaller adapt_batch_size"
            )


def _unshared(resolved: Resolved, processes: int) -> Iterator[str]:
    for name, stage in resolved.recipe.stages.items():
        training = stage.train if isinstance(stage, Codings) else stage
        if processes == 1 or not isinstance(training, Train):
            continue
        place = ("train", "batch_size") if isinstance(stage, Codings) else ("batch_size",)
        where, size = _at(resolved.document, name, *place), training.batch_size
        if size % processes:
            lower, fitting = size - size % processes, [n for n in range(1, size + 1) if size % n == 0]
            yield (
                f"{where}: {size} images a batch have no equal shares for {processes} processes; take "
                f"{f'{lower} or ' if lower else ''}{lower + processes}, or start "
                f"{', '.join(map(str, fitting[:-1]))} or {fitting[-1]} processes"
            )
        elif size == processes and resolved.recipe.statistics == "local":
            yield (
                f"{where}: {size} images for {processes} processes are one image each, of which there are no local "
                f"statistics; take {2 * processes} or more, or statistics: synchronised"
            )


def _lacking(where: str, folder: Path, other: Trained, on_device: dict[str, tuple[int, ...]]) -> Iterator[str]:
    held = tensor_shapes(other.members[0].weights)
    for name, shape in on_device.items():
        found = held.get(f"{name}.weight")
        if found != shape:
            yield (
                f"{where}: {folder} has {f'{name} of shape {_by(found)}' if found else f'no layer {name}'}; this "
                f"network's {name} is {_by(shape)}. Take a run of the same network"
            )


def _other_cells(name: str, resolved: Resolved, record: dict, of: Trained, on_device: list[str]) -> list[str]:
    """What the network that stage `name` loads has otherwise than its use here: other cells, or for other chips."""
    document, recipe = resolved.document, resolved.recipe
    children = {n: s for n, s in recipe.stages.items() if isinstance(s, Train) and s.start == name}
    out = []
    theirs, mine = record["device"]["weights"], recipe.device.weights.model_dump()
    default = {"bits": None, "quantizer": load_card(recipe.device.card).weights.quantizer}
    for key in default if any(isinstance(s, Recover) for s in children.values()) else ():
        asked, held = (weights[key] or default[key] for weights in (mine, theirs))
        if asked != held:
            out.append(
                f"{document.where(('device', 'weights', key))}: device.weights.{key}: found {asked}, but the "
                f"network in {of.folder} was trained with {held}; take {held}, or another parent"
            )
    hybrid = [k.removesuffix(".rram") for k in tensor_shapes(of.members[0].weights) if k.endswith(".rram")]
    if hybrid and set(hybrid) != set(on_device):
        out.append(
            f"{document.where(('device', 'on'))}: device.on: found {', '.join(on_device)}, but the network in "
            f"{of.folder} has an SRAM part in {', '.join(sorted(hybrid))}; take these layers"
        )
    for child, stage in children.items():
        where = _at(document, child, "from")
        if of.sram and not isinstance(stage, Recover):
            out.append(f"{where}: the network in {of.folder} has an SRAM part; go on with do: recover")
        elif of.sram and of.sram != stage.sram:
            out.append(
                f"{where}: the network in {of.folder} has an SRAM part already, {_words(of.sram)}; this stage asks for "
                f"{_words(stage.sram)}. Take the same, or start from its RRAM parent"
            )
        elif of.chips is not None and (stage.redraw == "batch" or set(range(stage.fixed_chips)) - of.chips):
            out.append(
                f"{where}: {of.folder} holds networks for chips 0 to {max(of.chips)}, each on its own; use redraw chip "
                f"and at most {len(of.chips)} fixed_chips"
            )
    return out


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _words(sram: SramSettings) -> str:
    shifts = ", ".join(map(str, sram.shift_bits))
    words = "not quantized" if sram.quantizer == "none" else f"{sram.quantizer} of {sram.bits} bits"
    return f"{words}, shifted by {shifts}{', halved' if sram.halved else ''}"
