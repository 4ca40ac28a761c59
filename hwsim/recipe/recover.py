"""SRAM recovery: what a hybrid network starts from, and what its SRAM part holds in the end.

The parent's master weights of the layers on the device become the frozen RRAM part; everything else that the parent has
learned is taken over (or, as in the reference, only the BNTT statistics, trap B1). The SRAM part begins with `init`.
"""

import torch

from hwsim.device.hybrid import Masked
from hwsim.device.store import draw, load
from hwsim.recipe.prune import hybrid_layers, sparsity
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Recover

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SRAM_COLUMNS = (
    "stage", "chip", "shift_bit", "layer", "bits", "weights", "zero_fraction", "masked_fraction", "group", "groups",
    "zero_groups_fraction",
)  # fmt: skip


@torch.no_grad()
def begin(
    net, parent: dict[str, torch.Tensor], stage: Recover, chip: int | None, seed: int,
    other: dict[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Give a network on hybrid stores, with random weights, its first state.

    parent: tensors of the parent. A hybrid parent is taken as it is, SRAM part and masks too. other: tensors whose
    weights the SRAM begins with, for init sram.

        zeros      w = 0: with a grid that has a zero, exactly the parent
        residual   w = master - what the RRAM cells hold (on this chip, or without variation), as the words have it that
                   the adder shifts
        rram       w = master of the RRAM part             (the reference's load_rram_w)
        sram       w = master of another run               (load_sram_w)
        xavier     w as drawn
    """
    layers = {name: layer for name, layer in net.named_modules() if hasattr(getattr(layer, "store", None), "sram")}
    if any(f"{name}.rram" in parent for name in layers):
        return load(net, parent)
    state = dict(net.state_dict())
    for key, value in parent.items():
        is_statistic = key.rpartition(".")[2] in STATISTICS
        if stage.loads == "all_but_convs" or is_statistic:
            state[key] = value
    for name in layers:
        state[f"{name}.rram"] = parent[f"{name}.weight"]
        state[f"{name}.weight"] = net.get_submodule(name).weight.detach().clone()
    load(net, state)
    if stage.init == "residual" and chip is not None:
        draw(net, generator(seed, "chips", chip))
    for name, layer in layers.items():
        if stage.init == "zeros":
            layer.weight.zero_()
        elif stage.init == "residual":
            missing = layer.rram - layer.store.rram.held(layer.rram, layer.z)
            layer.weight.copy_(missing / 2.0 ** _adder_shift(layer))
        elif stage.init == "rram":
            layer.weight.copy_(layer.rram)
        elif stage.init == "sram":
            layer.weight.copy_(other[f"{name}.weight"])


@torch.no_grad()
def as_parent(net, parent: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state in which a hybrid network computes what its parent does, whatever it begins with.

    parent: tensors of the parent. Of a hybrid parent that is its own state; of an RRAM parent its masters in RRAM and
    every SRAM weight 0, where the grid has a zero.
    """
    if any(key.endswith(".rram") for key in parent):
        return dict(parent)
    hybrid = hybrid_layers(net)
    rram = {f"{name}.rram": parent[f"{name}.weight"] for name in hybrid}
    zeros = {f"{name}.weight": torch.zeros_like(parent[f"{name}.weight"]) for name in hybrid}
    return {**parent, **rram, **zeros}


@torch.no_grad()
def sram_words(layer) -> torch.Tensor:
    """What the SRAM part of a hybrid layer holds, masked: the tensor of which the master weight gets the gradient.

    Of the grids xnor and none that is before the adder's shift; with twos-complement, whose range the shift moves, it
    is what the adder adds.
    """
    store, part = layer.store, layer.store.sram
    shift_bit = store.shift_bit - _adder_shift(layer)
    more = {"mask": layer.mask} if isinstance(part, Masked) else {}
    return part.held(layer.weight, full_scale=store.rram.full_scale(layer.rram), shift_bit=shift_bit, **more)


def _adder_shift(layer) -> int:
    """Shift of the words after they are formed; 0 where the grid has moved with the shift already."""
    part = layer.store.sram
    moves = getattr(part, "inner", part).quantizer == "twos-complement"
    return 0 if moves else layer.store.shift_bit


@torch.no_grad()
def sram_rows(net, group: int) -> list[dict]:
    """Rows of sram.csv: for each hybrid layer how many SRAM words are zero, masked, and how many groups are all zero.

    Groups as in `prune`; "" where `group` does not divide the layer's inputs.
    """
    rows = []
    for name, layer in hybrid_layers(net).items():
        part = layer.store.sram
        inner = getattr(part, "inner", part)
        held = sram_words(layer)
        fits = held.shape[1] % group == 0
        found = sparsity(held, group if fits else held.shape[1])
        masked = 0.0 if layer.mask is None else 1 - float(layer.mask.double().mean())
        rows.append({
            "layer": name, "bits": inner.bits if inner.quantizer != "none" else 32, "weights": found.weights,
            "zero_fraction": found.zeros / found.weights, "masked_fraction": masked, "group": group,
            "groups": found.groups if fits else "", "zero_groups_fraction": found.zero_groups / found.groups
            if fits else "",
        })  # fmt: skip
    return rows
