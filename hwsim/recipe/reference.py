"""Checkpoints of the reference codes: Yale's BNTT and its hybrid RRAM/SRAM descendant. Read, checked, never unpickled.

Such a file (`….pth.tar`) is what torch saves of {global_step, state_dict, accuracy}. The names of its tensors:

    reference                               hwsim
    conv3.weight                            conv3.weight    the RRAM's master weight, or in a hybrid the SRAM's
    conv3.WR          (hybrid alone)        conv3.rram      the frozen RRAM master weight
    bntt3.<t>.weight  (a module a step)     bntt3.weight    [T, C]; also running_mean, running_var
    bntt_fc.<t>.num_batches_tracked         bntt_fc.num_batches_tracked    [T]
    fc1.weight, fc2.weight                  fc1.weight, fc2.weight
    module.<name>     (DataParallel)        <name>
                                            conv3.mask      the reference does not save masks (trap B19)

T steps, C channels.
"""

import itertools
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hwsim.config import RunError
from hwsim.network.vgg_bntt import PLANS

KINDS = ("weight", "running_mean", "running_var", "num_batches_tracked")


class _Dtype:
    """Stands for numpy.dtype while a file is read: takes whatever the file gives it, and does nothing."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def _scalar(*_) -> None:
    """Stands for numpy's scalar: `accuracy` is one in these files (trap E7), and nothing here needs it."""


# numpy 2 moved `scalar`, and a file has the name of the numpy that wrote it; numpy itself is not needed.
_ADMITTED = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict of a checkpoint, under the reference's names: floats as float32, everything on the CPU.

    A file that holds a state_dict alone is read as well. The file is not unpickled: torch's restricted reader takes
    tensors, plain values and one numpy scalar; a file that asks for anything else is refused before that is called.

    Raises `RunError` naming the file if it is missing, no torch file, truncated, asks for more, or holds no tensors.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ADMITTED), Path(path).open("rb") as f:
            warnings.simplefilter("ignore")
            found = torch.load(f, map_location="cpu", weights_only=True)
    except OSError as e:
        raise RunError(f"{path}: cannot be read: {e.strerror or e}; give a checkpoint's file, ….pth.tar") from None
    except Exception as e:  # A damaged file can raise nearly anything.
        raise RunError(f"{path}: {_refusal(e)}") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state:
        what = f"a dict of {_listed(map(str, found)) or 'nothing'}" if isinstance(found, dict) else type(found).__name__
        raise RunError(f"{path}: holds no tensors: found {what}; expected a state_dict, alone or under 'state_dict'")
    if odd := [str(k) for k, v in state.items() if not (isinstance(k, str) and _is_plain(v))]:
        raise RunError(f"{path}: not a state_dict: {_listed(odd)} no dense real tensor; save the network's state_dict")
    return {k: (v.float() if v.is_floating_point() else v).detach().contiguous() for k, v in state.items()}


def _refusal(e: Exception) -> str:
    text = str(e)
    if asked := re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S{1,80})", text):
        return (
            f"asks for {asked[1]}, which no checkpoint of the reference needs and which could run code; nothing was "
            "run. Copy the file again, or, if you trust it, save its state_dict alone where it was written"
        )
    detail = f"{type(e).__name__}: {text}".splitlines()[0][:120].rstrip(":. ")
    return f"not a whole torch checkpoint ({detail}); copy the file again"


def _is_plain(value) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        and not value.is_quantized and not value.is_complex()
    )  # fmt: skip


