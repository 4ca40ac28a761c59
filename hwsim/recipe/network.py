"""A recipe's network on its stores: fresh, or with the weights of a network that a stage has trained."""

import torch

from hwsim.data.image import ImageData
from hwsim.device.card import card_store, load_card
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Ideal, Store, load, place
from hwsim.device.threshold import Unsigned
from hwsim.network import bitnet, vgg15
from hwsim.network.spiking import Spiking
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe.checkpoint import load_tensors
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.load import Member, Trained
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Recipe, SramSettings

Network = VggBntt | bitnet.Bitnet | vgg15.Vgg15 | Spiking


def fresh(recipe: Recipe, data: ImageData, device: torch.device, *purpose: str) -> Network:
    """The recipe's network with ideal cells and initial weights, drawn for (seed, "initial weights", *purpose)."""
    net, (channels, *size) = recipe.net, data.shape_CHW
    if net.is_bitnet:
        return bitnet.build(
            net.name, width=net.width, channels=channels, size=tuple(size), classes=data.classes, steps=net.steps,
            surrogate=net.surrogate, memory=None if net.memory == "auto" else net.memory, segment=net.segment,
            generator=generator(recipe.seed, "initial weights", *purpose),
        ).to(device)  # fmt: skip
    if net.name in vgg15.PLANS:
        return vgg15.build(
            net.name, width=net.width, channels=channels, size=tuple(size), classes=data.classes,
            generator=generator(recipe.seed, "initial weights", *purpose),
        ).to(device)  # fmt: skip
    return build(
        net.name, width=net.width, channels=channels, size=tuple(size), classes=data.classes, steps=net.steps,
        coding=net.encode, leak=net.leak, threshold=net.threshold, norm=net.norm, leak_rule=net.rule,
        gain=net.initial_gain, precision=recipe.precision, checkpoint_layers=recipe.checkpoint_layers,
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


def place_stores(net: torch.nn.Module, recipe: Recipe, held: Store) -> list[str]:
    """Put a store under the layers that the recipe's device holds; returns their names."""
    without = {pattern.removeprefix("!"): Ideal() for pattern in recipe.device.on if pattern.startswith("!")}
    on = dict.fromkeys((pattern for pattern in recipe.device.on if not pattern.startswith("!")), held)
    return [name for name, store in place(net, without | on).items() if store is held]


def spiking(net: vgg15.Vgg15, recipe: Recipe, how: Convert, variation_scale: float) -> Spiking:
    """A network, on its stores, as a spiking one, with cells for its thresholds where it has such."""
    out = Spiking(net, steps=how.time, one_step=how.one_step)
    if how.threshold_bits is not None:
        device = recipe.device
        weights = device.weights.model_copy(update={"bits": how.threshold_bits, "quantizer": "dorefa"})
        cell = card_store(load_card(device.card), weights, variation_scale)
        place(out, {"threshold_*": Unsigned(how.threshold_bits, cell.sigma, cell.clamp, cell.on_off_ratio)})
    return out


def trained(
    recipe: Recipe, data: ImageData, device: torch.device, of: Trained, member: Member, variation_scale: float
) -> Network:
    """The network of one member of a trained stage, on the store that it was trained for, converted if it was."""
    net = fresh(recipe, data, device)
    if not of.is_float:
        held = store(recipe, variation_scale, of.sram, member.shift_bit or 0, "fixed" if of.masked else "no")
        place_stores(net, recipe, held)
    if of.conversion is not None:
        net = spiking(net, recipe, of.conversion, variation_scale)
    load(net, load_tensors(member.weights, member.sha256)[0])
    return net
