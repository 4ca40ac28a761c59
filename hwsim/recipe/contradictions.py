"""Mistakes in a recipe that involve more than one place, or a place and a card; each as (place, what is wrong)."""

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from hwsim.config import ConfigError, UserError, nearest
from hwsim.fields import Place, field_at, place_of, value_at
from hwsim.recipe.bitnet_contradictions import bitnet_contradictions
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.coding_contradictions import coding_contradictions
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.ordinary import misplaced
from hwsim.recipe.settings import Account, Evaluate, Load, Net, Recipe, Recover, Train


def contradictions(recipe: Recipe, data: Any, profiles: Sequence[str] = ()) -> Iterator[tuple[Place, str]]:
    """(place, problem) of everything in a recipe that does not go together.

    data: the document that the recipe was made from; stages that only it has are taken to be networks. profiles: those
    that were applied already.
    """
    if recipe.from_replaces not in (None, *recipe.stages):
        there = nearest(recipe.from_replaces, recipe.stages)
        yield ("from_replaces",), f"there is no stage '{recipe.from_replaces}'{there}"
    yield from _stages(recipe, data)
    unset = any(isinstance(s, Load) and s.run is None for s in recipe.stages.values())
    if not unset and not recipe.is_integer:  # the run will say what the device is
        yield from _device(recipe)
    yield from _computing(recipe)
    yield from _prices(recipe)
    yield from misplaced(recipe)
    yield from bitnet_contradictions(recipe)
    yield from coding_contradictions(recipe)
    yield from _declared(recipe, data, profiles)


