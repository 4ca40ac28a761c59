"""What does not go together in a recipe of networks without BNTT, of input codings, early exits and attacks."""

from collections.abc import Iterator

from hwsim.config import CardError, nearest
from hwsim.fields import Place
from hwsim.recipe.bitnet_contradictions import BNTT_STEPS
from hwsim.recipe.coding_settings import Attack, Exit, Published
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.settings import Codings, Evaluate, Load, Net, Recipe, Recover, Train

PUBLISHED = ("mlp", "vgg5", "vgg9")
"""Networks that the published code has without BNTT."""


def coding_contradictions(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """(place, problem) of everything about codings, exits, attacks and networks without BNTT that cannot be."""
    if recipe.is_integer:
        return
    yield from _net(recipe.net)
    for name, stage in recipe.stages.items():
        here = ("stages", name)
        if isinstance(stage, Codings):
            yield from _grid(here, stage, recipe)
        elif isinstance(stage, Exit | Attack):
            yield from _measured(here, name, stage, recipe)
        elif recipe.net.norm == "none":
            yield from _without_statistics(here, stage)
        if isinstance(stage, Published):
            yield from _prices(here, stage)
        if isinstance(stage, Train | Convert) and isinstance(recipe.stages.get(str(stage.start)), Codings):
            yield (*here, "from"), f"'{stage.start}' has many networks; train one in a stage do: train"


def _net(net: Net) -> Iterator[tuple[Place, str]]:
    mine = ("norm", "leak_rule", "gain")
    if net.is_bitnet:  # of networks without time: `ordinary.py`
        for key in mine:
            if getattr(net, key) != Net.model_fields[key].default:
                yield (
                    ("net", key),
                    f"is for the mlp and vgg networks with a leak; {net.name} has no such choice: leave it out",
                )
    elif net.norm == "none" and net.name not in PUBLISHED:
        for key in ("leak_rule", "gain"):
            if getattr(net, key) == "reference":
                yield ("net", key), f"the published code has no {net.name} without BNTT; name the {key} that you want"


def _grid(here: Place, stage: Codings, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    net, train = recipe.net, stage.train
    if net.is_bitnet or net.is_ordinary:
        yield here, f"{net.name} has one way to see an image; input codings are compared on mlp and vgg networks"
    for key in ("encodings", "steps"):
        values = getattr(stage, key)
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            yield (*here, key), f"names {twice[0]} twice"
    if net.norm == "bntt" and max(stage.steps) > BNTT_STEPS:
        yield (*here, "steps"), f"found {max(stage.steps)}; with BNTT it must be at most {BNTT_STEPS}"
    if train.start is not None:
        yield (*here, "train", "from"), f"found '{train.start}'; these networks start from fresh weights: leave it out"
    limit = recipe.data.limit
    if limit and train.batch_size > limit:
        where = (*here, "train", "batch_size")
        yield where, f"{train.batch_size} is more than data.limit, {limit}; no batch would be full"


def _measured(here: Place, name: str, stage: Exit | Attack, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    net = recipe.net
    if net.is_bitnet or net.is_ordinary:
        yield here, f"{stage.do} is for mlp and vgg networks with or without BNTT; {net.name} is none"
        return
    before = dict(list(recipe.stages.items())[: list(recipe.stages).index(name)])
    fits = Train | Load | Codings if isinstance(stage, Attack) else Train | Load
    networks = [n for n, s in before.items() if isinstance(s, fits)]
    for other in stage.of:
        if other not in networks and isinstance(before.get(other), Codings):
            yield (*here, "of"), f"'{other}' has many networks; exit from one that a stage do: train has made"
        elif other not in networks:
            yield (*here, "of"), f"no earlier stage has a network '{other}'{nearest(other, networks)}"
        elif isinstance(before[other], Recover) and len(before[other].members) > 1:
            yield (*here, "of"), f"'{other}' has {len(before[other].members)} networks; take a stage that has one"
    if isinstance(stage, Exit) and net.norm == "none" and stage.scales is not None:
        yield (*here, "scales"), f"this {net.name} has no BNTT, and so no scales; leave it out, or take margins alone"


def _without_statistics(here: Place, stage: object) -> Iterator[tuple[Place, str]]:
    if isinstance(stage, Evaluate) and max(stage.adapt):
        yield (*here, "adapt"), "this network has no BNTT statistics to adapt; use 0"
    if isinstance(stage, Recover) and stage.loads == "statistics":
        yield (*here, "loads"), "this network has no BNTT statistics to load; take all_but_convs"


def _prices(here: Place, stage: Published) -> Iterator[tuple[Place, str]]:
    from hwsim.device.pricelist import Prices

    try:
        prices = Prices.load(stage.card)
    except CardError as e:
        yield from (((*here, "card"), line) for line in str(e).splitlines())
        return
    absent = [e for e in ("add_fp32", "mult_fp32") if prices.of(e) is None]
    if "synapse" not in prices.covers or "crossbar" in prices.covers:
        yield (
            (*here, "card"),
            f"the published formula needs a card of arithmetic; {stage.card} is none: horowitz_45nm is",
        )
    elif absent:
        yield (*here, "card"), f"card {stage.card} gives no price of {' and '.join(absent)}; take horowitz_45nm"
