"""Checkpoints of BITnet (preddy5/Buddhi) under hwsim's names, and back.

    reference                                   hwsim
    begin.layer.weight, begin.layer.bias        begin.weight, begin.bias
    layer1.layer.weight … mlp1.layer.bias       layer1.weight … mlp1.bias
    <owner>.begin.layer.weight                  the same: a Lightning module or DataParallel puts its own name before

The files do not say which of the two networks they are of: bitnet6 and bitnet6-v101 have the same shapes (trap 7).
"""

import math
import re

from torch import Tensor

from hwsim.config import RunError
from hwsim.network.bitnet import CHANNELS, LAYERS

_KEY = re.compile(rf"(?P<owner>(?:\w+\.)*?)(?P<layer>{'|'.join(LAYERS)})\.layer\.(?P<kind>weight|bias)")


def is_bitnet(state: dict[str, Tensor]) -> bool:
    """Whether a state_dict has BITnet's names."""
    return any(_KEY.fullmatch(key) for key in state)


def converted_bitnet(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A state_dict of the reference under hwsim's names. Raises `RunError` naming every tensor that does not fit."""
    out: dict[str, Tensor] = {}
    problems = []
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        name = f"{match['layer']}.{match['kind']}" if match else ""
        if not match:
            problems.append(f"{key}: no tensor of BITnet")
        elif name in out:
            problems.append(f"{key}: a second {name}")
        elif not value.is_floating_point() or not bool(value.isfinite().all()):
            problems.append(f"{key}: not finite real numbers: damaged, or of a training that broke down")
        else:
            out[name] = value.float()
    wanted = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    problems += [f"{name.replace('.', '.layer.')}: missing" for name in wanted if name not in out]
    problems = problems or [f"{key}: {text}" for key, text in _misshapen(out)]
    if problems:
        raise RunError("\n".join(f"{source}: {line}" for line in problems))
    return {name: out[name] for name in wanted}


def _misshapen(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    out, inputs = [], None
    for layer in LAYERS:
        weight, bias = (tuple(tensors[f"{layer}.{kind}"].shape) for kind in ("weight", "bias"))
        kernel = (3, 3) if layer != "mlp1" else ()
        fits = len(weight) == 2 + len(kernel) and weight[2:] == kernel and math.prod(weight) > 0
        if fits and inputs is not None:
            fits = weight[1] == inputs if kernel else weight[1] % inputs == 0
        if not fits:
            of = "any number of" if inputs is None else f"{inputs}" if kernel else f"a multiple of {inputs}"
            window = " and 3 x 3" if kernel else ""
            out.append((f"{layer}.layer.weight", f"found {weight}, expected {of} inputs{window}"))
            break
        if bias != weight[:1]:
            out.append((f"{layer}.layer.bias", f"found {bias}, expected {weight[:1]}"))
        inputs = weight[0]
    return out


def bitnet_of(tensors: dict[str, Tensor], source: str = "this network") -> dict:
    """What the shapes of `converted_bitnet` tensors tell: fs, channels, classes, and places that mlp1 sees.

    fs: the roundest number that gives these channels. Raises `RunError` if none does.
    """
    found = [len(tensors[f"{layer}.weight"]) for layer in LAYERS[:-1]]
    low = max(f / n for n, f in zip(CHANNELS, found, strict=True))
    high = min((f + 1) / n for n, f in zip(CHANNELS, found, strict=True))
    for digits in range(9):
        for fs in (round(low, digits), round((low + high) / 2, digits)):
            if [int(n * fs) for n in CHANNELS] == found:
                return {
                    "fs": fs, "channels": tensors["begin.weight"].shape[1], "classes": len(tensors["mlp1.weight"]),
                    "places": tensors["mlp1.weight"].shape[1] // found[-1],
                }  # fmt: skip
    raise RunError(f"{source}: found {found} channels, expected int(fs n) of {list(CHANNELS)} for some fs")


def export_bitnet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """hwsim's tensors under the reference's names. Raises `RunError` for tensors that no BITnet has."""
    out = {}
    for key, value in tensors.items():
        name = re.sub(r"\.(weight|bias)$", r".layer.\1", key)
        if not _KEY.fullmatch(name):
            raise RunError(f"{key}: the reference has no name for this tensor")
        out[name] = value.detach().clone()
    return out