def _computing(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    of = "integer networks" if recipe.is_integer else recipe.net.name
    if not (recipe.is_integer or recipe.net.is_bitnet or recipe.net.is_ordinary):
        return
    if recipe.precision != "float32":
        yield ("precision",), f"found {recipe.precision}; {of} compute in float32 or whole numbers only: leave it out"
    if recipe.checkpoint_layers:
        yield ("checkpoint_layers",), f"is for networks of BNTT layers, not for {of}; leave it out"


def layer_names(net: Net) -> list[str]:
    """Names of the layers that can hold weights, without building the network."""
    from hwsim.network import vgg15
    from hwsim.network.vgg_bntt import PLANS

    if net.is_bitnet:
        return ["begin", "layer1", "layer2", "layer3", "layer4", "mlp1"]
    convolutions = sum(isinstance(item, int) for item in (vgg15.PLANS | PLANS)[net.name][0])
    return [f"conv{i + 1}" for i in range(convolutions)] + ["fc1", "fc2"]


def _stages(recipe: Recipe, data: Any) -> Iterator[tuple[Place, str]]:
    networks = [n for n in value_at(data, ("stages",)) or {} if n not in recipe.stages]
    measured: dict[tuple[str, float], str] = {}
    counted = None
    for name, stage in recipe.stages.items():
        here = ("stages", name)
        if not str(name).replace("-", "").replace("_", "").isalnum():
            yield here, "a stage's name is also a folder's; use letters, digits, - and _"
        if isinstance(stage, Recover):
            yield from _recovery(name, stage, recipe)
        elif isinstance(stage, Train) and isinstance(recipe.stages.get(str(stage.start)), Recover):
            yield (*here, "from"), f"'{stage.start}' has an SRAM part; go on with do: recover"
        if isinstance(stage, Train | Convert) and stage.start is not None and stage.start not in networks:
            yield (*here, "from"), f"no earlier stage has a network '{stage.start}'{nearest(stage.start, networks)}"
        if isinstance(stage, Load) and stage.run is None:
            yield (*here, "run"), "this stage takes a finished run; give one with --from RUN"
        limit = recipe.data.limit
        if isinstance(stage, Train) and limit and stage.batch_size > limit:
            yield (*here, "batch_size"), f"{stage.batch_size} is more than data.limit, {limit}; no batch would be full"
        named = stage.of if isinstance(stage, Evaluate | Curve) else [stage.of] if isinstance(stage, Account) else []
        for other in [n for n in named if n not in networks]:
            yield (*here, "of"), f"no earlier stage has a network '{other}'{nearest(other, networks)}"
        if isinstance(stage, Evaluate) and stage.redraw == "batch" and max(stage.adapt):
            yield (*here, "adapt"), "statistics are adapted to one chip; redraw batch has none: use redraw chip"
        if isinstance(stage, Evaluate):
            twice = None
            for pair in [(network, scale) for network in named for scale in stage.variation_scales]:
                twice = twice or (pair if pair in measured else None)
                measured.setdefault(pair, name)
            if twice:
                yield here, f"{twice[0]} at scale {twice[1]:g} is measured already, by stage '{measured[twice]}'"
        if isinstance(stage, Account):
            if isinstance(recipe.stages.get(stage.of), Decolle) and stage.rule == "bptt":
                yield (*here, "rule"), f"'{stage.of}' is DECOLLE and learns from local errors: take local, or inference"
            if counted is not None:
                yield here, f"a run has one table of energy, and stage '{counted}' writes it; use a recipe for each"
            counted = name
        if isinstance(stage, Train | Load | Convert | Pattern | Decolle):
            networks.append(name)
        if recipe.is_integer and not isinstance(stage, Pattern | Decolle | Account):
            yield (*here, "do"), "a recipe of integer networks has stages pattern, decolle and account; use two recipes"


def _recovery(name: str, stage: Recover, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    here, sram = ("stages", name), stage.sram
    if stage.start is None:
        yield (*here, "from"), f"Hybrid needs a trained RRAM parent: stage '{name}' has no 'from'. Try: from: vat"
    has_zero = sram.quantizer != "xnor" and not sram.halved
    if stage.keep_parent and not has_zero and stage.prune is None:
        what = "halved sum" if sram.halved else "grid xnor, which has no zero,"
        yield (*here, "keep_parent"), f"a {what} cannot be the parent; take keep_parent: false"
    if len(set(sram.shift_bits)) < len(sram.shift_bits):
        yield (*here, "sram", "shift_bits"), f"{sram.shift_bits} names a shift twice"
    if (stage.init == "sram") != (stage.init_run is not None):
        yield (*here, "init_run"), f"init is {stage.init}, init_run is {stage.init_run}; sram needs a run, others none"
    parent = recipe.stages.get(str(stage.start))
    if isinstance(parent, Recover):
        if parent.sram != sram:
            yield (*here, "sram"), f"'{stage.start}' has another SRAM part; take the same settings"
        if parent.redraw == "chip" and (stage.redraw == "batch" or stage.fixed_chips > parent.fixed_chips):
            chips = parent.fixed_chips
            yield (
                (*here, "redraw"),
                f"'{stage.start}' has a network on each of {chips} chips: use redraw chip on them",
            )
    if stage.gradient == "xnor" and sram.quantizer == "none":
        yield (*here, "gradient"), "the rewrite xnor is for quantized weights; sram.quantizer is none"


def _device(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    from hwsim.device.card import card_store, load_card

    try:
        store = card_store(load_card(recipe.device.card), recipe.device.weights)
        grid = getattr(store, "quantizer", None)
        for name, stage in recipe.stages.items():
            if isinstance(stage, Recover) and stage.sram.quantizer == "xnor" and grid != "xnor":
                yield (
                    ("stages", name, "sram", "quantizer"),
                    (
                        "the grid xnor has full scale 1, this RRAM the layer's own; take twos-complement, or "
                        "device.weights.quantizer xnor too"
                    ),
                )
    except UserError as e:
        for message in e.messages if isinstance(e, ConfigError) else [str(e)]:
            where, _, text = message.partition(": ")
            if where.startswith("device."):
                yield place_of(where), text.replace("set it to null", f"set it to null: --set {where}=null")
            else:
                yield ("device", "card"), message
    layers, taken = layer_names(recipe.net), dict[str, str]()
    # Layers that are taken out come first, whatever their place in the list.
    for i, pattern in sorted(enumerate(recipe.device.on), key=lambda p: not p[1].startswith("!")):
        pattern = pattern.removeprefix("!")
        named = fnmatch.filter(layers, pattern)
        if not named:
            yield ("device", "on", i), f"no layer is named like '{pattern}'; this network has {', '.join(layers)}"
        elif all(n in taken for n in named):
            yield ("device", "on", i), f"'{taken[named[0]]}' before it already takes every layer like '{pattern}'"
        taken = dict.fromkeys(named, pattern) | taken


def _prices(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    from hwsim.device.pricelist import Prices
    from hwsim.report.energy import unpriced

    for name, stage in recipe.stages.items():
        if isinstance(stage, Account):
            try:
                lines = unpriced(Prices.load(stage.card, stage.to_node_nm, stage.scaling), stage.definitions)
            except UserError as e:
                lines = str(e).splitlines()
            yield from ((("stages", name, "card"), line) for line in lines)


def _declared(recipe: Recipe, data: Any, profiles: Sequence[str]) -> Iterator[tuple[Place, str]]:
    """Places that options and profiles name must exist, except in stages that a run has replaced."""
    named = [(("options", o, "sets"), place) for o, declared in recipe.options.items() for place in declared.sets]
    for profile in ("smoke", "faithful"):
        if profile not in profiles:
            named += [((profile, place), place) for place in getattr(recipe, profile)]
    for here, text in named:
        place = place_of(text)
        stage = recipe.stages.get(str(place[1])) if place[0] == "stages" and len(place) > 1 else None
        replaced = isinstance(recipe.stages.get(str(recipe.from_replaces)), Load) and stage is None
        if field_at(Recipe, data, place) is None and not isinstance(stage, Load) and not replaced:
            yield here, f"there is no place '{text}' in this recipe"
