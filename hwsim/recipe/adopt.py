"""A checkpoint of the reference codes becomes a finished run: the folder that `--from` takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hwsim.config import ConfigError, Document, check, nearest
from hwsim.data.release import RELEASES
from hwsim.fields import dotted
from hwsim.network.vgg_bntt import PLANS
from hwsim.recipe.adopt_bitnet import adopt_bitnet
from hwsim.recipe.adopt_vgg15 import adopt_vgg15, is_vgg15
from hwsim.recipe.bitnet_reference import is_bitnet
from hwsim.recipe.contradictions import contradictions
from hwsim.recipe.imported import STAGE, keep
from hwsim.recipe.prune import magnitude_mask
from hwsim.recipe.reference import converted, network_of, read_checkpoint, settings_of_name
from hwsim.recipe.settings import Recipe, SramSettings

OF_NAME = {"data": "dataset", "quant": "quant", "leak": "leak", "sram_bit": "sram_bit", "shift_bit": "shift_bit"}
"""Option → what the file's name calls it."""


def adopt(path: Path, runs: Path, given: dict[str, Any]) -> tuple[Path, list[str]]:
    """(run folder, notes on what was taken for granted) of a `.pth.tar` file.

    given: data, data_dir, quant, leak, sram_bit, shift_bit, halved, threshold; what is None comes from the file's name
    where it is of the reference's scheme. Network, width and T come from the tensors. Of a BITnet, whose tensors tell
    neither, given may hold net and steps.

    Raises `RunError` for a file that is no such checkpoint, `ConfigError` with a line for everything that neither name
    nor options tell, or that does not fit the tensors. Nothing is written then.
    """
    state = read_checkpoint(path)
    if is_bitnet(state):
        return adopt_bitnet(path, state, runs, given)
    if is_vgg15(state):
        return adopt_vgg15(path, state, runs, given)
    tensors = converted(state, str(path))
    found, flags = network_of(tensors, str(path)), settings_of_name(path.name)
    known = {option: flags.get(flag) if given[option] is None else given[option] for option, flag in OF_NAME.items()}
    tern = bool(flags.get("tern")) and given["quant"] is None
    if problems := list(_problems(path, tensors, found, flags, known, given, tern)):
        raise ConfigError(problems)
    notes = list(_notes(found, flags, known, given, tern))
    origins = {option: f"--{option.replace('_', '-')}" for option, value in given.items() if value is not None}
    recipe = _recipe(path, found, known, tern, given["data_dir"], origins)
    sram, shift = None, None
    if found["is_hybrid"]:
        shift = known["shift_bit"] or 0
        halved = flags.get("init") != "zeros" if given["halved"] is None else given["halved"]
        words = {"bits": known["sram_bit"], "quantizer": "none" if tern else "xnor", "halved": halved}
        where = {(k,): origins.get(o, str(path)) for k, o in (("bits", "sram_bit"), ("shift_bits", "shift_bit"))}
        sram = check(SramSettings, Document({**words, "shift_bits": [shift]}, str(path), where)).model_dump()
    if given["threshold"] is not None:
        _mask(tensors, given["threshold"])
    record = {
        "stage": STAGE, "do": "import", "net": recipe.net.model_dump(), "device": recipe.device.model_dump(),
        "epochs": flags.get("epochs", 0), "sram": sram, "masked": given["threshold"] is not None,
        "members": [{"file": "weights.safetensors", "chip": None, "shift_bit": shift}], "rows": [], "sram_rows": [],
    }  # fmt: skip
    also = {"data": known["data"], "threshold": given["threshold"]}
    return keep(path, runs, recipe, record, tensors, also), notes


