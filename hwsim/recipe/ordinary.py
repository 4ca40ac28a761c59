"""What does not go together in a recipe of networks without time, or of networks with time and their conversion."""

from collections.abc import Iterator

from hwsim.config import CardError
from hwsim.fields import Place
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.settings import ORDINARY, Evaluate, Net, Recipe, Recover, Train


def misplaced(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """(place, problem) of everything about ordinary networks and conversion that cannot be."""
    net = recipe.net
    if net.is_ordinary:
        for name in ("steps", "encode", "leak", "threshold", "norm", "leak_rule", "gain"):
            if getattr(net, name) != Net.model_fields[name].default:
                yield ("net", name), f"{net.name} is a network without time; leave {name} out (stage convert has time)"
    for name, stage in recipe.stages.items():
        here = ("stages", name)
        if isinstance(stage, Convert):
            yield from _conversion(here, stage, recipe)
        elif isinstance(stage, Train):
            yield from _training(here, stage, recipe)
        elif isinstance(stage, Evaluate) and net.is_ordinary and max(stage.adapt):
            yield (*here, "adapt"), f"{net.name} has no BNTT statistics to adapt; use 0"


def _conversion(here: Place, stage: Convert, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    net = recipe.net
    if not net.is_ordinary:
        has_bntt = net.norm == "bntt" and not net.is_bitnet
        why = "its layers bntt1 … bntt_fc (BNTT) have no spiking counterpart" if has_bntt else "it spikes already"
        yield here, f"{net.name} cannot be converted: {why}; take net.name {', '.join(ORDINARY)}"
    elif not stage.one_step and stage.time <= (delay := _delay(net)):
        late = f"in a pipeline the first signal reaches the output at step {delay + 1}"
        yield (*here, "time"), f"{stage.time} steps, but {late}; take more, or --one-step"
    if isinstance(recipe.stages.get(stage.start), Convert):
        yield (*here, "from"), f"'{stage.start}' is converted already; convert the network that it was made of"
    if stage.threshold_bits is not None:
        yield from _threshold_cells((*here, "threshold_bits"), stage.threshold_bits, recipe)


def _delay(net: Net) -> int:
    """Steps before the first signal leaves a pipeline: one for every layer and average before the output, and one."""
    from hwsim.network.vgg15 import PLANS

    return len(PLANS[net.name][0]) + 2


def _threshold_cells(here: Place, bits: int, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    from hwsim.device.card import load_card

    try:
        table = load_card(recipe.device.card).weights.sigma_ln_by_bits
    except (CardError, AttributeError):
        return  # said of the card
    if table is None:
        yield here, f"card {recipe.device.card} gives no spread by bits alone; set it to null, or take another card"
    elif bits not in table:
        yield here, f"{bits} is not one of {', '.join(map(str, table))} (card {recipe.device.card} has these)"


def _training(here: Place, stage: Train, recipe: Recipe) -> Iterator[tuple[Place, str]]:
    if isinstance(stage, Recover) and recipe.net.is_ordinary:
        yield (*here, "do"), f"SRAM recovery is for spiking networks; {recipe.net.name} is none"
    if isinstance(recipe.stages.get(str(stage.start)), Convert):
        yield (*here, "from"), f"'{stage.start}' is converted into spikes and is not trained further; train its parent"
    if stage.weights == "float":
        for name, plain in (("center", False), ("gradient", "straight-through")):
            if getattr(stage, name) != plain:
                yield (*here, name), "is for weights on the device; this stage trains weights: float"
        if isinstance(stage, Recover):
            yield (*here, "weights"), "recovery is of weights on the device; leave it out"
