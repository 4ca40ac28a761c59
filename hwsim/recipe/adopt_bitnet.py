"""A checkpoint of BITnet becomes a finished run: the folder that `--from` takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hwsim.config import ConfigError, Document, check, nearest
from hwsim.data.release import RELEASES
from hwsim.fields import dotted
from hwsim.network.bitnet import build
from hwsim.recipe.bitnet_reference import bitnet_of, converted_bitnet
from hwsim.recipe.contradictions import contradictions
from hwsim.recipe.imported import STAGE, keep
from hwsim.recipe.settings import BITNETS, Recipe

STEPS = 50
"""Steps of the published CIFAR-10 accuracies."""
OWN = ("data", "data_dir", "net", "steps")
"""Options of the import that concern BITnet."""


def adopt_bitnet(
    path: Path, state: dict[str, torch.Tensor], runs: Path, given: dict[str, Any]
) -> tuple[Path, list[str]]:
    """(run folder, notes on what was taken for granted) of a file's state_dict.

    given: data, data_dir, net, steps; the weights are taken as they are, held ideally. Raises `RunError` for tensors
    that are no BITnet's, `ConfigError` with a line for everything that does not fit them; nothing is written then.
    """
    tensors = converted_bitnet(state, str(path))
    found = bitnet_of(tensors, str(path))
    name, steps = given["net"] or BITNETS[0], given["steps"] or STEPS
    if problems := list(_problems(path, name, steps, tensors, found, given)):
        raise ConfigError(problems)
    recipe = _recipe(path, name, steps, found, given)
    record = {
        "stage": STAGE, "do": "import", "net": recipe.net.model_dump(), "device": recipe.device.model_dump(),
        "epochs": 0, "sram": None, "masked": False,
        "members": [{"file": "weights.safetensors", "chip": None, "shift_bit": None}], "rows": [], "sram_rows": [],
    }  # fmt: skip
    return keep(path, runs, recipe, record, tensors, {"data": given["data"]}), list(_notes(given, name, steps))


def _problems(path: Path, name: str, steps: int, tensors: dict, found: dict, given: dict[str, Any]) -> Iterator[str]:
    for option, value in given.items():
        if value is not None and option not in OWN:
            yield f"--{option.replace('_', '-')}: {path} is a BITnet, which has no such thing; leave the option out"
    if name not in BITNETS:
        yield f"--net: {path} is a BITnet: take {' or '.join(BITNETS)}, found {name}"
    data = given["data"]
    if data is None:
        yield f"{path}: its tensors do not tell --data; give --data"
    elif data not in RELEASES:
        yield f"--data: there is no data set '{data}'{nearest(data, RELEASES)} (allowed: {', '.join(RELEASES)})"
    elif name in BITNETS:
        (channels, *size), classes = RELEASES[data].shape_CHW, RELEASES[data].classes
        with torch.device("meta"):
            net = build(name, width=found["fs"], channels=channels, size=tuple(size), classes=classes, steps=steps)
        if {k: v.shape for k, v in net.state_dict().items()} != {k: v.shape for k, v in tensors.items()}:
            yield (
                f"--data {data}: has {channels}x{size[0]}x{size[1]} images in {classes} classes; the network in {path} "
                f"is for {found['channels']} channels, {found['classes']} classes and {found['places']} places before "
                f"mlp1. Take the data it was trained on"
            )


def _notes(given: dict[str, Any], name: str, steps: int) -> Iterator[str]:
    if given["net"] is None:
        yield (
            f"taken as {name}; {BITNETS[1]} pools elsewhere and has the same tensors, so the file cannot tell: if it "
            f"is that one, give --net {BITNETS[1]}"
        )
    if given["steps"] is None:
        yield f"taken with {steps} steps, as published for CIFAR-10; give --steps for others"
    if given["data"] == "cifar100":
        yield "the reference normalized CIFAR-100 by CIFAR-10's constants, hwsim by its own: expect a loss"


def _recipe(path: Path, name: str, steps: int, found: dict, given: dict[str, Any]) -> Recipe:
    data = {
        "title": f"Imported from {path.name}",
        "net": {"name": name, "width": found["fs"], "steps": steps, "encode": "direct"},
        "data": {"name": given["data"], "dir": given["data_dir"]},
        "device": {"card": "ideal", "on": ["begin", "layer*", "mlp1"], "weights": {"bits": None}},
        "stages": {STAGE: {"do": "load", "run": "?"}},
    }
    places = {("net", "steps"): "--steps", ("net", "name"): "--net", ("data", "name"): "--data"}
    document = Document(data, str(path), places)
    recipe = check(Recipe, document)
    if problems := [f"{document.where(at)}: {dotted(at)}: {text}" for at, text in contradictions(recipe, data)]:
        raise ConfigError(problems)
    return recipe
