"""A recipe's network on its stores: fresh, or with the weights of a network that a stage has trained."""

import torch

from hwsim.data.image import ImageData
from hwsim.device.card import card_store, load_card
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Store, load, place
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe.checkpoint import load_tensors
from hwsim.recipe.load import Member, Trained
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Recipe, SramSettings


def fresh(recipe: Recipe, data: ImageData, device: torch.device, *purpose: str) -> VggBntt:
    """The recipe's network with ideal cells and initial weights, drawn for (seed, "initial weights", *purpose)."""
    net, (channels, *size) = recipe.net, data.shape_CHW
    return build(
        net.name, width=net.width, channels=channels, size=tuple(size), classes=data.classes, steps=net.steps,
        coding=net.encode, leak=net.leak, threshold=net.threshold,
        generator=generator(recipe.seed, "initial weights", *purpose),
    ).to(device)  # fmt: skip


def store(
    recipe: Recipe, variation_scale: float, sram: SramSettings | None = None, shift_bit: int = 0, masked: str = "no"
) -> Store:
    """The store of the recipe's device, with an SRAM part where `sram` is given.

    masked: no, fixed, or revivable (while masks still change).
    """
    device = recipe.device
    rram = card_store(load_card(device.card), device.weights, variation_scale)
    if sram is None:
        return rram
    part = Sram(sram.bits, sram.quantizer)
    part = part if masked == "no" else Masked(part, revivable=masked == "revivable")
    return Hybrid(rram, part, shift_bit, sram.halved)


def place_stores(net: VggBntt, recipe: Recipe, held: Store) -> None:
    """Put a store under the layers that the recipe's device holds."""
    place(net, dict.fromkeys(recipe.device.on, held))


def trained(
    recipe: Recipe, data: ImageData, device: torch.device, of: Trained, member: Member, variation_scale: float
) -> VggBntt:
    """The network of one member of a trained stage, on the store that it was trained for."""
    net = fresh(recipe, data, device)
    held = store(recipe, variation_scale, of.sram, member.shift_bit or 0, "fixed" if of.masked else "no")
    place_stores(net, recipe, held)
    load(net, load_tensors(member.weights, member.sha256)[0])
    return net