def _problems(
    path: Path, tensors: dict, found: dict, flags: dict, known: dict, given: dict, tern: bool
) -> Iterator[str]:
    """What contradicts the tensors, and, in one line, what neither name nor options tell."""
    told = {"net": found["name"], "steps": found["steps"], "sram": found["is_hybrid"]}
    if other := [f"{flag} {flags[flag]}, its tensors {v}" for flag, v in told.items() if flags.get(flag, v) != v]:
        yield f"{path}: its name is of another network: {'; '.join(other)}. Rename the file and give the options"
    for option in ("net", "steps"):
        if given.get(option) is not None:
            yield f"--{option}: {path} tells it by its tensors; leave the option out"
    hybrid = ("sram_bit", "shift_bit", "halved", "threshold")
    wanted = {"data", "leak"} | (set() if tern else {"quant"}) | ({"sram_bit"} if found["is_hybrid"] else set())
    if missing := [f"--{o.replace('_', '-')}" for o in OF_NAME if o in wanted and known[o] is None]:
        yield f"{path}: its name does not tell {', '.join(missing)}; give {' and '.join(missing)}"
    for option in hybrid if not found["is_hybrid"] else ():
        if given[option] is not None:
            yield f"--{option.replace('_', '-')}: {path} has no SRAM part; leave the option out"
    if found["is_hybrid"] and not any(bool(v.any()) for k, v in tensors.items() if k.endswith(".rram")):
        yield f"{path}: its RRAM part is all zero: trained without --ct, it has no parent (trap B6); take another file"
    if given["threshold"] is not None and not 0 <= given["threshold"] < 1:
        yield f"--threshold: {given['threshold']:g}; it must be at least 0 and below 1, 0.005 in the reference"
    data = known["data"]
    if data is not None and data not in RELEASES:
        yield f"--data: there is no data set '{data}'{nearest(data, RELEASES)} (allowed: {', '.join(RELEASES)})"
    elif data is not None:
        (channels, height, width), classes = RELEASES[data].shape_CHW, RELEASES[data].classes
        pools, size = PLANS[found["name"]][0].count("A"), found["size"]
        fits = (height >> pools << pools) == size if size else height >> pools
        if (channels, classes) != (found["channels"], found["classes"]) or not fits:
            pixels = f" and {size}x{size} pixels" if size else ""
            yield (
                f"--data {data}: has {channels}x{height}x{width} images in {classes} classes; the network in {path} is "
                f"for {found['channels']} channels, {found['classes']} classes{pixels}. Take the data it was trained on"
            )


def _notes(found: dict, flags: dict, known: dict, given: dict, tern: bool) -> Iterator[str]:
    """What was taken for granted."""
    if tern and not _on_ternary_cells(found):
        yield (
            "the reference's --tern reached VGG9 without SRAM alone; these weights were not quantized (trap B10), and "
            "are taken so"
        )
    if known["data"] == "cifar100":
        yield "the reference normalized CIFAR-100 by CIFAR-10's constants, hwsim by its own: expect a loss"
    if not found["is_hybrid"]:
        return
    if given["sram_bit"] is None and not tern:
        yield (
            f"its name does not tell whether --shift was on: taken as on, SRAM of {known['sram_bit']} bits; without it "
            f"the SRAM had the bits of the RRAM and no shift, then give --sram-bit {known['quant']} --shift-bit 0"
        )
    if known["shift_bit"] is None:
        yield "its name does not tell --shift_bit: taken as 0; else give --shift-bit"
    if given["halved"] is None and "init" not in flags:
        yield "its name does not tell --sram_init0: taken as off, so the sum is halved; else --not-halved"


def _on_ternary_cells(found: dict) -> bool:
    return found["name"] == "vgg9" and not found["is_hybrid"]


def _recipe(path: Path, found: dict, known: dict, tern: bool, data_dir: str | None, origins: dict[str, str]) -> Recipe:
    if tern:
        card, weights = "ternary" if _on_ternary_cells(found) else "ideal", {"bits": None, "clamp": "signed"}
    else:
        card, weights = "rram_65nm_asu", {"bits": known["quant"], "quantizer": "xnor", "clamp": "signed"}
    data = {
        "title": f"Imported from {path.name}",
        "net": {"name": found["name"], "width": found["width"], "steps": found["steps"], "leak": known["leak"]},
        "data": {"name": known["data"], "dir": data_dir},
        "device": {"card": card, "on": ["conv*"], "weights": weights},
        "stages": {STAGE: {"do": "load", "run": "?"}},
    }
    if known["data"].startswith("cifar"):
        data["data"]["augment"] = "crop-flip"  # the reference always did, and a stage that goes on does too
    places = {("net", "leak"): "leak", ("device", "weights", "bits"): "quant", ("data", "name"): "data"}
    document = Document(data, str(path), {place: origins[o] for place, o in places.items() if o in origins})
    recipe = check(Recipe, document)
    if problems := [f"{document.where(at)}: {dotted(at)}: {text}" for at, text in contradictions(recipe, data)]:
        raise ConfigError(problems)
    return recipe


def _mask(tensors: dict[str, torch.Tensor], threshold: float) -> None:
    """Make the masks of a pruned network anew, as the reference did in every batch: all layers but the first."""
    for name in [key.removesuffix(".rram") for key in tensors if key.endswith(".rram")]:
        weight = tensors[f"{name}.weight"]
        keeps_all = torch.ones_like(weight, dtype=torch.bool)
        mask = keeps_all if name == "conv1" else magnitude_mask(weight, threshold)
        tensors[f"{name}.mask"], tensors[f"{name}.weight"] = mask, weight * mask
