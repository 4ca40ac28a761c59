"""A checkpoint of SNN-Conversion (the constrained VGG, vgg15ab) becomes a finished run: what `--from` takes."""

from pathlib import Path
from typing import Any

import torch

from hwsim.config import ConfigError, Document, check, nearest
from hwsim.data.image import FOLDERS
from hwsim.data.image_folder import CROP_PX
from hwsim.data.release import RELEASES
from hwsim.fields import dotted
from hwsim.network.vgg15 import PLANS, build, from_reference
from hwsim.recipe.contradictions import contradictions
from hwsim.recipe.imported import STAGE, keep
from hwsim.recipe.settings import Recipe

OWN = ("data", "data_dir")
"""Options of the import that concern this network."""


def is_vgg15(state: dict[str, torch.Tensor]) -> bool:
    """Whether a state_dict has the names of SNN-Conversion's network."""
    return any(key.startswith(("features.module.", "features.")) for key in state) and "classifier.1.weight" in state


def is_binary(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all layers but the first and the last hold one magnitude a filter (or 0), as a binarized export does.

    >>> is_binary({"conv1.weight": torch.ones(1), "fc1.weight": torch.tensor([[2.0, -2.0, 0.0]]), "fc2.weight": None})
    True
    """
    for weight in list(tensors.values())[1:-1]:
        size = weight.flatten(1).abs()
        top = size.amax(1, keepdim=True)
        if not bool(((size == 0) | ((size - top).abs() <= 1e-5 * top)).all()):
            return False
    return True


def adopt_vgg15(
    path: Path, state: dict[str, torch.Tensor], runs: Path, given: dict[str, Any]
) -> tuple[Path, list[str]]:
    """(run folder, notes on what was taken for granted) of a file's state_dict.

    given: data, data_dir. Binarized weights come to lie in binary cells of the RRAM card, others in none. Raises
    `RunError` for tensors of another network, `ConfigError` with a line for everything that does not fit them; nothing
    is written then.
    """
    try:
        tensors = from_reference(state)
    except ValueError as e:
        raise type(e)(f"{path}: {e}") from None
    problems = [
        f"--{option.replace('_', '-')}: {path} is of SNN-Conversion, which has no such thing; leave the option out"
        for option, value in given.items()
        if value is not None and option not in OWN
    ]
    data = given["data"]
    if data is None:
        problems.append(f"{path}: its tensors do not tell --data; give --data")
    elif data not in (*RELEASES, FOLDERS):
        there = (*RELEASES, FOLDERS)
        problems.append(f"--data: there is no data set '{data}'{nearest(data, there)} (allowed: {', '.join(there)})")
    net = None if problems else _net_of(tensors, data)
    if not problems and net is None:
        what = (
            f"the network in {path} is for {tensors['conv1.weight'].shape[1]} channels and {len(tensors['fc2.weight'])}"
        )
        problems.append(f"--data {data}: no plan of {', '.join(PLANS)} for it has these shapes; {what} classes")
    if problems:
        raise ConfigError(problems)
    binary = is_binary(tensors)
    recipe = _recipe(path, net, given)
    record = {
        "stage": STAGE, "do": "import", "net": recipe.net.model_dump(), "device": recipe.device.model_dump(),
        "epochs": 0, "sram": None, "masked": False, "is_float": not binary, "conversion": None,
        "members": [{"file": "weights.safetensors", "chip": None, "shift_bit": None}], "rows": [], "sram_rows": [],
    }  # fmt: skip
    how = "binary: one magnitude a filter" if binary else "float: filters hold several magnitudes, they lie in no cells"
    notes = [f"its inner layers are taken as {how}"]
    if data == "cifar100":
        notes.append("the published code normalized by rounded constants: expect a small difference")
    return keep(path, runs, recipe, record, tensors, {"data": data}), notes


def _net_of(tensors: dict[str, torch.Tensor], data: str) -> dict[str, Any] | None:
    """Name and width of the plan whose shapes these are for a data set, or None."""
    shape = (3, CROP_PX, CROP_PX) if data == FOLDERS else RELEASES[data].shape_CHW
    classes = len(tensors["fc2.weight"]) if data == FOLDERS else RELEASES[data].classes
    shapes = {k: v.shape for k, v in tensors.items()}
    for name, (_, hidden) in PLANS.items():
        width = len(tensors["fc1.weight"]) / hidden
        try:
            with torch.device("meta"):
                net = build(name, width=width, channels=shape[0], size=tuple(shape[1:]), classes=classes)
        except ConfigError:
            continue
        if {k: v.shape for k, v in net.state_dict().items()} == shapes:
            return {"name": name, "width": width}
    return None


def _recipe(path: Path, net: dict[str, Any], given: dict[str, Any]) -> Recipe:
    data = {
        "title": f"Imported from {path.name}",
        "net": net,
        "data": {"name": given["data"], "dir": given["data_dir"]},
        "device": {"on": ["conv*", "fc1", "!conv1"], "weights": {"bits": 1, "quantizer": "binary"}},
        "stages": {STAGE: {"do": "load", "run": "?"}},
    }
    document = Document(data, str(path), {("data", "name"): "--data"})
    recipe = check(Recipe, document)
    if problems := [f"{document.where(at)}: {dotted(at)}: {text}" for at, text in contradictions(recipe, data)]:
        raise ConfigError(problems)
    return recipe