def converted(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A state_dict of the reference under hwsim's names, the steps of each BNTT stacked to [T, C].

    source: names the file in messages. Raises `RunError` with a line for everything that is wrong: unknown and missing
    keys, holes in the time steps, WR in some convolutions only, values that are not finite, shapes that contradict.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    depth = max((int(n) for key in state for n in re.findall(r"^(?:conv|bntt)([1-9]\d?)\.", key)), default=1)
    steps = 1 + max((int(t) for key in state for t in re.findall(r"^bntt\w+\.(\d{1,3})\.", key)), default=0)
    expected = _expected(state, depth, steps)
    offsets = [key for key in state if re.fullmatch(r"bntt.*\.bias", key)]
    problems = {
        "no BNTT VGG has this; it has convN, bnttN.T, bntt_fc.T, fc1, fc2": sorted({*state} - {*expected, *offsets}),
        "an offset, which BNTT had in its first version alone (2020), whose neurons fired before they integrated; "
        "such a network gives other results here: train it again": offsets,
    }
    absent = (key for key in expected if key not in state)
    for layer, keys in itertools.groupby(absent, lambda key: key.split(".")[0]):
        problems[f"missing of {layer} (the file has {depth} convolutions and steps 0 to {steps - 1})"] = list(keys)
    for key, value in state.items():
        if key in expected and (problem := _problem(key, value, expected[key])):
            problems.setdefault(problem, []).append(key)
    if any(problems.values()):
        lines = [f"{source}: {_listed(keys)}: {problem}" for problem, keys in problems.items() if keys]
        raise RunError("\n".join(lines))
    out = {}
    for key, value in state.items():
        name, _, kind = key.rpartition(".")
        if not name.startswith("bntt"):
            out[f"{name}.{'rram' if kind == 'WR' else kind}"] = value.float()
        elif name.endswith(".0"):
            rows = torch.stack([state[f"{name[:-2]}.{t}.{kind}"] for t in range(steps)])
            out[f"{name[:-2]}.{kind}"] = rows.long() if kind == KINDS[-1] else rows.float()
    return out


def _expected(state: dict[str, Tensor], depth: int, steps: int) -> dict[str, tuple[int | None, ...]]:
    """Key → shape of the network that this file began to be; None where a weight that is missing leaves it open.

    The inputs of fc1 are given as minus the number that must divide them.
    """
    out: dict[str, tuple] = {}
    sizes: list[int | None] = [None]
    is_hybrid = any(key.startswith("conv") and key.endswith(".WR") for key in state)
    for layer, norm in [*((f"conv{n}", f"bntt{n}") for n in range(1, depth + 1)), ("fc1", "bntt_fc")]:
        weight = state.get(f"{layer}.weight")
        sizes.append(len(weight) if weight is not None and weight.dim() and len(weight) else None)
        kernel, inputs = ((), sizes[-2] and -sizes[-2]) if layer == "fc1" else ((3, 3), sizes[-2])
        out[f"{layer}.weight"] = (sizes[-1], inputs, *kernel)
        if is_hybrid and layer != "fc1":
            out[f"{layer}.WR"] = out[f"{layer}.weight"] if weight is None else tuple(weight.shape)
        for t in range(steps):
            out |= {f"{norm}.{t}.{kind}": (sizes[-1],) if kind != KINDS[-1] else () for kind in KINDS}
    return out | {"fc2.weight": (None, sizes[-1])}


def _problem(key: str, value: Tensor, expected: tuple[int | None, ...]) -> str | None:
    """What is wrong with a tensor, in words, or None."""
    shape, is_count = tuple(value.shape), key.endswith(KINDS[-1])
    fits = len(shape) == len(expected) and all(
        n > 0 and (e is None or (n == e if e >= 0 else n % -e == 0)) for n, e in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if e is None else str(e) if e >= 0 else f"multiple of {-e}" for e in expected)
        return f"found {' x '.join(map(str, shape)) or 'one number'}, expected {wanted or 'one number'}"
    if is_count == value.is_floating_point() or value.dtype == torch.bool:
        return f"found {value.dtype}, expected {'whole' if is_count else 'real'} numbers"
    if not value.isfinite().all():
        return "values that are not finite: the training broke down, or the file is damaged; take another checkpoint"
    if key.endswith("running_var") and (value < 0).any():
        return "a variance below 0: the file is damaged; take another checkpoint"
    return None


def network_of(tensors: dict[str, Tensor], source: str = "this network") -> dict:
    """What the shapes of `converted` tensors tell: name, width, steps, channels, size, classes, is_hybrid.

    width: the roundest number that gives these channels. size: height and width of the image, the smallest that fits
    (pools drop an odd row, so up to 2^pools - 1 pixels more fit as well); None where the plan averages over the image.
    Raises `RunError` if no plan of hwsim has these channels.
    """
    outputs = [len(tensors[f"conv{n + 1}.weight"]) for n in range(sum(k.startswith("bntt") for k in tensors) // 4 - 1)]
    hidden, inputs = tensors["fc1.weight"].shape
    plans = {n: of for n, of in PLANS.items() if of[0]}  # these codes have no MLP
    for name, (plan, fc1) in plans.items():  # noqa: B007 (used after the loop)
        width = _width([*(n for n in plan if isinstance(n, int)), fc1], [*outputs, hidden])
        if width is not None:
            break
    else:
        known = "; ".join(f"{n} {[i for i in p if isinstance(i, int)]}, {fc1}" for n, (p, fc1) in plans.items())
        raise RunError(
            f"{source}: found convolutions with {outputs} channels and fc1 with {hidden}: no plan at any width. "
            f"There is {known}"
        )
    area = inputs // outputs[-1]
    side = math.isqrt(area)
    if side * side != area or ("G" in plan and area != 1):
        image = "one pixel" if "G" in plan else "a square image"
        raise RunError(f"{source}: fc1 takes {inputs} inputs, but {name} ends with {outputs[-1]} channels of {image}")
    return {
        "name": name, "width": width, "steps": len(tensors["bntt_fc.weight"]),
        "channels": tensors["conv1.weight"].shape[1], "size": None if "G" in plan else side << plan.count("A"),
        "classes": len(tensors["fc2.weight"]), "is_hybrid": "conv1.rram" in tensors,
    }  # fmt: skip


def _width(plan: list[int], found: list[int]) -> float | None:
    """The roundest width with max(1, round(n · width)) = found for every n of the plan, or None."""
    if len(plan) != len(found):
        return None
    low = max((f - 0.5) / n if f > 1 else 0.0 for n, f in zip(plan, found, strict=True))
    high = min((f + 0.5) / n for n, f in zip(plan, found, strict=True))
    for digits in range(9):
        width = round((low + high) / 2, digits)
        if width > 0 and all(max(1, round(n * width)) == f for n, f in zip(plan, found, strict=True)):
            return width
    return None


_NUMBER = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_NAME = re.compile(
    r"(?:\d{4}-\d\d-\d\d)?(?P<dataset>cifar100?)(?P<net>vgg\d+)_BNTT_timestep(?P<steps>\d+)"
    rf"_lr(?P<lr>{_NUMBER})(?:_epoch(?P<epochs>\d+))?_leak(?P<leak>{_NUMBER})_r(?P<quant>\d+)"
    rf"(?:_var(?P<var_scale>{_NUMBER}))?_nonvar_(?P<no_var>True|False)_sram_(?P<sram>True|False)(?P<sram_bit>\d+)"
    r"(?:(?P<eva>eva)|_ct_(?P<ct>True|False)_tern_(?P<tern>True|False)_shift(?P<shift_bit>-?\d+)"
    r"(?:_srLD(?P<init>sr|rr|ini0|xavier))?)(?:_(?P<kept>[rs]ram)_bestmodel\.pth\.tar)?"
)
_AS = {
    "steps": int, "epochs": int, "quant": int, "sram_bit": int, "shift_bit": int, "lr": float, "leak": float,
    "var_scale": float, "no_var": "True".__eq__, "sram": "True".__eq__, "ct": "True".__eq__, "tern": "True".__eq__,
    "init": {"rr": "rram", "sr": "sram", "ini0": "zeros", "xavier": "xavier"}.get,
}  # fmt: skip


def settings_of_name(name: str | Path) -> dict:
    """The flags that the reference wrote into a checkpoint's file name; {} for any other name.

    dataset, net, steps, lr, epochs, leak, quant, var_scale, no_var, sram, sram_bit, ct, tern, shift_bit, and of a
    hybrid `init`: what its SRAM began with. An evaluation's name lacks epochs, ct, tern, shift_bit and init. var_scale
    0 is the flag as given; the reference then ran at scale 1 (trap B12). No name tells whether --shift was on (trap
    B16).

    >>> settings_of_name("r8s4")
    {}
    >>> name = "cifar10vgg9_BNTT_timestep20_lr0.1_leak0.95_r4_var1_nonvar_False_sram_False1eva"
    >>> settings_of_name(name)["quant"], settings_of_name(name)["var_scale"]
    (4, 1.0)
    """
    match = _NAME.fullmatch(Path(name).name)
    if match is None:
        return {}
    flags = match.groupdict()
    kept, is_training, is_hybrid = flags.pop("kept"), flags.pop("eva") is None, flags["sram"] == "True"
    has_both = [flags["epochs"] is not None, flags["init"] is not None] == [is_training, is_training and is_hybrid]
    if not has_both or kept not in (None, "sram" if is_hybrid else "rram"):
        return {}
    return {flag: _AS.get(flag, str)(text or "0") for flag, text in flags.items() if text or flag == "var_scale"}


def effective_bits(index_is_sram: bool, sram: bool, shift: bool, quant: int, sram_bit: int) -> int:
    """Bits that the reference gave a weight: `sram_bit` reaches SRAM weights only together with --shift (trap B16).

    index_is_sram: an even entry of the reference's list of weights; of a hybrid network (`sram`) these are SRAM.

    >>> effective_bits(True, True, False, quant=8, sram_bit=2)
    8
    """
    return sram_bit if index_is_sram and sram and shift else quant


def kept_by_reference(keys: Iterable[str]) -> list[str]:
    """The keys of a parent that the reference's recovery loads: those without "conv" and "weight" (trap B1).

    >>> kept_by_reference(["conv1.weight", "bntt1.0.weight", "bntt1.0.running_mean", "fc1.weight"])
    ['bntt1.0.running_mean']
    """
    return [key for key in keys if "conv" not in key and "weight" not in key]


def export_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """hwsim's tensors under the reference's names, a tensor a time step: `converted` backwards.

    The reference saves no mask and makes its own from |w|: masked weights become 0, which every threshold masks again.
    Raises `RunError` for tensors that no BNTT VGG has.
    """
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition(".")
        value = value.detach().clone()
        if re.fullmatch(r"bntt(\d+|_fc)", name) and kind in KINDS:
            out |= {f"{name}.{t}.{kind}": row for t, row in enumerate(value)}
        elif re.fullmatch(r"conv\d+|fc[12]", name) and kind in ("weight", "rram"):
            mask = tensors.get(f"{name}.mask") if kind == "weight" else None
            out[f"{name}.{'WR' if kind == 'rram' else kind}"] = value if mask is None else value * mask
        elif not re.fullmatch(r"(conv\d+|fc[12])\.mask", key):
            raise RunError(f"{key}: the reference has no name for this tensor")
    return out


def _listed(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    return ", ".join(items[:most]) + (f" … ({len(items)} in all)" if len(items) > most else "")
